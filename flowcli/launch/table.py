"""What somebody who watches a sweep reads: a table on a terminal, lines where the output is piped."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowcli.launch.progress import (
    DONE,
    ELSEWHERE,
    EVALUATING,
    FAILED,
    RUNNING,
    STATES,
    STOPPED,
    TRAINING,
    WAITING,
    Row,
)
from flowcli.numbers import duration

if TYPE_CHECKING:
    from rich.table import Table

HEADS = ("cell", "config", "state", "step", "figure", "time")
CONFIG, FIGURE = HEADS.index("config"), HEADS.index("figure")
NARROWEST = 8
"""Characters of a column that is cut where the terminal is narrow."""
FRAME = 6
"""Lines of a table that are no rows: its head, its end and two of counts."""
URGENT = (TRAINING, EVALUATING, STOPPED, FAILED, ELSEWHERE, WAITING, DONE)
"""Which cells are shown first where not all fit."""
STYLES = {
    DONE: "green",
    FAILED: "red",
    TRAINING: "cyan",
    EVALUATING: "cyan",
    STOPPED: "yellow",
    ELSEWHERE: "yellow",
    WAITING: "dim",
}


def counts(rows: Sequence[Row], jobs: int | None) -> str:
    """How many cells are in which state, e.g. 3 of 12 done, 1 training, 8 waiting; jobs: in all, where known."""
    found = Counter(row.state for row in rows)
    found[WAITING] += max(0, (jobs or 0) - len(rows))
    done = f"{found[DONE]} of {jobs} done" if jobs is not None else f"{found[DONE]} done"
    return ", ".join([done, *(f"{found[state]} {state}" for state in STATES if state != DONE and found[state])])


def table(rows: Sequence[Row], jobs: int | None, width: int, height: int) -> "Table":
    """The cells as a table of at most so many characters and lines."""
    from rich.table import Table
    from rich.text import Text

    shown = fitting(rows, height - FRAME)
    hidden = max(len(rows), jobs or 0) - len(shown)
    told = counts(rows, jobs) + (f"; {hidden} more are not shown" if hidden else "")
    made = Table(caption=Text(cut(told, width)), caption_justify="left")
    cells = [_cells(row) for row in shown]
    widths = [max([len(head), *(len(line[at]) for line in cells)]) for at, head in enumerate(HEADS)]
    spare = width - len(HEADS) * 3 - 1 - sum(widths[at] for at in range(len(HEADS)) if at not in (CONFIG, FIGURE))
    widths[CONFIG] = max(NARROWEST, min(widths[CONFIG], spare - min(widths[FIGURE], spare // 2)))
    widths[FIGURE] = max(NARROWEST, min(widths[FIGURE], spare - widths[CONFIG]))
    for head in HEADS:
        made.add_column(head, justify="right" if head in ("cell", "step", "time") else "left", no_wrap=True)
    for row, line in zip(shown, cells, strict=True):
        made.add_row(*(Text(cut(text, widths[at])) for at, text in enumerate(line)), style=STYLES[row.state])
    return made


def _cells(row: Row) -> tuple[str, ...]:
    stepping = row.state in (TRAINING, STOPPED) and row.steps is not None
    step = f"{row.step}/{row.steps}" if stepping else ""
    return str(row.number), row.words, row.state, step, row.figure or row.reason, _time(row)


def cut(text: str, width: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def fitting(rows: Sequence[Row], most: int) -> list[Row]:
    """The cells that are shown where only so many fit, in order: of the finished ones the last, else the first."""
    if len(rows) <= most:
        return list(rows)
    order = sorted(rows, key=lambda row: (URGENT.index(row.state), -row.number if row.state == DONE else row.number))
    return sorted(order[: max(1, most)], key=lambda row: row.number)


def _time(row: Row) -> str:
    if row.state == TRAINING and row.left is not None:
        return f"{duration(row.left)} left"
    return "" if row.seconds is None else duration(row.seconds)


def line(row: Row, before: Row | None, rows: Sequence[Row], jobs: int | None) -> str | None:
    """What is said of a cell that changed, where the output is piped; rows: all, as they were told up to this one."""
    was = WAITING if before is None else before.state
    if row.state == was or (row.state in RUNNING and was in RUNNING) or row.state == WAITING:
        return None
    if row.state == STOPPED:
        told = f"stopped at step {row.step}"
    elif row.state in RUNNING:
        told = "goes on" if row.again else "starts"
    else:
        took = "" if row.seconds is None else f"{duration(row.seconds)}; "
        told = f"{row.state}  {row.figure or row.reason}  ({took}{counts(rows, jobs).partition(',')[0]})"
    return "  ".join(part for part in (f"cell {row.number}", row.words, told) if part)
