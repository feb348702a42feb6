"""The variable that a solver steps in between noise and data, and what the state is called in it."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowcli.flows.fields import Field, PathField
from flowcli.paths import Schedule, smallest_u
from flowcli.solvers import Adaptive, FixedStep, Solver


class Clock(ABC):
    """How a field is handed to a solver; u = 1 - t is the time left to the data."""

    @abstractmethod
    def grid(self, here: float, there: float, points: int) -> Tensor:
        """Values of the variable from u = here to u = there, (T,)."""

    @abstractmethod
    def remaining(self, grid: Tensor) -> Tensor:
        """u at the points of a grid, (T,)."""

    @abstractmethod
    def slope(self, state: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        """d state / d s, (B, ...)."""

    @abstractmethod
    def along(self, state: Tensor, s: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The slope (B, ...), and J e or e^T J for each direction e (K, B or 1, ...), (K, B, ...)."""

    @abstractmethod
    def enter(self, x: Tensor, u: float) -> Tensor:
        """The state that x (B, ...) in model units is at u."""

    @abstractmethod
    def leave(self, state: Tensor, u: float) -> Tensor:
        """x (B, ...) in model units of a state at u."""

    @abstractmethod
    def log_volume(self, here: float, there: float, event_shape: tuple[int, ...]) -> float:
        """log of what the change of variables adds to the volume from u = here to u = there."""


def clock_of(field: Field, solver: Solver, dtype: torch.dtype) -> Clock:
    """The clock that solver.time asks for."""
    if solver.time == "angle":
        assert isinstance(field, PathField)  # field.turns was asked when the flow was made
        return AngleClock(field, solver)
    return PathClock(field, solver, dtype)


class PathClock(Clock):
    r"""x in the path's own time. Adaptive solvers step in w, $u = w^p$, where slopes stay finite; grids are warped."""

    def __init__(self, field: Field, solver: Solver, dtype: torch.dtype) -> None:
        self.field, self.power = field, field.warp
        self.in_w = isinstance(solver, Adaptive) and self.power > 1
        self.smallest_w = smallest_u(dtype) ** (1 / self.power)
        if isinstance(solver, FixedStep) and self.power > 1:
            # a grid cannot follow the slope of sigma, ~ u^(1/p - 1), into the end: half a step of w before it is
            # where Euler's step of that singularity is exact
            self.smallest_w = 0.5 / solver.steps
        self.solver = solver

    def grid(self, here: float, there: float, points: int) -> Tensor:
        """Equal steps of w; of u = w^p for a fixed grid."""
        w = self.solver.grid(here, there, points)
        return w if self.in_w else w**self.power

    def remaining(self, grid: Tensor) -> Tensor:
        """u at the points of a grid."""
        return grid**self.power if self.in_w else grid

    def slope(self, state: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        """dx/du = -dx/dt, or dx/dw."""
        u, rate = self._left(s)
        return self.field.velocity(state, u, condition) * rate

    def along(self, state: Tensor, s: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the field's products."""
        u, rate = self._left(s)
        velocity, products = self.field.along(state, u, condition, directions)
        return velocity * rate, products * rate

    def _left(self, s: Tensor) -> tuple[Tensor, Tensor | float]:
        """u, and what the velocity is multiplied by: -1, or -du/dw."""
        if not self.in_w:
            return s if self.power == 1 else s.clamp_min(self.smallest_w**self.power), -1.0
        w = s.clamp_min(self.smallest_w)  # at w = 0 it would be infinity times zero; the product has a limit
        return w**self.power, -self.power * w ** (self.power - 1)

    def enter(self, x: Tensor, u: float) -> Tensor:
        """x itself."""
        return x

    def leave(self, state: Tensor, u: float) -> Tensor:
        """x itself."""
        return state

    def log_volume(self, here: float, there: float, event_shape: tuple[int, ...]) -> float:
        """Nothing is changed."""
        return 0.0


class AngleClock(Clock):
    r"""$y = (x - E x_t)/\sqrt V$ in the angle: $dy/d\varphi = -F$, the same for every path."""

    def __init__(self, field: PathField, solver: Solver) -> None:
        self.field, self.solver = field, solver

    def _ends(self, u: float) -> tuple[Tensor, Tensor, float]:
        """E x_t, V and the angle at u."""
        moments = self.field.moments
        alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in self.field.path.at(u))
        c = Schedule(*(value.to(moments.var_1) for value in (alpha, sigma, alpha, sigma)))
        return moments.centre(c), moments.variance(c), float(moments.angle(c))

    def grid(self, here: float, there: float, points: int) -> Tensor:
        """Equal steps of the angle."""
        return self.solver.grid(self._ends(here)[2], self._ends(there)[2], points)

    def remaining(self, grid: Tensor) -> Tensor:
        """u at the points of a grid of angles, by bisection: the angle grows with u."""
        low, high = torch.zeros_like(grid), torch.ones_like(grid)
        for _ in range(60):
            middle = (low + high) / 2
            angle = torch.tensor([self._ends(float(u))[2] for u in middle], dtype=grid.dtype)
            low, high = torch.where(angle < grid, middle, low), torch.where(angle < grid, high, middle)
        return (low + high) / 2

    def slope(self, state: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        """-F."""
        return -self.field.rotation(state, s, condition)

    def along(self, state: Tensor, s: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the field's products."""
        value, products = self.field.rotation_along(state, s, condition, directions)
        return -value, -products

    def enter(self, x: Tensor, u: float) -> Tensor:
        """y."""
        centre, variance, _ = self._ends(u)
        return (x - centre) * variance.rsqrt()

    def leave(self, state: Tensor, u: float) -> Tensor:
        """x of y."""
        centre, variance, _ = self._ends(u)
        return centre + variance.sqrt() * state

    def log_volume(self, here: float, there: float, event_shape: tuple[int, ...]) -> float:
        """log of the change of volume between x and y at both ends."""
        ratio = float(self._ends(there)[1]) / float(self._ends(here)[1])
        return math.log(ratio) * math.prod(event_shape) / 2
