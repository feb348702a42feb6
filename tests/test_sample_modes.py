"""The modes of `flowcli sample`, against flows whose map is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from flowcli import build, launch, pictures, trust
from flowcli.checkpoints import find_checkpoint
from flowcli.cli import main
from flowcli.couplings import OT
from flowcli.errors import JobError, UserError
from flowcli.solvers import FixedStep
from flowcli.tasks import sample as task

MEASURED = ["evaluation.draws=2", "evaluation.draw_points=30", "evaluation.trajectories=4"]
MEASURED += ["evaluation.velocity_error=false"]
SHORT = ["trainer.steps=10", "trainer.batch_size=64", "trainer.threads=1", *MEASURED]
LEARNED = [*SHORT, "network.width=16", "network.depth=1", "solver=midpoint", "solver.steps=6"]
EXACT = [*MEASURED, "model=oracle", "dtype=float64", "solver.rtol=1e-7", "solver.atol=1e-7"]
TOY = ["data.train=300", "data.validation=40", "data.test=400"]


def trained(folder: Path, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("samples", "trajectories", "density", "loss"):  # other tests look at them
            patch.setattr(pictures, name, lambda *args, **options: None)
        assert main(["train", *overrides, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest) -> None:
    """A plane's and a table's are drawn once, the others are tested with the plots."""
    if not request.node.name.endswith(("[moons]", "[table]")) and "explain" not in request.node.name:
        request.getfixturevalue("blank_pictures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def gaussian(runs: Path) -> Path:
    return trained(runs / "gaussian", *EXACT, "data=gaussian", *TOY)


@pytest.fixture(scope="module")
def moons(runs: Path) -> Path:
    return trained(runs / "moons", *LEARNED, "data=moons", "coupling=ot", *TOY)


@pytest.fixture(scope="module")
def realnvp(runs: Path) -> Path:
    return trained(runs / "realnvp", *SHORT, "data=moons", "model=realnvp", "model.width=8", "model.depth=1", *TOY)


@pytest.fixture(scope="module")
def augmented(runs: Path) -> Path:
    return trained(runs / "augmented", *LEARNED, "data=moons", "model.augment_dim=1", "model.augment_draws=1", *TOY)


@pytest.fixture(scope="module")
def table(runs: Path) -> Path:
    """A run over three columns, with a gap in row 2 of its file."""
    draws = np.random.default_rng(0).normal(size=(100, 3))
    lines = ["a,b,c", *(",".join(map(str, row)) for row in draws)]
    lines[3] = "1.5,,0"
    (runs / "t.csv").write_text("\n".join(lines))
    return trained(runs / "table", *LEARNED, "data=table", f"data.path={runs / 't.csv'}", "data.missing=drop")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sample(run: Path, *words: str) -> Path:
    assert main(["sample", "--ckpt", str(run), "hydra.run.dir=out", *words]) == 0
    return Path("out")


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file()} - {"run.json", "sample.log"}


def split(run: Path) -> Any:
    return build.source(find_checkpoint(run).config).load().points("test").numpy()


def latents(run: Path, x: Any) -> Any:
    r"""Of a Gaussian's marginal field: $C_t$ commutes with itself, so the map is $x_1 = C^{1/2} z$, standardised."""
    data = build.source(find_checkpoint(run).config).load()
    assert data.target is not None
    scale, shift = data.transform.scale.numpy(), data.transform.shift.numpy()
    mean, covariance = np.array([1.0, -0.5]), np.array([[1.0, 0.4], [0.4, 0.25]]) / np.outer(scale, scale)
    # the path's ends have the moments of the training split, the field those of the target
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return ((x - shift) / scale - (mean - shift) / scale) @ root


