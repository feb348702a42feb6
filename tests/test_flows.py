"""Continuous flows: round trips, rows that do not depend on their neighbours, unit integrals, singular ends."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowcli.bases import GaussianMixture, StandardNormal
from flowcli.dataset import Mixture
from flowcli.divergence import Divergence, Exact, Hutchinson
from flowcli.errors import UserError
from flowcli.flows.cnf import CNF
from flowcli.flows.continuous import ContinuousFlow, start_of
from flowcli.flows.fields import Field, FreeField, LearnedField
from flowcli.flows.oracle import Oracle
from flowcli.flows.parts import Parts
from flowcli.networks.mlp import MLP
from flowcli.objectives import Example, FlowMatching
from flowcli.parametrizations import Moments
from flowcli.paths import OT, VE, VP, Cosine, LinearVP, Path
from flowcli.randomness import generator
from flowcli.solvers import Adaptive, FixedStep, Solver
from flowcli.transforms import Affine

CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
PATHS = [OT(0.0), VP(0.1, 20.0), VE(0.01, 50.0), LinearVP(), Cosine()]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)
TARGET = Mixture(
    torch.tensor([0.6, 0.4], dtype=F64),
    torch.tensor([[-1.0, 0.2], [1.2, -0.5]], dtype=F64),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]]], dtype=F64),
)
UNITS = Affine(torch.tensor([100.0, -3.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64))


def adaptive(tolerance: float, time: str = "path") -> Adaptive:
    return Adaptive("dopri5", tolerance, tolerance, time, 100_000)


def parts(**changes: Any) -> Parts:
    """From N(0, I) to TARGET along OT, with no network."""
    plain = Parts(
        network=None,
        path=OT(0.0),
        base=StandardNormal((2,)),
        transform=UNITS,
        solver=adaptive(1e-5),
        divergence=Exact(),
        event_shape=(2,),
        train=None,
        mixture=TARGET,
        tensors=None,
        no_score=None,
        seed=0,
    )
    return dataclasses.replace(plain, **changes)


def oracle(
    path: Path, solver: Solver, divergence: Divergence | None = None, dtype: torch.dtype = F64
) -> ContinuousFlow:
    divergence = Exact() if divergence is None else divergence
    return Oracle("target").flow(parts(path=path, solver=solver, divergence=divergence)).cast(dtype, CPU)


@pytest.fixture
def x() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return UNITS.inverse(torch.randn(7, 2, generator=g, dtype=F64))


# ------------------------------------------------------------------------------------------------- round trips
@every_path
@pytest.mark.parametrize("time", ["path", "angle"])
def test_sample_encode_decode(path, time):
    flow = oracle(path, adaptive(1e-7, time))
    events = flow.sample(6, seed=3).value
    latents = flow.encode(events).value
    torch.testing.assert_close(flow.decode(latents).value, events, rtol=0, atol=2e-4)
    noise = flow.start.sample(1024, generator(3, "sample", 0))[:6]
    torch.testing.assert_close(latents, flow.start.to_latent(noise.double()), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------- rows
@every_path
def test_sample_i_does_not_depend_on_the_batch(path):
    for solver, close in ((FixedStep("rk4", 10, "path", 1000), 1e-10), (adaptive(1e-6), 1e-3)):
        flow = oracle(path, solver)
        whole = flow.sample(7, seed=2).value
        for size in (1, 3, 100):
            torch.testing.assert_close(flow.sample(7, seed=2, batch_size=size).value, whole, rtol=0, atol=close)
        torch.testing.assert_close(flow.sample(4, seed=2, start=3).value, whole[3:], rtol=0, atol=close)
        assert not torch.allclose(flow.sample(7, seed=4).value, whole)


def test_noise_is_the_same_bit_for_bit():
    """A field that stands still hands the noise over."""

    class Still(Field):
        def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
            return torch.zeros_like(x)

    for dtype in (F32, F64):
        flow = ContinuousFlow(
            Still(), StandardNormal((2,)), Affine.identity((2,)), FixedStep("euler", 1, "path", 10), Exact(), (2,)
        ).cast(dtype, CPU)
        whole = flow.sample(2100, seed=0).value
        for first, n, size in ((0, 2100, 7), (1000, 100, 33), (5, 10, None), (1024, 1, None)):
            assert torch.equal(flow.sample(n, seed=0, start=first, batch_size=size).value, whole[first : first + n])


@every_path
def test_log_prob_of_row_i_does_not_depend_on_the_batch(path, x):
    flow = oracle(path, FixedStep("rk4", 10, "path", 1000))
    torch.testing.assert_close(flow.log_prob(x, batch_size=3).value, flow.log_prob(x).value, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.encode(x, batch_size=2).value, flow.encode(x).value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 3])
def test_probes_of_a_single_row(x, size):
    """7 rows in chunks of 3 leave one over."""
    flow = oracle(OT(0.0), adaptive(1e-5), Hutchinson(4, "rademacher"))
    result = flow.log_prob(x, batch_size=size)
    assert result.value.shape == (7,) and result.stderr is not None and result.stderr.shape == (7,)


def test_probes_of_row_i_do_not_depend_on_the_batch(x):
    flow = oracle(OT(0.0), FixedStep("rk4", 10, "path", 1000), Hutchinson(4, "rademacher"))
    torch.testing.assert_close(flow.log_prob(x[:6], batch_size=2).value, flow.log_prob(x[:6]).value, rtol=0, atol=1e-9)


def test_no_rows(x):
    flow = oracle(OT(0.0), adaptive(1e-5))
    assert flow.log_prob(x[:0]).value.shape == (0,) and flow.sample(0, seed=0).value.shape == (0, 2)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_agrees_with_exact_within_its_error(distribution, x):
    flow = oracle(OT(0.0), adaptive(1e-6), Hutchinson(400, distribution))
    result, exact = flow.log_prob(x, seed=1), flow.with_divergence(Exact()).log_prob(x)
    assert result.stderr is not None and exact.stderr is None
    assert ((result.value - exact.value).abs() < 4.5 * result.stderr + 1e-5).all()
    assert torch.equal(flow.log_prob(x, seed=1).value, result.value)
    assert not torch.equal(flow.log_prob(x, seed=2).value, result.value)


# ------------------------------------------------------------------------------------------------- straight lines
class Straight(Field):
    """x_t = (1 - t) x_0 + t (A x_0 + b): each particle at its own constant speed."""

    A = torch.tensor([[2.0, 0.5], [-0.3, 1.5]], dtype=F64)
    b = torch.tensor([1.0, -2.0], dtype=F64)

    def velocity(self, x: Tensor, u: Tensor, condition: Tensor | None) -> Tensor:
        t, eye = 1 - u, torch.eye(2, dtype=F64)
        x_0 = torch.linalg.solve(u * eye + t * self.A, (x - t * self.b).mT).mT
        return x_0 @ (self.A - eye).T + self.b


def test_euler_is_exact_on_straight_lines_for_any_number_of_steps(x):
    z = UNITS(x)
    for steps in range(1, 129):
        solver = FixedStep("euler", steps, "path", 1000)
        start, units = StandardNormal((2,)), Affine.identity((2,))
        flow = ContinuousFlow(Straight(), start, units, solver, Exact(), (2,)).cast(F64, CPU)
        there = flow.decode(z)
        assert there.nfe == steps
        torch.testing.assert_close(there.value, z @ Straight.A.T + Straight.b, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(flow.encode(there.value).value, z, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------------- trajectories
@every_path
@pytest.mark.parametrize(
    "solver", [adaptive(1e-6), adaptive(1e-6, "angle"), FixedStep("rk4", 20, "path", 1000)], ids=repr
)
def test_trajectories_end_at_the_samples(path, solver):
    flow = oracle(path, solver)
    way = flow.trajectory(4, seed=5, points=9)
    assert way.states.shape == (len(way.times), 4, 2)
    assert float(way.times[0]) == pytest.approx(0, abs=1e-9) and float(way.times[-1]) == pytest.approx(1, abs=1e-9)
    assert (way.times.diff() > 0).all()
    torch.testing.assert_close(way.states[-1], flow.sample(4, seed=5).value, rtol=0, atol=1e-4)


@every_path
def test_velocity_is_the_slope_of_a_trajectory(path):
    flow = oracle(path, Adaptive("dopri8", 1e-9, 1e-9, "path", 100_000))
    way = flow.trajectory(3, seed=5, points=401)
    middle = 200
    rise = (way.states[middle + 1] - way.states[middle - 1]) / (way.times[middle + 1] - way.times[middle - 1])
    found = flow.velocity(way.states[middle], way.times[middle])
    torch.testing.assert_close(found, rise, rtol=1e-2, atol=1e-3 * float(rise.abs().max()))


# ------------------------------------------------------------------------------------------------- trained networks
def train(path: Path, steps: int = 200) -> ContinuousFlow:
    g = torch.Generator().manual_seed(0)
    k = torch.multinomial(TARGET.weights, 4000, replacement=True, generator=g)
    noise = torch.randn(4000, 2, generator=g, dtype=F64)
    data = TARGET.means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(TARGET.covariances)[k], noise)
    transform = Affine.standardise(data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP((2,), 32, 2, 8, 1.0, 4, True, "auto")
    made = parts(network=network, path=path, transform=transform, train=transform(data), mixture=None)
    flow = CNF(True, None, 0, 1).flow(made).cast(F32, CPU)
    objective = FlowMatching("unit")
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    z = transform(data).float()
    for _ in range(steps):
        x_1 = z[torch.randint(0, 4000, (256,), generator=g)]
        example = Example(x_1, x_0=torch.randn(256, 2, generator=g), u=objective.times(256, g))
        loss = objective(flow, example).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in flow.parameters():
        parameter.requires_grad_(False)
    return flow


TRAINED: dict[str, ContinuousFlow] = {}


def trained(path: Path, dtype: torch.dtype) -> ContinuousFlow:
    if repr(path) not in TRAINED:
        TRAINED[repr(path)] = train(path)
    return TRAINED[repr(path)].cast(dtype, CPU)


@pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0), VE(0.01, 50.0)], ids=repr)
def test_a_trained_density_integrates_to_one(path, record_property):
    flow, cells = trained(path, F32), 80
    middle = (torch.arange(cells, dtype=F64) + 0.5) / cells * 12 - 6  # in standard deviations
    grid = flow.transform.inverse(torch.cartesian_prod(middle, middle))
    area = (12 / cells) ** 2 * float(flow.transform.scale.prod())
    total = float(flow.with_solver(adaptive(1e-4)).log_prob(grid).value.exp().sum()) * area
    record_property("integral", total)
    assert total == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("path", PATHS[:4], ids=repr)
def test_a_network_is_one_ode_in_time_and_angle(path):
    flow = trained(path, F64)
    events = flow.sample(5, seed=0).value
    both = [flow.with_solver(Adaptive("dopri8", 1e-9, 1e-9, time, 100_000)) for time in ("path", "angle")]
    torch.testing.assert_close(*(f.log_prob(events).value for f in both), rtol=0, atol=1e-5)
    torch.testing.assert_close(*(f.encode(events).value for f in both), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("method", "steps"), [("euler", 100), ("heun3", 32), ("rk4", 25)])
@pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0), LinearVP()], ids=repr)
def test_fixed_steps_meet_the_singular_end(path, method, steps, dtype):
    """The slope of VP's sigma is infinite at the data; a network, unlike the closed form, does not cancel it."""
    flow = trained(path, dtype)
    events = flow.sample(40, seed=0).value
    reference = flow.with_solver(adaptive(1e-6))
    coarse = flow.with_solver(FixedStep(method, steps, "path", 10_000))
    off = coarse.log_prob(events).value - reference.log_prob(events).value
    assert float(off.square().mean().sqrt()) < 0.1
    torch.testing.assert_close(coarse.sample(40, seed=0).value, events, rtol=0, atol=0.1)


