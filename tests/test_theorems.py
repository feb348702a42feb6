"""What the lecture notes prove, held against the code: one theorem a test, with its tolerance and the reason for it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowcli.bases import StandardNormal
from flowcli.couplings import Independent
from flowcli.dataset import Mixture, TrainingData
from flowcli.divergence import Exact, Hutchinson
from flowcli.ends import Ends
from flowcli.flows.continuous import ContinuousFlow, start_of
from flowcli.flows.fields import Field, FreeField, LearnedField
from flowcli.networks.mlp import MLP
from flowcli.objectives import (
    DataPrediction,
    Example,
    FlowMatching,
    MarginalMatching,
    NoisePrediction,
    Objective,
    Regression,
    ScoreMatching,
)
from flowcli.parametrizations import Moments, Preconditioned
from flowcli.paths import OT, VP, Path, Schedule
from flowcli.solvers import Adaptive, FixedStep, Solver
from flowcli.transforms import Affine

CPU, F64 = torch.device("cpu"), torch.float64
TARGET = Mixture(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.tensor([[-1.0, 0.2], [1.2, -0.5]], dtype=F64),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]]], dtype=F64),
)
OT_AND_VP = pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0)], ids=["ot", "vp"])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def mlp(shape: tuple[int, ...], width: int, seed: int = 0) -> MLP:
    """A network whose last layer is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(shape, width, 1, 0, 1.0, 1, True, "auto")
        nn.init.normal_(network.last.weight, std=width**-0.5)
    return network


def fixed(method: str, steps: int) -> FixedStep:
    return FixedStep(method, steps, "path", 100_000)


def flow_over(field: Field, solver: Solver, size: int = 2) -> ContinuousFlow:
    units = Affine.identity((size,))
    return ContinuousFlow(field, StandardNormal((size,)), units, solver, Exact(), (size,)).cast(F64, CPU)


def draw(mixture: Mixture, n: int, generator: torch.Generator) -> Tensor:
    k = torch.multinomial(mixture.weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, mixture.means.shape[1], generator=generator, dtype=F64)
    return mixture.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(mixture.covariances)[k], noise)


def learner(path: Path, generator: torch.Generator) -> tuple[ContinuousFlow, TrainingData, Ends]:
    """A small untrained flow on a path to TARGET, its data and its ends."""
    train, base = draw(TARGET, 2000, generator), StandardNormal((2,))
    moments = Moments.measured(train, base.mean, base.std)
    field = LearnedField(mlp((2,), 5), Preconditioned(), path, moments)
    units, start = Affine.identity((2,)), start_of(path, base, moments)
    flow = ContinuousFlow(field, start, units, fixed("euler", 1), Exact(), (2,)).cast(F64, CPU)
    return flow, TrainingData(train, train[:10], mixture=TARGET), Ends(base, Independent())


def gradient(loss: Tensor, flow: ContinuousFlow) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(flow.parameters()))])


# ---------------------------------------------------------------- 001 V: conditional against marginal matching
@OT_AND_VP
def test_conditional_and_marginal_flow_matching_have_the_same_gradient(path, generator):
    """In expectation; so over 120 groups of 500 common draws the mean difference is zero within its standard error.

    With P = 27 parameters the largest of |mean difference| / error stays below 4.5 (probability 2e-4 by chance).
    A marginal field that is off by a quarter of a standard deviation is seen at once: the test has power.
    """
    flow, data, ends = learner(path, generator)
    shifted = Mixture(TARGET.weights, TARGET.means + 0.25, TARGET.covariances)
    other = TrainingData(data.train, data.validation, mixture=shifted)
    conditional = FlowMatching("unit")
    marginal, wrong = MarginalMatching("unit", "target"), MarginalMatching("unit", "target")
    conditional.prepare(flow, data, ends)
    marginal.prepare(flow, data, ends)
    wrong.prepare(flow, other, ends)
    gaps: dict[str, list[Tensor]] = {"marginal": [], "wrong": []}
    sizes, excess = [], []
    for _ in range(120):
        example = conditional.draw(flow, draw(TARGET, 500, generator), None, generator)
        loss = conditional(flow, example).mean()
        here = gradient(loss, flow)
        losses = {"marginal": marginal(flow, example).mean(), "wrong": wrong(flow, example).mean()}
        excess.append(loss.detach() - losses["marginal"].detach())
        for name, value in losses.items():
            gaps[name].append(here - gradient(value, flow))
        sizes.append(here)

    def in_errors(differences: list[Tensor]) -> Tensor:
        each = torch.stack(differences)
        return (each.mean(0) / (each.std(0) / math.sqrt(len(each)))).abs()

    assert float(in_errors(gaps["marginal"]).max()) < 4.5
    assert float(in_errors(gaps["wrong"]).max()) > 15
    assert float(in_errors(sizes).max()) > 30  # the gradient itself is far from zero
    assert float(torch.stack(excess).mean()) > 0.05  # and the losses differ: by the variance given x_t


