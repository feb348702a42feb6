"""Explicit Runge-Kutta steps through states of several tensors, with gradients through the steps.

Coefficients and step control are torchdiffeq's, so are the solutions but for rounding. A stage is one sum over slopes
before it, and one node of the graph: with some thousand numbers in a state torchdiffeq's own steps, which go through an
array of all slopes and are differentiated operation by operation, take as long as a small network.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]
RightHandSide = Callable[[float, State], State]
"""d state / d s at s."""

SAFETY, LARGEST, SMALLEST = 0.9, 10.0, 0.2
"""Of the step that the error suggests, so much is taken; and it changes by these factors at most."""


class Stalled(Exception):
    """No step is small enough."""


@dataclass(frozen=True)
class Method:
    """A Butcher tableau.

    Attributes:
        nodes: when each stage looks, in steps; the first at 0.
        rows: of each further stage, its weights on the slopes before it.
        weights: of the solution; None where that is the last stage's own point (first same as last).
        order: of the solution.
        error, middle: weights of the error's estimate, and of the state in the middle of a step; of adaptive methods.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...] | None
    order: int
    error: tuple[float, ...] = ()
    middle: tuple[float, ...] = ()


FIXED = {
    "euler": Method((0.0,), (), (1.0,), 1),
    "midpoint": Method((0.0, 0.5), ((0.5,),), (0.0, 1.0), 2),
    "heun3": Method((0.0, 1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75), 3),
    "rk4": Method(
        (0.0, 1 / 3, 2 / 3, 1.0), ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4
    ),
}
"""Of equal steps; rk4 is the 3/8 rule."""
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@cache
def adaptive_method(name: str) -> Method:
    """One of ADAPTIVE, by torchdiffeq's coefficients."""
    from torchdiffeq._impl.odeint import SOLVERS

    known = SOLVERS[name]
    table, weights = known.tableau, tuple(known.tableau.c_sol.tolist())
    rows = tuple(tuple(row.tolist()) for row in table.beta)
    last = weights[-1] == 0 and weights[:-1] == rows[-1]
    error, middle = tuple(table.c_error.tolist()), tuple(known.mid.tolist())
    return Method((0.0, *table.alpha.tolist()), rows, None if last else weights, known.order, error, middle)


# ---------------------------------------------------------------- sums of slopes
class _Sum(torch.autograd.Function):
    """x + sum of c_i k_i, as one node."""

    @staticmethod
    def forward(ctx: Any, factors: tuple[float, ...], x: Tensor, *slopes: Tensor) -> Tensor:
        # with a setup_context of its own, which torch.func asks for, torch would inspect signatures at each call
        ctx.factors = factors
        return _sum(factors, x, slopes)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        return None, gradient, *(gradient * factor for factor in ctx.factors)


def _sum(factors: Sequence[float], x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    found = torch.add(x, slopes[0], alpha=factors[0])
    for factor, slope in zip(factors[1:], slopes[1:], strict=True):
        found.add_(slope, alpha=factor)
    return found


def _moved(state: State, h: float, weights: Sequence[float], slopes: Sequence[State]) -> State:
    """The state plus h times the weighted sum of slopes."""
    used = [(h * weight, slope) for weight, slope in zip(weights, slopes, strict=True) if weight]
    factors = tuple(factor for factor, _ in used)
    parts = zip(state, *(slope for _, slope in used), strict=True)
    if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return tuple(_Sum.apply(factors, x, *rest) for x, *rest in parts)
    return tuple(_sum(factors, x, rest) for x, *rest in parts)


class _Step(NamedTuple):
    end: State
    slopes: list[State]


def _step(rhs: RightHandSide, start: float, stop: float, h: float, state: State, first: State, method: Method) -> _Step:
    """One step of length h from start to stop; `first` is the slope at its start."""
    slopes, end = [first], state
    for node, row in zip(method.nodes[1:], method.rows, strict=True):
        end = _moved(state, h, row, slopes)
        slopes.append(rhs(stop if node == 1 else start + node * h, end))
    return _Step(end if method.weights is None else _moved(state, h, method.weights, slopes), slopes)


# ---------------------------------------------------------------- solutions
def equal_steps(rhs: RightHandSide, state: State, grid: Sequence[float], method: Method) -> Iterator[State]:
    """The states at every point of the grid."""
    yield state
    for start, stop in pairwise(grid):
        state = _step(rhs, start, stop, stop - start, state, rhs(start, state), method).end
        yield state


def chosen_steps(
    rhs: RightHandSide,
    state: State,
    grid: Sequence[float],
    method: Method,
    *,
    first_step: float,
    rtol: float,
    atol: float,
) -> Iterator[State]:
    """The states at every point of the grid: those between its ends by interpolation, the last one where a step ends.

    A step's error is the largest root mean square, over the tensors of the state, of its estimate in units of
    atol + rtol |x|. rhs is never asked outside of the grid.

    Raises:
        Stalled: the error is too large at every step's size.
    """
    at, last, h, waiting = grid[0], grid[-1], math.copysign(first_step, grid[-1] - grid[0]), 1
    yield state
    first = rhs(at, state)
    while at != last:
        # h itself goes on: rounded to the distance of two numbers it would never become too small
        stop, h = (last, last - at) if abs(h) >= abs(last - at) else (at + h, h)
        if stop == at:
            raise Stalled(f"steps below {abs(h):.1g} are needed")
        found = _step(rhs, at, stop, h, state, first, method)
        taken, ratio = h, _error(state, found, h, method, rtol, atol)
        h = h * _factor(ratio, method.order)
        if ratio > 1:
            continue
        while waiting < len(grid) - 1 and (grid[waiting] - stop) * (last - grid[0]) <= 0:
            yield _between(state, found, taken, (grid[waiting] - at) / (stop - at), method)
            waiting += 1
        at, state, first = stop, found.end, found.slopes[-1]
    yield state


@torch.no_grad()
def _error(state: State, found: _Step, h: float, method: Method, rtol: float, atol: float) -> float:
    """In units of the tolerance; infinite where a number is not finite."""
    estimates = _moved(tuple(torch.zeros_like(x) for x in state), h, method.error, found.slopes)
    parts = [
        (estimate / torch.maximum(x.abs(), y.abs()).mul_(rtol).add_(atol)).square_().mean()
        for estimate, x, y in zip(estimates, state, found.end, strict=True)
    ]
    ratio = float(torch.stack(parts).max().sqrt())
    return ratio if math.isfinite(ratio) else math.inf


def _factor(ratio: float, order: int) -> float:
    """By what the next step is longer."""
    if ratio == 0:
        return LARGEST
    return min(LARGEST, max(SAFETY / ratio ** (1 / order), 1.0 if ratio < 1 else SMALLEST))


def _between(state: State, found: _Step, h: float, part: float, method: Method) -> State:
    """The quartic through both ends and the middle with the slopes of both ends, at a part of the step."""
    middle = _moved(state, h, method.middle, found.slopes)
    ends = zip(state, middle, found.end, found.slopes[0], found.slopes[-1], strict=True)

    def quartic(x: Tensor, m: Tensor, y: Tensor, f: Tensor, g: Tensor) -> Tensor:
        a = 2 * h * (g - f) - 8 * (y + x) + 16 * m
        b = h * (5 * f - 3 * g) + 18 * x + 14 * y - 32 * m
        c = h * (g - 4 * f) - 11 * x - 5 * y + 16 * m
        return (((a * part + b) * part + c) * part + h * f) * part + x

    return tuple(quartic(*each) for each in ends)
