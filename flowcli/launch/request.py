"""A command line, taken apart, and what is wrong with its words before any config is composed."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli import trust
from flowcli.errors import UserError
from flowcli.explain import have, quoted
from flowcli.launch.offers import groups

MAX_PREFLIGHT = 200
"""Jobs of one sweep that are composed before the first starts; at about 30 ms each, 6 s."""

ON_CHECKPOINT = {
    "sample": ("solver", "seed", "device", "dtype"),
    "likelihood": ("solver", "divergence", "seed", "device", "dtype", "evaluation"),
}
"""What may be changed for a trained flow, besides the verb's own keys."""

ON_RESUME = ("trainer.steps", "trainer.max_time", "trainer.workers", "logger")
"""What may be changed when a run goes on."""

FLAG_OR_KEY = ("weights", "which", "out")
"""Config keys that have a flag for convenience."""


@dataclass(frozen=True)
class Request:
    """One command line, taken apart."""

    verb: str
    overrides: Sequence[str] = ()
    multirun: bool = False
    cfg: str | None = None
    resolve: bool = False
    package: str | None = None
    info: str | None = None
    config_name: str | None = None
    config_dir: Path | None = None
    trust: Sequence[str] = ()
    resume: Path | None = None
    retry_failed: bool = False
    ckpt: Path | None = None
    weights: str | None = None
    which: str | None = None
    out: Path | None = None

    @property
    def own(self) -> bool:
        """Whether the config is the user's own, not a checkpoint's or a run's."""
        return self.ckpt is None and self.resume is None


def quote(value: str | Path) -> str:
    """A text as one Hydra override value, whatever characters it has.

    Raises:
        UserError: it holds `${`, which a saved config may not.
    """
    if "${" in str(value):
        raise UserError(f"{value}: a name with '${{' in it cannot be used")
    return quoted(str(value))


def flag_overrides(request: Request) -> list[str]:
    """The flags that are config keys, as overrides."""
    given = {name: getattr(request, name) for name in ("ckpt", *FLAG_OR_KEY)}
    words = [f"{name}={quote(value)}" for name, value in given.items() if value is not None]
    return [*words, f"trust=[{','.join(map(quote, request.trust))}]"] if request.trust else words


def parse(words: Sequence[str]) -> list[Any]:
    """Hydra's overrides of these words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(list(words))


def nested_choice(word: str) -> str:
    """`base.data=moons` chooses an option for a node inside a node, which Hydra writes data@base.data=moons."""
    key, _, value = word.partition("=")
    outer, _, inner = key.partition(".")
    options, node = set(value.split(",")), f"/{inner}@{inner}:"
    if not options <= set(groups().get(inner, ())):
        return word
    files = (trust.conf_dir() / outer).glob("*.yaml") if outer.isidentifier() else ()
    return f"{inner}@{word}" if any(node in file.read_text(encoding="utf-8") for file in files) else word


def refuse_bare_words(words: Sequence[str]) -> None:
    """Refuse words that Hydra's parser would not call by their name.

    Raises:
        UserError: quoting the word.
    """
    for word in words:
        if ("=" not in word and not word.startswith("~")) or word.lstrip("+~").startswith("="):
            options = groups().get(word)
            hint = f"; write {word}=OPTION, one of {', '.join(options)}" if options else ""
            raise UserError(f"{word!r} is not key=value{hint}")
        if re.search(r"[\d_]{1000}", word):
            raise UserError(f"{word[:60]}...: a number of more than a thousand digits")


def refuse_no_option(overrides: Iterable[Any]) -> None:
    """A group's value is an option's name, or a list of them."""
    for override in overrides:
        key, options = override.key_or_group, groups().get(override.key_or_group)
        if (options or "/" in key) and not override.is_sweep_override() and not override.is_delete():
            value = override.value()
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) for name in names):
                raise UserError(f"{override.input_line}: no such option" + (f" ({have(options)})" if options else ""))


def chosen_options(overrides: Iterable[Any]) -> Iterator[str]:
    """The options that overrides choose, group/option."""
    for override in overrides:
        values = override.sweep_string_iterator() if override.is_discrete_sweep() else [override.value()]
        for value in itertools.islice(values, MAX_PREFLIGHT):
            for option in value if isinstance(value, list) else [value]:
                yield f"{override.key_or_group}/{option}"
