"""The four verbs from end to end, in one process, on small settings."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
import torch

import flowcli
from flowcli import trust
from flowcli.cli import main
from flowcli.signals import Listener

SHORT = [
    *["trainer.steps=30", "trainer.batch_size=64", "trainer.log_every=10", "trainer.validate_every=10"],
    *["trainer.checkpoint_every=10", "trainer.threads=1", "network.width=16", "network.depth=1"],
    *[
        "evaluation.draws=2",
        "evaluation.draw_points=30",
        "evaluation.trajectories=4",
        "solver=midpoint",
        "solver.steps=6",
    ],
]
TOY = ["data.train=300", "data.validation=40", "data.test=50"]
DISCRETE = ("realnvp", "maf", "nsf", "nice")
PICTURES = {"samples.png", "trajectories.png", "loss.png"}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("blank_pictures")
    # fewer plans than a real run solves for its moments and its validation
    monkeypatch.setattr("flowcli.ends.MEASURED_ROWS", 1024)
    monkeypatch.setattr("flowcli.objectives.COUPLED_ROWS", 1024)


@pytest.fixture
def drawn() -> None:
    """For tests of pictures: they are drawn."""


def shortened(*overrides: str) -> list[str]:
    """SHORT, without what these overrides have no use for."""
    model = next((word.removeprefix("model=") for word in overrides if word.startswith("model=")), "cnf")
    dropped = () if model == "cnf" else ("network.",)
    dropped += ("solver",) if model in DISCRETE or any(word.startswith("solver=") for word in overrides) else ()
    return [word for word in SHORT if not word.startswith(dropped or ("-",))]


def train(folder: str, *overrides: str) -> Path:
    assert main(["train", *shortened(*overrides), f"hydra.run.dir={folder}", *overrides]) == 0
    return Path(folder)


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SHORT, *TOY, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---------------------------------------------------------------- train
def test_train_leaves_all_that_a_run_is_made_of(trained):
    assert all((trained / name).stat().st_size > 5000 for name in PICTURES), "they are drawn"
    names = {file.name for file in trained.iterdir()}
    assert names >= {"metrics.json", "metrics.jsonl", "timings.jsonl", "data.json", "environment.json", "samples.npy"}
    assert names >= PICTURES | {"density.png", "run.json", ".hydra", "checkpoints"}
    metrics = json.loads((trained / "metrics.json").read_text())
    for name in (
        "nll",
        "nll_stderr",
        "nll_floor",
        "nll_gap",
        "nll_gap_stderr",
        "entropy",
        "w2",
        "w2_stderr",
        "w2_floor",
    ):
        assert math.isfinite(metrics[name]), name
    for name in (
        "mmd",
        "mmd_floor",
        "energy_distance",
        "energy_distance_floor",
        "path_energy",
        "normalized_path_energy",
    ):
        assert math.isfinite(metrics[name]), name
    assert metrics["nfe_sample"] == metrics["nfe_log_prob"] == 12
    assert metrics["step"] == 30 and metrics["parameters"] > 0 and metrics["train_seconds"] > 0
    assert metrics["nll_gap"] == pytest.approx(metrics["nll"] - metrics["nll_floor"], abs=1e-9)
    assert np.load(trained / "samples.npy").shape == (60, 2)
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in logged if "loss" in r] == [10, 20, 30]
    assert "seconds" not in logged[0], "the clock is in timings.jsonl: this file is reproduced bit for bit"


def test_one_seed_reproduces_a_run_bit_for_bit(trained, drawn, capsys):
    again = train("again", *TOY)
    first, second = content(trained), content(again)
    for name in ("metrics.jsonl", "samples.npy", "samples.png", "trajectories.png", "density.png"):
        assert first[name] == second[name], name
    for name in first:
        if name.startswith("scores/"):  # what it took stands in their heads
            kept = [safetensors.numpy.load(each[name]) for each in (first, second)]
            assert {key: each.tobytes() for key, each in kept[0].items()} == {
                key: each.tobytes() for key, each in kept[1].items()
            }
        elif name.endswith(".safetensors"):
            assert first[name] == second[name], name


class Stopping(Listener):
    """Hears a SIGTERM between two steps: when the loop has asked `asks` times."""

    asks = 0

    @property
    def received(self) -> int:
        self.asks -= 1
        return 15 if self.asks < 0 else 0

    @received.setter
    def received(self, signum: int) -> None:
        assert signum == 0, "no real signal in this test"


@contextmanager
def stopping_after(asks: int) -> Iterator[Listener]:
    listener = Stopping("stopped")
    listener.asks = asks
    listener.released = nullcontext  # type: ignore[assignment]  # asks, too
    yield listener


@pytest.mark.parametrize("asks", [3, *(pytest.param(asks, marks=pytest.mark.slow) for asks in (1, 4))])
def test_a_stopped_run_goes_on_to_the_very_same_end(trained, monkeypatch, capsys, asks):
    """Asked between groups of five steps; every second time between two checkpoints."""
    from flowcli.engine import GROUP_STEPS
    from flowcli.kernels import library
    from flowcli.tasks import train as task

    with monkeypatch.context() as patch:
        patch.setattr(task, "listening", lambda advice, **options: stopping_after(asks))
        assert main(["train", *SHORT, *TOY, "hydra.run.dir=stopped"]) == 143
    assert (
        f"stopped at step {asks * (1 if library.missing() else GROUP_STEPS)}; go on with: flowcli train --resume"
        in capsys.readouterr().err
    )
    assert not Path("stopped/metrics.json").exists()
    assert main(["train", "--resume", "stopped"]) == 0
    first, second = content(trained), content(Path("stopped"))
    assert first["metrics.jsonl"] == second["metrics.jsonl"]
    for name in ("model.safetensors", "ema.safetensors"):
        assert first[f"checkpoints/step-30/{name}"] == second[f"checkpoints/step-30/{name}"]
    assert first["samples.npy"] == second["samples.npy"]


GOES_ON = {
    "ot": ["coupling=ot", "coupling.minibatch=32"],
    "semidiscrete": ["coupling=semidiscrete", "coupling.iterations=20", "coupling.batch_size=64"],
    "mle": ["objective=mle", "objective.solver.steps=2"],
    "mle by the adjoint": ["objective=mle", "objective.solver.steps=2", "objective.gradient=adjoint"],
    "augmented": ["model.augment_dim=1", "model.augment_draws=2"],
    "uniform": ["base=uniform"],
    "nsf": ["model=nsf", "model.transforms=2", "model.width=8", "model.depth=1"],
}
QUICK_KINDS = ("mle by the adjoint", "augmented", "nsf")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK_KINDS)) for kind in GOES_ON],
)
def test_every_kind_of_training_goes_on_to_the_very_same_end(kind, monkeypatch, capsys):
    """Whatever a coupling has fitted, or an objective draws, is in the checkpoint or follows from seed and step."""
    from flowcli.tasks import train as task

    settings = [*TOY, *GOES_ON[kind], "trainer.steps=12", "trainer.checkpoint_every=4", "trainer.validate_every=4"]
    settings += ["evaluation.pictures=false"]
    whole = content(train("whole", *settings))
    with monkeypatch.context() as patch:
        patch.setattr(task, "listening", lambda advice, **options: stopping_after(7))
        assert main(["train", *shortened(*settings), *settings, "hydra.run.dir=stopped"]) == 143
    assert main(["train", "--resume", "stopped"]) == 0
    found = content(Path("stopped"))
    assert whole["metrics.jsonl"] == found["metrics.jsonl"]
    for name in ("model.safetensors", "ema.safetensors"):
        assert whole[f"checkpoints/step-12/{name}"] == found[f"checkpoints/step-12/{name}"]
    assert whole["samples.npy"] == found["samples.npy"]


def test_a_finished_run_can_be_trained_further(trained, capsys):
    assert main(["train", "--resume", str(trained), "trainer.steps=40"]) == 0
    assert json.loads((trained / "metrics.json").read_text())["step"] == 40
    steps = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 40


def test_a_resumed_run_does_not_go_back(trained, capsys):
    assert "30 steps already" in wrong(capsys, "train", "--resume", str(trained), "trainer.steps=10")


TRAINABLE: list[list[str]] = [
    ["objective=score", "objective.weighting=likelihood", "path=vp", "solver=euler_maruyama", "solver.steps=30"],
    ["objective=noise", "path=ve", "solver=stochastic_heun", "solver.steps=20"],
    ["objective=data", "objective.weighting=native", "model.precondition=false", "model.prediction=data"],
    ["objective=marginal"],
    ["objective=marginal", "objective.over=train", "data=moons", "evaluation.velocity_error=true"],
    ["objective=mle", "objective.divergence=hutchinson", "objective.kinetic=0.1", "objective.jacobian=0.1"],
    ["objective=mle", "objective.solver=dopri5", "objective.gradient=adjoint", "base=mixture"],
    ["objective=mle", "model.augment_dim=1", "model.augment_draws=2"],
    *[[f"coupling={name}", "coupling.minibatch=32"] for name in ("sinkhorn", "unbalanced", "partial")],
    ["coupling=ot", "base=data", "base.data=moons"],
    *[[f"model={name}", "model.transforms=2", "model.width=8", "model.depth=1"] for name in DISCRETE],
    ["model=nsf", "model.transforms=2", "model.width=80", "data=digits"],
]
"""Every objective, coupling, base and model that the test of resumed trainings leaves out."""


@pytest.mark.parametrize(
    "options",
    [pytest.param(options, marks=[pytest.mark.slow] * ("coupling=" in options[0])) for options in TRAINABLE],
    ids=" ".join,
)
def test_every_kind_of_training_ends_in_metrics_pictures_and_a_flow_that_opens(options, capsys):
    ends_well(options)


@pytest.mark.slow
@pytest.mark.parametrize("options", TRAINABLE, ids=" ".join)
def test_every_kind_of_training_can_be_drawn(options, drawn, capsys):
    ends_well(options)


def ends_well(options: list[str]) -> None:
    toy = [] if "data=digits" in options else TOY
    folder = train("run", *toy, *options, "trainer.steps=3", "trainer.validate_every=3")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["step"] == 3 and math.isfinite(metrics["w2"])
    drawn_alone = bool({"base=data", "solver=euler_maruyama", "solver=stochastic_heun"} & set(options))
    assert ("nll_missing" if drawn_alone else "nll") in metrics
    names = {file.name for file in folder.iterdir()}
    assert names >= PICTURES - {"trajectories.png"}
    coupled = any(word.startswith("coupling=") for word in options)
    assert {"transport_cost", "transport_cost_independent", "coupling_share"} <= set(metrics) or not coupled
    flow = flowcli.load(folder)
    with torch.no_grad():
        first = flow.sample(3, seed=0).value
        assert bool(first.isfinite().all())
        assert torch.equal(first, flowcli.load(folder).sample(3, seed=0).value)


@pytest.mark.slow
def test_the_velocity_error_is_reported_where_the_field_is_known(capsys):
    known = json.loads((train("known", *TOY, "trainer.steps=3") / "metrics.json").read_text())
    assert 0 < known["velocity_error"] < 5 and known["continuity_residual"] > 0
    assert "velocity_error" not in json.loads((train("ot", *TOY, "coupling=ot") / "metrics.json").read_text())


@pytest.mark.slow
def test_reflow_learns_the_pairs_of_an_earlier_run(trained, monkeypatch, capsys):
    from flowcli.tasks import train as task

    settings = [*TOY, "coupling=reflow", f"coupling.ckpt={trained}", "coupling.pairs=200"]
    folder = train("second", *settings)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["transport_cost"] < metrics["transport_cost_independent"]
    with monkeypatch.context() as patch:
        patch.setattr(task, "listening", lambda advice, **options: stopping_after(13))
        assert main(["train", *SHORT, *settings, "hydra.run.dir=stopped"]) == 143
    assert main(["train", "--resume", "stopped"]) == 0
    name = "checkpoints/step-30/ema.safetensors"
    assert content(folder)[name] == content(Path("stopped"))[name]


@pytest.mark.slow
def test_the_oracle_needs_no_training_and_is_exact(capsys):
    folder = train(
        "oracle", "model=oracle", "data=mixture", "path=vp", "dtype=float64", "solver=dopri5", "solver.rtol=1e-7", *TOY
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert abs(metrics["nll_gap"]) < 1e-4
    assert metrics["parameters"] == 0 and metrics["base_kl"] >= -3 * metrics["base_kl_stderr"]
    x = torch.tensor([[0.5, -1.0], [2.0, 1.0]])
    assert bool(torch.isfinite(flowcli.load(folder).log_prob(x).value).all())


def test_the_oracle_over_points_has_samples_but_no_likelihood(capsys):
    folder = train("points", "model=oracle", "model.over=train", "data=moons", *TOY)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "nll" not in metrics and "no density" in metrics["nll_missing"]
    assert "no likelihood" in capsys.readouterr().out
    assert "no density" in wrong(capsys, "likelihood", "--ckpt", str(folder))


def test_max_time_is_said(capsys):
    train("short", *TOY, "trainer.max_time=0.01", "trainer.steps=100000")
    assert "trainer.max_time: stopped at step" in capsys.readouterr().out


def test_a_loss_that_explodes_is_a_failed_run(capsys):
    assert main(["train", *SHORT, *TOY, "trainer.lr=1e30", "hydra.run.dir=bad"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "smaller trainer.lr" in error
    assert "smaller trainer.lr" in json.loads(Path("bad/failure.json").read_text())["reason"]


@pytest.mark.parametrize("name", ["a\u200f", "\u202ab", "c\x07"])
def test_what_could_not_be_opened_again_is_not_trained(name, capsys):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    Path("odd.csv").write_text("\n".join([f"{name},y", *(f"{a},{b}" for a, b in rows)]), encoding="utf-8")
    before = set(Path().iterdir())
    assert main(["train", *SHORT, "data=table", "data.path=odd.csv", "hydra.run.dir=odd"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could not be opened again" in error and "columns" in error
    assert set(Path().iterdir()) == before


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def _offsets(run: Path, **changes: int) -> None:
    (file,) = run.glob("checkpoints/step-30/progress.json")
    values = json.loads(file.read_text())
    values["offsets"] = {name.replace("_", "."): offset for name, offset in changes.items()}
    file.write_text(json.dumps(values))


DAMAGED: dict[str, Any] = {
    "ema": lambda run: _cut(run / "checkpoints/step-30/ema.safetensors"),
    "optimizer": lambda run: _cut(run / "checkpoints/step-30/optimizer.safetensors"),
    "progress": lambda run: _cut(run / "checkpoints/step-30/progress.json"),
    "log": lambda run: _cut(run / "metrics.jsonl"),
    "another file": lambda run: _offsets(run, metrics_jsonl=0, victim_txt=0),
    "no log": lambda run: _offsets(run),
    "older": lambda run: (run / "checkpoints/step-30/description.json").write_text(
        (run / "checkpoints/step-30/description.json").read_text().replace('"format": 3', '"format": 2')
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_run_that_should_go_on_stays_as_it_lies_there(damage, trained, capsys):
    (trained / "victim.txt").write_text("kept")
    DAMAGED[damage](trained)
    before = content(trained)
    assert main(["train", "--resume", str(trained), "trainer.steps=40"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert content(trained) == before


# ---------------------------------------------------------------- from Python and from other folders
def test_load_gives_the_flow_that_likelihood_scores(trained, capsys):
    assert main(["likelihood", "--ckpt", str(trained), "check_rows=20", "hydra.run.dir=l"]) == 0
    flow = flowcli.load(trained)
    from flowcli import build
    from flowcli.checkpoints import find_checkpoint

    x = build.source(find_checkpoint(trained).config).load().points("test")
    scored = np.load("l/log_prob.npy")
    with torch.no_grad():
        np.testing.assert_allclose(flow.log_prob(x).value.numpy(), scored, rtol=1e-6, atol=1e-6)
    assert -scored.mean() == pytest.approx(json.loads((trained / "metrics.json").read_text())["nll"], abs=1e-6)
    assert flowcli.load(trained, dtype="float64").log_prob(x).value.dtype == torch.float64


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_weights_and_which_are_honoured(trained, weights):
    from safetensors.torch import load_file

    name = {"raw": "model", "ema": "ema"}[weights]
    stored = load_file(trained / "checkpoints" / "step-30" / f"{name}.safetensors")
    flow = flowcli.load(trained, weights=weights, which="last")
    assert torch.equal(flow.state_dict()["field.network.last.weight"], stored["field.network.last.weight"])


def test_a_moved_run_and_a_changed_conf_change_nothing(trained, tmp_path, monkeypatch, capsys):
    assert main(["sample", "--ckpt", str(trained), "n=20", "hydra.run.dir=before"]) == 0
    moved = trained.rename(tmp_path / "moved here")
    newer = Path(shutil.copytree(trust.conf_dir(), tmp_path / "newer"))
    (newer / "path" / "ot.yaml").write_text("_target_: flowcli.paths.OT\nsigma_min: 0.5\n")
    mlp = newer / "network" / "mlp.yaml"
    mlp.write_text(mlp.read_text().replace("width: 128", "width: 999") + "new_key: 1\n")
    monkeypatch.setattr(trust, "conf_dir", lambda: newer)
    assert main(["sample", "--ckpt", str(moved), "n=20", "hydra.run.dir=after"]) == 0
    assert (Path("before") / "samples.npy").read_bytes() == (Path("after") / "samples.npy").read_bytes()


def test_a_stranger_s_config_builds_nothing_of_its_own(trained, capsys):
    for step in (trained / "checkpoints").glob("step-*"):
        text = (step / "config.yaml").read_text()
        (step / "config.yaml").write_text(text.replace("flowcli.paths.OT", "flowcli.storage.os.system"))
    assert main(["sample", "--ckpt", str(trained)]) == 2
    error = capsys.readouterr().err
    assert "flowcli.storage.os.system" in error and error.count("\n") == 1
    with pytest.raises(flowcli.errors.UserError, match="os.system"):  # type: ignore[attr-defined]
        flowcli.load(trained)
    assert not Path("outputs").exists()


# ---------------------------------------------------------------- sample
def test_samples_depend_on_seed_and_row_alone(trained, capsys):
    def drawn(name: str, *overrides: str) -> np.ndarray[Any, Any]:
        assert main(["sample", "--ckpt", str(trained), f"hydra.run.dir={name}", *overrides]) == 0
        return np.load(Path(name) / "samples.npy")

    first = drawn("a", "n=50")
    assert np.array_equal(first, drawn("b", "n=50"))
    np.testing.assert_allclose(first[:20], drawn("c", "n=20", "batch_size=7"), rtol=0, atol=1e-5)
    assert not np.allclose(first, drawn("d", "n=50", "seed=1"))


@pytest.mark.parametrize("ending", [".npy", ".csv", ".parquet"])
def test_out_writes_what_its_ending_says(trained, capsys, ending):
    args = ["sample", "--ckpt", str(trained), "n=15", "trajectories=4", "--out", f"s{ending}", "hydra.run.dir=o"]
    assert main(args) == 0
    expected = np.load("o/samples.npy")
    if ending == ".npy":
        found = np.load("s.npy")
    else:
        table = pl.read_csv("s.csv") if ending == ".csv" else pl.read_parquet("s.parquet")
        assert table.columns == ["x0", "x1"]
        found = table.to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    ways = np.load("o/trajectories.npz")
    assert ways["states"].shape == (7, 4, 2) and ways["times"].tolist() == sorted(ways["times"].tolist())
    np.testing.assert_allclose(ways["states"][-1], expected[:4], rtol=1e-5, atol=1e-5)
    assert {"samples.png", "trajectories.png"} <= {file.name for file in Path("o").iterdir()}


def test_the_solver_can_be_changed_and_the_rest_cannot(trained, capsys):
    assert main(["sample", "--ckpt", str(trained), "n=5", "solver=euler", "solver.steps=3", "hydra.run.dir=e"]) == 0
    assert json.loads(Path("e/metrics.json").read_text())["nfe_sample"] == 3
    assert main(["sample", "--ckpt", str(trained), "path.sigma_min=0.1"]) == 2


# ---------------------------------------------------------------- likelihood, tables, digits
def table(path: Path, rows: int = 120) -> Path:
    draws = np.random.default_rng(0)
    a = draws.normal(10, 2, rows)
    pl.DataFrame({"a": a, "b": a * 0.5 + draws.normal(0, 1, rows), "note": ["x"] * rows}).write_csv(path)
    return path


def test_a_table_is_trained_sampled_and_scored_by_its_columns(tmp_path, capsys):
    table(tmp_path / "t.csv")
    run = train("table", "data=table", "data.path=t.csv", "data.columns=[b,a]")
    assert main(["sample", "--ckpt", "table", "n=9", "--out", "new.csv", "hydra.run.dir=s"]) == 0
    assert pl.read_csv("new.csv").columns == ["b", "a"]
    args = ["likelihood", "--ckpt", "table", "input=new.csv", "check_rows=5", "hydra.run.dir=l"]
    assert main(args) == 0
    scored = pl.read_csv("l/log_prob.csv")
    assert scored.columns == ["row", "log_prob"] and len(scored) == 9
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["nll_standardised"] < metrics["nll"] + 2
    assert metrics["nll_gaussian"] == pytest.approx(3.5, abs=0.5)  # ln(2 pi e) + ln 2 + ln 1, 12 test rows
    assert "bits_per_dim" not in metrics


def test_the_file_that_a_run_was_trained_on_can_be_scored_with_its_gaps(tmp_path, capsys):
    lines = table(tmp_path / "t.csv").read_text().splitlines()
    lines[3] = "1.5,,x"
    Path("t.csv").write_text("\n".join(lines))
    train("gaps", "data=table", "data.path=t.csv", "data.columns=[a,b]", "data.missing=drop")
    assert main(["likelihood", "--ckpt", "gaps", "input=t.csv", "check_rows=5", "hydra.run.dir=l"]) == 0
    assert "(1 incomplete ones left out)" in capsys.readouterr().out
    assert pl.read_csv("l/log_prob.csv")["row"].to_list() == [i for i in range(120) if i != 2]


@pytest.mark.slow
def test_a_headerless_file_is_read_by_the_run_s_column_numbers(tmp_path, capsys):
    values = np.random.default_rng(0).normal(size=(100, 3))
    values[:, 2] += 50
    np.savetxt("n.csv", values, delimiter=",")
    np.save("n.npy", values)
    train("numbers", "data=table", "data.path=n.csv", "data.columns=[2,0]")
    scores = []
    for name in ("n.csv", "n.npy"):
        args = ["likelihood", "--ckpt", "numbers", f"input={name}", "check_rows=0", f"hydra.run.dir={name}.l"]
        assert main(args) == 0
        scores.append(np.load(f"{name}.l/log_prob.npy"))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    assert scores[0].mean() > -5, "the columns were taken in the run's order"


def test_dependent_columns_have_no_gaussian_baseline(tmp_path, capsys):
    frame = pl.read_csv(table(tmp_path / "t.csv")).with_columns((pl.col("a") + pl.col("b")).alias("c"))
    frame.select("a", "b", "c").write_csv("t.csv")
    metrics = json.loads((train("dependent", "data=table", "data.path=t.csv") / "metrics.json").read_text())
    assert "nll" in metrics and "nll_gaussian" not in metrics


def test_a_table_s_likelihood_is_in_its_own_units(tmp_path, capsys):
    draws = np.random.default_rng(0).normal(size=(200, 1))
    for name, scale in (("one", 1.0), ("thousand", 1000.0)):
        pl.DataFrame({"x": draws[:, 0] * scale + 5 * scale}).write_csv(f"{name}.csv")
        train(name, "data=table", f"data.path={name}.csv")
    nll = [json.loads(Path(name, "metrics.json").read_text())["nll"] for name in ("one", "thousand")]
    assert nll[1] - nll[0] == pytest.approx(math.log(1000), abs=1e-3)


def test_digits_are_images_with_bits_per_dim(capsys):
    folder = train("digits", "data=digits")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["dequantization_draws"] == 5
    assert 2 < metrics["bits_per_dim"] < 6
    assert np.load(folder / "samples.npy").shape[1:] == (1, 8, 8)
    assert {file.name for file in folder.iterdir()} >= PICTURES


def test_hutchinson_reports_its_error(trained, capsys):
    args = ["likelihood", "--ckpt", str(trained), "divergence=hutchinson", "check_rows=10", "hydra.run.dir=h"]
    assert main(args) == 0
    scored = pl.read_csv("h/log_prob.csv")
    assert scored.columns == ["row", "log_prob", "stderr"]
    assert float(scored["stderr"].mean()) > 0  # type: ignore[arg-type]


def test_the_self_check_sees_a_solve_that_is_too_coarse(trained, capsys):
    outcomes = {}
    for name, overrides in (
        ("coarse", ["solver=euler", "solver.steps=2"]),
        ("fine", ["solver=rk4", "solver.steps=60"]),
    ):
        args = ["likelihood", "--ckpt", str(trained), "check_rows=50", f"hydra.run.dir={name}", *overrides]
        assert main(args) == 0
        outcomes[name] = json.loads(Path(name, "metrics.json").read_text())
    assert outcomes["coarse"]["resolved"] is False and outcomes["fine"]["resolved"] is True
    assert outcomes["coarse"]["check_round_trip_median"] > 100 * outcomes["fine"]["check_round_trip_median"]
    assert outcomes["fine"]["check_nfe_tight"] == 2 * outcomes["fine"]["check_nfe"] == 480
    assert "resolved" in capsys.readouterr().out


# ---------------------------------------------------------------- wrong input
def wrong(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run what must be refused: status 2, one line, nothing written."""
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main(list(args)) == 2
    _out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "Traceback" not in err, err
    assert sorted(Path().rglob("*")) == before, "something was written"
    return err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n", "row"),
        ("a,b\n1,2\n", "row"),
        ("a,b\n1,2\n3,x\n5,6\n", "row 2 .*'b'"),
        ("a,b\n" + "1,2\n3,\n" * 20, "row 2"),
        ("a,b\n" + "1,2\n3,inf\n" * 20, "row 2"),
        ("a,b\n" + "".join(f"{i},7\n" for i in range(40)), "'b'.*constant|constant.*b"),
        ("a,b\n1,2,3\n", "column|field|cell"),
        ("\x00\x01\x02", "t.csv"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, capsys, text, message):
    import re

    Path("t.csv").write_text(text)
    error = wrong(capsys, "train", "data=table", "data.path=t.csv")
    assert re.search(message, error), error
    assert "t.csv" in error


