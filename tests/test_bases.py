"""Bases against torch.distributions, and their samples against their densities."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from flowcli.bases import Gaussian, GaussianMixture, StandardNormal

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
    assert float(base.std) ** 2 == pytest.approx(float(covariance.trace()) / 2)  # mean variance of a coordinate
    z = base.to_latent(x)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_samples_are_the_same_numbers_in_every_dtype(kind):
    base = StandardNormal((2,)) if kind == "gaussian" else GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (2,))
    draws = [base.to(dtype).sample(7, torch.Generator().manual_seed(0)) for dtype in (torch.float64, torch.float32)]
    assert draws[0].dtype == draws[1].dtype == torch.float32
    assert torch.equal(*draws)


def test_mixture_keeps_an_event_shape(generator):
    base = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (1, 2, 1))
    x = base.sample(3, generator).double()
    assert x.shape == (3, 1, 2, 1)
    flat = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, (2,))
    torch.testing.assert_close(base.log_prob(x), flat.log_prob(x.flatten(1)))
