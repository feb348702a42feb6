"""What a step is made of: Adam on one vector, batches in blocks, and the compiled steps beside the plain ones."""

import copy
import itertools
import math
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_build import SMALL, config
from test_engine import Observer, ends, trainer
from test_engine import flow_over as flow_of
from torch import Tensor, nn

from flowcli import build
from flowcli.bases import StandardNormal
from flowcli.compiling import NotCompiled, compiled, missing
from flowcli.couplings import OT
from flowcli.dataset import TrainingData
from flowcli.divergence import Exact
from flowcli.ends import Ends
from flowcli.engine import Progress
from flowcli.errors import JobError, UserError
from flowcli.flows.base import Flow
from flowcli.objectives import FlowMatching, Inputs, MaximumLikelihood, Objective, stratified
from flowcli.randomness import generator
from flowcli.solvers import FixedStep
from flowcli.training.adam import Adam
from flowcli.training.batches import BLOCK_NUMBERS, BLOCK_STEPS, Batches
from flowcli.training.flat import Flat, trainable
from flowcli.training.step import CompiledSteps, Step

CPU = torch.device("cpu")
CLIP = 0.3
"""Of the norms of the steps below some are larger and some are smaller."""
ROWS, GROUP = 32, 5


flow_over = partial(flow_of, kernel=False)
"""Of PyTorch's operations: what compiled steps are compared with."""


def corners() -> Tensor:
    """300 points near the corners of a square."""
    draws = generator(1, "corners")
    return torch.randint(0, 2, (300, 2), generator=draws) * 2.0 - 1 + 0.05 * torch.randn(300, 2, generator=draws)


@pytest.fixture
def data() -> TrainingData:
    return TrainingData(corners(), corners()[:50])


def objective_of(flow: Flow, data: TrainingData, own: Ends | None = None) -> FlowMatching:
    objective = FlowMatching("unit")
    objective.prepare(flow, data, ends() if own is None else own)
    return objective


def step_of(flow: Flow, objective: Objective, grad_clip: float | None, weight_decay: float = 0.01) -> Step:
    return Step(
        flow, copy.deepcopy(flow).requires_grad_(False), objective, weight_decay=weight_decay, grad_clip=grad_clip
    )


# ---------------------------------------------------------------- Adam on one vector
class Odd(nn.Module):
    """Parameters of several shapes, one of them frozen, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)

        def made(*size: int, frozen: bool = False) -> nn.Parameter:
            return nn.Parameter(torch.randn(size, generator=draws, dtype=torch.float64), requires_grad=not frozen)

        self.a, self.b, self.frozen, self.c = made(3, 4), made(), made(2, frozen=True), made(5)
        self.register_buffer("other", torch.zeros(2))


def test_a_flat_vector_is_the_parameters_themselves():
    module = Odd()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    flat = Flat(trainable(module))
    assert flat.vector.dtype == torch.float64
    assert torch.equal(flat.vector, torch.cat([before[name].flatten() for name in ("a", "b", "c")]))
    assert [name for name, _ in flat.named(flat.vector)] == ["a", "b", "c"]
    assert flat.parameters == [module.a, module.b, module.c]
    with torch.no_grad():
        flat.vector.copy_(torch.arange(18.0))
        assert torch.equal(module.a, torch.arange(12.0).double().view(3, 4)) and float(module.b) == 12
        module.c[4] = -1.0
    assert float(flat.vector[17]) == -1
    assert torch.equal(module.frozen, before["frozen"])
    assert all(
        part.data_ptr() == p.data_ptr() for (_, part), p in zip(flat.named(flat.vector), flat.parameters, strict=True)
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_torch_s(weight_decay):
    """Over 20 steps with gradients over eight orders of magnitude and a rate that changes."""
    mine, other = Odd(), Odd()
    flat = Flat(trainable(mine))
    adam = Adam(flat, weight_decay)
    theirs = list(trainable(other).values())
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = kind(theirs, lr=1.0, weight_decay=weight_decay)
    draws = torch.Generator().manual_seed(1)
    for step in range(20):
        lr = 0.05 / (1 + step)
        gradient = torch.randn(18, generator=draws, dtype=torch.float64) * 10 ** torch.linspace(-6, 2, 18).double()
        for parameter, (_, part) in zip(theirs, flat.named(gradient), strict=True):
            parameter.grad = part.clone()
        reference.param_groups[0]["lr"] = lr
        reference.step()
        Adam.update(flat.vector, adam.first, adam.second, gradient, adam.rates(step, lr))
        torch.testing.assert_close(flat.vector, torch.cat([p.detach().flatten() for p in theirs]), rtol=0, atol=1e-12)
    kept = adam.tensors(20)
    for number, parameter in enumerate(theirs):
        for name, value in reference.state[parameter].items():
            torch.testing.assert_close(kept[f"{number}.{name}"].double(), value.double(), rtol=1e-12, atol=0)


def test_a_clipped_step_is_torch_s(data):
    """Norms below the bound and above it; Adam's memory tells them apart, though its first step does not."""
    mine, other = (flow_over(data.train) for _ in range(2))
    step = step_of(mine, objective_of(mine, data), CLIP, weight_decay=0.0)
    theirs = list(trainable(other).values())
    reference, batches, norms = torch.optim.Adam(theirs, lr=1e-2), batches_of(data), []
    for number in range(12):
        reference.zero_grad()
        objective_of(other, data).loss(other, batches(number)).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs, CLIP)))
        reference.step()
        gradient = step.gradient(batches(number))
        assert float(gradient.norm) == pytest.approx(norms[-1], rel=1e-4), "the one before it is clipped"
        step.apply(gradient, step.rates(number, 1e-2, 0.9))
    assert min(norms) < CLIP < max(norms)
    expected = torch.cat([parameter.detach().flatten() for parameter in theirs])
    torch.testing.assert_close(step.state().weights, expected, rtol=1e-4, atol=1e-5)


