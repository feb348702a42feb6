"""The two ends of every path: noise from the base, data, and how the coupling brings them together."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli import threads
from flowcli.bases import Base
from flowcli.couplings import Coupling, Pairs, transport_cost
from flowcli.parametrizations import Moments
from flowcli.randomness import generator

MEASURED_ROWS = 32_768
"""Pairs behind the moments of a coupling: an error of half a percent in a variance."""


class Ends(NamedTuple):
    """How noise comes to data."""

    base: Base
    coupling: Coupling

    def draw(
        self, x_1: Tensor, condition: Tensor | None, generator: torch.Generator, *, batch_size: int | None = None
    ) -> Pairs:
        """Pairs for states x_1 (N, ...) in model units: one batch, or several of batch_size one behind the other."""
        noise = self.base.sample(len(x_1), generator).to(x_1)
        if self.coupling.independent:
            return self.coupling(noise, x_1, condition, generator)
        size = len(x_1) if batch_size is None else batch_size
        batches = [slice(first, first + size) for first in range(0, len(x_1), size)]
        with threads.using(1):  # else a plan might be another one where there are more threads
            coupled = [
                self.coupling(noise[batch], x_1[batch], None if condition is None else condition[batch], generator)
                for batch in batches
            ]
        if len(coupled) == 1:
            return coupled[0]
        x_0, x_1 = torch.cat([pairs.x_0 for pairs in coupled]), torch.cat([pairs.x_1 for pairs in coupled])
        kept = [pairs.condition for pairs in coupled if pairs.condition is not None]
        return Pairs(x_0, x_1, torch.cat(kept) if kept else None)

    def measure(self, states: Tensor, condition: Tensor | None, *, batch_size: int, seed: int) -> "Coupled":
        """What the coupling makes of batches of this size, drawn from states (N, ...) in model units."""
        coupled, costs = [], []
        for batch in range(max(1, MEASURED_ROWS // batch_size)):
            draws = generator(seed, "measure", batch)
            index = torch.randint(len(states), (batch_size,), generator=draws).to(states.device)
            x_1 = states[index]
            noise = self.base.sample(batch_size, draws).to(x_1)
            costs.append(transport_cost(Pairs(noise, x_1, None)))
            coupled.append(self.coupling(noise, x_1, None if condition is None else condition[index], draws))
        x_0, x_1 = (torch.cat([pairs[end] for pairs in coupled]) for end in (0, 1))
        cost = float(transport_cost(Pairs(x_0, x_1, None)))
        return Coupled(Moments.of_pairs(x_0, x_1), cost, float(torch.stack(costs).mean()))


@dataclass(frozen=True)
class Coupled:
    """What a coupling does to the ends, in model units.

    Attributes:
        moments: of its pairs.
        cost: mean |x_1 - x_0|^2 of its pairs.
        independent_cost: of as many independent ones.
    """

    moments: Moments
    cost: float
    independent_cost: float
