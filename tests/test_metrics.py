"""Distances between samples against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowcli import metrics


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def normal(n: int, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def test_wasserstein_of_numbers_pairs_them_in_order(generator: torch.Generator) -> None:
    x, y = normal(300, 1, generator), 2 * normal(300, 1, generator) + 1
    expected = math.sqrt(float((x.sort(0).values - y.sort(0).values).square().mean()))
    assert metrics.wasserstein_2(x, y, generator=generator) == pytest.approx(expected, rel=1e-9)
    one_direction = metrics.sliced_wasserstein_2(x, y, projections=3, generator=generator)
    assert one_direction == pytest.approx(expected, rel=1e-9)


def test_wasserstein_of_a_moved_sample_is_the_move(generator: torch.Generator) -> None:
    x, shift = normal(200, 4, generator).reshape(200, 2, 2), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    moved = (x + shift)[torch.randperm(200, generator=generator)]
    assert metrics.wasserstein_2(x, moved, generator=generator) == pytest.approx(5, rel=1e-9)
    assert metrics.wasserstein_2(x, x.flip(0), generator=generator) == pytest.approx(0, abs=1e-6)


def test_wasserstein_takes_samples_of_unequal_sizes(generator: torch.Generator) -> None:
    x = torch.tensor([[0.0], [2.0]])
    assert metrics.wasserstein_2(x, x.repeat(3, 1) + 1, generator=generator) == pytest.approx(1, rel=1e-9)


def test_wasserstein_is_sliced_beyond_its_limit(generator: torch.Generator) -> None:
    x = normal(metrics.EXACT_LIMIT + 1, 9, generator)
    value = metrics.wasserstein_2(x, x + 1, generator=generator)  # |shift| = 3, over the root of 9
    assert value == pytest.approx(1, rel=0.2)
    again = [metrics.sliced_wasserstein_2(x, x + 1, projections=7, generator=torch.Generator().manual_seed(1))] * 2
    assert again[0] == again[1] != value


def expected_kernel(shift: float, variance: float, bandwidth: float, dimension: int) -> float:
    """E exp(-|d|^2 / 2h^2) for d ~ N(shift e_1, variance I)."""
    total = bandwidth**2 + variance
    return (bandwidth**2 / total) ** (dimension / 2) * math.exp(-(shift**2) / (2 * total))


def test_mmd_between_gaussians_has_its_closed_form(generator: torch.Generator) -> None:
    shift, h = 0.7, 1.3
    exact = 2 * (expected_kernel(0, 2, h, 2) - expected_kernel(shift, 2, h, 2))

    def draw(_: int) -> tuple[Tensor, Tensor]:
        x, y = normal(150, 2, generator), normal(250, 2, generator)
        y[:, 0] += shift
        return x, y

    estimate = metrics.repeated(lambda x, y: metrics.mmd(x, y, bandwidth=h), draw, 100)
    assert abs(estimate.mean - exact) < 4 * estimate.stderr
    assert estimate.stderr < exact / 20


def test_energy_distance_between_gaussians_has_its_closed_form(generator: torch.Generator) -> None:
    def folded(mean: float, std: float) -> float:
        """E|N(mean, std^2)|."""
        tail = math.erf(mean / (std * math.sqrt(2)))
        return std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * std**2)) + mean * tail

    exact = 2 * folded(1.0, math.sqrt(2)) - 2 * folded(0.0, math.sqrt(2))

    def draw(_: int) -> tuple[Tensor, Tensor]:
        return normal(150, 1, generator), 1 + normal(250, 1, generator)

    estimate = metrics.repeated(metrics.energy_distance, draw, 100)
    assert abs(estimate.mean - exact) < 4 * estimate.stderr
    assert estimate.stderr < exact / 20


def test_mmd_and_energy_distance_are_unbiased_at_zero(generator: torch.Generator) -> None:
    def draw(_: int) -> tuple[Tensor, Tensor]:
        return normal(40, 3, generator), normal(60, 3, generator)

    for metric in (lambda x, y: metrics.mmd(x, y, bandwidth=1.0), metrics.energy_distance):
        estimate = metrics.repeated(metric, draw, 400)
        assert abs(estimate.mean) < 4 * estimate.stderr
        assert metric(*draw(0)) != metric(*draw(1))


def test_blocks_of_the_distance_matrix_do_not_change_the_sum(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(50, 2, generator), normal(70, 2, generator)
    whole = metrics.mmd(x, y, bandwidth=0.5), metrics.energy_distance(x, y)
    monkeypatch.setattr(metrics, "_CHUNK", 211)
    assert (metrics.mmd(x, y, bandwidth=0.5), metrics.energy_distance(x, y)) == pytest.approx(whole, rel=1e-12)


def test_both_metrics_at_once_are_each_alone(generator: torch.Generator) -> None:
    y = normal(70, 2, generator)
    both = metrics.mmd_and_energy(y, bandwidth=0.5)
    for x in (normal(50, 2, generator), normal(60, 2, generator) + 1):  # the second x finds y's own mean computed
        assert both(x) == (metrics.mmd(x, y, bandwidth=0.5), metrics.energy_distance(x, y))


def test_median_bandwidth() -> None:
    assert metrics.median_bandwidth(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])) == pytest.approx(4)


def test_path_energy_of_straight_lines_is_the_squared_distance(generator: torch.Generator) -> None:
    start, end = normal(30, 2, generator), normal(30, 2, generator) + 5
    times = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)
    lines = start + times[:, None, None] * (end - start)
    squared = float((end - start).square().sum(1).mean())
    assert metrics.path_energy(lines, times) == pytest.approx(squared, rel=1e-12)
    assert metrics.path_energy(lines.flip(0), times.flip(0)) == pytest.approx(squared, rel=1e-12)
    assert metrics.normalized_path_energy(1.25 * squared, squared) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="different times"):
        metrics.path_energy(lines, times * 0)


def test_path_energy_of_a_circle_rises_to_its_integral() -> None:
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    angle = 2 * math.pi * times
    circle = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    coarse, fine = (metrics.path_energy(circle[::k], times[::k]) for k in (20, 1))
    assert coarse < fine < 4 * math.pi**2
    assert fine == pytest.approx(4 * math.pi**2, rel=1e-4)


def test_small_statistics() -> None:
    estimate = metrics.mean_and_stderr(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert estimate == pytest.approx((3, math.sqrt(14 / 3) / 2))
    assert math.isnan(metrics.mean_and_stderr(torch.ones(1)).stderr)
    assert metrics.bits_per_dim(64 * math.log(2) * 3.5, 64) == pytest.approx(3.5)
    x = torch.tensor([[1000.0, 1000.0 + math.log(3)], [-math.inf, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        metrics.log_mean_exp(x, 1), torch.tensor([1000 + math.log(2), -math.log(2)], dtype=torch.float64)
    )


def test_samples_of_other_dimensions_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="one dimension"):
        metrics.energy_distance(normal(5, 2, generator), normal(5, 3, generator))


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 2), (201, 150, 5), (2, 2, 1)])
def test_the_classifier_is_nearest_neighbours_on_points_it_has_not_seen(n, m, d):
    from sklearn.neighbors import KNeighborsClassifier

    draws = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, d, generator=draws).double(), 2 * torch.randn(m, d, generator=draws).double() + 0.5
    size = min(n, m)
    half, points = size // 2, [(part[:size] / y.std(0)).numpy() for part in (x, y)]
    learnt, asked = (np.concatenate([part[rows] for part in points]) for rows in (slice(half), slice(half, size)))
    judge = KNeighborsClassifier(n_neighbors=int(math.sqrt(2 * half))).fit(learnt, np.repeat([0, 1], half))
    exact = (judge.predict(asked) == np.repeat([0, 1], size - half)).mean()
    assert metrics.classifier_accuracy(x, y) == pytest.approx(exact)


def test_the_classifier_s_accuracy_goes_from_a_half_to_one():
    draws = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 400, 2, generator=draws) for _ in range(30)]
    same = metrics.mean_and_stderr(torch.tensor([metrics.classifier_accuracy(*pair) for pair in pairs]))
    assert abs(same.mean - 0.5) < 3 * same.stderr
    x, y = pairs[0]
    assert metrics.classifier_accuracy(x, y + 100) == 1.0
    near, far = (metrics.classifier_accuracy(x, y + shift) for shift in (0.5, 2.0))
    assert 0.5 < near < far < 1
    assert metrics.classifier_accuracy(x * torch.tensor([1e6, 1.0]), y * torch.tensor([1e6, 1.0])) == pytest.approx(
        metrics.classifier_accuracy(x, y)
    ), "every coordinate has the unit of its own scatter"
