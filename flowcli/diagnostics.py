"""How far a field is from the marginal one, against the oracle's closed form; model units throughout.

All of it holds for independent ends alone: under another coupling the oracle's field is not the one that is trained.
Fields, oracle and points share a dtype (float64: terms of the size of 1/sigma^2 cancel near the data) and a device.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli.divergence import Along, Exact, pulled
from flowcli.flows.fields import Field, PathField, beside
from flowcli.flows.oracle import ClosedForm

CUT = 1e-3
"""Velocities are compared for u in [CUT, 1 - CUT]: at the ends some schedules have infinite slopes."""

ROWS_AT_ONCE = 1024
NUMBERS_AT_ONCE = 1 << 22
"""Rows x components x D^2, which an exact divergence of the oracle's own field holds a few times over."""


class VelocityError(NamedTuple):
    """Root mean squares over the pairs, and their ratio.

    Attributes:
        error: of |v - u_t|, with u_t the marginal field.
        size: of |u_t|.
        relative: error / size.
        stderr: of `relative`, by the delta method over independent pairs.
    """

    error: float
    size: float
    relative: float
    stderr: float


@torch.no_grad()
def velocity_error(field: Field, oracle: ClosedForm, x_0: Tensor, x_1: Tensor, u: Tensor) -> VelocityError:
    r"""$\sqrt{E |v - u_t|^2}$ at x_t of pairs x_0, x_1 (B, ...) and u = 1 - t (B,), held inside [CUT, 1 - CUT]."""
    u = u.clamp(CUT, 1 - CUT)
    c = oracle.path.schedule(u)
    x = beside(c.alpha, x_1) * x_1 + beside(c.sigma, x_0) * x_0
    errors, sizes = [], []
    for part, left in _chunks(field, oracle, x, u):
        true = oracle.velocity(part, left, None)
        errors.append((field.velocity(part, left, None) - true).flatten(1).square().sum(1))
        sizes.append(true.flatten(1).square().sum(1))
    error, size = torch.cat(errors).double(), torch.cat(sizes).double()
    ratio = error.mean() / size.mean()
    relative = float(ratio.sqrt())
    spread = float((error - ratio * size).std() / size.mean()) / math.sqrt(len(x))
    stderr = spread / (2 * relative) if relative > 0 else 0.0
    return VelocityError(float(error.mean().sqrt()), float(size.mean().sqrt()), relative, stderr)


def continuity_residual(field: Field, oracle: ClosedForm, x: Tensor, u: Tensor) -> Tensor:
    r"""$\partial_t \ln p_t + v \cdot \nabla \ln p_t + \nabla \cdot v$ (B,) at x (B, ...) and u = 1 - t, scalar or (B,).

    p_t is the oracle's (with the model's own it vanishes by construction), so 0 everywhere means v moves the same p_t.
    In nats per unit of time; taken over x from p_t its root mean square is the size of the error in d ln p/dt.
    """

    def residual(x: Tensor, u: Tensor) -> Tensor:
        return _transport(lambda part: field.along(x, u, None, part), oracle, x, u)[0]

    return _in_chunks(residual, field, oracle, x, u)


def fokker_planck_residual(field: PathField, oracle: ClosedForm, x: Tensor, u: Tensor, g: Tensor) -> Tensor:
    r"""The same of the SDE $dx = f\,dt + g\,dW$ with $f = v + \frac{g^2}{2} s$ and the field's own score s, (B,).

    $\partial_t \ln p + \nabla \cdot f + f \cdot \nabla \ln p - \frac{g^2}{2} (\Delta \ln p + |\nabla \ln p|^2)$ with
    the oracle's p; g is a scalar or (B,). At g = 0 it is `continuity_residual`.

    Raises:
        UserError: the field has no score.
    """

    def residual(x: Tensor, u: Tensor, half: Tensor) -> Tensor:
        def drift(y: Tensor) -> Tensor:
            velocity, score = field.velocity_and_score(y, u, None)
            return velocity + beside(half, y) * score

        transport, slope = _transport(lambda part: pulled(drift, x, part), oracle, x, u)
        laplacian = Exact()(lambda y: oracle.score(y, u), x, Exact().directions(x, 0, 0)).divergence
        return transport - half * (laplacian[:, 0] + slope.flatten(1).square().sum(1))

    return _in_chunks(residual, field, oracle, x, u, g.square() / 2)


def _transport(drift: Along, oracle: ClosedForm, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """d/dt ln p + f . grad ln p + div f (B,), and grad ln p (B, ...), for u (B,) and a drift f at x (B, ...)."""
    with torch.enable_grad():
        at, left = x.detach().requires_grad_(), u.detach().requires_grad_()
        slope, rate = torch.autograd.grad(oracle.log_density(at, left).sum(), (at, left))
    local = Exact().of(drift, x, Exact().directions(x, 0, 0), norm=False)
    return -rate + (local.value * slope).flatten(1).sum(1) + local.divergence[:, 0], slope  # t runs against u


def _chunks(field: Field, oracle: ClosedForm, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the values, as many at a time as memory should hold."""
    components = max(oracle.components, field.components if isinstance(field, ClosedForm) else 1)
    rows = NUMBERS_AT_ONCE // (components * values[0][0].numel() ** 2)
    return zip(*(value.split(min(max(rows, 1), ROWS_AT_ONCE)) for value in values), strict=True)


@torch.no_grad()
def _in_chunks(residual: Callable[..., Tensor], field: Field, oracle: ClosedForm, x: Tensor, *times: Tensor) -> Tensor:
    """A residual (B,) of x (B, ...) and of numbers, each a scalar or (B,)."""
    return torch.cat([residual(*part) for part in _chunks(field, oracle, x, *(time.expand(len(x)) for time in times))])
