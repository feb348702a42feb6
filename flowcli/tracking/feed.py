"""From a training to its tracker: all that it should have, and no training that ends because of it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flowcli import foreign
from flowcli.errors import Interrupted, UserError
from flowcli.run import METRICS, TIMINGS
from flowcli.tracking.tracker import Entry, Subject, Tracker


class Feed:
    """Feeds a tracker while a run lasts. One that fails is left out, with a line then and another one at the end."""

    def __init__(self, tracker: Tracker | None, subject: Subject, say: Callable[[str], None]) -> None:
        """tracker: None takes nothing; say: shows a line to the user."""
        self._tracker, self._subject, self._say = tracker, subject, say
        self._begun, self._step, self._zero, self._lost = False, 0, time.time(), ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "done" if error is None else "interrupted" if isinstance(error, Interrupted) else "failed"
        figures, pictures = _ending(self._subject.folder) if status == "done" and self._tracker else ({}, [])
        with self._tracked() as tracker:
            if tracker is not None and self._begun:
                tracker.end(status, int(figures.get("step", self._step)), figures, pictures)
            elif tracker is not None:
                tracker.drop()
        if self._lost:
            self._say(f"{self._lost}; all of it is in the run's own files, and reaches it with --resume")

    def begin(self, offsets: Mapping[str, int]) -> None:
        """Open the tracker and tell it what the logs hold up to these bytes.

        Raises:
            UserError: a log is damaged.
        """
        if self._tracker is None:
            return
        timed = read_logs(self._subject.folder, offsets)
        self._zero -= timed[-1][1] if timed else 0.0
        earlier = [Entry.of(record, self._zero + seconds) for record, seconds in timed]
        with self._tracked() as tracker:
            if tracker is not None:
                tracker.begin(self._subject, earlier)
                self._begun, self._step = True, earlier[-1].step if earlier else 0

    def logged(self, record: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """A line of each log."""
        if self._tracker is None:
            return
        with self._tracked() as tracker:
            if tracker is not None:
                entry = Entry.of(record, self._zero + float(timing["seconds"]))
                tracker.log(entry)
                self._step = entry.step

    def settled(self) -> None:
        """A checkpoint counts what was logged."""
        with self._tracked() as tracker:
            if tracker is not None:
                tracker.settle()

    @contextmanager
    def _tracked(self) -> Iterator[Tracker | None]:
        tracker = self._tracker
        if tracker is None:
            yield None
            return
        try:
            yield tracker
        except tracker.failures() as error:
            self._tracker = None
            tracker.drop()
            self._say(f"logger={tracker.option} failed, the training goes on without it: {foreign.short(error)}")
            self._lost = f"logger={tracker.option} may have nothing after step {self._step}"


def read_logs(folder: Path, offsets: Mapping[str, int]) -> list[tuple[dict[str, Any], float]]:
    """What a run's logs hold up to these bytes: records, each with its seconds since the training began.

    Raises:
        UserError: a log is damaged.
    """
    records, timings = (_lines(folder / name, offsets[name]) for name in (METRICS, TIMINGS))
    paired = zip_longest(records, timings[: len(records)], fillvalue={})
    return [(record, _seconds(folder / TIMINGS, timing)) for record, timing in paired]


def _seconds(file: Path, timing: Mapping[str, Any]) -> float:
    seconds = timing.get("seconds", 0.0)
    if not isinstance(seconds, int | float):
        raise UserError(f"{file} is damaged: seconds that are no number")
    return float(seconds)


def _lines(file: Path, size: int) -> list[dict[str, Any]]:
    """The records in the first bytes of a log.

    Raises:
        UserError: it is damaged.
    """
    if not size:
        return []
    with open(file, "rb") as handle:
        content = handle.read(size)
    try:
        records = [json.loads(line) for line in content.splitlines()]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({foreign.short(error)})") from error
    if not all(isinstance(record, dict) and isinstance(record.get("step"), int) for record in records):
        raise UserError(f"{file} is damaged: a record without its step")
    return records


def _ending(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return figures, sorted(folder.glob("*.png"))
