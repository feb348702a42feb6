"""What went wrong, on one line, for a person who does not know Hydra: the thing, what is legal, the nearest name.

Hydra, OmegaConf and yaml are imported inside functions: most errors need none of them.
"""

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from flowcli import trust
from flowcli.errors import JobError, UserError

_BROUGHT = re.compile(r"(In '(?P<group>\w+)/(?P<option>\w+)': )?Could not override '\w+@(?P<key>\w+\.[\w.]+)'")
"""What Hydra says of an override of a node inside a node that is not there."""

FLAGS_ONLY = ("ckpt", "trust", "resume")
"""Config keys that a flag sets and no override may: the flag is read before the config is composed."""

_LONGEST = 600
"""Characters of a message; what is beyond goes out of its middle."""

_NOISE = (
    "full_key:",
    "object_type=",
    "reference_type=",
    "See https",
    "To append",
    "Error parsing",
    "Config search path",
)


def is_users(error: Exception) -> bool:
    """Whether the input was wrong, rather than the program or the job."""
    if isinstance(error, UserError | OSError):
        return True
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    return isinstance(error, HydraException | OmegaConfBaseException | YAMLError)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def legible(text: str) -> str:
    """A text on one line of bounded length, with every character that a terminal would obey or hide spelt out."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 205]} ... {shown[-200:]}"


def quoted(text: str) -> str:
    """A text as one Hydra override value, whatever characters it has."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def explain(error: BaseException) -> str:
    """An error on one line."""
    return legible(_explain(error))


def _explain(error: BaseException) -> str:
    if isinstance(error, UserError | JobError):
        return _one_line(error)
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    brought = _BROUGHT.search(str(error))
    if brought:
        group, option, key = brought["group"], brought["option"], brought["key"]
        outer = key.partition(".")[0]
        if group is None:
            return f"{key}: the {outer} that is chosen here has no {key.rpartition('.')[2]} of its own"
        own = _brings(group, option, outer)
        return f"{group}={option} takes {outer}={own or '...'}, which it brings along: leave out the other {outer}"
    if isinstance(error, OverrideParseException):
        return _explain_override(error.override, _one_line(error))
    for cause in (error.__cause__, error):
        if isinstance(cause, OmegaConfBaseException):
            return _explain_key(cause)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {str(error.strerror).lower()}"
    if isinstance(error, OSError) and error.errno is not None:  # files have names: these are the streams
        return f"the output cannot be written: {os.strerror(error.errno).lower()}"
    known = isinstance(error, YAMLError) or type(error).__module__.startswith("hydra.")
    return _one_line(error) if known else f"{type(error).__name__}: {_one_line(error)}"


def _brings(group: str, option: str, other: str) -> str | None:
    """The option of another group that a shipped option brings along."""
    file = trust.conf_dir() / group / f"{option}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(rf"- override /{other}(?:@[\w.]+)?: (\w+)", text)
    return found[1] if found else None


def _one_line(error: BaseException) -> str:
    text = str(getattr(error, "msg", None) or error).strip() or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NOISE))


def _explain_override(word: str, reason: str) -> str:
    """What is wrong with a word that Hydra's grammar does not know, and how to write it."""
    key, equals, value = word.partition("=")
    start = f"cannot read the override {_cut(word)!r}"
    if not _reads(f"{key}=1"):
        return (
            f"{start}: {key!r} is no key; a key is names joined by dots (trainer.lr=0.01), a group one name (path=vp)"
        )
    if not equals:
        return f"{start} (want key=value)"
    refused = re.search(r" while evaluating '.*?': (.*)", reason)
    if refused and not refused[1].startswith("Unknown function"):
        return f"{start}: {refused[1]}"
    if "${" in value:
        return f"{start}: its ${{...}} is not closed, or holds no name"
    if value[:1] in ("'", '"', "[", "{"):
        return f"{start}: its brackets or quotes do not match, or a text in them needs quotes ('...')"
    said = f"{key}={quoted(value)}"
    typed = shlex.quote(said) if re.search(r'["$`\\!]', said) else f'"{said}"'
    return f"{start}: a text with such signs needs quotes, and the shell others around them: {typed}"


def _cut(word: str) -> str:
    return word if len(word) <= 150 else f"{word[:150]}..."


def _reads(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _explain_missing(error: Any) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = [option for option in error.options or [] if not option.startswith("_")]
    if not group:
        known = sorted(file.stem for file in trust.conf_dir().glob("*.yaml"))
        return f"--config-name {name}: no such config ({have(known)}){did_you_mean(name, known)}"
    hint = did_you_mean(name, options, f"{group}=")
    if not hint and group in ("hydra/launcher", "hydra/sweeper"):
        hint = f"; is its plugin installed? (pip install hydra-{name.partition('_')[0]}-{group.partition('/')[2]})"
    return f"{group}={name}: no such option ({have(options)}){hint}"


def _explain_key(error: Any) -> str:
    from omegaconf import DictConfig
    from omegaconf.errors import GrammarParseError, MissingMandatoryValue

    parent, key, full = error.parent_node, str(error.key), str(error.full_key)
    if isinstance(error, GrammarParseError):
        return f"{full}: it holds a '${{' that begins no interpolation ${{name}}"
    if isinstance(error, MissingMandatoryValue):
        return f"{full}: a value is required; write {full}=VALUE"
    if not isinstance(parent, DictConfig) or parent._is_none() or key in list(parent):
        return f"{full}: {_one_line(error)}" if full and full != "None" else _one_line(error)
    hidden = ("hydra", trust.TARGET, *FLAGS_ONLY)
    known = [str(name) for name in parent if str(name) not in hidden]
    prefix = full.removesuffix(key)
    hint = did_you_mean(key, known, prefix)
    elsewhere = _options_with(prefix, key)
    if not hint and elsewhere:  # the right key for another option: solver.steps with solver=dopri5
        hint = f"; it belongs to {prefix.removesuffix('.')}={', '.join(elsewhere)}"
    elif not hint and prefix:  # the right key in the wrong group: model.width for network.width
        root: Any = parent._get_root()
        other = [f"{group}.{key}" for group in root if isinstance(root.get(group), DictConfig) and key in root[group]]
        hint = f"; did you mean {other[0]}?" if other else ""
    kind = "key" if prefix else "group or key"
    return f"{full}: no such {kind} ({have(known, prefix.removesuffix('.'))}){hint}"


def _options_with(prefix: str, key: str) -> list[str]:
    """The shipped options of a group (`solver.`) that have a key."""
    line = re.compile(rf"^ *{re.escape(key)}:", re.MULTILINE)
    files = (
        sorted(trust.conf_dir().glob(f"{prefix.removesuffix('.')}/*.yaml")) if re.fullmatch(r"\w+\.", prefix) else []
    )
    return [file.stem for file in files if line.search(file.read_text(encoding="utf-8"))]


def have(known: Sequence[str], owner: str = "") -> str:
    """What is legal here."""
    return f"{owner + ' has' if owner else 'have'}: {', '.join(known) or 'none'}"
