"""What a sampler's quality costs: flows and solvers against the same true points."""

import math
from typing import Any

import pytest
import torch

from flowcli.bases import StandardNormal
from flowcli.data.toys import Gaussian as GaussianSource
from flowcli.dataset import Dataset
from flowcli.divergence import Exact
from flowcli.errors import JobError
from flowcli.evaluate import Truth
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.discrete import RealNVP
from flowcli.flows.oracle import Oracle
from flowcli.flows.parts import Parts
from flowcli.metrics import mean_and_stderr
from flowcli.paths import OT
from flowcli.quality import MEASURES, NO_SOLVER, Yardstick, curve, samplers
from flowcli.solvers import Adaptive, FixedStep, Solver

DRAWS, POINTS = 6, 150
HOW: dict[str, Any] = {"seed": 5, "batch_size": 400}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    settings: dict[str, Any] = {"mean": [1.0, -2.0], "covariance": [[2.0, 0.6], [0.6, 0.5]], "standardize": False}
    source: Any = GaussianSource(train=400, validation=10, test=200, seed=0, **settings)
    return source.load()


@pytest.fixture(scope="module")
def yardstick(dataset: Dataset) -> Yardstick:
    return Yardstick(dataset, DRAWS, POINTS)


def parts(dataset: Dataset, **given: Any) -> Parts:
    assert dataset.mixture is not None
    usual: dict[str, Any] = {"path": OT(0.0), "solver": None, "divergence": Exact()}
    return Parts(
        network=None,
        base=StandardNormal((2,)),
        transform=dataset.transform,
        event_shape=(2,),
        train=dataset.transform(dataset.train),
        mixture=dataset.mixture.through(dataset.transform),
        tensors=None,
        no_score=None,
        seed=0,
        **usual | given,
    )


def oracle(dataset: Dataset, solver: Solver) -> ContinuousFlow:
    return Oracle("target").flow(parts(dataset, solver=solver)).cast(torch.float64, torch.device("cpu"))


EXACT = Adaptive("dopri5", 1e-6, 1e-6, "angle", 5000)


def test_a_perfect_sampler_is_within_the_errors_of_its_floor(dataset, yardstick):
    own, floor = yardstick.measured(oracle(dataset, EXACT), **HOW), yardstick.floor()
    assert (own.solver, own.steps) == ("dopri5", None) and own.nfe > 6
    for name in MEASURES:
        assert own.values[name].shape == floor[name].shape == (DRAWS,)
        (value, error), (perfect, scatter) = mean_and_stderr(own.values[name]), mean_and_stderr(floor[name])
        assert abs(value - perfect) < 2 * math.hypot(error, scatter), name


def test_the_floor_is_what_other_true_points_score(dataset, yardstick):
    truth = Truth(dataset, POINTS)
    others = torch.cat([truth(draw, "second truth") for draw in range(DRAWS)])
    same = torch.cat([truth(draw, "truth") for draw in range(DRAWS)])
    found = yardstick(others)
    for name in MEASURES:
        assert torch.equal(found[name], yardstick.floor()[name])
        assert bool((yardstick(same)[name] < found[name]).all()), "the very points that they are held against"
    assert float(yardstick(same)["w2"].max()) < 1e-6


def test_every_solver_meets_the_same_noise_and_the_same_truth(dataset, yardstick):
    flow = oracle(dataset, EXACT)
    found, failed = curve(flow, [4, 1, 2, 4, 6], yardstick, **HOW)
    assert not failed
    names = {(each.solver, each.steps, each.nfe) for each in found}
    assert names == {
        *(("euler", n, n) for n in (1, 2, 4, 6)),
        *(("midpoint", n, 2 * n) for n in (1, 2, 3)),
        ("heun3", 2, 6),
        ("rk4", 1, 4),
    }
    assert len(found) == len(names) == len(list(samplers([1, 2, 4, 6], flow)))
    alone = yardstick.measured(oracle(dataset, FixedStep("midpoint", 2, "angle", 100)), **HOW)
    (same,) = (each for each in found if (each.solver, each.steps) == ("midpoint", 2))
    assert all(torch.equal(alone.values[name], same.values[name]) for name in MEASURES)
    # paired, draw by draw: one Euler step is worse in every draw, six are not far from the truth
    one, six = (each.values["w2"] for each in found if each.solver == "euler" and each.nfe in (1, 6))
    assert bool((one > six).all())


def test_another_seed_is_another_noise(dataset, yardstick):
    flow = oracle(dataset, FixedStep("euler", 3, "path", 100))
    first, other = (yardstick.measured(flow, seed=seed, batch_size=400).values["w2"] for seed in (5, 6))
    assert not torch.equal(first, other)


def test_a_flow_that_solves_nothing_is_one_point(dataset, yardstick):
    model = RealNVP(transforms=2, width=4, depth=1)
    flow = model.flow(parts(dataset, path=None, divergence=None)).cast(torch.float64, torch.device("cpu"))
    found, failed = curve(flow, [1, 2, 4], yardstick, **HOW)
    assert not failed and [(each.solver, each.steps, each.nfe) for each in found] == [(NO_SOLVER, None, 1)]
    assert found[0].values["w2"].shape == (DRAWS,)


def test_a_solver_that_fails_leaves_a_line(dataset, yardstick, monkeypatch):
    solve = FixedStep.solve

    def fails(self: FixedStep, *args: Any, **options: Any) -> Any:
        if self.steps == 1:
            raise JobError("it failed")
        return solve(self, *args, **options)

    monkeypatch.setattr(FixedStep, "solve", fails)
    found, failed = curve(oracle(dataset, EXACT), [1, 2], yardstick, **HOW)
    assert [(each.solver, each.steps) for each in found] == [("euler", 2)]
    assert failed == ["euler, 1 steps: it failed", "midpoint, 1 steps: it failed"]


def test_draws_have_no_more_points_than_the_test_split(dataset):
    assert Yardstick(dataset, 2, 1000).points == len(dataset.test)
    with pytest.raises(ValueError):
        Yardstick(dataset, 2, 100)(torch.zeros(300, 2))
