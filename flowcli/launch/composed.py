"""A verb's own config, for a verb that runs no job."""

from collections.abc import Sequence
from typing import Any

from flowcli import trust
from flowcli.errors import UserError
from flowcli.explain import did_you_mean
from flowcli.launch.borrowed import borrowed_process
from flowcli.launch.offers import groups, keys
from flowcli.launch.preflight import plain
from flowcli.launch.request import parse, refuse_bare_words, refuse_no_option


def composed(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """conf/<verb>.yaml under these overrides, as plain values; a group of which nothing is chosen is None.

    Raises:
        UserError: a word is no override, or changes what this verb does not read.
    """
    from hydra import compose, initialize_config_dir

    refuse_bare_words(words)
    with borrowed_process(), initialize_config_dir(str(trust.conf_dir()), job_name=verb, version_base="1.3"):
        overrides = parse(words)
        refuse_no_option(overrides)
        base = compose(verb, return_hydra_config=True)
        chosen = [str(group) for group in base.hydra.runtime.choices if "/" not in str(group)]
        legal = list(dict.fromkeys([*chosen, *(str(key) for key in base if key != "hydra")]))
        for override in overrides:
            root = override.key_or_group.partition(".")[0]
            if root not in legal:
                what = "belongs to training" if root in groups() or root in keys("train") else "no such key"
                raise UserError(
                    f"{override.input_line}: {what} (may change here: {', '.join(legal)}){did_you_mean(root, legal)}"
                )
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: {verb} takes one value of each key")
        return dict.fromkeys(legal) | plain(compose(verb, list(words)), own=False)
