"""Ways through latent space (notes 003): along lines, along great circles, in a direction."""

import torch
from torch import Tensor

from flowcli.errors import UserError

PARALLEL = 1e-6
"""Angle in radians below which two directions, or one and the other's opposite, count as the same."""


def places(points: int, steps: int) -> Tensor:
    """Where the steps of a walk through so many points are, (S,) float64: point k at k, `steps` steps to the next."""
    return torch.arange((points - 1) * steps + 1, dtype=torch.float64) / steps


def linear(z: Tensor, places: Tensor) -> Tensor:
    """Latents (S, ...) at places (S,) of the walk along straight lines through z (E, ...), E >= 2."""
    flat = z.double().flatten(1)
    leg, part = _legs(len(z), places.to(flat))
    way = (1 - part) * flat[leg] + part * flat[leg + 1]
    return way.to(z.dtype).reshape(-1, *z.shape[1:])


def spherical(z: Tensor, places: Tensor) -> Tensor:
    r"""Latents (S, ...) at places (S,) of the walk along great circles through z (E, ...), E >= 2.

    Directions turn at even speed, $\frac{\sin((1-p)\theta)}{\sin\theta} u_a + \frac{\sin(p\theta)}{\sin\theta} u_b$,
    norms go linearly: draws of N(0, I) in D dimensions lie near the sphere of radius sqrt(D), which a straight line
    between two of them leaves (arXiv 1609.04468).

    Raises:
        UserError: a latent is 0 and has no direction, or two neighbours are opposite: no great circle is the shortest.
    """
    flat = z.double().flatten(1)
    norms = flat.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise UserError(f"latent {int(norms.argmin())} is 0 and has no direction: there is no spherical way to it")
    units = flat / norms
    chords, sums = (units[1:] - units[:-1]).norm(dim=1), (units[1:] + units[:-1]).norm(dim=1)
    if bool((sums < PARALLEL).any()):
        first = int(sums.argmin())
        raise UserError(f"latents {first} and {first + 1} are opposite: no spherical way between them is the shortest")
    angles = 2 * torch.atan2(chords, sums)[:, None]  # exact at both ends, where the arc cosine is not
    leg, part = _legs(len(z), places.to(flat))
    angle = angles[leg]
    turned = angle > PARALLEL
    safe = torch.where(turned, angle, 1.0)
    from_first = torch.where(turned, torch.sin((1 - part) * safe) / torch.sin(safe), 1 - part)
    from_second = torch.where(turned, torch.sin(part * safe) / torch.sin(safe), part)
    way = from_first * units[leg] + from_second * units[leg + 1]
    way = way * ((1 - part) * norms[leg] + part * norms[leg + 1])
    return way.to(z.dtype).reshape(-1, *z.shape[1:])


def along(z: Tensor, direction: Tensor, strengths: Tensor) -> Tensor:
    """Latents z + s direction, (E, S, ...), of z (E, ...), a direction (...) and strengths s (S,)."""
    scaled = strengths.to(z).reshape(-1, *[1] * direction.dim()) * direction
    return z[:, None] + scaled[None]


def _legs(points: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """The leg that each place is on (S,), and the part of it that is done (S, 1)."""
    leg = places.floor().long().clamp(0, points - 2)
    return leg, (places - leg)[:, None]
