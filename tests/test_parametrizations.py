"""Targets, ends and velocities of the parametrisations, by exact second-moment algebra and autograd."""

import math

import pytest
import torch
from torch import Tensor

from flowcli.errors import UserError
from flowcli.parametrizations import PREDICTIONS, RAW_CUT, Moments, Preconditioned, Raw
from flowcli.paths import OT, VE, VP, Cosine, Custom, LinearVP, Path, Schedule, smallest_u

PATHS = [OT(0.0), OT(0.05), VP(0.1, 20.0), VE(0.01, 50.0), LinearVP(), Cosine(), Custom("t**2", "1 - t**2", 1)]
U = torch.cat([torch.logspace(-6, -1, 20), torch.linspace(0.11, 1, 30)]).double()


def moments(var_1: float, var_0: float, cov: float, mean_1: float = 0.0, mean_0: float = 0.0) -> Moments:
    """Of events of shape (1,)."""
    ends = [torch.full((1,), m, dtype=torch.float64) for m in (mean_0, mean_1)]
    return Moments(*ends, *(torch.tensor(v, dtype=torch.float64) for v in (var_0, var_1, cov)))


MOMENTS = {
    "standard": moments(1.0, 1.0, 0.0),
    "scaled": moments(2.5, 1.0, 0.0, mean_1=3.0),
    "dependent": moments(1.7, 0.6, 0.55, mean_1=-2.0, mean_0=0.7),
    "anticorrelated": moments(0.8, 1.3, -0.4, mean_1=1.0, mean_0=-0.3),
}
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)
every_moments = pytest.mark.parametrize("m", MOMENTS.values(), ids=MOMENTS.keys())


def column(c: Schedule) -> Schedule:
    """Beside (B, 1)."""
    return Schedule(*(value[:, None] for value in c))


