"""Traces of Jacobians, exact and by probes, for events of any shape."""

import math

import pytest
import torch
from torch import Tensor

from flowcli import divergence
from flowcli.divergence import Exact, Hutchinson
from flowcli.errors import UserError

SHAPES = [(1,), (3,), (2, 2, 3)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def field_over(shape: tuple[int, ...], generator: torch.Generator):
    """A field whose Jacobian is full and differs from row to row."""
    size = math.prod(shape)
    a, b = torch.randn(2, size, size, generator=generator, dtype=torch.float64)

    def field(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (torch.tanh(flat @ a) @ b + flat**2 * flat.sum(1, keepdim=True)).reshape(x.shape)

    return field


def trace(field, x: Tensor) -> Tensor:
    """Brute force, a row at a time."""
    size = x[0].numel()
    jacobians = [torch.func.jacrev(lambda r: field(r[None])[0])(row).reshape(size, size) for row in x]
    return torch.stack([j.trace() for j in jacobians])


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_is_the_trace(shape, generator):
    field = field_over(shape, generator)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    value, found, _ = Exact()(field, x, Exact().directions(x, 0, 0))
    assert found.shape == (4, 1)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(found[:, 0], trace(field, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_jacobian_s_norm_is_that_of_autograd_and_hutchinson_s_is_unbiased(shape, generator):
    """Exactly by the unit vectors; by 20,000 probes within 5 standard errors of their mean, taken over 100 groups."""
    field = field_over(shape, generator)
    x = 0.3 * torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    size = x[0].numel()
    jacobians = torch.stack([torch.func.jacrev(lambda r: field(r[None])[0])(row).reshape(size, size) for row in x])
    expected = jacobians.square().sum((1, 2))
    exact = Exact()
    torch.testing.assert_close(exact(field, x, exact.directions(x, 0, 0)).jacobian, expected, rtol=1e-11, atol=1e-11)
    for distribution in ("rademacher", "gaussian"):
        kind = Hutchinson(200, distribution)
        means = torch.stack([kind(field, x, kind.directions(x, seed, 0)).jacobian for seed in range(100)])
        assert ((means.mean(0) - expected).abs() < 5 * means.std(0) / 10 + 1e-10).all()


@pytest.mark.parametrize("rows", [1, 5, 12, 1 << 20])
def test_groups_of_directions_change_nothing(rows, generator, monkeypatch):
    monkeypatch.setattr(divergence, "ROWS_AT_ONCE", rows)
    field = field_over((5,), generator)
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    for kind in (Exact(), Hutchinson(7, "gaussian")):
        directions = kind.directions(x, 0, 0)
        _, found, _ = kind(field, x, directions)
        _, jacobian = field(x), torch.stack([torch.func.jacrev(lambda r: field(r[None])[0])(row) for row in x])
        forms = torch.einsum("kbi,bij,kbj->bk", *(directions.expand(-1, 4, 5), jacobian, directions.expand(-1, 4, 5)))
        expected = forms.sum(1, keepdim=True) if isinstance(kind, Exact) else forms
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_hutchinson_is_unbiased_and_its_spread_is_known(shape, distribution, generator):
    size, k = math.prod(shape), 20_000
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    kind = Hutchinson(k, distribution)

    def field(x: Tensor) -> Tensor:
        return (x.flatten(1) @ a.T).reshape(x.shape)

    _, found, _ = kind(field, x, kind.directions(x, 0, 0))
    assert found.shape == (2, k)
    error = found.mean(1) - a.trace()
    assert (error.abs() < 4 * found.std(1) / math.sqrt(k)).all()
    symmetric = (a + a.T) / 2  # Var e^T A e = 2 |S|^2, less the diagonal for signs
    variance = 2 * symmetric.square().sum()
    if distribution == "rademacher":
        variance = variance - 2 * symmetric.diagonal().square().sum()
    torch.testing.assert_close(found.var(1), variance.expand(2), rtol=0.1, atol=0)
    assert float((found[0] - found[1]).abs().max()) > 0.1  # rows have probes of their own


def test_signs_are_exact_for_a_diagonal_jacobian(generator):
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    kind = Hutchinson(2, "rademacher")
    _, found, _ = kind(torch.sin, x, kind.directions(x, 0, 0))
    torch.testing.assert_close(found, x.cos().sum(1, keepdim=True).expand(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_probes_have_unit_covariance(distribution, generator):
    e = Hutchinson(50_000, distribution).directions(torch.zeros(1, 3, dtype=torch.float64), 0, 0)[:, 0]
    assert e.dtype == torch.float64
    torch.testing.assert_close(e.T @ e / len(e), torch.eye(3).double(), rtol=0, atol=5 * math.sqrt(2 / len(e)))
    torch.testing.assert_close(e.mean(0), torch.zeros(3).double(), rtol=0, atol=5 / math.sqrt(len(e)))
    if distribution == "rademacher":
        assert set(e.unique().tolist()) == {-1.0, 1.0}


def test_gradients_flow_through_the_exact_trace(generator):
    """v_i = x_i^3 + x_1 ... x_D: the trace's gradient is known."""
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    _, found, _ = Exact()(lambda y: scale * y**3 + y.prod(1, keepdim=True), x, Exact().directions(x, 0, 0))
    by_x, by_scale = torch.autograd.grad(found.sum(), (x, scale))
    product = x.detach().prod(1, keepdim=True)
    # d/dx_j of sum_i (3 s x_i^2 + prod_{k != i} x_k)
    shared = sum(product / (x.detach()[:, [i]] * x.detach()) * (torch.arange(3) != i) for i in range(3))
    torch.testing.assert_close(by_x, 6 * 1.5 * x.detach() + shared, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_scale, 3 * x.detach().square().sum())


@pytest.mark.parametrize(
    ("probes", "distribution"), [(0, "gaussian"), (1.5, "gaussian"), (True, "gaussian"), (1, "uniform")]
)
def test_ranges(probes, distribution):
    with pytest.raises(
        UserError, match=r"probes must be a whole number >= 1|distribution must be one of rademacher, gaussian"
    ):
        Hutchinson(probes, distribution)
