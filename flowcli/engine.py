"""The one training loop: no config, no terminal, no plotting.

Everything random is a function of (seed, stream, step), so a step can be repeated by anyone who knows its number.
"""

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowcli import processes
from flowcli.dataset import Batch, TrainingData
from flowcli.ends import Ends
from flowcli.errors import Interrupted, JobError, UserError, boolean, choice, integer, number
from flowcli.flows.base import Flow
from flowcli.objectives import Example, Objective
from flowcli.randomness import generator

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
VALIDATION_CHUNK = 16_384


class Observer(Protocol):
    """Who is told how the training goes, and who may stop it."""

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """A line for metrics.jsonl and one for timings.jsonl."""
        ...

    def checkpoint(self, progress: "Progress", flow: Flow, average: Flow, optimizer: Mapping[str, Tensor]) -> None:
        """Keep this state."""
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
        seconds, coupling_seconds: spent so far.
        best_loss, best_step: lowest validation loss and its step; None before there is one.
        loss_sum, loss_count: of the steps since the last line of the log.
        grad_norm: of the last step.
        averaged: steps behind the averaged weights.
        threads: as chosen at the first start; another number may round differently.
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

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> "Progress":
        """What `vars` gave.

        Raises:
            UserError: it did not.
        """
        progress, whole = cls(), {"step", "noted", "best_step", "loss_count", "averaged", "threads"}
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
        self.deterministic = boolean("deterministic", deterministic)

    def choose_threads(self, parameters: int) -> int:
        """How many threads a training of this many parameters should use."""
        if self.threads != "auto":
            return int(self.threads)
        # forward and backward take about 6 operations a parameter and row; below this the threads' hand-over costs more
        return 1 if 6 * parameters * self.batch_size < 1e9 else torch.get_num_threads()

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
        progress, average and optimizer: of an earlier checkpoint, whose raw weights the flow holds already.

        Raises:
            UserError: the objective does not fit the flow.
            JobError: the loss, its gradient or the weights are not finite; the last checkpoint was taken before that.
        """
        if self.batch_size < processes.count():
            raise UserError(f"trainer.batch_size={self.batch_size} leaves some of {processes.count()} processes no row")
        objective.prepare(flow, data, ends)
        resumed = average is not None
        progress = Progress() if progress is None else progress
        parameters = [p for p in flow.parameters() if p.requires_grad]
        adam = OPTIMIZERS[self.optimizer](parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        if optimizer:
            _restore(adam, optimizer)
        mean_loss = processes.averaging(_MeanLoss(flow, objective))
        average = (copy.deepcopy(flow) if average is None else average).requires_grad_(False)
        averaged: list[Tensor] = [
            a for a, p in zip(average.parameters(), flow.parameters(), strict=True) if p.requires_grad
        ]
        batches, validation = _Batches(data, self.batch_size, seed), _Validation(objective, data, seed)
        diary = _Diary(observer, progress, flow, average, adam, saved=progress.step if resumed else None)
        earlier, began, ending = progress.seconds, time.perf_counter(), "done"
        coupled_earlier = progress.coupling_seconds - objective.coupling_seconds

        with _deterministic(self.deterministic):
            try:
                while True:
                    self._note(diary, validation)
                    if progress.step >= self.steps:
                        break
                    late = self.max_time is not None and progress.seconds >= self.max_time
                    stop, late = processes.anywhere([observer.should_stop(), late])
                    if stop or late:
                        ending = "stopped" if stop else "max_time"
                        break
                    step = progress.step
                    with observer.interruptible():
                        batch, draws = batches(step)
                        loss = mean_loss(objective.draw(flow, batch.x, batch.condition, draws))
                        adam.zero_grad(set_to_none=True)
                        loss.backward()
                        norm = self._clip(parameters)
                    if not math.isfinite(norm):
                        raise JobError(self._advice(step, float(loss.detach()), norm, batch.x, diary.saved))
                    for group in adam.param_groups:
                        group["lr"] = self.learning_rate(step)
                    adam.step()
                    self._average(averaged, parameters, progress)

                    progress.step = step + 1
                    progress.loss_sum += float(loss.detach())
                    progress.loss_count += 1
                    progress.grad_norm = norm
                    progress.seconds = earlier + time.perf_counter() - began
                    progress.coupling_seconds = coupled_earlier + objective.coupling_seconds
            except Interrupted:
                ending = "stopped"
        if diary.saved != progress.step:
            diary.save()
        return average, ending

    def _note(self, diary: "_Diary", validation: "_Validation") -> None:
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

    def _average(self, averaged: list[Tensor], current: Sequence[Tensor], progress: Progress) -> None:
        # a growing memory: a fixed 0.999 would still hold the initial weights after 1,000 steps
        n = progress.averaged
        decay = min(self.ema_decay, (1 + n) / (10 + n)) if n else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(averaged, list(current), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        progress.averaged = n + 1

    def _clip(self, parameters: list[torch.nn.Parameter]) -> float:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return float(norm)

    def _advice(self, step: int, loss: float, norm: float, x: Tensor, saved: int | None) -> str:
        kept = f"the checkpoint of step {saved} is unharmed" if saved is not None else "there is no checkpoint yet"
        clip = "" if self.grad_clip is not None else ", trainer.grad_clip=1"
        return (
            f"step {step}: loss {loss:g}, gradient norm {norm:g} (batch in model units: mean {float(x.mean()):.3g}, "
            f"largest {float(x.abs().max()):.3g}); {kept}; try a smaller trainer.lr{clip}"
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
    optimizer: torch.optim.Optimizer
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
        self.observer.checkpoint(self.progress, self.flow, self.average, _tensors(self.optimizer))
        self.saved = step

    def _together(self) -> Progress:
        """The progress with the mean over the processes of what each has summed up on its own."""
        (summed,) = processes.total([self.progress.loss_sum])
        self.progress.loss_sum = summed / processes.count()
        return self.progress

    def _log(self, record: dict[str, Any]) -> None:
        step, seconds = self.progress.step, round(self.progress.seconds, 3)
        self.observer.logged({"step": step, **record}, {"step": step, "seconds": seconds})


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory as named tensors: number of the parameter, dot, name."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `_tensors`.

    Raises:
        UserError: they are another optimizer's, or another network's.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        states.setdefault(int(number) if number.isdecimal() else -1, {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fit = states.keys() == set(range(len(parameters))) and all(
        state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        and state["step"].shape == ()
        and state["exp_avg"].shape == state["exp_avg_sq"].shape == parameters[number].shape
        for number, state in states.items()
    )
    if not fit:
        raise UserError("the checkpoint's optimizer does not belong to this model")
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


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


class _MeanLoss(nn.Module):
    """A batch's mean loss, of which each process computes its share: their mean is that of the whole batch."""

    def __init__(self, flow: Flow, objective: Objective) -> None:
        super().__init__()
        self.flow, self._objective = flow, objective

    def forward(self, example: Example) -> Tensor:
        """Of the batch's rows; only this process's are computed."""
        if processes.count() == 1:
            return self._objective(self.flow, example).mean()
        rows = len(example.x_1)
        loss = self._objective(self.flow, example.part(processes.part(rows)))
        return loss.mean() * (len(loss) * processes.count() / rows)


