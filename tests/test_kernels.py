"""The compiled perceptron and Adam beside PyTorch in double precision, on every instruction set; how they are built."""

import copy
import ctypes
import math
import platform
import signal
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_engine import Observer, flow_over, trainer
from test_training import corners, run
from torch import Tensor, nn
from torch.autograd import forward_ad

from flowcli import threads
from flowcli.checkpoints import complete
from flowcli.engine import Progress
from flowcli.errors import JobError, UserError
from flowcli.kernels import adam, library, perceptron
from flowcli.kernels.library import NotBuilt
from flowcli.kernels.perceptron import Layers, Regression
from flowcli.networks.mlp import MLP
from flowcli.training.adam import BETA_1, BETA_2, EPSILON, Adam, State

SETS = ("native", "x86-64-v3", "x86-64")
"""What -march names: vectors of 64 bytes where the machine has them, of 32, of 16."""
SHAPES = {  # features, waves, width, hidden layers, outputs
    "plain": (2, 1, 64, 2, 2),
    "smallest": (1, 1, 1, 0, 1),
    "odd": (5, 3, 33, 2, 7),
    "two panels": (7, 8, 100, 1, 4),
    "wide": (130, 8, 128, 3, 20),
}
ROWS = 83
"""Two tiles and a part of a block."""


@pytest.fixture(params=SETS)
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels for this instruction set."""
    if request.param != "native":
        if platform.machine() != "x86_64":
            pytest.skip("instruction sets of another processor")
        given = Path("/proc/cpuinfo")
        if request.param == "x86-64-v3" and given.is_file() and " avx2 " not in given.read_text():
            pytest.skip("this processor has no such instructions")
    monkeypatch.setattr(library, "PROCESSOR", (f"-march={request.param}",))
    with fresh():
        yield


class fresh:
    """In here the library is looked for anew, and behind it again."""

    def __enter__(self) -> None:
        self.clear()

    def __exit__(self, *_: object) -> None:
        self.clear()

    @staticmethod
    def clear() -> None:
        for each in (library._outcome, perceptron._functions, perceptron._step, adam._function):
            each.cache_clear()


def layers_of(name: str, residual: bool) -> Layers:
    features, waves, width, hidden, outputs = SHAPES[name]
    draws = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws) / math.sqrt(shape[-1])

    inner = [drawn(*shape) for _ in range(hidden) for shape in ((width, width), (width,))]
    weights = [drawn(width, features), drawn(width), drawn(width, waves), *inner, drawn(outputs, width), drawn(outputs)]
    return Layers([weight.requires_grad_() for weight in weights], residual=residual)


def reference(layers: Layers, weights: list[Tensor], x: Tensor, waves: Tensor) -> Tensor:
    of_x, bias, of_waves, *inner, last, last_bias = weights
    z = x @ of_x.T + bias + waves @ of_waves.T
    for matrix, bias in zip(inner[::2], inner[1::2], strict=True):
        step = nn.functional.silu(z) @ matrix.T + bias
        z = z + step if layers.residual else step
    return nn.functional.silu(z) @ last.T + last_bias


def both(layers: Layers, x: Tensor, waves: Tensor, directions: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Outputs, products and all gradients of a random sum of them: of the kernel, and by autograd in double."""
    given = [x, waves, *(() if directions is None else (directions,))]
    given = [value.requires_grad_() for value in given]
    double = [value.detach().double().requires_grad_() for value in (*given, *layers.weights)]
    weights = double[len(given) :]
    found = [value for value in layers(x, waves, directions) if value is not None]
    wanted = [reference(layers, weights, double[0], double[1])]
    if directions is not None:
        # autograd in the other direction of the outputs' sum with a dummy gives forward products
        dummy = torch.zeros_like(wanted[0], requires_grad=True)
        (pulled,) = torch.autograd.grad(wanted[0], double[0], dummy, create_graph=True)
        products = [
            torch.autograd.grad(pulled, dummy, direction.expand_as(double[0]), create_graph=True)[0]
            for direction in double[2]
        ]
        wanted.append(torch.stack(products))
    draws = torch.Generator().manual_seed(9)
    mixed = [torch.randn(value.shape, generator=draws) for value in found]
    sums = [
        torch.stack([(value * mix.to(value)).sum() for value, mix in zip(values, mixed, strict=True)]).sum()
        for values in (found, wanted)
    ]
    mine = torch.autograd.grad(sums[0], [*given, *layers.weights])
    its = torch.autograd.grad(sums[1], double)
    return [*zip(found, wanted, strict=True), *zip(mine, its, strict=True)]


