"""Bases against torch.distributions, and their samples against their densities."""

import copy
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from flowcli.bases import Base, Empirical, Gaussian, GaussianMixture, IsotropicMixture, StandardNormal, Uniform
from flowcli.build import construct
from flowcli.dataset import Dataset
from flowcli.errors import UserError

WEIGHTS = torch.tensor([0.25, 0.75], dtype=torch.float64)
MEANS = torch.tensor([[-2.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[1.0, 0.6], [0.6, 0.5]], [[0.3, -0.1], [-0.1, 2.0]]], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_gaussian_log_prob_and_gradient(shape, generator):
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    base = Gaussian(mean, torch.tensor(1.7, dtype=torch.float64))
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = torch.distributions.Normal(mean, 1.7).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(base.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(base.log_prob(x).sum(), x)
    torch.testing.assert_close(slope, -(x - mean) / 1.7**2)


def test_standard_normal_is_one(generator):
    base = StandardNormal((2,))
    assert base.is_gaussian
    assert float(base.log_prob(torch.zeros(1, 2, dtype=torch.float64))) == pytest.approx(-math.log(2 * math.pi))


def test_gaussian_latents(generator):
    base = Gaussian(torch.tensor([1.0, -3.0]).double(), torch.tensor(2.0).double())
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(base.from_latent(base.to_latent(x)), x)
    torch.testing.assert_close(base.to_latent(base.mean + base.std), torch.ones(2).double())


def test_mixture_log_prob_and_gradient(generator):
    base = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (2,))
    expected = MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal(MEANS, COVARIANCES))
    x = (3 * torch.randn(50, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    torch.testing.assert_close(base.log_prob(x), expected.log_prob(x), rtol=1e-11, atol=1e-11)
    slopes = [torch.autograd.grad(p.log_prob(x).sum(), x)[0] for p in (base, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)
    assert not base.is_gaussian


def test_mixture_samples_have_its_moments(generator):
    base = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (2,))
    n = 100_000
    x = base.sample(n, generator).double()
    mean = WEIGHTS @ MEANS
    within = torch.einsum("k,kij->ij", WEIGHTS, COVARIANCES)
    covariance = within + torch.einsum("k,ki,kj->ij", WEIGHTS, MEANS - mean, MEANS - mean)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * math.sqrt(8 / n))
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.1)
    torch.testing.assert_close(base.mean, mean)
    z = base.to_latent(x)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.02)


class Shelf:
    """A data set that nobody opens."""

    def load(self) -> Dataset:
        raise AssertionError

    def read(self, path: Path, columns: tuple[str, ...] | None, event_shape: tuple[int, ...]) -> Tensor:
        raise AssertionError


def empirical(points: Tensor) -> Empirical:
    base = Empirical(tuple(points.shape[1:]), Shelf())
    base.fill(points)
    return base


BASES = {
    "gaussian": lambda: StandardNormal((2,)),
    "mixture": lambda: GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (2,)),
    "isotropic": lambda: IsotropicMixture((2,), [0.2, 0.8], [[0.0, 1.0], [-2.0, 0.3]], [0.4, 0.9]),
    "uniform": lambda: Uniform((2,), -0.7, 1.9),
    "data": lambda: empirical(torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1),
}
every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())


@every_base
def test_samples_are_the_same_numbers_in_every_dtype(make):
    """Float32 on the CPU, out of the generator alone."""
    base, draws = make(), []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(len(draws))  # the global generator has no say
        draws.append(base.to(dtype).sample(7, torch.Generator().manual_seed(0)))
    assert draws[0].dtype == draws[1].dtype == torch.float32 and draws[0].shape == (7, 2)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], base.sample(7, torch.Generator().manual_seed(1)))


@every_base
def test_samples_have_the_moments_that_a_base_states(make, generator):
    base, n = make(), 100_000
    x = base.sample(n, generator).double()
    torch.testing.assert_close(x.mean(0), base.mean, rtol=0, atol=5 * 2 / math.sqrt(n))
    assert float(base.std) ** 2 == pytest.approx(float(x.var(0).mean()), rel=0.03)  # mean variance of a coordinate
    assert base.mean.dtype == base.std.dtype == torch.float64 and base.std.dim() == 0


@every_base
def test_samples_agree_with_the_density(make, generator):
    """Mass 1, and as much of it in a half plane as there are draws; without a density an error that says so."""
    base: Base = make()
    assert base.is_gaussian == isinstance(base, Gaussian)
    x = base.sample(50_000, generator).double()
    if not base.has_density:
        with pytest.raises(UserError, match="no density"):
            base.log_prob(x)
        return
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = base.log_prob(grid).exp() * 0.02**2
    assert float(mass.sum()) == pytest.approx(1, abs=0.02)
    half = grid.sum(1) < base.mean.sum() + 0.1
    share = float((x.sum(1) < base.mean.sum() + 0.1).double().mean())
    assert float(mass[half].sum()) == pytest.approx(share, abs=0.02)


@every_base
def test_a_state_dict_restores_a_base(make, generator):
    base, other = make(), copy.deepcopy(make())
    for value in other.buffers():
        value.zero_()
    if isinstance(other, Empirical):
        other = empirical(torch.zeros(50, 2).double())  # the sizes come with the tensors
    other.load_state_dict(base.state_dict())
    draws = [one.sample(9, torch.Generator().manual_seed(2)) for one in (base, other)]
    assert torch.equal(*draws)
    assert torch.equal(base.to_latent(draws[0].double()), other.to_latent(draws[0].double()))


