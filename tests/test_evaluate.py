"""Metrics of a flow: against a perfect sampler, closed forms, and the self-check of a likelihood."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcli import evaluate, metrics
from flowcli.bases import StandardNormal
from flowcli.data import toys
from flowcli.data.toys import Gaussian as GaussianSource
from flowcli.dataset import Dataset
from flowcli.divergence import Exact
from flowcli.flows.base import Flow, Result
from flowcli.flows.continuous import ContinuousFlow, start_of
from flowcli.flows.oracle import Oracle
from flowcli.flows.parts import Parts
from flowcli.paths import OT, VE, VP, Path
from flowcli.randomness import generator
from flowcli.resolution import SelfCheck, self_check
from flowcli.solvers import Adaptive, FixedStep, Solver, tightened

TWO_SAMPLE = ("w2", "mmd", "energy_distance", "c2st")
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


class TrueSampler(Flow):
    """The target itself as a flow: what a perfect model is."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.target, self.event_shape = dataset.target, dataset.event_shape
        self.start, self.transform = StandardNormal((2,)), dataset.transform

    def cast(self, dtype, device):
        return self

    def sample(self, n, *, seed, start=0, batch_size=None, condition=None):
        return Result(self.target.sample(n, generator(seed, "a perfect model")), 1, "done")

    def log_prob(self, x, *, seed=0, batch_size=None, condition=None):
        return Result(self.target.log_prob(x), 1, "done")

    def encode(self, x, **_):
        raise NotImplementedError

    decode = trajectory = follow = encode


PERFECT = {
    name: toy(train=2000, validation=10, test=1000, seed=0, standardize=True, **options)
    for name, toy, options in [
        ("8gaussians", toys.GaussianRing, {"modes": 8, "radius": 5.0, "std": 0.316}),
        ("checkerboard", toys.Checkerboard, {"half_width": 4.0, "squares": 4}),
        ("gaussian", GaussianSource, {"mean": MEAN, "covariance": COVARIANCE}),
    ]
}


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_model_is_within_two_errors_of_every_floor(name):
    opened = PERFECT[name].load()
    found = SETTINGS(TrueSampler(opened), opened)
    assert found.metrics["nll_gap"] == found.metrics["nll_gap_stderr"] == 0
    assert found.metrics["nll"] == found.metrics["nll_floor"] and found.metrics["nll_solver_error"] == 0
    for metric in TWO_SAMPLE:
        values, floor = found.units[metric], found.units[f"{metric}_floor"]
        assert found.metrics[metric] == pytest.approx(float(values.mean())) and len(values) == len(floor) == 20
        error = math.hypot(float(found.metrics[f"{metric}_stderr"]), float(found.metrics[f"{metric}_floor_stderr"]))
        assert abs(float((values - floor).mean())) < 2 * error, metric
    for unbiased, perfect in (("mmd", 0.0), ("energy_distance", 0.0), ("c2st", 0.5)):
        assert abs(float(found.metrics[f"{unbiased}_floor"]) - perfect) < 3 * found.metrics[f"{unbiased}_floor_stderr"]


def test_the_exact_field_well_solved_is_one(dataset):
    found = SETTINGS(flow(dataset, OT(0.0), Adaptive("dopri5", 1e-6, 1e-6, "path", 5000)), dataset)
    assert found.samples.shape == (20 * 200, 2)
    assert found.metrics["nll"] == pytest.approx(found.metrics["nll_floor"], abs=1e-4)
    assert abs(found.metrics["nll_gap"]) < 1e-4 and abs(found.metrics["nll_solver_error"]) < 1e-5
    for metric in TWO_SAMPLE:
        error = math.hypot(float(found.metrics[f"{metric}_stderr"]), float(found.metrics[f"{metric}_floor_stderr"]))
        assert abs(float(found.metrics[metric]) - float(found.metrics[f"{metric}_floor"])) < 3 * error, metric
    coarse = SETTINGS(flow(dataset, OT(0.0), FixedStep("euler", 4, "path", 100)), dataset)
    assert abs(coarse.metrics["nll_solver_error"]) > 0.01, "and one that is not well solved is seen to be that"


def test_a_wrong_model_is_far_from_them(dataset):
    samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    found, _ = SETTINGS.two_sample(samples, dataset, 200)
    for name in TWO_SAMPLE:
        error = math.hypot(float(found[f"{name}_stderr"]), float(found[f"{name}_floor_stderr"]))
        assert float(found[name]) - float(found[f"{name}_floor"]) > 10 * error, name


def test_each_draw_is_held_against_its_own_truth(dataset):
    samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    _, draws = SETTINGS.two_sample(samples, dataset, 200)
    truth = evaluate.Truth(dataset, 200)
    bandwidth = metrics.median_bandwidth(truth(0, "bandwidth"))
    for draw, part in ((0, samples[:200]), (19, samples[-200:])):
        for end, x in (("", part), ("_floor", truth(draw, "second truth"))):
            true = truth(draw, "truth")
            alone = {
                "w2": metrics.wasserstein_2(x, true, generator=generator(0, "slices")),
                "mmd": metrics.mmd(x, true, bandwidth=bandwidth),
                "energy_distance": metrics.energy_distance(x, true),
                "c2st": metrics.classifier_accuracy(x, true),
            }
            assert alone == {name: float(draws[name + end][draw]) for name in TWO_SAMPLE}


def test_flows_of_one_data_set_meet_the_same_noise_and_points(dataset):
    """So that their figures can be compared point by point, whatever the seeds of their trainings."""
    dataset = replace(dataset, seed=7)
    made = flow(dataset, OT(0.0), FixedStep("euler", 4, "path", 100))
    first, again = SETTINGS(made, dataset), SETTINGS(made, dataset)
    assert torch.equal(first.samples, again.samples)
    assert torch.equal(first.samples, made.sample(4000, seed=7, batch_size=1000).value)
    assert not torch.equal(first.samples, made.sample(4000, seed=0, batch_size=1000).value)
    other = SETTINGS(made, replace(dataset, seed=8))
    assert not torch.equal(first.units["w2_floor"], other.units["w2_floor"]), "the true points are the data seed's, too"


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
    found = evaluate.discrete_likelihood(evaluate.bits_per_dim(log_prob, 3), 2)
    bits = [-math.log2((0.5 + 0.25) / 2) / 3, -math.log2((0.1 + 0.3) / 2) / 3]
    assert found["bits_per_dim"] == pytest.approx(sum(bits) / 2)
    assert found["dequantization_draws"] == 2


def check(dataset: Dataset, solver: Solver) -> SelfCheck:
    made, x = flow(dataset, VP(0.1, 20.0), solver), dataset.points("test")
    return self_check(made, x, 0.05, rows=40, batch_size=1000, seed=0)


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