def off(pair: tuple[Tensor, Tensor]) -> float:
    mine, its = (value.detach().double() for value in pair)
    assert mine.shape == its.shape
    return float((mine - its).abs().max() / its.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("tangents", [0, 1, 3])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "stacked"])
@pytest.mark.parametrize("name", SHAPES)
def test_values_products_and_gradients_are_pytorch_s(name, residual, tangents, built):
    layers, draws = layers_of(name, residual), torch.Generator().manual_seed(1)
    features, waves = SHAPES[name][:2]
    directions = torch.randn(tangents, ROWS, features, generator=draws) if tangents else None
    x, times = torch.randn(ROWS, features, generator=draws), torch.rand(ROWS, waves, generator=draws)
    assert max(map(off, both(layers, x, times, directions))) < 5e-6


@pytest.mark.parametrize("name", ["plain", "two panels"])
def test_what_all_rows_share_is_given_once(name):
    layers, draws = layers_of(name, True), torch.Generator().manual_seed(1)
    features, waves = SHAPES[name][:2]
    x, times = torch.randn(ROWS, features, generator=draws), torch.rand(1, waves, generator=draws)
    assert max(map(off, both(layers, x, times, torch.randn(2, 1, features, generator=draws)))) < 5e-6


def test_a_row_s_result_depends_on_nothing_else(monkeypatch, built):
    """On no other row, on no other direction, and on no number of threads; bit for bit."""
    monkeypatch.setattr(perceptron, "SHARED", 1.0)
    layers, draws = layers_of("plain", False), torch.Generator().manual_seed(2)
    x, times = torch.randn(500, 2, generator=draws), torch.rand(500, 1, generator=draws)
    directions = torch.randn(2, 500, 2, generator=draws)
    with torch.no_grad():
        whole, products = layers(x, times, directions)
        assert products is not None
        for count in (1, 2, 3):
            with threads.using(count):
                again, pushed = layers(x, times, directions)
                assert pushed is not None
                assert torch.equal(again, whole) and torch.equal(pushed, products)
        for rows in (slice(0, 1), slice(7, 8), slice(3, 300), slice(499, 500)):
            alone, pushed = layers(x[rows], times[rows], directions[1:, rows])
            assert pushed is not None
            assert torch.equal(alone, whole[rows]) and torch.equal(pushed, products[1:, rows])
            assert torch.equal(layers(x[rows], times[rows])[0], whole[rows])


