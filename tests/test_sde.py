"""SDEs on targets whose marginals are known: exact moments of the schemes, their orders, and what is refused."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from flowcli.errors import JobError, UserError
from flowcli.paths import OT, VE, VP, Cosine, Custom, LinearVP, Path
from flowcli.randomness import generator
from flowcli.sde import METHODS, Stochastic
from flowcli.solvers import FixedStep

PATHS = [OT(0.0), VP(0.1, 20.0), VE(0.01, 50.0)]
DIFFUSIONS = ["0.5*sigma", "sigma", "2*sigma", "sqrt(sigma)", "reference"]
MEAN, VARIANCE = 0.7, 0.6
ONE = torch.ones((), dtype=torch.float64)


def sde(method: str, steps: int, diffusion: str = "sigma") -> Stochastic:
    return Stochastic(method, steps, diffusion, 100_000)


def marginal(path: Path, u: float) -> tuple[float, float]:
    """Mean and variance of x_t."""
    alpha, sigma = path.at(u)
    return alpha * MEAN, alpha**2 * VARIANCE + sigma**2


def gaussian(path: Path):
    """Velocity and score for data N(MEAN, VARIANCE): the notes' formulas."""

    def field(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        c = path.schedule(u)
        scaled = (x - c.alpha * MEAN) / (c.alpha**2 * VARIANCE + c.sigma**2)
        velocity = c.d_alpha * (MEAN + c.alpha * VARIANCE * scaled) + c.d_sigma * c.sigma * scaled
        return velocity, -scaled

    return field


def moments(solver: Stochastic, path: Path) -> tuple[Tensor, Tensor]:
    """Exact mean and variance of the scheme at its grid, (steps + 1,) each, without sampling.

    On a Gaussian a scheme is affine in its start and its noises: the variance is the sum of squared responses to them.
    """
    mean, variance = marginal(path, 1.0)
    x = torch.full((solver.steps + 2,), mean, dtype=torch.float64)
    x[1] += math.sqrt(variance)
    kicks = torch.eye(solver.steps + 2, dtype=torch.float64)[2:]
    states = solver.integrate(gaussian(path), x, path, lambda i: kicks[i], variance=VARIANCE, keep=True).states[0]
    return states[:, 0], (states[:, 1:] - states[:, :1]).square().sum(1)


def normal(name: str, rows: int):
    """Steps to draws (rows,)."""
    return lambda step: torch.randn(rows, generator=generator(0, name, step), dtype=torch.float64)


def start(path: Path, rows: int) -> Tensor:
    mean, variance = marginal(path, 1.0)
    return mean + math.sqrt(variance) * normal("start", rows)(0)


# ---------------------------------------------------------------- g_t
def test_reference_against_closed_forms():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    beta, rate = 0.1 + 19.9 * u, math.log(5000)
    for path, expected in (
        (OT(0.0), 2 * u / (1 - u)),
        (VP(0.1, 20.0), beta),
        (VE(0.01, 50.0), 2 * rate * (0.01 * torch.exp(rate * u)) ** 2),
        (LinearVP(), 2 / (1 - u)),
    ):
        found = sde("euler_maruyama", 4, "reference").squared_diffusion(path, u)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", [OT(0.0), Cosine(), LinearVP(), Custom("sin(pi*t/2)", "cos(pi*t/2)", 1)], ids=repr)
def test_reference_is_zero_where_alpha_is(path):
    squared = sde("euler_maruyama", 64, "reference").plan(path, 1.0)
    assert float(squared[0]) == 0 and bool((squared[1:-1] > 0).all()) and float(squared[1]) > 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2*sigma", lambda t, alpha, sigma: 2 * sigma),
        ("sqrt(sigma)", lambda t, alpha, sigma: sigma**0.5),
        ("alpha*u + pi", lambda t, alpha, sigma: alpha * (1 - t) + math.pi),
        (0.5, lambda t, alpha, sigma: 0.5),
    ],
)
def test_expressions_see_the_path(text, expected):
    path = VP(0.1, 20.0)
    found = sde("euler_maruyama", 4, text).squared_diffusion(path, 0.3 * ONE)
    assert float(found) == pytest.approx(expected(0.7, *path.at(0.3)) ** 2, rel=1e-12)