def test_the_memory_of_adam_survives_a_file():
    flats = [Flat(trainable(Odd())) for _ in range(2)]
    first, second = (Adam(flat, 0.0) for flat in flats)
    first.first.copy_(torch.arange(18))
    first.second.copy_(torch.arange(18) ** 2)
    kept = {name: value.clone() for name, value in first.tensors(7).items()}
    assert set(kept) == {f"{i}.{name}" for i in range(3) for name in ("exp_avg", "exp_avg_sq", "step")}
    assert kept["0.exp_avg"].shape == (3, 4) and float(kept["2.step"]) == 7
    first_before = second.first
    second.restore(kept)
    assert torch.equal(second.first, first.first) and torch.equal(second.second, first.second)
    assert second.first is first_before, "the compiled steps hold it"
    with pytest.raises(UserError):
        second.restore(kept | {"1.exp_avg": torch.zeros(1)})


# ---------------------------------------------------------------- batches in blocks
def same(one: Inputs, other: Inputs) -> bool:
    pairs = zip(one, other, strict=True)
    return all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def batches_of(data: TrainingData, own: Ends | None = None, rows: int = ROWS) -> Batches:
    flow = flow_over(data.train)
    return Batches(flow, objective_of(flow, data, own), data, rows, seed=3)


def coupled() -> Ends:
    return Ends(StandardNormal((2,)).float(), OT(64))


@pytest.mark.parametrize("own", [ends, coupled], ids=["independent", "ot"])
def test_a_block_s_parts_are_its_steps(own, data):
    batches = batches_of(data, own())
    assert batches.steps == BLOCK_STEPS
    parts = batches.block(1).split(ROWS)
    assert len(parts) == BLOCK_STEPS
    assert all(same(part, batches(BLOCK_STEPS + i)) for i, part in enumerate(parts))
    assert not same(parts[0], parts[1]) and not same(parts[0], batches(0))


@pytest.mark.parametrize("own", [ends, coupled], ids=["independent", "ot"])
def test_a_step_s_inputs_do_not_depend_on_which_was_asked_for_first(own, data):
    expected = {
        step: inputs for batches in [batches_of(data, own())] for step in range(45) for inputs in [batches(step)]
    }
    other = batches_of(data, own())
    for step in (44, 3, 21, 20, 19, 44, 0):
        assert same(other(step), expected[step])


