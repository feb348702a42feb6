"""Flows with noise coordinates added: the bound on the likelihood against closed forms, rows, shapes, settings."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcli.bases import StandardNormal
from flowcli.couplings import Independent
from flowcli.dataset import Mixture, TrainingData
from flowcli.divergence import Exact, Hutchinson
from flowcli.ends import Ends
from flowcli.errors import UserError
from flowcli.flows.augmented import AugmentedFlow, augmented_moments, augmented_shape
from flowcli.flows.cnf import CNF
from flowcli.flows.fields import Field
from flowcli.flows.oracle import field_of_mixture
from flowcli.flows.parts import Parts
from flowcli.networks.mlp import MLP
from flowcli.objectives import FlowMatching
from flowcli.parametrizations import Moments
from flowcli.paths import OT, VP
from flowcli.resolution import self_check
from flowcli.solvers import Adaptive, FixedStep, Solver
from flowcli.transforms import Affine

CPU, F64 = torch.device("cpu"), torch.float64
UNITS = Affine(torch.tensor([100.0, -3.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64))
TIGHT, STEPS = Adaptive("dopri5", 1e-9, 1e-9, "path", 100_000), FixedStep("rk4", 10, "path", 1000)
MEAN = torch.tensor([0.3, -0.5], dtype=F64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=F64)


def exact(draws: int, solver: Solver = TIGHT) -> AugmentedFlow:
    """The closed-form field of (x, e): x Gaussian, e standard normal beside it."""
    covariance = torch.block_diag(COVARIANCE, torch.eye(1, dtype=F64))
    joint = Mixture(torch.ones(1, dtype=F64), torch.cat([MEAN, MEAN.new_zeros(1)])[None], covariance[None])
    base = StandardNormal((3,))
    field = field_of_mixture(joint, OT(0.0), base)
    return AugmentedFlow(field, base, UNITS, solver, Exact(), (2,), draws=draws).cast(F64, CPU)  # type: ignore[return-value]


class Coupled(Field):
    """v = x A': the end is Gaussian with covariance exp(A) exp(A)'; x and e depend on each other."""

    A = torch.tensor([[0.3, 0.2, 0.5], [-0.1, 0.2, -0.4], [0.2, 0.3, -0.3]], dtype=F64)

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        return x @ self.A.T


def coupled(draws: int) -> AugmentedFlow:
    flow = AugmentedFlow(Coupled(), StandardNormal((3,)), UNITS, STEPS, Exact(), (2,), draws=draws)
    return flow.cast(F64, CPU)  # type: ignore[return-value]


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return UNITS.inverse(torch.randn(7, 2, generator=generator, dtype=F64))


# ---------------------------------------------------------------- the bound
@pytest.mark.parametrize("draws", [1, 3])
def test_the_bound_is_tight_where_the_extra_coordinates_are_independent_noise(draws, x):
    """Each draw gives log p(x, e)/q(e) = log p(x) itself; to 1e-6, the solver's tolerance over D = 3."""
    normal = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    expected = normal.log_prob(UNITS(x)) + UNITS.log_det
    torch.testing.assert_close(exact(draws).log_prob(x).value, expected, rtol=0, atol=1e-6)


def test_the_bound_is_below_log_p_and_grows_to_it_with_the_draws():
    """At one point with e anew in 4,000 rows. p(x, e)/q(e) is unbiased for p(x); its log is low by Jensen's gap.

    Means are compared in their standard errors; rk4 of 10 steps is off by less than 1e-4.
    """
    end = torch.linalg.matrix_exp(Coupled.A)
    marginal = (end @ end.T)[:2, :2]
    point = torch.tensor([[1.8, 1.0]], dtype=F64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), marginal)
    truth = float(normal.log_prob(point)) + float(UNITS.log_det)
    rows = UNITS.inverse(point).expand(4000, 2)
    means, errors = [], []
    for draws in (1, 4, 16):
        found = coupled(draws).log_prob(rows).value
        means.append(float(found.mean()))
        errors.append(float(found.std()) / math.sqrt(4000))
        ratio = (found - truth).exp()
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(4000) + 1e-4
    for low, high, error in zip(means, [*means[1:], truth], errors, strict=True):
        assert low < high - 3 * error
    assert truth - means[-1] < 0.2 * (truth - means[0])


def test_draws_share_a_row_s_probes_and_the_error_is_reported(x):
    """With probes of their own the mean of exponentials would exceed p(x); shared, the error is that of the probes."""
    flow = exact(3, STEPS).with_divergence(Hutchinson(200, "rademacher"))
    found, sure = flow.log_prob(x, seed=1), exact(3, STEPS).log_prob(x)
    assert found.stderr is not None and sure.stderr is None
    assert ((found.value - sure.value).abs() < 4.5 * found.stderr + 1e-6).all()
    assert torch.equal(found.value, flow.log_prob(x, seed=1).value)


# ---------------------------------------------------------------- rows and shapes
def test_row_i_does_not_depend_on_the_batch(x):
    flow = exact(2, STEPS)
    whole = flow.sample(15, seed=2).value
    assert whole.shape == (15, 2)
    for size in (1, 4, 100):
        torch.testing.assert_close(flow.sample(15, seed=2, batch_size=size).value, whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.sample(10, seed=2, start=5).value, whole[5:], rtol=0, atol=1e-9)
    for method in (flow.log_prob, flow.encode):
        torch.testing.assert_close(method(x, batch_size=3).value, method(x).value, rtol=0, atol=1e-9)


