"""Watching a sweep from the process that started it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flowcli.launch.cells import Notes
from flowcli.launch.preflight import Plan, own_words
from flowcli.launch.progress import RUNNING, STOPPED, Row, rows
from flowcli.launch.table import line, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EVERY = 1.0
"""Seconds between two looks."""


class Watch:
    """A thread that looks into a sweep's folder and shows what goes on there.

    Attributes:
        error: that ended the showing; the sweep itself goes on, unless nobody reads its output any more.
    """

    def __init__(self, plan: Plan, notes: Notes, *, retry: bool) -> None:
        self._plan, self._notes, self._retry = plan, notes, retry
        self._out, self._stop = sys.stdout, threading.Event()  # jobs of this process turn sys.stdout away
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._seen: dict[int, Row] = {}
        self._first: dict[int, tuple[float, int]] = {}
        self._live: Any = None
        self._over = False
        self.error: OSError | None = None

    def __enter__(self) -> Self:
        self._seen = {row.number: row for row in self.rows()}
        self._stack = ExitStack()
        if _a_person_watches(self._out):
            from rich.console import Console
            from rich.live import Live

            screen = Console(file=self._out)
            live = Live(
                self._drawn(list(self._seen.values()), screen),
                console=screen,
                auto_refresh=False,
                redirect_stdout=False,
            )
            self._live = self._stack.enter_context(live)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._over = True
        self._show()
        try:
            self._stack.close()
        except OSError as broken:
            self.error = self.error or broken

    def rows(self) -> list[Row]:
        """How far the cells are."""
        now, notes = time.time(), self._notes.read()
        words = {number: own_words(note["words"], self._plan.fixed) for number, note in notes.items()}
        found = rows(self._plan.cells, notes, words, self._seen, now, retry=self._retry)
        return [self._with_time_left(row, now) for row in found]

    def _with_time_left(self, row: Row, now: float) -> Row:
        if row.state in RUNNING and self._over:
            return replace(row, state=STOPPED)
        if row.state not in RUNNING or row.steps is None or not row.step:
            return row
        began, first = self._first.setdefault(row.number, (now, row.step))
        if row.step <= first:
            return row
        return replace(row, left=(row.steps - row.step) * (now - began) / (row.step - first))

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self._show()

    def _show(self) -> None:
        if self.error is not None:
            return
        try:
            found = self.rows()
            if self._live is not None:
                self._live.update(self._drawn(found, self._live.console), refresh=True)
            else:
                self._say(found)
        except OSError as error:
            self.error = error
            if isinstance(error, BrokenPipeError) and threading.current_thread() is self._thread:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            return
        self._seen = {row.number: row for row in found}

    def _drawn(self, found: Sequence[Row], screen: "Console") -> "Table":
        return table(found, self._plan.jobs, screen.width, screen.height)

    def _say(self, found: Sequence[Row]) -> None:
        now = dict(self._seen)
        for row in found:
            now[row.number] = row
            told = line(row, self._seen.get(row.number), list(now.values()), self._plan.jobs)
            if told is not None:
                print(told, file=self._out, flush=True)


def _a_person_watches(stream: Any) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