def test_a_group_is_its_steps_one_behind_the_other(data):
    batches, single = batches_of(data), batches_of(data)
    for first in (0, 5, 15, 20):
        for i, part in enumerate(batches(first, GROUP).split(ROWS)):
            assert same(part, single(first + i))
    assert same(batches(20, BLOCK_STEPS), single.block(1))


def test_large_batches_are_drawn_one_at_a_time(data):
    rows = BLOCK_NUMBERS // 2
    assert [batches_of(data, rows=n).steps for n in (rows, rows + 1)] == [BLOCK_STEPS, 1]
    large = batches_of(data, rows=rows + 1)
    assert len(large(3).x) == rows + 1 and same(large(3), large.block(3))


def test_groups_of_a_minibatch_never_cross_batches(data):
    """minibatch=64 is larger than the batches of 32: each is coupled as if it were alone, by the same draws in turn."""
    own, flow = coupled(), flow_over(data.train)
    objective = objective_of(flow, data, own)
    x_1 = data.train[: 3 * ROWS]
    found = objective.draw(flow, x_1, None, torch.Generator().manual_seed(5), batch_size=ROWS)
    draws = torch.Generator().manual_seed(5)
    noise = own.base.sample(3 * ROWS, draws)
    alone = [own.coupling(noise[part], x_1[part], None, draws) for part in torch.arange(3 * ROWS).split(ROWS)]
    times = stratified(ROWS, draws, 3)
    assert found.x_0 is not None and found.u is not None
    assert torch.equal(found.x_0, torch.cat([pairs.x_0 for pairs in alone]))
    assert torch.equal(found.x_1, torch.cat([pairs.x_1 for pairs in alone]))
    torch.testing.assert_close(found.u, times)
    together = own.coupling(noise, x_1, None, draws)
    assert not torch.equal(found.x_0, together.x_0), "else this would say nothing"
    for rows in torch.arange(3 * ROWS).split(ROWS):
        for mine, given in ((found.x_0, noise), (found.x_1, x_1)):
            assert sorted(mine[rows].tolist()) == sorted(given[rows].tolist())


def test_times_are_stratified_in_every_batch(data):
    seen: list[Tensor] = []

    class Watching(FlowMatching):
        def inputs(self, flow: Flow, example: Any) -> Inputs:
            seen.append(example.u)
            return super().inputs(flow, example)

    flow, objective = flow_over(data.train), Watching("unit")
    objective.prepare(flow, data, ends())
    Batches(flow, objective, data, ROWS, seed=0).block(0)
    (u,) = seen
    parts = (u.view(BLOCK_STEPS, ROWS) * ROWS).floor()
    assert torch.equal(parts, torch.arange(float(ROWS)).expand(BLOCK_STEPS, ROWS))
    assert len(set(u.tolist())) > 0.99 * len(u), "each batch has times of its own"


# ---------------------------------------------------------------- which trainings are compiled
@pytest.fixture(params=["no compiler", "another CXX"])
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler."""
    if request.param == "another CXX":
        monkeypatch.setenv("CXX", "/nonexistent")
    else:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(shutil, "which", lambda name: None)


LONG = {"steps": 10**7, "batch_size": ROWS}


@pytest.mark.usefixtures("bare")
def test_without_a_compiler_auto_trains_plain_and_true_is_refused(data):
    assert missing(CPU) is not None and missing(torch.device("cuda")) is None
    flow = flow_over(data.train)
    assert not trainer(compile="auto", **LONG).choose_compiled(flow, FlowMatching("unit"))
    trainer(compile="auto").require_compilable(CPU, FlowMatching("unit"))
    trainer(compile=False).require_compilable(CPU, FlowMatching("unit"))
    with pytest.raises(UserError, match="trainer.compile=true"):
        trainer(compile=True).require_compilable(CPU, FlowMatching("unit"))
    with pytest.raises(NotCompiled):
        compiled(lambda x: x + 1, [torch.ones(2)])


@pytest.mark.usefixtures("bare")
def test_what_began_compiled_goes_on_where_there_is_no_compiler(data):
    plain, found = Observer(), Observer()
    for observer, progress in ((plain, Progress()), (found, Progress(compiled=1))):
        run(flow_over(data.train), data, trainer(compile="auto", steps=10), observer, progress=progress)
    assert found.records == plain.records and plain.heard == []
    assert any("goes on plain" in text for text in found.heard)


def test_several_processes_do_not_compile(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    trainer(compile="auto").require_compilable(CPU, FlowMatching("unit"))
    with pytest.raises(UserError, match="several processes"):
        trainer(compile=True).require_compilable(CPU, FlowMatching("unit"))


def test_a_compiled_training_goes_on_plain_in_several_processes(data, monkeypatch):
    """A graph has no place for the other processes' gradients."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = Observer()
    with pytest.raises(JobError, match="several processes"):
        run(flow_over(data.train), data, trainer(steps=10, compile=True), found, progress=Progress(compiled=1))
    run(flow_over(data.train), data, trainer(steps=10), found, progress=Progress(compiled=1))
    assert any("several processes" in text for text in found.heard)


