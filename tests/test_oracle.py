"""The closed-form field: against brute force, and its likelihood against the exact density of the path's own p_1."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from flowcli.bases import Base, Gaussian, StandardNormal, Uniform
from flowcli.dataset import Mixture
from flowcli.divergence import Exact
from flowcli.errors import UserError
from flowcli.flows import oracle as module
from flowcli.flows.oracle import ClosedForm, Oracle, OracleFlow, PointsField, field_of_mixture, field_of_points
from flowcli.flows.parts import Parts
from flowcli.parametrizations import Moments
from flowcli.paths import OT, VE, VP, Cosine, Custom, LinearVP, Path
from flowcli.solvers import Adaptive, FixedStep, Solver
from flowcli.transforms import Affine

PATHS = [OT(0.0), OT(0.05), VP(0.1, 20.0), VE(0.01, 50.0), LinearVP(), Cosine(), Custom("t**2", "1 - t**2", 1)]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)


def mixture(size: int, components: int, seed: int = 0) -> Mixture:
    """Off-centre, with full covariances."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(components, size, generator=g, dtype=torch.float64) + 0.7
    a = torch.randn(components, size, size, generator=g, dtype=torch.float64) / math.sqrt(size)
    weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.3
    return Mixture(weights / weights.sum(), means, 0.4 * a @ a.mT + 0.1 * torch.eye(size, dtype=torch.float64))


def correlated(size: int) -> Mixture:
    """Two components of correlation 0.99 between neighbours, one falling where the other rises."""
    i = torch.arange(size)
    covariance = 0.99 ** (i[:, None] - i).abs().double()
    flip = (-1.0) ** i.double()
    covariances = torch.stack([covariance, 0.3 * flip[:, None] * covariance * flip])
    means = torch.stack([torch.linspace(-1, 0.5, size).double(), torch.linspace(0.4, 0.8, size).double()])
    return Mixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, covariances)


GAUSSIAN = Mixture(  # data=gaussian
    torch.ones(1).double(), torch.tensor([[1.0, -0.5]]).double(), torch.tensor([[[1.0, 0.4], [0.4, 0.25]]]).double()
)
THREE = Mixture(  # data=mixture
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.0]]).double(),
    torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.2], [-0.2, 0.5]], [[0.6, 0.0], [0.0, 0.1]]]).double(),
)


@pytest.fixture(autouse=True)
def fixed_draws():
    """torch.distributions draws from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


TARGETS = {"gaussian": GAUSSIAN, "mixture": THREE, "line": mixture(1, 3), "five": mixture(5, 2)}
CORRELATED = {f"correlated {size}": correlated(size) for size in (1, 2, 5)}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def tolerance(value: float, method: str = "dopri5", time: str = "path") -> Adaptive:
    return Adaptive(method, value, value, time, 100_000)


def standardising(target: Mixture) -> Affine:
    mean = target.weights @ target.means
    spread = target.covariances.diagonal(dim1=1, dim2=2) + (target.means - mean).square()
    return Affine(mean, (target.weights @ spread).sqrt())


def in_model_units(target: Mixture, transform: Affine) -> Mixture:
    outer = transform.scale[:, None] * transform.scale[None, :]
    return Mixture(target.weights, transform(target.means), target.covariances / outer)


def oracle(
    target: Mixture, path: Path, solver: Solver, transform: Affine | None = None, base: Base | None = None
) -> OracleFlow:
    size = target.means.shape[1]
    transform = Affine.identity((size,)) if transform is None else transform
    base = StandardNormal((size,)) if base is None else base
    model = in_model_units(target, transform)
    parts = Parts(None, path, base, transform, solver, Exact(), (size,), None, model, None, None, 0)
    return Oracle("target").flow(parts).cast(torch.float64, torch.device("cpu"))


def density(
    target: Mixture, path: Path, transform: Affine | None, u: float = 0.0, base: Base | None = None
) -> MixtureSameFamily:
    """The path's own p_t in data units, as torch.distributions writes it: scaled by alpha, smoothed by sigma."""
    size = target.means.shape[1]
    transform = Affine.identity((size,)) if transform is None else transform
    alpha, sigma = path.at(u)
    mean_0, std_0 = (torch.zeros(size).double(), 1.0) if base is None else (base.mean, float(base.std))
    scale = torch.diag(transform.scale)
    model = in_model_units(target, transform)
    covariances = alpha**2 * model.covariances + sigma**2 * std_0**2 * torch.eye(size).double()
    covariances = scale @ covariances @ scale
    means = transform.inverse(alpha * model.means + sigma * mean_0)
    return MixtureSameFamily(Categorical(target.weights), MultivariateNormal(means, (covariances + covariances.mT) / 2))


