"""Affine maps of data units, and their log-determinants."""

import pytest
import torch

from flowcli.transforms import Affine


@pytest.fixture
def x() -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return torch.randn(500, 3, generator=g, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 50.0]).double() + 1e6


def test_standardise(x):
    z = Affine.standardise(x)(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double(), rtol=1e-6, atol=0)


def test_rescale_keeps_proportions(x):
    transform = Affine.rescale(x)
    z = transform(x)
    assert float(z.mean()) == pytest.approx(0, abs=1e-6) and float(z.std(correction=0)) == pytest.approx(1)
    assert len(transform.scale.unique()) == 1 and transform.scale.shape == (3,)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_inverse_and_log_det(shape):
    g = torch.Generator().manual_seed(6)
    shift = torch.randn(shape, generator=g, dtype=torch.float64)
    transform = Affine(shift, torch.rand(shape, generator=g, dtype=torch.float64) + 0.1)
    x = torch.randn(4, *shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform(x)), x)
    size = x[0].numel()
    jacobian = torch.func.jacrev(transform)(x[0]).reshape(size, size)
    assert float(transform.log_det) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-12)


def test_identity():
    x = torch.randn(2, 1, 8, 8)
    transform = Affine.identity((1, 8, 8))
    assert torch.equal(transform(x), x.double()) and float(transform.log_det) == 0


def test_log_det_of_many_small_scales_keeps_its_digits():
    transform = Affine(torch.zeros(784), torch.full((784,), 1e-3))
    assert float(transform.log_det) == pytest.approx(784 * 6.907755278982137, rel=1e-6)


def test_a_checkpoint_carries_the_units(x):
    transform = Affine.identity((3,))
    transform.load_state_dict(Affine.standardise(x).state_dict())
    torch.testing.assert_close(transform(x), Affine.standardise(x)(x))


@pytest.mark.parametrize("scale", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0]])
def test_scales_must_be_positive_and_of_the_same_shape(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        Affine(torch.zeros(2), torch.tensor(scale))


def test_a_constant_column_cannot_be_standardised():
    with pytest.raises(ValueError, match="scale must be positive"):
        Affine.standardise(torch.ones(5, 2))
