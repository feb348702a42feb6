"""Which classes a config may name, and where the configs that flowcli ships are.

A `_target_` is compared whole: a rule by prefix would let `flowcli.storage.os.system` through.
Importing this module imports neither torch nor Hydra.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flowcli.errors import UserError

TARGET = "_target_"
_LINE = re.compile(rf"""{TARGET}["']?\s*:\s*["']?([\w.]+)""")
_COMMENT = re.compile(r"(^|\s)#.*")


def conf_dir() -> Path:
    """The shipped configs: flowcli/conf in a wheel, conf/ beside the package in a checkout.

    Raises:
        UserError: the installation lost them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"flowcli's conf/ is missing (looked in and beside {package}); install flowcli again")


def shipped_targets() -> frozenset[str]:
    """Every `_target_` that the shipped configs name."""
    return _scan(conf_dir())


@lru_cache
def _scan(root: Path) -> frozenset[str]:
    """Read lines, not YAML: this is asked at every start, and our own files are simple."""
    lines = (line for file in root.rglob("*.yaml") for line in file.read_text(encoding="utf-8").splitlines())
    return frozenset(name for line in lines for name in _LINE.findall(_COMMENT.sub("", line)))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in nested mappings and lists, in order."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield str(node[TARGET])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from targets(value)


def refuse_untrusted(node: Any, trusted: Collection[str]) -> None:
    """Let nothing pass that is neither shipped nor named in `trusted`.

    Raises:
        UserError: naming the target and how to trust it.
    """
    allowed = shipped_targets().union(trusted)
    for name in targets(node):
        if name not in allowed:
            raise UserError(
                f"_target_ {name!r} is not one of flowcli's own; if you trust that class, say --trust {name}"
            )


def own_targets(node: Any) -> list[str]:
    """The targets in a config that its user wrote himself which flowcli does not ship: his own classes.

    Raises:
        UserError: one is from the standard library, so no part of a model, and likely a trap in a file from elsewhere.
    """
    own = sorted(set(targets(node)) - shipped_targets())
    for name in own:
        _refuse_standard_library(name, name)
    return own


def locate(name: str) -> type:
    """Import the class behind a trusted target.

    Raises:
        UserError: there is none, it is no class (a function may do anything), or the standard library's.
    """
    _refuse_standard_library(name, name)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise UserError(f"_target_ {name!r}: no such class (want package.module.Class)")
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                continue  # not a module: perhaps a class that holds the next name
            raise UserError(
                f"_target_ {name!r}: {module} needs the package {error.name!r}, which is not installed"
            ) from error
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if not isinstance(found, type):
            raise UserError(f"_target_ {name!r}: " + ("no such class" if found is None else "not a class"))
        _refuse_standard_library(found.__module__, name)
        _refuse_unfit(found, name)
        return found
    raise UserError(f"_target_ {name!r}: no such class (is its module on the Python path?)")


def _refuse_unfit(found: type, name: str) -> None:
    """Refuse what no config can build."""
    if inspect.isabstract(found):
        raise UserError(f"_target_ {name!r}: an abstract class; name one that builds on it")
    try:
        inspect.signature(found)
    except ValueError as error:
        raise UserError(f"_target_ {name!r}: says nothing of its parameters, so that none can be given") from error


def _refuse_standard_library(module: str, name: str) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"_target_ {name!r} belongs to Python itself, not to a model: refused")
