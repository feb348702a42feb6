"""The one training loop: no config, no terminal, no plotting.

Everything random is a function of (seed, stream, step), so a step can be repeated by anyone who knows its number.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from flowcli.bases import Base
from flowcli.couplings import Coupling
from flowcli.dataset import Batch
from flowcli.errors import JobError, UserError, boolean, choice, integer, number
from flowcli.flows.fields import LearnedField
from flowcli.objectives import Objective
from flowcli.randomness import generator

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
VALIDATION_ROWS = 100_000
"""Pairs behind a validation loss: the scatter of its noise must stay below what late training still gains."""
VALIDATION_CHUNK = 16_384


@dataclass(frozen=True)
class TrainingData:
    """What the loop reads, in model units, on the device that it runs on.

    Attributes:
        train: (N, ...).
        validation: (M, ...), dequantised.
        jitter: width of the uniform noise that undoes rounding, of the event's shape, or None.
        condition: one row an event, or None.
    """

    train: Tensor
    validation: Tensor
    jitter: Tensor | None = None
    condition: Tensor | None = None


class Observer(Protocol):
    """Who is told how the training goes, and who may stop it."""

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """A line for metrics.jsonl and one for timings.jsonl."""
        ...

    def checkpoint(self, progress: "Progress", model: LearnedField, average: LearnedField, *, best: bool) -> None:
        """Keep this state."""
        ...

    def should_stop(self) -> bool:
        """Asked before every step."""
        ...


@dataclass
class Progress:
    """All that a resumed training needs besides the two sets of weights: plain values and tensors."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    loss_sum: float = 0.0
    loss_count: int = 0
    averaged: int = 0
    optimizer: dict[str, Any] = field(default_factory=dict)


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
        self.lr = number("lr", lr, above=0)
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
        self.threads = "auto" if threads == "auto" else integer("threads", threads, minimum=1)
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
        model: LearnedField,
        objective: Objective,
        coupling: Coupling,
        base: Base,
        data: TrainingData,
        *,
        seed: int,
        observer: Observer,
        progress: Progress | None = None,
        average: LearnedField | None = None,
    ) -> tuple[LearnedField, str]:
        """Train the model in place; return the averaged model and why it ended: done, max_time or stopped.

        progress and average: of an earlier checkpoint, whose raw weights the model holds already.

        Raises:
            JobError: the loss or its gradient is not finite; the weights were not touched by that step.
        """
        torch.use_deterministic_algorithms(self.deterministic)
        objective.prepare(model)
        progress = Progress() if progress is None else progress
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = OPTIMIZERS[self.optimizer](parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        if progress.optimizer:
            optimizer.load_state_dict(progress.optimizer)
        ema = AveragedModel(model if average is None else average, multi_avg_fn=self._average)
        ema.n_averaged.fill_(progress.averaged)
        batches = _Batches(data, base, coupling, self.batch_size, seed)
        diary = _Diary(observer, progress, model, ema, optimizer)
        saved = progress.step  # of the last checkpoint; 0 before there is one
        earlier, began, ending = progress.seconds, time.perf_counter(), "done"

        while progress.step < self.steps:
            if observer.should_stop():
                ending = "stopped"
                break
            if self.max_time is not None and progress.seconds >= self.max_time:
                ending = "max_time"
                break
            step = progress.step
            x_0, batch, draws = batches(step)
            u = objective.times(self.batch_size, draws).to(x_0)
            loss = objective(model, x_0, batch.x, u, batch.condition).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = self._clip(parameters)
            if not math.isfinite(norm):
                raise JobError(self._advice(step, float(loss.detach()), norm, batch.x, saved))
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
            optimizer.step()
            ema.update_parameters(model)

            progress.step = step + 1
            progress.loss_sum += float(loss.detach())
            progress.loss_count += 1
            progress.seconds = earlier + time.perf_counter() - began
            last, best = progress.step == self.steps, False
            if last or progress.step % self.log_every == 0:
                diary.log_loss(self.learning_rate(step), norm)
            if last or progress.step % self.validate_every == 0:
                best = diary.validate(validation_loss(_averaged(ema), objective, base, data, seed=seed))
            if last or best or progress.step % self.checkpoint_every == 0:
                diary.save(best=best)
                saved = progress.step

        if ending != "done":  # a finished training has just saved its last step
            diary.save(best=not math.isfinite(progress.best_loss))
        return _averaged(ema), ending

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        # a growing memory: a fixed 0.999 would still hold the initial weights after 1,000 steps
        n = int(count)
        decay = min(self.ema_decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def _clip(self, parameters: list[torch.nn.Parameter]) -> float:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return float(norm)

    def _advice(self, step: int, loss: float, norm: float, x: Tensor, saved: int) -> str:
        kept = f"the checkpoint of step {saved} is unharmed" if saved else "there is no checkpoint yet"
        clip = "" if self.grad_clip is not None else ", trainer.grad_clip=1"
        return (
            f"step {step}: loss {loss:g}, gradient norm {norm:g} (batch in model units: mean {float(x.mean()):.3g}, "
            f"largest {float(x.abs().max()):.3g}); {kept}; try a smaller trainer.lr{clip}"
        )


def _averaged(ema: AveragedModel) -> LearnedField:
    assert isinstance(ema.module, LearnedField)
    return ema.module


@dataclass(frozen=True)
class _Diary:
    """Tells the observer what happened, and keeps the progress that a resumed training starts from."""

    observer: Observer
    progress: Progress
    model: LearnedField
    ema: AveragedModel
    optimizer: torch.optim.Optimizer

    def log_loss(self, lr: float, norm: float) -> None:
        """Mean loss since the last time."""
        progress = self.progress
        self._log({"loss": progress.loss_sum / progress.loss_count, "lr": lr, "grad_norm": norm})
        progress.loss_sum, progress.loss_count = 0.0, 0

    def validate(self, loss: float) -> bool:
        """Note a validation loss; is it the lowest so far?"""
        if not math.isfinite(loss):
            raise JobError(f"the validation loss is {loss} at step {self.progress.step}; try a smaller trainer.lr")
        best = loss < self.progress.best_loss
        self.progress.best_loss = min(loss, self.progress.best_loss)
        self._log({"validation_loss": loss})
        return best

    def save(self, *, best: bool) -> None:
        """Hand over all that a resumed training needs."""
        self.progress.optimizer, self.progress.averaged = self.optimizer.state_dict(), int(self.ema.n_averaged)
        self.observer.checkpoint(self.progress, self.model, _averaged(self.ema), best=best)

    def _log(self, record: dict[str, Any]) -> None:
        step, seconds = self.progress.step, round(self.progress.seconds, 3)
        self.observer.logged({"step": step, **record}, {"step": step, "seconds": seconds})


class _Batches:
    """Batch number `step`: shuffled passes over the data, fresh noise, the coupling's pairs."""

    def __init__(self, data: TrainingData, base: Base, coupling: Coupling, batch_size: int, seed: int) -> None:
        self._data, self._base, self._coupling = data, base, coupling
        self._size, self._seed = batch_size, seed
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.long))

    def __call__(self, step: int) -> tuple[Tensor, Batch, torch.Generator]:
        """Noise (B, ...), the batch, and the generator for what the step still draws."""
        train = self._data.train
        index = self._rows(step * self._size, (step + 1) * self._size).to(train.device)
        draws = generator(self._seed, "batch", step)
        x_1 = train[index]
        if self._data.jitter is not None:
            x_1 = x_1 + self._data.jitter * torch.rand(x_1.shape, generator=draws).to(x_1)
        x_0 = self._coupling(self._base.sample(self._size, draws).to(x_1), x_1, draws)
        condition = None if self._data.condition is None else self._data.condition[index]
        return x_0, Batch(x_1, condition), draws

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


def validation_loss(model: LearnedField, objective: Objective, base: Base, data: TrainingData, *, seed: int) -> float:
    """Mean loss over repeats of the validation split, always with the same noise and times."""
    draws = generator(seed, "validation")
    x_1 = data.validation.repeat(math.ceil(VALIDATION_ROWS / len(data.validation)), *[1] * (data.validation.dim() - 1))
    x_0, u = base.sample(len(x_1), draws).to(x_1), objective.times(len(x_1), draws).to(x_1)
    with torch.no_grad():
        losses = [
            objective(model, noise, events, times, None)
            for noise, events, times in zip(*(tensor.split(VALIDATION_CHUNK) for tensor in (x_0, x_1, u)), strict=True)
        ]
    return float(torch.cat(losses).double().mean())
