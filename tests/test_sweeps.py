"""Training sweeps that are stopped and started again: with toy tasks, and with real ones that are killed."""

import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Tasks
from forks import MOVING, Forks, Servers
from rich.console import Console
from test_crash import TINY, content, same

from flowcli import checkpoints, cli, records, run, storage
from flowcli.errors import Interrupted, JobError
from flowcli.launch import cells, preflight, progress, table
from flowcli.launch.progress import Row

Captured = pytest.CaptureFixture[str]
SWEEP = Path("outputs/s")


class Toy:
    """Trains one step, then ends as it is told for the config's seed."""

    def __init__(self) -> None:
        self.endings: dict[int, BaseException] = {}

    def __call__(self, config: dict[str, Any], folder: Path) -> float:
        print("what a job prints")
        made = run.RunFolder(folder)
        choices = checkpoints.read_config(folder / ".hydra" / "choices.yaml")
        kept = {key: value for key, value in config.items() if key not in ("resume", "trust")}
        made.save_checkpoint(
            1, weights={}, config=kept, description={"choices": choices}, progress={}, optimizer={}, best=1
        )
        if config["seed"] in self.endings:
            raise self.endings[config["seed"]]
        made.finish({"nll": 2.5 + config["seed"], "nll_stderr": 0.04})
        return 2.5 + config["seed"]


@pytest.fixture
def toy(toy_conf: Path, tasks: Tasks) -> Toy:
    tasks.run = Toy()
    return tasks.run


@pytest.fixture
def flowcli(toy: Toy, capfd: Captured) -> Callable[..., tuple[int, str, str]]:
    """Run a sweep of these words in SWEEP."""

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.main(["train", "-m", *words, f"hydra.sweep.dir={SWEEP}"])
        return status, *capfd.readouterr()

    return call


def ran(tasks: Tasks) -> list[tuple[str, bool]]:
    """The cells that were trained since the last call, and whether each went on."""
    found = [(folder.name, config["resume"] is not None) for config, folder in tasks.ran]
    tasks.ran.clear()
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """All there is in a folder, so that a file that was written again is seen."""
    found = {file: file.stat() for file in [folder, *folder.rglob("*")]}
    return {str(file): (stat.st_ino, stat.st_mtime_ns) for file, stat in found.items()}


# ---------------------------------------------------------------- what is there already
def test_a_sweep_goes_on_where_it_was_stopped(flowcli: Any, toy: Toy, tasks: Tasks) -> None:
    toy.endings = {2: Interrupted(signal.SIGTERM, "stopped at step 1")}
    status, _, err = flowcli("seed=0,1,2,3")
    assert status == 143 and err.count("\n") == 1
    assert "stopped with 2 of 4 done; go on with: flowcli train -m seed=0,1,2,3 hydra.sweep.dir=outputs/s" in err
    assert ran(tasks) == [("0", False), ("1", False), ("2", False)]
    toy.endings, before = {}, stamps(SWEEP)
    asked = {file.name: file.read_bytes() for file in (SWEEP / "2" / ".hydra").iterdir()}
    tasks.checked.clear()
    status, out, err = flowcli("seed=0,1,2,3")
    assert (status, err) == (0, "")
    assert ran(tasks) == [("2", True), ("3", False)]
    assert [config["seed"] for config in tasks.checked] == [2, 3, 2], "finished cells need no check, a resumed one two"
    assert "4 jobs, 2 done already" in out and "cell 2  seed=2  goes on" not in out.splitlines()[0]
    after = stamps(SWEEP)
    for name in ("metrics.json", "run.json", "checkpoints/last", ".hydra/overrides.yaml", "output.txt"):
        assert all(before[f"{SWEEP}/{done}/{name}"] == after[f"{SWEEP}/{done}/{name}"] for done in (0, 1))
    assert {file.name: file.read_bytes() for file in (SWEEP / "2" / ".hydra").iterdir()} == asked
    assert {"config.yaml", "hydra.yaml", "overrides.yaml", "resolved.yaml", "choices.yaml"} == asked.keys()
    assert not (SWEEP / cells.NOTES).exists()


