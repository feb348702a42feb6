"""The one training loop: no config, no terminal, no plotting.

Everything random is a function of (seed, stream, step), so a step can be repeated by anyone who knows its number.
"""

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowcli import processes, threads
from flowcli.compiling import NotCompiled, missing
from flowcli.dataset import TrainingData
from flowcli.ends import Ends
from flowcli.errors import Interrupted, JobError, UserError, boolean, boolean_or_auto, choice, integer, number
from flowcli.flows.base import Flow
from flowcli.flows.continuous import Graphs
from flowcli.objectives import Objective
from flowcli.training.ahead import ahead, available, suggested
from flowcli.training.batches import Batches
from flowcli.training.fused import FusedSteps, has_kernel
from flowcli.training.step import CompiledSteps, Step
from flowcli.training.validation import Validation

OPTIMIZERS = ("adam", "adamw")
GROUP_STEPS, GROUP_SECONDS = 5, 1e-3
"""Steps shorter than this are compiled so many at a time: a call of a graph costs a twentieth of a millisecond."""
COMPILE_SECONDS, COMPILE_LAYER_SECONDS = 8.0, 2.0
"""What compiling a step costs at least, and for each layer: as much as a training has to gain by it."""


class Observer(Protocol):
    """Who is told how the training goes, and who may stop it."""

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """A line for metrics.jsonl and one for timings.jsonl."""
        ...

    def checkpoint(self, progress: "Progress", flow: Flow, average: Flow, optimizer: Mapping[str, Tensor]) -> None:
        """Keep this state."""
        ...

    def told(self, text: str) -> None:
        """A sentence for the user."""
        ...

    def should_stop(self) -> bool:
        """Asked before every step."""
        ...

    def interruptible(self) -> AbstractContextManager[None]:
        """In here nothing is half done: the observer may raise `Interrupted` where it wants the training to stop."""
        ...


@dataclass
class Progress:
    """All that a resumed training needs besides tensors: plain values that JSON keeps to the last bit.

    Attributes:
        step: steps done.
        noted: of these, the last one that was logged, validated and saved as its number demands.
        seconds, coupling_seconds: spent so far; of these, solving plans or waiting for workers that do.
        best_loss, best_step: lowest validation loss and its step; None before there is one.
        loss_sum, loss_count: of the steps since the last line of the log.
        grad_norm: of the last step.
        averaged: steps behind the averaged weights.
        threads, compiled, kernel (0 or 1): as at the first start; another choice may round differently.
    """

    step: int = 0
    noted: int = 0
    seconds: float = 0.0
    coupling_seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    loss_sum: float = 0.0
    loss_count: int = 0
    grad_norm: float = 0.0
    averaged: int = 0
    threads: int = 0
    compiled: int = 0
    kernel: int = 0

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> "Progress":
        """What `vars` gave.

        Raises:
            UserError: it did not.
        """
        progress, whole = (
            cls(),
            {"step", "noted", "best_step", "loss_count", "averaged", "threads", "compiled", "kernel"},
        )
        for name, value in values.items():
            fits = value is None and name in ("best_loss", "best_step")
            if not isinstance(value, bool) and isinstance(value, int if name in whole else int | float):
                fits = math.isfinite(value) and (name not in whole or value >= 0)
            if name not in vars(progress) or not fits:
                raise UserError(f"the checkpoint's progress is damaged: {name} is {value!r:.40}")
            setattr(progress, name, value)
        return progress


