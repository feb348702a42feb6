"""Run folders from strangers: opening one executes nothing, follows nothing, allocates little, says what is wrong.

FLOWCLI_FUZZ_MINUTES sets how long the slow form of the mutating fuzzer takes (10 if it is not set).
"""

import csv
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from strangers_corpus import CANARY, FUZZED, HOSTILE, SMALL, STEP, Case, cases, flatten_deep, mutated

import flowcli
from flowcli import launch
from flowcli.allowance import Allowance
from flowcli.checkpoints import find_checkpoint
from flowcli.cli import main
from flowcli.errors import JobError, UserError
from flowcli.foreign import has_control
from flowcli.tasks.modes.files import reference

MEASURED = [word for word in SMALL if word.startswith("evaluation.")]
"""How the good run was measured: compare then finds its scores."""
WORKING = ("scoring ", "drawing ")
"""What compare says on stderr of what takes its time."""
MOST_MEMORY = 1 << 30
LONGEST = 10.0
"""Seconds that a case may take on a slow machine; most take a hundredth of one."""
CASES = cases()
SHORT: set[str] = set()
"""The cases of the short form, one of each kind for each command; the slow one has all."""
for kind in sorted({(case.name.split("-")[0], case.command) for case in CASES}):
    alike = [case.name for case in CASES if (case.name.split("-")[0], case.command) == kind]
    SHORT.add(random.Random(0).choice(alike))
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class")
FORBIDDEN += (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "ctypes.dlopen",
    "os.kill",
    "pty.spawn",
    "code.__new__",
)


# ---------------------------------------------------------------- what must not happen
class _Watch:
    """An audit hook that is there for good and looks while it is switched on."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if event in FORBIDDEN and args[1:2] != (["git", "rev-parse", "HEAD"],):  # environment.json says the commit
            self.seen.append(f"{event}{args!r:.200}")
        elif event == "open" and isinstance(args[0], str | bytes) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(self.root) and path != os.devnull:
                self.seen.append(f"writes {path}")


WATCH = _Watch()
sys.addaudithook(WATCH)


@contextmanager
def _bounds(root: Path) -> Iterator[None]:
    """Watch the process, and give it a gigabyte of address space more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, hard))
    WATCH.root, WATCH.seen = os.path.realpath(root), []
    try:
        yield
    finally:
        WATCH.root = None
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not WATCH.seen


# ---------------------------------------------------------------- one good run, and how it is opened
@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of the real thing, opened once by every command, so that nothing is imported later on."""
    folder = tmp_path_factory.mktemp("strangers")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", *SMALL, "hydra.run.dir=good"]) == 0
        shutil.copytree("good", "warm/run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flowcli.comparison.figures.figures", lambda *_: {})
            _warm_up()
        shutil.copytree("warm/run/scores", "good/scores", dirs_exist_ok=True)  # so that no case draws pictures anew
    finally:
        os.chdir(here)
    return folder / "good"


def _warm_up() -> None:
    """Import now what would be imported, and written to __pycache__, under the eyes of the watch."""
    for command in ("load", "sample", "likelihood", "compare", "complete", "resume"):
        assert _open(command) == 0


@pytest.fixture(autouse=True)
def _no_pictures(blank_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison draws for seconds; what it draws from is held by tests/test_compare.py against strangers' arrays."""
    monkeypatch.setattr("flowcli.comparison.figures.figures", lambda *_: {})


@pytest.fixture
def run(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh copy of it, warm/run in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, tmp_path / "warm" / "run")
    yield tmp_path / "warm" / "run"
    flatten_deep(tmp_path / "warm")