@pytest.mark.slow
def test_a_sweep_that_is_done_builds_nothing_and_may_grow_at_its_end(flowcli: Any, tasks: Tasks) -> None:
    assert flowcli("seed=0,1")[0] == 0
    tasks.checked.clear()
    ran(tasks)
    status, out, err = flowcli("seed=0,1")
    assert (status, err, tasks.checked, ran(tasks)) == (0, "", [], [])
    assert out == f"sweep  {SWEEP}  2 jobs, 2 done already\nside by side: flowcli compare {SWEEP}\n"
    assert flowcli("seed=0,1,2")[0] == 0 and ran(tasks) == [("2", False)]


def test_what_was_killed_before_it_was_a_run_starts_afresh(flowcli: Any, tasks: Tasks) -> None:
    (SWEEP / "0" / ".hydra").mkdir(parents=True)
    (SWEEP / "0" / ".hydra" / "overrides.yaml").write_text("- seed=[")
    assert flowcli("seed=0,1")[0] == 0
    assert ran(tasks) == [("0", False), ("1", False)]
    assert (SWEEP / "0" / ".hydra" / "overrides.yaml").read_text() == "- seed=0\n"


def test_what_resume_may_change_may_change_in_a_sweep_too(flowcli: Any, toy: Toy, tasks: Tasks) -> None:
    toy.endings = {1: Interrupted(signal.SIGINT, "")}
    flowcli("seed=0,1", "logger=none")
    ran(tasks)
    toy.endings = {}
    status, _, err = flowcli("seed=0,1", "logger=csv", "trainer.max_time=60")
    assert (status, err) == (0, "") and tasks.ran[0][0]["logger"] == {"_target_": "toy.CSV"}
    assert ran(tasks) == [("1", True)]


@pytest.mark.slow
def test_failed_cells_are_listed_and_run_again_when_asked(flowcli: Any, toy: Toy, tasks: Tasks) -> None:
    toy.endings = {1: JobError("loss is nan"), 2: ValueError("a bug")}
    first = flowcli("seed=0,1,2")
    assert first[0] == 1 and ran(tasks) == [("0", False), ("1", False), ("2", False)]
    status, out, err = flowcli("seed=0,1,2")
    assert status == 1 and ran(tasks) == [] and "1 done already, 2 failed before" in out
    assert err == first[2] and "2 of 3 jobs failed:\n  outputs/s/1 (seed=1): loss is nan\n" in err
    retry = re.search(r"run them again with: flowcli (.*)\n", err)
    assert retry is not None
    toy.endings = {1: Interrupted(signal.SIGINT, "")}
    assert flowcli("seed=0,1,2", "--retry-failed")[2].endswith(f"go on with: flowcli {retry[1]}\n")
    toy.endings = {2: JobError("still nan")}
    ran(tasks)
    status, _, err = flowcli("seed=0,1,2", "--retry-failed")
    assert status == 1 and err.endswith(f"again with: flowcli {retry[1]}\n") and retry[1].count("--retry-failed") == 1
    assert ran(tasks) == [("1", True), ("2", True)]
    assert cli.main(shlex.split(retry[1])) == 1 and ran(tasks) == [("2", True)]
    assert [record.status for record in records.collect([SWEEP])] == ["done", "done", "failed"]
    toy.endings = {}
    assert flowcli("seed=0,1,2", "--retry-failed")[:1] == (0,) and ran(tasks) == [("2", True)]


def test_retry_failed_is_of_a_sweep(toy: Toy, capfd: Captured) -> None:
    assert cli.main(["train", "--retry-failed"]) == 2
    assert "--retry-failed is of a sweep" in capfd.readouterr().err and not Path("outputs").exists()