def points(target: Mixture, n: int) -> Tensor:
    """Points of the target, and a few between its components and beside them."""
    g = torch.Generator().manual_seed(9)
    k = torch.multinomial(target.weights, n, replacement=True, generator=g)
    z = torch.randn(n, target.means.shape[1], generator=g, dtype=torch.float64)
    inside = target.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(target.covariances)[k], z)
    return torch.cat([inside, inside[: n // 4] * 1.3 - 0.5])


# ------------------------------------------------------------------------------------------------- likelihood
@pytest.mark.parametrize(
    ("name", "standardised"),
    [("gaussian", False), ("mixture", True), ("line", False), ("five", True)],
)
@every_path
def test_log_prob_is_exact(path, name, standardised):
    target = TARGETS[name]
    transform = standardising(target) if standardised else None
    x = points(target, 12)
    result = oracle(target, path, tolerance(1e-6), transform).log_prob(x)
    expected = density(target, path, transform).log_prob(x)
    torch.testing.assert_close(result.value, expected, rtol=0, atol=1e-4)
    assert result.stderr is None and result.status == "done" and result.nfe > 10


@pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0), VE(0.01, 50.0)], ids=repr)
def test_log_prob_gets_better_with_the_tolerance(path):
    x = points(THREE, 12)
    expected = density(THREE, path, None).log_prob(x)
    flows = [oracle(THREE, path, tolerance(t, "dopri8")) for t in (1e-4, 1e-8)]
    worst = [float((flow.log_prob(x).value - expected).abs().max()) for flow in flows]
    assert worst[1] < 1e-6 and worst[1] < worst[0] / 10


@pytest.mark.parametrize(("path", "time"), [(path, "path") for path in PATHS] + [(VP(0.1, 20.0), "angle")], ids=repr)
def test_gradient_of_log_prob_is_exact(path, time):
    x = points(THREE, 8).requires_grad_()
    value = oracle(THREE, path, FixedStep("rk4", 60, time, 1000)).log_prob(x).value
    (slope,) = torch.autograd.grad(value.sum(), x)
    (expected,) = torch.autograd.grad(density(THREE, path, None).log_prob(x).sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)


@every_path
def test_time_and_angle_solve_the_same_flow(path):
    x = points(THREE, 2)
    both = [oracle(THREE, path, tolerance(1e-7, "dopri8", time), standardising(THREE)) for time in ("path", "angle")]
    for verb in ("log_prob", "decode"):
        first, second = (getattr(flow, verb)(x).value for flow in both)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [OT(0.0), OT(0.05), Cosine(), LinearVP()], ids=repr)
def test_another_gaussian_base(path):
    """N(m, b^2 I): the angle, the centre and the closed form all carry m and b."""
    base = Gaussian(torch.tensor([1.0, -2.0]).double(), torch.tensor(0.6).double())
    x = points(THREE, 8)
    for time in ("path", "angle"):
        found = oracle(THREE, path, tolerance(1e-7, time=time), base=base).log_prob(x).value
        torch.testing.assert_close(found, density(THREE, path, None, base=base).log_prob(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", ["path", "angle"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun"])
