"""What went wrong, on one line, for a person who does not know Hydra: the thing, what is legal, the nearest name.

Hydra, OmegaConf and yaml are imported inside functions: most errors need none of them.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from flowcli import trust
from flowcli.errors import JobError, UserError

_BROUGHT = re.compile(r"(In '(?P<group>\w+)/(?P<option>\w+)': )?Could not override '\w+@(?P<key>\w+\.[\w.]+)'")
"""What Hydra says of an override of a node inside a node that is not there."""

FLAGS_ONLY = ("ckpt", "trust", "resume")
"""Config keys that a flag sets and no override may: the flag is read before the config is composed."""

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


def explain(error: BaseException) -> str:
    """An error on one line."""
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
        return f"cannot read the override {error.override!r} (want key=value): {_one_line(error)}"
    for cause in (error.__cause__, error):
        if isinstance(cause, OmegaConfBaseException):
            return _explain_key(cause)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {str(error.strerror).lower()}"
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
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NOISE))[
        :600
    ]


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
    from omegaconf.errors import MissingMandatoryValue

    parent, key, full = error.parent_node, str(error.key), str(error.full_key)
    if isinstance(error, MissingMandatoryValue):
        return f"{full}: a value is required; write {full}=VALUE"
    if not isinstance(parent, DictConfig) or parent._is_none() or key in list(parent):
        return f"{full}: {_one_line(error)}" if full and full != "None" else _one_line(error)
    hidden = ("hydra", trust.TARGET, *FLAGS_ONLY)
    known = [str(name) for name in parent if str(name) not in hidden]
    prefix = full.removesuffix(key)
    hint = did_you_mean(key, known, prefix)
    if not hint and prefix:  # the right key in the wrong group: model.width for network.width
        root: Any = parent._get_root()
        other = [f"{group}.{key}" for group in root if isinstance(root.get(group), DictConfig) and key in root[group]]
        hint = f"; did you mean {other[0]}?" if other else ""
    kind = "key" if prefix else "group or key"
    return f"{full}: no such {kind} ({have(known, prefix.removesuffix('.'))}){hint}"


def have(known: Sequence[str], owner: str = "") -> str:
    """What is legal here."""
    return f"{owner + ' has' if owner else 'have'}: {', '.join(known) or 'none'}"
