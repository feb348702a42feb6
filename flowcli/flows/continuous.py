r"""Continuous flows: an ODE $dx/dt = v_t(x)$ from the base to the data, solved either way."""

import copy
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flowcli.bases import Base, Gaussian
from flowcli.compiling import differentiable
from flowcli.divergence import Divergence
from flowcli.errors import UserError
from flowcli.flows.base import Flow, Result, Trajectory, in_chunks
from flowcli.flows.clocks import clock_of
from flowcli.flows.fields import Field, PathField
from flowcli.parametrizations import Moments
from flowcli.paths import Path, Schedule
from flowcli.randomness import rows
from flowcli.sde import Stochastic
from flowcli.solvers import Solver, State
from flowcli.transforms import Affine


@dataclass(frozen=True)
class Density:
    """What one solve from the data to the noise gives, in model units; everything is differentiable.

    Attributes:
        latent: (B, ...), the state at t = 0.
        log_prob: (B, K), K estimates of the log-density in nats.
        kinetic: (B,), int |v|^2 dt, where it was asked for.
        jacobian: (B,), int |J|_F^2 dt (estimated where the divergence is), where it was asked for.
        nfe: evaluations of the field.
    """

    latent: Tensor
    log_prob: Tensor
    kinetic: Tensor | None
    jacobian: Tensor | None
    nfe: int


