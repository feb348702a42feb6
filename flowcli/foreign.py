"""Small files that a stranger may have written: bounded, plain, inside their folder, and shown without escapes.

Importing this module imports neither yaml nor torch.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowcli.errors import UserError

LARGEST = 1 << 20
"""Bytes of a small file, where nothing else is said."""
MOST_VALUES, DEEPEST = 1_000_000, 50
"""Values in such a file, and how deep they are nested."""
LONGEST_SCALAR = 4096
"""Characters of one text or number in YAML: time that a long number takes grows with the square of its length."""
_LARGEST_NUMBER = 2**1023
"""Beyond it a whole number has no floating-point counterpart, which `math` expects."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys (ESC, backspace, carriage return, ...) and what reverses the order of letters."""


def printable(text: str) -> str:
    """A text without the characters that a terminal obeys; line ends and tabs stay."""
    return _CONTROL.sub("�", text)


def has_control(text: str) -> bool:
    """Whether `printable` would change the text."""
    return _CONTROL.search(text) is not None


def short(error: BaseException) -> str:
    """An error's own words on one line, cut after 120 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(text.split())[:120]) or type(error).__name__


# ---------------------------------------------------------------- where a file leads
def inner(file: Path, inside: Path) -> Path:
    """Where an ordinary file of a folder lies, after links that stay in that folder.

    Raises:
        UserError: there is none, a link leads out of the folder, or it is a device, a pipe or a folder.
    """
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(os.path.realpath(inside)):
        raise UserError(f"{printable(str(file))}: a link that leads out of {printable(str(inside))}, so it is refused")
    try:
        mode = os.stat(real, follow_symlinks=False).st_mode
    except OSError as error:
        raise UserError(f"{printable(str(file))} is missing ({short(error)})") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{printable(str(file))}: not an ordinary file, so it is refused")
    return real


def refuse_links(folder: Path) -> None:
    """Look through a whole folder before anything in it is followed, or written through.

    Raises:
        UserError: a link leads out of it, or nowhere, or something is neither a file nor a folder.
    """
    root = os.path.realpath(folder)
    waiting = [root]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        _refuse_odd(entry, folder, root)
        except OSError as error:
            raise UserError(f"{printable(str(folder))}: {printable(place[len(root) :])} {short(error)}") from error


def _refuse_odd(entry: os.DirEntry[str], folder: Path, root: str) -> None:
    shown, real = printable(str(folder / os.path.relpath(entry.path, root))), Path(os.path.realpath(entry.path))
    if not entry.is_symlink():
        raise UserError(f"{shown}: neither a file nor a folder, so it is refused")
    if not real.is_relative_to(root) or not real.exists():
        raise UserError(f"{shown}: a link that leads out of {printable(str(folder))}, or nowhere, so it is refused")


# ---------------------------------------------------------------- what a file holds
def read_text(file: Path, inside: Path, limit: int = LARGEST) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: as for `inner`; it is longer than `limit` bytes, or no such text.
    """
    real = inner(file, inside)
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as handle:
            content = handle.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{printable(str(file))}: longer than {limit:,} bytes, so it is refused")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{printable(str(file))}: not a readable file of text ({short(error)})") from error


def read_json(file: Path, inside: Path, limit: int = LARGEST) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: as for `read_text`; it is no JSON, or nested too deep.
    """
    text = read_text(file, inside, limit)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(str(file))} is damaged ({short(error)})") from error
    return _checked(file, content, MOST_VALUES)


def read_yaml(file: Path, inside: Path, limit: int = LARGEST, most: int = MOST_VALUES) -> Any:
    """What a YAML file of mappings, lists and plain values holds; anchors, aliases and tags are refused.

    most: values in it.

    Raises:
        UserError: as for `read_text`; it is no such YAML, nested too deep or too long.
    """
    return parse_yaml(file, read_text(file, inside, limit), most)


def parse_yaml(file: Path, text: str, most: int = MOST_VALUES) -> Any:
    """The same of a file's text.

    Raises:
        UserError: as for `read_yaml`.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # safe, only faster
    try:
        _check_events(file, yaml.parse(text, Loader=loader), most)  # before anything is built out of them
        content = yaml.load(text, Loader=loader)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise UserError(f"{printable(str(file))}: not a readable config ({short(error)})") from error
    return _checked(file, content, most)


def _check_events(file: Path, events: Iterator[Any], most: int) -> None:
    """Refuse what can be short and stand for much: an alias repeats what it names, a merge key copies it."""
    import yaml

    depth = count = 0
    for event in events:
        name, count = printable(str(file)), count + 1
        if isinstance(event, yaml.events.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.events.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise UserError(f"{name}: nested more than {DEEPEST} deep, so it is refused")
        if count > 2 * most:
            raise UserError(f"{name}: more than {most:,} values, so it is refused")
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise UserError(f"{name}: not a readable config (it has an anchor, an alias or a tag)")
        if isinstance(event, yaml.events.ScalarEvent) and (len(event.value) > LONGEST_SCALAR or event.value == "<<"):
            raise UserError(f"{name}: not a readable config (a text of more than {LONGEST_SCALAR} letters, or <<)")


def _checked(file: Path, content: Any, most: int) -> Any:
    """The content itself, if it is plain and not too much of it."""
    name, count = printable(str(file)), 0
    stack: list[tuple[Any, int]] = [(content, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if depth > DEEPEST or count > most:
            raise UserError(f"{name}: nested more than {DEEPEST} deep, or more than {most:,} values: refused")
        if isinstance(node, dict):
            stack += [(key, depth + 1) for key in node]
            if not all(isinstance(key, str) for key in node):
                raise UserError(f"{name}: a key that is no text")
        if isinstance(node, dict | list):
            stack += [(value, depth + 1) for value in (node.values() if isinstance(node, dict) else node)]
        elif isinstance(node, str):
            if _SURROGATE.search(node):
                raise UserError(f"{name}: holds half a letter (a lone surrogate), so it is damaged")
        elif isinstance(node, int):
            if abs(node) >= _LARGEST_NUMBER:
                raise UserError(f"{name}: holds a number of more than 300 digits, so it is refused")
        elif node is not None and not isinstance(node, float):
            raise UserError(f"{name}: holds a {type(node).__name__}; plain values are wanted, so it is refused")
    return content