# ---------------------------------------------------------------- moments on a Gaussian
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_the_schemes_follow_their_recursions(method, path, diffusion):
    """x' = P x + c + sqrt(q) noise, written out for dx = -a (x - alpha mean) + alpha' mean."""
    solver, n = sde(method, 40, diffusion), 40
    u = torch.linspace(1, 0, n + 1, dtype=torch.float64) ** path.warp
    c, g2 = path.schedule(u[:-1]), solver.squared_diffusion(path, u[:-1])
    g2[-1] = 0
    total = c.alpha**2 * VARIANCE + c.sigma**2
    pull = (c.d_alpha * c.alpha * VARIANCE + c.d_sigma * c.sigma - g2 / 2) / total
    push = c.d_alpha * MEAN - pull * c.alpha * MEAN
    mean, variance = marginal(path, 1.0)
    means, variances = [mean], [variance]
    for i, h in enumerate((u[:-1] - u[1:]).tolist()):
        a, b = 1 + h * float(pull[i]), h * float(push[i])
        if method == "euler_maruyama" or i == n - 1:
            mean, variance = a * mean + b, a**2 * variance + h * float(g2[i])
        else:
            half = h * float(pull[i + 1]) / 2
            carried, shift = 1 + h * float(pull[i]) / 2 + half * a, b / 2 + h * float(push[i + 1]) / 2 + half * b
            q = h * float(g2[i] + g2[i + 1]) / 2
            mean, variance = carried * mean + shift, carried**2 * variance + (1 + half) ** 2 * q
        means.append(mean)
        variances.append(variance)
    expected = torch.tensor([means, variances], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(moments(solver, path)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_samples_have_the_moments_of_the_scheme(method, path):
    """Drawn noise against the exact moments: 20,000 rows, five standard errors, at every step."""
    solver, rows = sde(method, 20), 20_000
    found = solver.integrate(gaussian(path), start(path, rows), path, normal("noise", rows), variance=1.0, keep=True)
    mean, variance = moments(solver, path)
    assert found.states[0].shape == (21, rows)
    assert ((found.states[0].mean(1) - mean).abs() < 5 * (variance / rows).sqrt()).all()
    assert ((found.states[0].var(1) / variance - 1).abs() < 5 * math.sqrt(2 / rows)).all()


@pytest.mark.parametrize("diffusion", ["0", *DIFFUSIONS])
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_marginals_are_those_of_the_ode_whatever_g_is(method, path, diffusion):
    """All along the way, exact moments of the scheme against the closed form: what is left is the error of its steps.

    Measured at 400 steps: Euler-Maruyama within 2.8% of the variance on OT and VP, 9.6% on VE; Heun within 0.08%.
    """
    solver = sde(method, 400, diffusion)
    found = torch.stack(moments(solver, path))
    expected = torch.tensor([marginal(path, u) for u in solver.grid(path).tolist()], dtype=torch.float64).T
    tolerance = {"euler_maruyama": 0.1 if isinstance(path, VE) else 0.03, "stochastic_heun": 1e-3}[method]
    # alpha_0 = 0: the reference's step k has h g^2/2 = 1/k however small h is, and errs by about that
    begun = 40 if diffusion == "reference" and path.starts_at_noise else 0
    assert float((found[1] / expected[1] - 1)[begun:].abs().max()) < tolerance
    assert float((found[0] - expected[0])[begun:].abs().max()) < tolerance * MEAN


def order(method: str, path: Path, diffusion: str) -> float:
    counts = [32, 64, 128, 256]
    errors = []
    for n in counts:
        mean, variance = moments(sde(method, n, diffusion), path)
        expected = marginal(path, 0.0)
        errors.append(math.hypot(float(mean[-1]) - expected[0], float(variance[-1]) - expected[1]))
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (counts, errors))
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("diffusion", ["sigma", "sqrt(sigma)", "1"])
@pytest.mark.parametrize("path", [OT(0.0), VP(0.1, 20.0), Cosine()], ids=repr)
@pytest.mark.parametrize(("method", "expected"), [("euler_maruyama", 1.0), ("stochastic_heun", 2.0)])
def test_weak_order(method, expected, path, diffusion):
    assert order(method, path, diffusion) == pytest.approx(expected, abs=0.2)


# ---------------------------------------------------------------- g = 0, mixtures
@pytest.mark.parametrize("path", [*PATHS, Cosine()], ids=repr)
def test_without_diffusion_it_is_euler_and_heun_of_the_ode(path):
    x, field = start(path, 5), gaussian(path)
    ode = FixedStep("euler", 20, "path", 100).solve(
        lambda u, state: (-field(state[0], u)[0],), (x,), sde("euler_maruyama", 20).grid(path), keep=True
    )
    found = sde("euler_maruyama", 20, "0").integrate(field, x, path, normal("any", 5), variance=1.0, keep=True)
    torch.testing.assert_close(found.states[0], ode.states[0], rtol=1e-13, atol=1e-13)

    u = torch.linspace(1, 0, 21, dtype=torch.float64) ** path.warp
    for here, there in itertools.pairwise(u[:-1]):
        first = field(x, here)[0]
        x = x + (here - there) / 2 * (first + field(x + (here - there) * first, there)[0])
    x = x + u[-2] * field(x, u[-2])[0]
    found = sde("stochastic_heun", 20, "0").integrate(field, start(path, 5), path, normal("any", 5), variance=1.0)
    torch.testing.assert_close(found.states[0][-1], x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("diffusion", ["sigma", "reference"])
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_modes_of_a_mixture_keep_their_weights(path, diffusion):
    """0.3 N(-1, 0.04) + 0.7 N(0.6, 0.04): weights within 4 binomial standard errors, variances within 10%."""
    weights, means = torch.tensor([[0.3, 0.7], [-1.0, 0.6]], dtype=torch.float64)
    small, rows = 0.04, 4000

    def field(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        c = path.schedule(u)
        away, total = x[:, None] - c.alpha * means, c.alpha**2 * small + c.sigma**2
        likely = torch.softmax(weights.log() - away.square() / (2 * total), dim=1)
        x_1 = (likely * (means + c.alpha * small * away / total)).sum(1)
        x_0 = (likely * c.sigma * away / total).sum(1)
        return c.d_alpha * x_1 + c.d_sigma * x_0, -x_0 / c.sigma

    alpha, sigma = path.at(1.0)
    chosen = torch.rand(rows, generator=generator(0, "which"), dtype=torch.float64) > 0.3
    x = alpha * (means[chosen.long()] + small**0.5 * normal("data", rows)(0)) + sigma * normal("start", rows)(0)
    x = sde("stochastic_heun", 100, diffusion).integrate(field, x, path, normal("noise", rows), variance=0.6).states[0]
    right = x[-1] > -0.2
    assert float(right.double().mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / rows))
    for mode, mean in ((x[-1][~right], means[0]), (x[-1][right], means[1])):
        assert float((mode - mean).square().mean()) == pytest.approx(small, rel=0.1)


# ---------------------------------------------------------------- how it is called
@pytest.mark.parametrize("path", [*PATHS, LinearVP()], ids=repr)
@pytest.mark.parametrize(("method", "nfe"), [("euler_maruyama", 12), ("stochastic_heun", 23)])
def test_evaluations_are_counted_and_never_at_the_data(method, nfe, path):
    seen, drawn, base = [], [], gaussian(path)

    def field(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(u)
        return base(x, u)

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.zeros(3, 2)

    solver = sde(method, 12)
    solution = solver.integrate(field, torch.zeros(3, 2), path, noise, variance=1.0)
    assert solution.nfe == solver.nfe == len(seen) == nfe
    assert drawn == list(range(11))  # none in the last step
    assert solution.states[0].shape == (2, 3, 2) and solution.states[0].dtype == torch.float32
    last = min(seen)
    assert last.dtype == torch.float32 and float(last) == pytest.approx((1 / 12) ** path.warp, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_depends_on_its_own_noise_alone(method):
    path, noise = OT(0.0), normal("noise", 6)
    x, solver = start(path, 6), sde(method, 30, "reference")
    together = solver.integrate(gaussian(path), x, path, noise, variance=1.0, keep=True).states[0]
    again = solver.integrate(gaussian(path), x, path, noise, variance=1.0, keep=True).states[0]
    assert torch.equal(together, again)
    alone = solver.integrate(gaussian(path), x[4:5], path, lambda i: noise(i)[4:5], variance=1.0, keep=True).states[0]
    assert torch.equal(together[:, 4:5], alone)


@pytest.mark.parametrize("diffusion", ["sigma", "reference"])
@pytest.mark.parametrize("path", [*PATHS, LinearVP()], ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_float32_keeps_its_digits(method, path, diffusion):
    solver, noise, x = sde(method, 200, diffusion), normal("noise", 50), start(path, 50)
    high = solver.integrate(gaussian(path), x, path, noise, variance=1.0).states[0][-1]
    low = solver.integrate(gaussian(path), x.float(), path, lambda i: noise(i).float(), variance=1.0).states[0][-1]
    torch.testing.assert_close(low.double(), high, rtol=2e-4, atol=2e-4)


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("euler", 10, "sigma", 100), "method"),
        (("euler_maruyama", 0, "sigma", 100), "steps"),
        (("euler_maruyama", 2.5, "sigma", 100), "steps"),
        (("euler_maruyama", 10, "sigma", 0), "max_nfe"),
        (("euler_maruyama", 101, "sigma", 100), "steps=101 .* take 101"),
        (("stochastic_heun", 51, "sigma", 100), "steps=51 .* take 101"),
        (("euler_maruyama", 10, "beta", 100), "diffusion: 'beta' is not allowed in a diffusion other than `reference`"),
        (("euler_maruyama", 10, "sigma +", 100), "diffusion="),
        (("euler_maruyama", 10, None, 100), "diffusion: 'None'"),
    ],
)
def test_bad_input(arguments, name):
    with pytest.raises(UserError, match=f"^{name}"):
        Stochastic(*arguments)
    assert sde("stochastic_heun", 50).nfe == 99


@pytest.mark.parametrize("text", ["-1", "log(u)", "1/t", "t - 0.5", "sqrt(t - 0.5)", "exp(1000)"])
def test_g_must_be_finite_and_not_negative(text):
    with pytest.raises(UserError, match=r"^solver\.diffusion=.* must be finite and >= 0; it is not at t = "):
        sde("euler_maruyama", 100, text).plan(OT(0.0), 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_unstable_steps_are_refused_and_named(method):
    """At h g^2 / (2 s^2) = 2 near the data: g = 10 with 25 steps and s = 1."""
    for steps, variance, stable in ((23, 1.0, False), (60, 1.0, True), (60, 0.1, False), (600, 0.1, True)):
        solver = sde(method, steps, "10")
        if stable:
            solver.plan(OT(0.0), variance)
        else:
            with pytest.raises(UserError, match=r"^solver\.diffusion=10 .* solver\.steps=\d+ .*sigma"):
                solver.plan(OT(0.0), variance)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_refused_would_explode(method):
    """h g^2 / (2 V) is 2.2 near the data in 150 steps and 1.3 in 250."""
    path, noise = VE(0.01, 1.0), normal("noise", 50)
    for steps, explodes in ((150, True), (250, False)):
        solver = sde(method, steps, "20")
        if explodes:
            with pytest.raises(UserError):
                solver.plan(path, VARIANCE)
        # a variance that is not the data's lets anything pass
        end = solver.integrate(gaussian(path), start(path, 50), path, noise, variance=1e6).states[0][-1]
        assert (float(end.abs().max()) > 1e3) == explodes


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("path", [*PATHS, OT(0.01), LinearVP(), Cosine()], ids=repr)
def test_safe_choices_pass_with_few_steps(path, diffusion):
    sde("euler_maruyama", 20, diffusion).plan(path, 1.0)


def test_a_solution_that_is_not_finite_is_a_failure():
    with pytest.raises(JobError, match="not finite"):
        sde("euler_maruyama", 4).integrate(
            lambda x, u: (x / 0, x), torch.ones(2), OT(0.0), lambda i: torch.zeros(2), variance=1.0
        )