def test_mixture_keeps_an_event_shape(generator):
    base = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (1, 2, 1))
    x = base.sample(3, generator).double()
    assert x.shape == (3, 1, 2, 1)
    flat = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (2,))
    torch.testing.assert_close(base.log_prob(x), flat.log_prob(x.flatten(1)))


# ------------------------------------------------------------------------------------------------- isotropic mixtures
def test_an_isotropic_mixture_is_one(generator):
    std = torch.tensor([0.4, 0.9]).double()
    base = IsotropicMixture((2,), [0.2, 0.8], [[0.0, 1.0], [-2.0, 0.3]], [0.4, 0.9])
    normals = MultivariateNormal(
        torch.tensor([[0.0, 1.0], [-2.0, 0.3]]).double(), std.square()[:, None, None] * torch.eye(2).double()
    )
    law = MixtureSameFamily(Categorical(torch.tensor([0.2, 0.8], dtype=torch.float64)), normals)
    x = 2 * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(base.log_prob(x), law.log_prob(x), rtol=1e-6, atol=1e-6)
    assert not base.is_gaussian and base.has_density
    alike = [IsotropicMixture((2,), [0.5, 0.5], [[0, 1], [1, 0]], std) for std in (2, [2.0, 2.0])]
    torch.testing.assert_close(alike[0].log_prob(x), alike[1].log_prob(x))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("means", {"means": [[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]}),
        ("means", {"means": 3}),
        ("weights", {"means": [[0.0, 1.0]]}),
        ("weights", {"weights": [0.5, 0.6]}),
        ("weights", {"weights": [1.5, -0.5]}),
        ("std", {"std": 0}),
        ("std", {"std": [1.0, 1.0, 1.0]}),
        ("std", {"std": [1.0, -1.0]}),
        ("std", {"std": "wide"}),
        ("high", {"low": 1.0, "high": 1.0}),
        ("high", {"low": 1.0, "high": 1.0 + 1e-9}),
        ("low", {"low": "a", "high": 1.0}),
        ("data", {"data": "moons"}),
    ],
)
def test_refusals(key, values):
    """A constructor's words begin with the name of the parameter, so that the config's key can be named."""
    kind, rest = Uniform, {}
    if key in ("means", "weights", "std"):
        kind, rest = IsotropicMixture, {"weights": [0.5, 0.5], "means": [[0.0, 0.0], [1.0, 1.0]], "std": 1.0}
    elif key == "data":
        kind = Empirical
    with pytest.raises(UserError) as error:
        kind((2,), **{**rest, **values})
    assert str(error.value).startswith(key)


# ------------------------------------------------------------------------------------------------- uniform
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_uniform_density(shape, generator):
    base = Uniform(shape, -0.5, 2.0)
    x = torch.rand(5, *shape, generator=generator, dtype=torch.float64) * 2.5 - 0.5
    torch.testing.assert_close(
        base.log_prob(x), torch.distributions.Uniform(-0.5, 2.0).log_prob(x.float()).double().flatten(1).sum(1)
    )
    x[0, 0] += 2.5
    assert torch.equal(base.log_prob(x).isinf(), torch.tensor([True] + [False] * 4))
    assert float(base.log_prob(x)[0]) == -math.inf


@pytest.mark.parametrize("ends", [(-1.7320508, 1.7320508), (0.1, 0.3), (-1e-3, 1e5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_draws_lie_inside(ends, dtype, generator, monkeypatch):
    base = Uniform((1,), *ends).to(dtype)
    x = base.sample(10_000, generator).to(dtype)
    assert bool(base.log_prob(x).isfinite().all())
    for extreme in (0.0, 1 - 2**-24):  # the least and the largest that torch.rand draws
        monkeypatch.setattr(torch, "rand", lambda *shape, extreme=extreme, **_: torch.full(shape, extreme))
        assert bool(base.log_prob(base.sample(1, generator).to(dtype)).isfinite().all())
    edges = torch.stack([base.low, base.high])[:, None]
    assert bool(base.log_prob(edges).isfinite().all())


# ------------------------------------------------------------------------------------------------- another data set
def test_empirical_draws_its_points(generator):
    points = torch.randn(6, 1, 2, 2, generator=generator, dtype=torch.float64)
    base = empirical(points)
    x = base.sample(60_000, generator)
    equal = (x[:, None] == points.float()).flatten(2).all(2)
    assert bool((equal.sum(1) == 1).all())
    torch.testing.assert_close(equal.double().mean(0), torch.full((6,), 1 / 6).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(base.mean, points.mean(0))
    assert float(base.std) ** 2 == pytest.approx(float(points.var(0, correction=0).mean()))


def test_empirical_refuses_other_events():
    with pytest.raises(UserError, match="shape"):
        Empirical((2,), Shelf()).fill(torch.zeros(5, 3))


# ------------------------------------------------------------------------------------------------- shipped options
@pytest.mark.parametrize("name", ["gaussian", "uniform", "mixture", "data"])
def test_shipped_options_can_be_built(name):
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        node = OmegaConf.to_container(compose(f"base/{name}").base)
    assert isinstance(node, dict)
    base = construct({str(key): value for key, value in node.items()}, "base", event_shape=(2,))
    assert isinstance(base, Base)
    if name != "mixture":
        torch.testing.assert_close(base.std, torch.ones(()).double())  # standardised, as data are by default
