"""Orders, counts and failures of the solvers, on equations whose solutions are known."""

import math

import pytest
import torch
from torchdiffeq import odeint

from flowcli.errors import JobError
from flowcli.solvers import ADAPTIVE, FIXED, Adaptive, FixedStep, tightened

ONE = torch.ones(1, dtype=torch.float64)


def fixed(method: str, steps: int) -> FixedStep:
    return FixedStep(method, steps, "path", 10_000)


def adaptive(method: str, tolerance: float = 1e-6, max_nfe: int = 100_000) -> Adaptive:
    return Adaptive(method, tolerance, tolerance, "path", max_nfe)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("method", FIXED)
def test_order_of_convergence(method, start, stop):
    """Logistic growth at a rate that changes with time."""

    def exact(s: float) -> float:
        return 1 / (1 + 3 * math.exp(-2 * s - s**2))

    def rhs(s, state):
        return (2 * (1 + s) * state[0] * (1 - state[0]),)

    counts = [8, 16, 32, 64, 128]
    errors = []
    for n in counts:
        solver = fixed(method, n)
        grid = solver.grid(start, stop, 2)
        solution = solver.solve(
            rhs, (ONE * exact(start),), grid, keep=True
        )  # at one point the error may change its sign
        errors.append(max(abs(float(y) - exact(float(s))) for y, s in zip(solution.states[0], grid, strict=True)))
    x = torch.tensor(counts, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    order = -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert order == pytest.approx(FIXED[method], abs=0.3)


@pytest.mark.parametrize("method", FIXED)
def test_evaluations_are_steps_times_stages(method):
    every = [
        ((0.0, 1.0), torch.float32),
        ((1.0, 0.0), torch.float32),
        ((0.0, 1.0), torch.float64),
        ((1.0, 0.0), torch.float64),
    ]
    for n in range(1, 129):
        for (start, stop), dtype in every if method == "euler" else [every[n % 4]]:
            solver, times = fixed(method, n), []

            def rhs(s, state, times=times):
                times.append(float(s))
                return (torch.ones_like(state[0]),)

            solution = solver.solve(rhs, (torch.zeros(1, dtype=dtype),), solver.grid(start, stop, 2))
            assert solution.nfe == len(times) == n * FIXED[method]
            assert min(times) >= 0 and max(times) <= 1
            assert float(solution.states[0][-1]) == pytest.approx(
                stop - start, abs=1e-5 if dtype == torch.float32 else 1e-13
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0), (0.0, 1.57)])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_solvers_reach_their_tolerance(method, start, stop, dtype):
    tolerance = 1e-4 if dtype == torch.float32 else 1e-5
    solver = adaptive(method, tolerance)
    solution = solver.solve(lambda s, state: (state[0],), (torch.ones(3, 2, dtype=dtype),), solver.grid(start, stop, 2))
    expected = torch.full((3, 2), math.exp(stop - start), dtype=dtype)
    torch.testing.assert_close(solution.states[0][-1], expected, rtol=20 * tolerance, atol=0)
    assert solution.nfe > 5


@pytest.mark.parametrize("method", ADAPTIVE)
def test_tighter_is_closer(method):
    errors = []
    for tolerance in (1e-3, 1e-4, 1e-5):
        solver = adaptive(method, tolerance)
        solution = solver.solve(lambda s, y: (y[0] * torch.cos(s),), (ONE,), solver.grid(0.0, 3.0, 2))
        errors.append(abs(float(solution.states[0][-1]) - math.exp(math.sin(3.0))))
    assert errors[2] < errors[0] and errors[2] < 1e-4


@pytest.mark.parametrize("slope", [1.0, 1e-3])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_solvers_never_look_outside(method, start, stop, slope):
    """Schedules are not defined outside, and the solution must land on the end itself."""
    solver, times = adaptive(method), []

    def rhs(s, state):
        times.append(float(s))
        return (slope * 1e-3 * state[0],)

    solver.solve(rhs, (ONE,), solver.grid(start, stop, 2))
    assert 0 <= min(times) < 1e-300 and 1 - 1e-15 < max(times) <= 1  # at both ends


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_solvers_land_on_the_end(method):
    solver, times = adaptive(method, 1e-4), []

    def rhs(s, state):
        times.append(float(s))
        return (10 * torch.sin(9 * s) * state[0],)

    solver.solve(rhs, (ONE,), solver.grid(1.0, 0.0, 2))
    assert 0 <= min(times) < 1e-300 and 1 - 1e-15 < max(times) <= 1  # at both ends


