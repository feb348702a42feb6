r"""Continuous flows: an ODE $dx/dt = v_t(x)$ from the base to the data, solved either way."""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowcli.bases import Base, Gaussian
from flowcli.dataset import Mixture
from flowcli.divergence import Divergence
from flowcli.errors import UserError, boolean, choice
from flowcli.flows.base import Flow, Result, Trajectory
from flowcli.parametrizations import PREDICTIONS, Moments, Parametrization, Preconditioned, Raw
from flowcli.paths import Path, Schedule, smallest_u
from flowcli.randomness import rows
from flowcli.solvers import Adaptive, FixedStep, Solver, State
from flowcli.transforms import Affine


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


class ContinuousFlow(Flow):
    r"""Noise to data along a field: $\log p(x_1) = \log p_0(x_0) - \int_0^1 \mathrm{tr}(\partial v/\partial x)\, dt$.

    Notes 001 IV, 002; arXiv 1806.07366, 1810.01367. States are solved in model units; `transform` stays in float64,
    so that data with a large offset keep their digits.
    """

    def __init__(
        self,
        field: Field,
        start: Base,
        transform: Affine,
        solver: Solver,
        divergence: Divergence,
        event_shape: tuple[int, ...],
    ) -> None:
        """start: the distribution of the state at t = 0."""
        super().__init__()
        self.field, self.start, self.transform = field, start, transform
        self.divergence, self.event_shape = divergence, event_shape
        self.solver = self._checked(solver)

    # ------------------------------------------------------------ variants of the same flow
    def _checked(self, solver: Solver) -> Solver:
        if solver.time == "angle" and not self.field.turns:
            raise UserError(
                "solver.time=angle needs model.precondition=true: a raw output depends on the path's own time"
            )
        return solver

    def with_solver(self, solver: Solver) -> "ContinuousFlow":
        """The same weights under another solver."""
        other = copy.copy(self)
        other.solver = other._checked(solver)
        return other

    def with_divergence(self, divergence: Divergence) -> "ContinuousFlow":
        """The same weights under another divergence."""
        other = copy.copy(self)
        other.divergence = divergence
        return other

    def cast(self, dtype: torch.dtype, device: torch.device) -> "ContinuousFlow":
        """Move to a device and compute in this dtype; the transform stays in float64."""
        self.field.to(device=device, dtype=dtype)
        self.start.to(device=device, dtype=dtype)
        self.transform.to(device=device, dtype=torch.float64)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What states are computed in."""
        return self.start.mean.dtype

    @property
    def device(self) -> torch.device:
        """Where states are computed."""
        return self.start.mean.device

    # ------------------------------------------------------------ the interface of every flow
    def sample(
        self, n: int, *, seed: int, start: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Events (n, ...) from noise that depends on (seed, row) alone."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            noise = rows(self.start.sample, seed, "sample", start + first, start + last)
            return self._to_data(noise.to(device=self.device, dtype=self.dtype), condition)

        return _in_chunks(chunk, n, batch_size, condition, self.event_shape)

    def decode(self, z: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Events x (B, ...) of latents z (B, ...)."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            return self._to_data(
                self.start.from_latent(z[first:last].to(device=self.device, dtype=self.dtype)), condition
            )

        return _in_chunks(chunk, len(z), batch_size, condition, self.event_shape)

    def encode(self, x: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Latents z (B, ...) of events x (B, ...)."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            (x_init,), nfe = self._solve(self._to_model(x[first:last]), condition, to_data=False)
            return Result(self.start.to_latent(x_init), nfe, "done")

        return _in_chunks(chunk, len(x), batch_size, condition, self.event_shape)

    def log_prob(
        self, x: Tensor, *, seed: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Log-density of x (B, ...) in nats, data units; its standard error too where probes estimate it."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            state = self._to_model(x[first:last])
            directions = self.divergence.directions(state, seed, first)
            (x_init, log_det), nfe = self._solve(state, condition, to_data=False, directions=directions)
            values = (self.start.log_prob(x_init)[:, None] + log_det).double() + self.transform.log_det
            probes = values.shape[1]
            stderr = values.std(1) / math.sqrt(probes) if probes > 1 else None
            return Result(values.mean(1), nfe, "done", stderr)

        return _in_chunks(chunk, len(x), batch_size, condition, ())

    # ------------------------------------------------------------ what only continuous flows have
    def velocity(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """dx/dt (B, ...) at x (B, ...) in data units and t, a scalar or (B,)."""
        u = 1 - t.to(device=self.device, dtype=self.dtype)
        return self.field.velocity(self._to_model(x), u, condition).double() * self.transform.scale

    def trajectory(self, n: int, *, seed: int, points: int, condition: Tensor | None = None) -> Trajectory:
        """The ways of samples 0 .. n, at `points` times (or at every step of a fixed grid)."""
        noise = rows(self.start.sample, seed, "sample", 0, n).to(device=self.device, dtype=self.dtype)
        u, states, nfe = self._path(noise, condition, points)
        return Trajectory(1 - u, self.transform.inverse(states.double()), nfe)

    # ------------------------------------------------------------ solving
    def _to_model(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.event_shape:
            raise UserError(f"events must have the shape {self.event_shape}, got {tuple(x.shape[1:])}")
        return self.transform(x.to(device=self.device, dtype=torch.float64)).to(self.dtype)

    def _to_data(self, x_init: Tensor, condition: Tensor | None) -> Result:
        (x_1,), nfe = self._solve(x_init, condition, to_data=True)
        return Result(self.transform.inverse(x_1.double()), nfe, "done")

    def _solve(
        self, x: Tensor, condition: Tensor | None, *, to_data: bool, directions: Tensor | None = None
    ) -> tuple[State, int]:
        """From one end to the other: the state there and, with directions, log |det d there / d here| (B, K)."""
        clock = (_AngleClock if self.solver.time == "angle" else _PathClock)(self.field, self.solver, x.dtype)
        here, there = (1.0, 0.0) if to_data else (0.0, 1.0)
        state: State = (clock.enter(x, here),)
        if directions is None:
            solution = self.solver.solve(
                lambda s, state: (clock.slope(state[0], s, condition),), state, clock.grid(here, there, 2)
            )
            return (clock.leave(solution.states[0][-1], there),), solution.nfe

        def slopes(s: Tensor, state: State) -> State:
            return self.divergence(lambda x: clock.slope(x, s, condition), state[0], directions)

        log_det = torch.zeros(len(x), self.divergence.estimates, dtype=x.dtype, device=x.device)
        solution = self.solver.solve(slopes, (*state, log_det), clock.grid(here, there, 2))
        end, log_det = (component[-1] for component in solution.states)
        return (clock.leave(end, there), log_det + clock.log_volume(here, there, self.event_shape)), solution.nfe

    def _path(self, x_init: Tensor, condition: Tensor | None, points: int) -> tuple[Tensor, Tensor, int]:
        clock = (_AngleClock if self.solver.time == "angle" else _PathClock)(self.field, self.solver, x_init.dtype)
        grid = clock.grid(1.0, 0.0, points)
        solution = self.solver.solve(
            lambda s, state: (clock.slope(state[0], s, condition),), (clock.enter(x_init, 1.0),), grid, keep=True
        )
        u = clock.remaining(grid)
        states = [clock.leave(state, float(left)) for state, left in zip(solution.states[0], u, strict=True)]
        return u, torch.stack(states), solution.nfe


class _PathClock:
    r"""x in the path's own time. Adaptive solvers step in w, $u = w^p$, where slopes stay finite; grids are warped."""

    def __init__(self, field: Field, solver: Solver, dtype: torch.dtype) -> None:
        self.field, self.power = field, field.path.warp
        self.in_w = isinstance(solver, Adaptive) and self.power > 1
        self.smallest_w = smallest_u(dtype) ** (1 / self.power)
        if isinstance(solver, FixedStep) and self.power > 1:
            # a grid cannot follow the slope of sigma, ~ u^(1/p - 1), into the end: half a step of w before it is
            # where Euler's step of that singularity is exact
            self.smallest_w = 0.5 / solver.steps
        self.solver = solver

    def grid(self, here: float, there: float, points: int) -> Tensor:
        w = self.solver.grid(here, there, points)
        return w if self.in_w else w**self.power

    def remaining(self, grid: Tensor) -> Tensor:
        """u at the points of a grid."""
        return grid**self.power if self.in_w else grid

    def slope(self, x: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        if not self.in_w:
            u = s if self.power == 1 else s.clamp_min(self.smallest_w**self.power)
            return -self.field.velocity(x, u, condition)  # dx/du = -dx/dt
        w = s.clamp_min(self.smallest_w)  # at w = 0 it would be infinity times zero; the product has a limit
        return -self.field.velocity(x, w**self.power, condition) * (self.power * w ** (self.power - 1))

    def enter(self, x: Tensor, u: float) -> Tensor:
        return x

    def leave(self, state: Tensor, u: float) -> Tensor:
        return state

    def log_volume(self, here: float, there: float, event_shape: tuple[int, ...]) -> float:
        return 0.0


class _AngleClock:
    r"""$y = (x - E x_t)/\sqrt V$ in the angle: $dy/d\varphi = -F$, the same for every path."""

    def __init__(self, field: Field, solver: Solver, dtype: torch.dtype) -> None:
        self.field, self.solver = field, solver

    def _ends(self, u: float) -> tuple[Tensor, Tensor, float]:
        """E x_t, V and the angle at u."""
        moments = self.field.moments
        alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in self.field.path.at(u))
        c = Schedule(*(value.to(moments.var_1) for value in (alpha, sigma, alpha, sigma)))
        return moments.centre(c), moments.variance(c), float(moments.angle(c))

    def grid(self, here: float, there: float, points: int) -> Tensor:
        return self.solver.grid(self._ends(here)[2], self._ends(there)[2], points)

    def remaining(self, grid: Tensor) -> Tensor:
        """u at the points of a grid of angles, by bisection: the angle grows with u."""
        low, high = torch.zeros_like(grid), torch.ones_like(grid)
        for _ in range(60):
            middle = (low + high) / 2
            angle = torch.tensor([self._ends(float(u))[2] for u in middle], dtype=grid.dtype)
            low, high = torch.where(angle < grid, middle, low), torch.where(angle < grid, high, middle)
        return (low + high) / 2

    def slope(self, y: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        return -self.field.rotation(y, s, condition)

    def enter(self, x: Tensor, u: float) -> Tensor:
        centre, variance, _ = self._ends(u)
        return (x - centre) * variance.rsqrt()

    def leave(self, state: Tensor, u: float) -> Tensor:
        centre, variance, _ = self._ends(u)
        return centre + variance.sqrt() * state

    def log_volume(self, here: float, there: float, event_shape: tuple[int, ...]) -> float:
        """log of the change of volume between x and y at both ends."""
        ratio = float(self._ends(there)[1]) / float(self._ends(here)[1])
        return math.log(ratio) * math.prod(event_shape) / 2


def _in_chunks(
    chunk: Callable[[int, int, Tensor | None], Result],
    n: int,
    batch_size: int | None,
    condition: Tensor | None,
    shape: tuple[int, ...],
) -> Result:
    """Results of rows 0 .. n, each of this shape, computed batch_size at a time."""
    if n == 0:
        return Result(torch.empty(0, *shape, dtype=torch.float64), 0, "done")
    size = max(1, n if batch_size is None else batch_size)
    parts = [
        chunk(first, min(first + size, n), None if condition is None else condition[first : first + size])
        for first in range(0, n, size)
    ]
    stderr = None if parts[0].stderr is None else torch.cat([part.stderr for part in parts if part.stderr is not None])
    return Result(torch.cat([part.value for part in parts]), max(part.nfe for part in parts), parts[0].status, stderr)


# ---------------------------------------------------------------- building one
@dataclass(frozen=True)
class Parts:
    """All that a model may be made of; `build` fills it in.

    Attributes:
        network: an untrained network of the event's shape, or None.
        train: training data (N, ...) in model units; None when a checkpoint brings its own numbers.
        mixture: the target as a mixture in model units, where it is one.
        tensors: the checkpoint's state dict when a flow is restored: it gives the sizes.
    """

    network: nn.Module | None
    path: Path
    base: Base
    transform: Affine
    solver: Solver
    divergence: Divergence
    event_shape: tuple[int, ...]
    train: Tensor | None
    mixture: Mixture | None
    tensors: dict[str, Tensor] | None


def start_of(path: Path, base: Base, moments: Moments) -> Base:
    r"""What a flow starts from: N(E x_0, V_0 I) with $V_0 = \sigma_0^2 b^2 + \alpha_0^2 s^2$, or the base itself.

    For VP and VE that is an approximation of the path's own p_0: they start at smoothed data.

    Raises:
        UserError: alpha_0 is not 0 and the base is not Gaussian.
    """
    if path.starts_at_noise:
        return base
    if not base.is_gaussian:
        raise UserError(
            f"path={type(path).__name__} does not start at the base (alpha_0 > 0), so it needs base=gaussian"
        )
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in path.at(1.0))
    c = Schedule(alpha, sigma, alpha, sigma)
    return Gaussian(moments.centre(c).clone(), moments.variance(c).sqrt())


