"""`flowcli train`: data, flow, training, evaluation, pictures; all of it into one run folder."""

import copy
import json
import math
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowcli import build, console, memory, pictures, processes, threads
from flowcli.checkpoints import find_checkpoint, fitted_coupling, flatten, read_config, require_readable
from flowcli.dataset import Dataset, TrainingData
from flowcli.ends import Ends
from flowcli.engine import Progress, Trainer
from flowcli.errors import Interrupted
from flowcli.flows.base import Flow
from flowcli.launch.ending import typed
from flowcli.objectives import Objective
from flowcli.parametrizations import Raw
from flowcli.provenance import environment
from flowcli.run import CHOICES_FILE, METRICS, REFERENCE_FILE, TIMINGS, WEIGHTS, RunFolder, pointed
from flowcli.signals import Listener, listening
from flowcli.storage import replacing, require_length, write_json
from flowcli.tasks import coupling, scoring
from flowcli.tracking import Feed, Subject, read_logs
from flowcli.training.fused import has_kernel, no_kernel

REFERENCE_ROWS = 5000
"""Rows of the test split that stay in the run folder, for pictures beside later samples."""
EVALUATING = "stopped in the evaluation, all training is kept; finish with: {}"


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Build every job's objects and open its data, each different data set once.

    Raises:
        UserError: what is wrong, before anything is written.
    """
    opened: dict[str, Dataset] = {}
    for config in configs:
        if config.get("resume"):
            _check_resumable(config, Path(config["resume"]))
        build.training(config, build.mathematics(config))
        evaluation = build.evaluation(config)
        build.tracker(config)
        node = json.dumps(config.get("data"), sort_keys=True, default=str)
        if node not in opened:
            opened[node] = build.source(config).load()
        dataset = opened[node]
        job = _Job.of(config, dataset)
        evaluation.require(job.flow, dataset)
        if not config.get("resume"):  # one that goes on may have to do without
            job.trainer.require_compilable(job.flow.device, job.objective)
        job.trainer.require_workers(job.flow.device)
        _require_memory(job)
        require_readable(_kept(config), _description(dataset, {}))
        if job.ends is not None:
            coupling.check(config, dataset, job.flow, job.ends)
        if job.objective is not None:
            job.objective.prepare(job.flow, job.data(dataset), job.ends)


def _check_resumable(config: Mapping[str, Any], run: Path) -> None:
    """Read all that a run that goes on will read, so that a damaged one stays as it lies there.

    Nothing larger than its weights is built out of it before: it may be a stranger's.
    """
    inner = run / "checkpoints"
    if pointed(inner, "last") is None:
        return
    checkpoint = find_checkpoint(run, "last")
    coupled = build.mathematics(config).coupling
    if coupled is not None and not coupled.independent:
        fitted_coupling(run)
    for weights in WEIGHTS:
        build.restore(config, checkpoint, weights, config.get("trust") or ())
    values, _ = checkpoint.state()
    Progress.restore(values["training"])
    for name, offset in values["offsets"].items():
        require_length(run / name, offset)
    if config.get("logger") is not None:
        read_logs(run, values["offsets"])
    if pointed(inner, "best") is not None:
        find_checkpoint(run, "best").tensors("ema")


def _require_memory(job: "_Job") -> None:
    if job.objective is None or job.flow.device.type != "cpu":
        return
    size = job.trainer.batch_size
    memory.require(f"trainer.batch_size={size} with this network", memory.of_training(job.flow, size))
    minibatch = getattr(job.ends.coupling, "minibatch", None) if job.ends is not None else None
    if minibatch is not None:
        rows = min(minibatch, size)
        memory.require(f"coupling.minibatch={minibatch} with trainer.batch_size={size}", 2 * 8 * rows**2)


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
    advice = f"stopped before the first step; start it again with: {_again(folder)}"
    with (
        listening(advice, patient=processes.count() > 1) as listener,
        processes.writing(folder) as own,
        _feed(config, folder) as feed,
    ):
        dataset = build.source(config).load()
        job = _Job.of(config, dataset)
        flow = job.flow
        write_json(own / "data.json", dataset.source)
        write_json(own / "environment.json", environment(flow.device))
        metrics = _train(config, dataset, job, folder, own, listener, feed)
        listener.advice = EVALUATING.format(_again(folder))
        processes.wait()  # for the last checkpoint
        best = find_checkpoint(folder, "best")
        flow.load_state_dict(best.tensors("ema"))  # what --ckpt will open: the figures are those of that flow
        metrics["best_step"] = best.description["step"]
        return _evaluate(config, dataset, flow, folder, own, metrics)


def _feed(config: Mapping[str, Any], folder: Path) -> Feed:
    """To the tracker of the config; only the process that writes has one."""
    subject = Subject(folder.absolute(), dict(flatten(_kept(config))), bool(config.get("resume")))
    return Feed(build.tracker(config) if processes.leads() else None, subject, console.console().print)


def _again(folder: Path) -> str:
    return f"flowcli train --resume {typed(folder)}"


# ---------------------------------------------------------------- training
def _train(
    config: Mapping[str, Any], dataset: Dataset, job: _Job, folder: Path, own: Path, listener: Listener, feed: Feed
) -> dict[str, Any]:
    """Train the flow, or save it as it is where there is nothing to train.

    folder: of the run, to read; own: what this process may write into.
    """
    flow, trainer = job.flow, job.trainer
    asked = folder / CHOICES_FILE
    description = _description(dataset, read_config(asked) if asked.is_file() else {})
    if job.objective is None:
        if processes.leads() and pointed(folder / "checkpoints", "last") is None:
            _save_untrained(RunFolder(folder), flow, config, description)
        feed.begin({METRICS: 0, TIMINGS: 0})
        return {"step": 0}
    _say_cuts(flow)
    reason = no_kernel(flow)
    if reason is not None:
        console.console().print(f"PyTorch computes the network, slower than network.kernel would: {reason}")
    state = _State.of(config, flow, folder)
    feed.begin(state.offsets)
    progress, data = state.progress, job.data(dataset)
    if not progress.threads:
        progress.kernel = int(has_kernel(flow))
        progress.compiled = int(trainer.choose_compiled(flow, job.objective))
        fused = bool(progress.kernel) and not progress.compiled  # graphs are torch's, whatever the network has
        progress.threads = trainer.choose_threads(flow.trainable_parameters(), kernel=fused)
    elif progress.kernel != has_kernel(flow):
        which = ("PyTorch", "the kernel")
        console.console().print(
            f"so far {which[progress.kernel]} computed the network, from here on {which[1 - progress.kernel]} does, "
            "which rounds differently"
        )
        progress.kernel = int(has_kernel(flow))
    with threads.using(progress.threads):
        kept = folder if state.coupling is not None else own
        fitted = coupling.fit(
            config, dataset, flow, job.ends, data, kept, batch_size=trainer.batch_size, earlier=state.coupling
        )
        listener.advice = EVALUATING.format(_again(folder))  # for one that comes right behind the training
        with (
            listener.held(),
            console.TrainingProgress(trainer.steps, progress.step) as shown,
            closing(
                _Observer(RunFolder(folder), config, description, shown, listener, state, fitted, feed)
                if processes.leads()
                else _Follower(listener)
            ) as observer,
        ):
            _, ending = trainer.fit(
                flow,
                job.objective,
                job.ends,
                data,
                seed=build.seed(config),
                observer=observer,
                progress=progress,
                average=state.average,
                optimizer=state.optimizer,
            )
    (signalled,) = processes.anywhere([bool(listener.received)])  # one may have come while the end was written
    if ending == "stopped" or signalled:
        told = f"stopped at step {progress.step}; go on with: {_again(folder)}"
        raise Interrupted(listener.received or signal.SIGTERM, told)
    if ending == "max_time":
        console.console().print(f"trainer.max_time: stopped at step {progress.step} of {trainer.steps}")
    seconds = max(progress.seconds, 1e-9)
    metrics = {"step": progress.step, "train_seconds": progress.seconds, "steps_per_second": progress.step / seconds}
    return fitted | metrics | ({"coupling_share": progress.coupling_seconds / seconds} if fitted else {})


def _say_cuts(flow: Flow) -> None:
    parametrization = getattr(getattr(flow, "field", None), "parametrization", None)
    if isinstance(parametrization, Raw) and parametrization.cuts:
        cut = " and ".join(parametrization.cuts)
        console.console().print(f"model.prediction={parametrization.prediction} is 0/0 at an end: cut to {cut}")


def _description(dataset: Dataset, choices: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, so that it can be opened without its data."""
    return {
        "event_shape": list(dataset.event_shape),
        "columns": None if dataset.columns is None else list(dataset.columns),
        "discrete": dataset.discrete,
        "bin_width": None if dataset.bin_width is None else dataset.bin_width.tolist(),
        "choices": dict(choices),
    }