@pytest.mark.parametrize("solver", [fixed("rk4", 20), adaptive("dopri5", 1e-8)], ids=repr)
@pytest.mark.parametrize(("start", "stop"), [(0.0, 2.0), (2.0, 0.0)])
def test_keep_gives_every_point(solver, start, stop):
    grid = solver.grid(start, stop, 5)
    solution = solver.solve(lambda s, state: (-state[0], 2 * s + 0 * state[1]), (ONE, 0 * ONE), grid, keep=True)
    assert len(grid) == (21 if isinstance(solver, FixedStep) else 5)
    assert float(grid[0]) == start and float(grid[-1]) == stop
    torch.testing.assert_close(solution.states[0][:, 0], torch.exp(start - grid), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(solution.states[1][:, 0], grid**2 - start**2, rtol=1e-5, atol=1e-6)
    ends = solver.solve(lambda s, state: (-state[0], 2 * s + 0 * state[1]), (ONE, 0 * ONE), grid)
    assert [len(component) for component in ends.states] == [2, 2]
    torch.testing.assert_close(ends.states[0][-1], solution.states[0][-1], rtol=1e-7, atol=1e-9)


def test_states_of_any_shape_stay_apart():
    solver = fixed("rk4", 10)
    state = (torch.zeros(2, 1, 3, 3).double(), torch.ones(2, 4).double())
    solution = solver.solve(lambda s, y: (torch.ones_like(y[0]), -y[1]), state, solver.grid(0.0, 1.0, 2))
    torch.testing.assert_close(solution.states[0][-1], torch.ones(2, 1, 3, 3).double())
    torch.testing.assert_close(solution.states[1][-1], torch.full((2, 4), math.exp(-1)).double(), rtol=1e-5, atol=0)


def test_too_many_evaluations_say_where_and_what_to_try():
    solver = adaptive("dopri5", 1e-10, max_nfe=30)
    with pytest.raises(JobError) as caught:
        solver.solve(lambda s, y: (torch.cos(200 * s) * y[0] * 50,), (ONE,), solver.grid(1.0, 0.0, 2))
    text = str(caught.value)
    assert (
        text.startswith("solver dopri5 failed ")
        and "% of the way: 30 evaluations (solver.max_nfe) were not enough" in text
    )
    assert "try a larger solver.rtol and solver.atol (now 1e-10, 1e-10), solver.time=angle (with " in text
    assert "model.precondition=true), a fixed-step solver" in text
    assert "\n" not in text


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singularity_is_one_line(method, dtype):
    """y' = y^2 from 2 blows up half-way."""
    solver = adaptive(method, 1e-3)
    with pytest.raises(JobError, match=r"^solver \w+ failed \d+\.\d% of the way: .*; try .*") as caught:
        solver.solve(lambda s, y: (y[0] ** 2,), (2 * torch.ones(1, dtype=dtype),), solver.grid(0.0, 1.0, 2))
    percent = float(str(caught.value).split("failed ")[1].split("%")[0])
    assert percent == pytest.approx(50, abs=3) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("solver", [fixed("euler", 4), fixed("rk4", 4), *(adaptive(m) for m in ADAPTIVE)], ids=repr)
def test_values_that_are_not_finite_are_one_line(solver, value):
    def rhs(s, state):
        return (state[0] + torch.where(s > 0.5, value, 0.0),)

    with pytest.raises(JobError, match=r"^solver \w+ failed \d+\.\d% of the way: [^\n]*; try [^\n]*$"):
        solver.solve(rhs, (ONE,), solver.grid(0.0, 1.0, 2))


@pytest.mark.parametrize("keep", [True, False], ids=["every point", "ends"])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("solver", [*(fixed(m, 13) for m in FIXED), *(adaptive(m, 1e-5) for m in ADAPTIVE)], ids=repr)
def test_solutions_gradients_and_evaluations_are_torchdiffeq_s(solver, start, stop, keep):
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 4, generator=draws).double().requires_grad_()
    x = torch.randn(50, 4, generator=draws).double().requires_grad_()
    asked: list[float] = []

    def rhs(s, state):
        asked.append(float(s.detach()))
        return torch.tanh(3 * state[0] @ weights + torch.sin(5 * s)), torch.cos(3 * s * state[0]).sum(1)

    grid, state = solver.grid(start, stop, 7), (x, x.new_zeros(50))
    mine = solver.solve(rhs, state, grid, keep=keep)
    assert mine.nfe == len(asked)
    points = grid if keep else grid[[0, -1]]
    its = odeint(rhs, state, points, method=solver.method, **solver._settings(grid))
    assert mine.nfe == len(asked) - mine.nfe
    for one, other in zip(mine.states, its, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    mixed = torch.randn(len(points), 50, 4, generator=draws).double()
    sums = [(found[0] * mixed).sum() + found[1][-1].square().sum() for found in (mine.states, its)]
    gradients = [torch.autograd.grad(each, (x, weights), create_graph=True) for each in sums]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    seconds = [torch.autograd.grad(one.square().sum(), weights)[0] for one, _ in gradients]
    torch.testing.assert_close(*seconds, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, of forward mode
def test_solutions_go_through_torch_func():
    solver, x = fixed("rk4", 5), torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).double()

    def solved(x):
        return solver.solve(lambda s, y: (torch.sin(y[0]) * (1 + s),), (x,), solver.grid(0.0, 1.0, 2)).states[0][-1]

    wanted = torch.autograd.functional.jacobian(solved, x)
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(mode(solved)(x), wanted, rtol=1e-12, atol=1e-12)


def test_a_step_that_leads_nowhere_is_taken_again_smaller():
    """A first trial step that is not finite is no failure: shorter ones are."""
    solver = adaptive("dopri5", 1e-6)

    def rhs(s, state):
        return (torch.where(state[0] > 1.05, math.nan, -50 * (state[0] - torch.cos(s))),)

    found = solver.solve(rhs, (ONE,), solver.grid(0.0, 1.0, 2))
    assert float(found.states[0][-1]) == pytest.approx(math.cos(1) + math.sin(1) / 50, abs=1e-2)


def test_gradients_reach_the_start():
    for solver in (fixed("rk4", 50), fixed("euler", 3)):
        y = torch.ones(1, dtype=torch.float64, requires_grad=True)
        end = solver.solve(lambda s, state: (state[0] * 2,), (y,), solver.grid(0.0, 1.0, 2)).states[0][-1]
        (slope,) = torch.autograd.grad(end.sum(), y)
        assert float(slope) == pytest.approx(float(end.detach()), rel=1e-9)


def test_gradients_reach_the_start_through_adaptive_steps(request):
    request.addfinalizer(lambda: torch.set_warn_always(False))
    torch.set_warn_always(True)  # the warning comes once a process otherwise
    solver = adaptive("dopri5", 1e-9)
    y = torch.ones(1, dtype=torch.float64, requires_grad=True)
    end = solver.solve(lambda s, state: (state[0] * 2,), (y,), solver.grid(0.0, 1.0, 2)).states[0][-1]
    (slope,) = torch.autograd.grad(end.sum(), y)
    assert float(slope) == pytest.approx(math.exp(2), rel=1e-7)


def test_tightened():
    assert tightened(fixed("rk4", 25)) == FixedStep("rk4", 50, "path", 20_000)
    assert tightened(adaptive("bosh3", 1e-4, 500)) == Adaptive("bosh3", 1e-5, 1e-5, "path", 5000)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FixedStep("dopri5", 10, "path", 100), "method must be one of euler, midpoint, heun3, rk4"),
        (lambda: FixedStep("euler", 0, "path", 100), "steps must be a whole number >= 1"),
        (lambda: FixedStep("euler", 2.5, "path", 100), "steps must be a whole number >= 1"),
        (lambda: FixedStep("euler", 10, "clock", 100), "time must be one of path, angle"),
        (lambda: FixedStep("rk4", 26, "path", 100), "steps=26 of rk4 take 104 evaluations; max_nfe=100"),
        (
            lambda: Adaptive("euler", 1e-5, 1e-5, "path", 100),
            "method must be one of dopri5, dopri8, bosh3, adaptive_heun",
        ),
        (lambda: Adaptive("dopri5", 0, 1e-5, "path", 100), "rtol must be a finite number (and )?> 0"),
        (lambda: Adaptive("dopri5", 1e-5, 2, "path", 100), "atol must be a finite number (and )?> 0 and <= 1"),
        (lambda: Adaptive("dopri5", 1e-5, 1e-5, "path", 5), "max_nfe must be a whole number >= 10"),
    ],
)
def test_ranges(build, message):
    with pytest.raises(ValueError, match=message):  # UserError is one
        build()


def test_whole_numbers_may_be_written_as_floats():
    assert FixedStep("euler", 1e2, "path", 1e4).steps == 100
