"""flowcli as its user gets it: built from configs, trained by `Trainer.fit`, then `sample` and `log_prob`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rounds import Rounds, Skipped, serve
from torch import Tensor
from works import RATE, WORKS, Work

from flowcli import build, trust
from flowcli.dataset import Dataset, TrainingData
from flowcli.ends import Ends
from flowcli.engine import Progress
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.launch.composed import composed
from flowcli.training.fused import has_kernel

RAW = ["model.precondition=false", "model.prediction=velocity"]
"""The network is the velocity itself, as in the peers."""
FOREVER = 10**9
"""Steps; more than any run takes."""


def words(work: Work, steps: int, rhythm: int) -> list[str]:
    """Overrides for a plain MLP, and for a trainer that neither validates nor saves on the way."""
    rows = WORKS["step"].rows if work.kind in ("sampling", "density") else work.rows
    network = [f"network.width={work.width}", f"network.depth={work.layers - 1}", "network.residual=false"]
    network += ["network.fourier_features=0", "network.time_octaves=0"]
    trainer = [f"trainer.steps={steps}", f"trainer.batch_size={rows}", f"trainer.lr={RATE}", "trainer.warmup=0"]
    trainer += ["trainer.schedule=constant", f"trainer.log_every={rhythm}"]
    trainer += [f"trainer.{rare}_every={FOREVER}" for rare in ("validate", "checkpoint")]
    return [*_own(work), *network, *trainer]


def _own(work: Work) -> list[str]:
    """What only this work says."""
    tolerances = [f"rtol={work.tolerance}", f"atol={work.tolerance}"]
    match work.name:
        case "ot_step":
            return [*RAW, "coupling=ot", f"coupling.minibatch={work.rows}"]
        case "euler":
            return [*RAW, "solver=euler", f"solver.steps={work.solve_steps}"]
        case "dopri5" | "log_prob":
            return [*RAW, "solver=dopri5", *[f"solver.{each}" for each in tolerances]]
        case "mle_step":
            plain = ["objective.kinetic=0", "objective.jacobian=0", "solver@objective.solver=dopri5"]
            return ["objective=mle", *plain, *[f"objective.solver.{each}" for each in tolerances]]
    return RAW


class Job:
    """All that a training needs, from a config."""

    def __init__(self, overrides: list[str]) -> None:
        self.config: Mapping[str, Any] = composed("train", overrides)[0]
        maths = build.mathematics(self.config)
        self.dataset: Dataset = build.source(self.config).load()
        self.training, self.flow = build.training(self.config, maths), build.new_flow(self.config, self.dataset)
        self.ends = None
        if maths.coupling is not None:
            base = build.base(self.config, self.dataset.event_shape, self.dataset.transform)
            self.ends = Ends(base, maths.coupling)

    def fit(self, observer: "_Silent") -> Flow:
        """Train with as many threads as `flowcli train` takes; return the averaged flow."""
        trainer, flow, dataset = self.training.trainer, self.flow, self.dataset
        splits = [flow.to_model(dataset.points(split)) for split in ("train", "validation")]
        mixture = None if dataset.mixture is None else dataset.mixture.through(dataset.transform)
        assert self.training.objective is not None
        given = torch.get_num_threads()
        torch.set_num_threads(min(given, trainer.choose_threads(flow.trainable_parameters(), kernel=has_kernel(flow))))
        try:
            average, _ = trainer.fit(
                flow,
                self.training.objective,
                self.ends,
                TrainingData(*splits, None, None, mixture),
                seed=build.seed(self.config),
                observer=observer,
                progress=Progress(compiled=int(trainer.choose_compiled(flow, self.training.objective))),
            )
        finally:
            torch.set_num_threads(given)
        return average.requires_grad_(False).eval()


class _Silent:
    """An observer of a training that goes through."""

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        pass

    def checkpoint(self, progress: Progress, flow: Flow, average: Flow, optimizer: Mapping[str, Tensor]) -> None:
        pass

    def told(self, text: str) -> None:
        pass

    def should_stop(self) -> bool:
        return False

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Timing(_Silent):
    """Between two lines of the log lies one repetition; the ones before `trained` steps are preparation."""

    def __init__(self, job: Job, work: Work, rounds: Rounds) -> None:
        self._job, self._work, self._rounds = job, work, rounds
        self._ready, self._stop = False, False

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        if self._stop or record["step"] < max(self._work.trained, self._work.repeat):
            return
        if self._ready:
            self._rounds.done()
        else:
            self._rounds.ready(**self._facts())
            self._ready = True
        self._stop = not self._rounds.wanted()

    def should_stop(self) -> bool:
        return self._stop

    def _facts(self) -> dict[str, float]:
        solver, flow = getattr(self._job.training.objective, "solver", None), self._job.flow
        if solver is None:
            return {}
        assert isinstance(flow, ContinuousFlow)
        with torch.no_grad():
            return _scored(flow.with_solver(solver), self._job.dataset.train[: self._work.rows], None)


def _scored(flow: Flow, x: Tensor, batch_size: int | None) -> dict[str, float]:
    """x in data units; the mean in model units, which the others have."""
    found = flow.log_prob(x, batch_size=batch_size)
    return {"nfe": found.nfe, "nll": float(flow.transform.log_det) - float(found.value.mean())}


# ---------------------------------------------------------------- works
def step(work: Work, points: Path, rounds: Rounds) -> None:
    """Steps of one training that goes on all the time."""
    job = Job(words(work, FOREVER, work.repeat))
    job.fit(_Timing(job, work, rounds))


def _trained(work: Work) -> tuple[Job, Flow, int]:
    """A job, its flow, and how many rows that is given at once."""
    job = Job(words(work, work.trained, work.trained))
    return job, job.fit(_Silent()), int(job.config["evaluation"]["batch_size"])


def samples(work: Work, points: Path, rounds: Rounds) -> None:
    """Samples of a trained flow, of another seed each time."""
    _, flow, size = _trained(work)
    seeds = iter(range(1_000_000))

    @torch.no_grad()
    def sample() -> int:
        return flow.sample(work.rows, seed=next(seeds), batch_size=size).nfe

    rounds.each(lambda: [sample() for _ in range(work.repeat)], nfe=sample())


def log_prob(work: Work, points: Path, rounds: Rounds) -> None:
    """Log-densities under a trained flow."""
    job, flow, size = _trained(work)
    x = job.dataset.train[: work.rows]
    with torch.no_grad():
        facts = _scored(flow, x, size)
        rounds.each(lambda: [flow.log_prob(x, batch_size=size) for _ in range(work.repeat)], **facts)


def process(work: Work, points: Path, rounds: Rounds) -> None:
    """A training from its start to its end, without anything compiled before: neither kernels nor graphs."""
    if not (trust.conf_dir() / "experiment" / "peer.yaml").is_file():
        raise Skipped("there is no experiment=peer")

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cold = {
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled",
                "XDG_CACHE_HOME": f"{folder}/kernels",
            }
            cold["MPLCONFIGDIR"] = matplotlib.get_cachedir()  # where its list of fonts is
            run = ["train", "experiment=peer", f"hydra.run.dir={folder}/run"]
            subprocess.run([sys.executable, "-m", "flowcli", *run], cwd=folder, env=cold, check=True)

    rounds.each(train)


def show_help(work: Work, points: Path, rounds: Rounds) -> None:
    """`flowcli --help`."""
    rounds.each(lambda: subprocess.run([sys.executable, "-m", "flowcli", "--help"], check=True))


DOINGS = {
    **dict.fromkeys(("step", "ot_step", "mle_step", "large_step"), step),
    **dict.fromkeys(("euler", "dopri5"), samples),
    "log_prob": log_prob,
    "process": process,
    "help": show_help,
}

if __name__ == "__main__":
    serve(DOINGS, "torch")
