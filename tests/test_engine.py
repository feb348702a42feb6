"""The training loop: what it learns, how it ends, and that a step is a function of its number."""

import copy
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch

from flowcli import threads
from flowcli.bases import StandardNormal
from flowcli.couplings import Independent
from flowcli.dataset import TrainingData
from flowcli.divergence import Exact
from flowcli.ends import Ends
from flowcli.engine import Progress, Trainer
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.fields import LearnedField
from flowcli.networks.mlp import MLP
from flowcli.objectives import FlowMatching, MaximumLikelihood
from flowcli.parametrizations import Moments, Preconditioned
from flowcli.paths import OT
from flowcli.randomness import generator
from flowcli.solvers import FixedStep
from flowcli.training.batches import Batches
from flowcli.training.validation import Validation
from flowcli.transforms import Affine

SETTINGS: dict[str, Any] = {
    "steps": 40,
    "batch_size": 32,
    "lr": 1e-2,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "warmup": 5,
    "schedule": "cosine",
    "grad_clip": None,
    "ema_decay": 0.99,
    "log_every": 7,
    "validate_every": 10,
    "checkpoint_every": 6,
    "max_time": None,
    "threads": 1,
    "workers": 0,
    "compile": False,
    "deterministic": False,
}


def trainer(**changes: Any) -> Trainer:
    return Trainer(**{**SETTINGS, **changes})


