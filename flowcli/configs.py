"""Config files of the user's own, looked at before Hydra composes them: it says little of what it cannot read."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowcli.errors import UserError

LARGEST, DEEPEST, NODES = 1 << 20, 50, 100_000
"""Bytes of a file, levels of its nesting, and nodes once its aliases are written out."""


def check(folder: Path, chosen: Sequence[str]) -> None:
    """Read the configs of a folder that are chosen (`path/mine`), and those that they name in turn.

    Raises:
        UserError: naming the file that is no config.
    """
    for name in chosen:
        _check(folder, name, ())


def _check(folder: Path, name: str, above: tuple[str, ...]) -> None:
    file = folder / f"{name.strip('/')}.yaml"
    if not _is_file(file):
        return
    if name in above:
        raise UserError(f"{file}: its defaults lead back to itself")
    for other in _named(name.rpartition("/")[0], read(file).get("defaults", [])):
        _check(folder, other, (*above, name))


def read(file: Path) -> dict[Any, Any]:
    """One config file.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    import yaml

    if file.stat().st_size > LARGEST:
        raise UserError(f"{file}: is larger than {LARGEST:,} bytes, too large for a config")
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.safe_load(text)
        _measure(node, 0, {})
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {error}") from error
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: is nested more than {DEEPEST} deep") from error
    for line in text.splitlines():
        if re.match(r"\s*#\s*@", line) and not re.fullmatch(r"\s*#\s*@\w+\s+\S+\s*", line):
            raise UserError(f"{file}: {line.strip()[:80]!r} must be '# @package NAME'")
    if not isinstance(node, dict | None):
        raise UserError(f"{file}: a config is keys with values (key: value), this is a {type(node).__name__}")
    found = node or {}
    _check_defaults(file, found.get("defaults", []))
    return found


def _measure(node: Any, depth: int, known: dict[int, int]) -> int:
    """Nodes below, with aliases written out; known: those of the containers seen, 0 while one is measured.

    Raises:
        ValueError: too many, too deep, or in a circle.
    """
    if depth > DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} deep")
    if not isinstance(node, dict | list):
        return 1
    if known.get(id(node)) == 0:
        raise ValueError("has an alias (*name) inside the node that it stands for")
    if id(node) not in known:
        known[id(node)] = 0
        children = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_measure(child, depth + 1, known) for child in children)
    if known[id(node)] > NODES:
        raise ValueError(f"has more than {NODES:,} nodes once its aliases (*name) are written out")
    return known[id(node)]


def _check_defaults(file: Path, defaults: Any) -> None:
    legal = "want a list of NAME and GROUP: OPTION"
    if not isinstance(defaults, list):
        raise UserError(f"{file}: defaults: {legal}, got {defaults!r}")
    for entry in defaults:
        pair = list(entry.items()) if isinstance(entry, dict) else [(entry, None)]
        if len(pair) != 1 or not isinstance(pair[0][0], str) or not isinstance(pair[0][1], str | list | None):
            raise UserError(f"{file}: defaults: {legal}, got {entry!r}")


def _named(parent: str, defaults: list[Any]) -> Iterator[str]:
    """The configs that a defaults list names, from the folder's root."""
    for entry in defaults:
        group, options = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        group = re.sub(r"^(override|optional) +", "", group).partition("@")[0]
        for option in options if isinstance(options, list) else [options]:
            path = f"{group}/{option}" if group else str(option)
            yield path if path.startswith("/") or not parent else f"{parent}/{path}"


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