class _Batches:
    """Batch number `step` of shuffled passes over the data."""

    def __init__(self, data: TrainingData, batch_size: int, seed: int) -> None:
        self._data, self._size, self._seed = data, batch_size, seed
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.long))

    def __call__(self, step: int) -> tuple[Batch, torch.Generator]:
        """The batch, and the generator for what the step still draws."""
        train = self._data.train
        index = self._rows(step * self._size, (step + 1) * self._size).to(train.device)
        draws = generator(self._seed, "batch", step)
        x_1 = train[index]
        if self._data.jitter is not None:
            x_1 = x_1 + self._data.jitter * torch.rand(x_1.shape, generator=draws).to(x_1)
        condition = None if self._data.condition is None else self._data.condition[index]
        return Batch(x_1, condition), draws

    def _rows(self, start: int, stop: int) -> Tensor:
        """Positions start .. stop of the endless sequence of shuffled passes."""
        count, parts = len(self._data.train), []
        while start < stop:
            epoch, offset = divmod(start, count)
            if self._epoch[0] != epoch:
                self._epoch = (epoch, torch.randperm(count, generator=generator(self._seed, "order", epoch)))
            parts.append(self._epoch[1][offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)


class _Validation:
    """Mean loss over the validation split, or repeats of it, always with the same noise and times."""

    def __init__(self, objective: Objective, data: TrainingData, seed: int) -> None:
        self._objective, self._data, self._seed = objective, data, seed
        self._examples: list[Example] = []

    def __call__(self, flow: Flow) -> float:
        if not self._examples:
            x_1 = self._data.validation
            count = self._objective.validation_rows(len(x_1))
            x_1 = x_1.repeat(math.ceil(count / len(x_1)), *[1] * (x_1.dim() - 1))
            x_1 = x_1 if count >= len(self._data.validation) else x_1[:count]
            draws = generator(self._seed, "validation")
            example = self._objective.draw(flow, x_1, None, draws)
            self._examples = example.part(processes.part(len(example.x_1))).split(VALIDATION_CHUNK)
        with torch.no_grad():
            losses = [self._objective.held_out(flow, example).double() for example in self._examples]
        summed, rows = processes.total([sum(float(loss.sum()) for loss in losses), sum(map(len, losses))])
        return summed / rows
