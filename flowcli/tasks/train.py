"""`flowcli train`: data, flow, training, evaluation, pictures; all of it into one run folder."""

import copy
import json
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml

from flowcli import build, console, pictures
from flowcli.checkpoints import find_checkpoint
from flowcli.dataset import Dataset, TrainingData
from flowcli.ends import Ends
from flowcli.engine import Progress, Trainer
from flowcli.errors import Interrupted
from flowcli.flows.base import Flow
from flowcli.objectives import Objective
from flowcli.parametrizations import Raw
from flowcli.provenance import environment
from flowcli.run import REFERENCE_FILE, RunFolder
from flowcli.storage import write_json
from flowcli.tasks import coupling

REFERENCE_ROWS = 5000
"""Rows of the test split that stay in the run folder, for pictures beside later samples."""
METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Build every job's objects and open its data, each different data set once.

    Raises:
        UserError: what is wrong, before anything is written.
    """
    opened: dict[str, Dataset] = {}
    for config in configs:
        build.training(config, build.mathematics(config))
        evaluation = build.evaluation(config)
        node = json.dumps(config.get("data"), sort_keys=True, default=str)
        if node not in opened:
            opened[node] = build.source(config).load()
        dataset = opened[node]
        job = _Job.of(config, dataset)
        evaluation.require(job.flow, dataset)
        if job.ends is not None:
            coupling.check(config, dataset, job.flow, job.ends)
        if job.objective is not None:
            job.objective.prepare(job.flow, job.data(dataset), job.ends)


@dataclass(frozen=True)
class _Job:
    """A training's objects. `ends` is None where the objective has no pairs."""

    flow: Flow
    objective: Objective | None
    trainer: Trainer
    ends: Ends | None

    @classmethod
    def of(cls, config: Mapping[str, Any], dataset: Dataset) -> "_Job":
        maths = build.mathematics(config)
        training, flow = build.training(config, maths), build.new_flow(config, dataset)
        if maths.coupling is None or training.objective is None:
            return cls(flow, training.objective, training.trainer, None)
        # a base of its own: the flow's moves to the flow's device and precision, noise is drawn on the CPU
        base = build.base(config, maths.model.state_shape(dataset.event_shape), dataset.transform)
        return cls(flow, training.objective, training.trainer, Ends(base, maths.coupling))

    def data(self, dataset: Dataset) -> TrainingData:
        """The splits in model units, in the flow's dtype, on its device."""
        flow, width, scale = self.flow, dataset.bin_width, self.flow.transform.scale
        jitter = None if width is None else (width.to(scale) / scale).to(flow.dtype)
        mixture = None if dataset.mixture is None else dataset.mixture.through(dataset.transform)
        train, validation = flow.to_model(dataset.train), flow.to_model(dataset.points("validation"))
        return TrainingData(train, validation, jitter, None, mixture)


def run(config: Mapping[str, Any], folder: Path) -> float | None:
    """Train, evaluate and draw; return the test NLL, for sweepers that optimise it.

    Raises:
        JobError: the training failed.
        Interrupted: a signal stopped it, after a checkpoint was written.
    """
    dataset = build.source(config).load()
    job = _Job.of(config, dataset)
    flow = job.flow
    write_json(folder / "data.json", dataset.source)
    write_json(folder / "environment.json", environment(flow.device))
    metrics = _train(config, dataset, job, folder)
    best = find_checkpoint(folder, "best")
    flow.load_state_dict(best.tensors("ema"))  # what --ckpt will open: the figures are those of that flow
    metrics["best_step"] = best.description["step"]
    try:
        return _evaluate(config, dataset, flow, folder, metrics)
    except KeyboardInterrupt as error:
        again = f"flowcli train --resume {console.shown(folder)}"
        raise Interrupted(
            signal.SIGINT, f"stopped in the evaluation, all training is kept; finish with: {again}"
        ) from error


# ---------------------------------------------------------------- training
def _train(config: Mapping[str, Any], dataset: Dataset, job: _Job, folder: Path) -> dict[str, Any]:
    """Train the flow, or save it as it is where there is nothing to train."""
    flow, trainer = job.flow, job.trainer
    description = _description(config, dataset, folder)
    if job.objective is None:
        weights = {"raw": flow.state_dict(), "ema": flow.state_dict()}
        _save(RunFolder(folder), 0, weights, config, description, state={"step": 0}, best=True)
        return {"step": 0}
    _say_cuts(flow)
    progress, average, offsets = _resumed(config, flow, folder)
    data = job.data(dataset)
    earlier = torch.get_num_threads()
    torch.set_num_threads(trainer.choose_threads(flow.trainable_parameters()))
    try:
        size, resumed = trainer.batch_size, average is not None
        metrics = coupling.fit(config, dataset, flow, job.ends, data, folder, batch_size=size, resumed=resumed)
        with (
            _signals() as received,
            console.TrainingProgress(trainer.steps, progress.step) as shown,
            closing(_Observer(RunFolder(folder), config, description, shown, received, offsets)) as observer,
        ):
            _, ending = trainer.fit(
                flow,
                job.objective,
                job.ends,
                data,
                seed=build.seed(config),
                observer=observer,
                progress=progress,
                average=average,
            )
    finally:
        torch.set_num_threads(earlier)
    if ending == "stopped":
        raise Interrupted(
            received[0], f"stopped at step {progress.step}; go on with: flowcli train --resume {console.shown(folder)}"
        )
    if ending == "max_time":
        console.console().print(f"trainer.max_time: stopped at step {progress.step} of {trainer.steps}")
    seconds = max(progress.seconds, 1e-9)
    metrics |= {"step": progress.step, "train_seconds": progress.seconds, "steps_per_second": progress.step / seconds}
    return metrics | ({"coupling_share": progress.coupling_seconds / seconds} if "transport_cost" in metrics else {})


