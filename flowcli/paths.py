r"""Affine Gaussian paths $x_t = \alpha_t x_1 + \sigma_t x_0$; t = 0 is noise, t = 1 is data.

Every schedule is a function of $u = 1 - t$, the time left to the data, and not of t: near the data
$\sigma_t$ and its slope depend on u, which float32 resolves there and t does not.
Lipman et al. (arXiv 2210.02747); Song et al. (arXiv 2011.13456); lecture notes 001 V and 004.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli.errors import UserError, number
from flowcli.expressions import Dual, parse


class Schedule(NamedTuple):
    """Coefficients and their derivatives with respect to t (not u), each of u's shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def smallest_u(dtype: torch.dtype) -> float:
    """Where schedules are cut: at u = 0 the slope of sigma may be infinite, and it is only ever needed above this."""
    return 1e-10 if dtype == torch.float64 else 1e-6


class Path(ABC):
    """A pair of schedules from noise to data.

    Attributes:
        warp: sigma falls to 0 like u^(1/warp) at the data end. Adaptive solvers step in w with u = w^warp,
            where the field stays finite; fixed-step grids are uniform in w.
    """

    warp: int = 1

    @abstractmethod
    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape, `smallest_u` <= u <= 1."""

    def at(self, u: float) -> tuple[float, float]:
        """(alpha, sigma) at u in [0, 1] as numbers; u = 0 means the limit at the data end."""
        # evaluated in float64 a hair inside, then rounded: sigma_1 = 0 must come out as 0
        point = torch.tensor(u, dtype=torch.float64).clamp_min(1e-30)
        alpha, sigma, _, _ = self.schedule(point)
        return float(alpha), float(sigma) if float(sigma) > 1e-12 else 0.0

    @property
    def starts_at_noise(self) -> bool:
        """Whether alpha_0 = 0, so that the state at t = 0 is the base itself."""
        return self.at(1.0)[0] == 0.0


@dataclass(frozen=True)
class OT(Path):
    r"""Straight conditional paths, $\alpha_t = t$, $\sigma_t = 1 - (1 - \sigma_{min}) t$ (arXiv 2210.02747).

    With sigma_min = 0 the velocity is $x_1 - x_0$; with sigma_min > 0 the flow ends at the data smoothed by it.
    """

    sigma_min: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma_min", number("sigma_min", self.sigma_min, minimum=0, below=1))

    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape."""
        one = torch.ones_like(u)
        return Schedule(1 - u, self.sigma_min + (1 - self.sigma_min) * u, one, (self.sigma_min - 1) * one)


@dataclass(frozen=True)
class VP(Path):
    r"""Variance preserving: $\alpha_t = e^{-T/2}$, $\sigma_t^2 = 1 - e^{-T}$.

    $T = \beta_{min} u + (\beta_{max} - \beta_{min}) u^2 / 2$ integrates beta from the data end (arXiv 2011.13456).
    alpha_0 is small but not 0 (0.0066 for beta 0.1, 20); the slope of sigma diverges like u^(-1/2) at the data.
    """

    beta_min: float
    beta_max: float
    warp = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta_min", number("beta_min", self.beta_min, minimum=1e-6))
        object.__setattr__(self, "beta_max", number("beta_max", self.beta_max, minimum=self.beta_min, maximum=1000))

    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape."""
        slope = self.beta_max - self.beta_min
        beta, integral = self.beta_min + slope * u, self.beta_min * u + slope * u**2 / 2
        alpha = torch.exp(-integral / 2)
        sigma = torch.sqrt(-torch.expm1(-integral))  # expm1 keeps a small sigma accurate
        return Schedule(alpha, sigma, beta * alpha / 2, -beta * alpha**2 / (2 * sigma))


@dataclass(frozen=True)
class VE(Path):
    r"""Variance exploding: $\alpha_t = 1$, $\sigma_t = \sigma_{min} (\sigma_{max} / \sigma_{min})^{1 - t}$.

    It starts at $N(x_1, \sigma_{max}^2)$, and ends at the data smoothed by sigma_min.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma_min", number("sigma_min", self.sigma_min, minimum=1e-6))
        # beyond 1e4 float32 cannot hold noise and data of size 1 in one number to four digits
        object.__setattr__(self, "sigma_max", number("sigma_max", self.sigma_max, above=self.sigma_min, maximum=1e4))

    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape."""
        rate = math.log(self.sigma_max / self.sigma_min)
        sigma = self.sigma_min * torch.exp(rate * u)
        return Schedule(torch.ones_like(u), sigma, torch.zeros_like(u), -rate * sigma)


@dataclass(frozen=True)
class LinearVP(Path):
    r"""$\alpha_t = t$, $\sigma_t = \sqrt{1 - t^2}$: variance preserving with a linear mean."""

    warp = 2

    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape."""
        sigma = torch.sqrt(u * (2 - u))
        return Schedule(1 - u, sigma, torch.ones_like(u), -(1 - u) / sigma)


