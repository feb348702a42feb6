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


def composed(verb: str, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """conf/<verb>.yaml under these overrides, as plain values, and the options behind its groups.

    A group of which nothing is chosen is None.

    Raises:
        UserError: a word is no override, or changes what this verb does not read.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

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
        made = compose(verb, list(words), return_hydra_config=True) if words else base
        options = {
            str(group): str(option) for group, option in made.hydra.runtime.choices.items() if option is not None
        }
        with open_dict(made):
            del made["hydra"]
        return dict.fromkeys(legal) | plain(made, own=False), options
