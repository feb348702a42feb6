"""objective=mle: its value, its gradient by both routes, its regularisers, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowcli.bases import Empirical, StandardNormal
from flowcli.couplings import OT, Independent
from flowcli.dataset import TrainingData
from flowcli.divergence import Divergence, Exact, Hutchinson
from flowcli.ends import Ends
from flowcli.errors import UserError
from flowcli.flows.augmented import AugmentedFlow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.discrete import RealNVP
from flowcli.flows.fields import Field, FreeField
from flowcli.flows.parts import Parts
from flowcli.networks.mlp import MLP
from flowcli.objectives import Example, MaximumLikelihood
from flowcli.solvers import Adaptive, FixedStep, Solver
from flowcli.transforms import Affine

CPU, F64 = torch.device("cpu"), torch.float64
UNITS = Affine(torch.tensor([100.0, -3.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64))
RK4, DOPRI5 = FixedStep("rk4", 40, "path", 10_000), Adaptive("dopri5", 1e-9, 1e-9, "path", 100_000)
COARSE = FixedStep("euler", 3, "path", 10)


def network(size: int = 2) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MLP((size,), 8, 1, 0, 1.0, 1, True, "auto")
        nn.init.normal_(made.last.weight, std=0.3)
    return made


def flow_over(field: Field, solver: Solver = COARSE) -> ContinuousFlow:
    """Under a coarse solver of its own, which training must not use."""
    return ContinuousFlow(field, StandardNormal((2,)), UNITS, solver, Exact(), (2,)).cast(F64, CPU)


def mle(solver: Solver | None = RK4, divergence: Divergence | None = None, **changes: Any) -> MaximumLikelihood:
    settings: dict[str, Any] = {"gradient": "direct", "kinetic": 0.0, "jacobian": 0.0, **changes}
    return MaximumLikelihood(solver, Exact() if divergence is None else divergence, **settings)


def example(objective: MaximumLikelihood, flow: Any, rows: int = 12) -> Example:
    generator = torch.Generator().manual_seed(1)
    return objective.draw(flow, torch.randn(rows, 2, generator=generator, dtype=F64), None, generator)


def gradient(loss: Tensor, flow: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(flow.parameters()))])


# ---------------------------------------------------------------- the value
@pytest.mark.parametrize("solver", [RK4, DOPRI5, FixedStep("midpoint", 4, "path", 100)], ids=lambda s: s.method)
def test_the_loss_is_minus_log_prob_in_model_units_under_the_training_s_own_solver(solver):
    flow, objective = flow_over(FreeField(network())), mle(solver)
    batch = example(objective, flow)
    with torch.no_grad():
        log_prob = flow.with_solver(solver).log_prob(UNITS.inverse(batch.x_1)).value - UNITS.log_det
        torch.testing.assert_close(objective(flow, batch), -log_prob, rtol=0, atol=1e-9)
        assert float((flow.log_prob(UNITS.inverse(batch.x_1)).value - UNITS.log_det - log_prob).abs().max()) > 1e-3
    assert flow.solver is COARSE  # the flow itself keeps its own


def test_hutchinson_s_loss_is_unbiased_with_probes_renewed_at_each_draw():
    """Within 5 standard errors of the exact one, over 800 rows of one point, on the same grid."""
    solver = FixedStep("rk4", 4, "path", 100)
    flow, objective = flow_over(FreeField(network())), mle(solver, Hutchinson(2, "rademacher"))
    generator = torch.Generator().manual_seed(0)
    x_1 = torch.tensor([[0.7, -0.4]], dtype=F64).expand(800, 2)
    with torch.no_grad():
        exact = float(mle(solver)(flow, Example(x_1[:1], directions=Exact().directions(x_1, 0, 0))))
        first, second = (objective(flow, objective.draw(flow, x_1, None, generator)) for _ in range(2))
    assert abs(float(first.mean()) - exact) < 5 * float(first.std()) / math.sqrt(800)
    assert float(first.std()) > 1e-3 and not torch.equal(first, second)


# ---------------------------------------------------------------- the gradient
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.2)], ids=["plain", "regularised"])
@pytest.mark.parametrize("solver", [RK4, DOPRI5], ids=lambda s: s.method)
def test_the_adjoint_s_gradient_is_the_direct_one(solver, weights):
    """To 1e-4 of its norm, as the issue asks: both approximate the ODE's own gradient, at rk4 of 40 steps or 1e-9."""
    flow, (kinetic, jacobian) = flow_over(FreeField(network())), weights
    found = {}
    for route in ("direct", "adjoint"):
        objective = mle(solver, gradient=route, kinetic=kinetic, jacobian=jacobian)
        found[route] = gradient(objective(flow, example(objective, flow)).mean(), flow)
    assert float((found["adjoint"] - found["direct"]).norm() / found["direct"].norm()) < 1e-4
    assert float(found["direct"].norm()) > 0.1


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.2)], ids=["plain", "regularised"])
def test_the_gradient_is_that_of_finite_differences(weights):
    """Central differences of 1e-5 in float64: their own error is about 1e-9."""
    kinetic, jacobian = weights
    flow = flow_over(FreeField(network()))
    objective = mle(FixedStep("rk4", 4, "path", 100), kinetic=kinetic, jacobian=jacobian)
    batch = example(objective, flow, rows=5)
    found = gradient(objective(flow, batch).mean(), flow)
    parameters, step, place = list(flow.parameters()), 1e-5, 0
    with torch.no_grad():
        for parameter in parameters:
            flat = parameter.view(-1)
            for i in {0, flat.numel() // 2, flat.numel() - 1}:
                value, losses = flat[i].clone(), []
                for side in (step, -step):
                    flat[i] = value + side
                    losses.append(float(objective(flow, batch).mean()))
                flat[i] = value
                assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(found[place + i]), abs=2e-8)
            place += flat.numel()
    assert place == len(found)


