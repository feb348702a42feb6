r"""Divergence $\mathrm{tr}(\partial v / \partial x)$ of a field, exact or estimated, for events of any shape."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp, vmap

from flowcli.errors import choice, integer
from flowcli.randomness import rows

Field = Callable[[Tensor], Tensor]
Along = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From directions e (K, B or 1, ...) to a field's value (B, ...) and J e or e^T J for each, (K, B, ...)."""

ROWS_AT_ONCE = 1 << 17
"""Products with the Jacobian are taken in groups of directions so that directions x rows stay below this."""


class Local(NamedTuple):
    """A field at some points.

    Attributes:
        value: (B, ...).
        divergence: (B, K), K estimates; the value itself where it is exact.
        jacobian: (B,), the squared Frobenius norm of the Jacobian, or its mean estimate; None where nobody asked.
    """

    value: Tensor
    divergence: Tensor
    jacobian: Tensor | None


class Divergence(ABC):
    """A way to get the divergence; K numbers a row, whose mean is the value."""

    @property
    @abstractmethod
    def estimates(self) -> int:
        """How many independent estimates a row gets, K; 1 where the value is exact."""

    @abstractmethod
    def directions(self, x: Tensor, seed: int, first: int) -> Tensor:
        """The directions (K or D, B or 1, ...) of one whole solve; drawn anew they would break adaptive steps.

        They depend on (seed, row) alone; x (B, ...) are rows first .. first + B.
        """

    @abstractmethod
    def of(self, along: Along, x: Tensor, directions: Tensor, *, norm: bool) -> Local:
        """The field and its derivatives at x (B, ...), the Jacobian's norm too if wanted; rows must be independent."""

    def __call__(self, field: Field, x: Tensor, directions: Tensor) -> Local:
        """The same for a field that is known by its values alone."""
        return self.of(lambda part: pulled(field, x, part), x, directions, norm=True)


def pulled(field: Field, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """v(x) (B, ...) and e^T J (K, B, ...), by vector-Jacobian products that share one forward pass.

    For fields that know no better: forward mode, whose element-wise operations are not fused, took twice as long.
    """
    value, pull, *_ = vjp(field, x)
    directions = directions.to(x).expand(-1, *x.shape)
    if len(directions) == 1:  # vmap would cost a third more
        return value, pull(directions[0])[0].unsqueeze(0)
    return value, vmap(lambda e: pull(e)[0])(directions)


def _forms(along: Along, x: Tensor, directions: Tensor, norm: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """v(x) (B, ...); for every direction e, (K, B) each, e^T J e and, if wanted, the squared length of its product."""
    directions = directions.to(x)
    found = []
    for part in directions.split(max(1, ROWS_AT_ONCE // len(x))):
        value, products = along(part)
        norms = products.square().flatten(2).sum(2) if norm else None
        found.append((value, (products * part).flatten(2).sum(2), norms))
    if len(found) == 1:
        return found[0]
    values, forms, norms = zip(*found, strict=True)
    return values[0], torch.cat(forms), torch.cat(norms) if norm else None


class Exact(Divergence):
    """D products with the Jacobian, batched."""

    @property
    def estimates(self) -> int:
        """1: nothing is random."""
        return 1

    def directions(self, x: Tensor, seed: int, first: int) -> Tensor:
        """The D unit vectors, (D, 1, ...)."""
        size = x[0].numel()
        return torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])

    def of(self, along: Along, x: Tensor, directions: Tensor, *, norm: bool) -> Local:
        """Value (B, ...) and divergence (B, 1)."""
        value, forms, norms = _forms(along, x, directions, norm)
        return Local(value, forms.sum(0).unsqueeze(1), None if norms is None else norms.sum(0))


class Hutchinson(Divergence):
    r"""$e^T J e$ with $E[e e^T] = I$, one estimate a probe (arXiv 1810.01367)."""

    def __init__(self, probes: int, distribution: str) -> None:
        """Take the number of probes K and their distribution: rademacher or gaussian."""
        self.probes = integer("probes", probes, minimum=1, maximum=1 << 20)
        self.distribution = choice("distribution", distribution, ("rademacher", "gaussian"))

    @property
    def estimates(self) -> int:
        """K, one a probe."""
        return self.probes

    def directions(self, x: Tensor, seed: int, first: int) -> Tensor:
        """K probes for every row, (K, B, ...)."""

        def draw(n: int, generator: torch.Generator) -> Tensor:
            shape = (n, self.probes, *x.shape[1:])
            if self.distribution == "gaussian":
                return torch.randn(shape, generator=generator)
            return torch.randint(0, 2, shape, generator=generator) * 2 - 1

        return rows(draw, seed, "probes", first, first + len(x)).transpose(0, 1).to(x)

    def of(self, along: Along, x: Tensor, directions: Tensor, *, norm: bool) -> Local:
        """Value (B, ...) and K estimates of the divergence, (B, K)."""
        value, forms, norms = _forms(along, x, directions, norm)
        return Local(value, forms.T, None if norms is None else norms.mean(0))
