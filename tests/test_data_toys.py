"""The toys: densities against their samples, their integrals and independent formulas."""

import importlib
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from flowcli.data import targets
from flowcli.dataset import SPLITS
from flowcli.errors import UserError

CONF = Path(__file__).parent.parent / "conf" / "data"
PUBLISHED = {  # entropies in nats, as the comments in conf/data state them
    "8gaussians": 2.6147,
    "moons": 3.8747,
    "checkerboard": math.log(32),
    "pinwheel": 2.3206,
    "2spirals": 2.5406,
    "rings": 2.6232,
    "swissroll": 2.6696,
    "scurve": 2.7627,
    "circles": 3.2681,
    "gaussian": 1.6339,
    "mixture": 2.7010,
}
CURVES = ("moons", "swissroll", "scurve", "2spirals")


def toy(name: str, **changes: Any) -> Any:
    """The source that data=NAME builds, with other parameters where asked for."""
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changes
    module, _, cls = config.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), cls)(**config)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def midpoints(low: Tensor, high: Tensor, count: int) -> tuple[Tensor, float]:
    """Middles (count^2, 2) of the cells of a square grid, and the area of a cell."""
    step = (high - low) / count
    axes = [low[i] + step[i] * (torch.arange(count, dtype=torch.float64) + 0.5) for i in range(2)]
    return torch.cartesian_prod(*axes), float(step.prod())


@pytest.mark.parametrize("name", PUBLISHED)
def test_density_integrates_to_one(name: str, generator: torch.Generator) -> None:
    target = toy(name).target()
    x = target.sample(20_000, generator)
    reach = x.abs().amax() * 1.5
    points, area = midpoints(-reach.expand(2), reach.expand(2), 600)
    if name == "checkerboard":  # a jump is integrated exactly only by cells that end at it
        points, area = midpoints(torch.full((2,), -6.0).double(), torch.full((2,), 6.0).double(), 600)
    mass = float(target.log_prob(points).exp().sum()) * area
    assert mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_mean_log_prob_of_samples_is_minus_entropy(name: str, generator: torch.Generator) -> None:
    target = toy(name).target()
    surprise = -target.log_prob(target.sample(20_000, generator))
    stderr = float(surprise.std()) / math.sqrt(len(surprise))
    assert surprise.dtype == torch.float64 and target.entropy is not None
    assert abs(float(surprise.mean()) - target.entropy) <= 4 * stderr + 1e-12
    assert target.entropy == pytest.approx(PUBLISHED[name], abs=6e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_samples_fill_the_cells_as_the_density_says(name: str, generator: torch.Generator) -> None:
    target, n, cells, fine = toy(name).target(), 50_000, 24, 20
    x = target.sample(n, generator)
    half = 4.0 if name == "checkerboard" else float(x.abs().max())
    low, high = torch.full((2,), -half, dtype=torch.float64), torch.full((2,), half, dtype=torch.float64)
    points, area = midpoints(low, high, cells * fine)
    density = target.log_prob(points).exp().reshape(cells, fine, cells, fine)
    expected = (density.sum((1, 3)) * area * n).flatten()
    index = ((x - low) / (high - low) * cells).floor().long().clamp(0, cells - 1)
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).double()
    common = expected > 10
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], (n - expected[common].sum())[None]])
    keep = wanted > 5
    statistic = float(((observed - wanted).square() / wanted)[keep].sum())
    assert chi2.sf(statistic, int(keep.sum()) - 1) > 1e-3
    assert float(observed[~keep].sum()) <= 30