# ---------------------------------------------------------------- other configs, other processes
def test_the_run_of_another_config_is_refused_before_anything_starts(flowcli: Any, toy: Toy, tasks: Tasks) -> None:
    toy.endings = {1: JobError("loss is nan"), 2: Interrupted(signal.SIGINT, "")}
    flowcli("seed=0,1,2")
    ran(tasks)
    before = stamps(SWEEP)
    for words, *told in (
        ("seed=5,1,2", "outputs/s/0 holds a run with seed=0, and this sweep asks for seed=5: "),
        ("seed=0,6,2", "outputs/s/1 holds a run with seed=1, and this sweep asks for seed=6: "),
        ("seed=0,1,7", "outputs/s/2 holds a run with seed=2, and this sweep asks for seed=7: "),
        (
            "seed=0 trainer.steps=200",
            *("outputs/s/0 holds a run with trainer.steps=100, and this sweep asks for trainer.steps=200: ",),
            *("flowcli train --resume outputs/s/0 trainer.steps=200",),
        ),
        ("seed=0 path=vp", "path._target_=toy.VP (and 3 keys more)"),
        ("seed=0 crash=1 trainer.lr=1", "asks for trainer.lr=1 (and 1 key more): "),
        ("seed=0 crash=true", "holds a run with crash=null, and this sweep asks for crash=true: "),
        ("seed=0 ++crash={a:1,b:2}", "holds a run with crash=null, and this sweep asks for crash.a=1: "),
        ("seed=0 ~solver", "holds a run with solver._target_=toy.Dopri5, and this sweep asks for no solver._target_"),
    ):
        status, out, err = flowcli(*words.split(), "--retry-failed")
        assert (status, out, err.count("\n")) == (2, "", 1) and all(part in err for part in told), err
        assert ran(tasks) == [] and stamps(SWEEP) == before


