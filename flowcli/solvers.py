"""Solving ODEs: fixed grids and adaptive steps behind one call."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint_adjoint

from flowcli import runge_kutta
from flowcli.errors import JobError, UserError, choice, integer, number
from flowcli.runge_kutta import ADAPTIVE, Stalled, State

RightHandSide = Callable[[Tensor, State], State]

FIXED = {name: len(method.nodes) for name, method in runge_kutta.FIXED.items()}
"""Fixed-step methods and their evaluations a step, which is also their order."""
TIMES = ("path", "angle")
FIRST_STEPS = 100
"""An adaptive solve begins with this fraction of its interval."""


@dataclass(frozen=True)
class Solution:
    """States at the requested points, each component (T, ...), and the evaluations of the right-hand side."""

    states: State
    nfe: int


class Solver(ABC):
    """A method with its settings.

    Attributes:
        method: torchdiffeq's name of it.
        time: `path` solves dx/dt in the path's own time, `angle` solves dy/dphi = -F.
        max_nfe: evaluations after which a solve gives up.
    """

    method: str
    time: str
    max_nfe: int

    @abstractmethod
    def grid(self, start: float, stop: float, points: int) -> Tensor:
        """Where the solution is given between two ends (float64): `points` of them, or every step of a fixed grid."""

    @abstractmethod
    def _steps(
        self, rhs: runge_kutta.RightHandSide, state: State, grid: Sequence[float], *, keep: bool
    ) -> Iterator[State]:
        """The states at every point of the grid, or at some of them, both ends among them.

        Raises:
            Stalled: there is no way on.
        """

    @abstractmethod
    def _settings(self, grid: Tensor) -> dict[str, Any]:
        """torchdiffeq's keyword arguments for the same steps along this grid."""

    @abstractmethod
    def _advice(self) -> str:
        """What to try when a solve fails."""

    def solve(
        self,
        rhs: RightHandSide,
        state: State,
        grid: Tensor,
        *,
        keep: bool = False,
        adjoint: Sequence[Tensor] | None = None,
    ) -> Solution:
        """Integrate d state / d s = rhs(s, state) along the grid (T,), up or down; state: tensors of any shape.

        Gradients go through the steps, or with `adjoint`, the parameters of rhs, through the adjoint ODE (notes 001).
        keep: give the state at every point of the grid, not only at its two ends.

        Raises:
            JobError: steps became too small, values became infinite, or max_nfe was reached; it says where.
        """
        nfe, at = 0, float(grid[0])

        def counted(s: float | Tensor, now: State) -> State:
            nonlocal nfe, at
            nfe, at = nfe + 1, float(s.detach()) if isinstance(s, Tensor) else s
            if nfe > self.max_nfe:
                raise JobError(self._failure(grid, at, f"{self.max_nfe} evaluations (solver.max_nfe) were not enough"))
            return rhs(s if isinstance(s, Tensor) else state[0].new_tensor(s), now)

        try:
            if adjoint is None:
                steps = self._steps(counted, state, grid.tolist(), keep=keep)
                found = list(steps) if keep else [state, deque(steps, maxlen=1).pop()]
                states = tuple(torch.stack(each) for each in zip(*found, strict=True))
            else:
                states = self._by_adjoint(counted, state, grid, adjoint)
        except (Stalled, AssertionError) as error:  # the second is torchdiffeq's way to say the same
            raise JobError(self._failure(grid, at, str(error).split("`")[0].strip())) from error
        if not all(bool(torch.isfinite(component[-1]).all()) for component in states):
            raise JobError(self._failure(grid, at, "the solution is not finite"))
        return Solution(states, nfe)

    def _by_adjoint(
        self, rhs: RightHandSide, state: State, grid: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Both ends, (2, ...) each, by torchdiffeq; the way back has the same steps, or ends where this one began."""
        grid = grid.to(device=state[0].device, dtype=state[0].dtype)
        there, back = self._settings(grid), self._settings(grid.flip(0))
        ends: Any = odeint_adjoint(
            rhs,
            state,
            grid[[0, -1]],
            method=self.method,
            adjoint_params=tuple(parameters),
            adjoint_options=back["options"],
            **there,
        )
        return tuple(ends)

    def _failure(self, grid: Tensor, at: float, what: str) -> str:
        # progress, not s: the variable may be u, w or the angle
        progress = (at - float(grid[0])) / (float(grid[-1]) - float(grid[0]))
        return f"solver {self.method} failed {progress:.1%} of the way: {what}; try {self._advice()}"


@dataclass(frozen=True)
class FixedStep(Solver):
    """Equal steps: euler, midpoint, heun3 (Heun's third-order method) or rk4 (the 3/8 rule)."""

    method: str
    steps: int
    time: str
    max_nfe: int

    def __post_init__(self) -> None:
        choice("method", self.method, FIXED)
        choice("time", self.time, TIMES)
        object.__setattr__(self, "steps", integer("steps", self.steps, minimum=1, maximum=1_000_000))
        object.__setattr__(self, "max_nfe", integer("max_nfe", self.max_nfe, minimum=1))
        if self.steps * FIXED[self.method] > self.max_nfe:
            need = self.steps * FIXED[self.method]
            raise UserError(
                f"steps={self.steps} of {self.method} take {need} evaluations; max_nfe={self.max_nfe} allows fewer"
            )

    def grid(self, start: float, stop: float, points: int) -> Tensor:
        """Every step: steps + 1 points."""
        return torch.linspace(start, stop, self.steps + 1, dtype=torch.float64)

    def _steps(
        self, rhs: runge_kutta.RightHandSide, state: State, grid: Sequence[float], *, keep: bool
    ) -> Iterator[State]:
        return runge_kutta.equal_steps(rhs, state, grid, runge_kutta.FIXED[self.method])

    def _settings(self, grid: Tensor) -> dict[str, Any]:
        # handing over the grid: a step_size of 1/N can round to N + 1 steps
        return {"options": {"grid_constructor": lambda func, y0, t: grid}}

    def _advice(self) -> str:
        return "more solver.steps, or an adaptive solver (solver=dopri5)"


@dataclass(frozen=True)
class Adaptive(Solver):
    """Steps chosen for a tolerance: dopri5, dopri8, bosh3, adaptive_heun. The error norm couples a chunk's rows."""

    method: str
    rtol: float
    atol: float
    time: str
    max_nfe: int

    def __post_init__(self) -> None:
        choice("method", self.method, ADAPTIVE)
        choice("time", self.time, TIMES)
        for name in ("rtol", "atol"):
            object.__setattr__(self, name, number(name, getattr(self, name), above=0, maximum=1))
        object.__setattr__(self, "max_nfe", integer("max_nfe", self.max_nfe, minimum=10))

    def grid(self, start: float, stop: float, points: int) -> Tensor:
        """`points` points, both ends among them."""
        return torch.linspace(start, stop, points, dtype=torch.float64)

    def _first_step(self, grid: Sequence[float]) -> float:
        # torchdiffeq's own guess looks far outside where slopes are small, and may take the whole interval at once,
        # which looks perfect to adaptive_heun where the field vanishes at both ends
        return abs(grid[-1] - grid[0]) / FIRST_STEPS

    def _steps(
        self, rhs: runge_kutta.RightHandSide, state: State, grid: Sequence[float], *, keep: bool
    ) -> Iterator[State]:
        method, first = runge_kutta.adaptive_method(self.method), self._first_step(grid)
        points = grid if keep else (grid[0], grid[-1])
        tolerances = {"rtol": self.rtol, "atol": self.atol}
        return runge_kutta.chosen_steps(rhs, state, points, method, first_step=first, **tolerances)

    def _settings(self, grid: Tensor) -> dict[str, Any]:
        # step_t: land on the last point; it would step over it, out of [0, 1], and interpolate back
        options = {"step_t": grid[-1:], "first_step": self._first_step(grid.tolist())}
        return {"rtol": self.rtol, "atol": self.atol, "options": options}

    def _advice(self) -> str:
        other = "" if self.time == "angle" else ", solver.time=angle (with model.precondition=true)"
        now = f"{self.rtol:g}, {self.atol:g}"
        return f"a larger solver.rtol and solver.atol (now {now}){other}, a fixed-step solver, or dtype=float64"


def tightened(solver: Solver) -> Solver:
    """The same method with ten times tighter tolerances, or twice the steps: what a resolved number must survive."""
    if isinstance(solver, Adaptive):
        return Adaptive(solver.method, solver.rtol / 10, solver.atol / 10, solver.time, solver.max_nfe * 10)
    assert isinstance(solver, FixedStep)
    return FixedStep(solver.method, solver.steps * 2, solver.time, solver.max_nfe * 2)