@pytest.mark.parametrize("path", [VP(0.1, 20.0), LinearVP()], ids=repr)
def test_no_underflow_at_the_data_end(path, method, time, dtype):
    flow = oracle(THREE, path, tolerance(1e-3 if method == "adaptive_heun" else 1e-4, method, time)).cast(
        dtype, torch.device("cpu")
    )
    x = points(THREE, 8)
    torch.testing.assert_close(flow.log_prob(x).value, density(THREE, path, None).log_prob(x), rtol=0, atol=0.05)
    again = flow.sample(8, seed=0)
    assert again.value.dtype == torch.float64 and bool(torch.isfinite(again.value).all())


@pytest.mark.parametrize("path", [OT(0.0), Cosine(), LinearVP()], ids=repr)
def test_a_field_that_vanishes_at_both_ends(path):
    """F = 0 at the angles 0 and pi/2, and adaptive_heun has no other stage: log_prob was 5 nats off in silence."""
    x = points(THREE, 12)
    found = oracle(THREE, path, tolerance(1e-4, "adaptive_heun", "angle")).log_prob(x).value
    torch.testing.assert_close(found, density(THREE, path, None).log_prob(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("path", [OT(0.0), Cosine(), LinearVP(), VP(0.1, 20.0)], ids=repr)
def test_latents_are_standard_normal(path):
    g = torch.Generator().manual_seed(10)
    n = 2000
    k = torch.multinomial(THREE.weights, n, replacement=True, generator=g)
    noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
    x = THREE.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(THREE.covariances)[k], noise)
    z = oracle(THREE, path, tolerance(1e-5), standardising(THREE)).encode(x).value
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=4 / math.sqrt(n))
    torch.testing.assert_close(torch.cov(z.T), torch.eye(2).double(), rtol=0, atol=5 * math.sqrt(2 / n))
    u = torch.special.ndtr(z).sort(0).values
    distance = (u - (torch.arange(n) + 0.5)[:, None] / n).abs().max()  # Kolmogorov
    assert float(distance) < 1.95 / math.sqrt(n)


@every_path
def test_samples_follow_the_target(path):
    x = oracle(THREE, path, tolerance(1e-4), standardising(THREE)).sample(4000, seed=1).value
    p_1 = density(THREE, path, standardising(THREE))
    torch.testing.assert_close(x.mean(0), p_1.mean, rtol=0, atol=5 * 2 / math.sqrt(4000))
    torch.testing.assert_close(x.var(0), p_1.variance, rtol=0.1, atol=0)
    truth = p_1.sample((4000,))
    gap = p_1.log_prob(x).mean() - p_1.log_prob(truth).mean()
    assert abs(float(gap)) < 5 * math.sqrt(2 * float(p_1.log_prob(truth).var()) / 4000)


# ------------------------------------------------------------------------------------------------- the field
@pytest.mark.parametrize("target", [*TARGETS.values(), *CORRELATED.values()], ids=[*TARGETS, *CORRELATED])
@every_path
def test_continuity_equation(path, target):
    r"""$\partial_t \ln p_t + v \cdot \nabla \ln p_t + \nabla \cdot v = 0$, all three by automatic differentiation."""
    flow = oracle(target, path, tolerance(1e-6))
    size = target.means.shape[1]
    for u in (0.03, 0.2, 0.5, 0.8, 0.97):
        p_t = density(target, path, None, u)
        x = p_t.sample((6,)).requires_grad_()
        left = torch.tensor(u, dtype=torch.float64, requires_grad=True)
        c = path.schedule(left)
        covariances = c.alpha**2 * target.covariances + c.sigma**2 * torch.eye(size).double()
        law = MixtureSameFamily(Categorical(target.weights), MultivariateNormal(c.alpha * target.means, covariances))
        log_p = law.log_prob(x)
        (score,) = torch.autograd.grad(log_p.sum(), x, retain_graph=True)
        rate = torch.stack([-torch.autograd.grad(value, left, retain_graph=True)[0] for value in log_p])
        local = Exact()(
            lambda y, at=u: flow.field.velocity(y, torch.tensor(at, dtype=torch.float64), None),
            x,
            Exact().directions(x, 0, 0),
        )
        residual = rate + (local.value * score).sum(1) + local.divergence[:, 0]
        assert float((residual / (1 + rate.abs())).abs().max().detach()) < 1e-9