@dataclass(frozen=True)
class _State:
    """Where a training goes on: at the last checkpoint, or at the beginning.

    Attributes:
        average: the averaged flow; None at the beginning.
        optimizer: its tensors by name.
        offsets: lengths of the logs in bytes.
        coupling: figures of the fit, None where there was none yet.
    """

    progress: Progress
    average: Flow | None
    optimizer: dict[str, torch.Tensor]
    offsets: dict[str, int]
    coupling: dict[str, Any] | None

    @classmethod
    def of(cls, config: Mapping[str, Any], flow: Flow, folder: Path) -> "_State":
        """Load the last checkpoint into the flow, if the run goes on and has one."""
        if config.get("resume") and processes.leads():
            RunFolder(folder).rewrite_config(_kept(config))
        if not config.get("resume") or pointed(folder / "checkpoints", "last") is None:
            return cls(Progress(), None, {}, {METRICS: 0, TIMINGS: 0}, None)
        checkpoint = find_checkpoint(folder, "last")
        average = copy.deepcopy(flow)
        average.load_state_dict(checkpoint.tensors("ema"))
        flow.load_state_dict(checkpoint.tensors("raw"))
        values, optimizer = checkpoint.state()
        progress = Progress.restore(values["training"])
        if processes.leads():
            RunFolder(folder).settle(_best(progress))
        return cls(progress, average, optimizer, values["offsets"], values["coupling"])