# ---------------------------------------------------------------- the regularisers
class Linear(Field):
    """v = x Q diag(a) Q': symmetric, so that everything is known."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.8, -0.5], dtype=F64))
        angle = torch.tensor(0.6, dtype=F64)
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        self.register_buffer("turn", turn)

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        return (x @ self.turn * self.rates) @ self.turn.T


def test_regularisers_are_the_closed_forms_of_a_linear_field():
    """x_t = exp(A (t - 1)) x_1: int |v|^2 dt = sum a (1 - exp(-2a))/2 y^2 in A's axes, and int |A|_F^2 dt = sum a^2."""
    field = Linear()
    flow, plain = flow_over(field), mle(DOPRI5)
    batch, a = example(plain, flow), field.rates.detach()
    y = batch.x_1 @ field.turn
    kinetic = (a * (1 - torch.exp(-2 * a)) / 2 * y.square()).sum(1)
    frobenius = a.square().sum().expand(len(y))
    for weights, expected in (((2.0, 0.0), 2 * kinetic), ((0.0, 3.0), 3 * frobenius)):
        objective = mle(DOPRI5, kinetic=weights[0], jacobian=weights[1])
        with torch.no_grad():
            torch.testing.assert_close(objective(flow, batch) - plain(flow, batch), expected, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(
                objective.held_out(flow, objective.inputs(flow, batch)), plain(flow, batch), rtol=0, atol=1e-6
            )
    found = gradient(mle(DOPRI5, kinetic=1.0)(flow, batch).sum() - plain(flow, batch).sum(), flow)
    slope = (((1 - torch.exp(-2 * a)) / 2 + a * torch.exp(-2 * a)) * y.square()).sum(0)
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-8)


def test_the_regulariser_of_hutchinson_is_unbiased():
    """Within 5 standard errors of the closed form, over 800 rows with a probe of their own."""
    field, generator = Linear(), torch.Generator().manual_seed(3)
    flow, x_1 = flow_over(field), torch.ones(800, 2, dtype=F64)
    with_norm, without = (
        mle(FixedStep("rk4", 4, "path", 100), Hutchinson(1, "gaussian"), jacobian=weight) for weight in (1.0, 0.0)
    )
    drawn = with_norm.draw(flow, x_1, None, generator)
    with torch.no_grad():
        found, expected = with_norm(flow, drawn) - without(flow, drawn), float(field.rates.square().sum())
    assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / math.sqrt(800)
    assert float(found.std()) > 0.1