@pytest.mark.parametrize("name", CURVES)
def test_quadrature_over_the_curve_has_converged(name: str, generator: torch.Generator) -> None:
    target = toy(name).target()
    assert isinstance(target, targets.NoisyCurve)
    x = 2.5 * target.sample(3000, generator)
    points, log_weight = target.nodes(1.0)
    assert float(log_weight.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    distance = torch.cdist(x, points).square() / (2 * target.std**2)
    reference = torch.logsumexp(log_weight - distance, 1) - math.log(2 * math.pi * target.std**2)
    near = reference > reference.max() - 40
    assert int(near.sum()) > 500
    torch.testing.assert_close(target.log_prob(x)[near], reference[near], rtol=0, atol=1e-6)


def test_ring_of_gaussians_is_the_mixture_of_torch(generator: torch.Generator) -> None:
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    parts = Independent(Normal(means, torch.full_like(means, math.sqrt(0.1))), 1)
    reference = MixtureSameFamily(Categorical(torch.ones(8, dtype=torch.float64)), parts)
    x = 4 * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(toy("8gaussians").target().log_prob(x), reference.log_prob(x), rtol=1e-9, atol=1e-9)
    # Modes twelve standard deviations apart: the formula for separate modes holds to that accuracy.
    assert toy("8gaussians").target().entropy == pytest.approx(math.log(8) + 1 + math.log(0.2 * math.pi), abs=1e-6)


def test_gaussian_of_three_dimensions_is_that_of_torch(generator: torch.Generator) -> None:
    covariance = [[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]]
    dataset = toy("gaussian", mean=[1, 2, 3], covariance=covariance).load()
    sigma = torch.tensor(covariance, dtype=torch.float64)
    reference = MultivariateNormal(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), sigma)
    x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    assert dataset.target is not None
    torch.testing.assert_close(dataset.target.log_prob(x), reference.log_prob(x))
    assert dataset.target.entropy == pytest.approx(float(reference.entropy()), abs=1e-12)
    torch.testing.assert_close(dataset.train.T.cov(), sigma, rtol=0, atol=0.03)


def test_circles_are_the_average_over_the_angle(generator: torch.Generator) -> None:
    target = toy("circles").target()
    x = target.sample(200, generator)
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)[:-1]
    points = torch.cat([radius * torch.stack([angle.cos(), angle.sin()], 1) for radius in (3.0, 1.5)])
    terms = -torch.cdist(x, points).square() / (2 * 0.24**2)
    reference = torch.logsumexp(terms, 1) - math.log(len(points) * 2 * math.pi * 0.24**2)
    torch.testing.assert_close(target.log_prob(x), reference, rtol=0, atol=1e-9)


def test_checkerboard_is_that_of_the_published_formula(generator: torch.Generator) -> None:
    a = torch.rand(5000, generator=generator, dtype=torch.float64) * 4 - 2
    b = torch.rand(5000, generator=generator, dtype=torch.float64)
    b = b - 2 * torch.randint(0, 2, (5000,), generator=generator) + torch.floor(a) % 2
    target = toy("checkerboard").target()
    assert bool((target.log_prob(2 * torch.stack([a, b], 1)) == -math.log(32)).all())
    assert bool((target.log_prob(2 * torch.stack([a, b + 1], 1)) == -math.inf).all())


def test_moons_have_the_mean_and_spread_of_make_moons(generator: torch.Generator) -> None:
    from sklearn.datasets import make_moons

    ours = toy("moons").target().sample(40_000, generator)
    theirs = torch.from_numpy(make_moons(40_000, noise=0.2, random_state=0)[0]) * 3 - 1
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(ours.T.cov(), theirs.T.cov(), rtol=0.03, atol=0.05)


@pytest.mark.parametrize("name", ["swissroll", "scurve"])
def test_rolls_have_the_spread_of_scikit_learn(name: str, generator: torch.Generator) -> None:
    from sklearn.datasets import make_s_curve, make_swiss_roll

    make, noise, scale = {"swissroll": (make_swiss_roll, 1.0, 0.2), "scurve": (make_s_curve, 0.1, 2.0)}[name]
    theirs = torch.from_numpy(make(40_000, noise=noise, random_state=0)[0][:, [0, 2]] * scale)
    ours = toy(name).target().sample(40_000, generator)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(ours.T.cov(), theirs.T.cov(), rtol=0.03, atol=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_log_prob_has_the_gradient_of_its_values(name: str, generator: torch.Generator) -> None:
    if name == "checkerboard":
        pytest.skip("flat")
    target = toy(name).target()
    x = target.sample(5, generator).requires_grad_()
    assert torch.autograd.gradcheck(target.log_prob, (x,), eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_splits_are_fixed_by_the_seed_alone(name: str) -> None:
    sizes = {"train": 300, "validation": 50, "test": 60}
    first, again = toy(name, **sizes).load(), toy(name, **sizes, standardize=False).load()
    other = toy(name, **sizes, seed=1).load()
    for split in SPLITS:
        assert getattr(first, split).shape == (sizes[split], 2)
        assert getattr(first, split).dtype == torch.float64
        assert torch.equal(getattr(first, split), getattr(again, split))
        assert not torch.equal(getattr(first, split), getattr(other, split))
    assert not torch.equal(first.train[:50], first.validation)
    assert torch.equal(toy(name, **sizes | {"train": 1e3}).load().test, first.test)


def test_standardisation_is_fitted_on_the_training_split() -> None:
    dataset = toy("moons", train=500).load()
    z = dataset.transform(dataset.train)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2).double())
    assert not torch.allclose(dataset.transform(dataset.test).mean(0), torch.zeros(2).double(), atol=1e-6)
    assert float(toy("moons", train=500, standardize=False).load().transform.log_det) == 0