def test_parameters_are_counted():
    flow = train(OT(0.0), steps=0)
    expected = (2 + 16 + 1) * 32 + 8 * 32 + 2 * (32 * 33) + 33 * 2
    for parameter in flow.field.network.parameters():
        parameter.requires_grad_(True)
    assert flow.trainable_parameters() == expected


# ------------------------------------------------------------------------------------------------- starts
@every_path
def test_start_has_the_moments_of_the_state_at_t_0(path):
    mean_1 = torch.tensor([3.0, -1.0], dtype=F64)
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    moments = Moments(torch.zeros(2, dtype=F64), mean_1, one, 2.5 * one, zero)
    base = StandardNormal((2,))
    start, (alpha, sigma) = start_of(path, base, moments), path.at(1.0)
    torch.testing.assert_close(start.mean, alpha * mean_1)
    assert float(start.std) == pytest.approx(math.sqrt(alpha**2 * 2.5 + sigma**2))
    assert (start is base) == (alpha == 0)


def test_paths_that_do_not_start_at_the_base_need_a_gaussian():
    base = GaussianMixture(TARGET.weights, TARGET.means, TARGET.covariances, (2,))
    one, zero = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    moments = Moments(base.mean, torch.zeros(2, dtype=F64), base.std**2, one, zero)
    assert start_of(OT(0.0), base, moments) is base
    for path in (VP(0.1, 20.0), VE(0.01, 50.0)):
        with pytest.raises(UserError, match=f"path {type(path).__name__} does not start at the base"):
            start_of(path, base, moments)