def test_what_the_adjoint_differentiates_is_never_compiled(data, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    solver = FixedStep("rk4", 2, "path", 100)
    by = {name: MaximumLikelihood(solver, Exact(), name, 0.0, 0.0) for name in ("direct", "adjoint")}
    long = trainer(compile="auto", steps=10**6)
    assert [long.choose_compiled(flow_over(data.train), objective) for objective in by.values()] == [True, False]
    trainer(compile=True).require_compilable(CPU, by["direct"])
    with pytest.raises(UserError, match="adjoint"):
        trainer(compile=True).require_compilable(CPU, by["adjoint"])


def test_a_training_that_is_stopped_soon_is_not_compiled(data, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    flow, objective = flow_over(data.train), FlowMatching("unit")
    found = [
        trainer(compile="auto", steps=10**6, max_time=seconds).choose_compiled(flow, objective)
        for seconds in (1.0, 1e4, None)
    ]
    assert found == [False, True, True]


def test_whether_a_training_is_compiled_follows_from_its_settings(data, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    small, large = flow_over(data.train), flow_over(data.train, width=256)

    def chosen(flow: Flow, **settings: Any) -> list[bool]:
        objective, changes = FlowMatching("unit"), {"compile": "auto", **settings}
        return [trainer(steps=10**n, **changes).choose_compiled(flow, objective) for n in range(1, 8)]

    for flow in (small, large):
        found = chosen(flow)
        assert found == sorted(found) == chosen(flow)
        assert (found[0], found[-1]) == (False, True)
    assert sum(chosen(large, batch_size=4096)) > sum(chosen(small)), "larger work pays earlier"
    assert set(chosen(small, compile=True)) == {True} and set(chosen(small, compile=False)) == {False}


# ---------------------------------------------------------------- what cannot be compiled
def test_a_function_that_looks_at_values_is_not_compiled():
    with pytest.raises(NotCompiled):
        compiled(lambda x: x * 2 if x.sum() > 0 else x, [torch.ones(3)])
    with pytest.raises(JobError, match="mine"):
        compiled(raising, [torch.ones(3)])


def raising(x: Tensor) -> Tensor:
    raise JobError("mine")


class Looking(FlowMatching):
    """The same loss, but it looks at it."""

    def loss(self, flow: Flow, inputs: Inputs) -> Tensor:
        loss = super().loss(flow, inputs)
        return loss if loss.sum() > 0 else -loss


def run(
    flow: Flow, data: TrainingData, made: Any, observer: Observer, objective: Objective | None = None, **resume: Any
) -> tuple[Flow, str]:
    objective = FlowMatching("unit") if objective is None else objective
    return made.fit(flow, objective, ends(), data, seed=3, observer=observer, **resume)


def test_with_auto_a_training_that_does_not_compile_goes_on_and_says_so(data):
    plain, found = Observer(), Observer()
    run(flow_over(data.train), data, trainer(steps=10), plain)
    settings: dict[str, Any] = {"objective": Looking("unit"), "progress": Progress(compiled=1)}
    _, ending = run(flow_over(data.train), data, trainer(steps=10, compile="auto"), found, **settings)
    assert ending == "done" and found.records == plain.records
    assert any("goes on plain" in text and "\n" not in text for text in found.heard)


def test_what_was_asked_for_and_does_not_compile_ends_the_training(data):
    settings: dict[str, Any] = {"objective": Looking("unit"), "progress": Progress(compiled=1)}
    observer = Observer()
    with pytest.raises(JobError, match="trainer.compile=true") as error:
        run(flow_over(data.train), data, trainer(steps=10, compile=True), observer, **settings)
    assert "\n" not in str(error.value) and observer.saved == []


# ---------------------------------------------------------------- the compiled steps
Maker = Callable[[Step, Inputs, int], CompiledSteps]
needs_compiler = pytest.mark.skipif(missing(CPU) is not None, reason="there is no compiler")


@pytest.fixture(scope="module")
def maker() -> Maker:
    """Compiles once a number of steps; that is given the state of other steps of the same flow, settings and data."""
    data = TrainingData(corners(), corners()[:50])
    flow = flow_over(data.train)
    step = step_of(flow, objective_of(flow, data), CLIP)
    kept = {GROUP: step.compile(batches_of(data)(0, GROUP), GROUP)}
    compile_step = Step.compile  # tests put this maker in its place

    def make(step: Step, inputs: Inputs, steps: int) -> CompiledSteps:
        assert len(inputs.x) == steps * ROWS
        if steps not in kept:
            kept[steps] = compile_step(step, inputs, steps)
        group = copy.copy(kept[steps])
        group._state = step.state()
        return group

    return make


def compare(
    plain: Step, group_step: Step, group: CompiledSteps, batches: Batches, steps: int, tolerance: float
) -> None:
    """Take as many steps in both forms; their losses, norms and states agree."""
    assert all(torch.equal(a, b) for a, b in zip(plain.state(), group_step.state(), strict=True))
    before, norms_seen = plain.state().weights.clone(), []
    for first in range(0, steps, group.steps):
        rates = [plain.rates(first + i, 1e-2, 0.5 if first + i else 0.0) for i in range(group.steps)]
        losses, norms = group(batches(first, group.steps), rates)
        for i in range(group.steps):
            gradient = plain.gradient(batches(first + i))
            plain.apply(gradient, rates[i])
            assert losses[i] == pytest.approx(float(gradient.loss), rel=tolerance, abs=tolerance)
            assert norms[i] == pytest.approx(float(gradient.norm), rel=tolerance, abs=tolerance)
            norms_seen.append(norms[i])
    for mine, other in zip(group_step.state(), plain.state(), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert float((plain.state().weights - before).abs().max()) > 1e-2, "else this would say nothing"
    if group_step._grad_clip is not None:
        assert min(norms_seen) < group_step._grad_clip < max(norms_seen)


@needs_compiler
def test_compiled_steps_are_the_plain_ones(maker, data):
    """With clipping and decoupled weight decay, 20 steps; float32 rounds to 1e-7."""
    flows = [flow_over(data.train) for _ in range(2)]
    objective = objective_of(flows[0], data)
    plain, other = (step_of(flow, objective, CLIP) for flow in flows)
    batches = Batches(flows[0], objective, data, ROWS, seed=3)
    compare(plain, other, maker(other, batches(0, GROUP), GROUP), batches, 20, 1e-4)
    for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.fixture
def compiling(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings take the steps that were compiled already."""
    monkeypatch.setattr(Step, "compile", lambda step, inputs, steps: maker(step, inputs, steps))


SETTINGS: dict[str, Any] = {
    "grad_clip": CLIP,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "compile": True,
    "batch_size": ROWS,
}


def begun() -> Progress:
    return Progress(threads=1, compiled=1)


@needs_compiler
@pytest.mark.usefixtures("compiling")
def test_a_compiled_training_is_the_plain_one_to_rounding(data):
    rhythm = {"log_every": 10, "validate_every": 20, "checkpoint_every": 20}
    observers, averages = [Observer(), Observer()], []
    for observer, progress in zip(observers, (begun(), Progress(threads=1)), strict=True):
        average, ending = run(flow_over(data.train), data, trainer(**SETTINGS, **rhythm), observer, progress=progress)
        averages.append(average)
        assert ending == "done"
    found, plain = (observer.records for observer in observers)
    assert [sorted(record) for record in found] == [sorted(record) for record in plain]
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for a, b in zip(*(average.parameters() for average in averages), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert observers[0].asked < observers[1].asked / 4, "in groups, mostly"


@needs_compiler
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(
    "rhythm",
    [pytest.param((7, 10, 6), marks=pytest.mark.slow), (15, 40, 40), (10, 20, 20)],
    ids=["out of step", "across blocks", "in step"],
)
def test_a_compiled_training_resumes_to_the_bit_from_any_stop(rhythm, data):
    """7 and 6 are no multiples of the five steps of a group, so that every graph is of one step."""
    grouped = not any(every % GROUP for every in rhythm)
    made = trainer(**SETTINGS, **dict(zip(("log_every", "validate_every", "checkpoint_every"), rhythm, strict=True)))
    whole, undisturbed = Observer(), flow_over(data.train)
    averaged, _ = run(undisturbed, data, made, whole, progress=begun())
    assert (8 <= whole.asked < 20) if grouped else whole.asked >= 40
    stops = set()
    for asked in range(0, whole.asked, 3):
        observer, flow = Observer(stop_at=asked), flow_over(data.train)
        _, ending = run(flow, data, made, observer, progress=begun())
        assert ending == "stopped"
        state, model, average, optimizer = observer.saved[-1]
        stops.add(state["step"])
        rest = Observer()
        resume = {"progress": Progress.restore(state), "average": average, "optimizer": optimizer}
        ended, ending = run(model, data, made, rest, **resume)
        assert ending == "done" and observer.records + rest.records == whole.records
        for a, b in ((undisturbed, model), (averaged, ended)):
            assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        last = [kept.saved[-1][3] for kept in (whole, rest)]
        assert last[0].keys() == last[1].keys()
        assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
    assert len(stops) >= 3 and grouped != any(step % GROUP for step in stops)


@needs_compiler
@pytest.mark.usefixtures("compiling")
def test_a_gradient_that_is_not_finite_names_its_own_step_of_a_group(data):
    """The first batch that holds the broken row is that of step 7, the third of the second group."""
    row = int(batches_of(data)._rows(7 * ROWS, 7 * ROWS + 1))
    broken = TrainingData(data.train.clone(), data.validation)
    broken.train[row] = math.inf
    every = {"log_every": 5, "validate_every": 5, "checkpoint_every": 5}
    found = []
    for progress in (Progress(threads=1), begun()):
        observer = Observer()
        with pytest.raises(JobError) as error:
            run(flow_over(data.train), broken, trainer(**SETTINGS, **every), observer, progress=progress)
        assert [state["step"] for state, *_ in observer.saved] == [5]
        _, model, average, _ = observer.saved[0]
        kept = itertools.chain(model.parameters(), average.parameters())
        assert all(bool(torch.isfinite(p).all()) for p in kept)
        found.append(str(error.value))
    assert found[0] == found[1] and found[1].startswith("step 7: ") and "checkpoint of step 5" in found[1]


# ---------------------------------------------------------------- other objectives and models, which compile too
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "objective=flow_matching trainer.grad_clip=null",
        "objective=flow_matching coupling=ot",
        "objective=flow_matching model.augment_dim=1",
        "objective=noise objective.weighting=native",
        "objective=score objective.weighting=native path=vp",
        "objective=marginal objective.over=train",
        "model=nice",
        "model=maf",
    ],
)
def test_other_objectives_compile_to_what_they_are(words):
    own = (
        ["model.width=16", "model.depth=1", "model.transforms=2"]
        if "model=" in words
        else ["network.width=16", "network.depth=1"]
    )
    made = config(*words.split(), *own, *SMALL, "dtype=float64")
    maths, dataset = build.mathematics(made), build.source(made).load()
    objective = build.training(made, maths).objective
    flow = build.new_flow(made, dataset)
    assert objective is not None
    train, validation = flow.to_model(dataset.train), flow.to_model(dataset.validation)
    data = TrainingData(train, validation)
    own_ends = None
    if maths.coupling is not None:
        base = build.base(made, maths.model.state_shape(dataset.event_shape), dataset.transform)
        own_ends = Ends(base, maths.coupling)
    objective.prepare(flow, data, own_ends)
    other = copy.deepcopy(flow)
    plain, group = (step_of(each, objective, None) for each in (flow, other))
    batches = Batches(flow, objective, data, ROWS, seed=3)
    compare(plain, group, group.compile(batches(0, GROUP), GROUP), batches, 20, 1e-9)
