"""Diagnostics against the oracle: nothing for its own field, and just what was put in for any other."""

import math

import pytest
import torch
from torch import Tensor, nn

from flowcli import diagnostics
from flowcli.bases import Gaussian, StandardNormal
from flowcli.dataset import Mixture
from flowcli.diagnostics import continuity_residual, fokker_planck_residual, velocity_error
from flowcli.errors import UserError
from flowcli.flows.fields import Field, LearnedField, PathField
from flowcli.flows.oracle import ClosedForm, field_of_mixture, field_of_points
from flowcli.parametrizations import Preconditioned
from flowcli.paths import OT, VE, VP, Cosine, Custom, LinearVP

PATHS = [OT(0.0), OT(0.05), VP(0.1, 20.0), VE(0.01, 50.0), LinearVP(), Cosine(), Custom("t**2", "u * (1 + t)", 1)]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(6)


def mixture(size: int) -> Mixture:
    """Three components with full covariances: correlation 0.99, 0.9 and anything."""
    g = torch.Generator().manual_seed(size)
    i = torch.arange(size)
    a = torch.randn(size, size, generator=g, dtype=torch.float64)
    covariances = [rho ** (i[:, None] - i).abs().double() for rho in (0.99, -0.9)]
    means = torch.randn(3, size, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return Mixture(weights, means, torch.stack([*covariances, a @ a.mT / size + 0.1 * torch.eye(size).double()]))


def draws(oracle: ClosedForm, target: Mixture, u: Tensor, g: torch.Generator, spread: float = 1.0) -> Tensor:
    """Points (B, D) of p_t at u (B,), or of a law that many times as wide: its tails."""
    n, size = len(u), target.means.shape[1]
    k = torch.multinomial(target.weights, n, replacement=True, generator=g)
    z = torch.randn(2, n, size, generator=g, dtype=torch.float64) * spread
    x_1 = target.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(target.covariances)[k], z[0])
    c = oracle.path.schedule(u[:, None])
    return c.alpha * x_1 + c.sigma * (oracle.moments.mean_0 + oracle.moments.var_0.sqrt() * z[1])


