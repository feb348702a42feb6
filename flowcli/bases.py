"""Distributions at the noise end, in model units."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowcli.dataset import Source
from flowcli.errors import UserError, number


class Base(nn.Module):
    """A distribution over events (...) that can be sampled and scored.

    Attributes:
        mean: (...), buffer.
        std: scalar, buffer: the root of the mean variance of a coordinate. Latents are (x - mean) / std.
        is_gaussian: N(mean, std^2 I); paths that do not start at the base itself, and scores, need that.
        has_density: `log_prob` is there; a likelihood needs that.
    """

    mean: Tensor
    std: Tensor
    is_gaussian: bool
    has_density: bool

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, ...) on the CPU in float32, so that another dtype or device sees the same numbers."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, ...) in nats, (B,).

        Raises:
            UserError: there is none.
        """

    def to_latent(self, x: Tensor) -> Tensor:
        """z = (x - mean) / std, (B, ...)."""
        return (x - self.mean) / self.std

    def from_latent(self, z: Tensor) -> Tensor:
        """x = mean + std z, (B, ...)."""
        return self.mean + self.std * z


class Gaussian(Base):
    """N(mean, std^2 I)."""

    is_gaussian = True
    has_density = True

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, ...)."""
        z = torch.randn(n, *self.mean.shape, generator=generator)
        return self.mean.float().cpu() + self.std.float().cpu() * z

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, ...), (B,)."""
        z = self.to_latent(x).flatten(1)
        return -z.square().sum(1) / 2 - z.shape[1] * (math.log(2 * math.pi) / 2 + self.std.log())


class StandardNormal(Gaussian):
    """N(0, I)."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(torch.zeros(event_shape, dtype=torch.float64), torch.ones((), dtype=torch.float64))


class GaussianMixture(Base):
    """sum_k weights_k N(means_k, covariances_k) over events of shape (D,) or flattened ones."""

    is_gaussian = False
    has_density = True
    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, event_shape: tuple[int, ...]) -> None:
        """Take weights (K,), means (K, D), covariances (K, D, D), positive definite."""
        mean = weights @ means
        spread = (covariances.diagonal(dim1=1, dim2=2) + (means - mean).square()).mean(1)
        super().__init__(mean.reshape(event_shape), (weights @ spread).sqrt())
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("factors", torch.linalg.cholesky(covariances))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, ...)."""
        component = torch.multinomial(self.weights.double().cpu(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator)
        x = self.means.float().cpu()[component] + torch.einsum("nij,nj->ni", self.factors.float().cpu()[component], z)
        return x.reshape(n, *self.mean.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, ...), (B,)."""
        difference = x.flatten(1)[:, None, :] - self.means
        z = torch.linalg.solve_triangular(self.factors, difference.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        log_normal = -z.square().sum(-1) / 2 - log_det - self.means.shape[1] * math.log(2 * math.pi) / 2
        return torch.logsumexp(self.weights.log() + log_normal, dim=1)


FARTHEST = 1e6
"""Of what a config says of a base, in model units: squares of it still have digits in single precision."""


def _numbers(name: str, value: object, count: int) -> list[float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise UserError(f"{name} must be a list of {count} numbers, got {value!r}")
    return [number(f"{name}[{i}]", item, minimum=-FARTHEST, maximum=FARTHEST) for i, item in enumerate(value)]


class IsotropicMixture(GaussianMixture):
    """sum_k weights_k N(means_k, std_k^2 I), from the numbers of a config, in model units."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        weights: Sequence[float],
        means: Sequence[Sequence[float]],
        std: float | Sequence[float],
    ) -> None:
        """Take K weights that sum to 1, K means of D numbers each (an event flattened), one std or K of them.

        Raises:
            UserError: the lists do not fit each other or the event's shape, or a number is out of its range.
        """
        if not isinstance(means, Sequence) or isinstance(means, str) or not means:
            raise UserError(f"means must be a list of means, got {means!r}")
        count, size = len(means), math.prod(event_shape)
        weights = _numbers("weights", weights, count)
        if min(weights) <= 0 or abs(math.fsum(weights) - 1) > 1e-6:
            raise UserError(f"weights must be positive and sum to 1, got {weights}")
        rows = [_numbers(f"means[{k}]", mean, size) for k, mean in enumerate(means)]
        each = [std] * count if isinstance(std, int | float) else _numbers("std", std, count)
        spread = torch.tensor(
            [number("std", value, minimum=1 / FARTHEST, maximum=FARTHEST) for value in each], dtype=torch.float64
        )
        w = torch.tensor(weights, dtype=torch.float64)
        covariances = spread.square()[:, None, None] * torch.eye(size, dtype=torch.float64)
        super().__init__(w / w.sum(), torch.tensor(rows, dtype=torch.float64), covariances, event_shape)


