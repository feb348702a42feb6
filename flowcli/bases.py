"""Distributions at the noise end, in model units."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn


class Base(nn.Module):
    """A distribution over events (...) that can be sampled and scored.

    Attributes:
        mean: (...), buffer.
        std: scalar, buffer: the root of the mean variance of a coordinate. Latents are (x - mean) / std.
        is_gaussian: N(mean, std^2 I); paths that do not start at the base itself, and scores, need that.
    """

    mean: Tensor
    std: Tensor
    is_gaussian: bool

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, ...) on the CPU in float32, so that another dtype or device sees the same numbers."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (B, ...) in nats, (B,)."""

    def to_latent(self, x: Tensor) -> Tensor:
        """z = (x - mean) / std, (B, ...)."""
        return (x - self.mean) / self.std

    def from_latent(self, z: Tensor) -> Tensor:
        """x = mean + std z, (B, ...)."""
        return self.mean + self.std * z


class Gaussian(Base):
    """N(mean, std^2 I)."""

    is_gaussian = True

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
