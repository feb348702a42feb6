"""Flow matching: the loss by hand, native weights, the law of time, the conditional against the marginal loss."""

import math

import pytest
import torch
from torch import Tensor, nn

from flowcli.bases import StandardNormal
from flowcli.couplings import Independent
from flowcli.dataset import TrainingData
from flowcli.divergence import Exact
from flowcli.ends import Ends
from flowcli.errors import UserError
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.fields import LearnedField
from flowcli.objectives import END, Example, FlowMatching, Objective, stratified
from flowcli.parametrizations import PREDICTIONS, Moments, Preconditioned, Raw
from flowcli.paths import OT, VE, VP, Cosine, LinearVP, Path, Schedule
from flowcli.solvers import FixedStep
from flowcli.transforms import Affine

PATHS = [OT(0.0), VP(0.1, 20.0), VE(0.01, 50.0), LinearVP(), Cosine()]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)


class Linear(nn.Module):
    """F = a x + b sin(t): a network whose gradients are plain sums."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.4, -0.7], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return x @ self.a.T + self.b * t.sin().reshape(-1, 1)


def moments(s2: float = 1.7) -> Moments:
    mean_1 = torch.tensor([0.5, -1.0], dtype=torch.float64)
    numbers = (torch.tensor(v, dtype=torch.float64) for v in (1.0, s2, 0.0))
    return Moments(torch.zeros(2).double(), mean_1, *numbers)


def field(path: Path, prediction: str | None = None) -> LearnedField:
    form = Preconditioned() if prediction is None else Raw(prediction, path)
    return LearnedField(Linear(), form, path, moments())


def flow_of(learned: LearnedField) -> ContinuousFlow:
    """What an objective is given; the solver and the base play no part in a regression."""
    shape = tuple(learned.moments.mean_1.shape)
    solver = FixedStep("euler", 1, "path", 10)
    return ContinuousFlow(learned, StandardNormal(shape).double(), Affine.identity(shape), solver, Exact(), shape)


def prepared(objective: Objective, learned: LearnedField) -> ContinuousFlow:
    flow, nothing = flow_of(learned), torch.zeros(1, *learned.moments.mean_1.shape)
    objective.prepare(flow, TrainingData(nothing, nothing), Ends(StandardNormal((2,)), Independent()))
    return flow


def loss_of(objective: Objective, learned: LearnedField, x_0: Tensor, x_1: Tensor, u: Tensor) -> Tensor:
    return objective(flow_of(learned), Example(x_1, x_0=x_0, u=u))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def pairs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x_0, x_1 = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return x_0, 1.3 * x_1 + torch.tensor([0.5, -1.0]).double()


@every_path
def test_unit_loss_by_hand(path, generator):
    learned, objective = field(path), FlowMatching("unit")
    prepared(objective, learned)
    x_0, x_1 = pairs(6, generator)
    u = torch.linspace(0.01, 0.99, 6).double()
    expected = []
    for i in range(6):
        alpha, sigma = path.at(float(u[i]))
        v = 1.7 * alpha**2 + sigma**2
        shift = torch.tensor([0.5, -1.0]).double()
        y = (alpha * (x_1[i] - shift) + sigma * x_0[i]) / math.sqrt(v)
        r = (sigma * (x_1[i] - shift) - alpha * 1.7 * x_0[i]) / math.sqrt(1.7 * v)
        output = learned.network.a @ y + learned.network.b * math.sin(math.atan2(sigma, alpha * math.sqrt(1.7)))
        expected.append((output - r).square().mean())
    torch.testing.assert_close(loss_of(objective, learned, x_0, x_1, u), torch.stack(expected))


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_raw_loss_by_hand(path, prediction, generator):
    learned, objective = field(path, prediction), FlowMatching("unit")
    prepared(objective, learned)
    x_0, x_1 = pairs(6, generator)
    u = torch.linspace(0.05, 0.95, 6).double()
    c = Schedule(*(value[:, None] for value in path.schedule(u)))
    x = c.alpha * x_1 + c.sigma * x_0
    targets = {"velocity": c.d_alpha * x_1 + c.d_sigma * x_0, "data": x_1, "noise": x_0, "score": -x_0 / c.sigma}
    output = learned.network(x, u * math.pi / 2, None)
    expected = (output - targets[prediction]).square().mean(1)
    torch.testing.assert_close(loss_of(objective, learned, x_0, x_1, u), expected)


@every_path
@pytest.mark.parametrize("prediction", [None, "noise", "data"])
def test_native_loss_is_the_loss_in_the_velocity(path, prediction, generator):
    """Times from the mixture law are undone by its table: pointwise weight x law = |v - u|^2 in dt."""
    learned, objective = field(path, prediction), FlowMatching("native")
    prepared(objective, learned)
    x_0, x_1 = pairs(6, generator)
    u = torch.linspace(0.05, 0.95, 6).double()
    c = Schedule(*(value[:, None] for value in path.schedule(u)))
    x = c.alpha * x_1 + c.sigma * x_0
    native = (learned.velocity(x, u, None) - (c.d_alpha * x_1 + c.d_sigma * x_0)).square().mean(1)
    ratio = loss_of(objective, learned, x_0, x_1, u) / native
    # the ratio is 1 / density of the law, which is at least half the uniform one
    assert (ratio > 0).all() and (ratio < 2.0001).all()
    weight = learned.parametrization.velocity_gain(path.schedule(u), learned.moments).square()
    unit = FlowMatching("unit")  # whose loss is the mean square of output minus target
    prepared(unit, learned)
    torch.testing.assert_close(native, weight * loss_of(unit, learned, x_0, x_1, u), rtol=1e-6, atol=1e-9)


@every_path
def test_native_estimate_is_unbiased(path, generator):
    """E over its own times equals a fine quadrature of weight x h over [END, 1 - END]."""
    learned, objective = field(path), FlowMatching("native")
    flow = prepared(objective, learned)

    def h(u: Tensor) -> Tensor:
        return 1 + torch.sin(5 * u) ** 2 + u

    edges = torch.logspace(math.log10(END), math.log10(1 - END), 200_001, dtype=torch.float64)
    u, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    c = path.schedule(u)
    weight = 1.7 * (c.d_alpha * c.sigma - c.d_sigma * c.alpha) ** 2 / (1.7 * c.alpha**2 + c.sigma**2)
    expected = float((weight * h(u) * width).sum() / width.sum())
    n = 200_000
    u = objective.times(n, generator)
    assert u.dtype == torch.float32 and float(u.min()) >= END * 0.999 and float(u.max()) <= 1 - END + 1e-6
    inputs = objective.inputs(flow, Example(torch.zeros(n, 2).double(), x_0=torch.zeros(n, 2).double(), u=u.double()))
    output = learned.network(inputs.x, inputs.time, None)
    values = objective.loss(flow, inputs._replace(target=output - h(u.double()).sqrt()[:, None])).detach()
    assert float(values.mean()) == pytest.approx(expected, rel=2e-3)
    assert float(values.max()) < 2.1 * float(h(u.double()).max()) * float(
        (weight * width).sum() / width.sum()
    )  # bounded


def test_times_are_stratified(generator):
    for n in (1, 7, 256, 4096):
        u = stratified(n, generator)
        torch.testing.assert_close((u * n).floor().long().clamp_max(n - 1), torch.arange(n), rtol=0, atol=1)
        assert ((u * n - torch.arange(n)).abs() <= 1 + 1e-3).all() and float(u.min()) >= 0 and float(u.max()) <= 1
    u = FlowMatching("unit").times(1000, generator)
    assert float(u.min()) >= END and float(u.max()) <= 1 - END
    many = torch.stack([stratified(4, generator) for _ in range(4000)])
    expected = (torch.arange(4) + 0.5) / 4
    torch.testing.assert_close(many.mean(0), expected, rtol=0, atol=5 * 0.25 / math.sqrt(12 * 4000))


@every_path
def test_native_times_cover_every_stratum_of_their_law(path, generator):
    learned, objective = field(path), FlowMatching("native")
    prepared(objective, learned)
    u = objective.times(1000, generator)
    assert (u.diff() >= 0).all()  # the inverse of a distribution function at rising positions
    assert float(u[0]) < 0.01 and float(u[-1]) > 0.99


@pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0), VE(0.01, 2.0)], ids=repr)
def test_conditional_and_marginal_losses_have_one_gradient(path, generator):
    """Against the exact conditional expectation of the target on a mixture (notes 001 V)."""
    weights = torch.tensor([0.4, 0.6]).double()
    means = torch.tensor([[-1.5, 0.5], [1.0, 1.0]]).double()
    variances = torch.tensor([0.2, 0.5]).double()
    mean = weights @ means
    spread = (weights * (variances + (means - mean).square().mean(1))).sum()
    m = Moments(torch.zeros(2).double(), mean, torch.ones(()).double(), spread, torch.zeros(()).double())
    learned, objective = LearnedField(Linear(), Preconditioned(), path, m), FlowMatching("unit")
    n = 100_000
    k = torch.multinomial(weights, n, replacement=True, generator=generator)
    x_1 = means[k] + variances[k].sqrt()[:, None] * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x_0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    u = objective.times(n, generator).double()
    c = Schedule(*(value[:, None] for value in path.schedule(u)))
    x = c.alpha * x_1 + c.sigma * x_0
    total = c.alpha**2 * variances + c.sigma**2  # (n, K)
    centred = x[:, None] - c.alpha[..., None] * means
    w = torch.softmax(weights.log() - centred.square().sum(2) / (2 * total) - total.log(), dim=1)[..., None]
    gain = centred / total[..., None]
    e_1 = (w * (means + c.alpha[..., None] * variances[:, None] * gain)).sum(1)
    e_0 = (w * c.sigma[..., None] * gain).sum(1)
    torch.testing.assert_close(c.alpha * e_1 + c.sigma * e_0, x)
    output = learned.network(learned.parametrization.network_input(x, c, m), m.angle(path.schedule(u)), None)
    marginal = (output - learned.parametrization.target(e_0, e_1, c, m)).square().mean(1)
    conditional = loss_of(objective, learned, x_0, x_1, u)
    parameters = list(learned.network.parameters())
    difference = torch.autograd.grad((conditional - marginal).mean(), parameters, retain_graph=True)
    size = torch.autograd.grad(marginal.mean(), parameters)
    for gap, gradient in zip(difference, size, strict=True):
        # each entry is a mean of n products of order 2
        assert float(gap.abs().max()) < 5 * 2 / math.sqrt(n)
        assert float(gradient.abs().max()) > 0.05  # else this would say nothing
    assert float((conditional - marginal).mean().detach()) > 0.01  # the losses themselves differ by the target's spread


def test_events_of_any_shape(generator):
    class Zero(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            return torch.zeros_like(x)

    shape = (1, 4, 4)
    m = Moments(*(torch.zeros(shape).double() for _ in range(2)), *(torch.tensor(v).double() for v in (1.0, 1.0, 0.0)))
    learned, objective = LearnedField(Zero(), Preconditioned(), OT(0.0), m), FlowMatching("unit")
    x_0, x_1 = torch.randn(2, 5000, *shape, generator=generator, dtype=torch.float64)
    loss = loss_of(objective, learned, x_0, x_1, objective.times(5000, generator).double())
    assert loss.shape == (5000,)
    assert float(loss.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 80_000))  # the target has unit variance


def test_unknown_weighting():
    with pytest.raises(UserError, match="weighting must be one of unit, native, got 'none'"):
        FlowMatching("none")
