"""A process with torch in memory that forks a child for every command line: real processes, without their start-up.

As a script it answers JSON lines: each holds `words` for flowcli and what is to happen to the child, see `Forks.run`.
"""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from flowcli.kernels import library

REPOSITORY = Path(__file__).resolve().parents[1]
MOVING = "flowcli.training.step:Step.apply" if library.missing() else "flowcli.kernels.adam:step"
"""Where the weights of a small network move."""
CHANGES = ("write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate")
"""Calls by which a run folder changes; besides them, opening a file that is not there yet."""


class Forks:
    """The client's side."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run(self, words: list[str], folder: Path, **events: Any) -> dict[str, Any]:
        """Run flowcli in a folder: {status (negative: the signal that ended it), seconds, out, err, changes}.

        events: signals=[[seconds, signum], ...] sent to the child; kill_at=k: SIGKILL before change number k of the
        file system; fail_at=k: that change fails, fail_from=k: it and all that follow; error: their errno;
        hang={"target": "module:Class.method", "seconds": s}: this method, or function, first sleeps;
        environment: variables to add.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"words": words, "folder": str(folder), **events}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


class Servers(dict[int, Forks]):
    """A fork server for each process, started when it is first asked for."""

    def __missing__(self, number: int) -> Forks:
        self[number] = Forks()
        return self[number]


# ---------------------------------------------------------------- the server's side
NEEDED = (
    *["hydra._internal.hydra", "hydra.core.override_parser.overrides_parser", "safetensors.torch", "scipy.spatial"],
    *["torch._dynamo", "flowcli.data.toys", "flowcli.networks.mlp", "flowcli.flows.discrete", "flowcli.cli"],
    *["flowcli.tasks.train", "flowcli.tasks.sample", "flowcli.tasks.likelihood", "multiprocessing"],
)
"""Modules that a child needs: imported once, and nothing of them called, so that there is one thread to fork."""


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    for module in NEEDED:
        importlib.import_module(module)
    os.fsync = os.fstat  # as in conftest.py: a kill loses nothing that was written
    outside = tempfile.mkdtemp()
    for line in sys.stdin:
        request = json.loads(line)
        logs = [Path(outside) / name for name in ("out", "err", "changes")]
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(request, logs)
        answer: dict[str, Any] = {"status": _attend(child, began, request.get("signals", []))}
        answer["seconds"] = time.monotonic() - began
        for name, log in zip(("out", "err", "changes"), logs, strict=True):
            answer[name] = log.read_text() if log.exists() else ""
            log.unlink(missing_ok=True)
        print(json.dumps(answer), flush=True)
    shutil.rmtree(outside)


def _attend(child: int, began: float, signals: list[list[float]]) -> int:
    """Send the signals when they are due; how the child ended."""
    for seconds, signum in signals:
        while time.monotonic() - began < seconds:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, int(signum))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(request: dict[str, Any], logs: list[Path]) -> None:
    from flowcli.cli import main

    os.chdir(request["folder"])
    os.environ.update(request.get("environment", {}))
    for stream, log in zip((1, 2), logs, strict=False):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    _Changes(request, os.open(logs[2], os.O_WRONLY | os.O_CREAT))
    if "hang" in request:
        _hang(**request["hang"])
    sys.argv = sys.orig_argv[:1] = ["flowcli", *request["words"]]
    status = main(request["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Changes:
    """Counts the calls that change the file system, and lets one of them go wrong."""

    def __init__(self, request: dict[str, Any], log: int) -> None:
        self._request, self._log, self._count = request, log, 0
        self._really = {name: getattr(os, name) for name in (*CHANGES, "open")}
        for name in CHANGES:
            setattr(os, name, self._wrap(name))
        really = self._really["open"]

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT and not os.path.exists(path):
                self._due("open", path)
            return really(path, flags, *args, **kwargs)

        os.open = opened

    def _wrap(self, name: str) -> Any:
        really = self._really[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            self._due(name, args[0])
            return really(*args, **kwargs)

        return call

    def _due(self, name: str, path: Any) -> None:
        self._count += 1
        self._really["write"](self._log, f"{name}\n".encode())
        number, request = self._count, self._request
        if number == request.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        removes = name in ("unlink", "rmdir")  # a full disk lets go
        if number == request.get("fail_at") or (number >= request.get("fail_from", 1 << 60) and not removes):
            code = request.get("error", errno.ENOSPC)
            raise OSError(code, os.strerror(code), *([] if isinstance(path, int) else [str(path)]))


def _hang(target: str, seconds: float) -> None:
    module, _, name = target.partition(":")
    owner, _, method = name.rpartition(".")
    made = importlib.import_module(module)
    made = getattr(made, owner) if owner else made
    really = getattr(made, method)

    def slowly(*args: Any, **kwargs: Any) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.01)
        return really(*args, **kwargs)

    setattr(made, method, slowly)


if __name__ == "__main__":
    _serve()