def test_other_wrong_input_is_refused_and_nothing_written(trained, tmp_path, capsys):
    table(tmp_path / "t.csv")
    Path("other.csv").write_text("p,q\n1,2\n3,4\n")
    ckpt = str(trained)
    assert "no such file" in wrong(capsys, "train", "data=table", "data.path=missing.csv").lower()
    assert "data.path=FILE" in wrong(capsys, "train", "data=table")
    assert "did you mean" in wrong(capsys, "train", "data=table", "data.path=t.csv", "data.columns=[aa,b]")
    assert "no such file" in wrong(capsys, "sample", "--ckpt", "nowhere")
    raw = next((trained / "checkpoints").glob("step-*/ema.safetensors"))
    assert "averaged weights" in wrong(capsys, "sample", "--ckpt", str(raw), "--weights", "raw")
    assert "belongs to training" in wrong(capsys, "sample", "--ckpt", ckpt, "evaluation.draws=3")
    assert "not a checkpoint" in wrong(capsys, "sample", "--ckpt", "other.csv")
    assert "n must be" in wrong(capsys, "sample", "--ckpt", ckpt, "n=0")
    assert "GiB of memory" in wrong(capsys, "sample", "--ckpt", ckpt, "n=1000000000000", "batch_size=1000000000000")
    assert "GiB of disk" in wrong(capsys, "sample", "--ckpt", ckpt, "n=1000000000000", "--out", "x.npy")
    assert "trainer.batch_size must be" in wrong(capsys, "train", "trainer.batch_size=1000000000000")
    assert "ends in .npy, .csv, .parquet" in wrong(capsys, "sample", "--ckpt", ckpt, "--out", "x.txt")
    assert "not a folder that can be written" in wrong(capsys, "sample", "--ckpt", ckpt, "--out", "no/where.csv")
    assert "input" in wrong(capsys, "likelihood", "--ckpt", ckpt, "inptu=x.csv")
    assert "gone.csv" in wrong(capsys, "likelihood", "--ckpt", ckpt, "input=gone.csv")
    assert "t.csv" in wrong(capsys, "likelihood", "--ckpt", ckpt, "input=t.csv")
    weights = next((trained / "checkpoints").glob("step-*/ema.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert "not a readable safetensors file" in wrong(capsys, "likelihood", "--ckpt", ckpt)


def test_weights_of_another_network_are_refused(trained, capsys):
    for step in (trained / "checkpoints").glob("step-*"):
        text = (step / "config.yaml").read_text()
        (step / "config.yaml").write_text(text.replace("width: 16", "width: 17"))
    assert "do not fit the config" in wrong(capsys, "sample", "--ckpt", str(trained))


def test_a_solver_that_fails_is_a_failed_job(trained, capsys):
    args = ["sample", "--ckpt", str(trained), "solver=dopri5", "solver.max_nfe=10", "n=4", "hydra.run.dir=f"]
    assert main(args) == 1
    error = capsys.readouterr().err
    assert "solver.max_nfe" in error and "try" in error and error.count("\n") == 1


# ---------------------------------------------------------------- sweeps and compare
KINDS = {
    "matching": [],
    "layers": ["model=realnvp"],
    "noisy": ["path=vp", "solver=euler_maruyama", "solver.steps=6", "solver.diffusion=sigma"],
    "likelihood": ["model=ffjord", "trainer.steps=3"],
    "exact": ["model=oracle"],
    "wider": ["model.augment_dim=1"],
}


@pytest.mark.parametrize("kinds", [["matching", "layers", "noisy"], pytest.param([*KINDS], marks=pytest.mark.slow)])
def test_flows_of_every_kind_stand_in_one_table(kinds, capsys):
    """What compare knows is the interface of all flows: solved, layered, exact, by an SDE without a likelihood."""
    for name in kinds:
        words = [*KINDS[name], "evaluation.pictures=false"]
        assert main(["train", *shortened(*words), *TOY, *words, f"hydra.run.dir=runs/{name}"]) == 0
    capsys.readouterr()
    measured = ["evaluation.draws=2", "evaluation.draw_points=30", "evaluation.trajectories=4"]
    assert main(["compare", "runs", "--format", "csv", *measured]) == 0
    table = pl.read_csv(capsys.readouterr().out.encode(), infer_schema_length=None)
    counts = dict(table.group_by("figure").len().iter_rows())
    assert counts["w2"] == counts["c2st"] == counts["nfe_sample"] == len(kinds) == table["row"].n_unique()
    nll = table.filter(pl.col("figure") == "nll")
    assert nll["mean"].null_count() == 1 and nll["verdict"].to_list().count("reference") == 1
    if len(kinds) == len(KINDS):
        assert main(["compare", "runs", *measured, "--nfe", "2", "nfe_draws=2"]) == 0
        told = capsys.readouterr().out
        assert "has no likelihood" in told and "models that solve nothing" in told


@pytest.mark.slow
def test_tables_are_compared_too(capsys):
    rows = np.random.default_rng(0).normal(size=(300, 3)) @ [[1, 0.5, 0], [0, 1, 0], [0, 0, 3]]
    pl.DataFrame(rows, schema=["a", "b", "c"]).write_csv("t.csv")
    words = ["data=table", "data.path=t.csv", "model=realnvp", "seed=0,1"]
    assert main(["train", "-m", *shortened("model=realnvp"), *words, "hydra.sweep.dir=sweep"]) == 0
    capsys.readouterr()
    assert main(["compare", "sweep", "evaluation.draws=2", "evaluation.draw_points=30", "--out", "report"]) == 0
    told = capsys.readouterr().out
    assert "2 runs" in told and "NLL" in told and Path("report/samples-1.png").is_file()
