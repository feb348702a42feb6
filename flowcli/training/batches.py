"""Which rows a training step sees, and all that is random about it."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flowcli.dataset import TrainingData
from flowcli.flows.base import Flow
from flowcli.objectives import Inputs, Objective
from flowcli.randomness import generator

BLOCK_STEPS, BLOCK_NUMBERS = 20, 1 << 14
"""Batches of at most so many numbers are drawn for so many steps at once: a draw costs more than its numbers."""


class Batches:
    """Shuffled passes over the data, with noise and times.

    A step's inputs are a function of (seed, step) alone: blocks of steps are drawn whole, by whoever needs a part.

    Attributes:
        steps: how many steps a block holds.
        elsewhere: makes blocks in place of `block`, where somebody else does.
        waited: seconds for that so far.
    """

    def __init__(self, flow: Flow, objective: Objective, data: TrainingData, batch_size: int, seed: int) -> None:
        self._flow, self._objective, self._data = flow, objective, data
        self._size, self._seed = batch_size, seed
        numbers = batch_size * math.prod(data.train.shape[1:])
        self.steps = BLOCK_STEPS if numbers <= BLOCK_NUMBERS else 1
        self.elsewhere: Callable[[int], Inputs] | None = None
        self.waited = 0.0
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.long))
        self._held: tuple[int, Inputs | None] = (-1, None)

    def __call__(self, step: int, count: int = 1) -> Inputs:
        """The inputs of steps step .. step + count, of one block, one behind the other."""
        number, offset = divmod(step, self.steps)
        held, inputs = self._held
        if held != number or inputs is None:
            inputs = self._fetched(number)
            self._held = (number, inputs)
        if self.steps == count:
            return inputs
        return inputs.part(slice(offset * self._size, (offset + count) * self._size))

    def _fetched(self, number: int) -> Inputs:
        if self.elsewhere is None:
            return self.block(number)
        began = time.perf_counter()
        inputs = self.elsewhere(number)
        self.waited += time.perf_counter() - began
        return inputs

    def block(self, number: int) -> Inputs:
        """The inputs of steps number * self.steps and so on, one behind the other."""
        train = self._data.train
        rows = self._size * self.steps
        index = self._rows(number * rows, (number + 1) * rows).to(train.device)
        draws = generator(self._seed, "batches", number)
        x_1 = train[index]
        if self._data.jitter is not None:
            x_1 = x_1 + self._data.jitter * torch.rand(x_1.shape, generator=draws).to(x_1)
        condition = None if self._data.condition is None else self._data.condition[index]
        example = self._objective.draw(self._flow, x_1, condition, draws, batch_size=self._size)
        return self._objective.inputs(self._flow, example)

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
