"""Schedules: slopes against automatic differentiation, ends, cuts, and what a custom path may say."""

import math

import pytest
import torch

from flowcli.errors import UserError
from flowcli.paths import OT, VE, VP, Cosine, Custom, LinearVP, Path, smallest_u

PATHS = [
    OT(0.0),
    OT(0.05),
    VP(0.1, 20.0),
    VP(0.5, 0.5),
    VE(0.01, 50.0),
    LinearVP(),
    Cosine(),
    Custom("t**2", "1 - t**2", 1),
    Custom("sin(pi*t/2)", "sqrt(u*(1+t))*exp(-t*u)", 2),
]


def gamma(path: Path, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma by independent formulas of t (no expm1, no u), for the slopes as well as the values."""
    if isinstance(path, OT):
        return t, 1 - (1 - path.sigma_min) * t
    if isinstance(path, VP):
        beta = path.beta_min * (1 - t) + (path.beta_max - path.beta_min) * (1 - t) ** 2 / 2
        return torch.exp(-beta / 2), torch.sqrt(1 - torch.exp(-beta))
    if isinstance(path, VE):
        return torch.ones_like(t), path.sigma_min**t * path.sigma_max ** (1 - t)
    if isinstance(path, LinearVP):
        return t, torch.sqrt(1 - t**2)
    if isinstance(path, Cosine):
        return torch.sin(math.pi * t / 2), torch.cos(math.pi * t / 2)
    if "pi" in path.alpha:
        return torch.sin(math.pi * t / 2), torch.sqrt(1 - t**2) * torch.exp(-t * (1 - t))
    return t**2, 1 - t**2


def slope(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The derivative element by element, by automatic differentiation; 0 for a constant."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(value.sum(), at, retain_graph=True, materialize_grads=True)
    return found


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_values_and_slopes_are_those_of_the_formula(path):
    t = torch.linspace(0.001, 0.999, 401, dtype=torch.float64)
    t.requires_grad_()
    values = gamma(path, t)
    slopes = [slope(value, t) for value in values]
    found = path.schedule(1 - t.detach())
    for name, expected in zip(found._fields, (*(value.detach() for value in values), *slopes), strict=True):
        torch.testing.assert_close(
            getattr(found, name), expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_slopes_are_the_derivatives_of_the_schedule_near_the_data(path):
    u = torch.logspace(-9, 0, 300, dtype=torch.float64)
    found = path.schedule(u)
    u.requires_grad_()
    alpha, sigma = path.schedule(u)[:2]
    slopes = [-slope(value, u) for value in (alpha, sigma)]  # dt = -du
    torch.testing.assert_close(torch.stack(found[2:]), torch.stack(slopes), rtol=1e-9, atol=1e-12)
    assert (alpha > -1e-15).all() and (sigma > 0).all()


@pytest.mark.parametrize(
    ("path", "noise", "data"),
    [
        (OT(0.0), (0.0, 1.0), (1.0, 0.0)),
        (OT(0.05), (0.0, 1.0), (1.0, 0.05)),
        (VP(0.1, 20.0), (math.exp(-10.05 / 2), math.sqrt(1 - math.exp(-10.05))), (1.0, 0.0)),
        (VE(0.01, 50.0), (1.0, 50.0), (1.0, 0.01)),
        (LinearVP(), (0.0, 1.0), (1.0, 0.0)),
        (Cosine(), (0.0, 1.0), (1.0, 0.0)),
        (Custom("t**2", "1 - t**2", 1), (0.0, 1.0), (1.0, 0.0)),
        (Custom("sin(pi*t/2)", "cos(pi*t/2)", 1), (0.0, 1.0), (1.0, 0.0)),
    ],
    ids=repr,
)
def test_ends(path, noise, data):
    assert path.at(1.0) == pytest.approx(noise, rel=1e-12, abs=0)
    assert path.at(0.0) == pytest.approx(data, rel=1e-12, abs=0)
    assert path.starts_at_noise == (noise[0] == 0)
    alpha, sigma, _, _ = path.schedule(torch.tensor(0.3, dtype=torch.float64))
    assert path.at(0.3) == (float(alpha), float(sigma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_finite_and_positive_at_the_cut(path, dtype):
    u = torch.tensor([smallest_u(dtype), 10 * smallest_u(dtype), 0.5, 1.0], dtype=dtype)
    schedule = path.schedule(u)
    assert all(bool(torch.isfinite(value).all()) and value.dtype == dtype for value in schedule)
    assert (schedule.sigma > 0).all() and (schedule.alpha >= 0).all()
    assert ((schedule.d_alpha * schedule.sigma - schedule.d_sigma * schedule.alpha)[:3] > 0).all()


@pytest.mark.parametrize("path", [VP(0.1, 20.0), OT(0.0), LinearVP(), Cosine(), VE(0.01, 50.0)], ids=repr)
def test_float32_keeps_its_digits_at_the_data_end(path):
    u = torch.logspace(-6, 0, 50)
    for low, high in zip(path.schedule(u), path.schedule(u.double()), strict=True):
        torch.testing.assert_close(low.double(), high, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", [VP(0.1, 20.0), LinearVP()], ids=repr)
def test_warp_makes_sigma_linear(path):
    w = torch.tensor([1e-4, 2e-4], dtype=torch.float64)
    sigma = path.schedule(w**path.warp).sigma
    assert float(sigma[1] / sigma[0]) == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "t.__class__",
        "lambda: t",
        "(lambda: t)()",
        "x",
        "[t]",
        "t if u else u",
        "t and u",
        "t < u",
        "t % 2",
        "t // 2",
        "t @ u",
        "~t",
        "'t'",
        "True",
        "1j",
        "exp(t, u)",
        "exp(input=t)",
        "exp(*t)",
        "abs(t)",
        "exp",
        "(t := u)",
        "f'{t}'",
        "t[0]",
        "...",
        "None",
    ],
)
def test_custom_refuses_what_is_not_arithmetic(text):
    for alpha, sigma, name in ((text, "u", "alpha"), ("t", text, "sigma")):
        with pytest.raises(UserError, match=rf"^{name}: .* is not allowed in a path; legal are numbers, t, u"):
            Custom(alpha, sigma, 1)


@pytest.mark.parametrize("text", ["", "t +", "t; u", "import os", "t = 1", "(" * 500 + "t" + ")" * 500, "t\0"])
def test_custom_refuses_what_is_no_expression(text):
    with pytest.raises(UserError, match=r"^alpha=.* is not an expression of t"):
        Custom(text, "u", 1)


def test_custom_refuses_deep_nesting():
    with pytest.raises(UserError, match="nested more than 50 deep"):
        Custom("-" * 100 + "t", "u", 1)


@pytest.mark.parametrize("text", ["1" + "0" * 400, "t + 0 * 1" + "0" * 400])
def test_custom_refuses_numbers_beyond_floating_point(text):
    with pytest.raises(UserError, match="alpha"):
        Custom(text, "u", 1)


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        ("1 - t", "t", r"must be \(0\.0, 1\.0\) at t = 0, got \(1, 0\)"),
        ("t", "1", r"must be \(1\.0, 0\.0\) at t = 1, got \(1, 1\)"),
        ("2 * t", "u", r"at t = 1, got \(2, 0\)"),
        ("t", "log(u)", "at t = 0"),
        ("t / t - u", "u", "at t = 0"),  # nan is not 0
        ("t + sin(6 * pi * t) / 4", "u", r"must grow all the way from t = 0 to 1; it does not at t = 0\.\d+"),
        ("t**2 * (3 - 2 * t) * (1 - 4 * u)", "u", "must grow all the way"),
        ("t", "u + sqrt(t - 0.5) * 0", "must|at t"),  # not defined below 1/2
    ],
)
def test_custom_refuses_wrong_ends_and_an_angle_that_turns_back(alpha, sigma, message):
    with pytest.raises(UserError, match=message):
        Custom(alpha, sigma, 1)


@pytest.mark.parametrize("alpha", ["sqrt(t)", "t**(2 - t)"])
def test_custom_refuses_slopes_that_are_not_finite_at_the_noise_end(alpha):
    with pytest.raises(UserError):
        Custom(alpha, "u", 1)


@pytest.mark.parametrize(
    "text", ["t**2.5", "(1+t)**(1+t)/4*t*t", "2**t - 1", "t/(2-t)", "tan(pi*t/4)", "log(1+t)/log(2)"]
)
def test_custom_slopes_by_the_chain_rule(text):
    path, t = Custom(text, "u*exp(-t)*(1+tanh(t)*u)", 1), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t.requires_grad_()
    alpha, sigma, d_alpha, d_sigma = path.schedule(1 - t)
    torch.testing.assert_close(d_alpha.detach(), slope(alpha, t), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(d_sigma.detach(), slope(sigma, t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("warp", [0, 3, -1, 1.5, "2", None])
def test_custom_refuses_other_warps(warp):
    with pytest.raises(UserError, match="warp must be 1 or 2"):
        Custom("t", "u", warp)


def test_custom_knows_every_function_and_operation():
    path = Custom("sin(pi*t/2)*cos(0*t)+tan(0*t)-tanh(0*u)+log(exp(0*t))", "sqrt(u**2)", 1)
    alpha, sigma, d_alpha, d_sigma = path.schedule(torch.tensor(0.4, dtype=torch.float64))
    expected = (math.sin(0.3 * math.pi), 0.4, math.pi / 2 * math.cos(0.3 * math.pi), -1.0)
    assert (float(alpha), float(sigma), float(d_alpha), float(d_sigma)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: OT(-0.1), "sigma_min"),
        (lambda: OT(1.0), "sigma_min"),
        (lambda: OT(math.nan), "sigma_min"),
        (lambda: OT("0"), "sigma_min"),
        (lambda: VP(0.0, 20.0), "beta_min"),
        (lambda: VP(2.0, 1.0), "beta_max"),
        (lambda: VP(0.1, math.inf), "beta_max"),
        (lambda: VE(0.0, 50.0), "sigma_min"),
        (lambda: VE(1.0, 1.0), "sigma_max"),
        (lambda: VE(0.01, 1e5), "sigma_max"),
    ],
)
def test_ranges(build, name):
    with pytest.raises(UserError, match=f"^{name} must be a finite number"):
        build()
