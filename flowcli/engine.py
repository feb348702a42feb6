"""The one training loop: no config, no terminal, no plotting.

Everything random is a function of (seed, stream, step), so a step can be repeated by anyone who knows its number.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from flowcli.dataset import Batch, TrainingData
from flowcli.ends import Ends
from flowcli.errors import JobError, UserError, boolean, choice, integer, number
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

    def checkpoint(self, progress: "Progress", flow: Flow, average: Flow, *, best: bool) -> None:
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
    coupling_seconds: float = 0.0
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
        flow: Flow,
        objective: Objective,
        ends: Ends | None,
        data: TrainingData,
        *,
        seed: int,
        observer: Observer,
        progress: Progress | None = None,
        average: Flow | None = None,
    ) -> tuple[Flow, str]:
        """Train the flow in place; return the averaged one and why it ended: done, max_time or stopped.

        ends: the base and the coupling, for objectives that have pairs.
        progress and average: of an earlier checkpoint, whose raw weights the flow holds already.

        Raises:
            UserError: the objective does not fit the flow.
            JobError: the loss or its gradient is not finite; the weights were not touched by that step.
        """
        torch.use_deterministic_algorithms(self.deterministic)
        objective.prepare(flow, data, ends)
        progress = Progress() if progress is None else progress
        parameters = [p for p in flow.parameters() if p.requires_grad]
        optimizer = OPTIMIZERS[self.optimizer](parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        if progress.optimizer:
            optimizer.load_state_dict(progress.optimizer)
        average = (copy.deepcopy(flow) if average is None else average).requires_grad_(False)
        averaged: list[Tensor] = [
            a for a, p in zip(average.parameters(), flow.parameters(), strict=True) if p.requires_grad
        ]
        batches, validation = _Batches(data, self.batch_size, seed), _Validation(objective, data, seed)
        diary = _Diary(observer, progress, flow, average, optimizer)
        saved = progress.step  # of the last checkpoint; 0 before there is one
        earlier, began, ending = progress.seconds, time.perf_counter(), "done"
        coupled_earlier = progress.coupling_seconds - objective.coupling_seconds

        while progress.step < self.steps:
            if observer.should_stop():
                ending = "stopped"
                break
            if self.max_time is not None and progress.seconds >= self.max_time:
                ending = "max_time"
                break
            step = progress.step
            batch, draws = batches(step)
            loss = objective(flow, objective.draw(flow, batch.x, batch.condition, draws)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = self._clip(parameters)
            if not math.isfinite(norm):
                raise JobError(self._advice(step, float(loss.detach()), norm, batch.x, saved))
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
            optimizer.step()
            self._average(averaged, parameters, progress)

            progress.step = step + 1
            progress.loss_sum += float(loss.detach())
            progress.loss_count += 1
            progress.seconds = earlier + time.perf_counter() - began
            progress.coupling_seconds = coupled_earlier + objective.coupling_seconds
            last, best = progress.step == self.steps, False
            if last or progress.step % self.log_every == 0:
                diary.log_loss(self.learning_rate(step), norm)
            if last or progress.step % self.validate_every == 0:
                best = diary.validate(validation(average))
            if last or best or progress.step % self.checkpoint_every == 0:
                diary.save(best=best)
                saved = progress.step

        if ending != "done":  # a finished training has just saved its last step
            diary.save(best=not math.isfinite(progress.best_loss))
        return average, ending

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

    def _advice(self, step: int, loss: float, norm: float, x: Tensor, saved: int) -> str:
        kept = f"the checkpoint of step {saved} is unharmed" if saved else "there is no checkpoint yet"
        clip = "" if self.grad_clip is not None else ", trainer.grad_clip=1"
        return (
            f"step {step}: loss {loss:g}, gradient norm {norm:g} (batch in model units: mean {float(x.mean()):.3g}, "
            f"largest {float(x.abs().max()):.3g}); {kept}; try a smaller trainer.lr{clip}"
        )


@dataclass(frozen=True)
class _Diary:
    """Tells the observer what happened, and keeps the progress that a resumed training starts from."""

    observer: Observer
    progress: Progress
    flow: Flow
    average: Flow
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
        self.progress.optimizer = self.optimizer.state_dict()
        self.observer.checkpoint(self.progress, self.flow, self.average, best=best)

    def _log(self, record: dict[str, Any]) -> None:
        step, seconds = self.progress.step, round(self.progress.seconds, 3)
        self.observer.logged({"step": step, **record}, {"step": step, "seconds": seconds})


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
            self._examples = self._objective.draw(flow, x_1, None, draws).split(VALIDATION_CHUNK)
        with torch.no_grad():
            losses = [self._objective.held_out(flow, example) for example in self._examples]
        return float(torch.cat(losses).double().mean())