# ---------------------------------------------------------------- encode
def test_latents_of_a_gaussian_are_known(gaussian, capsys):
    folder = sample(gaussian, "mode=encode", "--out", "z.csv")
    assert names(folder) == {"latents.npy", "latents.png", "metrics.json"}
    z = np.load(folder / "latents.npy")
    np.testing.assert_allclose(z, latents(gaussian, split(gaussian)), atol=1e-5)
    out = pl.read_csv("z.csv")
    assert out.columns == ["row", "z0", "z1"]
    np.testing.assert_allclose(out.select("z0", "z1").to_numpy(), z)
    found = json.loads((folder / "metrics.json").read_text())
    far = np.abs(z.mean(0)).argmax()
    assert found["latent_mean"] == pytest.approx(z.mean(0)[far])
    assert abs(found["latent_mean"]) < 4 * found["latent_mean_stderr"]
    assert found["latent_mean_stderr"] == pytest.approx(0.05, rel=0.15)  # 1 / sqrt(400)
    assert abs(found["latent_std"] - 1) < 4 * found["latent_std_stderr"]
    assert found["latent_std_stderr"] == pytest.approx(0.05 / 2**0.5, rel=0.3)
    assert abs(found["latent_energy_distance"]) < 0.05
    assert "standard deviation" in capsys.readouterr().out


def test_latents_that_are_not_the_noise_are_seen(moons, capsys):
    np.savetxt("far.csv", split(moons)[:100] + 1.0, delimiter=",")
    found = json.loads((sample(moons, "mode=encode", "input=far.csv") / "metrics.json").read_text())
    assert found["rows"] == 100
    assert abs(found["latent_mean"]) > 5 * found["latent_mean_stderr"]
    assert found["latent_energy_distance"] > 0.1


def test_a_file_keeps_its_row_numbers(table, runs, capsys):
    folder = sample(table, "mode=encode", f"input={runs / 't.csv'}", "--out", "z.parquet")
    assert np.load(folder / "latents.npy").shape == (99, 3)
    assert pl.read_parquet("z.parquet")["row"].to_list() == [i for i in range(100) if i != 2]


def test_latents_of_an_augmented_flow_have_its_coordinates(augmented, capsys):
    assert np.load(sample(augmented, "mode=encode") / "latents.npy").shape == (400, 3)


# ---------------------------------------------------------------- interpolate
def test_a_gaussian_s_lines_are_lines_in_the_data(gaussian, capsys):
    folder = sample(gaussian, "mode=interpolate", "points=[3,17,5]", "steps=10")
    assert names(folder) == {"interpolation.npz", "interpolation.png", "metrics.json"}
    made, x = np.load(folder / "interpolation.npz"), split(gaussian)
    assert made["rows"].tolist() == [3, 17, 5] and made["linear"].shape == made["spherical"].shape == (21, 2)
    places = made["alphas"]
    expected = np.stack([np.interp(places, [0, 1, 2], x[[3, 17, 5], i]) for i in (0, 1)], 1)
    np.testing.assert_allclose(made["linear"], expected, atol=1e-5)
    np.testing.assert_allclose(made["spherical"][::10], x[[3, 17, 5]], atol=1e-5)
    # the spherical way is where the closed form says: latents of constant turn and even norms
    z = latents(gaussian, made["spherical"])
    norms = np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(norms, np.interp(places, [0, 1, 2], norms[::10]), atol=1e-4)
    np.testing.assert_allclose(z, made["latents_spherical"], atol=1e-4)
    assert json.loads((folder / "metrics.json").read_text())["round_trip"] < 1e-5