@dataclass(frozen=True)
class Cosine(Path):
    r"""$\alpha_t = \sin(\pi t / 2)$, $\sigma_t = \cos(\pi t / 2)$: uniform in the angle (arXiv 2209.15571)."""

    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape."""
        angle = u * (math.pi / 2)
        # sin(pi/2 (1 - u)), not cos(pi u / 2): alpha_0 comes out as exactly 0
        alpha, sigma = torch.sin((1 - u) * (math.pi / 2)), torch.sin(angle)
        return Schedule(alpha, sigma, sigma * (math.pi / 2), -alpha * (math.pi / 2))


class Custom(Path):
    """Any alpha and sigma given as expressions of t, or of u = 1 - t where digits near the data matter.

    Legal are numbers, t, u, pi, + - * / **, brackets and sqrt, exp, log, sin, cos, tan, tanh. The slopes come
    with the values, by the chain rule. Both ends are checked: (alpha, sigma) must go from (0, 1) to (1, 0).
    """

    def __init__(self, alpha: str, sigma: str, warp: int) -> None:
        """Parse and check the two expressions.

        Raises:
            UserError: a name or an operation that is not listed, ends that are wrong, an angle that turns back.
        """
        if isinstance(warp, bool) or warp not in (1, 2):
            raise UserError(f"warp must be 1 or 2 (sigma falls like u^(1/warp) at the data), got {warp!r}")
        self.alpha, self.sigma, self.warp = str(alpha), str(sigma), int(warp)
        self._functions = tuple(_of_time(name, text) for name, text in (("alpha", alpha), ("sigma", sigma)))
        self._check()

    def __repr__(self) -> str:
        return f"Custom(alpha={self.alpha!r}, sigma={self.sigma!r}, warp={self.warp})"

    def schedule(self, u: Tensor) -> Schedule:
        """Evaluate the coefficients at u = 1 - t, any shape."""
        (alpha, d_alpha), (sigma, d_sigma) = (function(u) for function in self._functions)
        return Schedule(alpha, sigma, d_alpha, d_sigma)

    def at(self, u: float) -> tuple[float, float]:
        """(alpha, sigma) at u in [0, 1] as numbers, the ends cleaned of rounding."""
        alpha, sigma = super().at(u)
        return (0.0 if abs(alpha) < 1e-12 else alpha), sigma

    def _check(self) -> None:
        for t, u, expected in ((0, 1.0, (0.0, 1.0)), (1, 0.0, (1.0, 0.0))):
            found = self.at(u)
            if not all(abs(a - b) < 1e-6 for a, b in zip(found, expected, strict=True)):
                raise UserError(f"alpha, sigma must be {expected} at t = {t}, got ({found[0]:.6g}, {found[1]:.6g})")
        slopes = self.schedule(torch.tensor([1e-6, 1.0], dtype=torch.float64))[2:]  # at the data they may be infinite
        if not all(bool(torch.isfinite(slope).all()) for slope in slopes):
            raise UserError("alpha and sigma need finite slopes at t = 0, where solving starts")
        u = torch.linspace(1e-6, 1 - 1e-6, 2001, dtype=torch.float64)
        alpha, sigma, d_alpha, d_sigma = self.schedule(u)
        turn = d_alpha * sigma - d_sigma * alpha  # the angle atan2(sigma, alpha) must fall all the way
        bad = ~(turn > 0) | ~torch.isfinite(turn)
        if bool(bad.any()):
            t = 1 - float(u[bad][0])
            raise UserError(f"alpha / sigma must grow all the way from t = 0 to 1; it does not at t = {t:.4f}")


def _of_time(name: str, text: object) -> Callable[[Tensor], Dual]:
    evaluate = parse(name, text, ("t", "u"), "a path")
    return lambda u: evaluate({"u": (u, -torch.ones_like(u)), "t": (1 - u, torch.ones_like(u))})
