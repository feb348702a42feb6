"""A group's table and verdict for a terminal or a file, as wide as that is."""

import io
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flowcli.comparison import view

LONGEST_LABEL = 24
"""A row with a longer name gets a number, and stands below with it."""
MOST_TRANSPOSED = 4
GAP = 2
STARRED = ("best", "tie")
STARS = "* lowest, or a tie with it: the interval of their difference holds 0, or neither can be told from true samples"
PERFECT = "  a perfect model"


def text(section: view.Section, width: int, *, colour: bool, without: Collection[str] = ()) -> str:
    """The table, its remarks and the verdict; without colour there are no escape codes in it.

    One line a row if that fits; a few rows that do not fit stand side by side; else the columns are dealt out over
    several blocks. without: keys of columns to leave out.
    """
    names = [row[0].text for row in section.rows]
    long = any(len(name) > LONGEST_LABEL for name in names)
    labels = [str(index + 1) for index in range(len(names))] if long else names
    head = [_Column("", "", labels, [False] * len(labels), long)]
    shown = [(place, column) for place, column in enumerate(section.columns) if place > 0 and column.key not in without]
    columns = [_column(column, [row[place] for row in section.rows]) for place, column in shown]
    parts = [section.title, *(_render(block, width, colour) for block in _lay_out(head, columns, width))]
    stars = any(cell.mark in STARRED for row in section.rows for cell in row)
    said = [*([STARS] if stars else []), *section.remarks]
    remarks = [line for remark in said for line in _wrapped(remark, width, "  ")]
    if long:
        margin = len(labels[-1])
        remarks += [f"  {label:>{margin}}  {name}" for label, name in zip(labels, names, strict=True)]
    parts.append("\n".join(remarks))
    parts.append("\n".join(line for sentence in section.verdict for line in _wrapped(sentence, width, "  ")))
    return "\n\n".join(part for part in parts if part) + "\n"


def left_out(found: Sequence[view.LeftOut], width: int) -> str:
    """The runs that are not compared, and why not; empty where there are none."""
    lines = [
        line for each in found for line in _wrapped(f"{each.run}  {each.status}: {each.reason}", width - 2, "    ")
    ]
    return "\n".join(["not compared:", *(f"  {line}" for line in lines)]) + "\n" if lines else ""


def _wrapped(sentence: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(sentence, max(width, 40), subsequent_indent=indent, break_on_hyphens=False)


def _column(column: view.Column, cells: Sequence[view.Cell]) -> "_Column":
    stars = [cell.mark in STARRED for cell in cells]
    mark = (lambda wins: "*" if wins else " ") if any(stars) else (lambda wins: "")
    texts = [cell.text + mark(wins) for cell, wins in zip(cells, stars, strict=True)]
    return _Column(column.title, column.note, texts, stars, column.numeric)


# ---------------------------------------------------------------- laying out
@dataclass(frozen=True)
class _Column:
    title: str
    note: str
    cells: list[str]
    bold: list[bool]
    right: bool

    @property
    def header(self) -> list[str]:
        """The title, broken after dots and underscores where it is wider than the cells, and the note below."""
        room = max([len(cell) for cell in self.cells] + [len(self.note)])
        lines = [""]
        for piece in self.title.replace(".", ".\n").replace("_", "_\n").split("\n"):
            if lines[-1] and len(lines[-1] + piece) > room:
                lines.append("")
            lines[-1] += piece
        return [*lines, self.note] if self.note else lines

    @property
    def width(self) -> int:
        """Columns of a terminal that it takes; East Asian letters take two."""
        from rich.cells import cell_len

        return max(cell_len(text) for text in [*self.header, *self.cells])


def _lay_out(head: list[_Column], columns: list[_Column], width: int) -> list[list[_Column]]:
    if _total([*head, *columns]) <= width:
        return [[*head, *columns]]
    if len(head[0].cells) <= MOST_TRANSPOSED:
        transposed = _transpose([*head, *columns])
        if _total(transposed) <= width:
            return [transposed]
    blocks = [list(head)]
    for column in columns:
        if len(blocks[-1]) > 1 and _total([*blocks[-1], column]) > width:
            blocks.append(head[:1])
        blocks[-1].append(column)
    return blocks


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _transpose(columns: list[_Column]) -> list[_Column]:
    """The same cells with a column a run; titles become the first column."""
    labels, body = columns[0], []
    for column in columns[1:]:
        body.append(column)
        if column.note:  # what a perfect model has, the same for all rows
            kind, _, perfect = column.note.partition(" ")
            if kind == "perfect":
                body.append(_Column(PERFECT, "", [perfect] * len(column.cells), [False] * len(column.cells), True))
    marked = any(any(column.bold) for column in body)

    def cell(column: _Column, index: int) -> str:
        return column.cells[index] + (" " if marked and not any(column.bold) else "")  # figures end below figures

    runs = [
        _Column(label, "", [cell(column, i) for column in body], [column.bold[i] for column in body], True)
        for i, label in enumerate(labels.cells)
    ]
    titles = [column.title for column in body]
    return [_Column(labels.title, "", titles, [False] * len(titles), False), *runs]


def _render(columns: list[_Column], width: int, colour: bool) -> str:
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rule = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")  # one line below the titles and no other
    grid = RichTable(box=rule, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="")
    for column in columns:
        justify = "right" if column.right else "left"
        grid.add_column(Text("\n".join(column.header)), justify=justify, no_wrap=True, vertical="bottom")
    for index in range(len(columns[0].cells)):
        grid.add_row(
            *(Text(c.cells[index], style="bold" if c.bold[index] and colour else "") for c in columns),
        )
    buffer = io.StringIO()
    room = max(width, _total(columns))  # better a long line than a figure cut short
    console = Console(file=buffer, width=room, force_terminal=colour, color_system="standard" if colour else None)
    console.print(grid)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))