def plain_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP((2,), 8, 1, 0, 1.0, 0, False, "auto")
        nn.init.normal_(network.last.weight)
    return network


@pytest.mark.parametrize("path", [OT(0.0), None], ids=["raw", "free"])
def test_raw_outputs_have_no_angle(path):
    raw = parts(network=plain_network(), path=path, solver=adaptive(1e-5, "angle"), train=torch.randn(9, 2))
    with pytest.raises(UserError, match=r"solver\.time=angle needs model\.precondition=true"):
        CNF(False, "velocity", 0, 1).flow(raw)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("network", "model=cnf needs a network"),
        ("solver", "model=cnf needs a solver and a divergence"),
        ("divergence", "model=cnf needs a solver and a divergence"),
    ],
)
def test_a_cnf_says_which_part_it_lacks(missing, message):
    made = {"network": plain_network(), "train": torch.randn(9, 2), missing: None}
    with pytest.raises(UserError, match=message):
        CNF("auto", None, 0, 1).flow(parts(**made))


# ------------------------------------------------------------------------------------------------- off the paths
def test_auto_is_preconditioned_on_a_path_and_the_network_itself_off_it():
    network, train = plain_network(), torch.randn(9, 2)
    on = CNF("auto", None, 0, 1).flow(parts(network=network, train=train))
    assert isinstance(on.field, LearnedField) and on.field.turns
    off = CNF("auto", None, 0, 1).flow(parts(network=network, path=None, train=train)).cast(F64, CPU)
    assert isinstance(off.field, FreeField) and not off.field.turns and off.field.no_score is not None
    x, u = torch.randn(5, 2, dtype=F64), torch.linspace(0, 1, 5, dtype=F64)
    torch.testing.assert_close(off.field.velocity(x, u, None), network(x, u, None), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((True, None), r"model\.precondition=true needs a path"),
        ((False, "noise"), r"model\.prediction=noise needs a path"),
    ],
)
def test_forms_that_need_a_path_are_refused_off_it(settings, message):
    with pytest.raises(UserError, match=message):
        CNF(*settings, 0, 1).flow(parts(network=plain_network(), path=None, train=torch.randn(9, 2)))


def test_a_free_network_has_a_density_whose_rows_round_trip():
    flow = CNF("auto", None, 0, 1).flow(parts(network=plain_network(), path=None, solver=adaptive(1e-8), train=None))
    flow = flow.cast(F64, CPU)
    events = flow.sample(6, seed=3).value
    torch.testing.assert_close(flow.decode(flow.encode(events).value).value, events, rtol=0, atol=1e-5)
    way = flow.trajectory(6, seed=3, points=5)
    torch.testing.assert_close(way.states[-1], events, rtol=0, atol=1e-5)
    cells = 60
    middle = (torch.arange(cells, dtype=F64) + 0.5) / cells * 12 - 6
    grid = UNITS.inverse(torch.cartesian_prod(middle, middle))
    mass = float(flow.with_solver(adaptive(1e-5)).log_prob(grid).value.detach().exp().sum())
    assert mass * (12 / cells) ** 2 * float(UNITS.scale.prod()) == pytest.approx(1, abs=0.01)
