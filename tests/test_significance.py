"""Differences between variants, against what they must be by construction."""

import math

import numpy as np
import pytest
from scipy import stats

from flowcli.significance import REPLICATES, average, differences, resampled

LEVEL = 0.95


def variants(source: np.random.Generator, count: int, seeds: int, *, units: int = 300, between: float = 0.05):
    """Equal variants: the same test points for all, a chance of its own for every seed, and for both together."""
    points = 1.4 * source.normal(size=units)
    chance = [between * source.normal(size=(seeds, 1)) + 0.3 * source.normal(size=(seeds, units)) for _ in range(count)]
    return [points + each for each in chance]


def lowest(scores) -> int:
    return int(np.argmin([each.mean() for each in scores]))


def test_an_average_knows_its_two_kinds_of_scatter():
    scores = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 7.0]])
    found = average(scores)
    assert found.mean == pytest.approx(3.0) and found.seeds == 2
    assert found.deviation == pytest.approx(np.std([2.0, 4.0], ddof=1))
    units, seeds = np.var([1.5, 2.5, 5.0], ddof=1) / 3, np.var([2.0, 4.0], ddof=1) / 2
    assert found.stderr == pytest.approx(math.sqrt(units + seeds))
    alone = average(scores[:1])
    assert math.isnan(alone.deviation) and alone.stderr == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("seeds", [1, 2, 3, 8])
def test_resampled_means_scatter_as_the_mean_itself_does(seeds):
    """Over many worlds the bootstrap's variance is that of the mean: drawing S of S seeds would be too small."""
    source, worlds = np.random.default_rng(0), 60
    told, means = [], []
    for world in range(worlds):
        chance = 0.5 * source.normal(size=(seeds, 1)) if seeds > 1 else 0.0
        scores = source.normal(size=200) + chance
        scores = np.broadcast_to(scores, (seeds, 200)).copy()
        told.append(resampled([scores], seed=world).var(ddof=1))
        means.append(0.25 / seeds * (seeds > 1) + 1 / 200)
    error = np.std(told) / math.sqrt(worlds)
    assert np.mean(told) == pytest.approx(np.mean(means), abs=3 * error + 0.03 * np.mean(means))


@pytest.mark.parametrize(
    ("count", "seeds", "most"), [(2, 3, 0.05), (6, 3, 0.08), (2, 2, 0.08), (6, 5, 0.08), (12, 1, 0.09), (30, 1, 0.09)]
)
def test_equal_variants_are_seldom_told_apart(count, seeds, most):
    """The lowest of many is low by chance; with one seed a seed may have no effect of its own."""
    source, worlds, wrong = np.random.default_rng(1), 100, 0
    for world in range(worlds):
        scores = variants(source, count, seeds, between=0.05 if seeds > 1 else 0.0)
        wrong += any(found.real for found in differences(scores, lowest(scores), level=LEVEL, chosen=True, seed=world))
    assert wrong / worlds <= most


def test_intervals_hold_the_true_difference():
    source, worlds, held = np.random.default_rng(2), 200, 0
    for world in range(worlds):
        first, second = variants(source, 2, 4)
        found = differences([first, second + 0.2], 0, level=LEVEL, chosen=False, seed=world)[1]
        held += found.low <= 0.2 <= found.high
    assert 0.92 <= held / worlds <= 1


def test_a_real_difference_is_found_with_its_size():
    first, second = variants(np.random.default_rng(3), 2, 3, units=2000, between=0.01)
    found = differences([first, second + 0.2], 0, level=LEVEL, chosen=False, seed=0)
    assert found[0].value == found[0].low == found[0].high == 0 and not found[0].real
    assert found[1].real and 0.1 < found[1].low < found[1].value < found[1].high < 0.3
    assert found[1].value == pytest.approx(float(second.mean() - first.mean()) + 0.2)
    assert not found[1].units_only


def test_with_one_seed_it_is_the_paired_t_interval_and_says_so():
    source = np.random.default_rng(4)
    first = source.normal(size=(1, 400))
    second = first + 0.05 + 0.3 * source.normal(size=(1, 400))
    found = differences([first, second], 0, level=LEVEL, chosen=False, seed=0)[1]
    exact = stats.ttest_rel(second[0], first[0]).confidence_interval(LEVEL)
    assert found.units_only
    width = exact.high - exact.low
    assert found.low == pytest.approx(exact.low, abs=0.05 * width)
    assert found.high == pytest.approx(exact.high, abs=0.05 * width)


def test_more_rows_make_wider_intervals():
    scores = variants(np.random.default_rng(5), 6, 3)
    two, six = (differences(scores[:count], 0, level=LEVEL, chosen=False, seed=0)[1] for count in (2, 6))
    assert six.high - six.low > 1.1 * (two.high - two.low)


def test_an_unbounded_score_is_worse_without_an_interval():
    first, second = variants(np.random.default_rng(6), 2, 2)
    second[0, 0] = math.inf
    found = differences([first, second], 0, level=LEVEL, chosen=False, seed=0)[1]
    assert found.value == math.inf and found.real and math.isnan(found.low)
    both = differences([second, second.copy()], 0, level=LEVEL, chosen=False, seed=0)[1]
    assert both.value == 0 and not both.real
    assert average(second).mean == math.inf


def test_the_same_seed_draws_the_same():
    scores = variants(np.random.default_rng(7), 3, 3)
    first, again = (differences(scores, 0, level=LEVEL, chosen=False, seed=0) for _ in range(2))
    assert first == again
    assert resampled(scores, seed=0).shape == (REPLICATES, 3)


def test_very_many_points_are_resampled_in_blocks():
    source = np.random.default_rng(8)
    first = source.normal(size=(1, 90_001))
    second = first + 0.01 + 0.1 * source.normal(size=(1, 90_001))
    found = differences([first, second], 0, level=LEVEL, chosen=False, seed=0)[1]
    exact = stats.ttest_rel(second[0], first[0]).confidence_interval(LEVEL)
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.06)
    assert found.value == pytest.approx(float((second - first).mean()))
