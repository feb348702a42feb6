"""What checkpoints are chosen by."""

import math

import torch

from flowcli import processes
from flowcli.dataset import TrainingData
from flowcli.flows.base import Flow
from flowcli.objectives import Inputs, Objective
from flowcli.randomness import generator

CHUNK = 16_384
"""Rows at once."""


class Validation:
    """Mean loss over the validation split, or repeats of it, always with the same noise and times."""

    def __init__(self, objective: Objective, data: TrainingData, seed: int) -> None:
        self._objective, self._data, self._seed = objective, data, seed
        self._inputs: list[Inputs] = []

    def __call__(self, flow: Flow) -> float:
        """Of this flow."""
        if not self._inputs:
            x_1 = self._data.validation
            count = self._objective.validation_rows(len(x_1))
            x_1 = x_1.repeat(math.ceil(count / len(x_1)), *[1] * (x_1.dim() - 1))
            x_1 = x_1 if count >= len(self._data.validation) else x_1[:count]
            draws = generator(self._seed, "validation")
            example = self._objective.draw(flow, x_1, None, draws)
            own = range(len(example.x_1))[processes.part(len(example.x_1))]
            pieces = [slice(at, min(at + CHUNK, own.stop)) for at in own[::CHUNK]]
            self._inputs = [self._objective.inputs(flow, example.part(piece)) for piece in pieces]
        with torch.no_grad():
            losses = [self._objective.held_out(flow, inputs).double() for inputs in self._inputs]
        summed, rows = processes.total([sum(float(loss.sum()) for loss in losses), sum(map(len, losses))])
        return summed / rows