def _say_cuts(flow: Flow) -> None:
    parametrization = getattr(getattr(flow, "field", None), "parametrization", None)
    if isinstance(parametrization, Raw) and parametrization.cuts:
        cut = " and ".join(parametrization.cuts)
        console.console().print(f"model.prediction={parametrization.prediction} is 0/0 at an end: cut to {cut}")


def _description(config: Mapping[str, Any], dataset: Dataset, folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, so that it can be opened without its data."""
    asked = folder / ".hydra" / "choices.yaml"
    return {
        "event_shape": list(dataset.event_shape),
        "columns": None if dataset.columns is None else list(dataset.columns),
        "discrete": dataset.discrete,
        "bin_width": None if dataset.bin_width is None else dataset.bin_width.tolist(),
        "choices": yaml.safe_load(asked.read_text()) if asked.is_file() else {},
    }


def _resumed(config: Mapping[str, Any], flow: Flow, folder: Path) -> tuple[Progress, Flow | None, dict[str, int]]:
    """Load the last checkpoint into the flow; the progress, the averaged flow and the lengths of the logs then."""
    if not config.get("resume") or not (folder / "checkpoints" / "last").is_file():
        return Progress(), None, {METRICS: 0, TIMINGS: 0}
    checkpoint = find_checkpoint(folder, "last")
    average = copy.deepcopy(flow)
    average.load_state_dict(checkpoint.tensors("ema"))
    flow.load_state_dict(checkpoint.tensors("raw"))
    state = checkpoint.state()
    offsets = state.pop("offsets")
    return Progress(**state), average, offsets


class _Observer:
    """Writes the logs and checkpoints of a training, shows its progress, hears signals."""

    def __init__(
        self,
        folder: RunFolder,
        config: Mapping[str, Any],
        description: dict[str, Any],
        shown: console.TrainingProgress,
        received: list[int],
        offsets: dict[str, int],
    ) -> None:
        self._folder, self._config, self._description = folder, config, description
        self._shown, self._received = shown, received
        self._lines = {name: folder.lines(name, offset) for name, offset in offsets.items()}

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        self._lines[METRICS].append(record)
        self._lines[TIMINGS].append(timing)
        self._shown.update(record)

    def checkpoint(self, progress: Progress, flow: Flow, average: Flow, *, best: bool) -> None:
        state = vars(progress) | {"offsets": {name: lines.sync() for name, lines in self._lines.items()}}
        weights = {"raw": flow.state_dict(), "ema": average.state_dict()}
        _save(self._folder, progress.step, weights, self._config, self._description, state=state, best=best)

    def should_stop(self) -> bool:
        return bool(self._received)

    def close(self) -> None:
        for lines in self._lines.values():
            lines.close()


def _save(
    folder: RunFolder,
    step: int,
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    config: Mapping[str, Any],
    description: Mapping[str, Any],
    *,
    state: Mapping[str, Any],
    best: bool,
) -> None:
    kept = {key: value for key, value in config.items() if key not in ("resume", "trust")}
    folder.save_checkpoint(step, weights=weights, config=kept, description=description, state=state, best=best)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM for the loop to see between two steps; a second one stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)

    earlier = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


# ---------------------------------------------------------------- evaluation
@torch.no_grad()
def _evaluate(
    config: Mapping[str, Any], dataset: Dataset, flow: Flow, folder: Path, metrics: dict[str, Any]
) -> float | None:
    """Measure on the test split, draw, write the final figures and show them."""
    evaluation, seed = build.evaluation(config), build.seed(config)
    console.console().print("evaluating on the test split and drawing")
    found, samples = evaluation(flow, dataset, seed=seed)
    np.save(folder / "samples.npy", samples.numpy())
    np.save(folder / REFERENCE_FILE, dataset.points("test")[:REFERENCE_ROWS].numpy())
    if evaluation.pictures:
        _draw(flow, dataset, samples, folder, seed=seed, batch_size=evaluation.batch_size)
    metrics = found | metrics
    RunFolder(folder).finish(metrics)
    console.closing_table(console.metric_rows(metrics), f"test split, {len(dataset.test):,} rows")
    if "nll_missing" in metrics:
        console.console().print(f"no likelihood: {metrics['nll_missing']}")
    console.console().print(f"run  {console.shown(folder)}")
    nll = metrics.get("nll", math.nan)
    return float(nll) if math.isfinite(nll) else None


def _draw(flow: Flow, dataset: Dataset, samples: torch.Tensor, folder: Path, *, seed: int, batch_size: int) -> None:
    """The pictures of a run."""
    data = dataset.points("test")
    pictures.samples(samples, data, dataset.columns, folder / "samples.png")
    pictures.trajectories(flow, data, dataset.columns, folder / "trajectories.png", seed=seed)
    if dataset.event_shape == (2,) and flow.no_likelihood is None:
        pictures.density(flow, dataset, folder / "density.png", batch_size=batch_size)
    if (folder / METRICS).is_file():
        pictures.loss(folder / METRICS, folder / "loss.png")