@every_path
def test_field_is_the_conditional_expectation(path):
    """E[alpha' x_1 + sigma' x_0 | x_t = x] by quadrature over x_1 on the line."""
    target = TARGETS["line"]
    law = MixtureSameFamily(Categorical(target.weights), MultivariateNormal(target.means, target.covariances))
    grid = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    prior = law.log_prob(grid[:, None])
    flow = oracle(target, path, tolerance(1e-6))
    for u in (0.1, 0.5, 0.9, 1.0):
        c = path.schedule(torch.tensor(u, dtype=torch.float64))
        x = density(target, path, None, u).sample((5,))
        noise = (x - c.alpha * grid) / c.sigma  # (5, grid)
        w = torch.softmax(prior - noise.square() / 2, dim=1)
        expected = (w * (c.d_alpha * grid + c.d_sigma * noise)).sum(1, keepdim=True)
        found = flow.field.velocity(x, torch.tensor(u, dtype=torch.float64), None)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(1 + c.d_sigma.abs()))


@every_path
def test_field_over_points_is_the_conditional_expectation(path):
    g = torch.Generator().manual_seed(11)
    data = torch.randn(9, 1, 2, 2, generator=g, dtype=torch.float64) + 0.5
    mean_0, var_0 = torch.full((1, 2, 2), 0.3).double(), torch.tensor(1.4).double()
    field = PointsField(data, path, Moments.measured(data, mean_0, var_0))
    x = torch.randn(6, 1, 2, 2, generator=g, dtype=torch.float64)
    for u in (0.05, 0.5, 1.0):
        c = path.schedule(torch.tensor(u, dtype=torch.float64))
        noise = (x[:, None] - c.alpha * data) / c.sigma
        w = torch.softmax(-(noise - mean_0).square().flatten(2).sum(2) / (2 * var_0), dim=1)
        pairs = c.d_alpha * data + c.d_sigma * noise
        expected = torch.einsum("bk,bk...->b...", w, pairs)
        found = field.velocity(x, torch.tensor(u, dtype=torch.float64), None)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(1 + c.d_sigma.abs()))
        each = field.velocity(x, torch.full((6,), u, dtype=torch.float64), None)
        torch.testing.assert_close(each, found)


@every_path
def test_rotation_is_the_velocity_in_other_clothes(path):
    """v = drift + V'/2V (x - E x) + gain F(y, angle), for the closed form as for a network."""
    from flowcli.parametrizations import Preconditioned

    flow, g = oracle(THREE, path, tolerance(1e-6)), torch.Generator().manual_seed(12)
    x, u = 2 * torch.randn(20, 2, generator=g, dtype=torch.float64), torch.linspace(0.01, 1, 20).double()
    c = path.schedule(u)
    c = type(c)(*(value[:, None] for value in c))
    p, m = Preconditioned(), flow.field.moments
    output = flow.field.rotation(p.network_input(x, c, m), m.angle(path.schedule(u)), None)
    torch.testing.assert_close(p.velocity(x, output, c, m), flow.field.velocity(x, u, None), rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------------- the density
SOURCE = Gaussian(torch.tensor([1.0, -2.0]).double(), torch.tensor(0.6).double())


def three_points() -> Mixture:
    """The law of the three points below: a mixture of no width."""
    means = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-2.0, 0.1]], dtype=torch.float64)
    return Mixture(torch.ones(3).double() / 3, means, torch.zeros(3, 2, 2).double())