class Trainer:
    """Steps, optimizer and rhythm of a training."""

    def __init__(
        self,
        steps: int,
        batch_size: int,
        lr: float,
        optimizer: str,
        weight_decay: float,
        warmup: int,
        schedule: str,
        grad_clip: float | None,
        ema_decay: float,
        log_every: int,
        validate_every: int,
        checkpoint_every: int,
        max_time: float | None,
        threads: int | str,
        workers: int | str,
        compile: bool | str,
        deterministic: bool,
    ) -> None:
        """Check the settings.

        Args:
            steps: optimizer steps in all.
            batch_size: events a step, over all processes.
            lr: the learning rate after warm-up.
            optimizer: adam or adamw.
            weight_decay: of adamw; adam takes 0 alone.
            warmup: steps of linear warm-up.
            schedule: cosine (to 0 at the last step) or constant.
            grad_clip: largest gradient norm, or null.
            ema_decay: of the averaged weights, which are the ones used; 0 uses the last ones.
            log_every, validate_every, checkpoint_every: in steps.
            max_time: seconds of training after which it stops in good order, or null.
            threads: a number, or auto: one for small networks, which two make slower, all cores for large ones.
            workers: processes that prepare batches ahead; auto: as many as cores where batches have plans to solve.
            compile: whether a step is compiled as one graph: true; false; or auto, where the training is long enough
                to gain more than the compiler costs, and there is one.
            deterministic: refuse operations that may differ from run to run (they matter on a GPU).
        """
        self.steps = integer("steps", steps, minimum=1)
        self.batch_size = integer("batch_size", batch_size, minimum=1, maximum=1 << 24)
        self.lr = number("lr", lr, above=0, maximum=1e30)
        self.optimizer = choice("optimizer", optimizer, OPTIMIZERS)
        self.weight_decay = number("weight_decay", weight_decay, minimum=0)
        if self.weight_decay and self.optimizer == "adam":
            raise UserError(f"weight_decay={weight_decay} needs optimizer=adamw, which decouples it from the gradient")
        self.warmup = integer("warmup", warmup, minimum=0)
        self.schedule = choice("schedule", schedule, ("cosine", "constant"))
        self.grad_clip = None if grad_clip is None else number("grad_clip", grad_clip, above=0)
        self.ema_decay = number("ema_decay", ema_decay, minimum=0, below=1)
        self.log_every = integer("log_every", log_every, minimum=1)
        self.validate_every = integer("validate_every", validate_every, minimum=1)
        self.checkpoint_every = integer("checkpoint_every", checkpoint_every, minimum=1)
        self.max_time = None if max_time is None else number("max_time", max_time, above=0)
        if threads != "auto" and not isinstance(threads, int):
            raise UserError(f"threads must be auto or a whole number >= 1, got {threads!r}")
        self.threads = "auto" if threads == "auto" else integer("threads", threads, minimum=1, maximum=1024)
        if workers != "auto" and not isinstance(workers, int):
            raise UserError(f"workers must be auto or a whole number >= 0, got {workers!r}")
        self.workers = "auto" if workers == "auto" else integer("workers", workers, minimum=0, maximum=1024)
        self.compile = boolean_or_auto("compile", compile)
        self.deterministic = boolean("deterministic", deterministic)

    def choose_threads(self, parameters: int, *, kernel: bool) -> int:
        """How many threads a training of this many parameters should use; kernel: whether one computes its steps."""
        if self.threads != "auto":
            return int(self.threads)
        # below this the threads' hand-over costs more
        return 1 if self._operations(parameters) < (2e8 if kernel else 1e9) else torch.get_num_threads()

    def choose_compiled(self, flow: Flow, objective: Objective) -> bool:
        """Whether to compile: a function of the settings alone, because both forms round differently."""
        if self.compile != "auto":
            return bool(self.compile)
        if has_kernel(flow) or self._uncompilable(flow.device, objective) is not None:
            return False
        # what is saved of a step: the calls between operations, and the passes over each layer's outputs
        layers = [layer.out_features for layer in flow.modules() if isinstance(layer, nn.Linear)]
        saved = 1e-2 if objective.solves else 4e-4 + 2e-9 * self.batch_size * sum(layers)
        cost = COMPILE_SECONDS + COMPILE_LAYER_SECONDS * len(layers)
        # a part of a training that is stopped after a while would compile anew each time
        return self.steps * saved > cost and (self.max_time is None or self.max_time > 10 * cost)

    def require_compilable(self, device: torch.device, objective: Objective | None) -> None:
        """Refuse compile=true where it cannot be.

        Raises:
            UserError: there is no compiler, there are several processes, or the objective has nothing to compile.
        """
        reason = None if self.compile is not True else self._uncompilable(device, objective)
        if reason is not None:
            raise UserError(f"trainer.compile=true: {reason}; say trainer.compile=auto")

    def _uncompilable(self, device: torch.device, objective: Objective | None) -> str | None:
        """Why a step cannot be compiled, if it cannot."""
        if processes.started():
            return "several processes share a step"
        return missing(device) or (None if objective is None else objective.plain)

    def choose_workers(self, ends: Ends | None, device: torch.device) -> int:
        """How many processes prepare batches ahead; the batches are the same whatever it is."""
        if self.workers != "auto":
            return int(self.workers)
        solves = ends is not None and ends.coupling.solves
        return suggested() if solves and available(device) else 0

    def require_workers(self, device: torch.device) -> None:
        """Refuse workers where they cannot be.

        Raises:
            UserError: the machine forks no processes, or the device is none that they share.
        """
        if self.workers not in ("auto", 0) and not available(device):
            raise UserError(f"trainer.workers={self.workers} needs Linux and device=cpu; say trainer.workers=auto")

    def _operations(self, parameters: int) -> float:
        # forward and backward take about 6 a parameter and row
        return 6.0 * parameters * self.batch_size

    def learning_rate(self, step: int) -> float:
        """The rate of a step: a function of its number alone, so nothing of it need be saved."""
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        return rate * (1 + math.cos(math.pi * step / self.steps)) / 2 if self.schedule == "cosine" else rate

    # ------------------------------------------------------------ the loop
    def fit(
        self,
        flow: Flow,
        objective: Objective,
        ends: Ends | None,
        data: TrainingData,
        *,
        seed: int,
        observer: Observer,
        progress: Progress | None = None,
        average: Flow | None = None,
        optimizer: Mapping[str, Tensor] | None = None,
    ) -> tuple[Flow, str]:
        """Train the flow in place; return the averaged one and why it ended: done, max_time or stopped.

        ends: the base and the coupling, for objectives that have pairs.
        progress, average and optimizer: of an earlier checkpoint, whose raw weights the flow holds already; a new
        training says in progress.compiled what `choose_compiled` gave.

        Raises:
            UserError: the objective does not fit the flow.
            JobError: the loss, its gradient or the weights are not finite; the last checkpoint was taken before that.
        """
        if self.batch_size < processes.count():
            raise UserError(f"trainer.batch_size={self.batch_size} leaves some of {processes.count()} processes no row")
        objective.prepare(flow, data, ends)
        resumed = average is not None
        progress = Progress() if progress is None else progress
        average = (copy.deepcopy(flow) if average is None else average).requires_grad_(False)
        taking = Step(flow, average, objective, weight_decay=self.weight_decay, grad_clip=self.grad_clip)
        if optimizer:
            taking.adam.restore(optimizer)
        batches, validation = Batches(flow, objective, data, self.batch_size, seed), Validation(objective, data, seed)
        diary = _Diary(observer, progress, flow, average, taking, saved=progress.step if resumed else None)
        earlier, began, ending = progress.seconds, time.perf_counter(), "done"
        coupled_earlier = progress.coupling_seconds - objective.coupling_seconds

        workers = self.choose_workers(ends, flow.device)
        with _deterministic(self.deterministic), ahead(batches, progress.step, self.steps, workers):
            try:
                with observer.interruptible():
                    group = self._group(taking, batches, flow, objective, observer, progress)
                while True:
                    self._note(diary, validation)
                    if progress.step >= self.steps:
                        break
                    late = self.max_time is not None and progress.seconds >= self.max_time
                    stop, late = processes.anywhere([observer.should_stop(), late])
                    if stop or late:
                        ending = "stopped" if stop else "max_time"
                        break
                    count = 0 if group is None else group.next(progress.step, self.steps)
                    if group is not None and count:
                        losses, norms = self._grouped(group, count, taking, batches, diary)
                    else:
                        losses, norms = self._single(taking, batches, diary)
                    progress.step += len(losses)
                    progress.averaged += len(losses)
                    progress.loss_sum = sum(losses, progress.loss_sum)
                    progress.loss_count += len(losses)
                    progress.grad_norm = norms[-1]
                    progress.seconds = earlier + time.perf_counter() - began
                    progress.coupling_seconds = coupled_earlier + objective.coupling_seconds + batches.waited
            except Interrupted:
                ending = "stopped"
            finally:
                objective.graphs = None  # they hold this flow
        if diary.saved != progress.step:
            diary.save()
        return average, ending

    # ------------------------------------------------------------ steps, one or several at a time
    def _group(
        self, taking: Step, batches: Batches, flow: Flow, objective: Objective, observer: Observer, progress: Progress
    ) -> CompiledSteps | FusedSteps | None:
        """The compiled or the fused steps, if this training has them; None if it has not, or has them no more.

        What is noted is noted between groups: every rhythm is a multiple of theirs.

        Raises:
            JobError: a new training asked for compiled ones and they cannot be made.
        """
        # about 1e11 operations a second
        short = self._operations(flow.trainable_parameters()) < GROUP_SECONDS * 1e11
        rhythms = (batches.steps, self.log_every, self.validate_every, self.checkpoint_every)
        steps = GROUP_STEPS if short and not any(every % GROUP_STEPS for every in rhythms) else 1
        if not progress.compiled:
            return taking.fused(self.batch_size, steps)
        if progress.step >= self.steps:
            return None
        observer.told("compiling the training step")
        try:
            reason = self._uncompilable(flow.device, objective)
            if reason is not None:
                raise NotCompiled(reason)
            with _unchanged(flow):
                if objective.solves:  # a graph of the whole loop would take minutes: its slopes are graphs
                    objective.graphs = Graphs()
                    taking.gradient(batches(progress.step))
                    return None
                return taking.compile(batches(progress.step // steps * steps, steps), steps)
        except NotCompiled as error:
            objective.graphs = None
            if self.compile is True and progress.step == 0:
                raise JobError(f"trainer.compile=true: the step does not compile: {error}") from error
            observer.told(f"the training step does not compile ({error}); it goes on plain, and rounds differently")
            return None

    def _single(self, taking: Step, batches: Batches, diary: "_Diary") -> tuple[list[float], list[float]]:
        """Take one step; its loss and gradient norm.

        Raises:
            JobError: the gradient is not finite; no weight has been touched.
        """
        step = diary.progress.step
        with diary.observer.interruptible():
            inputs = batches(step)
            gradient = taking.gradient(inputs)
            loss, norm = float(gradient.loss), float(gradient.norm)
        if not math.isfinite(norm):
            raise JobError(self._advice(step, loss, norm, inputs.x, diary.saved))
        taking.apply(gradient, taking.rates(step, self.learning_rate(step), self._memory(diary.progress.averaged)))
        return [loss], [norm]

    def _grouped(
        self, group: CompiledSteps | FusedSteps, count: int, taking: Step, batches: Batches, diary: "_Diary"
    ) -> tuple[list[float], list[float]]:
        """Take so many steps; their losses and gradient norms.

        Raises:
            JobError: a gradient is not finite; the last checkpoint was taken before that.
        """
        first, averaged = diary.progress.step, diary.progress.averaged
        rates = [
            taking.rates(first + i, self.learning_rate(first + i), self._memory(averaged + i)) for i in range(count)
        ]
        with threads.using(group.threads):
            with diary.observer.interruptible():
                inputs = batches(first, count)
            losses, norms = group(inputs, rates)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not math.isfinite(norm):
                raise JobError(self._advice(first + i, loss, norm, batches(first + i).x, diary.saved))
        return losses, norms

    def _memory(self, averaged: int) -> float:
        """The part of the averaged weights that is kept, after so many of them."""
        # a growing memory: a fixed 0.999 would still hold the initial weights after 1,000 steps
        return min(self.ema_decay, (1 + averaged) / (10 + averaged)) if averaged else 0.0

    def _note(self, diary: "_Diary", validation: "Validation") -> None:
        """Log, validate and save what the last step's number demands; before that is done the step is not noted."""
        progress = diary.progress
        step, last = progress.step, progress.step == self.steps
        if progress.noted == step:
            return
        loss = None
        if last or step % self.validate_every == 0:
            with diary.observer.interruptible():
                loss = validation(diary.average)
        if last or step % self.log_every == 0:
            diary.log_loss(self.learning_rate(step - 1))
        best = loss is not None and diary.validate(loss)
        progress.noted = step
        if last or best or step % self.checkpoint_every == 0:
            diary.save()

    def _advice(self, step: int, loss: float, norm: float, x: Tensor, saved: int | None) -> str:
        kept = f"the checkpoint of step {saved} is unharmed" if saved is not None else "there is no checkpoint yet"
        clip = "" if self.grad_clip is not None else ", trainer.grad_clip=1"
        seen = f"mean {float(x.mean()):.3g}, largest {float(x.abs().max()):.3g}"
        return (
            f"step {step}: loss {loss:g}, gradient norm {norm:g} (the batch as the network sees it: {seen}); {kept}; "
            f"try a smaller trainer.lr{clip}"
        )


@dataclass
class _Diary:
    """Tells the observer what happened, and keeps the progress that a resumed training starts from.

    Attributes:
        saved: step of the last checkpoint, None before there is one.
    """

    observer: Observer
    progress: Progress
    flow: Flow
    average: Flow
    taking: Step
    saved: int | None

    def log_loss(self, lr: float) -> None:
        """Mean loss since the last time."""
        progress = self._together()
        self._log({"loss": progress.loss_sum / progress.loss_count, "lr": lr, "grad_norm": progress.grad_norm})
        progress.loss_sum, progress.loss_count = 0.0, 0

    def validate(self, loss: float) -> bool:
        """Note a validation loss; is it the lowest so far?

        Raises:
            JobError: it is not finite.
        """
        progress = self.progress
        if not math.isfinite(loss):
            raise JobError(f"the validation loss is {loss} at step {progress.step}; try a smaller trainer.lr")
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
        self._log({"validation_loss": loss})
        return best

    def save(self) -> None:
        """Hand over all that a resumed training needs.

        Raises:
            JobError: the weights are not finite: the last good checkpoint stays.
        """
        step = self._together().step
        if not all(bool(torch.isfinite(p).all()) for p in self.flow.parameters()):
            raise JobError(f"step {step}: the weights are not finite; try a smaller trainer.lr")
        self.observer.checkpoint(self.progress, self.flow, self.average, self.taking.adam.tensors(step))
        self.saved = step

    def _together(self) -> Progress:
        """The progress with the mean over the processes of what each has summed up on its own."""
        (summed,) = processes.total([self.progress.loss_sum])
        self.progress.loss_sum = summed / processes.count()
        return self.progress

    def _log(self, record: dict[str, Any]) -> None:
        step, seconds = self.progress.step, round(self.progress.seconds, 3)
        self.observer.logged({"step": step, **record}, {"step": step, "seconds": seconds})


@contextmanager
def _unchanged(flow: Flow) -> Iterator[None]:
    """A network's own memory (a BatchNorm's means) is in the end what it was: trials leave nothing behind."""
    kept = [(buffer, buffer.clone()) for buffer in flow.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Refuse operations that may differ from run to run, in here alone."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for, before its first call
    earlier = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(earlier)
