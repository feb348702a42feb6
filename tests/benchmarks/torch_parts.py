"""What the torch peers' examples share: a stack of layers over x and t, and a plain training loop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from works import DIMENSION, RATE, Work

Loss = Callable[[Tensor], Tensor]
"""Of a batch x_1 (B, D), a scalar."""


def stack(work: Work, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """(B, D + 1), the last column the time, to (B, D)."""
    layers, inputs = [], DIMENSION + 1
    for _ in range(work.layers):
        layers += [nn.Linear(inputs, work.width), activation()]
        inputs = work.width
    return nn.Sequential(*layers, nn.Linear(inputs, DIMENSION))


def read(points: Path) -> Tensor:
    """The training points in model units, (N, D)."""
    return torch.from_numpy(np.load(points))


class Training:
    """Adam as the examples make it."""

    def __init__(self, network: nn.Module, loss: Loss, points: Tensor, rows: int) -> None:
        self._loss, self._points, self._rows = loss, points, rows
        self._optimizer = torch.optim.Adam(network.parameters(), lr=RATE)

    def __call__(self, steps: int) -> None:
        """Take steps."""
        for _ in range(steps):
            self._optimizer.zero_grad()
            index = torch.randint(len(self._points), (self._rows,))
            self._loss(self._points[index]).backward()
            self._optimizer.step()


class Counted(nn.Module):
    """A network and how often it was asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor) -> Tensor:
        """As the network's."""
        self.calls += 1
        return self.network(x)