FIELDS = {
    **{
        name: lambda path, target=target: (
            target,
            field_of_mixture(target, path, StandardNormal(target.means[0].shape)),
        )
        for name, target in [*TARGETS.items(), *CORRELATED.items()]
    },
    "another base": lambda path: (THREE, field_of_mixture(THREE, path, SOURCE)),
    "points": lambda path: (three_points(), field_of_points(three_points().means, path, SOURCE)),
}
every_field = pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS.keys())


@every_field
@every_path
def test_density_and_score_are_exact(path, make):
    """Values, slopes in x and slopes in u against torch.distributions; the score against both; u scalar or (B,)."""
    target, field = make(path)
    size = target.means.shape[1]
    mean_0, var_0 = field.moments.mean_0, field.moments.var_0
    for u in (0.03, 0.4, 0.97):
        left = torch.tensor(u, dtype=torch.float64, requires_grad=True)
        c = path.schedule(left)
        covariances = c.alpha**2 * target.covariances + c.sigma**2 * var_0 * torch.eye(size).double()
        normals = MultivariateNormal(c.alpha * target.means + c.sigma * mean_0, covariances)
        law = MixtureSameFamily(Categorical(target.weights), normals)
        x = torch.cat([law.sample((4,)), law.sample((2,)) * 3 + 1]).requires_grad_()  # the tails too
        expected = law.log_prob(x)
        found = field.log_density(x, left)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        slopes = [torch.autograd.grad(value.sum(), (x, left), retain_graph=True) for value in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(field.score(x, left), slopes[1][0], rtol=1e-7, atol=1e-7)
        each = torch.full((6,), u, dtype=torch.float64)
        torch.testing.assert_close(field.log_density(x, each), found)
        velocity, score = field.velocity_and_score(x, each, None)
        torch.testing.assert_close(velocity, field.velocity(x, left, None))
        torch.testing.assert_close(score, field.score(x, left))


@every_path
def test_density_at_the_data_end(path):
    """Of a mixture always; of points where the path smooths them."""
    x, end = points(THREE, 4), torch.zeros((), dtype=torch.float64)
    found = field_of_mixture(THREE, path, StandardNormal((2,))).log_density(x, end)
    torch.testing.assert_close(found, density(THREE, path, None).log_prob(x), rtol=1e-6, atol=1e-6)
    field = field_of_points(x, path, StandardNormal((2,)))
    if path.at(0.0)[1] > 0:
        assert bool(torch.isfinite(field.log_density(x, end)).all())
    else:
        with pytest.raises(UserError, match="no density"):
            field.log_density(x, end)
        with pytest.raises(UserError, match="no density"):
            field.log_density(x[:2], torch.tensor([0.5, 0.0]).double())


def test_points_in_chunks(monkeypatch):
    data = torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    field = field_of_points(data, Cosine(), StandardNormal((1, 2, 2)))
    x, u = data[:5] * 0.8 + 0.1, torch.linspace(0.1, 1, 5).double()
    whole = [field.log_density(x, u), field.score(x, u), field.velocity(x, u, None)]
    monkeypatch.setattr(module, "WEIGHTS_AT_ONCE", 14)
    for first, second in zip(
        whole, [field.log_density(x, u), field.score(x, u), field.velocity(x, u, None)], strict=True
    ):
        torch.testing.assert_close(first, second)


def test_one_point_is_the_point_mass_field():
    """(x_1 - x)/(1 - t), whose flow ends at x_1 wherever it starts (notes 000, 004)."""
    x_1 = torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    field = field_of_points(x_1, OT(0.0), StandardNormal((2,)))
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    u = torch.linspace(1e-3, 1, 9).double()
    torch.testing.assert_close(field.velocity(x, u, None), (x_1 - x) / u[:, None], rtol=1e-12, atol=1e-12)


def test_moments_of_the_fields():
    """Those of the data and of the base, for a mixture and for its own points."""
    g = torch.Generator().manual_seed(3)
    k = torch.multinomial(THREE.weights, 200_000, replacement=True, generator=g)
    z = torch.randn(len(k), 2, generator=g, dtype=torch.float64)
    x = THREE.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(THREE.covariances)[k], z)
    fields: list[ClosedForm] = [field_of_mixture(THREE, OT(0.0), SOURCE), field_of_points(x, OT(0.0), SOURCE)]
    for name in ("mean_0", "mean_1", "var_0", "var_1", "cov"):
        first, second = (getattr(field.moments, name) for field in fields)
        torch.testing.assert_close(first, second, rtol=0.02, atol=0.02)
    assert torch.equal(fields[0].moments.mean_0, SOURCE.mean)
    assert float(fields[0].moments.var_0) == pytest.approx(0.36)