def test_a_difference_is_a_direction(gaussian, capsys):
    words = ["mode=interpolate", "points=[3,8]", "direction=[17,3]", "strength=2", "steps=4"]
    folder = sample(gaussian, *words)
    assert names(folder) == {"direction.npz", "direction.png", "metrics.json"}
    made, x = np.load(folder / "direction.npz"), split(gaussian)
    assert made["strengths"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert made["moved"].shape == (2, 5, 2)
    for i, row in enumerate((3, 8)):
        expected = x[row] + made["strengths"][:, None] * (x[17] - x[3])
        np.testing.assert_allclose(made["moved"][i], expected, atol=1e-5)


@pytest.mark.parametrize("run", ["moons", "realnvp", "augmented", "table"])
def test_every_model_interpolates_through_its_points(run, request, capsys):
    folder = sample(request.getfixturevalue(run), "mode=interpolate", "points=[0,4]", "steps=5", "batch_size=3")
    made, x = np.load(folder / "interpolation.npz"), split(request.getfixturevalue(run))[[0, 4]]
    for way in ("linear", "spherical"):
        np.testing.assert_allclose(made[way][[0, -1]], x, atol=5e-3)
    assert run not in ("moons", "table") or (folder / "interpolation.png").stat().st_size > 1000


def test_rows_of_a_file_are_its_own(table, runs, capsys):
    words = ["mode=interpolate", f"input={runs / 't.csv'}", "points=[0,3]", "direction=[5,4]", "steps=3"]
    made = np.load(sample(table, *words) / "direction.npz")
    file = pl.read_csv(runs / "t.csv").to_numpy()
    np.testing.assert_allclose(made["moved"][:, 0], file[[0, 3]], atol=5e-3)


@pytest.mark.slow
def test_one_coordinate_has_no_great_circles(runs, capsys):
    words = ["data=gaussian", "data.mean=[2.0]", "data.covariance=[[9.0]]", *TOY]
    folder = sample(trained(runs / "line", *EXACT, *words), "mode=interpolate", "points=[0,1,2]")
    made = np.load(folder / "interpolation.npz")
    assert "spherical" not in made and made["linear"].shape == (121, 1)


# ---------------------------------------------------------------- nfe
def test_the_curve_holds_every_solver_to_the_same_draws(moons, capsys):
    folder = sample(moons, "mode=nfe", "nfe=[6,3,12,1]", "draws=2")
    assert names(folder) == {"nfe.csv", "nfe.png", "metrics.json"}
    table = pl.read_csv(folder / "nfe.csv")
    found = {(solver, nfe): row for (*row,) in table.rows() for solver, nfe in [row[:2]]}
    fixed = {("euler", n) for n in (1, 3, 6, 12)} | {("midpoint", n) for n in (6, 12)}
    fixed |= {("heun3", n) for n in (3, 6, 12)} | {("rk4", 12)}
    assert set(found) == fixed | {("midpoint of the run", 12)}
    excess = dict(zip(table.select("solver", "nfe").rows(), table["w2_excess"], strict=True))
    assert excess["midpoint", 12] == 0, "the run's own solver, from the same noise, against the same truth"
    assert excess["euler", 1] != 0
    assert "euler, 1 evaluations" in capsys.readouterr().out
    # as it was measured after training
    trained, again = (json.loads((run / "metrics.json").read_text()) for run in (moons, folder))
    for name in ("w2", "w2_stderr", "w2_floor", "energy_distance", "nfe_sample"):
        assert again[name] == pytest.approx(trained[name], rel=1e-6), name


def test_a_solver_that_fails_leaves_a_line_and_no_row(moons, monkeypatch, capsys):
    solve = FixedStep.solve

    def fails(self: FixedStep, *args: Any, **options: Any) -> Any:
        if self.steps == 1:
            raise JobError("solver euler failed")
        return solve(self, *args, **options)

    monkeypatch.setattr(FixedStep, "solve", fails)
    table = pl.read_csv(sample(moons, "mode=nfe", "nfe=[1,2]", "draws=2") / "nfe.csv")
    assert table.select("solver", "nfe").rows() == [("midpoint of the run", 12), ("euler", 2)]
    assert "midpoint, 1 steps: solver euler failed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_run_s_time_is_kept(runs, capsys):
    words = ["data=gaussian", "data.mean=[0,0]", "data.covariance=[[4,0],[0,4]]", *TOY, "data.train=50000"]
    run = trained(runs / "round", *EXACT, *words)
    for time, exact in (("angle", True), ("path", False)):
        table = pl.read_csv(sample(run, "mode=nfe", "nfe=[1]", f"solver.time={time}") / "nfe.csv")
        excess = dict(zip(table["solver"], table["w2_excess"], strict=True))["euler"]
        # a round Gaussian: nothing moves in the angle; in t all is pulled to the mean at first
        assert (abs(excess) < 0.02) == exact, (time, excess)


# ---------------------------------------------------------------- explain
def test_explain_hands_over_the_flow_its_data_and_its_ends(moons, realnvp, monkeypatch, capsys):
    seen: list[dict[str, Any]] = []

    def explain(flow: Any, dataset: Any, ends: Any, folder: Path, *, seed: int, batch_size: int) -> list[str]:
        seen.append(locals())
        return ["pairs.png"]

    monkeypatch.setattr(pictures, "explain", explain)
    sample(moons, "mode=explain", "seed=4", "batch_size=7")
    assert seen[0]["seed"] == 4 and seen[0]["batch_size"] == 7 and seen[0]["folder"].name == "out"
    assert seen[0]["dataset"].event_shape == seen[0]["flow"].event_shape == (2,)
    assert isinstance(seen[0]["ends"].coupling, OT)
    assert "wrote pairs.png" in capsys.readouterr().out
    sample(realnvp, "mode=explain")
    assert seen[1]["ends"] is None


# ---------------------------------------------------------------- wrong input
def wrong(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> str:
    """Run what must be refused: status 2, one line, nothing written."""
    capsys.readouterr()
    assert main(["sample", "--ckpt", str(run), *words]) == 2
    _out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "Traceback" not in err, err
    assert not list(Path().iterdir()), "something was written"
    return err


def config(run: Path, **given: Any) -> dict[str, Any]:
    """What launch composes of a run and conf/sample.yaml."""
    own = {key: yaml.safe_load(default) for key, (default, _) in launch.keys("sample").items()}
    return {**find_checkpoint(run).config, **own, "ckpt": str(run), **given}


def option(group: str, name: str) -> Any:
    return yaml.safe_load((trust.conf_dir() / group / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "interpolat"}, "mode must be one of samples, encode, interpolate, nfe, explain"),
        ({"points": [1, 2]}, "points=[1,2]: mode=samples has no use for it, only mode=interpolate"),
        ({"nfe": [2]}, "nfe=[2]: mode=samples has no use for it, only mode=nfe"),
        ({"mode": "encode", "n": 5}, "n=5: mode=encode has no use for it, only mode=samples"),
        ({"mode": "encode", "trajectories": 3}, "trajectories=3: mode=encode has no use for it"),
        ({"mode": "explain", "input": "x.csv"}, "input=x.csv: mode=explain has no use for it, only mode=encode or"),
        ({"mode": "nfe", "out": "x.npy"}, "--out x.npy: mode=nfe has no use for it, only mode=samples or mode=encode"),
        ({"mode": "encode", "out": "x.txt"}, "--out x.txt"),
        ({"mode": "encode", "input": "gone.csv"}, "gone.csv"),
        ({"mode": "encode", "batch_size": 0}, "batch_size must be"),
        ({"mode": "interpolate"}, "points must be a list of two rows or more"),
        ({"mode": "interpolate", "points": 3}, "points must be a list of two rows or more"),
        ({"mode": "interpolate", "points": [3]}, "points must be a list of two rows or more"),
        ({"mode": "interpolate", "points": [3, 4.5]}, "points[1] must be a whole number >= 0"),
        ({"mode": "interpolate", "points": [-1, 2]}, "points[0] must be a whole number >= 0"),
        ({"mode": "interpolate", "points": [0, 1], "steps": 0}, "steps must be"),
        ({"mode": "interpolate", "points": [0, 1], "strength": 2}, "say direction=[a,b], too"),
        ({"mode": "interpolate", "points": [0], "direction": [1]}, "direction must be a list of two rows"),
        ({"mode": "interpolate", "points": [0], "direction": [1, 1]}, "direction must be two different rows"),
        ({"mode": "interpolate", "points": [0], "direction": [1, 2, 3]}, "direction must be two different rows"),
        ({"mode": "interpolate", "points": [0], "direction": [1, 999]}, "direction: row 999"),
        (
            {"mode": "interpolate", "points": [0, 1], "solver": option("solver", "euler_maruyama")},
            "solver=euler_maruyama has no latents",
        ),
        ({"mode": "encode", "solver": option("solver", "stochastic_heun")}, "solver=stochastic_heun has no latents"),
        ({"mode": "nfe", "nfe": 4}, "nfe must be a list"),
        ({"mode": "nfe", "nfe": []}, "nfe must be a list"),
        ({"mode": "nfe", "draws": 1}, "draws must be"),
        ({"mode": "nfe", "nfe": [0]}, "nfe[0] must be a whole number >= 1"),
    ],
)
def test_what_is_refused(gaussian, given, message):
    with pytest.raises(UserError) as error:
        task.check([config(gaussian, **given)])
    assert message in str(error.value)


