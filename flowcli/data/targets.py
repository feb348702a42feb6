r"""Distributions whose density is known: closed forms, and curves with Gaussian noise by quadrature.

Float64, data units, nats throughout. Every class satisfies `flowcli.dataset.Target`; arguments are taken as valid
(the sources in `toys` check what a user wrote).
"""

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowcli.dataset import Mixture

_CHUNK = 1 << 17
"""Elements of a scratch matrix of `log_prob` (1 MiB): memory stays bounded and the passes stay in cache."""

_MAX_CELLS = 1 << 22
"""An entropy whose grid would need more cells than this is not computed."""


class GaussianMixture:
    r"""$\sum_k \pi_k N(\mu_k, \Sigma_k)$ in any dimension; one component is a Gaussian."""

    def __init__(self, mixture: Mixture) -> None:
        """Factor the covariances; they must be positive definite."""
        self.mixture = mixture
        self._cholesky = torch.linalg.cholesky(mixture.covariances)
        identity = torch.eye(mixture.means.shape[1], dtype=torch.float64)
        self._whiten = torch.linalg.solve_triangular(self._cholesky, identity, upper=False)
        log_det = self._cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        self._log_scale = mixture.weights.log() - log_det - mixture.means.shape[1] / 2 * math.log(2 * math.pi)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, D)."""
        k = torch.multinomial(self.mixture.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.mixture.means.shape[1], generator=generator, dtype=torch.float64)
        return self.mixture.means[k] + torch.einsum("nij,nj->ni", self._cholesky[k], z)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of x (N, D), (N,)."""
        rows = max(1, _CHUNK // self.mixture.means.numel())
        return torch.cat([self._log_prob(chunk) for chunk in x.split(rows)])

    def _log_prob(self, x: Tensor) -> Tensor:
        z = torch.einsum("kij,nkj->nki", self._whiten, x[:, None] - self.mixture.means)
        return torch.logsumexp(self._log_scale - z.square().sum(-1) / 2, 1)

    @property
    def entropy(self) -> float | None:
        """Exact for one component; else by quadrature at every call, or None where the grid would be too large."""
        mixture = self.mixture
        if len(mixture.weights) == 1:
            dimension = mixture.means.shape[1]
            return float(dimension / 2 * (1 + math.log(2 * math.pi)) + self._cholesky[0].diagonal().log().sum())
        reach = 9 * mixture.covariances.diagonal(dim1=1, dim2=2).sqrt()
        finest = float(torch.linalg.eigvalsh(mixture.covariances).min().sqrt())
        return grid_entropy(
            self.log_prob, (mixture.means - reach).amin(0), (mixture.means + reach).amax(0), step=finest / 2
        )


class Checkerboard:
    """Uniform on every other square of a board of squares x squares cells that spans [-half_width, half_width]^2."""

    def __init__(self, half_width: float, squares: int) -> None:
        """Take an even number of squares a side; the lower left one is filled."""
        self.half_width, self.squares = half_width, squares
        self.entropy: float = math.log(2 * half_width**2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, 2)."""
        column = torch.randint(0, self.squares, (n,), generator=generator)
        row = 2 * torch.randint(0, self.squares // 2, (n,), generator=generator) + column % 2
        inside = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return (torch.stack([column, row], 1) + inside) * (2 * self.half_width / self.squares) - self.half_width

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of x (N, 2), (N,); -inf outside the filled squares."""
        cell = torch.floor((x + self.half_width) * (self.squares / (2 * self.half_width)))
        filled = ((cell >= 0) & (cell < self.squares)).all(1) & (cell.sum(1) % 2 == 0)
        return x.new_full((len(x),), -self.entropy).masked_fill(~filled, -math.inf)


class Circles:
    r"""Concentric circles of equal weight, each convolved with an isotropic Gaussian.

    For one radius $a$: $p(x) = \exp(-(|x| - a)^2 / 2\sigma^2)\, I_0^e(|x| a / \sigma^2) / 2\pi\sigma^2$, where $I_0^e$
    is the exponentially scaled Bessel function.
    """

    def __init__(self, radii: Tensor, std: float) -> None:
        """Take radii (K,) and the standard deviation of the noise."""
        self.radii, self.std = radii, std

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, 2)."""
        radius = self.radii[torch.randint(0, len(self.radii), (n,), generator=generator)]
        angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of x (N, 2), (N,)."""
        r, variance = x.norm(dim=1, keepdim=True), self.std**2
        terms = torch.special.i0e(r * self.radii / variance).log() - (r - self.radii).square() / (2 * variance)
        return torch.logsumexp(terms, 1) - math.log(2 * math.pi * variance * len(self.radii))

    @property
    def entropy(self) -> float | None:
        """By quadrature at every call; None where the grid would be too large."""
        reach = (self.radii.max() + 9 * self.std).expand(2)
        return grid_entropy(self.log_prob, -reach, reach, step=self.std / 2)