def test_only_a_gaussian_source_has_a_closed_form():
    base = Uniform((2,), -1.0, 1.0)
    with pytest.raises(UserError, match="base=gaussian"):
        field_of_mixture(THREE, OT(0.0), base)
    with pytest.raises(UserError, match="base=gaussian"):
        field_of_points(THREE.means, OT(0.0), base)


# ------------------------------------------------------------------------------------------------- over the points
def over_points(path: Path, data: Tensor, solver: Solver) -> OracleFlow:
    shape = tuple(data.shape[1:])
    parts = Parts(
        None, path, StandardNormal(shape), Affine.identity(shape), solver, Exact(), shape, data, None, None, None, 0
    )
    return Oracle("train").flow(parts).cast(torch.float64, torch.device("cpu"))


DATA = torch.tensor([[0.0, 2.0], [-1.5, -1.0], [2.0, -0.5], [1.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("path", [path for path in PATHS if path.at(0.0)[1] == 0], ids=repr)
def test_points_have_no_density_where_the_path_ends_at_them(path):
    with pytest.raises(UserError, match="no density on a path that ends at them"):
        over_points(path, DATA, tolerance(1e-5)).log_prob(DATA)


@pytest.mark.parametrize("path", [OT(0.0), OT(0.05), VP(0.1, 20.0), Cosine()], ids=repr)
def test_samples_end_at_the_points(path):
    x = over_points(path, DATA, tolerance(1e-5)).sample(50, seed=0).value
    nearest = torch.cdist(x, DATA).min(1)
    assert float(nearest.values.median()) < (1e-3 if path.at(0.0)[1] == 0 else 0.15)
    assert len(nearest.indices.unique()) == len(DATA)


def test_density_over_points_is_that_of_the_smoothed_points():
    path, x = OT(0.2), torch.cat([DATA + 0.1, torch.zeros(1, 2).double()])
    law = MixtureSameFamily(
        Categorical(torch.ones(4).double()), MultivariateNormal(DATA, 0.04 * torch.eye(2).double().expand(4, 2, 2))
    )
    found = over_points(path, DATA, tolerance(1e-8)).log_prob(x).value
    torch.testing.assert_close(found, law.log_prob(x), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------- refusals
def test_refusals():
    flow = oracle(THREE, OT(0.0), tolerance(1e-5))
    with pytest.raises(UserError, match="model=oracle takes no condition"):
        flow.log_prob(torch.zeros(1, 2), condition=torch.zeros(1))
    with pytest.raises(UserError, match=r"events must have the shape \(2,\), got \(3,\)"):
        flow.log_prob(torch.zeros(1, 3))
    base, shape = StandardNormal((2,)), (2,)
    parts = Parts(
        None, OT(0.0), base, Affine.identity(shape), tolerance(1e-5), Exact(), shape, DATA, None, None, None, 0
    )
    with pytest.raises(UserError, match="this data is no Gaussian mixture"):
        Oracle("target").flow(parts)
    with pytest.raises(UserError, match="over must be one of target, train"):
        Oracle("test")
