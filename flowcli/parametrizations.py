r"""What the network is shown and what its output means.

Both ends are centred: $x_t = \alpha x_1 + \sigma x_0$ with means m_1, m_0, variances s^2, b^2 per coordinate and
covariance c between the ends ("moments"). For independent Gaussian noise m_0 = 0, b = 1, c = 0.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flowcli.errors import UserError
from flowcli.paths import Path, Schedule, smallest_u


class Moments(nn.Module):
    """First and second moments of the two ends in model units, as buffers: a checkpoint carries them.

    Attributes:
        mean_0, mean_1: (...), the event's shape.
        var_0, var_1: scalars, mean variance of a coordinate of the noise and of the data.
        cov: scalar, mean covariance of a coordinate between the ends.
        delta: scalar, var_0 var_1 - cov^2.
    """

    mean_0: Tensor
    mean_1: Tensor
    var_0: Tensor
    var_1: Tensor
    cov: Tensor
    delta: Tensor

    def __init__(self, mean_0: Tensor, mean_1: Tensor, var_0: Tensor, var_1: Tensor, cov: Tensor) -> None:
        super().__init__()
        delta = var_1.double() * var_0.double() - cov.double().square()  # single precision would lose it near 0
        given = {"mean_0": mean_0, "mean_1": mean_1, "var_0": var_0, "var_1": var_1, "cov": cov, "delta": delta.to(cov)}
        for name, value in given.items():
            self.register_buffer(name, value)

    @classmethod
    def measured(cls, x_1: Tensor, mean_0: Tensor, var_0: Tensor) -> "Moments":
        """Moments of data x_1 (N, ...) beside independent noise of a known mean and variance."""
        centred = x_1 - x_1.mean(0)
        return cls(mean_0, x_1.mean(0), var_0, centred.square().mean(), torch.zeros_like(var_0))

    @classmethod
    def of_pairs(cls, x_0: Tensor, x_1: Tensor) -> "Moments":
        """Moments of pairs of ends (N, ...)."""
        noise, data = (x.double() - x.double().mean(0) for x in (x_0, x_1))
        var_0, var_1, cov = noise.square().mean(), data.square().mean(), (noise * data).mean()
        return cls(x_0.double().mean(0), x_1.double().mean(0), var_0, var_1, cov)

    def centre(self, c: Schedule) -> Tensor:
        """E x_t, broadcast against (B, ...)."""
        return c.alpha * self.mean_1 + c.sigma * self.mean_0

    def variance(self, c: Schedule) -> Tensor:
        r"""$V = \alpha^2 s^2 + 2 \alpha \sigma c + \sigma^2 b^2$, of the schedule's shape."""
        return c.alpha**2 * self.var_1 + 2 * c.alpha * c.sigma * self.cov + c.sigma**2 * self.var_0

    def angle(self, c: Schedule) -> Tensor:
        r"""The angle of $(\alpha s, \sigma b)$ from the data axis: 0 at clean data, pi/2 at pure noise."""
        scale_1, scale_0 = self.var_1.sqrt(), self.var_0.sqrt()
        correlation = self.cov / (scale_1 * scale_0)
        across = c.sigma * torch.sqrt(self.delta / self.var_1)
        return torch.atan2(across, c.alpha * scale_1 + c.sigma * scale_0 * correlation)


