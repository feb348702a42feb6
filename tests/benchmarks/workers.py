"""The orchestrator's end of the line: one process for each implementation, of which one computes at a time."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from works import Work

FOLDER = Path(__file__).resolve().parent
SCRIPTS = {
    "ours": ["ours.py"],
    "torchcfm": ["torchcfm_peer.py"],
    "torchcfm_selu": ["torchcfm_peer.py", "--activation", "SELU"],
    "flow_matching": ["flow_matching_peer.py"],
    "zuko": ["zuko_peer.py"],
    "jax": ["jax_peer.py"],
    "limits": ["limits.py"],
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
KEEP_MEMORY = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), "1000000000")
"""For all alike: where the heap happens to end decides otherwise whether freed arrays go back to the system, and page
faults then make the same code up to 2.7 times as slow."""
CAN_PAUSE = hasattr(signal, "SIGSTOP")


class Gone(Exception):
    """The process has ended, or never began; the last line of its standard error, or why it did not begin."""


class Worker:
    """A process that does works, stopped while it is not its turn.

    Threads that still spin and processes that prepare something ahead would take time from the others.
    """

    def __init__(self, name: str, python: str, cores: Sequence[int]) -> None:
        """Start it on these cores, with as many threads, and wait for its imports.

        Raises:
            Gone: there is no such interpreter, or a package is missing.
        """
        script, *options = SCRIPTS[name]
        self._command, self._cores = [python, str(FOLDER / script), *options], cores
        self.versions: dict[str, str] = self._start()

    def _start(self) -> dict[str, str]:
        threads = {variable: str(len(self._cores)) for variable in THREADS}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in `close`
        try:
            with on_cores(self._cores):
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env={**os.environ, **KEEP_MEMORY, **threads},
                    encoding="utf-8",
                    process_group=0 if CAN_PAUSE else None,
                )
        except OSError as error:
            self._errors.close()
            raise Gone(str(error)) from error
        try:
            return self._answer()
        except Gone:
            self.close()
            raise

    def prepare(self, work: Work, points: Path) -> dict[str, Any]:
        """{"prepared": seconds, "facts": {...}}, or {"skipped": why}; a process that ended before is started again.

        Raises:
            Gone: it ended; its word is on the way.
        """
        if self._process.poll() is not None:
            self.close()
            self._start()
        return self._ask({"work": asdict(work), "points": str(points)})

    def turn(self) -> float:
        """Seconds of one repetition.

        Raises:
            Gone: it ended.
        """
        return float(self._ask("go")["seconds"])

    def rest(self) -> None:
        """No more turns of this work."""
        with self._awake(), suppress(OSError):
            self._say("end")

    def close(self) -> None:
        """End the process and what it started."""
        if CAN_PAUSE:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert stream is not None
                stream.close()
        self._process.wait()
        self._errors.close()

    # ------------------------------------------------------------ one question and its answer
    def _ask(self, what: object) -> dict[str, Any]:
        with self._awake():
            try:
                self._say(what)
            except OSError as error:
                raise Gone(self._last_words()) from error
            return self._answer()

    def _say(self, what: object) -> None:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise Gone(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.poll()}"

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self._signal("SIGCONT")
        try:
            yield
        finally:
            self._signal("SIGSTOP")

    def _signal(self, name: str) -> None:
        if CAN_PAUSE:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, getattr(signal, name))


def cores_for(threads: int) -> list[int]:
    """As many of the cores that this process may use.

    Raises:
        ValueError: there are fewer.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(threads))
    free = sorted(os.sched_getaffinity(0))
    if len(free) < threads:
        raise ValueError(f"{threads} threads need as many cores, there are {len(free)}")
    return free[:threads]


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started in here runs on these cores alone, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    earlier = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, earlier)


def measure(
    works: Sequence[Work],
    workers: Mapping[str, Worker],
    offers: Mapping[str, Sequence[str]],
    rounds: int,
    points: Path,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(work, implementation, found): seconds of every round, or why there are none."""
    for work in works:
        ready: dict[str, dict[str, Any]] = {}
        for name, worker in workers.items():
            if work.name not in offers[name]:
                continue
            try:
                found = worker.prepare(work, points)
            except Gone as gone:
                found = {"skipped": str(gone)}
            if "skipped" in found:
                yield work.name, name, found
            else:
                ready[name] = {**found, "seconds": []}
        for _ in range(rounds):
            for name in list(ready):
                try:
                    ready[name]["seconds"].append(workers[name].turn())
                except Gone as gone:
                    yield work.name, name, {"skipped": str(gone)}
                    del ready[name]
        for name, found in ready.items():
            workers[name].rest()
            yield work.name, name, found
