"""What a sampler's quality costs: flows and solvers held to the same true points, beside their evaluations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcli import metrics
from flowcli.dataset import Dataset
from flowcli.errors import JobError
from flowcli.evaluate import Truth
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.randomness import generator
from flowcli.solvers import FIXED, FixedStep

MEASURES = ("w2", "energy_distance")
"""Names of the distances, in the order in which they are told."""
NO_SOLVER = "none"
"""In place of a solver's name, of a flow that solves nothing."""


@dataclass(frozen=True)
class Measured:
    """One sampler.

    Attributes:
        solver: its method, or NO_SOLVER.
        steps: of a fixed grid; None where there is none.
        nfe: evaluations a sample.
        values: by the names of MEASURES, the distance of every draw (draws,), float64.
    """

    solver: str
    steps: int | None
    nfe: int
    values: dict[str, Tensor]


class Yardstick:
    """Distances from the truth, draw by draw; every sampler meets the same true points.

    Attributes:
        draws: how many.
        points: of each, at most as many as the test split has.
    """

    def __init__(self, dataset: Dataset, draws: int, points: int) -> None:
        """Draw the true points."""
        self.draws, self.points = draws, min(points, len(dataset.test))
        truth = Truth(dataset, self.points)
        self._truth = [truth(draw, "truth") for draw in range(draws)]
        self._second_truth = truth
        self._measures: dict[str, Callable[[Tensor, Tensor], float]] = {
            "w2": lambda x, y: metrics.wasserstein_2(x, y, generator=generator(dataset.seed, "slices")),
            "energy_distance": metrics.energy_distance,
        }

    def __call__(self, samples: Tensor) -> dict[str, Tensor]:
        """Values (draws,) by name, of samples (draws * points, ...) in data units."""
        return self._values(samples.split(self.points))

    def floor(self) -> dict[str, Tensor]:
        """Values (draws,) by name, of other true points."""
        return self._values([self._second_truth(draw, "second truth") for draw in range(self.draws)])

    @torch.no_grad()
    def measured(self, flow: Flow, *, seed: int, batch_size: int) -> Measured:
        """A flow by its own solver, from the noise of this seed.

        Raises:
            JobError: the solver failed.
        """
        result = flow.sample(self.draws * self.points, seed=seed, batch_size=batch_size)
        solver = flow.solver if isinstance(flow, ContinuousFlow) else None
        name = NO_SOLVER if solver is None else solver.method
        return Measured(name, getattr(solver, "steps", None), result.nfe, self(result.value.cpu()))

    def _values(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        pairs = list(zip(parts, self._truth, strict=True))
        return {
            name: torch.tensor([self._measures[name](*pair) for pair in pairs], dtype=torch.float64)
            for name in MEASURES
        }


def samplers(budgets: Sequence[int], flow: ContinuousFlow) -> Iterator[FixedStep]:
    """Every solver with fixed steps at every number of evaluations, of these, that is a whole number of its steps."""
    for method, stages in FIXED.items():
        for nfe in sorted(set(budgets)):
            if nfe % stages == 0:
                yield FixedStep(method, nfe // stages, flow.solver.time, nfe)


def curve(
    flow: Flow, budgets: Sequence[int], yardstick: Yardstick, *, seed: int, batch_size: int
) -> tuple[list[Measured], list[str]]:
    """Measure a flow by all `samplers` of these budgets; one that solves nothing, once, at its own evaluations.

    All start at the same noise, that of the seed.

    Returns:
        What was measured, and a line for each solver that failed.
    """
    if not isinstance(flow, ContinuousFlow):
        return [yardstick.measured(flow, seed=seed, batch_size=batch_size)], []
    found, failed = [], []
    for solver in samplers(budgets, flow):
        try:
            found.append(yardstick.measured(flow.with_solver(solver), seed=seed, batch_size=batch_size))
        except JobError as error:
            failed.append(f"{solver.method}, {solver.steps} steps: {error}")
    return found, failed