def test_gradients_of_threads_are_summed(monkeypatch):
    monkeypatch.setattr(perceptron, "SHARED", 1.0)
    layers, draws = layers_of("odd", True), torch.Generator().manual_seed(3)
    x, times = torch.randn(ROWS, 5, generator=draws), torch.rand(ROWS, 3, generator=draws)
    for count in (2, 5, 40):  # more than there are blocks of rows
        with threads.using(count):
            assert max(map(off, both(layers, x, times, torch.randn(2, ROWS, 5, generator=draws)))) < 5e-6
    with threads.using(3):
        first, second = ([value.clone() for value, _ in both(layers, x, times, None)] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("z", [0.0, -0.0, 1e-30, -20.0, 20.0, -86.0, 86.0, -88.0, 88.0, -1e4, 1e4, -1e36, 1e36])
def test_activations_far_out(z, built):
    """One unit of width 1: y = silu(x), with its slope."""
    one, zero = torch.ones(1, 1), torch.zeros(1)
    layers = Layers([one, zero, torch.zeros(1, 1), one, zero], residual=False)
    x = torch.full((1, 1), z)
    y, slope = layers(x, torch.zeros(1, 1), torch.ones(1, 1, 1))
    double = x.double().requires_grad_()
    wanted = nn.functional.silu(double)
    (its,) = torch.autograd.grad(wanted.sum(), double)
    assert slope is not None
    # a float32 has no e^-88 but a coarse one: what is lost there is below 1e-30
    torch.testing.assert_close(y.double(), wanted.detach(), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(slope[0].double(), its, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_out_and_stays_in_its_row(bad, built):
    layers = layers_of("plain", True)
    x = torch.zeros(20, 2)
    x[3, 1] = bad
    with torch.no_grad():
        finite = torch.isfinite(layers(x, torch.zeros(1, 1))[0]).all(1)
    assert finite.tolist() == [row != 3 for row in range(20)]


def test_gradients_are_given_once():
    layers, x = layers_of("plain", False), torch.zeros(4, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"set network\.kernel = False"):
        torch.autograd.grad(layers(x, torch.zeros(1, 1))[0].sum(), x, create_graph=True)


def test_the_parts_of_a_gradient_are_those_of_its_values(monkeypatch):
    """Though the number of threads has changed meanwhile."""
    monkeypatch.setattr(perceptron, "SHARED", 1.0)
    layers, x = layers_of("plain", False), torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(8))
    found = []
    for count in (4, 1):
        with threads.using(4):
            value = layers(x, torch.zeros(1, 1), torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(8)))
        with threads.using(count):
            assert value[1] is not None
            found.append(torch.autograd.grad(value[0].sum() + value[1].square().sum(), layers.weights))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_was_kept_goes_with_the_gradient():
    layers = layers_of("plain", False)
    value = layers(torch.zeros(4, 2), torch.zeros(1, 1))[0].sum()
    torch.autograd.grad(value, layers.weights)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(value, layers.weights)


def test_a_signal_leaves_what_a_thread_still_writes_alone():
    class Held:
        pass

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def work(i: int, first: int, last: int) -> int:
        time.sleep(0.6 if i else 0.0)
        ended.append(i)
        return 0

    ended: list[int] = []
    held = Held()
    seen, earlier = weakref.ref(held), signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Stop):
            perceptron._in_parts(20, 2, work, alive=held)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    del held
    alive = seen() is not None
    assert alive or 1 in ended
    while 1 not in ended:
        time.sleep(0.01)


# ---------------------------------------------------------------- training
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_regression_is_its_loss_and_gradient(weighted, count, monkeypatch, built):
    monkeypatch.setattr(perceptron, "SHARED", 1.0)
    layers, draws = layers_of("two panels", True), torch.Generator().manual_seed(4)
    x, waves, target = (torch.randn(ROWS, size, generator=draws) for size in (7, 8, 4))
    weight = torch.rand(ROWS, generator=draws) if weighted else None
    with threads.using(count):
        regression = Regression(layers, ROWS)
        loss = regression(x, waves, target, weight, 0.25)
    double = [value.detach().double().requires_grad_() for value in layers.weights]
    squares = (reference(layers, double, x.double(), waves.double()) - target).square().sum(1)
    wanted = 0.25 * (squares if weight is None else weight * squares).sum()
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(wanted, double)])
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert off((regression.gradient, gradient)) < 5e-6


def state(size: int) -> State:
    draws = torch.Generator().manual_seed(6)
    weights, first, second, average = torch.randn(4, size, generator=draws).unbind()
    return State(weights, first, second.square(), average)