def test_the_oracle_gets_the_mixture_where_there_is_one() -> None:
    for name in PUBLISHED:
        mixture = toy(name, train=10).load().mixture
        assert (mixture is not None) == (name in ("8gaussians", "gaussian", "mixture"))
    mixture = toy("8gaussians", train=10).load().mixture
    assert mixture is not None
    assert mixture.means.shape == (8, 2) and mixture.covariances.shape == (8, 2, 2)
    assert float(mixture.weights.sum()) == pytest.approx(1)


def test_entropy_is_none_where_no_grid_reaches() -> None:
    identity = [[float(i == j) for j in range(8)] for i in range(8)]
    source = toy("mixture", weights=[0.5, 0.5], means=[[0.0] * 8, [3.0] * 8], covariances=[identity] * 2)
    assert source.target().entropy is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_loading_and_scoring_are_fast(name: str) -> None:
    source = toy(name)
    start = time.process_time()
    dataset = source.load()
    loaded = time.process_time() - start
    assert dataset.target is not None
    dataset.target.log_prob(dataset.train[:90_000])
    assert loaded < 1 and time.process_time() - start - loaded < 6  # 0.05 and 0.3 s on an idle core


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("moons", {"train": 1}, r"data\.train must be a whole number >= 2"),
        ("moons", {"std": 0}, r"data\.std must be .*>= 1e-100"),
        ("moons", {"std": 1e-6}, r"data\.std must be >= 0\.00236"),
        ("moons", {"standardize": "yes"}, r"data\.standardize must be true or false"),
        ("moons", {"seed": -1}, r"data\.seed"),
        ("2spirals", {"turns": -1}, r"data\.turns"),
        ("checkerboard", {"squares": 3}, r"data\.squares must be an even number"),
        ("rings", {"radii": []}, r"data\.radii must be a list"),
        ("rings", {"radii": [1, -1]}, r"data\.radii\["),
        ("gaussian", {"covariance": [[1, 2], [2, 1]]}, r"data\.covariance must be symmetric and positive definite"),
        ("gaussian", {"covariance": [[1, 0.5], [0, 1]]}, r"data\.covariance must be symmetric"),
        ("gaussian", {"mean": [1, 2, 3]}, r"data\.covariance must be a list of 3 lists of 3"),
        ("gaussian", {"mean": "ab"}, r"data\.mean must be a list"),
        ("mixture", {"weights": [0.5, 0.5, 0.5]}, r"data\.weights must be positive and sum to 1"),
        ("mixture", {"weights": [0.5, 0.5]}, r"data\.means must have one entry a weight: 2, got 3"),
        ("mixture", {"means": [[0, 0], [1], [2, 2]]}, r"data\.means\[1\] must have 2 numbers"),
        ("pinwheel", {"arms": 0}, r"data\.arms"),
    ],
)
def test_bad_parameters_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        toy(name, **changes)
    assert "\n" not in str(caught.value)


def test_read_takes_any_table_of_two_columns(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("b,a\n1,2\n3,4\n")
    source = toy("moons")
    torch.testing.assert_close(source.read(file, None, (2,)), torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double())
    file.write_text("1,2,3\n4,5,6\n")
    with pytest.raises(UserError, match="has 3 columns; 2 are needed"):
        source.read(file, None, (2,))