def _best(progress: Progress) -> int:
    """The step that `best` names; before a validation it is the last one."""
    return progress.step if progress.best_step is None else progress.best_step


class _Observer:
    """Writes the logs and checkpoints of a training, shows its progress, hears signals."""

    def __init__(
        self,
        folder: RunFolder,
        config: Mapping[str, Any],
        description: dict[str, Any],
        shown: console.TrainingProgress,
        listener: Listener,
        state: _State,
        fitted: Mapping[str, Any],
        feed: Feed,
    ) -> None:
        self._folder, self._config, self._description = folder, config, description
        self._shown, self._listener, self._fitted, self._feed = shown, listener, fitted, feed
        self._lines = {name: folder.lines(name, offset) for name, offset in state.offsets.items()}

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        self._lines[METRICS].append(record)
        self._lines[TIMINGS].append(timing)
        self._feed.logged(record, timing)
        self._shown.update(record)

    def checkpoint(self, progress: Progress, flow: Flow, average: Flow, optimizer: Mapping[str, torch.Tensor]) -> None:
        offsets = {name: lines.sync() for name, lines in self._lines.items()}
        self._folder.save_checkpoint(
            progress.step,
            weights={"raw": flow.state_dict(), "ema": average.state_dict()},
            config=_kept(self._config),
            description=self._description,
            progress={"training": vars(progress), "offsets": offsets, "coupling": self._fitted},
            optimizer=optimizer,
            best=_best(progress),
        )
        self._feed.settled()

    def told(self, text: str) -> None:
        console.console().print(text)

    def should_stop(self) -> bool:
        return bool(self._listener.received)

    def interruptible(self) -> AbstractContextManager[None]:
        # a process that leaves a step on its own would leave the others waiting for its share
        return self._listener.released() if processes.count() == 1 else nullcontext()

    def close(self) -> None:
        for lines in self._lines.values():
            lines.close()


class _Follower:
    """Of a process that does not lead: it writes and shows nothing."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        pass

    def checkpoint(self, progress: Progress, flow: Flow, average: Flow, optimizer: Mapping[str, torch.Tensor]) -> None:
        pass

    def told(self, text: str) -> None:
        pass

    def should_stop(self) -> bool:
        return bool(self._listener.received)

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        pass


def _save_untrained(folder: RunFolder, flow: Flow, config: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    weights = {"raw": flow.state_dict(), "ema": flow.state_dict()}
    progress = {"training": vars(Progress()), "offsets": {METRICS: 0, TIMINGS: 0}, "coupling": {}}
    folder.save_checkpoint(
        0, weights=weights, config=_kept(config), description=description, progress=progress, optimizer={}, best=0
    )


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("resume", "trust")}


# ---------------------------------------------------------------- evaluation
@torch.no_grad()
def _evaluate(
    config: Mapping[str, Any], dataset: Dataset, flow: Flow, folder: Path, own: Path, metrics: dict[str, Any]
) -> float | None:
    """Measure on the test split, draw, write the final figures and show them."""
    evaluation, seed = build.evaluation(config), build.seed(config)
    console.console().print("evaluating on the test split and drawing")
    found = evaluation(flow, dataset)
    if processes.leads():
        scoring.keep(find_checkpoint(folder, "best"), _kept(config), found, dataset)
    samples = found.samples
    for name, points in (("samples.npy", samples), (REFERENCE_FILE, dataset.points("test")[:REFERENCE_ROWS])):
        with replacing(own / name) as file:
            np.save(file, points.numpy())
    if evaluation.pictures:
        _draw(flow, dataset, samples, folder, own, seed=seed, batch_size=evaluation.batch_size)
    metrics = found.metrics | metrics
    RunFolder(own).finish(metrics)
    console.closing_table(console.metric_rows(metrics), f"test split, {len(dataset.test):,} rows")
    if "nll_missing" in metrics:
        console.console().print(f"no likelihood: {metrics['nll_missing']}")
    console.console().print(f"run  {console.shown(folder)}")
    nll = metrics.get("nll", math.nan)
    return float(nll) if math.isfinite(nll) else None


def _draw(
    flow: Flow, dataset: Dataset, samples: torch.Tensor, folder: Path, own: Path, *, seed: int, batch_size: int
) -> None:
    """The pictures of a run."""
    data = dataset.points("test")
    pictures.samples(samples, data, dataset.columns, own / "samples.png")
    pictures.trajectories(flow, data, dataset.columns, own / "trajectories.png", seed=seed)
    if dataset.event_shape == (2,) and flow.no_likelihood is None:
        pictures.density(flow, dataset, own / "density.png", batch_size=batch_size)
    if processes.leads() and (folder / METRICS).is_file():
        pictures.loss(folder / METRICS, own / "loss.png")