class Graphs:
    """Compiled slopes of densities, each for the shape of states that it met first; others are computed plainly.

    They pay in a training by maximum likelihood. Where nothing is differentiated the plain ones are nearly as quick.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[torch.Size, Callable[..., State]]] = {}

    def __call__(self, slopes: Callable[..., State], kind: Hashable, *examples: Tensor) -> Callable[..., State]:
        """What to call in place of slopes for arguments like these, the first of which is a state (B, ...).

        Raises:
            NotCompiled: it does not compile.
        """
        key, shape = (kind, torch.is_grad_enabled()), examples[0].shape
        if key not in self._made:
            self._made[key] = shape, differentiable(slopes, examples)
        known, ready = self._made[key]
        return ready if known == shape else slopes


class ContinuousFlow(Flow):
    r"""Noise to data along a field: $\log p(x_1) = \log p_0(x_0) - \int_0^1 \mathrm{tr}(\partial v/\partial x)\, dt$.

    Notes 001 IV, 002; arXiv 1806.07366, 1810.01367. States are solved in model units; `transform` stays in float64,
    so that data with a large offset keep their digits. Under a stochastic solver samples follow the SDE of notes 004
    that has the same marginals; everything else needs an ODE solver and says so.
    """

    def __init__(
        self,
        field: Field,
        start: Base,
        transform: Affine,
        solver: Solver | Stochastic,
        divergence: Divergence,
        event_shape: tuple[int, ...],
    ) -> None:
        """start: the distribution of the state at t = 0."""
        super().__init__()
        self.field, self.start, self.transform = field, start, transform
        self.divergence, self.event_shape = divergence, event_shape
        self.solver = self._checked(solver)
        self._graphs: Graphs | None = None

    def require_plan(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Refuse an SDE that cannot be solved as it is set; tensors: of a checkpoint, not in here yet.

        Raises:
            UserError: see `Stochastic.plan`.
        """
        if isinstance(self.solver, Stochastic) and isinstance(self.field, PathField):
            moments = self.field.moments.state_dict(prefix="field.moments.") if tensors is None else tensors
            self.solver.plan(self.field.path, float(moments["field.moments.var_1"]))

    # ------------------------------------------------------------ variants of the same flow
    def _checked(self, solver: Solver | Stochastic) -> Solver | Stochastic:
        if isinstance(solver, Stochastic):
            if self.field.no_score is not None:
                raise UserError(f"solver={solver.method} needs a score, and there is none: {self.field.no_score}")
        elif solver.time == "angle" and not self.field.turns:
            raise UserError(
                "solver.time=angle needs model.precondition=true on a path: another output depends on its own time"
            )
        return solver

    def with_solver(self, solver: Solver | Stochastic) -> Self:
        """The same weights under another solver."""
        other = copy.copy(self)
        other.solver = other._checked(solver)
        return other

    def with_divergence(self, divergence: Divergence) -> Self:
        """The same weights under another divergence."""
        other = copy.copy(self)
        other.divergence = divergence
        return other

    def with_graphs(self, graphs: Graphs) -> Self:
        """The same weights, with densities whose slopes are compiled and kept in here; they may raise NotCompiled."""
        other = copy.copy(self)
        other._graphs = graphs
        return other

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what is solved, and of a latent."""
        return tuple(self.start.mean.shape)

    @property
    def no_likelihood(self) -> str | None:
        """The base has no density, or the solver no inverse."""
        if not self.start.has_density:
            return "base=data is known by its points alone, it has no density"
        if isinstance(self.solver, Stochastic):
            return f"solver={self.solver.method} draws samples alone; an ODE has likelihoods, e.g. solver=dopri5"
        return None

    # ------------------------------------------------------------ the interface of every flow
    def sample(
        self, n: int, *, seed: int, start: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Events (n, ...) from noise that depends on (seed, row) alone."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            states, _, nfe = self._from_noise(seed, start + first, start + last, condition, points=None)
            return Result(self._to_data(states[-1]), nfe, "done")

        return in_chunks(chunk, n, batch_size, condition, self.event_shape)

    def decode(self, z: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Events x (B, ...) of latents z (B, ...)."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            x_init = self.start.from_latent(self._latent(z[first:last]))
            states, _, nfe = self._solve(x_init, condition, points=None)
            return Result(self._to_data(states[-1]), nfe, "done")

        return in_chunks(chunk, len(z), batch_size, condition, self.event_shape)

    def encode(self, x: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Latents z (B, ...) of events x (B, ...)."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            state = self._to_state(self.to_model(x[first:last]), first, draw=0)
            solver = self._ode("latents")
            clock = clock_of(self.field, solver, state.dtype)
            solution = solver.solve(
                lambda s, state: (clock.slope(state[0], s, condition),),
                (clock.enter(state, 0.0),),
                clock.grid(0.0, 1.0, 2),
            )
            x_init = clock.leave(solution.states[0][-1], 1.0)
            return Result(self.start.to_latent(x_init), solution.nfe, "done")

        return in_chunks(chunk, len(x), batch_size, condition, self.state_shape)

    def log_prob(
        self, x: Tensor, *, seed: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Log-density of x (B, ...) in nats, data units; its standard error too where probes estimate it.

        Raises:
            UserError: the base has no density, or the solver is stochastic.
        """

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            state = self.to_model(x[first:last])
            density = self.density(state, self.divergence.directions(state, seed, first), condition=condition)
            values = density.log_prob.double() + self.transform.log_det
            probes = values.shape[1]
            stderr = values.std(1) / math.sqrt(probes) if probes > 1 else None
            return Result(values.mean(1), density.nfe, "done", stderr)

        return in_chunks(chunk, len(x), batch_size, condition, ())

    def trajectory(self, n: int, *, seed: int, points: int, condition: Tensor | None = None) -> Trajectory:
        """The ways of samples 0 .. n, at `points` times (or at every step of a fixed grid)."""
        states, u, nfe = self._from_noise(seed, 0, n, condition, points=points)
        return Trajectory(1 - u, torch.stack([self._to_data(state) for state in states]), nfe)

    def follow(self, z: Tensor, *, points: int, condition: Tensor | None = None) -> Trajectory:
        """The ways of latents z (B, ...), at `points` times (or at every step of a fixed grid)."""
        x_init = self.start.from_latent(self._latent(z))
        states, u, nfe = self._solve(x_init, condition, points=points)
        return Trajectory(1 - u, torch.stack([self._to_data(state) for state in states]), nfe)

    # ------------------------------------------------------------ what only continuous flows have
    def velocity(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """dx/dt (B, ...) at x (B, ...) in data units and t, a scalar or (B,)."""
        u = 1 - t.to(device=self.device, dtype=self.dtype)
        return self.field.velocity(self.to_model(x), u, condition).double() * self.transform.scale

    def density(
        self,
        x: Tensor,
        directions: Tensor,
        *,
        condition: Tensor | None,
        u: float = 0.0,
        regularized: bool = False,
        adjoint: bool = False,
    ) -> Density:
        """Solve states x (B, ...) in model units back to the noise, with the divergence along these directions.

        Args:
            x, directions, condition: (B, ...); what `Divergence.directions` gave; (B, ...) or None.
            u: 1 - t, where x is: 0 for data; elsewhere it is the model's own p_t that comes out.
            regularized: integrate the kinetic energy and the Jacobian's norm, too.
            adjoint: gradients by the adjoint ODE (arXiv 1806.07366) in place of the solver's own steps.
        """
        if self.no_likelihood is not None:
            raise UserError(self.no_likelihood)
        solver = self._ode("likelihoods")
        clock = clock_of(self.field, solver, x.dtype)

        def slopes(x: Tensor, s: Tensor, directions: Tensor) -> State:
            local = self.divergence.of(lambda part: clock.along(x, s, condition, part), x, directions, norm=regularized)
            if local.jacobian is None:
                return local.value, local.divergence
            # t runs against s: the integrals over t from 0 to 1 are those over s, and positive
            return local.value, local.divergence, local.value.square().flatten(1).sum(1), local.jacobian

        rows = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        estimates = torch.zeros(len(x), self.divergence.estimates, dtype=x.dtype, device=x.device)
        state = (clock.enter(x, u), estimates, *((rows, rows) if regularized else ()))
        grid = clock.grid(u, 1.0, 2)
        if self._graphs is not None and condition is None and not adjoint:
            kind = (solver, self.divergence.estimates, regularized)
            slopes = self._graphs(slopes, kind, state[0], grid[0].to(x), directions)
        parameters = tuple(p for p in self.field.parameters() if p.requires_grad) if adjoint else None
        solution = solver.solve(lambda s, state: slopes(state[0], s, directions), state, grid, adjoint=parameters)
        ends = [component[-1] for component in solution.states]
        latent = clock.leave(ends[0], 1.0)
        volume = ends[1] + clock.log_volume(u, 1.0, self.state_shape)
        log_prob = self.start.log_prob(latent)[:, None] + volume
        kinetic, jacobian = ends[2:] if regularized else (None, None)
        return Density(latent, log_prob, kinetic, jacobian, solution.nfe)

    # ------------------------------------------------------------ from data units to what is solved, and back
    def lift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The state (B, ...) that an event x (B, ...) in model units stands for: itself."""
        return x

    def _to_state(self, x: Tensor, first: int, *, draw: int) -> Tensor:
        """The states of events number first, first + 1, ... (B, ...) in model units."""
        return x

    def _latent(self, z: Tensor) -> Tensor:
        if tuple(z.shape[1:]) != self.state_shape:
            raise UserError(f"latents must have the shape {self.state_shape}, got {tuple(z.shape[1:])}")
        return z.to(device=self.device, dtype=self.dtype)

    def _to_data(self, state: Tensor) -> Tensor:
        return self.transform.inverse(state.double())

    # ------------------------------------------------------------ solving
    def _ode(self, what: str) -> Solver:
        if isinstance(self.solver, Stochastic):
            raise UserError(
                f"solver={self.solver.method} draws samples alone: {what} need an ODE solver (solver=dopri5)"
            )
        return self.solver

    def _from_noise(
        self, seed: int, first: int, last: int, condition: Tensor | None, *, points: int | None
    ) -> tuple[Tensor, Tensor, int]:
        """States (T, B, ...) of rows first .. last on their way to the data, u (T,), and the evaluations."""
        noise = rows(self.start.sample, seed, "sample", first, last).to(device=self.device, dtype=self.dtype)
        if not isinstance(self.solver, Stochastic):
            return self._solve(noise, condition, points=points)
        field, shape = self.field, noise.shape[1:]
        assert isinstance(field, PathField)  # one that has a score

        def increment(step: int) -> Tensor:
            def draw(n: int, generator: torch.Generator) -> Tensor:
                return torch.randn(n, *shape, generator=generator)

            return rows(draw, seed, f"sde {step}", first, last).to(noise)

        keep, grid = points is not None, self.solver.grid(field.path)
        solution = self.solver.integrate(
            lambda x, u: field.velocity_and_score(x, u, condition),
            noise,
            field.path,
            increment,
            variance=float(field.moments.var_1),
            keep=keep,
        )
        return solution.states[0], grid if keep else grid[[0, -1]], solution.nfe

    def _solve(self, x_init: Tensor, condition: Tensor | None, *, points: int | None) -> tuple[Tensor, Tensor, int]:
        """States (T, B, ...) from the noise to the data, u (T,), and the evaluations; points=None: the ends alone."""
        solver = self._ode("latents")
        clock = clock_of(self.field, solver, x_init.dtype)
        grid = clock.grid(1.0, 0.0, points or 2)
        solution = solver.solve(
            lambda s, state: (clock.slope(state[0], s, condition),),
            (clock.enter(x_init, 1.0),),
            grid,
            keep=points is not None,
        )
        u = grid.new_tensor([1.0, 0.0]) if points is None else clock.remaining(grid)
        states = [clock.leave(state, float(left)) for state, left in zip(solution.states[0], u, strict=True)]
        return torch.stack(states), u, solution.nfe


# ---------------------------------------------------------------- where a path begins
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
            f"the path {type(path).__name__} does not start at the base (alpha_0 > 0), so it needs base=gaussian"
        )
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in path.at(1.0))
    c = Schedule(alpha, sigma, alpha, sigma)
    return Gaussian(moments.centre(c).clone(), moments.variance(c).sqrt())