@pytest.mark.parametrize("clip", [math.inf, 1.0])
@pytest.mark.parametrize("size", [1, 64, 1000])
def test_adam_is_its_arithmetic(size, clip, built):
    before, gradient = state(size), torch.randn(size, generator=torch.Generator().manual_seed(7))
    mine = State(*(value.clone() for value in before))
    rates = [0.999, 3e-3, 0.4, 0.9]
    norm = adam.step(mine, gradient, rates, (BETA_1, BETA_2, EPSILON, clip))
    its, double = State(*(value.double() for value in before)), gradient.double()
    assert norm == pytest.approx(float(double.norm()), rel=1e-6)
    double = double * min(1.0, clip / float(double.norm()))
    Adam.update(its.weights, its.first, its.second, double, rates[:3])
    its.average.lerp_(its.weights, 1 - rates[3])
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_touches_nothing(bad, built):
    for size in (3, 200):  # behind the whole vectors, and among them
        before = state(size)
        mine = State(*(value.clone() for value in before))
        gradient = torch.ones(size)
        gradient[-1 if size == 3 else 5] = bad
        norm = adam.step(mine, gradient, [1.0, 1e-3, 1.0, 0.9], (BETA_1, BETA_2, EPSILON, math.inf))
        assert not math.isfinite(norm)
        assert all(torch.equal(one, other) for one, other in zip(mine, before, strict=True))


@pytest.fixture
def data():
    from flowcli.dataset import TrainingData

    points = corners()
    return TrainingData(points[:250], points[250:])


