"""What a coupling is, and the two that solve nothing for a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli import memory
from flowcli.bases import Base
from flowcli.errors import UserError, integer


class Pairs(NamedTuple):
    """Ends of a batch of paths: noise and data (B, ...), and the data's condition, (B,) or None."""

    x_0: Tensor
    x_1: Tensor
    condition: Tensor | None


def transport_cost(pairs: Pairs) -> Tensor:
    """Mean over pairs of |x_1 - x_0|^2, summed over the event's coordinates, scalar."""
    return (pairs.x_1 - pairs.x_0).square().flatten(1).sum(1).mean()


class Coupling(ABC):
    """Pairs a batch of noise with a batch of data.

    Attributes:
        independent: x_0 and x_1 stay independent, so that scores and the closed-form field apply.
        solves: every batch takes work that its own pairs need; a table is looked up.
        keeps_marginals: pairs have the base's noise and the data's law; otherwise the model learns another law.
    """

    independent: bool
    solves: bool = True
    keeps_marginals: bool

    def prepare(self, train: Tensor, base: Base, seed: int, *, condition: Tensor | None, jitter: Tensor | None) -> None:
        """Fit what depends on the whole data set, once, before training.

        train: (N, ...), model units; condition: its labels (N,); jitter: width of the uniform dequantising noise.

        Raises:
            UserError: the condition is not a label, and the coupling is not independent.
        """
        if not self.independent:
            check_labels(condition)

    def state(self) -> dict[str, Tensor]:
        """What a run must keep to go on with the same coupling."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave, instead of `prepare`."""
        del state

    @abstractmethod
    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Tensor | None, generator: torch.Generator) -> Pairs:
        """Pair noise with data, (B, ...) each; what is drawn is drawn from the generator."""


class Independent(Coupling):
    """Each datum keeps the noise it was drawn with."""

    independent = True
    solves = False
    keeps_marginals = True

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Tensor | None, generator: torch.Generator) -> Pairs:
        """Return what came."""
        return Pairs(x_0, x_1, condition)


class Reflow(Coupling):
    """Pairs made beforehand by another flow: noise and where that flow took it (Liu et al., arXiv 2209.03003)."""

    independent = False
    solves = False
    keeps_marginals = True

    def __init__(self, ckpt: str, pairs: int) -> None:
        """ckpt: the run whose flow makes the pairs; the task opens it and calls `fill`."""
        if not isinstance(ckpt, str) or not ckpt:
            raise UserError(f"ckpt must be a run, got {ckpt!r}")
        if ckpt == "latest":
            raise UserError("ckpt must name its run: latest would be another one for every job, and later")
        self.ckpt = ckpt
        self.pairs = integer("pairs", pairs, minimum=2)
        memory.require(f"pairs={pairs}", 2 * 4 * self.pairs)  # two ends of one number at least
        self._state: dict[str, Tensor] | None = None

    def fill(self, x_0: Tensor, x_1: Tensor) -> None:
        """Set the table, (P, ...) each, model units."""
        self._state = {"x_0": x_0, "x_1": x_1}

    def state(self) -> dict[str, Tensor]:
        """The table, (P, ...) each."""
        return dict(self._filled())

    def load(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave, instead of `fill`."""
        self._state = dict(state)

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Tensor | None, generator: torch.Generator) -> Pairs:
        """Draw B rows of the table.

        Raises:
            UserError: there is a condition.
            RuntimeError: before `fill` or `load`.
        """
        table = self._filled()
        if condition is not None:
            raise UserError("coupling=reflow makes pairs without a condition: train without one")
        row = torch.randint(len(table["x_0"]), (len(x_0),), generator=generator)
        noise, data = (table[name][row.to(table[name].device)] for name in ("x_0", "x_1"))
        return Pairs(noise.to(x_0), data.to(x_1), None)

    def _filled(self) -> dict[str, Tensor]:
        if self._state is None:
            raise RuntimeError("coupling=reflow needs fill or load first")
        return self._state


def check_labels(condition: Tensor | None) -> None:
    """Noise is matched within labels.

    Raises:
        UserError: the condition is not a label.
    """
    if condition is not None and (condition.dim() != 1 or condition.is_floating_point()):
        raise UserError(
            "coupling: noise is matched within labels, and this condition is not one; use coupling=independent"
        )


def by_label(condition: Tensor | None, n: int) -> Iterator[tuple[int | None, Tensor]]:
    """Each label with its rows, or None with all n of them."""
    if condition is None:
        yield None, torch.arange(n)
        return
    labels = condition.cpu()
    for label in labels.unique().tolist():
        yield label, (labels == label).nonzero().squeeze(1)
