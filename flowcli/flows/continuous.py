r"""Continuous flows: an ODE $dx/dt = v_t(x)$ from the base to the data, solved either way."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowcli.bases import Base, Gaussian
from flowcli.dataset import Mixture
from flowcli.divergence import Divergence
from flowcli.errors import UserError, boolean, choice
from flowcli.flows.base import Flow, Result, Trajectory
from flowcli.flows.clocks import clock_of
from flowcli.flows.fields import Field, LearnedField
from flowcli.parametrizations import PREDICTIONS, Moments, Preconditioned, Raw
from flowcli.paths import Path, Schedule
from flowcli.randomness import rows
from flowcli.solvers import Solver, State
from flowcli.transforms import Affine


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
        clock = clock_of(self.field, self.solver, x.dtype)
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
        clock = clock_of(self.field, self.solver, x_init.dtype)
        grid = clock.grid(1.0, 0.0, points)
        solution = self.solver.solve(
            lambda s, state: (clock.slope(state[0], s, condition),), (clock.enter(x_init, 1.0),), grid, keep=True
        )
        u = clock.remaining(grid)
        states = [clock.leave(state, float(left)) for state, left in zip(solution.states[0], u, strict=True)]
        return u, torch.stack(states), solution.nfe


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
