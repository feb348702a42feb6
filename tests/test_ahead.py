"""Batches from worker processes: the same bits, one line when one dies, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_engine import Observer, flow_over, trainer

from flowcli.bases import StandardNormal
from flowcli.cli import main
from flowcli.couplings import OT, Independent, Reflow, Semidiscrete, Sinkhorn
from flowcli.dataset import TrainingData
from flowcli.ends import Ends
from flowcli.engine import Progress
from flowcli.errors import JobError, UserError
from flowcli.objectives import FlowMatching
from flowcli.randomness import generator
from flowcli.training.ahead import ahead, available
from flowcli.training.batches import BLOCK_STEPS, Batches

pytestmark = pytest.mark.skipif(not available(torch.device("cpu")), reason="no processes are forked here")
QUICK = [
    *["coupling=ot", "trainer.batch_size=64", "coupling.minibatch=64", "network.width=16", "network.depth=1"],
    *["data.train=300", "data.validation=60", "data.test=60", "solver=euler", "solver.steps=3"],
    *["evaluation.pictures=false", "evaluation.draws=2", "evaluation.draw_points=50", "trainer.compile=false"],
]


def data() -> TrainingData:
    draws = generator(0, "data")
    return TrainingData(torch.randn(300, 2, generator=draws), torch.randn(50, 2, generator=draws))


def batches(own: Any, held: TrainingData) -> Batches:
    flow, objective, base = flow_over(held.train), FlowMatching("unit"), StandardNormal((2,)).float()
    own.prepare(held.train, base, 0, condition=None, jitter=None)
    objective.prepare(flow, held, Ends(base, own))
    return Batches(flow, objective, held, 32, seed=3)


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other is None or (one is not None and other is not None and torch.equal(one, other))


def children() -> set[int]:
    """Processes that this one started and that have not been waited for."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.parametrize("own", [OT(32), Sinkhorn(32, 0.1), Semidiscrete(5, 64, 0.1)], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_are_the_same_bits_whoever_makes_them(own, workers):
    made, first, last = batches(own, data()), 30, 5 * BLOCK_STEPS - 7
    alone = [made(step) for step in range(first, last)]
    before = children()
    with ahead(made, first, last, workers):
        assert len(children() - before) == min(workers, 4), "no more than there are blocks"
        for step, expected in zip(range(first, last), alone, strict=True):
            found = made(step)
            assert all(same(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert children() == before and made.elsewhere is None


def test_workers_are_for_couplings_that_solve(monkeypatch):
    base, device = StandardNormal((2,)).float(), torch.device("cpu")
    auto = trainer(workers="auto")
    assert auto.choose_workers(Ends(base, OT(32)), device) == min(len(os.sched_getaffinity(0)), 8)
    for own in (Independent(), Reflow("run", 10)):
        assert auto.choose_workers(Ends(base, own), device) == 0
    assert auto.choose_workers(None, device) == 0
    assert auto.choose_workers(Ends(base, OT(32)), torch.device("cuda")) == 0
    assert trainer(workers=3).choose_workers(None, device) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert auto.choose_workers(Ends(base, OT(32)), device) == 1


def test_workers_are_refused_where_they_cannot_be():
    trainer(workers="auto").require_workers(torch.device("cuda"))
    with pytest.raises(UserError):
        trainer(workers=1).require_workers(torch.device("cuda"))
    for wrong in (-1, "many", 1.5):
        with pytest.raises(UserError, match="workers"):
            trainer(workers=wrong)


@pytest.mark.parametrize("last", [30, 40])
def test_a_block_alone_needs_no_worker(last):
    before = children()
    with ahead(batches(OT(32), data()), 25, last, 2):
        assert children() == before


def test_a_training_ends_alike_and_resumes_within_a_block():
    held, results = data(), []
    for workers, cut in ((0, None), (2, None), (1, 27)):
        flow, observer = flow_over(held.train), Observer(stop_at=cut)
        ends = Ends(StandardNormal((2,)).float(), OT(32))
        settings = {"steps": 90, "workers": workers}
        average, ending = trainer(**settings).fit(flow, FlowMatching("unit"), ends, held, seed=3, observer=observer)
        if cut is not None:
            assert ending == "stopped"
            state, flow, average, optimizer = observer.saved[-1]
            average, _ = trainer(**settings).fit(
                flow,
                FlowMatching("unit"),
                ends,
                held,
                seed=3,
                observer=Observer(),
                progress=Progress.restore(state),
                average=average,
                optimizer=optimizer,
            )
        results.append([p.clone() for p in average.parameters()])
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_a_worker_that_is_killed_is_one_error():
    made, before = batches(OT(32), data()), children()
    with ahead(made, 0, 400, 2):
        made(0)
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(JobError) as caught:
            all(made(step) for step in range(400))
    assert "\n" not in str(caught.value) and children() == before


def test_an_error_in_a_worker_is_that_error(monkeypatch):
    def fails(*_: object) -> None:
        raise JobError("no plan for this batch")

    made, before = batches(OT(32), data()), children()
    monkeypatch.setattr(OT, "_match", fails)
    with pytest.raises(JobError, match="no plan for this batch"), ahead(made, 0, 400, 1):
        made(0)
    assert children() == before


def test_workers_do_not_hear_the_group_s_signals():
    made, before = batches(OT(32), data()), children()
    with ahead(made, 0, 400, 2):
        for signum in (signal.SIGINT, signal.SIGTERM):
            for pid in children() - before:
                os.kill(pid, signum)
        for step in range(0, 400, BLOCK_STEPS):
            made(step)


# ---------------------------------------------------------------- whole processes
def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A training in a process group of its own, which has workers and has written a line of its log."""
    command = [sys.executable, "-m", "flowcli", "train", *QUICK, f"hydra.run.dir={folder}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size:
            return process
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def group(leader: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_to_the_group_stops_behind_a_checkpoint(tmp_path, signum):
    folder = tmp_path / "run"
    process = started(folder, "trainer.steps=1000000", "trainer.workers=2", "trainer.log_every=20")
    assert len(group(process.pid)) == 3
    os.killpg(process.pid, signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum and "Traceback" not in err
    assert (folder / "checkpoints").is_dir() and list((folder / "checkpoints").glob("step-*"))
    assert group(process.pid) == []


@pytest.mark.slow
def test_nobody_outlives_a_training_that_is_killed(tmp_path):
    process = started(tmp_path / "run", "trainer.steps=1000000", "trainer.workers=2", "trainer.log_every=20")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert group(process.pid) == []


@pytest.mark.slow
def test_a_run_s_weights_do_not_depend_on_its_workers(tmp_path):
    found = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        assert main(["train", *QUICK, f"hydra.run.dir={folder}", "trainer.steps=65", f"trainer.workers={workers}"]) == 0
        found.append(load_file(folder / "checkpoints" / "step-65" / "ema.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