# ---------------------------------------------------------------- how much is validated, what is refused
def test_validation_is_the_split_once_and_less_where_every_row_is_an_ode():
    assert mle().validation_rows(100) == 100 and mle().validation_rows(10**6) < 10**4
    assert mle(solver=None).validation_rows(10**6) == 10**6


def parts(**changes: Any) -> Parts:
    plain: dict[str, Any] = dict.fromkeys(Parts.__dataclass_fields__)
    return Parts(**plain | {"base": StandardNormal((2,)), "transform": UNITS, "event_shape": (2,), "seed": 0} | changes)


DISCRETE = RealNVP(2, 8, 1).flow(parts())
POINTS = Empirical((2,), type("Source", (), {"load": lambda self: None})())
POINTS.fill(torch.zeros(3, 2, dtype=F64) + torch.arange(3)[:, None])
CONTINUOUS = flow_over(FreeField(network()))


@pytest.mark.parametrize(
    ("flow", "objective", "words"),
    [
        (CONTINUOUS, MaximumLikelihood(None, None, "direct", 0.0, 0.0), "objective.solver and objective.divergence"),
        (DISCRETE, mle(), "belong to continuous flows; this model solves nothing"),
        (DISCRETE, MaximumLikelihood(None, None, "adjoint", 0.0, 0.0), "belong to continuous flows"),
        (DISCRETE, MaximumLikelihood(None, None, "direct", 0.1, 0.0), "objective.kinetic and .jacobian"),
        (
            ContinuousFlow(FreeField(network()), POINTS, UNITS, COARSE, Exact(), (2,)),
            mle(),
            "base=data has no density",
        ),
    ],
    ids=["no solver", "needless solver", "needless adjoint", "needless regulariser", "no density"],
)
def test_what_does_not_go_together_is_refused(flow, objective, words):
    nothing = torch.zeros(1, 2)
    with pytest.raises(UserError) as caught:
        objective.prepare(flow, TrainingData(nothing, nothing), None)
    assert words in str(caught.value)


def test_pairs_are_refused():
    nothing, base = torch.zeros(1, 2), StandardNormal((2,))
    mle().prepare(CONTINUOUS, TrainingData(nothing, nothing), Ends(base, Independent()))
    with pytest.raises(UserError, match="coupling=none"):
        mle().prepare(CONTINUOUS, TrainingData(nothing, nothing), Ends(base, OT(4)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gradient": "backprop"}, "gradient must be one of direct, adjoint"),
        ({"kinetic": -1}, "kinetic must be"),
        ({"jacobian": math.nan}, "jacobian must be"),
        ({"solver": "rk4"}, "solver: want a solver for ODEs"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(UserError) as caught:
        mle(**settings)
    assert words in str(caught.value)


def test_a_discrete_flow_s_loss_is_minus_its_log_prob():
    objective = MaximumLikelihood(None, None, "direct", 0.0, 0.0)
    flow = DISCRETE.cast(F64, CPU)
    batch = example(objective, flow)
    with torch.no_grad():
        log_prob = flow.log_prob(UNITS.inverse(batch.x_1)).value - UNITS.log_det
        torch.testing.assert_close(objective(flow, batch), -log_prob, rtol=0, atol=1e-9)


def test_an_augmented_flow_is_trained_on_fresh_noise_at_every_draw():
    """E over e of -log p(x, e): the joint's loss, above minus the log of the marginal by q's entropy at the least."""
    augmented = AugmentedFlow(FreeField(network(3)), StandardNormal((3,)), UNITS, COARSE, Exact(), (2,), draws=4)
    flow, objective, generator = augmented.cast(F64, CPU), mle(), torch.Generator().manual_seed(0)
    x_1 = torch.randn(5, 2, generator=generator, dtype=F64)
    first, second = (objective.draw(flow, x_1, None, generator) for _ in range(2))
    assert first.x_1.shape == (5, 3) and torch.equal(first.x_1[:, :2], x_1)
    assert not torch.equal(first.x_1[:, 2], second.x_1[:, 2])
    assert objective(flow, first).shape == (5,)
