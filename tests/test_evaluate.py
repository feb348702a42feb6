"""Metrics of a flow: against a perfect sampler, closed forms, and the self-check of a likelihood."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcli import evaluate
from flowcli.bases import StandardNormal
from flowcli.data.toys import Gaussian as GaussianSource
from flowcli.dataset import Dataset
from flowcli.divergence import Exact
from flowcli.flows.continuous import ContinuousFlow, start_of
from flowcli.flows.oracle import Oracle
from flowcli.flows.parts import Parts
from flowcli.paths import OT, VE, VP, Path
from flowcli.solvers import Adaptive, FixedStep, Solver, tightened

MEAN, COVARIANCE = [1.0, -2.0], [[2.0, 0.6], [0.6, 0.5]]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    source: Any = GaussianSource(
        mean=MEAN, covariance=COVARIANCE, train=4000, validation=10, test=600, seed=0, standardize=False
    )
    return source.load()


def flow(dataset: Dataset, path: Path, solver: Solver) -> ContinuousFlow:
    assert dataset.mixture is not None
    parts = Parts(
        network=None,
        path=path,
        base=StandardNormal((2,)),
        transform=dataset.transform,
        solver=solver,
        divergence=Exact(),
        event_shape=(2,),
        train=dataset.transform(dataset.train),
        mixture=dataset.mixture.through(dataset.transform),
        tensors=None,
        no_score=None,
        seed=0,
    )
    return Oracle("target").flow(parts).cast(torch.float64, torch.device("cpu"))


SETTINGS = evaluate.Evaluation(
    draws=20,
    draw_points=200,
    batch_size=1000,
    trajectories=20,
    dequantization_draws=2,
    velocity_error="auto",
    pictures=True,
)


def test_a_perfect_model_is_within_two_errors_of_every_floor(dataset):
    found, samples = SETTINGS(flow(dataset, OT(0.0), Adaptive("dopri5", 1e-6, 1e-6, "path", 5000)), dataset, seed=5)
    assert samples.shape == (20 * 200, 2)
    assert found["nll"] == pytest.approx(found["nll_floor"], abs=1e-4)
    assert abs(found["nll_gap"]) < 1e-4
    for name in ("w2", "mmd", "energy_distance"):
        error = math.hypot(float(found[f"{name}_stderr"]), float(found[f"{name}_floor_stderr"]))
        assert abs(float(found[name]) - float(found[f"{name}_floor"])) < 3 * error, name


def test_a_wrong_model_is_far_from_them(dataset):
    found = SETTINGS.two_sample(torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double(), dataset, 200)
    for name in ("w2", "mmd", "energy_distance"):
        error = math.hypot(float(found[f"{name}_stderr"]), float(found[f"{name}_floor_stderr"]))
        assert float(found[name]) - float(found[f"{name}_floor"]) > 10 * error, name


def test_the_gaussian_baseline_is_the_closed_form():
    draws = torch.Generator().manual_seed(0)
    factor = torch.linalg.cholesky(torch.tensor(COVARIANCE, dtype=torch.float64))
    train, test = (torch.randn(n, 2, generator=draws).double() @ factor.T for n in (50_000, 20_000))
    entropy = math.log(2 * math.pi * math.e) + math.log(2.0 * 0.5 - 0.36) / 2
    assert evaluate.gaussian_nll(train, test) == pytest.approx(entropy, abs=0.02)


@pytest.mark.parametrize("path", [VP(0.1, 20.0), VP(0.1, 5.0), VE(0.01, 5.0)], ids=repr)
def test_kl_of_the_start_from_the_base_is_that_of_two_gaussians(dataset, path):
    made = flow(dataset, path, FixedStep("euler", 2, "path", 100))
    made.start = start_of(path, StandardNormal((2,)), made.field.moments)  # what a trained flow starts from
    found = evaluate.base_divergence(made, dataset)
    alpha, sigma = path.at(1.0)
    covariance = torch.tensor(COVARIANCE).double()
    first = alpha**2 * covariance + sigma**2 * torch.eye(2)
    variance = alpha**2 * covariance.trace() / 2 + sigma**2
    exact = (first.trace() / variance - 2 + 2 * variance.log() - torch.logdet(first)) / 2
    assert abs(float(found["base_kl"]) - float(exact)) < 4 * float(found["base_kl_stderr"]) + 1e-6


def test_paths_that_start_at_the_base_have_no_such_kl(dataset):
    assert evaluate.base_divergence(flow(dataset, OT(0.0), FixedStep("euler", 2, "path", 100)), dataset) == {}


def test_bits_per_dim_averages_probabilities_over_draws():
    log_prob = torch.tensor([[math.log(0.5), math.log(0.1)], [math.log(0.25), math.log(0.3)]], dtype=torch.float64)
    found = evaluate.discrete_likelihood(log_prob, 3)
    bits = [-math.log2((0.5 + 0.25) / 2) / 3, -math.log2((0.1 + 0.3) / 2) / 3]
    assert found["bits_per_dim"] == pytest.approx(sum(bits) / 2)
    assert found["dequantization_draws"] == 2


def check(dataset: Dataset, solver: Solver) -> evaluate.SelfCheck:
    made, x = flow(dataset, VP(0.1, 20.0), solver), dataset.points("test")
    return evaluate.self_check(made, x, 0.05, rows=40, batch_size=1000, seed=0)


def test_the_self_check_resolves_a_tight_solve_and_no_coarse_one(dataset):
    tight = check(dataset, Adaptive("dopri5", 1e-6, 1e-6, "path", 5000))
    coarse = check(dataset, FixedStep("euler", 4, "path", 100))
    assert tight.resolved and abs(tight.change) < 1e-3 and tight.round_trip[2] < 1e-3
    assert not coarse.resolved and abs(coarse.change) > 0.01
    assert tight.nfe_tight > tight.nfe
    assert abs(tight.hutchinson) < 4 * tight.hutchinson_stderr + 1e-6
    names = tight.as_metrics()
    assert names["resolved"] is True and "check_round_trip_95" in names and names["check_rows"] == 40


def test_tightened_solvers_cost_more():
    adaptive = tightened(Adaptive("dopri5", 1e-5, 1e-4, "angle", 100))
    assert isinstance(adaptive, Adaptive)
    assert (adaptive.rtol, adaptive.atol, adaptive.time) == (pytest.approx(1e-6), pytest.approx(1e-5), "angle")
    fixed = tightened(FixedStep("rk4", 7, "path", 100))
    assert isinstance(fixed, FixedStep) and fixed.steps == 14


def test_truth_of_a_data_set_without_a_formula_comes_from_its_own_splits(dataset: Dataset):
    plain = Dataset(dataset.train, dataset.validation, dataset.test, 0, dataset.transform)
    truth = evaluate.Truth(plain, 100)

    def rows(x: Tensor) -> set[tuple[float, ...]]:
        return {tuple(row) for row in x.tolist()}

    assert rows(truth(0, "truth")) <= rows(dataset.test)
    assert rows(truth(0, "second truth")) <= rows(dataset.train)
    assert torch.equal(truth(3, "truth"), truth(3, "truth"))
    assert not torch.equal(truth(3, "truth"), truth(4, "truth"))
