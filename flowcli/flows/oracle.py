r"""The marginal field in closed form: the floor of every objective, and what trained fields are held against.

For data $\sum_k \pi_k N(\mu_k, \Sigma_k)$ and noise N(m_0, b^2 I): $C_k = \alpha^2 \Sigma_k + \sigma^2 b^2 I$,
$M_k = \alpha \mu_k + \sigma m_0$, $w_k \propto \pi_k N(x; M_k, C_k)$, and
$E[x_1 | x] = \sum_k w_k (\mu_k + \alpha \Sigma_k C_k^{-1} (x - M_k))$,
$E[x_0 | x] = \sum_k w_k (m_0 + \sigma b^2 C_k^{-1} (x - M_k))$.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from flowcli.bases import Base, GaussianMixture
from flowcli.dataset import Mixture
from flowcli.errors import UserError, choice
from flowcli.flows.base import Result
from flowcli.flows.continuous import ContinuousFlow, Parts, start_of
from flowcli.flows.fields import Field, beside
from flowcli.parametrizations import Moments, Preconditioned
from flowcli.paths import Path, Schedule, smallest_u

WEIGHTS_AT_ONCE = 1 << 24
"""Rows times training points whose weights are held in memory at a time."""


def _refuse(condition: Tensor | None) -> None:
    if condition is not None:
        raise UserError("model=oracle takes no condition")


class ClosedForm(Field):
    """A field known through the conditional means of its two ends."""

    @abstractmethod
    def ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x], E[x_1 | x], (B, ...) each, for coefficients that broadcast against x (B, ...)."""

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        r"""$\alpha' E[x_1 | x] + \sigma' E[x_0 | x]$, (B, ...)."""
        _refuse(condition)
        c = Schedule(*(beside(value, x) for value in self.path.schedule(u.clamp_min(smallest_u(u.dtype)))))
        x_0, x_1 = self.ends(x, c.alpha, c.sigma)
        return c.d_alpha * x_1 + c.d_sigma * x_0

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

    def ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional means of the ends, (B, ...) each."""
        shape, var_0 = x.shape, self.moments.var_0
        alpha, sigma = (c.reshape(-1, 1, 1) for c in (alpha, sigma))  # beside (B, K, D)
        mean_0 = self.moments.mean_0.flatten()
        centred = x.flatten(1)[:, None, :] - alpha * self.means - sigma * mean_0
        turned = torch.einsum("bkd,kde->bke", centred, self.axes)
        variances = alpha**2 * self.variances + sigma**2 * var_0
        log_weights = self.weights.log() - (turned.square() / variances + variances.log()).sum(-1) / 2
        w = torch.softmax(log_weights, dim=1)[:, :, None]
        scaled = turned / variances
        x_1 = self.means + torch.einsum("bke,kde->bkd", alpha * self.variances * scaled, self.axes)
        x_0 = mean_0 + torch.einsum("bke,kde->bkd", sigma * var_0 * scaled, self.axes)
        return (w * x_0).sum(1).reshape(shape), (w * x_1).sum(1).reshape(shape)


class PointsField(ClosedForm):
    """Of a data set, taken as equal point masses: its flow ends at the training points."""

    points: Tensor

    def __init__(self, points: Tensor, path: Path, moments: Moments) -> None:
        super().__init__(path, moments)
        self.register_buffer("points", points)

    def ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional means of the ends, (B, ...) each."""
        flat = x.flatten(1)
        a, s = alpha.reshape(-1, 1).expand(len(flat), 1), sigma.reshape(-1, 1).expand(len(flat), 1)
        size = max(1, WEIGHTS_AT_ONCE // len(self.points))
        parts = [self._mean(*part) for part in zip(flat.split(size), a.split(size), s.split(size), strict=True)]
        x_1 = torch.cat(parts)
        return ((flat - a * x_1) / s).reshape(x.shape), x_1.reshape(x.shape)

    def _mean(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x_1 | x] of rows (B, D) at coefficients (B, 1)."""
        points = self.points.flatten(1)
        centred = x - s * self.moments.mean_0.flatten()
        # -|x - a p|^2 / 2 s^2 b^2 without the term that all points share
        logits = (a * (centred @ points.T) - a**2 * points.square().sum(1) / 2) / (s**2 * self.moments.var_0)
        return torch.softmax(logits, dim=1) @ points


class OracleFlow(ContinuousFlow):
    """A continuous flow over a closed-form field."""

    def log_prob(
        self, x: Tensor, *, seed: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Log-density of x (B, ...) in nats.

        Raises:
            UserError: the path ends at point masses, which have no density.
        """
        if isinstance(self.field, PointsField) and self.field.path.at(0.0)[1] == 0:
            raise UserError(
                "model=oracle over training points has no density on a path that ends at them (sigma_1 = 0): "
                "give path.sigma_min (path=ot, path=ve), or model.over=target"
            )
        return super().log_prob(x, seed=seed, batch_size=batch_size, condition=condition)


class Oracle:
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
        if not parts.base.is_gaussian:
            raise UserError("model=oracle needs base=gaussian: the closed form is that of a Gaussian source")
        mean_0, var_0 = parts.base.mean, parts.base.std.square()
        if self.over == "train":
            points = parts.tensors["field.points"] if parts.tensors is not None else parts.train
            assert points is not None
            moments = Moments.measured(points, mean_0, var_0)
            field: ClosedForm = PointsField(points, parts.path, moments)
            start = start_of(parts.path, parts.base, moments)
        else:
            mixture = self._mixture(parts)
            mean = mixture.weights @ mixture.means
            spread = mixture.covariances.diagonal(dim1=1, dim2=2) + (mixture.means - mean).square()
            var_1 = mixture.weights @ spread.mean(1)
            moments = Moments(mean_0, mean.reshape(parts.event_shape), var_0, var_1, torch.zeros_like(var_0))
            field = MixtureField(mixture, parts.path, moments)
            start = parts.base if parts.path.starts_at_noise else _exact_start(mixture, parts)
        return OracleFlow(field, start, parts.transform, parts.solver, parts.divergence, parts.event_shape)

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


def _exact_start(mixture: Mixture, parts: Parts) -> Base:
    """The path's own p_0, which is a mixture too."""
    alpha, sigma = parts.path.at(1.0)
    means = alpha * mixture.means + sigma * parts.base.mean.flatten()
    noise = sigma**2 * parts.base.std.square() * torch.eye(math.prod(parts.event_shape), dtype=torch.float64)
    return GaussianMixture(mixture.weights, means, alpha**2 * mixture.covariances + noise, parts.event_shape)