def linear(function, c: Schedule, m: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (of x_0, of x_1, constant) of an affine function of the ends, each (B,)."""
    zero, one = torch.zeros(len(c.alpha), 1).double(), torch.ones(len(c.alpha), 1).double()
    constant = function(zero, zero)
    return tuple(v.squeeze(1) for v in (function(one, zero) - constant, function(zero, one) - constant, constant))


@every_moments
@every_path
def test_target_has_unit_variance_and_no_correlation_with_the_input(path, m):
    c, p = column(path.schedule(U)), Preconditioned()
    r_0, r_1, r_c = linear(lambda x_0, x_1: p.target(x_0, x_1, c, m), c, m)
    y_0, y_1, y_c = linear(lambda x_0, x_1: p.network_input(c.alpha * x_1 + c.sigma * x_0, c, m), c, m)
    one = torch.ones_like(U)

    def second(a_0: Tensor, a_1: Tensor, b_0: Tensor, b_1: Tensor) -> Tensor:
        return a_0 * b_0 * m.var_0 + a_1 * b_1 * m.var_1 + (a_0 * b_1 + a_1 * b_0) * m.cov

    torch.testing.assert_close(second(r_0, r_1, r_0, r_1), one, rtol=0, atol=1e-7)
    torch.testing.assert_close(second(y_0, y_1, y_0, y_1), one, rtol=0, atol=1e-7)
    torch.testing.assert_close(second(r_0, r_1, y_0, y_1), 0 * one, rtol=0, atol=1e-7)
    for a_0, a_1, constant in ((r_0, r_1, r_c), (y_0, y_1, y_c)):  # centred
        torch.testing.assert_close(a_0 * m.mean_0 + a_1 * m.mean_1 + constant, 0 * one, rtol=0, atol=1e-7)


def test_target_of_a_sample_is_standard():
    g = torch.Generator().manual_seed(0)
    n, rho = 200_000, 0.6
    noise = torch.randn(n, 1, generator=g, dtype=torch.float64)
    data = 1.5 * (rho * noise + math.sqrt(1 - rho**2) * torch.randn(n, 1, generator=g, dtype=torch.float64)) + 4
    m = moments(1.5**2, 1.0, 1.5 * rho, mean_1=4.0)
    c = column(OT(0.0).schedule(torch.full((n,), 0.3, dtype=torch.float64)))
    r = Preconditioned().target(noise, data, c, m)
    y = Preconditioned().network_input(c.alpha * data + c.sigma * noise, c, m)
    for value, expected in ((r.mean(), 0), (y.mean(), 0), (r.var(), 1), (y.var(), 1), ((r * y).mean(), 0)):
        assert float(value) == pytest.approx(expected, abs=5 * math.sqrt(2 / n))


def forms(path: Path) -> list:
    return [Preconditioned(), *(Raw(name, path) for name in PREDICTIONS)]


@every_moments
@every_path
@pytest.mark.parametrize("form", range(5), ids=["preconditioned", *PREDICTIONS])
def test_exact_target_gives_back_the_ends_and_the_velocity(path, m, form):
    p = forms(path)[form]
    g = torch.Generator().manual_seed(1)
    u = p.clip(torch.linspace(0, 1, 64).double())
    x_0, x_1 = torch.randn(2, len(u), 1, generator=g, dtype=torch.float64)
    c = column(path.schedule(u))
    x = c.alpha * x_1 + c.sigma * x_0
    output = p.target(x_0, x_1, c, m)
    expected = c.d_alpha * x_1 + c.d_sigma * x_0
    scale = 1 + c.d_alpha.abs() + c.d_sigma.abs()  # VP's slope diverges at the data
    torch.testing.assert_close(p.velocity(x, output, c, m) / scale, expected / scale, rtol=0, atol=1e-9)
    inside = (c.sigma > 1e-3) & (c.alpha > 1e-3)
    e_0, e_1 = p.ends(x, output, c, m)
    if form == 0:  # divides by neither alpha nor sigma: right at the very ends too
        inside = torch.ones_like(inside)
    torch.testing.assert_close(e_0[inside], x_0[inside], rtol=0, atol=1e-7)
    torch.testing.assert_close(e_1[inside], x_1[inside], rtol=0, atol=1e-7)


@every_moments
@every_path
def test_stretch_and_angle_are_the_derivatives_of_the_schedule(path, m):
    """velocity = drift of the mean + V'/2V (x - mean) + gain F, and the gain is -sqrt(V) times the angle's slope."""
    p, u, c = Preconditioned(), U, path.schedule(U)

    v = u.clone().requires_grad_()
    s = path.schedule(v)
    geometry = (m.centre(column(s)).sum(), m.variance(s).log().sum() / 2, m.angle(s).sum())
    drift, stretch, turn = (
        -torch.autograd.grad(value, v, retain_graph=True, materialize_grads=True)[0]
        if value.requires_grad
        else torch.zeros_like(u)
        for value in geometry
    )
    zero, one = torch.zeros(len(u), 1).double(), torch.ones(len(u), 1).double()
    centre = m.centre(column(c))
    at_centre = p.velocity(centre, zero, column(c), m).squeeze(1)
    torch.testing.assert_close(at_centre, drift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        p.velocity(centre + one, zero, column(c), m).squeeze(1) - at_centre, stretch, rtol=1e-8, atol=1e-6
    )
    gain = p.velocity(centre, one, column(c), m).squeeze(1) - at_centre
    torch.testing.assert_close(gain, -m.variance(c).sqrt() * turn, rtol=1e-7, atol=1e-7)
    assert (turn[:-1] < 0).all()  # from noise to data the angle falls; t**2 starts with no slope


@every_moments
@every_path
@pytest.mark.parametrize("form", range(5), ids=["preconditioned", *PREDICTIONS])
def test_velocity_gain_is_d_velocity_d_output(path, m, form):
    p = forms(path)[form]
    u = p.clip(torch.linspace(0.001, 0.999, 50).double())
    c = column(path.schedule(u))
    output = torch.zeros(len(u), 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(p.velocity(torch.ones(len(u), 1).double(), output, c, m).sum(), output)
    torch.testing.assert_close(p.velocity_gain(c, m).expand_as(slope), slope, rtol=1e-10, atol=1e-12)


def test_raw_velocity_has_gain_one_even_where_the_path_stands_still():
    """alpha = t**2 has no slope at t = 0, where the ends cannot be told from the velocity; its gain is still 1."""
    path = Custom("t**2", "(1 - t**2)**2", 1)
    gain = Raw("velocity", path).velocity_gain(path.schedule(torch.ones(1).double()), MOMENTS["standard"])
    assert gain.tolist() == [1.0]


@every_path
def test_native_weight_is_that_of_the_table(path):
    """s^2 (alpha' sigma - sigma' alpha)^2 / V for independent standard noise (MATH: objectives)."""
    s2, c = 2.5, path.schedule(U)
    m = moments(s2, 1.0, 0.0)
    expected = s2 * (c.d_alpha * c.sigma - c.d_sigma * c.alpha) ** 2 / (c.alpha**2 * s2 + c.sigma**2)
    torch.testing.assert_close(Preconditioned().velocity_gain(c, m).square(), expected, rtol=1e-10, atol=0)


@every_path
def test_angle_of_independent_ends(path):
    c, m = path.schedule(U), moments(2.5, 0.7, 0.0)
    expected = torch.atan2(c.sigma * math.sqrt(0.7), c.alpha * math.sqrt(2.5))
    torch.testing.assert_close(m.angle(c), expected, rtol=1e-12, atol=1e-14)


@every_moments
def test_angle_reaches_both_axes(m):
    """0 at clean data; at pure noise the angle between the ends, pi/2 where they are independent."""
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    assert float(m.angle(Schedule(one, zero, one, one))) == 0
    correlation = float(m.cov / (m.var_0 * m.var_1).sqrt())
    assert float(m.angle(Schedule(zero, one, one, one))) == pytest.approx(math.acos(correlation), abs=1e-12)


def test_measured_moments():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)
    m = Moments.measured(x, torch.zeros(2).double(), torch.ones(()).double())
    assert m.mean_1.tolist() == [2.0, 4.0]
    assert float(m.var_1) == pytest.approx((1 + 1 + 4 + 4) / 4)
    assert float(m.cov) == 0 and float(m.delta) == float(m.var_1)
    assert set(m.state_dict()) == {"mean_0", "mean_1", "var_0", "var_1", "cov", "delta"}


@pytest.mark.parametrize(
    ("prediction", "path", "low", "high"),
    [
        ("velocity", OT(0.0), 0, 1),
        ("data", OT(0.0), RAW_CUT, 1),
        ("noise", OT(0.0), 0, 1 - RAW_CUT),
        ("score", OT(0.0), RAW_CUT, 1 - RAW_CUT),
        ("data", OT(0.05), 0, 1),
        ("score", OT(0.05), 0, 1 - RAW_CUT),
        ("data", VP(0.1, 20.0), RAW_CUT, 1),
        ("noise", VP(0.1, 20.0), 0, 1),
        ("score", VP(0.1, 20.0), RAW_CUT, 1),
        ("score", VE(0.01, 50.0), 0, 1),
    ],
)
def test_raw_forms_are_cut_where_they_are_0_over_0(prediction, path, low, high):
    for dtype in (torch.float32, torch.float64):
        u = Raw(prediction, path).clip(torch.tensor([0.0, 0.5, 1.0], dtype=dtype))
        torch.testing.assert_close(u, torch.tensor([max(low, smallest_u(dtype)), 0.5, high], dtype=dtype))


def test_raw_targets_are_the_quantities_themselves():
    path, g = Cosine(), torch.Generator().manual_seed(2)
    x_0, x_1 = torch.randn(2, 8, 1, generator=g, dtype=torch.float64)
    c, m = column(path.schedule(torch.linspace(0.1, 0.9, 8).double())), moments(1.0, 1.0, 0.0)
    expected = {"velocity": c.d_alpha * x_1 + c.d_sigma * x_0, "data": x_1, "noise": x_0, "score": -x_0 / c.sigma}
    for name, value in expected.items():
        torch.testing.assert_close(Raw(name, path).target(x_0, x_1, c, m), value)
        assert Raw(name, path).network_input(x_1, c, m) is x_1


def test_unknown_prediction_is_refused():
    from flowcli.flows.cnf import CNF

    with pytest.raises(UserError, match="prediction must be one of velocity, data, noise, score, got 'speed'"):
        CNF(False, "speed", 0, 1)
    for precondition in (True, "auto"):
        with pytest.raises(UserError, match="prediction=noise needs precondition=false"):
            CNF(precondition, "noise", 0, 1)