@pytest.mark.parametrize("rhythm", [5, 3], ids=["groups", "single steps"])
def test_a_fused_training_is_the_plain_one_to_rounding(rhythm, data):
    every = {f"{name}_every": 2 * rhythm for name in ("log", "validate", "checkpoint")}
    settings = {"steps": 40, "grad_clip": 0.5, "ema_decay": 0.9, "optimizer": "adamw", "weight_decay": 0.01, **every}
    observers, averages = [Observer(), Observer()], []
    for observer, kernel in zip(observers, (True, False), strict=True):
        average, ending = run(flow_over(data.train, kernel=kernel), data, trainer(**settings), observer)
        assert ending == "done"
        averages.append(torch.cat([value.flatten() for value in average.state_dict().values()]))
    fused, plain = observers
    assert [record.keys() for record in fused.records] == [record.keys() for record in plain.records]
    for one, other in zip(fused.records, plain.records, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    torch.testing.assert_close(*averages, rtol=1e-3, atol=1e-4)
    assert fused.records != plain.records, "both were the same code"


@pytest.mark.parametrize("rhythm", [5, 3], ids=["groups", "single steps"])
def test_a_fused_training_resumes_to_the_bit_from_any_stop(rhythm, data):
    every = {f"{name}_every": rhythm for name in ("log", "validate", "checkpoint")}
    made = trainer(steps=12, **every)
    whole, undisturbed = Observer(), flow_over(data.train, kernel=True)
    averaged, _ = run(undisturbed, data, made, whole)
    assert whole.asked == (3 if rhythm == 5 else 12)
    for asked in range(whole.asked):
        observer, flow = Observer(stop_at=asked), flow_over(data.train, kernel=True)
        _, ending = run(flow, data, made, observer)
        assert ending == "stopped"
        state, model, average, optimizer = observer.saved[-1]
        rest = Observer()
        resume = {"progress": Progress.restore(state), "average": average, "optimizer": optimizer}
        ended, ending = run(model, data, made, rest, **resume)
        assert ending == "done" and observer.records + rest.records == whole.records
        for one, other in ((undisturbed, model), (averaged, ended)):
            assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_fused_step_that_is_not_finite_is_named_and_touches_no_weight(data):
    points = data.train.clone()
    points[:] = 1e30
    flow = flow_over(data.train, kernel=True)
    before = [value.clone() for value in flow.parameters()]
    with pytest.raises(JobError, match="step 0: loss inf"):
        run(flow, type(data)(points, data.validation), trainer(steps=10), Observer())
    assert all(torch.equal(one, other) for one, other in zip(before, flow.parameters(), strict=True))


# ---------------------------------------------------------------- which networks have it
def made(kernel: bool | str, width: int = 16) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP((2,), width, 1, 3, 1.0, 2, True, kernel)
        nn.init.normal_(network.last.weight)
    return network


def test_auto_is_for_narrow_layers():
    assert made("auto").kernel and made("auto", perceptron.WIDEST).kernel
    assert not made("auto", perceptron.WIDEST + 1).kernel and made(True, perceptron.WIDEST + 1).kernel
    assert not made(False).kernel


@pytest.mark.parametrize("kernel", ["yes", 1, None])
def test_kernel_is_auto_true_or_false(kernel):
    with pytest.raises(UserError, match="kernel must be auto, true or false"):
        made(kernel)


def test_other_tensors_are_pytorch_s():
    network, plain = made(True), made(False)
    x, t, directions = torch.randn(6, 2), torch.rand(6), torch.randn(2, 6, 2)
    double, other = copy.deepcopy(network).double(), copy.deepcopy(plain).double()
    assert torch.equal(double(x.double(), t.double(), None), other(x.double(), t.double(), None))
    assert network.to("meta")(x.to("meta"), t.to("meta"), None).shape == (6, 2)
    network = made(True)
    mapped = torch.func.vmap(lambda row: network(row[None], torch.tensor(0.5), None)[0])(x)
    torch.testing.assert_close(mapped, plain(x, torch.tensor(0.5), None))
    (single, products), (its, pushed) = (each.along(x, t, None, directions) for each in (network, plain))
    torch.testing.assert_close(single, its)
    torch.testing.assert_close(products, pushed)


def test_other_weights_are_pytorch_s(data):
    for change in (lambda network: network.double(), lambda network: network.to("meta")):
        assert change(made(True)).layers() is None
    flow = flow_over(data.train, kernel=True).cast(torch.float64, torch.device("cpu"))
    exact = type(data)(data.train.double(), data.validation.double())
    observer = Observer()
    run(flow, exact, trainer(steps=10), observer)
    assert all(math.isfinite(value) for record in observer.records for value in record.values())
    network, plain = made(True), made(False)
    for each in (network, plain):
        (layer,) = each.hidden
        layer.weight = nn.Parameter(torch.as_tensor(layer.weight).detach().t().contiguous().t())
    x, t = torch.randn(5, 2), torch.tensor(0.5)
    torch.testing.assert_close(network(x, t, None), plain(x, t, None))


@pytest.mark.parametrize(
    ("x", "t", "directions"),
    [
        (torch.zeros(6, 2), torch.zeros((), dtype=torch.float64), None),
        (torch.zeros(6, 2), torch.zeros(2), None),
        (torch.zeros(6, 3), torch.zeros(6), None),
        (torch.zeros(6, 2), torch.zeros(6), torch.zeros(2, 3, 2)),
        (torch.zeros(6, 2), torch.zeros(6), torch.zeros(2, 6, 2).double()),
    ],
    ids=["a double time", "two times", "another event", "directions of other rows", "double directions"],
)
def test_what_does_not_fit_is_refused_as_by_pytorch(x, t, directions):
    messages = []
    for network in (made(True), made(False)):
        with pytest.raises(RuntimeError) as error:
            network(x, t, None) if directions is None else network.along(x, t, None, directions)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_no_direction_gives_no_product():
    network = made(True)
    assert network.along(torch.zeros(6, 2), torch.zeros(6), None, torch.zeros(0, 6, 2))[1].shape == (0, 6, 2)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, on the way there
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_forward_mode_is_pytorch_s(mode):
    x, tangent, t = torch.randn(5, 2), torch.randn(5, 2), torch.tensor(0.5)
    slopes = []
    for network in (made(True), made(False)):
        with mode(), forward_ad.dual_level():
            slopes.append(forward_ad.unpack_dual(network(forward_ad.make_dual(x, tangent), t, None)).tangent)
    assert slopes[0] is not None
    torch.testing.assert_close(*slopes)


# ---------------------------------------------------------------- building it
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the library's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fresh():
        yield tmp_path / "flowcli"


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that takes no time, in the place of the kernels."""
    source = tmp_path / "quick.cpp"
    source.write_text('extern "C" int answer(void) { return 42; }')
    monkeypatch.setattr(library, "SOURCES", (source,))
    return source


def answer(found: ctypes.CDLL) -> int:
    return found.answer()


def test_it_is_compiled_once(cache, quick, monkeypatch):
    assert answer(library.library()) == 42
    assert len(list(cache.iterdir())) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    library._outcome.cache_clear()
    monkeypatch.setattr(library, "_build", lambda *_: pytest.fail("compiled again"))
    assert answer(library.library()) == 42


def test_other_sources_are_another_library(cache, quick):
    assert answer(library.library()) == 42
    quick.write_text('extern "C" int answer(void) { return 43; }')
    library._outcome.cache_clear()
    assert answer(library.library()) == 43
    assert len(list(cache.iterdir())) == 2


def damaged(kept: Path) -> None:
    kept.write_bytes(b"no library")


def writable_by_others(kept: Path) -> None:
    kept.write_bytes(b"a stranger's")
    kept.chmod(0o777)


def a_link(kept: Path) -> None:
    kept.rename(kept.with_suffix(".elsewhere"))
    kept.symlink_to(kept.with_suffix(".elsewhere"))


@pytest.mark.parametrize("change", [damaged, writable_by_others, a_link])
def test_what_is_not_ours_is_made_anew(change: Callable[[Path], None], cache, quick):
    name = f"{library._key(library.compiler() or [])}.so"
    cache.mkdir(mode=0o700)
    (cache / name).write_bytes(b"")
    change(cache / name)
    assert answer(library.library()) == 42
    assert library._own(cache / name) and (cache / name).stat().st_size > 1000


def test_a_full_disk_keeps_no_library_and_does_no_harm(cache, quick, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.shutil, "copyfile", full)
    assert answer(library.library()) == 42
    assert not list(cache.iterdir())


def test_a_processor_that_the_compiler_does_not_know_is_left_out(cache, quick, monkeypatch):
    monkeypatch.setattr(library, "PROCESSOR", ("-march=abacus",))
    assert answer(library.library()) == 42


def test_the_compiler_may_have_arguments_and_blanks_in_its_path(cache, quick, monkeypatch, tmp_path):
    (program, *_) = library.compiler() or []
    spaced = tmp_path / "a compiler"
    spaced.symlink_to(program)
    for words in (f"{program} -DNDEBUG", str(spaced)):
        monkeypatch.setenv("CXX", words)
        library._outcome.cache_clear()
        assert answer(library.library()) == 42


def test_a_cache_that_others_write_into_is_left_alone(cache, quick):
    cache.mkdir()
    cache.chmod(0o777)
    assert answer(library.library()) == 42
    assert not list(cache.iterdir())


def test_without_a_cache_it_is_compiled_each_time(cache, quick):
    cache.write_text("a file in the way")
    assert answer(library.library()) == 42


def test_a_compiler_that_fails_is_quoted(cache, quick, monkeypatch):
    quick.write_text("int answer(void) { return nothing; }")
    reason = library.missing()
    assert reason is not None and "nothing" in reason and "\n" not in reason
    monkeypatch.setattr(library, "_build", lambda *_: pytest.fail("asked again"))
    assert not list(cache.iterdir())
    with pytest.raises(NotBuilt):
        library.library()


def test_without_a_compiler_pytorch_computes(cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.missing() == "there is no C++ compiler (no-such-compiler)"
    assert not made("auto").kernel and made("auto").no_kernel == library.missing() and made(False).no_kernel is None
    with pytest.raises(UserError, match=r"network.kernel=true: there is no C\+\+ compiler .*; say network.kernel=auto"):
        made(True)
    (opened,) = complete({"network": {"_target_": "flowcli.networks.mlp.MLP", "kernel": True}}).values()
    assert opened["kernel"] == "auto", "what insisted where it was trained opens here"
    x = torch.randn(3, 2)
    assert torch.equal(made("auto")(x, torch.tensor(0.2), None), made(False)(x, torch.tensor(0.2), None))