class NoisyCurve:
    r"""Points $c(u)$ of plane curves, $u \sim U(0, 1)$, each curve as likely, plus an isotropic Gaussian.

    $p(x) = \int N(x; c(u), \sigma^2 I)\, du$ by composite Gauss-Legendre quadrature in $s = u^{1/e}$, with panels so
    short beside $\sigma$ that log p is good to 1e-6 wherever it is within 40 nats of its maximum.
    """

    PANEL = 6.0
    """Longest panel of 16 nodes, in units of the noise."""
    MAX_LENGTH = 4000.0
    """Longest curve, in units of the noise, that the quadrature takes on."""

    def __init__(self, curves: tuple[Callable[[Tensor], Tensor], ...], *, exponent: float, std: float) -> None:
        """Take the curves, maps from s (n,) in [0, 1] to points (n, 2).

        Args:
            curves: congruent; smooth in s but for a kink in the middle, where two panels always meet.
            exponent: s = u ** exponent; 1 spreads the points evenly in s, 1/2 gives s the density 2 s.
            std: standard deviation of the noise.

        Raises:
            ValueError: the curves are longer than MAX_LENGTH times std.
        """
        self.curves, self.exponent, self.std = curves, exponent, std
        if self.length > self.MAX_LENGTH * std:
            raise ValueError(f"std must be >= {self.length / self.MAX_LENGTH:.3g} on a curve of this length")

    @cached_property
    def _arc(self) -> Tensor:
        """Length of the first curve (they are congruent) up to 2001 even steps of s."""
        steps = self.curves[0](torch.linspace(0, 1, 2001, dtype=torch.float64)).diff(dim=0).norm(dim=1)
        return torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])

    @property
    def length(self) -> float:
        """Length of one curve."""
        return float(self._arc[-1])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, 2)."""
        which = torch.randint(0, len(self.curves), (n,), generator=generator)
        s = torch.rand(n, generator=generator, dtype=torch.float64) ** self.exponent
        points = torch.stack([curve(s) for curve in self.curves])[which, torch.arange(n)]
        return points + self.std * torch.randn(n, 2, generator=generator, dtype=torch.float64)

    def nodes(self, panel: float) -> tuple[Tensor, Tensor]:
        """Nodes (M, 2) and log-weights (M,) of the quadrature, with panels of at most `panel` times the noise."""
        panels = 2 * math.ceil(self.length / (2 * panel * self.std))
        grid = np.linspace(0, 1, len(self._arc))
        edges = torch.from_numpy(np.interp(np.linspace(0, self.length, panels + 1), self._arc.numpy(), grid))
        z, w = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(16))
        s = (edges[:-1, None] + edges.diff()[:, None] * (z + 1) / 2).flatten()
        density = s ** (1 / self.exponent - 1) / self.exponent
        weight = density * (edges.diff()[:, None] * w / 2).flatten() / len(self.curves)
        return torch.cat([curve(s) for curve in self.curves]), weight.log().repeat(len(self.curves))

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        return self.nodes(self.PANEL)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x (N, 2), (N,), exact to 1e-6."""
        points, log_weight = self._nodes
        # |x - c|^2 is opened up, so that one matrix product and one exponential a node are all the work.
        offset = log_weight - points.square().sum(1) / (2 * self.std**2) - math.log(2 * math.pi * self.std**2)
        scaled = (points / self.std**2).T.contiguous()
        rows = max(1, _CHUNK // len(points))
        chunks = [
            torch.logsumexp(torch.addmm(offset, chunk, scaled), 1) - chunk.square().sum(1) / (2 * self.std**2)
            for chunk in x.split(rows)
        ]
        return torch.cat(chunks)

    @property
    def entropy(self) -> float | None:
        """By quadrature at every call; None where the grid would be too large."""
        points, reach = self._nodes[0], 9 * self.std
        return grid_entropy(self.log_prob, points.amin(0) - reach, points.amax(0) + reach, step=self.std / 2)


class Pinwheel:
    r"""Arms of Gaussian blobs, each twisted by an angle that grows with the distance from the centre.

    A blob $f = (1 + \sigma_r z_1, \sigma_t z_2)$ of arm k is turned by $-(2\pi k/K + \mathrm{rate}\, e^{|f|})$ and
    scaled. Turning by an angle that depends on |f| alone keeps areas, so the density of an arm is the Gaussian's at the
    point turned back, divided by scale^2: exact. (The published code turns by $e^{f_1}$ instead, a fold without a
    closed form; the two angles differ by about 0.003.)
    """

    def __init__(self, *, arms: int, radial_std: float, tangential_std: float, rate: float, scale: float) -> None:
        """Take the number of arms, the spreads before scaling, the twist and the scale."""
        self.arms, self.rate, self.scale = arms, rate, scale
        self._std = torch.tensor([radial_std, tangential_std], dtype=torch.float64)
        self._centre = torch.tensor([1.0, 0.0], dtype=torch.float64)
        self._angles = torch.arange(arms, dtype=torch.float64) * (2 * math.pi / arms)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, 2)."""
        arm = torch.randint(0, self.arms, (n,), generator=generator)
        f = self._centre + self._std * torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return self.scale * _turn(f, -self._angles[arm] - self._twist(f))

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of x (N, 2), (N,)."""
        f = x / self.scale
        blobs = _turn(f[:, None], self._angles + self._twist(f)[:, None])
        terms = -((blobs - self._centre) / self._std).square().sum(-1) / 2
        return torch.logsumexp(terms, 1) - torch.log(2 * math.pi * self._std.prod() * self.arms * self.scale**2)

    def _twist(self, f: Tensor) -> Tensor:
        return self.rate * f.norm(dim=-1).exp()

    @property
    def entropy(self) -> float | None:
        """By quadrature at every call; None where the grid would be too large."""
        radius = float(torch.hypot(1 + 9 * self._std[0], 9 * self._std[1]))
        # The twist shears: across an arm the density can change faster than the blob by the slope of the angle.
        typical = 1 + 4 * float(self._std[0])
        shear = 1 + self.rate * math.exp(typical) * typical
        reach = torch.full((2,), self.scale * radius, dtype=torch.float64)
        return grid_entropy(self.log_prob, -reach, reach, step=self.scale * float(self._std.min()) / shear)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Turn x (..., 2) anticlockwise by angle (...)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


def grid_entropy(log_prob: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, *, step: float) -> float | None:
    r"""$-\int p \ln p$ over a box (D,) to (D,) by the trapezoid rule, or None beyond 4 million cells.

    The density must vanish at the box's edges; the rule then converges exponentially: with a step of half the finest
    Gaussian scale the error is below 1e-9.
    """
    counts = ((high - low) / step).ceil().long() + 1
    if math.prod(counts.tolist()) > _MAX_CELLS:
        return None
    axes = [
        torch.linspace(float(a), float(b), int(n), dtype=torch.float64)
        for a, b, n in zip(low, high, counts, strict=True)
    ]
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    total = 0.0
    for chunk in grid.split(_CHUNK):
        log_p = log_prob(chunk)
        total -= float((log_p.exp() * log_p).sum())
    return total * cell