@pytest.mark.slow
@pytest.mark.parametrize("words", ["seed=0,7,2", "seed=0,1,2 hydra.sweep.subdir=${path._target_}"])
def test_beyond_the_preflight_the_job_finds_it(
    words: str, flowcli: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flowcli("seed=0,1")[0] == 0
    ran(tasks)
    monkeypatch.setattr(preflight, "MAX_PREFLIGHT", 1)
    place = SWEEP / ("1" if "7" in words else "toy.OT")
    before = stamps(place) if place.exists() else {}
    status, _, err = flowcli(*words.split())
    first, others = ("2", ["1"]) if "7" in words else ("toy.OT", ["toy.OT"] * 2)
    assert status == 1 and ran(tasks) == [(first, False)]
    assert f"{len(others)} of 3 jobs failed:\n  {place} (seed={7 if '7' in words else 1}): {place} holds a run" in err
    if "7" in words:
        lock = str(place / storage.LOCK_FILE)
        assert {**stamps(place), lock: 0} == {**before, lock: 0}


def test_cells_that_would_share_a_folder_are_refused(flowcli: Any) -> None:
    status, _, err = flowcli("seed=0,1", "path=ot,vp", "hydra.sweep.subdir=${seed}")
    assert status == 2 and "hydra.sweep.subdir=${seed}: jobs 0 and 1 would share outputs/s/0" in err
    assert not Path("outputs").exists()


def test_a_cell_that_another_process_trains_is_left_alone(flowcli: Any, tasks: Tasks) -> None:
    assert flowcli("seed=0")[0] == 0
    ran(tasks)
    (SWEEP / "1").mkdir()
    with storage.lock(SWEEP / "1"):
        status, out, err = flowcli("seed=0,1,2")
    again = f"flowcli train -m seed=0,1,2 hydra.sweep.dir={SWEEP}"
    assert status == 1 and err == f"flowcli train: 1 cell is not done yet; go on with: {again}\n"
    assert ran(tasks) == [("2", False)]
    told = (SWEEP / "1" / storage.LOCK_FILE).read_text().strip()
    assert f"cell 1  seed=1  in use elsewhere  {told}" in out
    assert f"left alone  outputs/s/1 (seed=1): {told} trains it" in out
    assert sorted(file.name for file in (SWEEP / "1").iterdir()) == [storage.LOCK_FILE]


@pytest.mark.slow
def test_a_launcher_that_falls_over_leaves_one_report(
    flowcli: Any, toy: Toy, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra._internal.core_plugins import basic_launcher

    really = basic_launcher.run_job

    def run_job(**options: Any) -> Any:
        if len(tasks.ran) == 2:
            raise RuntimeError("a worker died. It may have. Or not")
        return really(**options)

    monkeypatch.setattr(basic_launcher, "run_job", run_job)
    toy.endings = {1: JobError("loss is nan")}
    status, _, err = flowcli("seed=0,1,2,3")
    assert status == 1 and err.startswith("flowcli train: 1 of 4 jobs failed:\n  outputs/s/1 (seed=1): loss is nan\n")
    assert err.endswith("flowcli train: ended by RuntimeError, 2 jobs were not started\n") and "a worker" not in err


def test_commands_to_paste_are_quoted(toy: Toy, capfd: Captured) -> None:
    place = ["hydra.sweep.dir='my sweep'"]
    assert cli.main(["train", "-m", "seed=0,1", *place]) == 0
    assert "flowcli compare 'my sweep'\n" in capfd.readouterr().out
    assert cli.main(["train", "-m", "seed=0,1", "trainer.steps=200", *place]) == 2
    assert "flowcli train --resume 'my sweep/0' trainer.steps=200\n" in capfd.readouterr().err


def test_a_training_says_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    from flowcli.tasks import train

    assert shlex.split(train._again(tmp_path / "a run")) == ["flowcli", "train", "--resume", str(tmp_path / "a run")]


@pytest.mark.slow
def test_beyond_the_preflight_nobody_has_counted(flowcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flowcli("seed=0,1,2")[0] == 0
    monkeypatch.setattr(preflight, "MAX_PREFLIGHT", 2)
    assert "3 jobs, at least 2 done already\n" in flowcli("seed=0,1,2")[1]


def test_links_out_of_a_cell_are_not_written_through(flowcli: Any, toy: Toy) -> None:
    toy.endings = {0: Interrupted(signal.SIGINT, "")}
    flowcli("seed=0")
    Path("mine").write_text("mine")
    (SWEEP / "0" / cells.OUTPUT_FILE).unlink()
    (SWEEP / "0" / cells.OUTPUT_FILE).symlink_to(Path("mine").resolve())
    toy.endings = {}
    status, _, err = flowcli("seed=0")
    assert status == 1 and "a link that leads out" in err and Path("mine").read_text() == "mine"


def test_a_run_is_no_folder_for_a_sweep(flowcli: Any, tasks: Tasks) -> None:
    assert flowcli("seed=0")[0] == 0
    before = stamps(SWEEP)
    assert cli.main(["train", "-m", "seed=0", f"hydra.sweep.dir={SWEEP}/0"]) == 2
    assert stamps(SWEEP) == before and len(tasks.ran) == 1


def test_a_cell_that_does_not_end_is_no_success(flowcli: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.run = lambda config, folder: None
    monkeypatch.setattr("flowcli.launch.job._leave_reason", lambda folder, reason: None)  # a full disk
    assert flowcli("seed=0")[0] == 0

    def fail(config: dict[str, Any], folder: Path) -> None:
        raise OSError(28, "No space left on device", "run/x")

    tasks.run = fail
    status, _, err = flowcli("seed=0")
    assert status == 1 and "1 of 1 jobs failed:\n  outputs/s/0: its process ended on the way\n" in err


# ---------------------------------------------------------------- what Hydra and its sweepers see
@pytest.mark.slow
def test_the_sweeper_gets_the_figure_of_a_cell_that_was_done(flowcli: Any, toy: Toy, monkeypatch: Any) -> None:
    from hydra._internal.core_plugins import basic_launcher

    really, returned = basic_launcher.run_job, []

    def run_job(**options: Any) -> Any:
        returned.append(really(**options))
        return returned[-1]

    monkeypatch.setattr(basic_launcher, "run_job", run_job)
    toy.endings = {1: JobError("loss is nan")}
    for _ in range(2):
        flowcli("seed=0,1,2")
        assert [one.return_value for one in returned] == [2.5, None, 4.5]
        returned.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "experiment=paths path=vp,ot seed=5",
        "seed=1,2 path=ot,vp seed=3",
        "seed=3,4 hydra.sweep.subdir=${hydra:job.num}-${seed}-${path._target_}",
        "path=ot,vp hydra.sweep.subdir=${hydra.job.override_dirname}",
    ],
)
def test_the_preflight_numbers_and_places_the_cells_as_hydra_does(
    words: str, flowcli: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[preflight.Plan] = []
    really = preflight.prepare
    monkeypatch.setattr("flowcli.launch.entry.prepare", lambda *given: planned.append(really(*given)) or planned[-1])
    status, _, err = flowcli(*words.split())
    assert status == 0, err
    trained = [(folder.resolve(), config) for config, folder in tasks.ran]
    assert [(cell.folder.resolve(), cell.config) for cell in planned[0].cells] == trained and len(trained) > 1


def test_sweeps_of_other_verbs_print_what_hydra_does(toy_conf: Path, tasks: Tasks, capfd: Captured) -> None:
    tasks.run = Toy()
    assert cli.main(["train", "hydra.run.dir=outputs/r"]) == 0
    tasks.run = lambda config, folder: print("what a job prints")
    capfd.readouterr()
    assert cli.main(["sample", "--ckpt", "outputs/r", "-m", "n=1,2", "hydra.sweep.dir=outputs/t"]) == 0
    out = capfd.readouterr().out
    assert (
        out.count("what a job prints") == 2
        and "n=2" in out
        and "Launching 2 jobs" in out
        and not Path("outputs/t/0/output.txt").exists()
    )


# ---------------------------------------------------------------- what is shown
@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}], ids=["plain", "forced"])
def test_piped_output_is_lines(environment: dict[str, str], flowcli: Any, toy: Toy, monkeypatch: Any) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    toy.endings = {2: JobError("loss is nan")}
    status, out, err = flowcli("seed=0,1,2", "path=vp")
    assert status == 1 and "\x1b" not in out + err
    lines = out.splitlines()
    assert lines[0] == f"sweep  {SWEEP}  3 jobs"
    assert lines[1] == f"should it stop, go on with: flowcli train -m seed=0,1,2 path=vp hydra.sweep.dir={SWEEP}"
    done = [
        line
        for line in lines
        if re.fullmatch(r"cell [01]  seed=\d  done  nll \d.500 ± 0.040  \(0 s; \d of 3 done\)", line)
    ]
    assert [line[-12:] for line in done] == ["1 of 3 done)", "2 of 3 done)"]
    assert any(line.startswith("cell 2  seed=2  failed  loss is nan  (0 s; ") for line in lines)
    assert (SWEEP / "0" / cells.OUTPUT_FILE).read_text() == "what a job prints\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "is_table"), [("xterm", True), ("dumb", False)])
