r"""The marginal field in closed form: the floor of every objective, and what trained fields are held against.

For data $\sum_k \pi_k N(\mu_k, \Sigma_k)$ and noise N(m_0, b^2 I): $C_k = \alpha^2 \Sigma_k + \sigma^2 b^2 I$,
$M_k = \alpha \mu_k + \sigma m_0$, $w_k \propto \pi_k N(x; M_k, C_k)$, and
$E[x_1 | x] = \sum_k w_k (\mu_k + \alpha \Sigma_k C_k^{-1} (x - M_k))$,
$E[x_0 | x] = \sum_k w_k (m_0 + \sigma b^2 C_k^{-1} (x - M_k))$; and $p_t(x) = \sum_k \pi_k N(x; M_k, C_k)$.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from flowcli.bases import Base, Gaussian, GaussianMixture
from flowcli.dataset import Mixture
from flowcli.errors import UserError, choice
from flowcli.flows.continuous import ContinuousFlow, start_of
from flowcli.flows.fields import PathField, beside
from flowcli.flows.parts import Model, Parts
from flowcli.parametrizations import Moments, Preconditioned
from flowcli.paths import Path, Schedule, smallest_u

WEIGHTS_AT_ONCE = 1 << 24
"""Rows times training points whose weights are held in memory at a time."""


def _refuse(condition: Tensor | None) -> None:
    if condition is not None:
        raise UserError("model=oracle takes no condition")


class ClosedForm(PathField):
    """A field known through the conditional means of its two ends, with the density p_t that it moves."""

    def __init__(self, path: Path, moments: Moments) -> None:
        super().__init__(path, moments, no_score=None)

    @property
    @abstractmethod
    def components(self) -> int:
        """How many terms p_t is a sum of: what a row costs in memory."""

    @property
    def end_has_density(self) -> bool:
        """Whether p_1, at u = 0, has one."""
        return True

    @abstractmethod
    def ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x], E[x_1 | x], (B, ...) each, for coefficients that broadcast against x (B, ...)."""

    @abstractmethod
    def log_mass(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """ln p of x (B, ...), (B,), for such coefficients."""

    def _schedule(self, x: Tensor, u: Tensor) -> Schedule:
        return Schedule(*(beside(value, x) for value in self.path.schedule(u.clamp_min(smallest_u(u.dtype)))))

    def velocity_and_ends(
        self, x: Tensor, u: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Schedule]:
        r"""$\alpha' E[x_1 | x] + \sigma' E[x_0 | x]$ (B, ...), these ends, and the schedule."""
        _refuse(condition)
        c = self._schedule(x, u)
        x_0, x_1 = self.ends(x, c.alpha, c.sigma)
        return c.d_alpha * x_1 + c.d_sigma * x_0, (x_0, x_1), c

    def score(self, x: Tensor, u: Tensor) -> Tensor:
        r"""$\nabla \ln p_t$ (B, ...) at x (B, ...) and u = 1 - t, a scalar or (B,)."""
        return self.velocity_and_score(x, u, None)[1]

    def log_density(self, x: Tensor, u: Tensor) -> Tensor:
        """ln p_t(x) in nats, model units, (B,), at x (B, ...) and u = 1 - t, a scalar or (B,); differentiable in both.

        Below `smallest_u`, where schedules are cut, it stands still.

        Raises:
            UserError: u = 0 on a path that ends at point masses, which have no density.
        """
        if not self.end_has_density and bool((u < smallest_u(u.dtype)).any()):
            raise UserError("the oracle over training points has no density at t = 1: this path ends at them")
        c = self._schedule(x, u)
        return self.log_mass(x, c.alpha, c.sigma)

    def rotation(self, y: Tensor, angle: Tensor, condition: Tensor | None) -> Tensor:
        """E[r | y], (B, ...): the ends seen from the coefficients that the angle stands for (V = 1)."""
        _refuse(condition)
        angle = angle.clamp_min(smallest_u(angle.dtype))
        alpha, sigma = torch.cos(angle) / self.moments.var_1.sqrt(), torch.sin(angle) / self.moments.var_0.sqrt()
        c = Schedule(*(beside(value, y) for value in (alpha, sigma, alpha, sigma)))
        x_0, x_1 = self.ends(y + self.moments.centre(c), c.alpha, c.sigma)
        return Preconditioned().target(x_0, x_1, c, self.moments)


class MixtureField(ClosedForm):
    """Of a Gaussian mixture with full covariances, by their eigenvectors: no factorisation a step."""

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, mixture: Mixture, path: Path, moments: Moments) -> None:
        super().__init__(path, moments)
        variances, axes = torch.linalg.eigh(mixture.covariances)
        self.register_buffer("weights", mixture.weights)
        self.register_buffer("means", mixture.means)
        self.register_buffer("variances", variances)
        self.register_buffer("axes", axes)

    @property
    def components(self) -> int:
        """K."""
        return len(self.weights)

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x - M_k along the axes of component k and its variances there, (B, K, D) each, and ln pi_k N(x; M_k, C_k)."""
        centred = x.flatten(1)[:, None, :] - alpha * self.means - sigma * self.moments.mean_0.flatten()
        turned = torch.einsum("bkd,kde->bke", centred, self.axes)
        variances = alpha**2 * self.variances + sigma**2 * self.moments.var_0
        log_normal = -(turned.square() / variances + (2 * math.pi * variances).log()).sum(-1) / 2
        return turned, variances, self.weights.log() + log_normal

    def ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional means of the ends, (B, ...) each."""
        alpha, sigma = (c.reshape(-1, 1, 1) for c in (alpha, sigma))  # beside (B, K, D)
        turned, variances, log_terms = self._terms(x, alpha, sigma)
        w, scaled = torch.softmax(log_terms, dim=1)[:, :, None], turned / variances
        x_1 = self.means + torch.einsum("bke,kde->bkd", alpha * self.variances * scaled, self.axes)
        x_0 = torch.einsum("bke,kde->bkd", sigma * self.moments.var_0 * scaled, self.axes)
        return self.moments.mean_0 + (w * x_0).sum(1).reshape(x.shape), (w * x_1).sum(1).reshape(x.shape)

    def log_mass(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """ln p of x (B, ...), (B,)."""
        return torch.logsumexp(self._terms(x, alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1))[2], dim=1)


