"""Couplings against theorems: permutations, sorted plans, limits of the entropic plan, cells of equal mass."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml

from flowcli import couplings
from flowcli.bases import StandardNormal
from flowcli.couplings import (
    OT,
    Independent,
    Pairs,
    Partial,
    Reflow,
    Semidiscrete,
    Sinkhorn,
    Unbalanced,
    transport_cost,
)
from flowcli.errors import JobError, UserError
from flowcli.randomness import generator

CONF = Path(__file__).resolve().parents[1] / "conf" / "coupling"
NAMES = ("independent", "ot", "sinkhorn", "unbalanced", "partial", "semidiscrete", "reflow")
EVERY_PLAN = [OT(64), Sinkhorn(64, 0.05), Unbalanced(64, 0.05, 1.0), Partial(64, 0.75)]


def ends(n: int, dimension: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise N(0, I) and data on eight Gaussians of radius 5."""
    draws = generator(seed, "ends")
    angle = torch.randint(8, (n,), generator=draws) * math.pi / 4
    data = torch.randn(n, dimension, generator=draws, dtype=torch.float64) / 2
    data[:, 0] += 5 * angle.cos()
    data[:, -1] += 5 * angle.sin()
    return torch.randn(n, dimension, generator=draws, dtype=torch.float64), data


def pair(coupling, x_0, x_1, condition=None, seed=0) -> Pairs:
    return coupling(x_0, x_1, condition, generator(seed, "pairs"))