def test_refusals_are_one_line_and_leave_nothing(gaussian, capsys):
    assert "only mode=interpolate" in wrong(capsys, gaussian, "points=[1,2]")
    words = ["mode=interpolate", "points=[3,400]"]
    assert "points: row 400 of the test split is not there" in wrong(capsys, gaussian, *words)


def test_rows_and_models_that_are_refused(table, runs, realnvp):
    for given, message in (
        ({"mode": "interpolate", "points": [0, 2]}, "row 2 of t.csv is incomplete"),
        ({"mode": "interpolate", "points": [0, 100]}, "row 100 of t.csv is not there"),
    ):
        with pytest.raises(UserError, match=message):
            task.check([config(table, input=str(runs / "t.csv"), **given)])
    with pytest.raises(UserError, match="solves nothing"):
        task.check([config(realnvp, mode="nfe")])


@pytest.mark.parametrize("mode", ["encode", "nfe", "explain"])
def test_a_stranger_s_data_class_is_not_built(moons, mode):
    given = config(moons, mode=mode)
    given["data"] = {**given["data"], "_target_": "antigravity.Fly"}
    with pytest.raises(UserError, match="--trust antigravity.Fly"):
        task.check([given])


def test_help_says_which_mode_reads_a_key():
    for key, (_default, comment) in launch.keys("sample").items():
        readers = [name for name, mode in task.MODES.items() if key in mode.KEYS]
        if readers and key != "out":
            assert comment.startswith(f"{', '.join(readers)}: "), key


@pytest.mark.slow
def test_the_fields_of_a_run_with_an_sde_are_drawn_by_its_ode(runs, tmp_path):
    run = trained(
        runs / "sde",
        *[word for word in LEARNED if not word.startswith("solver")],
        *["data=8gaussians", "solver=euler_maruyama", "solver.steps=20", *TOY],
    )
    assert main(["sample", "--ckpt", str(run), "mode=explain", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "grid.png").is_file() and (tmp_path / "out" / "frames.png").is_file()
    assert json.loads((run / "metrics.json").read_text())["nll_missing"]


def test_weights_without_a_tensor_that_the_config_needs_are_the_user_s_matter(runs, gaussian, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    step = find_checkpoint(gaussian).folder
    damaged = tmp_path / step.name
    damaged.mkdir()
    for file in step.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    tensors = load_file(step / "ema.safetensors")
    del tensors["field.means"]
    save_file(tensors, damaged / "ema.safetensors")
    assert main(["sample", "--ckpt", str(damaged), "n=3"]) == 2
    assert "no tensor 'field.means'" in capsys.readouterr().err
