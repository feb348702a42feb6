"""Ways through latent space against their closed forms."""

import math

import pytest
import torch
from torch import Tensor

from flowcli import latent
from flowcli.errors import UserError


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))


def test_places_are_whole_at_the_points() -> None:
    places = latent.places(3, 4)
    assert places.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert latent.places(2, 3)[::3].tolist() == [0, 1]  # not 0.999...


@pytest.mark.parametrize("way", [latent.linear, latent.spherical])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_point_is_passed(way, dtype) -> None:
    z = points(4, 3, 2).to(dtype)
    walk = way(z, latent.places(4, 7))
    assert walk.shape == (22, 3, 2) and walk.dtype == dtype
    torch.testing.assert_close(walk[::7], z)


def test_a_line_is_the_weighted_mean() -> None:
    z = points(3, 5)
    walk = latent.linear(z, torch.tensor([0.3, 1.6], dtype=torch.float64))
    torch.testing.assert_close(walk[0], 0.7 * z[0] + 0.3 * z[1])
    torch.testing.assert_close(walk[1], 0.4 * z[1] + 0.6 * z[2])


def test_a_great_circle_turns_evenly_with_norms_in_between() -> None:
    z, places = points(2, 6), torch.linspace(0, 1, 11, dtype=torch.float64)
    walk = latent.spherical(z, places)
    norms = z.norm(dim=1)
    torch.testing.assert_close(walk.norm(dim=1), (1 - places) * norms[0] + places * norms[1])
    whole = torch.acos(cosine(z[:1], z[1:]))
    torch.testing.assert_close(torch.acos(cosine(walk[1:], z[:1])), places[1:] * whole)
    torch.testing.assert_close(torch.acos(cosine(walk[:-1], z[1:])), (1 - places[:-1]) * whole)


def test_half_way_between_right_angles() -> None:
    z = torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    half = latent.spherical(z, torch.tensor([0.5], dtype=torch.float64))[0]
    torch.testing.assert_close(half, torch.full((2,), 3 / math.sqrt(2), dtype=torch.float64))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1e-5, 3.0, math.pi - 1e-5])
def test_a_great_circle_is_exact_at_any_angle(angle: float) -> None:
    z = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    places = torch.linspace(0, 1, 9, dtype=torch.float64)
    expected = torch.stack([torch.cos(places * angle), torch.sin(places * angle)], 1)
    torch.testing.assert_close(latent.spherical(z, places), expected, atol=1e-10, rtol=0)


def test_where_no_great_circle_is_the_shortest() -> None:
    z = points(3, 4)
    places = latent.places(3, 2)
    with pytest.raises(UserError, match="latents 1 and 2 are opposite"):
        latent.spherical(torch.stack([z[0], z[1], -2 * z[1]]), places)
    with pytest.raises(UserError, match="latent 1 is 0"):
        latent.spherical(torch.stack([z[0], 0 * z[0], z[1]]), places)


def test_a_direction_is_added_in_proportion() -> None:
    z, direction = points(2, 3, 4), points(3, 4)
    strengths = torch.tensor([0.0, -0.5, 2.0])
    moved = latent.along(z, direction, strengths)
    assert moved.shape == (2, 3, 3, 4)
    for i in range(2):
        for j, strength in enumerate((0, -0.5, 2)):
            torch.testing.assert_close(moved[i, j], z[i] + strength * direction)