def _told(error: UserError | JobError) -> int:
    print(f"flowcli: error: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1


def _open(command: str, run: str = "warm/run") -> int:
    """Open a run as a user would; the exit status."""
    quick = ["solver=euler", "solver.steps=1"]
    match command:
        case "load":
            try:
                flowcli.load(run).sample(2, seed=0)
            except (UserError, JobError) as error:
                return _told(error)
            return 0
        case "reference" | "state":
            try:
                found = find_checkpoint(run, "last")
                _ = found.state() if command == "state" else reference(found)
            except UserError as error:
                return _told(error)
            return 0
        case "sample":
            return main(["sample", "--ckpt", run, "n=2", *quick, "hydra.run.dir=out"])
        case "likelihood":
            return main(["likelihood", "--ckpt", run, "check_rows=0", *quick, "hydra.run.dir=out"])
        case "resume":
            return main(["train", "--resume", run])
        case "complete":
            launch.complete(launch.Request("sample", ckpt=Path(run)), "")
            return 0
        case _:
            form = command.partition("-")[2] or "text"
            return main(["compare", str(Path(run).parent), "--format", form, *MEASURED])


def _judge(captured: Any, status: int, legal: tuple[int, ...]) -> None:
    """What a terminal saw: one line of a refusal, no traceback, nothing that it would obey."""
    out, err = captured
    assert status in legal, err[-2000:]
    assert "Traceback" not in out + err
    assert "allocate" not in err and "MemoryError" not in err
    for line in (out + err).split("\n"):
        assert not has_control(line), repr(line)
    said = [line for line in err.splitlines() if not line.startswith(WORKING)]
    assert len(said) == (1 if status else 0), err[-2000:]


def _parameter(case: Case) -> Any:
    marks = [] if case.name in SHORT else [pytest.mark.slow]
    return pytest.param(case, id=case.name.encode("unicode_escape").decode(), marks=marks)


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_a_strangers_run(case: Case, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case.change(run)
    began = time.monotonic()
    with _bounds(Path.cwd()):
        status = _open(case.command)
    assert time.monotonic() - began < LONGEST
    _judge(capfd.readouterr(), status, case.status)
    assert not Path(CANARY).exists() and not Path("/tmp", CANARY).exists()
    if status == 2 and case.command != "resume":
        assert not Path("out").exists()


def test_there_are_many_cases_and_no_two_share_a_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200


# ---------------------------------------------------------------- mutations
def _fuzz(good: Path, seed: int) -> int:
    """Open one mutated run; the exit status."""
    chance = random.Random(seed)
    shutil.rmtree("warm", ignore_errors=True)
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree(good, "warm/run")
    name = chance.choice(FUZZED)
    file = Path("warm/run") / name
    file.write_bytes(mutated(file.read_bytes(), seed))
    if name.parts[0] in ("run.json", "metrics.json", ".hydra"):
        command = chance.choice(("compare", "compare-csv", "compare-json"))
    elif name.name in ("last", "progress.json", "optimizer.safetensors"):
        command = "state" if chance.random() < 0.95 else "resume"
    else:
        command = "reference" if name.name == "reference.npy" else "load"
        command = command if chance.random() < 0.95 else chance.choice(("sample", "likelihood", "complete"))
    return _open(command)


def test_mutated_runs(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(60):
        with _bounds(tmp_path):
            status = _fuzz(good, seed)
        _judge(capfd.readouterr(), status, (0, 1, 2))


@pytest.mark.slow
def test_mutated_runs_for_minutes(good: Path, tmp_path: Path) -> None:
    """In processes of their own, so that one which crashes is seen."""
    deadline = time.monotonic() + 60 * float(os.environ.get("FLOWCLI_FUZZ_MINUTES", "10"))
    seed, counts = 1_000_000, dict.fromkeys("012", 0)
    while time.monotonic() < deadline:
        seconds = str(min(120.0, deadline - time.monotonic()))
        words = [sys.executable, __file__, str(good), str(seed), seconds]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.returncode} {done.stdout[-3000:]} {done.stderr[-3000:]}"
        told = json.loads(done.stdout.splitlines()[-1])
        seed = told["next"]
        counts = {status: count + told["counts"].get(status, 0) for status, count in counts.items()}
    print(f"{seed - 1_000_000} mutations, by exit status {counts}")


def _child(good: str, seed: str, seconds: str) -> None:
    """Mutations from this seed on for so long; what became of them on the last line."""
    import tempfile

    os.environ["OMP_NUM_THREADS"] = "1"
    deadline, number = time.monotonic() + float(seconds), int(seed)
    counts: dict[str, int] = {}
    shutil.copytree(good, "warm/run", dirs_exist_ok=True)
    _warm_up()
    with tempfile.TemporaryFile("w+") as shown:
        terminal = os.dup(1)
        while time.monotonic() < deadline:
            for stream in (1, 2):
                os.dup2(shown.fileno(), stream)
            before = time.monotonic()
            try:
                with _bounds(Path.cwd()):
                    status = _fuzz(Path(good), number)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os.dup2(terminal, 1)
            shown.seek(0)
            text = shown.read()
            shown.seek(0)
            shown.truncate()
            bad = status not in (0, 1, 2) or "Traceback" in text or "MemoryError" in text
            bad = bad or any(has_control(line) for line in text.split("\n")) or time.monotonic() - before > LONGEST
            if bad or "HYDRA_FULL_ERROR" in text:
                print(f"seed {number}: status {status}: {text[-2000:]}")
                sys.exit(3)
            counts[str(status)] = counts.get(str(status), 0) + 1
            number += 1
    print(json.dumps({"next": number, "counts": counts}))


# ---------------------------------------------------------------- what is said, and what is left alone
def test_data_that_a_checkpoint_names_is_said_before_it_is_opened(run: Path, capfd: Any) -> None:
    from strangers_corpus import _config, _table

    from flowcli.tasks import events

    events._say_opening.cache_clear()
    _config("data", value=_table("/etc/passwd"))(run)
    assert _open("sample") == 0
    assert "passwd" not in capfd.readouterr().out
    assert _open("likelihood") == 2
    assert capfd.readouterr().out.splitlines() == ["reading /etc/passwd, the data that the checkpoint names"]


def test_a_run_named_by_a_link_opens(run: Path) -> None:
    Path("named").symlink_to(run)
    Path("step").symlink_to(run / STEP)
    assert flowcli.load("named").sample(2, seed=0).value.shape == (2, 2)
    assert flowcli.load("step").event_shape == (2,)
    assert main(["compare", "named", *MEASURED]) == 0


def test_a_folder_that_may_not_be_read_is_listed(run: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "shut").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert _open("compare") == 0
    assert "shut" in (out := capfd.readouterr().out) and "broken: Permission denied" in out


def test_markup_and_formulas_are_shown_as_they_are_written(run: Path, capfd: Any) -> None:
    (run / "metrics.json").unlink()
    for reason, shown in ((HOSTILE["formula"], f"'{HOSTILE['formula']}"), (HOSTILE["markup"], HOSTILE["markup"])):
        (run / "failure.json").write_text(json.dumps({"reason": reason}))
        assert _open("compare-csv") == 0
        assert next(csv.DictReader(io.StringIO(capfd.readouterr().out)))["reason"] == shown
        assert _open("compare") == 0
        assert reason in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.nn.Linear(1 << 14, 1 << 14),
        lambda: torch.eye(1 << 14),
        lambda: torch.full((1 << 30,), 1.0),
        lambda: torch.randn(size=(1 << 15, 1 << 15)),
        lambda: torch.arange(1 << 40),
        lambda: [torch.zeros(1) for _ in range(100_000)],
        lambda: [torch.zeros(1 << 20) + 1 for _ in range(1_000)],
    ],
)
def test_no_more_is_built_than_weights_fill(build: Any, tmp_path: Path) -> None:
    with _bounds(tmp_path), pytest.raises(UserError, match="far larger"), Allowance({}):
        build()
    with Allowance({"w": torch.zeros(1 << 10, 1 << 10)}):
        torch.nn.Linear(1 << 10, 1 << 10)


def test_the_audit_hook_sees(tmp_path: Path) -> None:
    """Without this, a hook that never looks would let everything through."""
    with pytest.raises(AssertionError), _bounds(tmp_path):
        os.system("true")
    with pytest.raises(AssertionError), _bounds(tmp_path):
        (tmp_path.parent / "elsewhere").write_text("x")


if __name__ == "__main__":
    _child(*sys.argv[1:])