class CNF:
    """model=cnf: a network as the field."""

    trained = True

    def __init__(self, precondition: bool, prediction: str | None) -> None:
        """prediction belongs to the raw forms (precondition=false) and must be null otherwise."""
        self.precondition = boolean("precondition", precondition)
        if self.precondition and prediction is not None:
            raise UserError(
                f"prediction={prediction} needs precondition=false: the preconditioned network predicts "
                "velocity, data, noise and score at once"
            )
        self.prediction = None if self.precondition else choice("prediction", prediction, PREDICTIONS)

    def flow(self, parts: Parts) -> ContinuousFlow:
        """An untrained flow."""
        if parts.network is None:
            raise UserError("model=cnf needs a network, e.g. network=mlp")
        mean_0, var_0 = parts.base.mean, parts.base.std.square()
        blank = torch.zeros(2, *parts.event_shape, dtype=torch.float64)  # its numbers come with the checkpoint
        moments = Moments.measured(blank if parts.train is None else parts.train, mean_0, var_0)
        parametrization = Preconditioned() if self.prediction is None else Raw(self.prediction, parts.path)
        field = LearnedField(parts.network, parametrization, parts.path, moments)
        start = start_of(parts.path, parts.base, moments)
        return ContinuousFlow(field, start, parts.transform, parts.solver, parts.divergence, parts.event_shape)
