"""Training steps as a few calls of compiled code, for a regression of a network that has a kernel."""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowcli.flows.base import Flow
from flowcli.kernels import adam
from flowcli.kernels.perceptron import Layers, Regression, takes
from flowcli.objectives import Inputs
from flowcli.training.adam import BETA_1, BETA_2, EPSILON, State


@runtime_checkable
class HasKernel(Protocol):
    """A network whose layers compiled code may compute."""

    def layers(self) -> Layers | None:
        """What the code is given; None: torch computes this one."""
        ...

    def shown(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layer sees of x (B, ...) and of t, a scalar or (B,): (B, F) and (1 or B, Q)."""
        ...


def has_kernel(flow: Flow) -> bool:
    """Whether compiled code computes a network of this flow."""
    return any(isinstance(part, HasKernel) and part.layers() is not None for part in flow.modules())


def no_kernel(flow: Flow) -> str | None:
    """Why compiled code does not compute a network of this flow that could do with it; None: nothing is amiss."""
    reasons = (getattr(part, "no_kernel", None) for part in flow.modules() if isinstance(part, HasKernel))
    return next(filter(None, reasons), None) if takes(*flow.parameters()) else None


class FusedSteps:
    """Steps of a regression, one by one: loss, gradient, Adam and the running average.

    Attributes:
        steps: how many are taken at a time.
        threads: torch's meanwhile; the kernel has as many as torch had when this was made.
    """

    threads = 1  # more of torch's would wait for their next work by spinning, in the way of the kernel's

    def __init__(
        self, network: HasKernel, layers: Layers, state: State, *, rows: int, steps: int, grad_clip: float | None
    ) -> None:
        """layers: the network's; state: of its weights and no others; rows: of a batch."""
        self.steps = steps
        self._network, self._state, self._regression = network, state, Regression(layers, rows)
        self._constants = (BETA_1, BETA_2, EPSILON, math.inf if grad_clip is None else grad_clip)

    def next(self, step: int, last: int) -> int:
        """How many steps one call takes from this one on: up to the next multiple of `steps`."""
        return min(self.steps - step % self.steps, last - step)

    @torch.no_grad()
    def __call__(self, inputs: Inputs, rates: list[list[float]]) -> tuple[list[float], list[float]]:
        """Take a step for each of the rates; the loss and the gradient norm of each.

        A gradient that is not finite touches no weight, and is the last.
        """
        assert inputs.time is not None and inputs.target is not None
        rows, target = len(inputs.x) // len(rates), inputs.target.flatten(1)
        scale, losses, norms = 1 / (rows * target.shape[1]), [], []
        batches = [value.contiguous().split(rows) for value in (*self._network.shown(inputs.x, inputs.time), target)]
        weights = [None] * len(rates) if inputs.weight is None else inputs.weight.contiguous().split(rows)
        for x, waves, wanted, weight, rate in zip(*batches, weights, rates, strict=True):
            losses.append(self._regression(x, waves, wanted, weight, scale))
            norms.append(adam.step(self._state, self._regression.gradient, rate, self._constants))
            if not math.isfinite(norms[-1]):
                break
        return losses, norms
