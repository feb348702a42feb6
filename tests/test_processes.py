"""Several processes on one job: the same results as one, one run folder, and a clear end when one of them dies."""

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forks import Servers
from test_crash import KINDS, words

from flowcli.checkpoints import find_checkpoint

TOLERANCE = 1e-5
"""Relative, of losses and figures in single precision: the order of a sum differs."""


@pytest.fixture
def forks(servers: Servers) -> Servers:
    return servers


def together(forks: Servers, line: list[str], folder: Path, count: int = 2, **events: Any) -> Any:
    """Run a command line as torchrun would; events: of single processes, {"1": {...}}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def one(rank: int) -> dict[str, Any]:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in names.items()}
        return forks[rank].run(line, folder, environment=environment, **events.get(f"process_{rank}", {}))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def close(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert [sorted(line) for line in first] == [sorted(line) for line in second]
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)


MORE = {
    "adjoint": ["objective=mle", "objective.solver.steps=2", "objective.gradient=adjoint"],
    "uneven": ["trainer.batch_size=17"],
}


MOST = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("ot", "nsf", "uneven")]


@pytest.mark.parametrize("kind", ["plain", "adjoint", *MOST])
def test_two_processes_draw_the_same_loss_curve_as_one(kind, forks, tmp_path):
    line = [*words("mle" if kind == "adjoint" else kind if kind in KINDS else "plain"), *MORE.get(kind, [])]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = forks[0].run(line, tmp_path / "one")
    both = together(forks, line, tmp_path / "two")
    assert [alone["status"], *(each["status"] for each in both)] == [0, 0, 0], both
    assert both[1]["out"] == both[1]["err"] == "", "one process speaks"
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
    assert list((tmp_path / "two").iterdir()) == [two], "one run folder"
    close(lines(one), lines(two))
    figures = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert figures[1]["nll"] == pytest.approx(figures[0]["nll"], rel=1e-4)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_rows_are_those_of_one_process_in_order(count, forks, tmp_path):
    assert forks[0].run(words("plain"), tmp_path)["status"] == 0
    settings = ["batch_size=7", "solver=dopri5", "solver.rtol=1e-3", "solver.atol=1e-3"]
    for verb, own, name in (
        ("sample", ["n=60", "--out", "sample1.csv"], "samples.npy"),
        ("likelihood", ["check_rows=5"], "log_prob.npy"),
    ):
        line = [verb, "--ckpt", "run", *settings, f"hydra.run.dir={verb}1", *own]
        alone = forks[0].run(line, tmp_path)
        found = together(forks, [word.replace(f"{verb}1", f"{verb}{count}") for word in line], tmp_path, count)
        assert [alone["status"], *(each["status"] for each in found)] == [0] * (count + 1), found
        assert (tmp_path / f"{verb}1" / name).read_bytes() == (tmp_path / f"{verb}{count}" / name).read_bytes()
        assert found[0]["out"].replace(f"{verb}{count}", f"{verb}1") == alone["out"]
    tables = [(tmp_path / f"sample{processes}.csv").read_text() for processes in (1, count)]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 61


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_the_job_and_the_run_goes_on(killed, forks, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    long = [*words("plain"), "trainer.steps=40"]
    assert forks[0].run(long, tmp_path / "whole")["status"] == 0
    dies = {"hang": {"target": "flowcli.engine:Trainer.learning_rate", "seconds": 0.05}, "signals": [[2.5, 9]]}
    other = {key: value for key, value in dies.items() if key == "hang"}
    events = {f"process_{killed}": dies, f"process_{1 - killed}": other}
    found = together(forks, long, tmp_path / "cut", **events)
    assert found[killed]["status"] == -signal.SIGKILL and found[1 - killed]["status"] == 1, found
    told = found[1 - killed]["err"]
    assert told.count("\n") == 1 and "another process of this job is gone" in told and "Traceback" not in told
    assert find_checkpoint(tmp_path / "cut" / "run", "last").description["step"] < 40
    again = together(forks, ["train", "--resume", "run"], tmp_path / "cut")
    assert [each["status"] for each in again] == [0, 0], again
    close(lines(tmp_path / "whole" / "run"), lines(tmp_path / "cut" / "run"))


def test_a_signal_to_all_leaves_a_checkpoint(forks, tmp_path):
    slow = {"hang": {"target": "flowcli.engine:Trainer.learning_rate", "seconds": 0.05}}
    events = {f"process_{i}": slow | {"signals": [[2.5 + 0.2 * i, signal.SIGTERM]]} for i in (0, 1)}
    found = together(forks, [*words("plain"), "trainer.steps=1000"], tmp_path, **events)
    assert [each["status"] for each in found] == [143, 143], found
    assert "flowcli train --resume run" in found[0]["err"]
    step = find_checkpoint(tmp_path / "run", "last").description["step"]
    assert f"stopped at step {step}" in found[0]["err"]
    alone = forks[0].run(["train", "--resume", "run", f"trainer.steps={step + 2}"], tmp_path)
    assert alone["status"] == 0, "one process goes on with what two began"


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["-m", "seed=0,1"], "launcher"),
        (["trainer.batch_size=1"], "batch_size=1"),
        (["trainer.stps=1"], "did you mean"),
    ],
)
def test_what_two_processes_cannot_do_is_said(extra, told, forks, tmp_path):
    found = together(forks, [*words("plain"), *extra], tmp_path)
    assert [each["status"] for each in found] == [2, 2], found
    assert told in found[0]["err"] and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_torchrun_trains_one_run_and_says_who_died(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "flowcli"]

    def run(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*torchrun, *line], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    done = run(*words("plain"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    long = subprocess.Popen(
        [*torchrun, *words("plain"), "trainer.steps=100000", "hydra.run.dir=long"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not (tmp_path / "long" / "checkpoints" / "last").exists():
        assert long.poll() is None
    children = subprocess.run(["pgrep", "-P", str(long.pid)], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["kill", "-9", children[1]], check=True)
    _, told = long.communicate(timeout=60)
    assert long.returncode == 1 and "another process of this job is gone" in told
    step = find_checkpoint(tmp_path / "long", "last").description["step"]
    again = run("train", "--resume", "long", f"trainer.steps={step + 5}")
    assert again.returncode == 0, again.stderr