class Observer:
    def __init__(self, stop_at: int | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.saved: list[tuple[dict[str, Any], Flow, Flow, dict[str, torch.Tensor]]] = []
        self.heard: list[str] = []
        self.stop_at, self.asked = stop_at, 0

    def logged(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        assert timing["step"] == record["step"] and timing["seconds"] >= 0
        self.records.append(record)

    def checkpoint(self, progress: Progress, flow: Flow, average: Flow, optimizer: Mapping[str, torch.Tensor]) -> None:
        state = json.loads(json.dumps(vars(progress)))  # as a file keeps it
        self.saved.append((state, copy.deepcopy(flow), copy.deepcopy(average), copy.deepcopy(dict(optimizer))))

    def told(self, text: str) -> None:
        self.heard.append(text)

    def should_stop(self) -> bool:
        self.asked += 1
        return self.stop_at is not None and self.asked > self.stop_at

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()


def ends() -> Ends:
    return Ends(StandardNormal((2,)).float(), Independent())


def flow_over(train: torch.Tensor, width: int = 16, kernel: bool | str = "auto") -> ContinuousFlow:
    base = StandardNormal((2,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP((2,), width, 1, 0, 1.0, 2, True, kernel)
    moments = Moments.measured(train.double(), base.mean, base.std)
    field = LearnedField(network, Preconditioned(), OT(0.0), moments)
    solver = FixedStep("euler", 5, "path", 100)
    return ContinuousFlow(field, base, Affine.identity((2,)), solver, Exact(), (2,)).cast(
        torch.float32, torch.device("cpu")
    )


@pytest.fixture
def data() -> TrainingData:
    draws = generator(0, "test data")
    return TrainingData(torch.randn(300, 2, generator=draws), torch.randn(50, 2, generator=draws))


def fit(data: TrainingData, made: Trainer, observer: Observer, flow: ContinuousFlow, **resume: Any) -> Any:
    return made.fit(flow, FlowMatching("unit"), ends(), data, seed=3, observer=observer, **resume)


def test_logs_and_checkpoints_come_when_they_are_due(data):
    observer = Observer()
    _, ending = fit(data, trainer(), observer, flow_over(data.train))
    assert ending == "done"
    assert [r["step"] for r in observer.records if "loss" in r] == [7, 14, 21, 28, 35, 40]
    assert [r["step"] for r in observer.records if "validation_loss" in r] == [10, 20, 30, 40]
    steps = [state["step"] for state, *_ in observer.saved]
    assert set(steps) >= {6, 12, 18, 24, 30, 36, 40} and len(steps) == len(set(steps))
    validation = {r["step"]: r["validation_loss"] for r in observer.records if "validation_loss" in r}
    assert observer.saved[-1][0]["best_step"] == min(validation, key=validation.__getitem__)


def test_training_lowers_the_loss_on_data_with_structure():
    draws = generator(1, "modes")
    corners = torch.randint(0, 2, (2000, 2), generator=draws) * 2.0 - 1 + 0.05 * torch.randn(2000, 2, generator=draws)
    data, observer = TrainingData(corners, corners[:200]), Observer()
    fit(data, trainer(steps=300, batch_size=128), observer, flow_over(corners, width=64))
    losses = [r["loss"] for r in observer.records if "loss" in r]
    assert statistics.mean(losses[-6:]) < 0.8 * losses[0], "of 41 batches: that of a few scatters by 0.02"


@pytest.mark.parametrize("cut", [6, 24, 36])
def test_a_resumed_training_ends_bit_for_bit_where_an_undisturbed_one_does(data, cut):
    whole = Observer()
    undisturbed = flow_over(data.train)
    averaged, _ = fit(data, trainer(), whole, undisturbed)
    state, model, average, optimizer = next(entry for entry in whole.saved if entry[0]["step"] == cut)
    rest = Observer()
    progress = Progress.restore(state)
    resumed_average, _ = fit(data, trainer(), rest, model, progress=progress, average=average, optimizer=optimizer)
    for a, b in ((undisturbed, model), (averaged, resumed_average)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name
    assert rest.records == [r for r in whole.records if r["step"] > cut]


def test_one_seed_is_one_training_and_another_is_another(data):
    weights = []
    for seed in (3, 3, 4):
        model = flow_over(data.train)
        trainer().fit(model, FlowMatching("unit"), ends(), data, seed=seed, observer=Observer())
        weights.append(model.field.network.last.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_stop_saves_and_says_so(data):
    observer = Observer(stop_at=13)
    _, ending = fit(data, trainer(checkpoint_every=1000, validate_every=1000), observer, flow_over(data.train))
    assert ending == "stopped"
    assert [state["step"] for state, *_ in observer.saved] == [13]
    assert observer.saved[0][0]["best_step"] is None


def test_max_time_ends_in_good_order(data):
    observer = Observer()
    _, ending = fit(data, trainer(steps=100_000, max_time=0.3), observer, flow_over(data.train))
    assert ending == "max_time"
    assert observer.saved[-1][0]["seconds"] < 3


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(data):
    broken = TrainingData(data.train.clone(), data.validation)
    broken.train[5] = math.inf
    model, observer = flow_over(data.train), Observer()
    with pytest.raises(JobError, match=r"step \d+: loss (nan|inf).*smaller trainer.lr"):
        fit(broken, trainer(), observer, model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_weights_that_are_not_finite_never_become_a_checkpoint(data):
    observer = Observer()
    made = trainer(checkpoint_every=1, warmup=0, schedule="constant")
    made.lr = 1e39
    with pytest.raises(JobError, match="step 1: the weights are not finite"):
        fit(data, made, observer, flow_over(data.train))
    assert observer.saved == []


def test_deterministic_holds_in_the_training_alone_and_changes_no_bit(data):
    seen: list[bool] = []

    class Watching(Observer):
        def should_stop(self) -> bool:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().should_stop()

    flows = [flow_over(data.train) for _ in range(2)]
    for flow, deterministic in zip(flows, (True, False), strict=True):
        fit(data, trainer(deterministic=deterministic), Watching(), flow)
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True] * 40 + [False] * 40
    assert all(torch.equal(p, q) for p, q in zip(flows[0].parameters(), flows[1].parameters(), strict=True))


def test_a_wish_to_stop_in_the_middle_of_a_step_loses_nothing(data):
    """Whether the gradient is half computed or the validation: what goes on ends bit for bit the same."""

    class Leaving(Observer):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.entered, self.at = 0, at

        @contextmanager
        def interruptible(self) -> Iterator[None]:
            self.entered += 1
            yield
            if self.entered == self.at:
                raise Interrupted(15, "now")

    whole, undisturbed = Observer(), flow_over(data.train)
    averaged, _ = fit(data, trainer(), whole, undisturbed)
    for at in (1, 5, 11, 12, 33, 44):  # the steps, and validations behind the steps 10, 30 and 40
        observer, flow = Leaving(at), flow_over(data.train)
        _, ending = fit(data, trainer(), observer, flow)
        state, model, average, optimizer = observer.saved[-1]
        assert ending == "stopped"
        rest, progress = Observer(), Progress.restore(state)
        ended, ending = fit(data, trainer(), rest, model, progress=progress, average=average, optimizer=optimizer)
        assert ending == "done" and observer.records + rest.records == whole.records
        for a, b in ((undisturbed, model), (averaged, ended)):
            assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step": -1}, "step is -1"),
        ({"step": 1.5}, "step is 1.5"),
        ({"loss_sum": None}, "loss_sum is None"),
        ({"threads": True}, "threads is True"),
        ({"seconds": "x"}, "seconds is 'x'"),
        ({"best_loss": math.nan}, "best_loss is nan"),
        ({"other": 1}, "other is 1"),
    ],
)
def test_a_damaged_progress_is_refused(change, told):
    with pytest.raises(UserError, match=told):
        Progress.restore(vars(Progress(step=3)) | change)


@pytest.mark.parametrize("damage", ["missing", "another name", "another shape", "too many"])
def test_an_optimizer_of_another_model_is_refused(damage, data):
    observer = Observer(stop_at=3)
    fit(data, trainer(), observer, flow_over(data.train))
    state, model, average, optimizer = observer.saved[-1]
    key = next(name for name in optimizer if name.endswith(".exp_avg"))
    value = optimizer.pop(key)
    if damage != "missing":
        name = {"another name": "x.exp_avg", "too many": "999.exp_avg"}.get(damage, key)
        optimizer[name] = value[:1] if damage == "another shape" else value
    with pytest.raises(UserError, match="does not belong"):
        fit(data, trainer(), Observer(), model, progress=Progress(**state), average=average, optimizer=optimizer)


def batches_of(data: TrainingData, batch_size: int) -> Batches:
    flow, objective = flow_over(data.train), FlowMatching("unit")
    objective.prepare(flow, data, ends())
    return Batches(flow, objective, data, batch_size, seed=0)


def test_every_datum_appears_once_in_each_pass(data):
    batches = batches_of(data, 64)
    rows = torch.cat([batches._rows(64 * i, 64 * (i + 1)) for i in range(75)])  # 16 passes over 300
    assert all(sorted(part.tolist()) == list(range(300)) for part in rows.split(300))
    assert not torch.equal(rows[:300], rows[300:600])


def test_a_batch_larger_than_the_data_spans_passes(data):
    rows = batches_of(data, 700)._rows(0, 700)
    assert torch.bincount(rows, minlength=300).tolist().count(2) + torch.bincount(rows).tolist().count(3) == 300


def test_jitter_fills_the_bins_and_no_more():
    whole = torch.arange(5.0)[:, None].repeat(40, 1)
    data = TrainingData(whole, whole, jitter=torch.tensor([0.5]))
    plain = MaximumLikelihood(None, None, "direct", 0, 0)  # which sees the batch as it is
    x = Batches(flow_over(torch.randn(9, 2)), plain, data, 200, seed=0)(0).x
    offset = x - x.floor()
    assert float(offset.min()) >= 0 and 0.4 < float(offset.max()) <= 0.5


def test_validation_uses_the_same_noise_each_time(data):
    same, objective, values = TrainingData(data.train, data.train), FlowMatching("unit"), []
    for _ in range(2):
        flow = flow_over(data.train)
        objective.prepare(flow, same, ends())
        validation = Validation(objective, same, seed=0)
        values += [validation(flow), validation(flow)]
    assert len(set(values)) == 1
    assert abs(values[0] - 1) < 0.02, "an untrained network predicts 0 for a target of unit variance"


def test_learning_rate_warms_up_and_falls_to_zero():
    made = trainer(steps=100, warmup=9, lr=1.0)
    assert made.learning_rate(0) == pytest.approx(0.1)
    assert made.learning_rate(9) == pytest.approx((1 + math.cos(math.pi * 0.09)) / 2)
    assert made.learning_rate(99) < 1e-3
    assert trainer(schedule="constant", warmup=0, lr=0.5).learning_rate(39) == 0.5


def test_clipping_bounds_the_step(data):
    model = flow_over(data.train)
    before = [p.detach().clone() for p in model.parameters()]
    observer = Observer()
    fit(data, trainer(steps=1, grad_clip=1e-12, log_every=1), observer, model)
    assert observer.records[0]["grad_norm"] > 1e-6, "the norm before clipping is the one reported"
    # Adam divides by the gradient's size; what is clipped to nothing stays within eps of it
    change = max(float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), before, strict=True))
    assert change < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"batch_size": "many"}, "batch_size must be"),
        ({"lr": 0}, "lr must be a finite number > 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 needs optimizer=adamw"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant"),
        ({"ema_decay": 1}, "ema_decay must be"),
        ({"max_time": -1}, "max_time must be"),
        ({"threads": "all"}, "threads must be"),
        ({"compile": "always"}, "compile must be auto, true or false"),
        ({"deterministic": 1}, "deterministic must be true or false"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        trainer(**change)


def test_steps_may_be_written_as_1e4():
    assert trainer(steps=1e4).steps == 10_000


def test_small_networks_get_one_thread():
    small, large = trainer(threads="auto", batch_size=256), trainer(threads="auto", batch_size=4096)
    for kernel in (True, False):
        assert small.choose_threads(10_000, kernel=kernel) == 1
        assert large.choose_threads(1_000_000, kernel=kernel) == torch.get_num_threads()
        assert trainer(threads=2).choose_threads(10, kernel=kernel) == 2
    with threads.using(2):
        assert [small.choose_threads(200_000, kernel=kernel) for kernel in (True, False)] == [2, 1]
