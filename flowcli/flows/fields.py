"""Velocity fields in model units: what a continuous flow is solved along."""

from abc import abstractmethod

from torch import Tensor, nn

from flowcli.parametrizations import Moments, Parametrization, Preconditioned
from flowcli.paths import Path, Schedule


def beside(value: Tensor, x: Tensor) -> Tensor:
    """Shape a scalar or (B,) so that it broadcasts against x (B, ...)."""
    return value.reshape(-1, *[1] * (x.dim() - 1)) if value.dim() else value


class Field(nn.Module):
    """A velocity field in model units, with the path it belongs to and the moments of that path's ends."""

    moments: Moments

    def __init__(self, path: Path, moments: Moments) -> None:
        super().__init__()
        self.path, self.moments = path, moments

    @abstractmethod
    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """dx/dt (B, ...) at x (B, ...) and u = 1 - t, a scalar or (B,)."""

    @abstractmethod
    def rotation(self, y: Tensor, angle: Tensor, condition: Tensor | None) -> Tensor:
        """F (B, ...) of dy/dphi = -F at y (B, ...) and an angle, a scalar or (B,)."""

    @property
    def turns(self) -> bool:
        """Whether `rotation` is there, so that solver.time=angle may be used."""
        return True


class LearnedField(Field):
    """A network behind a parametrisation."""

    def __init__(self, network: nn.Module, parametrization: Parametrization, path: Path, moments: Moments) -> None:
        super().__init__(path, moments)
        self.network, self.parametrization = network, parametrization

    @property
    def turns(self) -> bool:
        """Raw outputs depend on the path's own time."""
        return isinstance(self.parametrization, Preconditioned)

    def _evaluate(self, x: Tensor, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Schedule]:
        """The network's output (B, ...) and the schedule, shaped to broadcast."""
        u = self.parametrization.clip(u)
        c = self.path.schedule(u)
        time = self.parametrization.network_time(u, c, self.moments)
        c = Schedule(*(beside(value, x) for value in c))
        return self.network(self.parametrization.network_input(x, c, self.moments), time, condition), c

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """dx/dt (B, ...)."""
        output, c = self._evaluate(x, u, condition)
        return self.parametrization.velocity(x, output, c, self.moments)

    def rotation(self, y: Tensor, angle: Tensor, condition: Tensor | None) -> Tensor:
        """The preconditioned network itself."""
        return self.network(y, angle, condition)

    def residual(self, x_0: Tensor, x_1: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        """Output minus target at x_t for pairs of ends (B, ...) and u (B,): what every objective weighs and squares."""
        u = self.parametrization.clip(u)
        c = Schedule(*(beside(value, x_1) for value in self.path.schedule(u)))
        output, _ = self._evaluate(c.alpha * x_1 + c.sigma * x_0, u, condition)
        return output - self.parametrization.target(x_0, x_1, c, self.moments)