def test_a_terminal_gets_a_table(term: str, is_table: bool, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main(["train", "-m", "seed=0,1", f"hydra.sweep.dir={SWEEP}"]) == 0
    shown = screen.getvalue()
    assert ("\x1b[" in shown) == is_table == ("┃" in shown) and "what a job prints" not in shown
    assert "nll 2.500 ± 0.040" in shown
    assert sys.stdout is screen


def some_rows() -> list[Row]:
    states = [progress.DONE] * 20 + [progress.FAILED] * 2 + [progress.TRAINING] * 2 + [progress.WAITING] * 20
    made = [Row(number, SWEEP / str(number), f"seed={number}", state) for number, state in enumerate(states)]
    made[0] = replace(made[0], figure="nll 2.634 ± 0.004", seconds=45.4)
    made[20] = replace(made[20], reason="loss is nan [red]no markup[/red]" + "x" * 500)
    made[22] = replace(made[22], step=40, steps=100, figure="loss 1.2345", seconds=8.0, left=125.0)
    return made


def drawn(rows: list[Row], jobs: int | None, width: int, height: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height)
    console.print(table.table(rows, jobs, width, height))
    return out.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(100, 60), (100, 24), (70, 12), (60, 8)])
def test_the_table_fits_and_shows_running_and_failed_cells_first(width: int, height: int) -> None:
    lines = drawn(some_rows(), 44, width, height)
    assert len(lines) <= height and all(len(line) <= width for line in lines)
    numbers = [int(found[1]) for found in (re.match(r"│ +(\d+) │", line) for line in lines) if found]
    assert numbers == sorted(numbers) and 22 in numbers
    hidden = 44 - len(numbers)
    told = " ".join(lines)
    assert "20 of 44 done" in told and (hidden == 0 or f"{hidden} more" in told)
    if height >= 12:
        assert {20, 21, 22, 23} <= set(numbers)
    if width == 100:
        (row,) = [line for line in lines if line.startswith("│   22")]
        assert [part.strip() for part in row.strip("│").split("│")] == [
            *["22", "seed=22", "training", "40/100", "loss 1.2345", "2:05 min left"]
        ]
        assert "[red]no markup[/red]" in told


def test_counts_say_what_nobody_has_looked_at_yet() -> None:
    made = some_rows()
    assert table.counts(made, 50) == "20 of 50 done, 2 training, 2 failed, 26 waiting"
    assert table.counts(made[:20], None) == "20 done"