# ---------------------------------------------------------------- 004: one regression under four names
UNIT: dict[str, Callable[[], Objective]] = {
    "flow_matching": lambda: FlowMatching("unit"),
    "score": lambda: ScoreMatching("unit"),
    "noise": lambda: NoisePrediction("unit"),
    "data": lambda: DataPrediction("unit"),
}


@OT_AND_VP
def test_unit_weighting_makes_one_training_of_four_objectives(path):
    """Bit for bit: the same draws, the same losses, the same gradients."""
    found = []
    for make in UNIT.values():
        generator = torch.Generator().manual_seed(3)
        flow, data, ends = learner(path, generator)
        objective = make()
        objective.prepare(flow, data, ends)
        example = objective.draw(flow, data.train[:64], None, torch.Generator().manual_seed(4))
        loss = objective(flow, example)
        found.append((*example[:4:2], example.u, loss, gradient(loss.mean(), flow)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def vp_beta(u: Tensor) -> Tensor:
    return 0.1 + 19.9 * u


NATIVE: dict[str, tuple[Callable[[], Regression], str]] = {
    "velocity": (lambda: FlowMatching("native"), "velocity"),
    "noise": (lambda: NoisePrediction("native"), "noise"),
    "data": (lambda: DataPrediction("native"), "data"),
    "score, lambda = sigma^2": (lambda: ScoreMatching("native"), "sigma"),
    "score, lambda = 1": (lambda: ScoreMatching("uniform"), "one"),
    "score, lambda = g^2": (lambda: ScoreMatching("likelihood"), "g"),
}


@OT_AND_VP
@pytest.mark.parametrize("name", NATIVE)
def test_a_native_loss_is_the_squared_error_of_its_own_quantity(path, name, generator):
    """Mean over coordinates of |estimate - quantity|^2, times lambda for the score; to 1e-8: float64 divided by sigma.

    The loss carries the density of its law of times, which is divided out: it is unbiased for the uniform law.
    """
    make, quantity = NATIVE[name]
    flow, data, ends = learner(path, generator)
    objective = make()
    objective.prepare(flow, data, ends)
    x_1 = draw(TARGET, 40, generator)
    x_0, u = torch.randn(40, 2, generator=generator, dtype=F64), torch.linspace(0.02, 0.98, 40, dtype=F64)
    c = Schedule(*(value[:, None] for value in path.schedule(u)))
    x_t = c.alpha * x_1 + c.sigma * x_0
    field = flow.field
    assert isinstance(field, LearnedField)
    velocity, (noise, datum), _ = field.velocity_and_ends(x_t, u, None)
    _, score = field.velocity_and_score(x_t, u, None)
    # g^2 by its closed forms: 2 (1 - t)/t on OT, beta on VP
    g_squared = 2 * u / (1 - u) if isinstance(path, OT) else vp_beta(u)
    error = score + x_0 / c.sigma
    expected = {
        "velocity": velocity - (c.d_alpha * x_1 + c.d_sigma * x_0),
        "noise": noise - x_0,
        "data": datum - x_1,
        "sigma": c.sigma * error,
        "one": error,
        "g": g_squared[:, None].sqrt() * error,
    }[quantity]
    found = objective(flow, Example(x_1, x_0=x_0, u=u)) / objective._prepared().correction(u)
    torch.testing.assert_close(found, expected.square().mean(1), rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------- 001 IV: determinants become traces
def test_the_log_determinant_of_euler_steps_tends_to_the_trace_integral():
    """At rate 1/n; so does its distance from the sum of h tr J over the same steps: log det(1 + hJ) = h tr J + O(h^2).

    The slope of log error against log n over n = 16 ... 256 is -1 within 0.1 (the next order is 1/n^2). The determinant
    is that of the whole discrete map, by autograd; the integral is of a tight solve.
    """
    field = FreeField(mlp((2,), 16, seed=1))
    points = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    def trace_sum(solver: Solver) -> Tensor:
        flow = flow_over(field, solver)
        with torch.no_grad():
            density = flow.density(points, flow.divergence.directions(points, 0, 0), condition=None)
            return density.log_prob[:, 0] - flow.start.log_prob(density.latent)

    def log_determinant(steps: int) -> Tensor:
        x = points.clone().requires_grad_()
        z = flow_over(field, fixed("euler", steps)).encode(x).value
        rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
        return torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet

    integral = trace_sum(Adaptive("dopri8", 1e-11, 1e-11, "path", 100_000))
    assert float(integral.abs().max()) > 0.2  # volumes do change
    counts = [16, 32, 64, 128, 256]
    log_n = torch.tensor(counts, dtype=F64).log()
    centred = (log_n - log_n.mean())[:, None]
    determinants = [log_determinant(n) for n in counts]
    sums = [trace_sum(fixed("euler", n)) for n in counts]
    for errors in (
        [found - integral for found in determinants],
        [found - by_trace for found, by_trace in zip(determinants, sums, strict=True)],
    ):
        each = torch.stack(errors).abs().log()
        slopes = (centred * (each - each.mean(0))).sum(0) / centred.square().sum(0)
        torch.testing.assert_close(slopes, torch.full_like(slopes, -1.0), rtol=0, atol=0.1)


# ---------------------------------------------------------------- 001, 002: Hutchinson
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_for_log_prob_and_its_error_is_honest(distribution):
    """3,000 independent estimates at one point under one grid, where the exact trace gives the very same quadrature.

    Bias: below 4 standard errors. Honesty: the mean of stderr^2 is the mean squared error; both means scatter by a few
    percent over 3,000 rows, so that their ratio is 1 within 0.15.
    """
    flow = flow_over(FreeField(mlp((3,), 16, seed=2)), fixed("rk4", 4), size=3)
    point = torch.tensor([[0.7, -0.3, 1.1]], dtype=F64)
    with torch.no_grad():
        exact = float(flow.log_prob(point).value)
        found = flow.with_divergence(Hutchinson(4, distribution)).log_prob(point.expand(3000, 3), seed=5)
    assert found.stderr is not None
    error = found.value - exact
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(3000)
    assert float(found.stderr.square().mean() / error.square().mean()) == pytest.approx(1, abs=0.15)
    assert float(error.std()) > 0.01


# ---------------------------------------------------------------- 001: what one dimension cannot cross
def regress(size: int, steps: int = 250) -> tuple[float, float]:
    """Fit x -> -x by a flow's solve in `size` dimensions, the extra ones started at zero: mean square error, Var x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 1, generator=generator)
    state = torch.cat([x, torch.zeros(512, size - 1)], 1)
    field, solver = FreeField(mlp((size,), 32)), fixed("rk4", 5)
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)

    def carried() -> Tensor:
        grid = solver.grid(1.0, 0.0, 2)
        return solver.solve(lambda u, y: (-field.velocity(y[0], u, None),), (state,), grid).states[0][-1][:, :1]

    for _ in range(steps):
        loss = (carried() + x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((carried() + x).square().mean()), float(x.var(correction=0))


def test_a_flow_on_the_line_cannot_send_x_to_minus_x():
    """An ODE's map f on the line is increasing, so Cov(f(x), x) >= 0 and E|f(x) + x|^2 >= Var f + Var x >= Var x.

    Chebyshev's sum inequality makes it exact on the sample too: only rounding is allowed for. The fit comes close to
    the bound (f nearly constant), so it is the bound that holds it up.
    """
    error, variance = regress(1)
    assert variance * (1 - 1e-4) <= error < 1.15 * variance


def test_one_more_coordinate_sends_x_to_minus_x():
    """A half turn of the plane does it; the issue asks for a mean square error of 0.05."""
    error, variance = regress(2)
    assert error <= 0.05 < variance / 10
