"""A training sweep: it can be stopped and started again, and is watched while it runs."""

import os
import re
import shlex
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from flowcli import storage
from flowcli.errors import Interrupted
from flowcli.explain import is_users
from flowcli.launch.cells import Notes
from flowcli.launch.ending import DONE, FAILED, say, shown, typed
from flowcli.launch.job import CellJob
from flowcli.launch.preflight import Plan
from flowcli.launch.progress import DONE as ENDED
from flowcli.launch.progress import ELSEWHERE, STOPPED, WAITING, Row
from flowcli.launch.progress import FAILED as BROKEN
from flowcli.launch.request import Request, parse, quote
from flowcli.launch.table import counts
from flowcli.launch.watch import Watch
from flowcli.signals import listening

PATIENCE = 5.0
"""Seconds that jobs in other processes have for their checkpoints after a signal."""
REACHED = 1.0
"""Seconds after which a signal of a terminal's would have reached them by itself; a second one ends them at once."""


def sweep(
    request: Request, plan: Plan, sweep_dir: Path, hand_over: Callable[[list[str], CellJob], None], *, debug: bool
) -> int:
    """Run a training sweep, as far as it has not run yet; return the exit status.

    hand_over: gives these words more, and this job, to Hydra.

    Raises:
        Interrupted: a signal ended it; the message says how to go on.
    """
    again = command(request, sweep_dir)
    words = [f"hydra.sweep.dir={quote(sweep_dir)}", "hydra.output_subdir=null"]  # .hydra/ is written by the job, whole
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with Notes(sweep_dir) as notes:
        watch = Watch(plan, notes, retry=request.retry_failed)
        rows = watch.rows()
        print(_heading(plan, rows, sweep_dir), flush=True)
        if plan.jobs is None or [row.state for row in rows].count(ENDED) < plan.jobs:
            print(f"should it stop, go on with: {again}", flush=True)
        job = CellJob(request.verb, own=request.own, debug=debug, notes=notes, retry_failed=request.retry_failed)
        try:
            with watch, listening("stopped", farewell=partial(_dismiss, notes)):
                hand_over(words, job)
        except Interrupted as stop:
            if isinstance(watch.error, BrokenPipeError):
                raise Interrupted(signal.SIGPIPE, "") from None
            told = f"stopped with {counts(watch.rows(), plan.jobs).partition(',')[0]}; go on with: {again}"
            raise Interrupted(stop.signum, told) from None
        except Exception as error:  # a sweeper or launcher may have stumbled over what the jobs say better
            rows = watch.rows()
            status = _say_failed(request, rows, sweep_dir)
            if status == DONE or is_users(error):
                raise
            if debug:
                traceback.print_exc()
            left = _left(rows, plan.jobs)
            told = f", {left} job{'s were' if left > 1 else ' was'} not started" if left else ""
            return say(request.verb, f"ended by {type(error).__name__}{told}", status)
        if watch.error is not None:
            raise watch.error
        return _report(request, plan, watch.rows(), sweep_dir)


def _dismiss(notes: Notes) -> None:
    """Let the jobs in other processes of this machine write a checkpoint before this one ends, and they with it."""
    notes.stop()
    here = [note for note in notes.read().values() if note["what"] == Notes.TRAINS]
    here = [note for note in here if note["host"] == socket.gethostname() and note["process"] != os.getpid()]
    until = time.monotonic() + PATIENCE
    asked = time.monotonic() + REACHED
    while time.monotonic() < until:
        here = [note for note in here if storage.in_use(Path(note["folder"])) is not None]
        if not here:
            return
        if asked < time.monotonic():
            asked = until
            for note in here:
                with suppress(OSError):  # it is gone
                    os.kill(note["process"], signal.SIGTERM)
        time.sleep(0.1)


def command(request: Request, sweep_dir: Path) -> str:
    """The command that goes on with a sweep in the way of this one, to be typed where this one was."""
    words = ["flowcli", request.verb, *(["-m"] if request.multirun else [])]
    for flag, value in (("--config-name", request.config_name), ("--config-dir", request.config_dir)):
        words += [] if value is None else [flag, str(value)]
    for name in request.trust:
        words += ["--trust", name]
    folder = str(shown(sweep_dir))
    as_it_is = re.fullmatch(r"[\w./-]+", folder) and parse([f"hydra.sweep.dir={folder}"])[0].value() == folder
    said = [word for word in request.overrides if word.partition("=")[0].lstrip("+") != "hydra.sweep.dir"]
    retry = ["--retry-failed"] if request.retry_failed else []
    return shlex.join([*words, *said, f"hydra.sweep.dir={folder if as_it_is else quote(folder)}", *retry])


def _heading(plan: Plan, rows: Sequence[Row], sweep_dir: Path) -> str:
    jobs = (
        "as many jobs as its sweeper asks for"
        if plan.jobs is None
        else f"{plan.jobs} job{'s' if plan.jobs != 1 else ''}"
    )
    states = [row.state for row in rows]
    before = [(states.count(ENDED), "done already"), (states.count(BROKEN), "failed before, --retry-failed runs them")]
    some = "" if plan.jobs == len(rows) else "at least "  # nobody has looked at the others yet
    told = [f"{some}{count} {what}" for count, what in before if count]
    return ", ".join([f"sweep  {shown(sweep_dir)}  {jobs}", *told])


def _report(request: Request, plan: Plan, rows: Sequence[Row], sweep_dir: Path) -> int:
    """Say which cells failed, which other processes train, and what to do with the rest."""
    for row in rows:
        if row.state == ELSEWHERE:
            print(f"left alone  {_named(row)}: {row.reason} trains it")
    print(f"side by side: flowcli compare {typed(sweep_dir)}")
    status, left = _say_failed(request, rows, sweep_dir), _left(rows, plan.jobs)
    if left:
        cells = f"{left} cell{'s are' if left > 1 else ' is'} not done yet"
        return say(request.verb, f"{cells}; go on with: {command(request, sweep_dir)}", FAILED)
    return status


def _left(rows: Sequence[Row], jobs: int | None) -> int:
    """How many cells are neither done nor failed."""
    return max(0, (jobs or 0) - len(rows)) + sum(row.state in (ELSEWHERE, WAITING) for row in rows)


def _say_failed(request: Request, rows: Sequence[Row], sweep_dir: Path) -> int:
    failed = [row for row in rows if row.state in (BROKEN, STOPPED)]
    if not failed:
        return DONE
    lines = [f"  {_named(row)}: {row.reason or 'its process ended on the way'}" for row in failed]
    retry = request.retry_failed or any(row.state == BROKEN for row in failed)
    again = command(replace(request, retry_failed=retry), sweep_dir)
    told = [f"{len(failed)} of {len(rows)} jobs failed:", *lines, f"run them again with: {again}"]
    return say(request.verb, "\n".join(told), FAILED)


def _named(row: Row) -> str:
    return f"{shown(row.folder)} ({row.words})" if row.words else str(shown(row.folder))