def positions(of: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Where each row of one tensor stands in another, whose rows are distinct."""
    same = (of.flatten(1)[:, None] == among.flatten(1)).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def is_permutation(index: torch.Tensor) -> bool:
    return index.sort().values.tolist() == list(range(len(index)))


def test_independent_changes_nothing():
    x_0, x_1 = ends(7)
    found = pair(Independent(), x_0, x_1, torch.arange(7))
    assert found.x_0 is x_0 and found.x_1 is x_1 and found.condition.tolist() == list(range(7))


def test_transport_cost_sums_over_the_event():
    pairs = Pairs(torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 2.0), None)
    assert transport_cost(pairs) == 16.0


@pytest.mark.parametrize("minibatch", [1, 7, 32, 100, 1000])
def test_ot_permutes_the_noise_within_groups_and_leaves_the_data(minibatch):
    x_0, x_1 = ends(100)
    found = pair(OT(minibatch), x_0, x_1)
    assert torch.equal(found.x_1, x_1)
    index = positions(found.x_0, x_0)
    assert is_permutation(index)
    assert torch.equal(index // minibatch, torch.arange(100) // minibatch)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_ot_is_the_best_of_all_permutations(shape):
    draws = generator(3, "brute")
    x_0, x_1 = (torch.randn(6, *shape, generator=draws, dtype=torch.float64) for _ in range(2))
    best = min(transport_cost(Pairs(x_0[list(p)], x_1, None)) for p in itertools.permutations(range(6)))
    torch.testing.assert_close(transport_cost(pair(OT(6), x_0, x_1)), best)


def test_ot_sorts_in_one_dimension():
    x_0, x_1 = ends(64, 1)
    found = pair(OT(64), x_0, x_1)
    order = x_1[:, 0].argsort()
    assert torch.equal(found.x_0[order, 0], x_0[:, 0].sort().values)


def test_ot_takes_equal_data_and_equal_noise():
    x_0, x_1 = ends(20)
    x_1[::2] = x_1[0]
    x_0[:5] = x_0[0]
    found = pair(OT(20), x_0, x_1)
    assert torch.equal(found.x_0.sort(0).values, x_0.sort(0).values)


@pytest.mark.parametrize("coupling", EVERY_PLAN, ids=lambda c: type(c).__name__)
def test_labels_are_never_crossed(coupling):
    x_0, x_1 = ends(150)
    labels = torch.randint(4, (150,), generator=generator(1, "labels"))
    labels[0] = 9  # a label alone in the batch
    found = pair(coupling, x_0, x_1, labels)
    assert torch.equal(found.condition, labels)
    assert torch.equal(labels[positions(found.x_0, x_0)], labels)
    assert torch.equal(labels[positions(found.x_1, x_1)], labels)


@pytest.mark.parametrize("condition", [torch.zeros(8), torch.zeros(8, 2, dtype=torch.long)], ids=["real", "vector"])
@pytest.mark.parametrize("coupling", [*EVERY_PLAN, Semidiscrete(1, 1, 0.1)], ids=lambda c: type(c).__name__)
def test_a_condition_that_is_no_label_is_refused_before_training(coupling, condition):
    with pytest.raises(UserError):
        coupling.prepare(ends(8)[1], StandardNormal((2,)), 0, condition=condition, jitter=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coupling", EVERY_PLAN, ids=lambda c: type(c).__name__)
def test_rows_are_those_given_and_drawn_alike_from_the_same_state(coupling, dtype):
    x_0, x_1 = (x.to(dtype) for x in ends(100))
    found, again = pair(coupling, x_0, x_1), pair(coupling, x_0, x_1)
    assert found.x_0.dtype == found.x_1.dtype == dtype and found.x_0.shape == found.x_1.shape == (100, 2)
    positions(found.x_0, x_0)
    positions(found.x_1, x_1)
    assert torch.equal(found.x_0, again.x_0) and torch.equal(found.x_1, again.x_1) and found.condition is None
    assert coupling.state() == {}


def test_sinkhorn_goes_from_the_independent_cost_to_the_exact_one():
    x_0, x_1 = ends(64)
    exact = transport_cost(pair(OT(64), x_0, x_1))
    independent = torch.cdist(x_0, x_1).square().mean()
    costs = []
    for regularization in (100.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003):
        draws = [pair(Sinkhorn(64, regularization), x_0, x_1, seed=seed) for seed in range(25)]
        costs.append(torch.stack([transport_cost(d) for d in draws]).mean())
        assert all(torch.equal(d.x_1, x_1) for d in draws)
    assert all(above > below for above, below in itertools.pairwise(costs))
    # 1,600 draws: a standard error of 1% of the independent cost, and far less at the exact one
    torch.testing.assert_close(costs[0], independent, rtol=0.04, atol=0)
    torch.testing.assert_close(costs[-1], exact, rtol=0.03, atol=0)


def test_sinkhorn_draws_from_the_column():
    # two noises, two data, costs 0 and 1: the plan is [[p, q], [q, p]] with p / q = exp(1 / regularisation)
    x_0 = x_1 = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    regularization = 2.0  # of the mean cost 1/2
    stays = 1 / (1 + math.exp(-1 / (regularization / 2)))
    draws = generator(0, "column")
    n = 1000
    same = sum((Sinkhorn(2, regularization)(x_0, x_1, None, draws).x_0 == x_1).double() for _ in range(n)) / n
    error = math.sqrt(stays * (1 - stays) / n)
    assert (same - stays).abs().max() < 4 * error


def test_unsolvable_plans_are_an_error_of_the_job():
    x_0, x_1 = ends(32)
    with pytest.raises(JobError, match="regularization"):
        pair(Unbalanced(32, 1e-6, 1.0), 10 * x_0, 10 * x_1)


def test_unbalanced_is_sinkhorn_where_the_marginals_are_dear():
    x_0, x_1 = ends(64)
    mean = {
        coupling: torch.stack([transport_cost(pair(coupling, x_0, x_1, seed=s)) for s in range(60)]).mean()
        for coupling in (Unbalanced(64, 0.05, 1e4), Sinkhorn(64, 0.05))
    }
    torch.testing.assert_close(*mean.values(), rtol=0.02, atol=0)
    dear, found = pair(Unbalanced(64, 0.05, 1e4), x_0, x_1), pair(Unbalanced(64, 0.05, 0.05), x_0, x_1)
    assert len(positions(dear.x_0, x_0).unique()) >= 62
    assert len(positions(found.x_1, x_1).unique()) < 60
    assert not Unbalanced.keeps_marginals and not Partial.keeps_marginals


def test_partial_with_all_the_mass_is_the_exact_plan():
    x_0, x_1 = ends(64)
    found = pair(Partial(64, 1.0), x_0, x_1)
    assert is_permutation(positions(found.x_0, x_0)) and is_permutation(positions(found.x_1, x_1))
    torch.testing.assert_close(transport_cost(found), transport_cost(pair(OT(64), x_0, x_1)))


def test_partial_leaves_outliers_out():
    x_0, x_1 = ends(64)
    x_1[::4] += 1000.0
    found = pair(Partial(64, 0.5), x_0, x_1)
    assert found.x_1.abs().max() < 100
    assert positions(found.x_1, x_1).bincount().max() == 2  # half of the data, each twice
    assert len(positions(found.x_1, x_1).unique()) == 32


@pytest.fixture(scope="module")
def fitted():
    """Twenty data in one dimension and their potentials."""
    points = torch.randn(20, 1, generator=generator(5, "points")) * 2 + 3
    coupling = Semidiscrete(1000, 4096, 0.5)
    coupling.prepare(points, StandardNormal((1,)), 0, condition=None, jitter=None)
    return points, coupling


def test_semidiscrete_cells_are_quantiles_in_one_dimension(fitted):
    points, coupling = fitted
    x_0 = torch.linspace(-3, 3, 60_001)[:, None]
    found = pair(coupling, x_0, torch.zeros_like(x_0))
    assert torch.equal(found.x_0, x_0)
    order = positions(found.x_1.unique(dim=0), points)
    assert torch.equal(order, points[:, 0].argsort())
    assert (found.x_1[1:, 0] >= found.x_1[:-1, 0]).all()
    rank = torch.searchsorted(points[:, 0].sort().values, found.x_1[:, 0].contiguous())
    edges = torch.stack([x_0[rank < k, 0].max() for k in range(1, 20)]).double()
    exact = torch.arange(1, 20, dtype=torch.float64) / 20
    # an edge's level is a sum of cell masses of 1/20: within 2% of one
    torch.testing.assert_close(torch.special.ndtr(edges), exact, rtol=0, atol=0.02 / 20)
    assert coupling.largest_error < 0.2  # 4 standard errors of counting 400


def test_semidiscrete_uses_the_data_evenly_and_transports_at_the_optimal_cost():
    _, data = ends(200)
    coupling = Semidiscrete(400, 1024, 0.5)
    coupling.prepare(data, StandardNormal((2,)), 0, condition=None, jitter=None)
    assert coupling.largest_error < 0.4
    x_0 = torch.randn(20_000, 2, generator=generator(0, "fresh"), dtype=torch.float64)
    found = pair(coupling, x_0, x_0)
    assert found.x_1.dtype == torch.float64
    counts = positions_of_many(found.x_1, data).bincount(minlength=200)
    assert (counts / 100 - 1).square().mean().sqrt() < 0.2  # counting alone gives 0.1
    # no assignment of these noises to as many data in the same numbers is cheaper
    subset = OT(1000)(x_0[:1000], found.x_1[:1000], None, generator(0))
    torch.testing.assert_close(
        transport_cost(Pairs(x_0[:1000], found.x_1[:1000], None)), transport_cost(subset), rtol=1e-5, atol=0
    )


def positions_of_many(of: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    return torch.cat([positions(rows, among) for rows in of.split(2000)])


def test_semidiscrete_survives_a_round_trip(fitted):
    _, coupling = fitted
    again = Semidiscrete(1, 1, 0.1)
    with pytest.raises(RuntimeError):
        again.state()
    again.load(coupling.state())
    x_0 = torch.randn(500, 1, generator=generator(0, "fresh"))
    assert torch.equal(pair(coupling, x_0, x_0).x_1, pair(again, x_0, x_0).x_1)
    assert again.largest_error == coupling.largest_error
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in coupling.state().items())


def test_semidiscrete_is_fitted_alike_twice_and_adds_jitter():
    _, data = ends(30)
    base, width = StandardNormal((2,)), torch.tensor([0.0, 0.5], dtype=torch.float64)
    first, second = Semidiscrete(50, 64, 0.1), Semidiscrete(50, 64, 0.1)
    first.prepare(data, base, 7, condition=None, jitter=None)
    second.prepare(data, base, 7, condition=None, jitter=width)
    assert torch.equal(first.state()["potentials"], second.state()["potentials"])
    x_0 = ends(400, seed=1)[0]
    added = pair(second, x_0, x_0).x_1 - pair(first, x_0, x_0).x_1
    assert (added[:, 0] == 0).all() and added[:, 1].min() >= 0 and 0.45 < added[:, 1].max() <= 0.5


def test_semidiscrete_fits_each_label_by_itself():
    _, data = ends(60)
    labels = torch.arange(60) % 3
    labels[0] = 9  # a label with a single datum
    coupling = Semidiscrete(200, 512, 0.5)
    coupling.prepare(data, StandardNormal((2,)), 0, condition=labels, jitter=None)
    x_0 = torch.randn(3000, 2, generator=generator(0, "fresh"), dtype=torch.float64)
    wanted = torch.randint(3, (3000,), generator=generator(0, "labels"))
    wanted[:50] = 9
    found = pair(coupling, x_0, x_0, wanted)
    index = positions(found.x_1, data)
    assert torch.equal(labels[index], wanted) and torch.equal(found.condition, wanted)
    assert index.bincount(minlength=60).min() > 20  # of 50


def test_semidiscrete_carries_potentials_of_a_few_over_to_all(monkeypatch):
    monkeypatch.setattr(couplings.semidiscrete, "WARM_POINTS", 100)
    _, data = ends(500)
    coupling = Semidiscrete(400, 2048, 0.5)
    coupling.prepare(data, StandardNormal((2,)), 0, condition=None, jitter=None)
    assert coupling.largest_error < 1.5
    unused = Semidiscrete(1, 1, 1e-9)
    unused.prepare(data, StandardNormal((2,)), 0, condition=None, jitter=None)
    assert 2 * coupling.largest_error < unused.largest_error < 10  # zero potentials give over 20


def test_reflow_draws_rows_of_its_table():
    coupling = Reflow("runs/first", 50)
    x_0, x_1 = ends(50)
    batch = torch.zeros(200, 2)
    with pytest.raises(RuntimeError):
        pair(coupling, batch, batch)
    coupling.fill(x_0, x_1)
    found = pair(coupling, batch, batch)
    assert found.x_0.dtype == torch.float32 and found.x_0.shape == (200, 2)
    row = positions(found.x_0, x_0.float())
    assert torch.equal(found.x_1, x_1.float()[row]) and len(row.unique()) > 40
    again = Reflow("runs/first", 50)
    again.load(coupling.state())
    assert torch.equal(pair(again, batch, batch).x_0, found.x_0)
    with pytest.raises(UserError):
        pair(coupling, batch, batch, torch.zeros(200, dtype=torch.long))


def test_only_independent_is_independent():
    dependent = (OT, Sinkhorn, Unbalanced, Partial, Semidiscrete, Reflow)
    assert Independent.independent and Independent.keeps_marginals
    assert not any(kind.independent for kind in dependent)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: OT(0), "minibatch"),
        (lambda: Sinkhorn(256, 0.0), "regularization"),
        (lambda: Unbalanced(256, -1.0, 1.0), "regularization"),
        (lambda: Unbalanced(256, 0.1, 0.0), "marginal_penalty"),
        (lambda: Partial(256, 1.1), "mass"),
        (lambda: Semidiscrete(0, 1, 0.1), "iterations"),
        (lambda: Semidiscrete(1, 0, 0.1), "batch_size"),
        (lambda: Semidiscrete(1, 1, math.inf), "learning_rate"),
        (lambda: Reflow("", 10), "ckpt"),
        (lambda: Reflow("run", 0), "pairs"),
    ],
)
def test_parameters_are_checked_by_name(build, name):
    with pytest.raises(UserError, match=f"^{name} "):
        build()


@pytest.mark.parametrize("file", [CONF / f"{name}.yaml" for name in NAMES], ids=lambda file: file.stem)
def test_every_config_builds(file):
    assert file.read_text().startswith("# ")
    keys = yaml.safe_load(file.read_text())
    kind = getattr(couplings, keys.pop("_target_").removeprefix("flowcli.couplings."))
    assert (file.stem == "reflow") == (keys.get("ckpt") == "???")
    assert isinstance(kind(**keys), couplings.Coupling)
