"""A worker's end of the line: works and turns come in on standard input, facts and seconds go out on standard output.

In come JSON lines: {"work": {...}, "points": "points.npy"} asks to prepare, "go" for one timed repetition, "end" for no
more of this work. Out go JSON lines too: what is installed, once; then of every work {"prepared": seconds, "facts":
{...}} or {"skipped": why}, and of every turn {"seconds": ...}.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from works import Work


class Skipped(Exception):
    """This work cannot be done here, and why."""


class Rounds:
    """The turns of one work. A worker says `ready`, then does a repetition and says `done` as long as one is wanted."""

    def __init__(self, requests: TextIO, answers: TextIO) -> None:
        self._requests, self._answers = requests, answers
        self._began = time.perf_counter()

    def ready(self, **facts: float) -> None:
        """The preparation is over; facts: nfe, nll, ..."""
        self._answer({"prepared": time.perf_counter() - self._began, "facts": facts})

    def wanted(self) -> bool:
        """Wait for the next turn and start the clock; False: there is none."""
        turn = self._requests.readline()
        self._began = time.perf_counter()
        return bool(turn) and json.loads(turn) == "go"

    def done(self) -> None:
        """Stop the clock."""
        self._answer({"seconds": time.perf_counter() - self._began})

    def each(self, repetition: Callable[[], object], **facts: float) -> None:
        """Do this at every turn."""
        self.ready(**facts)
        while self.wanted():
            repetition()
            self.done()

    def _answer(self, answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)


Doing = Callable[[Work, Path, Rounds], None]
"""Prepares a work on the points of a file, then takes its turns."""


def serve(doings: Mapping[str, Doing], *packages: str) -> None:
    """Do what standard input asks for until it ends. packages: whose versions count."""
    requests, answers = sys.stdin, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    print(json.dumps({name: version(name) for name in packages}), file=answers, flush=True)
    while request := requests.readline():
        asked = json.loads(request)
        work = Work(**asked["work"])
        try:
            doings[work.name](work, Path(asked["points"]), Rounds(requests, answers))
        except Skipped as why:
            print(json.dumps({"skipped": str(why)}), file=answers, flush=True)