def test_lines_are_of_changes() -> None:
    row = Row(3, SWEEP / "3", "seed=3", progress.TRAINING, step=4, steps=10)
    ended = replace(row, state=progress.DONE, figure="nll 2.634 ± 0.004", seconds=45.0)
    waiting = replace(row, state=progress.WAITING)

    def line(now: Row, before: Row | None) -> str | None:
        return table.line(now, before, [now], 12)

    assert line(row, waiting) == "cell 3  seed=3  starts" == line(row, None)
    assert line(replace(row, again=True), waiting) == "cell 3  seed=3  goes on"
    assert line(replace(row, step=5), row) is None and line(replace(row, state=progress.EVALUATING), row) is None
    assert line(ended, row) == "cell 3  seed=3  done  nll 2.634 ± 0.004  (45 s; 1 of 12 done)"
    assert line(ended, ended) is None and line(waiting, None) is None
    assert line(replace(row, state=progress.STOPPED), row) == "cell 3  seed=3  stopped at step 4"


NOTE = {"number": 0, "what": "trains", "again": False, "began": 100.0}


@pytest.mark.parametrize(
    ("files", "note", "expected"),
    [
        ({}, None, {"state": "waiting"}),
        ({"run.json": "{}"}, None, {"state": "waiting"}),
        ({"run.json": "{}"}, NOTE, {"state": "training", "step": 0, "seconds": 20.0}),
        (
            {"run.json": "", "metrics.jsonl": '{"step": 4, "loss": 1.5}\n{"step": 5, "validation_loss": 2}\n{"step":'},
            NOTE,
            {"state": "training", "step": 5, "figure": "loss 1.5000"},
        ),
        ({"run.json": "", "metrics.jsonl": '\n\x00\n[1]\n{"step": "x", "loss": null}\n'}, NOTE, {"state": "training"}),
        ({"run.json": "", "metrics.jsonl": '{"step": 10, "loss": 1.0}\n'}, NOTE, {"state": "evaluating"}),
        ({"run.json": "", "metrics.json": '{"nll": 2.63, "nll_stderr": 0.04}'}, NOTE, {"figure": "nll 2.630 ± 0.040"}),
        ({"run.json": "", "metrics.json": '{"nll": null}'}, None, {"figure": "no nll", "seconds": None}),
        ({"run.json": "", "metrics.json": "{"}, NOTE, {"state": "done"}),
        ({"run.json": "", "failure.json": '{"reason": "a\\u001b[1mb"}'}, None, {"state": "failed", "reason": "a�[1mb"}),
        ({"failure.json": "{"}, None, {"state": "failed"}),
        ({"run.json": ""}, {**NOTE, "what": "left", "reason": "process 1"}, {"state": "in use elsewhere"}),
        ({"run.json": "", "metrics.json": "{}"}, {**NOTE, "what": "left", "reason": "x"}, {"state": "done"}),
        ({"run.json": "", "metrics.json": "{}"}, {**NOTE, "what": "refused", "reason": "x"}, {"state": "failed"}),
    ],
)  # fmt: skip
def test_half_written_cells_are_looked_at(
    files: dict[str, str], note: dict[str, Any] | None, expected: dict[str, Any], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    cell = cells.Cell(0, tmp_path, "seed=0", {"trainer": {"steps": 10}, "objective": {}})
    notes = {} if note is None else {0: note}
    (row,) = progress.rows([cell], notes, {}, {}, 120.0, retry=False)
    assert {key: getattr(row, key) for key in expected} == expected
    if "failure.json" in files:
        (row,) = progress.rows([cell], notes, {}, {}, 120.0, retry=True)
        assert row.state == "waiting"


def test_notes_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    with cells.Notes(tmp_path) as notes:
        host = notes.folder.name.rpartition("-")[0]
        for name in (f"{host}-4194999", "elsewhere-4194999", f"{host}-1"):
            (notes.folder.parent / name).mkdir(parents=True)
        notes.write(3, notes.KEPT, tmp_path / "3", ["seed=3"])
        (notes.folder / "4.json").write_text('{"num')
        assert list(notes.read()) == [3]
        with cells.Notes(tmp_path):
            pass
        assert sorted(other.name for other in notes.folder.parent.iterdir()) == sorted(
            [f"{host}-1", "elsewhere-4194999"]
        )


# ---------------------------------------------------------------- real trainings
def real(count: int) -> list[str]:
    return ["train", "-m", *TINY, f"seed=range({count})", "hydra.sweep.dir=sweep"]


def whole(sweep: Path) -> dict[str, dict[str, Any]]:
    return {cell.name: content(cell) for cell in sweep.iterdir() if cell.name.isdecimal()}


def ends(sweep: Path) -> dict[str, tuple[int, int]]:
    """The finished cells, and what would change if one of them were trained again."""
    found = {file.parent.name: file.stat() for file in sweep.glob("*/metrics.json")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture(scope="module")
def forks(servers: Servers) -> Forks:
    return servers[0]


@dataclass(frozen=True)
class Undisturbed:
    folder: Path
    seconds: float
    changes: int

    def same_as(self, sweep: Path) -> None:
        assert [record.status for record in records.collect([sweep])] == ["done"] * len(ends(self.folder))
        ended, expected = whole(sweep), whole(self.folder)
        assert ended.keys() == expected.keys()
        for name in expected:
            same(ended[name], expected[name])


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Undisturbed]:
    """A sweep of so many cells that nobody disturbed."""

    @cache
    def of(count: int) -> Undisturbed:
        folder = tmp_path_factory.mktemp("whole")
        done = forks.run(real(count), folder)
        assert (done["status"], done["err"]) == (0, "") and len(ends(folder / "sweep")) == count, done
        return Undisturbed(folder / "sweep", done["seconds"], len(done["changes"].split()))

    return of


def killed_and_restarted(forks: Forks, known: Undisturbed, tmp_path: Path, kills: int, seed: int) -> None:
    count, draws, died, finished = len(ends(known.folder)), random.Random(seed), 0, {}
    longest = known.seconds / kills
    for _ in range(6 * kills):
        ended = forks.run(real(count), tmp_path, signals=[[draws.uniform(0.3, 1.3) * longest, signal.SIGKILL]])
        assert ended["status"] in (-signal.SIGKILL, 0), ended
        now = ends(tmp_path / "sweep")
        assert finished.items() <= now.items(), "a finished cell was trained again"
        died, finished = died + (ended["status"] != 0), now
        if died == kills or ended["status"] == 0:
            break
        longest *= 1.0 if len(now) < count - 1 else 0.5
    assert died == kills, "the kills came too late to tell anything"
    last = forks.run(real(count), tmp_path)
    assert (last["status"], last["err"]) == (0, ""), last
    assert f"{count} jobs, {len(finished)} done already" in last["out"] or not finished
    assert finished.items() <= ends(tmp_path / "sweep").items()
    known.same_as(tmp_path / "sweep")


def test_a_sweep_that_is_killed_ends_as_if_it_had_not_been(forks: Forks, undisturbed: Any, tmp_path: Path) -> None:
    killed_and_restarted(forks, undisturbed(3), tmp_path, kills=2, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_twelve_cells_and_five_kills(seed: int, forks: Forks, undisturbed: Any, tmp_path: Path) -> None:
    killed_and_restarted(forks, undisturbed(12), tmp_path, kills=5, seed=seed)


def killed_at_changes(forks: Forks, known: Undisturbed, tmp_path: Path, first: int, stride: int) -> None:
    for k in range(first, known.changes, stride):
        (tmp_path / str(k)).mkdir()
        assert forks.run(real(3), tmp_path / str(k), kill_at=k)["status"] == -signal.SIGKILL
        ended = forks.run(real(3), tmp_path / str(k))
        assert ended["status"] == 0, (k, ended)
        known.same_as(tmp_path / str(k) / "sweep")


@pytest.mark.slow
def test_a_kill_between_two_changes_of_the_disk_does_no_harm(forks: Forks, undisturbed: Any, tmp_path: Path) -> None:
    killed_at_changes(forks, undisturbed(3), tmp_path, first=7, stride=undisturbed(3).changes - 8)


@pytest.mark.slow
def test_a_kill_between_many_changes_of_the_disk_does_no_harm(forks: Forks, undisturbed: Any, tmp_path: Path) -> None:
    killed_at_changes(forks, undisturbed(3), tmp_path, first=1, stride=7)


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_and_the_command_that_goes_on(
    forks: Forks, undisturbed: Any, tmp_path: Path
) -> None:
    known = undisturbed(3)
    hang = {"target": MOVING, "seconds": 2 * known.seconds}
    stopped = forks.run(real(3), tmp_path, hang=hang, signals=[[known.seconds, signal.SIGINT]])
    assert stopped["status"] == 128 + signal.SIGINT and stopped["err"].count("\n") == 1, stopped
    (step,) = (tmp_path / "sweep" / "0" / "checkpoints").glob("step-*")
    assert step.name == "step-1"
    command = re.search(r"stopped with 0 of 3 done; go on with: flowcli (.*)\n", stopped["err"])
    assert command is not None and command[1] in stopped["out"]
    again = forks.run(shlex.split(command[1]), tmp_path)
    assert (again["status"], again["err"]) == (0, "") and "\x1b" not in again["out"], again
    known.same_as(tmp_path / "sweep")


def test_a_damaged_cell_stays_as_it_is_and_the_others_go_on(forks: Forks, undisturbed: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(undisturbed(3).folder, sweep)
    for cell in (0, 2):
        (sweep / str(cell) / "metrics.json").unlink()
    (damaged,) = sweep.glob("0/checkpoints/step-9/optimizer.safetensors")
    damaged.write_bytes(b"nonsense")
    ended = forks.run(real(3), tmp_path)
    assert ended["status"] == 1 and "1 of 3 jobs failed:\n  sweep/0 (seed=0): " in ended["err"], ended
    assert damaged.name in ended["err"] and damaged.read_bytes() == b"nonsense"
    assert not (sweep / "0" / "failure.json").exists() and (sweep / "2" / "metrics.json").exists()


# ---------------------------------------------------------------- launchers and sweepers of others
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray"],
}
COMMAND = [sys.executable, "-m", "flowcli"]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *words], cwd=folder, env=environment, text=True, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_trains_what_the_basic_one_does(launcher: str, undisturbed: Any, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    for told in ("3 jobs\n", "3 jobs, 3 done already\n"):
        sweep = start([*real(3), *LAUNCHERS[launcher]], tmp_path)
        out, err = sweep.communicate(timeout=300)
        assert sweep.returncode == 0 and "Traceback" not in err, (out, err)
        assert out.startswith(f"sweep  sweep  {told}") and "[HYDRA]" not in out and "Launching" not in out
    undisturbed(3).same_as(tmp_path / "sweep")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit"])  # ray ends its driver and its workers itself
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_jobs_in_other_processes_leave_a_checkpoint_too(signum: int, launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    words = [*real(2), *LAUNCHERS[launcher], "trainer.steps=1000000"]
    words += ["trainer.checkpoint_every=1000000", "trainer.validate_every=1000000"]
    sweep, began = start(words, tmp_path), time.monotonic()
    logs = [tmp_path / "sweep" / str(cell) / "metrics.jsonl" for cell in range(2)]
    while not all(log.exists() and log.stat().st_size > 10_000 for log in logs):
        assert sweep.poll() is None and time.monotonic() - began < 200, sweep.communicate()
        time.sleep(0.1)
    sweep.send_signal(signum)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signum and "stopped with 0 of 2 done; go on with: flowcli train -m" in err, err
    assert re.search(r"^cell 0  seed=0  stopped at step \d+$", out, re.MULTILINE), out
    for log in logs:
        (step,) = log.parent.glob("checkpoints/step-*")
        assert int(step.name[5:]) > 100
        assert storage.in_use(log.parent) is None
    if launcher == "joblib":
        import joblib

        threads = json.loads((logs[0].parent / "environment.json").read_text())["threads"]
        assert threads == max(1, joblib.cpu_count() // 2)


@pytest.mark.slow
def test_optuna_gets_the_figures_of_finished_cells(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = [*real(2)[:-2], "hydra.sweep.dir=sweep", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4"]
    words += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1", "trainer.lr=tag(log,interval(1e-4,1e-2))"]
    found, finished = [], {}
    for _ in range(2):
        sweep = start(words, tmp_path)
        out, err = sweep.communicate(timeout=300)
        assert sweep.returncode == 0 and "as many jobs as its sweeper asks for" in out, (out, err)
        found.append(yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text()))
        assert finished.items() <= ends(tmp_path / "sweep").items()
        finished = ends(tmp_path / "sweep")
    assert len(finished) == 4 and found[0] == found[1]
    figures = [json.loads((tmp_path / "sweep" / name / "metrics.json").read_text())["nll"] for name in finished]
    assert found[0]["best_value"] == min(figures)
    again = start([word.replace("sampler.seed=1", "sampler.seed=2") for word in words], tmp_path)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 1 and "sweep/0 holds a run with trainer.lr=" in err, (out, err)
    assert finished == ends(tmp_path / "sweep")
