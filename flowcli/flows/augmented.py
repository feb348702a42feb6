r"""Flows over events with noise coordinates added, which lifts what one dimension cannot cross (notes 001).

An ODE keeps orientation: x -> -x is no flow in odd dimension. With k more coordinates it is. The extra ones are
standard normal at both ends, so that densities survive: $\log p(x) \ge E_{e \sim q} \log [p(x, e) / q(e)]$
(arXiv 1904.01681, 2002.07101).
"""

import math

import torch
from torch import Tensor

from flowcli.bases import Base, StandardNormal
from flowcli.divergence import Divergence
from flowcli.errors import UserError
from flowcli.flows.base import Result, in_chunks
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.fields import Field
from flowcli.metrics import log_mean_exp
from flowcli.parametrizations import Moments
from flowcli.randomness import rows
from flowcli.sde import Stochastic
from flowcli.solvers import Solver
from flowcli.transforms import Affine


def augmented_shape(event_shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """(D,) -> (D + count,).

    Raises:
        UserError: an event is no vector.
    """
    if len(event_shape) != 1:
        raise UserError(f"model.augment_dim={count} needs events that are vectors, these have the shape {event_shape}")
    return (event_shape[0] + count,)


def augmented_moments(moments: Moments, count: int) -> Moments:
    """Moments (of vectors) with `count` standard normal coordinates more at the data end."""
    mean_1 = torch.cat([moments.mean_1, moments.mean_1.new_zeros(count)])
    size = len(moments.mean_1)
    var_1 = (moments.var_1 * size + count) / (size + count)
    return Moments(moments.mean_0, mean_1, moments.var_0, var_1, moments.cov)


class AugmentedFlow(ContinuousFlow):
    """A continuous flow over (x, e); e (k,) is noise that depends on (row, draw) alone."""

    def __init__(
        self,
        field: Field,
        start: Base,
        transform: Affine,
        solver: Solver | Stochastic,
        divergence: Divergence,
        event_shape: tuple[int, ...],
        *,
        draws: int,
    ) -> None:
        """start: over (D + k,); draws: K of the bound on the likelihood."""
        super().__init__(field, start, transform, solver, divergence, event_shape)
        self.draws = draws
        self.extra = self.state_shape[0] - event_shape[0]

    def lift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (B, D) with fresh noise, (B, D + k)."""
        return torch.cat([x, torch.randn(len(x), self.extra, generator=generator).to(x)], 1)

    def _to_state(self, x: Tensor, first: int, *, draw: int) -> Tensor:
        def noise(n: int, generator: torch.Generator) -> Tensor:
            return torch.randn(n, self.extra, generator=generator)

        return torch.cat([x, rows(noise, draw, "augment", first, first + len(x)).to(x)], 1)

    def _to_data(self, state: Tensor) -> Tensor:
        return super()._to_data(state[:, : self.event_shape[0]])

    def velocity(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """Not a function of the event alone.

        Raises:
            UserError: always.
        """
        raise UserError("model.augment_dim > 0: the velocity depends on the extra coordinates too")

    def log_prob(
        self, x: Tensor, *, seed: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        r"""A lower bound (in expectation) on the log-density of x (B, D), in nats.

        $\log \frac1K \sum_k p(x, e_k)/q(e_k)$; it grows to log p(x) with K. A row's draws share their probes: with
        independent ones the mean of exponentials would be no bound.
        """

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            of_extra = StandardNormal((self.extra,)).to(device=self.device, dtype=self.dtype)
            values, nfe = [], 0
            for draw in range(self.draws):
                state = self._to_state(self.to_model(x[first:last]), first, draw=draw)
                found = self.density(state, self.divergence.directions(state, seed, first), condition=condition)
                values.append(found.log_prob - of_extra.log_prob(state[:, -self.extra :])[:, None])
                nfe = max(nfe, found.nfe)
            bound = log_mean_exp(torch.stack(values).double(), 0) + self.transform.log_det
            probes = bound.shape[1]
            stderr = bound.std(1) / math.sqrt(probes) if probes > 1 else None
            return Result(bound.mean(1), nfe, "done", stderr)

        return in_chunks(chunk, len(x), batch_size, condition, ())