class Parametrization(ABC):
    """Turns the output F of a network into the two ends and the velocity; the schedule c broadcasts to (B, ...)."""

    def __init__(self, u_min: float, u_max: float) -> None:
        self.u_min, self.u_max = u_min, u_max

    def clip(self, u: Tensor) -> Tensor:
        """Keep u where the formulas are finite."""
        return u.clamp(max(self.u_min, smallest_u(u.dtype)), self.u_max)

    @abstractmethod
    def network_input(self, x: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """What the network sees of x_t (B, ...)."""

    @abstractmethod
    def network_time(self, u: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """What the network sees of time, in [0, pi/2], of u's shape."""

    @abstractmethod
    def target(self, x_0: Tensor, x_1: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """What the network should put out for a pair of ends, (B, ...)."""

    @abstractmethod
    def ends(self, x: Tensor, output: Tensor, c: Schedule, moments: Moments) -> tuple[Tensor, Tensor]:
        """Estimates of (x_0, x_1) given x_t = x and the network's output, (B, ...) each."""

    @abstractmethod
    def velocity(self, x: Tensor, output: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """dx/dt (B, ...)."""

    @abstractmethod
    def gains(self, c: Schedule, moments: Moments) -> tuple[Tensor, Tensor]:
        """d ends / d output, of (x_0, x_1): a native loss in an end is its square times |output - target|^2."""

    def velocity_gain(self, c: Schedule, moments: Moments) -> Tensor:
        """d velocity / d output."""
        of_noise, of_data = self.gains(c, moments)
        return c.d_alpha * of_data + c.d_sigma * of_noise


class Preconditioned(Parametrization):
    r"""One target of unit variance, uncorrelated with the input, at every t on every path.

    The network sees $y = (x - E x_t)/\sqrt V$ and the angle, and predicts
    $r = [(\sigma b^2 + \alpha c)(x_1 - m_1) - (\alpha s^2 + \sigma c)(x_0 - m_0)] / \sqrt{\Delta V}$,
    so that nothing is ever divided by alpha or sigma, and every path is the same ODE in the angle, dy/dphi = -F.
    On VP it is the v-prediction of arXiv 2202.00512 up to sign, on VE the preconditioning of arXiv 2206.00364.
    """

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def network_input(self, x: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """y, (B, ...)."""
        return (x - moments.centre(c)) * moments.variance(c).rsqrt()

    def network_time(self, u: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """The angle."""
        return moments.angle(c)

    def target(self, x_0: Tensor, x_1: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """r, (B, ...)."""
        m = moments
        of_data = (c.sigma * m.var_0 + c.alpha * m.cov) * (x_1 - m.mean_1)
        of_noise = (c.alpha * m.var_1 + c.sigma * m.cov) * (x_0 - m.mean_0)
        return (of_data - of_noise) * (m.delta * m.variance(c)).rsqrt()

    def ends(self, x: Tensor, output: Tensor, c: Schedule, moments: Moments) -> tuple[Tensor, Tensor]:
        """Estimates of (x_0, x_1), (B, ...) each."""
        m, variance = moments, moments.variance(c)
        x, turned = x - m.centre(c), torch.sqrt(m.delta * variance) * output
        x_1 = m.mean_1 + ((c.alpha * m.var_1 + c.sigma * m.cov) * x + c.sigma * turned) / variance
        x_0 = m.mean_0 + ((c.sigma * m.var_0 + c.alpha * m.cov) * x - c.alpha * turned) / variance
        return x_0, x_1

    def velocity(self, x: Tensor, output: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """dx/dt (B, ...): the drift of the mean, the stretch V'/2V and the turn by F."""
        m = moments
        half_slope = (
            c.d_alpha * c.alpha * m.var_1
            + (c.d_alpha * c.sigma + c.alpha * c.d_sigma) * m.cov
            + c.d_sigma * c.sigma * m.var_0
        )
        drift = c.d_alpha * m.mean_1 + c.d_sigma * m.mean_0
        return drift + half_slope / m.variance(c) * (x - m.centre(c)) + self.velocity_gain(c, m) * output

    def gains(self, c: Schedule, moments: Moments) -> tuple[Tensor, Tensor]:
        r"""$(-\alpha, \sigma) \sqrt{\Delta / V}$."""
        turn = torch.sqrt(moments.delta / moments.variance(c))
        return -c.alpha * turn, c.sigma * turn


RAW_CUT = 1e-3
"""Raw forms are 0/0 at one end or both; there u or t is held at this distance from the end."""

PREDICTIONS = ("velocity", "data", "noise", "score")


class Raw(Parametrization):
    r"""The network sees x_t and t and puts out the quantity itself, as the lecture notes write it.

    Any target $y = a x_1 + b x_0$ gives back $x_1 = (b x - \sigma y)/D$, $x_0 = (\alpha y - a x)/D$ with
    $D = \alpha b - \sigma a$.
    The data form is 0/0 where sigma = 0, noise and score where alpha = 0, score also where sigma = 0: there the time is
    cut at RAW_CUT, in training and in solving alike.
    """

    def __init__(self, prediction: str, path: Path) -> None:
        """Take what is predicted (a name out of PREDICTIONS) and the path, whose ends decide the cuts."""
        (alpha_0, _), (_, sigma_1) = path.at(1.0), path.at(0.0)
        cut_data = prediction in ("data", "score") and sigma_1 == 0
        cut_noise = prediction in ("noise", "score") and alpha_0 == 0
        super().__init__(RAW_CUT if cut_data else 0.0, 1 - RAW_CUT if cut_noise else 1.0)
        self.prediction = prediction
        self.cuts = [f"t <= {1 - RAW_CUT:g}"] * cut_data + [f"t >= {RAW_CUT:g}"] * cut_noise

    def _coefficients(self, c: Schedule) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(c.alpha)
        match self.prediction:
            case "velocity":
                return c.d_alpha, c.d_sigma
            case "data":
                return torch.ones_like(c.alpha), zero
            case "noise":
                return zero, torch.ones_like(c.alpha)
            case "score":
                return zero, -1 / c.sigma
        raise UserError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}")

    def network_input(self, x: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """x itself."""
        return x

    def network_time(self, u: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """u pi / 2, to share the range of the angle."""
        return u * (torch.pi / 2)

    def target(self, x_0: Tensor, x_1: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """a x_1 + b x_0, (B, ...)."""
        a, b = self._coefficients(c)
        return a * x_1 + b * x_0

    def ends(self, x: Tensor, output: Tensor, c: Schedule, moments: Moments) -> tuple[Tensor, Tensor]:
        """Estimates of (x_0, x_1), (B, ...) each."""
        a, b = self._coefficients(c)
        determinant = c.alpha * b - c.sigma * a
        return (c.alpha * output - a * x) / determinant, (b * x - c.sigma * output) / determinant

    def velocity(self, x: Tensor, output: Tensor, c: Schedule, moments: Moments) -> Tensor:
        """dx/dt (B, ...)."""
        if self.prediction == "velocity":
            return output
        x_0, x_1 = self.ends(x, output, c, moments)
        return c.d_alpha * x_1 + c.d_sigma * x_0

    def gains(self, c: Schedule, moments: Moments) -> tuple[Tensor, Tensor]:
        r"""$(\alpha, -\sigma) / D$."""
        a, b = self._coefficients(c)
        determinant = c.alpha * b - c.sigma * a
        return c.alpha / determinant, -c.sigma / determinant

    def velocity_gain(self, c: Schedule, moments: Moments) -> Tensor:
        """d velocity / d output; 1 for the velocity itself, also where the path stands still."""
        return torch.ones_like(c.alpha) if self.prediction == "velocity" else super().velocity_gain(c, moments)
