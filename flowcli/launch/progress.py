"""How far the cells of a sweep are, read from their folders, whichever process or machine trains them."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowcli.errors import UserError
from flowcli.foreign import printable
from flowcli.launch import cells
from flowcli.launch.cells import Cell, Notes
from flowcli.numbers import with_error
from flowcli.run import METRICS

WAITING, TRAINING, EVALUATING = "waiting", "training", "evaluating"
DONE, FAILED, ELSEWHERE, STOPPED = "done", "failed", "in use elsewhere", "stopped"
STATES = (DONE, TRAINING, EVALUATING, STOPPED, FAILED, ELSEWHERE, WAITING)
RUNNING = (TRAINING, EVALUATING)

TAIL = 4096
"""Bytes at the end of a log that hold its last line."""


@dataclass(frozen=True)
class Row:
    """A cell, as somebody who watches sees it.

    Attributes:
        steps: in all; None where nothing is trained.
        figure: its last loss, or what it scored.
        reason: why it failed, or who trains it.
        seconds: that it took, or has taken; None where nothing was run.
        left: seconds to the end of the training, None where nobody can say.
        again: it goes on with what an earlier sweep left.
    """

    number: int
    folder: Path
    words: str
    state: str = WAITING
    step: int = 0
    steps: int | None = None
    figure: str = ""
    reason: str = ""
    seconds: float | None = None
    left: float | None = None
    again: bool = False


def rows(
    known: Sequence[Cell],
    notes: Mapping[int, Mapping[str, Any]],
    words: Mapping[int, str],
    before: Mapping[int, Row],
    now: float,
    *,
    retry: bool,
) -> list[Row]:
    """Every cell that was planned or told of, in order.

    words: of the cells that nobody planned; before: what an earlier look found; now: seconds since 1970; retry: failed
    cells are run again.
    """
    planned = {cell.number: cell for cell in known}
    found = []
    for number in sorted({*planned, *notes}):
        if number in before and before[number].state == DONE:
            found.append(before[number])
            continue
        note, cell = notes.get(number), planned.get(number)
        folder = Path(str(note["folder"])) if cell is None and note is not None else planned[number].folder
        steps = None if cell is None else _steps(cell.config)
        row = Row(number, folder, printable(words.get(number, "") if cell is None else cell.words), steps=steps)
        found.append(_look(row, note, now, retry=retry))
    return found


def _look(row: Row, note: Mapping[str, Any] | None, now: float, *, retry: bool) -> Row:
    what = None if note is None else note["what"]
    if note is not None and what in (Notes.LEFT, Notes.REFUSED):
        state = ELSEWHERE if what == Notes.LEFT else FAILED
        ended = state == ELSEWHERE and cells.standing(row.folder) == cells.DONE
        if not ended:
            return replace(row, state=state, reason=printable(str(note["reason"])))
    standing = cells.standing(row.folder)
    seconds = None
    if note is not None and what in (Notes.TRAINS, Notes.ENDED):
        row = replace(row, again=bool(note["again"]))
        seconds = max(0.0, _ended(row.folder, standing, now) - float(note["began"]))
    if standing == cells.DONE:
        return replace(row, state=DONE, figure=_score(row.folder), seconds=seconds)
    if standing == cells.FAILED and (what is not None or not retry):
        return replace(row, state=FAILED, reason=printable(cells.reason(row.folder)), seconds=seconds)
    if what != Notes.TRAINS:
        return row if what != Notes.ENDED else replace(row, state=DONE, seconds=seconds)
    last = _last(row.folder / METRICS)
    step = int(last.get("step", 0))
    over = row.steps is not None and step >= row.steps
    loss = f"loss {last['loss']:.4f}" if isinstance(last.get("loss"), float) else ""
    return replace(row, state=EVALUATING if over else TRAINING, step=step, figure=loss, seconds=seconds)


def _steps(config: Mapping[str, Any]) -> int | None:
    trainer = config.get("trainer")
    steps = trainer.get("steps") if isinstance(trainer, Mapping) else None
    return int(steps) if isinstance(steps, int | float) and config.get("objective") is not None else None


def _ended(folder: Path, standing: str, now: float) -> float:
    name = {cells.DONE: "metrics.json", cells.FAILED: "failure.json"}.get(standing)
    if name is not None:
        with suppress(OSError):  # it goes on just now
            return (folder / name).stat().st_mtime
    return now


def _score(folder: Path) -> str:
    """The figure that a cell ended with."""
    try:
        metrics = cells.ending(folder)
    except UserError as error:
        return printable(str(error))
    nll, stderr = metrics.get("nll"), metrics.get("nll_stderr")
    if not isinstance(nll, int | float) or not math.isfinite(nll):
        return "no nll"
    return f"nll {with_error(nll, stderr if isinstance(stderr, int | float) else None)}"


def _last(file: Path) -> dict[str, Any]:
    """The last whole record of a log that has a loss, and the last step."""
    try:
        with open(file, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
            lines = log.read(TAIL).split(b"\n")[:-1]
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found |= {key: record[key] for key in ("step", "loss") if isinstance(record.get(key), int | float)}
    return found
