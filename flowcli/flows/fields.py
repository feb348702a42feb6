"""Velocity fields in model units: what a continuous flow is solved along."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from flowcli.divergence import pulled
from flowcli.errors import UserError
from flowcli.parametrizations import Moments, Parametrization, Preconditioned
from flowcli.paths import Path, Schedule


def beside(value: Tensor, x: Tensor) -> Tensor:
    """Shape a scalar or (B,) so that it broadcasts against x (B, ...)."""
    return value.reshape(-1, *[1] * (x.dim() - 1)) if value.dim() else value


class Field(nn.Module):
    """A velocity field in model units.

    Attributes:
        warp: solvers step in w with u = w^warp, where the field stays finite (see `paths.Path`).
        turns: whether it is also a `PathField.rotation`, so that solver.time=angle may be used.
        no_score: why there is no score, so that no SDE may be solved; None where there is one.
    """

    warp: int = 1
    turns: bool = False
    no_score: str | None = "the field belongs to no probability path"

    @abstractmethod
    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """dx/dt (B, ...) at x (B, ...) and u = 1 - t, a scalar or (B,)."""

    def along(self, x: Tensor, u: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity (B, ...), and J e or e^T J for each direction e (K, B or 1, ...), (K, B, ...)."""
        return pulled(lambda x: self.velocity(x, u, condition), x, directions)


def network_along(
    network: nn.Module, x: Tensor, time: Tensor, condition: Tensor | None, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (B, ...), and J e or e^T J for each direction (K, B or 1, ...): by the network's own rule, if any."""
    rule = getattr(network, "along", None)
    if rule is None:
        return pulled(lambda x: network(x, time, condition), x, directions)
    return rule(x, time, condition, directions)


class FreeField(Field):
    """A network as the velocity itself, on no path: what maximum likelihood trains (notes 001 IV, 002)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """The network at x (B, ...); its time is u, and no faster: what moves fast in time needs more solver steps."""
        return self.network(x, u, condition)

    def along(self, x: Tensor, u: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Of the network."""
        return network_along(self.network, x, u, condition, directions)


class PathField(Field):
    """A field that belongs to a probability path, with the moments of that path's ends."""

    moments: Moments

    def __init__(self, path: Path, moments: Moments, no_score: str | None) -> None:
        super().__init__()
        self.path, self.moments, self.no_score, self.warp = path, moments, no_score, path.warp
        self.turns = True

    @abstractmethod
    def velocity_and_ends(
        self, x: Tensor, u: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Schedule]:
        """The velocity, the estimates of (x_0, x_1), (B, ...) each, and the schedule that they were taken at."""

    @abstractmethod
    def rotation(self, y: Tensor, angle: Tensor, condition: Tensor | None) -> Tensor:
        """F (B, ...) of dy/dphi = -F at y (B, ...) and an angle, a scalar or (B,)."""

    def rotation_along(
        self, y: Tensor, angle: Tensor, condition: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """F (B, ...), and J e or e^T J for each direction e (K, B or 1, ...), (K, B, ...)."""
        return pulled(lambda y: self.rotation(y, angle, condition), y, directions)

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """dx/dt (B, ...)."""
        return self.velocity_and_ends(x, u, condition)[0]

    def velocity_and_score(self, x: Tensor, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        r"""dx/dt and $\nabla \log p_t = -(E[x_0 | x] - m_0) / (\sigma b^2)$, (B, ...) each.

        Raises:
            UserError: the noise is not Gaussian, or depends on the data.
        """
        if self.no_score is not None:
            raise UserError(f"there is no score: {self.no_score}")
        velocity, (x_0, _), c = self.velocity_and_ends(x, u, condition)
        return velocity, (self.moments.mean_0 - x_0) / (c.sigma * self.moments.var_0)


class LearnedField(PathField):
    """A network behind a parametrisation."""

    def __init__(
        self,
        network: nn.Module,
        parametrization: Parametrization,
        path: Path,
        moments: Moments,
        no_score: str | None = None,
    ) -> None:
        super().__init__(path, moments, no_score)
        self.network, self.parametrization = network, parametrization
        self.turns = isinstance(parametrization, Preconditioned)  # raw outputs depend on the path's own time

    def shown(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Schedule]:
        """What the network sees of x (B, ...) and of u, a scalar or (B,), and the schedule, shaped to broadcast."""
        u = self.parametrization.clip(u)
        c = self.path.schedule(u)
        time = self.parametrization.network_time(u, c, self.moments)
        c = Schedule(*(beside(value, x) for value in c))
        return self.parametrization.network_input(x, c, self.moments), time, c

    def _evaluate(self, x: Tensor, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Schedule]:
        """The network's output (B, ...) and the schedule, shaped to broadcast."""
        seen, time, c = self.shown(x, u)
        return self.network(seen, time, condition), c

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """dx/dt (B, ...), without the ends, which cost more than they look in a solve."""
        output, c = self._evaluate(x, u, condition)
        return self.parametrization.velocity(x, output, c, self.moments)

    def velocity_and_ends(
        self, x: Tensor, u: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Schedule]:
        """The velocity and the estimates of the ends, from one evaluation of the network."""
        output, c = self._evaluate(x, u, condition)
        ends = self.parametrization.ends(x, output, c, self.moments)
        return self.parametrization.velocity(x, output, c, self.moments), ends, c

    def along(self, x: Tensor, u: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Of the network, whose input is x times a number for each row, and the velocity a sum of x and its output."""
        seen, time, c = self.shown(x, u)
        rule, m, zero = self.parametrization, self.moments, torch.zeros_like(x)
        shown = rule.network_input(directions, c, m) - rule.network_input(torch.zeros_like(directions), c, m)
        output, products = network_along(self.network, seen, time, condition, shown)
        slope = rule.velocity(directions, products, c, m) - rule.velocity(zero, zero, c, m)
        return rule.velocity(x, output, c, m), slope

    def rotation(self, y: Tensor, angle: Tensor, condition: Tensor | None) -> Tensor:
        """The preconditioned network itself."""
        return self.network(y, angle, condition)

    def rotation_along(
        self, y: Tensor, angle: Tensor, condition: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the network."""
        return network_along(self.network, y, angle, condition, directions)

    def overflow(self) -> str | None:
        """Where a number of this field, or its square, leaves the range of the field's precision; None: nowhere."""
        m = self.moments
        u = self.parametrization.clip(torch.linspace(0, 1, 257, dtype=m.var_1.dtype, device=m.var_1.device))
        c = self.path.schedule(u)
        gains = (*self.parametrization.gains(c, m), self.parametrization.velocity_gain(c, m), m.variance(c).rsqrt())
        fits = torch.stack([torch.isfinite(value.square()) for value in torch.broadcast_tensors(*c, *gains)]).all(0)
        if bool(fits.all()):
            return None
        return f"its numbers leave the range of {u.dtype} at t = {1 - float(u[~fits][0]):.3g}".replace("torch.", "")

    def schedule(self, x: Tensor, u: Tensor) -> Schedule:
        """The schedule at u (B,), clipped as in an evaluation, shaped to broadcast against x (B, ...)."""
        return Schedule(*(beside(value, x) for value in self.path.schedule(self.parametrization.clip(u))))
