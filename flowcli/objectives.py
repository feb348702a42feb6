r"""Training losses of continuous flows, and the law of time that they are estimated with.

Every regression objective is a weight on |F - r|^2 for the same network output F (see `parametrizations`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from flowcli.errors import choice
from flowcli.flows.fields import LearnedField

END = 1e-5
"""Times are drawn from [END, 1 - END]: the ends have measure zero, and weights may be infinite there."""

WEIGHTINGS = ("unit", "native")


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """One uniform draw in each of n equal parts of (0, 1), (n,): the variance over time of a batch's loss is gone."""
    return (torch.rand(n, generator=generator) + torch.arange(n)) / n


class Objective(ABC):
    """A loss and the law of its times."""

    @abstractmethod
    def prepare(self, field: LearnedField) -> None:
        """Fit what depends on the field's path, once, before training."""

    @abstractmethod
    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """u = 1 - t for a batch, (n,)."""

    @abstractmethod
    def __call__(self, field: LearnedField, x_0: Tensor, x_1: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """Loss of each pair of ends (B, ...) at u (B,), (B,)."""


class FlowMatching(Objective):
    r"""Conditional flow matching, $E |v_\theta(x_t) - (\alpha' x_1 + \sigma' x_0)|^2$ (arXiv 2210.02747; notes 001 V).

    weighting=unit counts every u alike in |F - r|^2. weighting=native is the loss as the notes write it: the weight is
    (dv/dF)^2, which diverges like 1/u on VP; half of the times are drawn from that weight itself, so that the estimate
    keeps a bounded variance.
    """

    def __init__(self, weighting: str) -> None:
        """weighting: unit or native."""
        self.weighting = choice("weighting", weighting, WEIGHTINGS)
        self._law: _HalfByWeight | None = None

    def prepare(self, field: LearnedField) -> None:
        """Tabulate the native weight's law."""
        self._law = None if self.weighting == "unit" else _HalfByWeight(lambda u: self._weight(field, u))

    def _weight(self, field: LearnedField, u: Tensor) -> Tensor:
        c = field.path.schedule(field.parametrization.clip(u).to(field.moments.var_1))
        return field.parametrization.velocity_gain(c, field.moments).square().to(u)

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """u, (n,): uniform, or by the native weight's law."""
        uniform = stratified(n, generator)
        return uniform.clamp(END, 1 - END) if self.weighting == "unit" else self._prepared().quantile(uniform)

    def __call__(self, field: LearnedField, x_0: Tensor, x_1: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """Mean square over the event's coordinates, weighted, (B,)."""
        loss = field.residual(x_0, x_1, u, condition).square().flatten(1).mean(1)
        return loss if self.weighting == "unit" else self._weight(field, u) * self._prepared().correction(u) * loss

    def _prepared(self) -> "_HalfByWeight":
        if self._law is None:
            raise RuntimeError("weighting=native needs prepare(field) first: its law of time depends on the path")
        return self._law


class _HalfByWeight:
    """The law (uniform + weight / its integral) / 2 on [END, 1 - END], piecewise uniform on a grid fine at the data."""

    def __init__(self, weight: Callable[[Tensor], Tensor]) -> None:
        self._edges = torch.logspace(-5, 0, 4097, dtype=torch.float64).clamp(END, 1 - END)
        middle, width = (self._edges[1:] * self._edges[:-1]).sqrt(), self._edges.diff()
        uniform, weighted = width / width.sum(), weight(middle) * width
        cells = (uniform + weighted / weighted.sum()) / 2
        self._cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cells.cumsum(0)])
        self._uniform_over_law = uniform / cells

    def quantile(self, uniform: Tensor) -> Tensor:
        """Times (n,) at levels (n,) of the distribution function."""
        level = uniform.double() * self._cumulative[-1]
        cell = self._cell(self._cumulative, level)
        inside = (level - self._cumulative[cell]) / (self._cumulative[cell + 1] - self._cumulative[cell])
        return (self._edges[cell] + inside * (self._edges[cell + 1] - self._edges[cell])).float()

    def correction(self, u: Tensor) -> Tensor:
        """Density of the uniform law over that of this one at u (n,): what keeps the estimate unbiased."""
        return self._uniform_over_law[self._cell(self._edges, u.double().cpu())].to(u)

    def _cell(self, edges: Tensor, value: Tensor) -> Tensor:
        return (torch.searchsorted(edges, value, right=True) - 1).clamp(0, len(edges) - 2)
