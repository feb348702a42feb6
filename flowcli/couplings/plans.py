"""Couplings that solve a transport plan for every batch."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from flowcli.assignment import cheapest
from flowcli.couplings.base import Coupling, Pairs, by_label, check_labels
from flowcli.errors import JobError, integer, number


class _Planned(Coupling):
    """Solves a transport plan within groups of `minibatch` consecutive rows (of one label, if there are labels)."""

    independent = False

    def __init__(self, minibatch: int) -> None:
        self.minibatch = integer("minibatch", minibatch, minimum=1)

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Tensor | None, generator: torch.Generator) -> Pairs:
        """Match the rows of each group with each other.

        Raises:
            UserError: the condition is not a label.
            JobError: the plan could not be solved.
        """
        check_labels(condition)
        noise, data = torch.arange(len(x_0)), torch.arange(len(x_1))
        flat_0, flat_1 = (x.detach().flatten(1).double().cpu() for x in (x_0, x_1))
        for _, members in by_label(condition, len(x_1)):
            for rows in members.split(self.minibatch):
                i, j = self._match(flat_0[rows], flat_1[rows], generator)
                noise[rows], data[rows] = rows[i], rows[j]
        return Pairs(x_0[noise.to(x_0.device)], x_1[data.to(x_1.device)], condition)

    @abstractmethod
    def _match(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of noise (n,) and of data (n,) that make n pairs, for noise and data (n, D) in double precision."""


class OT(_Planned):
    """The exact plan as a permutation of the noise: data and labels keep their place."""

    keeps_marginals = True

    def _match(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with _solved("coupling=ot"):
            return cheapest(x_0, x_1), torch.arange(len(x_1))


class Sinkhorn(_Planned):
    """The entropic plan (Cuturi, arXiv 1306.0895): each datum draws its noise from its column of the plan.

    The regularisation is a fraction of the group's mean cost. A noise may serve twice, each datum serves once.
    """

    keeps_marginals = True

    def __init__(self, minibatch: int, regularization: float) -> None:
        super().__init__(minibatch)
        self.regularization = number("regularization", regularization, minimum=1e-6, maximum=1e6)

    def _match(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        import ot  # here, because POT is slow to import

        n = len(x_0)
        masses = np.full(n, 1 / n)
        with _solved("coupling=sinkhorn", "regularization"):
            plan = ot.sinkhorn(
                masses,
                masses,
                _relative(_costs(x_0, x_1)),
                self.regularization,
                method="sinkhorn_stabilized",
                numItermax=10_000,
                stopThr=1e-4,
            )
        return torch.multinomial(torch.from_numpy(np.asarray(plan)).T, 1, generator=generator).squeeze(1), torch.arange(
            n
        )


class Unbalanced(_Planned):
    """Entropic plan whose marginals may differ from the batch at a price (Chizat et al., arXiv 1607.05816).

    `marginal_penalty` weighs the Kullback-Leibler divergence of either marginal, `regularization` that of the plan from
    independence; both in units of the group's mean cost. Pairs are drawn from the plan, so far ones are rarer.
    """

    keeps_marginals = False

    def __init__(self, minibatch: int, regularization: float, marginal_penalty: float) -> None:
        super().__init__(minibatch)
        self.regularization = number("regularization", regularization, minimum=1e-6, maximum=1e6)
        self.marginal_penalty = number("marginal_penalty", marginal_penalty, minimum=1e-6, maximum=1e6)

    def _match(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        import ot

        n = len(x_0)
        masses = np.full(n, 1 / n)
        with _solved("coupling=unbalanced", "regularization"):
            plan = ot.unbalanced.sinkhorn_unbalanced(
                masses,
                masses,
                _relative(_costs(x_0, x_1)),
                self.regularization,
                self.marginal_penalty,
                method="sinkhorn_translation_invariant",  # the others crawl where the penalty is high
                numItermax=10_000,
            )
        return _draw(np.asarray(plan), generator)


class Partial(_Planned):
    """The exact plan for the part `mass` of the batch that is cheapest to transport; pairs are drawn from it."""

    keeps_marginals = False

    def __init__(self, minibatch: int, mass: float) -> None:
        super().__init__(minibatch)
        self.mass = number("mass", mass, above=0, maximum=1)

    def _match(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        import ot

        n = len(x_0)
        with _solved("coupling=partial"):
            plan = ot.partial.partial_wasserstein(
                np.ones(n), np.ones(n), _costs(x_0, x_1), m=self.mass * n, numItermax=10**8
            )
        return _draw(np.asarray(plan), generator)


@contextmanager
def _solved(name: str, hint: str = "") -> Iterator[None]:
    """Turn what a solver says when it found no plan into an error.

    Raises:
        JobError: with what it said.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except (Warning, ValueError) as problem:
        advice = f"; raise coupling.{hint}" if hint else ""
        raise JobError(f"{name}: no plan for this batch ({' '.join(str(problem).split())}){advice}") from problem


def _costs(x_0: Tensor, x_1: Tensor) -> np.ndarray:
    """Squared distances (n, n) of noise to data, (n, D) each."""
    return torch.cdist(x_0, x_1, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()


def _relative(cost: np.ndarray) -> np.ndarray:
    return cost / max(cost.mean(), np.finfo(cost.dtype).tiny)


def _draw(plan: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n pairs in proportion to a plan (n, n): each as often as it should be, rounded up or down at random."""
    n, cumulative = len(plan), torch.from_numpy(plan).flatten().cumsum(0)
    levels = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) / n * cumulative[-1]
    pair = torch.searchsorted(cumulative, levels, right=True).clamp_max(n * n - 1)
    return pair // n, pair % n