class Uniform(Base):
    """Independent coordinates, each uniform on [low, high]."""

    is_gaussian = False
    has_density = True
    low: Tensor
    high: Tensor

    def __init__(self, event_shape: tuple[int, ...], low: float, high: float) -> None:
        """low, high: in model units; rounded to float32, so that draws lie inside in every dtype.

        Raises:
            UserError: a bound is no number, or high is not above low.
        """
        low = number("low", low, minimum=-FARTHEST, maximum=FARTHEST)
        high = number("high", high, above=low, maximum=FARTHEST)
        ends = torch.tensor([low, high], dtype=torch.float32).double()
        if not bool(ends[0] < ends[1]):
            raise UserError(f"high must be above low in single precision too, got {high!r}")
        middle, width = ends.mean(), ends[1] - ends[0]
        super().__init__(middle.expand(event_shape).clone(), width / math.sqrt(12))
        self.register_buffer("low", ends[0].clone())
        self.register_buffer("high", ends[1].clone())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, ...)."""
        low, high = self.low.float().cpu(), self.high.float().cpu()
        part = torch.rand(n, *self.mean.shape, generator=generator)
        return low + (high - low) * part  # part <= 1 - 2^-24, so that no rounding leads beyond high

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, ...), (B,); -inf outside."""
        inside = ((x >= self.low) & (x <= self.high)).flatten(1).all(1)
        value = -self.mean.numel() * (self.high - self.low).log()
        return torch.where(inside, value, -math.inf)


class Empirical(Base):
    """Another data set, drawn from point by point: known by its points alone, it has no density.

    Attributes:
        source: the data set, not opened yet.
        points: (N, ...), buffer, model units; none until `fill`.
    """

    is_gaussian = False
    has_density = False
    points: Tensor

    def __init__(self, event_shape: tuple[int, ...], data: Source) -> None:
        """data: opened by whoever fills the base.

        Raises:
            UserError: it is the name of a data set and not the data set itself.
        """
        if not callable(getattr(data, "load", None)):
            raise UserError(f"data must be a data set of the group data, got {data!r}")
        super().__init__(torch.zeros(event_shape, dtype=torch.float64), torch.ones((), dtype=torch.float64))
        self.source = data
        self.register_buffer("points", torch.zeros(0, *event_shape, dtype=torch.float64))

    def fill(self, points: Tensor) -> None:
        """Take the points (N, ...) in model units; zeros of their shape are enough where a state dict follows.

        Raises:
            UserError: their events have another shape than the data's.
        """
        if points.shape[1:] != self.mean.shape:
            raise UserError(
                f"base.data has events of the shape {tuple(points.shape[1:])}, "
                f"while data has events of the shape {tuple(self.mean.shape)}"
            )
        self.points, self.mean = points, points.mean(0)
        self.std = (points - self.mean).square().mean().sqrt()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, ...) with replacement."""
        index = torch.randint(0, len(self.points), (n,), generator=generator)
        return self.points[index.to(self.points.device)].float().cpu()

    def log_prob(self, x: Tensor) -> Tensor:
        """None.

        Raises:
            UserError: always.
        """
        raise UserError("base=data has no density, so there is no likelihood: it is known by its points alone")