def test_samples_have_the_law_of_the_data():
    """Mean and covariance of 20,000 samples in model units, within 5 standard errors of Gaussian moments."""
    found, n = UNITS(exact(1, STEPS).sample(20_000, seed=0).value), 20_000
    assert ((found.mean(0) - MEAN).abs() < 5 * (COVARIANCE.diagonal() / n).sqrt()).all()
    spread = COVARIANCE.diagonal()
    error = ((spread[:, None] * spread + COVARIANCE**2) / n).sqrt()
    assert ((torch.cov(found.T) - COVARIANCE).abs() < 5 * error + 1e-4).all()


def test_latents_have_the_extra_coordinates_and_round_trip(x):
    flow = exact(2)
    latents = flow.encode(x).value
    assert flow.state_shape == (3,) and latents.shape == (7, 3)
    torch.testing.assert_close(flow.decode(latents).value, x, rtol=0, atol=1e-5)
    assert torch.equal(flow.encode(x).value, latents)  # the noise of row i is fixed
    assert flow.encode(x[:0]).value.shape == (0, 3)
    with pytest.raises(UserError, match=r"latents must have the shape \(3,\)"):
        flow.decode(latents[:, :2])
    with pytest.raises(UserError, match=r"events must have the shape \(2,\)"):
        flow.encode(latents)
    way = flow.trajectory(4, seed=0, points=5)
    assert way.states.shape == (5, 4, 2)
    torch.testing.assert_close(way.states[-1], flow.sample(4, seed=0).value, rtol=0, atol=1e-5)


def test_the_velocity_of_an_event_alone_is_refused(x):
    with pytest.raises(UserError, match=r"model\.augment_dim > 0"):
        exact(1).velocity(x, torch.tensor(0.5))


def test_lifting_adds_fresh_noise():
    generator, flow = torch.Generator().manual_seed(0), exact(1)
    events = torch.ones(5000, 2, dtype=F64)
    lifted = flow.lift(events, generator)
    assert lifted.shape == (5000, 3) and torch.equal(lifted[:, :2], events)
    assert float(lifted[:, 2].mean()) == pytest.approx(0, abs=5 / math.sqrt(5000))
    assert float(lifted[:, 2].std()) == pytest.approx(1, abs=5 / math.sqrt(2 * 5000))


# ---------------------------------------------------------------- model=cnf model.augment_dim=k
def parts(event_shape: tuple[int, ...] = (2,), **changes: Any) -> Parts:
    shape = (event_shape[0] + 2,) if len(event_shape) == 1 else event_shape
    plain: dict[str, Any] = dict.fromkeys(Parts.__dataclass_fields__)
    plain |= {
        "network": MLP(shape, 8, 1, 0, 1.0, 1, True, "auto"),
        "path": OT(0.0),
        "base": StandardNormal(shape),
        "seed": 0,
    }
    plain |= {"transform": Affine.identity(event_shape), "solver": STEPS, "divergence": Exact()}
    return Parts(**plain | {"event_shape": event_shape} | changes)


def test_moments_are_those_of_the_lifted_data():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(50_000, 2, generator=generator, dtype=F64) * 3 + 1
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    moments = augmented_moments(Moments.measured(data, torch.zeros(4, dtype=F64), one), 2)
    lifted = torch.cat([data, torch.randn(50_000, 2, generator=generator, dtype=F64)], 1)
    expected = Moments.measured(lifted, torch.zeros(4, dtype=F64), one)
    torch.testing.assert_close(moments.mean_1, expected.mean_1, rtol=0, atol=0.03)
    torch.testing.assert_close(moments.var_1, expected.var_1, rtol=0.01, atol=0)
    assert float(moments.cov) == float(zero)


@pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0), None], ids=["ot", "vp", "free"])
def test_a_model_with_augment_dim_is_built_on_every_kind_of_path(path):
    model = CNF("auto", None, 2, 3)
    train = torch.randn(100, 2, dtype=F64)
    flow = model.flow(parts(path=path, train=train)).cast(F64, CPU)
    assert model.state_shape((2,)) == (4,)
    assert isinstance(flow, AugmentedFlow) and flow.draws == 3 and flow.extra == 2
    with torch.no_grad():
        assert flow.sample(3, seed=0).value.shape == (3, 2)
        assert bool(flow.log_prob(train[:3]).value.isfinite().all())


def test_flow_matching_trains_on_lifted_pairs():
    flow = CNF("auto", None, 2, 1).flow(parts(train=torch.randn(100, 2, dtype=F64))).cast(F64, CPU)
    objective, x_1 = FlowMatching("unit"), torch.randn(6, 2, dtype=F64)
    objective.prepare(flow, TrainingData(x_1, x_1), Ends(StandardNormal((4,)), Independent()))
    example = objective.draw(flow, x_1, None, torch.Generator().manual_seed(0))
    assert example.x_1.shape == (6, 4) and example.x_0 is not None and example.x_0.shape == (6, 4)
    assert torch.equal(example.x_1[:, :2], x_1)
    assert objective(flow, example).shape == (6,)


def test_images_and_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"augment_dim=1 needs events that are vectors"):
        CNF("auto", None, 1, 1).state_shape((1, 8, 8))
    with pytest.raises(UserError, match="vectors"):
        augmented_shape((1, 8, 8), 2)
    for settings, name in (((-1, 1), "augment_dim"), ((1, 0), "augment_draws"), ((1.5, 1), "augment_dim")):
        with pytest.raises(UserError, match=f"^{name} must be"):
            CNF("auto", None, *settings)


def test_the_self_check_compares_the_same_draws():
    """The noise of a row depends on its number: a check that scored rows under other numbers would see that noise."""
    made = coupled(draws=2)
    points = torch.randn(300, *made.event_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    checked = self_check(made, points, 0.05, rows=40, batch_size=1000, seed=0)
    assert checked.resolved and abs(checked.change) < 1e-5