class Off(PathField):
    """The oracle's field plus `extra` in the velocity and in the score."""

    def __init__(self, oracle: ClosedForm, extra: Tensor, rate: float = 0.0, score: float = 0.0) -> None:
        super().__init__(oracle.path, oracle.moments, None)
        self.oracle, self.extra, self.rate, self.score = oracle, extra, rate, score

    def velocity_and_score(self, x: Tensor, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        velocity, score = self.oracle.velocity_and_score(x, u, condition)
        return velocity + self.extra + self.rate * x, score + self.score

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        return self.velocity_and_score(x, u, condition)[0]


# ------------------------------------------------------------------------------------------------- residuals
@pytest.mark.parametrize("size", [1, 2, 5])
@every_path
def test_the_oracle_solves_its_own_equations(path, size, generator):
    """To 1e-6 in float64: the continuity equation, and Fokker-Planck for any g, in the tails too."""
    base = Gaussian(torch.linspace(-0.5, 1, size).double(), torch.tensor(0.8).double())
    target = mixture(size)
    oracle = field_of_mixture(target, path, base)
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    for spread in (1, 5):
        x = draws(oracle, target, u, generator, spread)
        assert float(continuity_residual(oracle, oracle, x, u).abs().max()) < 1e-6
        for g in (torch.tensor(0.7).double(), oracle.path.schedule(u).sigma):
            assert float(fokker_planck_residual(oracle, oracle, x, u, g).abs().max()) < 1e-6


@every_path
def test_the_field_over_points_solves_its_own_equations(path, generator):
    data = torch.randn(40, 1, 1, 2, generator=generator, dtype=torch.float64)
    oracle = field_of_points(data, path, StandardNormal((1, 1, 2)))
    u = torch.linspace(0.02, 0.98, 40, dtype=torch.float64)
    c = path.schedule(u[:, None, None, None])
    x = c.alpha * data + c.sigma * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    assert float(continuity_residual(oracle, oracle, x, u).abs().max()) < 1e-6
    assert float(fokker_planck_residual(oracle, oracle, x, u, c.sigma.flatten()).abs().max()) < 1e-6


@every_path
def test_residuals_are_what_was_put_in(path, generator):
    r"""$v + w$ with $w = a + k x$ leaves $w \cdot \nabla \ln p + k D$; a score off by b adds $g^2 b \cdot \nabla/2$."""
    target = mixture(2)
    oracle = field_of_mixture(target, path, StandardNormal((2,)))
    u = torch.linspace(0.05, 0.95, 30, dtype=torch.float64)
    x, g = draws(oracle, target, u, generator), torch.linspace(0, 2, 30).double()
    a = torch.tensor([0.3, -1.1]).double()
    off, slope = Off(oracle, a, rate=0.7, score=0.4), oracle.score(x, u)
    expected = ((a + 0.7 * x) * slope).sum(1) + 1.4
    torch.testing.assert_close(continuity_residual(off, oracle, x, u), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        fokker_planck_residual(off, oracle, x, u, g), expected + g**2 / 2 * 0.4 * slope.sum(1), rtol=1e-7, atol=1e-7
    )


def test_without_noise_fokker_planck_is_continuity(generator):
    target = mixture(2)
    oracle = field_of_mixture(target, Cosine(), StandardNormal((2,)))
    off, u = Off(oracle, torch.ones(2).double(), rate=1.0), torch.linspace(0.1, 0.9, 20).double()
    x, none = draws(oracle, target, u, generator), torch.zeros(()).double()
    torch.testing.assert_close(
        fokker_planck_residual(off, oracle, x, u, none), continuity_residual(off, oracle, x, u), rtol=1e-9, atol=1e-9
    )


class Turning(Field):
    """The oracle's field and a rotation about the origin, which leaves isotropic densities as they are."""

    def __init__(self, oracle: ClosedForm) -> None:
        super().__init__()
        self.oracle = oracle

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        return self.oracle.velocity(x, u, condition) + torch.stack([-x[:, 1], x[:, 0]], 1)


def test_another_field_may_move_the_same_density(generator):
    """The residual is blind to it, and the velocity error is not."""
    one, zero = torch.ones(1).double(), torch.zeros(1, 2).double()
    target = Mixture(one, zero, 0.25 * torch.eye(2).double().expand(1, 2, 2))
    oracle = field_of_mixture(target, OT(0.0), StandardNormal((2,)))
    x_0, x_1 = torch.randn(2, 100, 2, generator=generator, dtype=torch.float64)
    u = torch.rand(100, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    assert float(continuity_residual(Turning(oracle), oracle, x_0, u).abs().max()) < 1e-9
    assert velocity_error(Turning(oracle), oracle, x_0, x_1 / 2, u).relative > 0.1


def test_a_field_without_a_score_is_refused():
    oracle = field_of_mixture(mixture(2), OT(0.0), StandardNormal((2,)))
    blind = LearnedField(nn.Identity(), Preconditioned(), OT(0.0), oracle.moments, no_score="the ends depend")
    half = torch.tensor(0.5)
    with pytest.raises(UserError, match="no score"):
        fokker_planck_residual(blind, oracle, torch.zeros(1, 2).double(), half, half)


class Net(nn.Module):
    """A little network of the fields' signature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return torch.tanh(self.layer(x)) * time.cos().reshape(-1, 1)


def test_of_a_network_in_chunks(generator, monkeypatch):
    """Rows at a time change nothing, a scalar u is one for every row, and no graph is kept."""
    target = mixture(2)
    oracle = field_of_mixture(target, VP(0.1, 20.0), StandardNormal((2,)))
    field = LearnedField(Net().double(), Preconditioned(), oracle.path, oracle.moments)
    u = torch.full((11,), 0.4).double()
    x = draws(oracle, target, u, generator).requires_grad_()
    x_0 = torch.randn(11, 2, generator=generator, dtype=torch.float64)

    def all_three(u: Tensor) -> list[Tensor]:
        residuals = [continuity_residual(field, oracle, x, u), fokker_planck_residual(field, oracle, x, u, u)]
        return [*residuals, torch.tensor(velocity_error(field, oracle, x_0, x.detach(), u.expand(11)))]

    whole = all_three(u)
    assert not any(value.requires_grad for value in whole) and whole[0].shape == (11,)
    assert float(whole[0].abs().max()) > 0.1  # an untrained network
    monkeypatch.setattr(diagnostics, "ROWS_AT_ONCE", 4)
    torch.testing.assert_close(all_three(u[0]), whole)
    monkeypatch.setattr(diagnostics, "NUMBERS_AT_ONCE", 1)
    with torch.no_grad():
        torch.testing.assert_close(all_three(u), whole)


# ------------------------------------------------------------------------------------------------- velocity error
def ends(target: Mixture, n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Independent pairs and times."""
    k = torch.multinomial(target.weights, n, replacement=True, generator=g)
    x_0, z = torch.randn(2, n, target.means.shape[1], generator=g, dtype=torch.float64)
    x_1 = target.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(target.covariances)[k], z)
    return x_0, x_1, torch.rand(n, generator=g, dtype=torch.float64)


@every_path
def test_velocity_error_is_what_was_put_in(path, generator):
    target = mixture(2)
    oracle = field_of_mixture(target, path, StandardNormal((2,)))
    x_0, x_1, u = ends(target, 200, generator)
    u[:2] = torch.tensor([0.0, 1.0])  # where slopes may be infinite
    found = velocity_error(Off(oracle, torch.tensor([3.0, -4.0]).double()), oracle, x_0, x_1, u)
    assert found.error == pytest.approx(5, rel=1e-9)
    c = path.schedule(u.clamp(1e-3, 1 - 1e-3)[:, None])
    true = oracle.velocity(c.alpha * x_1 + c.sigma * x_0, u.clamp(1e-3, 1 - 1e-3), None)
    assert found.size == pytest.approx(float(true.square().sum(1).mean().sqrt()))
    assert found.relative == pytest.approx(found.error / found.size) and found.stderr > 0
    assert velocity_error(oracle, oracle, x_0, x_1, u) == (0, found.size, 0, 0)


def test_stderr_of_the_velocity_error(generator):
    """The spread of the ratio over repeated draws."""
    target = mixture(2)
    oracle = field_of_mixture(target, OT(0.0), StandardNormal((2,)))
    off = Off(oracle, torch.tensor([0.2, 0.1]).double(), rate=0.3)
    found = [velocity_error(off, oracle, *ends(target, 400, generator)) for _ in range(200)]
    spread = float(torch.tensor([one.relative for one in found]).std())
    assert sum(one.stderr for one in found) / len(found) == pytest.approx(spread, rel=4 / math.sqrt(2 * len(found)))


def test_conditional_velocities_average_to_the_oracles(generator):
    """E|v_cond - u_t|^2 = E|v_cond|^2 - E|u_t|^2: what flow matching's floor is made of."""
    target = mixture(2)
    oracle = field_of_mixture(target, Cosine(), StandardNormal((2,)))
    x_0, x_1, u = ends(target, 100_000, generator)
    c = oracle.path.schedule(u.clamp(1e-3, 1 - 1e-3)[:, None])
    conditional = c.d_alpha * x_1 + c.d_sigma * x_0

    class Conditional(Field):
        """Hands out each pair's own velocity, in the order that the pairs come in."""

        def __init__(self) -> None:
            super().__init__()
            self.row = 0

        def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
            self.row += len(x)
            return conditional[self.row - len(x) : self.row]

    found = velocity_error(Conditional(), oracle, x_0, x_1, u)
    total = float(conditional.square().sum(1).mean())
    assert found.error**2 == pytest.approx(total - found.size**2, rel=0.02)
