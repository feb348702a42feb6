"""What a comparison shows, as plain values: the page, Markdown and LaTeX are written from these alone."""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["", "best", "tie", "worse", "better"]
"""What a cell says against the reference of its section; the best row, and the rows that cannot be told from it."""


@dataclass(frozen=True)
class Figure:
    """A picture: PNG bytes, a caption beneath it, and what it shows in words for who cannot see it."""

    title: str
    caption: str
    png: bytes
    alt: str


@dataclass(frozen=True)
class Column:
    """Head of a column: a note such as "perfect 2.614", and one sentence on what the metric means."""

    key: str
    title: str
    note: str = ""
    help: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, what it sorts by (None: last either way), and one more line of detail."""

    text: str
    order: float | str | None = None
    mark: Mark = ""
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """Rows that may be compared with each other, the verdict on them first; each row has a cell for each column."""

    title: str
    verdict: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remarks: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A run that is not compared, and why not."""

    run: str
    status: str
    reason: str


@dataclass(frozen=True)
class Page:
    """A whole comparison; the first row of `differences` are its heads, commands and settings are (label, text)."""

    title: str
    sections: tuple[Section, ...]
    left_out: tuple[LeftOut, ...] = ()
    differences: tuple[tuple[str, ...], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    made: str = ""
