"""The cheapest pairing against scipy's on the squared distances themselves, on kind and on spiteful points."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from flowcli import assignment
from flowcli.assignment import cheapest
from flowcli.couplings import OT
from flowcli.errors import JobError
from flowcli.randomness import generator

SIDES = ("gauss", "clusters", "line", "far", "grid", "tiny", "outlier", "one point")


def side(name: str, n: int, dimension: int, seed: int) -> torch.Tensor:
    draws = generator(seed, name)
    x = torch.randn(n, dimension, generator=draws, dtype=torch.float64)
    match name:
        case "clusters":
            return x / 20 + 5 * torch.randint(2, (n, dimension), generator=draws)
        case "line":
            return x[:, :1].expand(n, dimension) * 3
        case "far":
            return x + 1e4
        case "grid":
            return x.round()
        case "tiny":
            return x * 1e-6
        case "outlier":
            x[0] = 1e6
            return x
        case "one point":
            return torch.ones_like(x)
    return x


def cost(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum())


@pytest.mark.parametrize("dimension", [1, 2, 64])
@pytest.mark.parametrize("second", SIDES)
@pytest.mark.parametrize("first", SIDES)
def test_no_pairing_is_cheaper(first, second, dimension):
    for n in (1, 2, 37, 100):
        x, y = side(first, n, dimension, 0), side(second, n, dimension, 1)
        index = cheapest(x, y)
        assert index.sort().values.tolist() == list(range(n))
        rows, columns = linear_sum_assignment(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square())
        best, scale = cost(x[rows], y[columns]), float((x - y.mean(0)).square().sum() + (y - y.mean(0)).square().sum())
        assert cost(x[index], y) <= best * (1 + 1e-12) + 1e-12 * scale


@pytest.mark.parametrize("n", [256, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_large_one_is_as_cheap_as_its_dual_says(n):
    x, y = side("gauss", n, 2, 0), side("clusters", n, 2, 1)
    costs = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    rows, columns = linear_sum_assignment(costs)
    assert math.isclose(cost(x[cheapest(x, y)], y), float(costs[rows, columns].sum()), rel_tol=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_prices_leave_little_to_search(turned):
    """The dual value of the prices falls short of the optimum by far less than that of none."""
    x, y = side("gauss", 256, 2, 0), side("clusters", 256, 2, 1)
    costs = (y - y.mean(0)) @ (x - x.mean(0)).T if turned else (x - x.mean(0)) @ (y - y.mean(0)).T
    prices = assignment._prices(-costs.float())
    rows, columns = linear_sum_assignment(-costs)
    best = float(-costs[rows, columns].sum())
    without, priced = ((-costs - p).amin(1).sum() + p.sum() for p in (torch.zeros(256), prices))
    assert 0 <= best - float(priced) < 0.05 * (best - float(without))


def test_the_number_of_threads_changes_nothing():
    x, y = side("grid", 300, 2, 0), side("grid", 300, 2, 1)  # full of ties
    earlier = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(cheapest(x, y))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(earlier)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_have_no_plan(bad):
    x, y = side("gauss", 16, 2, 0), side("gauss", 16, 2, 1)
    x[3, 1] = bad
    with pytest.raises(ValueError, match="invalid"):
        cheapest(x, y)
    with pytest.raises(JobError, match="coupling=ot"):
        OT(16)(x, y, None, generator(0, "unused"))