class PointsField(ClosedForm):
    """Of a data set, taken as equal point masses: its flow ends at the training points."""

    points: Tensor

    def __init__(self, points: Tensor, path: Path, moments: Moments) -> None:
        super().__init__(path, moments)
        self.register_buffer("points", points)

    @property
    def components(self) -> int:
        """N."""
        return len(self.points)

    @property
    def end_has_density(self) -> bool:
        """Whether the path ends at smoothed points."""
        return self.path.at(0.0)[1] > 0

    def _in_chunks(self, rule: Callable[..., Tensor], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`rule` of rows (B, D) and coefficients (B, 1), for so many rows at a time as memory should hold."""
        flat = x.flatten(1)
        size = max(1, WEIGHTS_AT_ONCE // len(self.points))
        parts = (value.split(size) for value in (flat, *(c.reshape(-1, 1).expand(len(x), 1) for c in (alpha, sigma))))
        return torch.cat([rule(*part) for part in zip(*parts, strict=True)])

    def ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional means of the ends, (B, ...) each."""
        x_1 = self._in_chunks(self._mean, x, alpha, sigma).reshape(x.shape)
        return (x - alpha * x_1) / sigma, x_1

    def log_mass(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """ln p of x (B, ...), (B,)."""
        return self._in_chunks(self._log_sum, x, alpha, sigma)

    def _logits(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """-|x - M_k|^2 / 2 s^2 b^2 without the term that all points share, (B, N)."""
        points = self.points.flatten(1)
        return (a * (x @ points.T) - a**2 * points.square().sum(1) / 2) / (s**2 * self.moments.var_0)

    def _mean(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x_1 | x] of rows (B, D) at coefficients (B, 1)."""
        return torch.softmax(self._logits(x - s * self.moments.mean_0.flatten(), a, s), dim=1) @ self.points.flatten(1)

    def _log_sum(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """ln p of rows (B, D) at coefficients (B, 1), (B,)."""
        centred, variance = x - s * self.moments.mean_0.flatten(), (s**2 * self.moments.var_0).squeeze(1)
        shared = -centred.square().sum(1) / (2 * variance) - x.shape[1] / 2 * (2 * math.pi * variance).log()
        return torch.logsumexp(self._logits(centred, a, s), dim=1) - math.log(len(self.points)) + shared


def field_of_mixture(mixture: Mixture, path: Path, base: Base) -> MixtureField:
    """The marginal field from a Gaussian base to a mixture in model units.

    Raises:
        UserError: the base is not Gaussian.
    """
    mean_0, var_0 = _gaussian_source(base)
    mean = mixture.weights @ mixture.means
    spread = mixture.covariances.diagonal(dim1=1, dim2=2) + (mixture.means - mean).square()
    var_1 = mixture.weights @ spread.mean(1)
    return MixtureField(
        mixture, path, Moments(mean_0, mean.reshape(mean_0.shape), var_0, var_1, torch.zeros_like(var_0))
    )


def field_of_points(points: Tensor, path: Path, base: Base) -> PointsField:
    """The marginal field from a Gaussian base to points (N, ...) in model units.

    Raises:
        UserError: the base is not Gaussian.
    """
    mean_0, var_0 = _gaussian_source(base)
    return PointsField(points, path, Moments.measured(points, mean_0, var_0))


def noise_of(moments: Moments) -> Gaussian:
    """The Gaussian that a path with these moments starts from."""
    return Gaussian(moments.mean_0.clone(), moments.var_0.sqrt())


def _gaussian_source(base: Base) -> tuple[Tensor, Tensor]:
    """Its mean (...) and variance."""
    if not base.is_gaussian:
        raise UserError("the closed form of the marginal field needs base=gaussian")
    return base.mean, base.std.square()


class OracleFlow(ContinuousFlow):
    """A continuous flow over a closed-form field."""

    @property
    def no_likelihood(self) -> str | None:
        """The path ends at point masses, which have no density; or what any continuous flow says."""
        if isinstance(self.field, ClosedForm) and not self.field.end_has_density:
            return (
                "model=oracle over training points has no density on a path that ends at them (sigma_1 = 0): "
                "give path.sigma_min (path=ot, path=ve), or model.over=target"
            )
        return super().no_likelihood


class Oracle(Model):
    """model=oracle: the closed-form field of the target mixture or of the training points; nothing is trained."""

    trained = False

    def __init__(self, over: str) -> None:
        """over: target (a Gaussian mixture) or train (the training points)."""
        self.over = choice("over", over, ("target", "train"))

    def flow(self, parts: Parts) -> OracleFlow:
        """The flow in closed form.

        Raises:
            UserError: the base is not Gaussian, or the target is no mixture.
        """
        if parts.path is None or parts.solver is None or parts.divergence is None:
            raise UserError("model=oracle needs a path, a solver and a divergence, e.g. path=ot")
        if self.over == "train":
            points = parts.tensors["field.points"] if parts.tensors is not None else parts.train
            assert points is not None
            field = field_of_points(points, parts.path, parts.base)
            start = start_of(parts.path, parts.base, field.moments)
        else:
            mixture = self._mixture(parts)
            field = field_of_mixture(mixture, parts.path, parts.base)
            start = parts.base if parts.path.starts_at_noise else _exact_start(mixture, parts.path, parts)
        made = OracleFlow(field, start, parts.transform, parts.solver, parts.divergence, parts.event_shape)
        made.require_plan(parts.tensors)
        return made

    def _mixture(self, parts: Parts) -> Mixture:
        if parts.tensors is not None:  # sizes alone: the numbers follow with the state dict
            means = torch.zeros_like(parts.tensors["field.means"], dtype=torch.float64)
            count, size = means.shape
            return Mixture(torch.ones(count).double() / count, means, torch.eye(size).double().expand(count, -1, -1))
        if parts.mixture is None:
            raise UserError(
                "model=oracle: this data is no Gaussian mixture; model.over=train takes the training points"
            )
        return parts.mixture


def _exact_start(mixture: Mixture, path: Path, parts: Parts) -> Base:
    """The path's own p_0, which is a mixture too."""
    alpha, sigma = path.at(1.0)
    means = alpha * mixture.means + sigma * parts.base.mean.flatten()
    noise = sigma**2 * parts.base.std.square() * torch.eye(math.prod(parts.event_shape), dtype=torch.float64)
    return GaussianMixture(mixture.weights, means, alpha**2 * mixture.covariances + noise, parts.event_shape)
