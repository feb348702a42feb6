"""`flowcli compare` from run folders to a page: what is scored, what is kept, what is left out."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml

from flowcli import scores
from flowcli.checkpoints import find_checkpoint
from flowcli.cli import main
from flowcli.tasks.scoring import Scorer

ROOT = Path(__file__).parents[1]
SHORT = [
    *["trainer.batch_size=128", "trainer.threads=1", "network.width=16", "network.depth=1", "trainer.log_every=20"],
    *["trainer.validate_every=20", "trainer.warmup=10", "trainer.ema_decay=0.9", "solver=rk4", "solver.steps=5"],
    *["data.train=2000", "data.validation=200", "data.test=300", "evaluation.pictures=false"],
]
QUICK = [
    "evaluation.draws=3",
    "evaluation.draw_points=60",
    "evaluation.trajectories=4",
    "evaluation.velocity_error=false",
]


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest) -> None:
    """One test looks at drawn ones."""
    if "page_says_so" not in request.node.name:
        request.getfixturevalue("blank_pictures")


@pytest.fixture(scope="module")
def _sweep(tmp_path_factory) -> Path:
    """Half the steps against all of them, three seeds each."""
    folder = tmp_path_factory.mktemp("compared") / "sweep"
    words = [*SHORT, *QUICK, "trainer.steps=80,160", "seed=0,1,2", f"hydra.sweep.dir={folder}"]
    assert main(["train", "-m", *words]) == 0
    return folder


@pytest.fixture
def sweep(_sweep, tmp_path, monkeypatch) -> Path:
    shutil.copytree(_sweep, tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    return Path("sweep")


@pytest.fixture
def unscored(monkeypatch) -> list[Path]:
    """The runs that are scored from here on."""
    asked: list[Path] = []
    score = Scorer.__call__

    def listening(self, checkpoint, config):
        asked.append(checkpoint.run)
        return score(self, checkpoint, config)

    monkeypatch.setattr(Scorer, "__call__", listening)
    return asked


def figures(capsys, *words: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["compare", "sweep", *words, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_half_the_steps_are_worse_with_the_interval_and_the_page_says_so(sweep, capsys):
    assert main(["compare", "sweep", *QUICK, "--out", "report"]) == 0
    told = capsys.readouterr().out
    assert "trainer.steps=160 has the lowest NLL" in told
    worse = re.search(r"trainer\.steps=80 is worse by ([\d.]+)\s+nats\s+\[\+([\d.]+),\s+\+([\d.]+)\]", told)
    assert worse is not None and 0 < float(worse[2]) < float(worse[1]) < float(worse[3])
    assert "above the true density on the same points" in " ".join(told.split())
    assert "\x1b" not in told and "report/index.html" in told
    page = Path("report/index.html").read_text()
    assert "trainer.steps=160 has the lowest NLL" in page and "data:image/png;base64," in page
    assert {"table.md", "table.tex", "figures.csv", "figures.json", "samples.png", "nll-differences.png"} <= {
        file.name for file in Path("report").iterdir()
    }
    assert "flowcli train -m trainer.batch_size=128" in page and "seed=0,1,2" in page


@pytest.mark.slow
def test_one_model_under_two_sets_of_seeds_is_a_tie(sweep, capsys):
    """The runs of the full length, three of them under another name for the same thing."""
    for run in list(sweep.iterdir()):
        if run.name in "012":
            shutil.rmtree(run)
    words = [*SHORT, *QUICK, "trainer.steps=160", "seed=3,4,5", "trainer.checkpoint_every=100"]
    assert main(["train", "-m", *words, "hydra.sweep.dir=sweep/more"]) == 0
    rows = [row for row in figures(capsys, *QUICK) if row["figure"] == "nll"]
    assert sorted(row["verdict"] for row in rows) == ["reference", "tie"]
    assert {row["row"] for row in rows} == {"trainer.checkpoint_every=100", "trainer.checkpoint_every=1000"}
    assert [row["seeds"] for row in rows] == ["3", "3"]


def test_what_a_training_scored_is_not_scored_again_and_what_it_did_not_is_kept(sweep, capsys, unscored):
    assert len(figures(capsys, *QUICK)) > 10 and unscored == []
    two = [*QUICK, "--filter", "seed=0"]
    assert figures(capsys, *two, "evaluation.draws=4") and len(unscored) == 2
    assert figures(capsys, *two, "evaluation.draws=4") and len(unscored) == 2
    assert figures(capsys, *two, "--fresh") and len(unscored) == 4


@pytest.mark.slow
def test_figures_scored_anew_are_those_of_the_training(sweep, capsys):
    kept, anew = figures(capsys, *QUICK), figures(capsys, *QUICK, "--fresh")
    timed = ("train_seconds", "sample_seconds_per_1000", "log_prob_seconds_per_1000", "steps_per_second")
    for first, second in zip(kept, anew, strict=True):
        assert first["figure"] in timed or first == second
    own = json.loads((sweep / "3" / "metrics.json").read_text())
    (score,) = [
        row
        for row in figures(capsys, *QUICK, "--filter", "seed=0", "--filter", "trainer.steps=160")
        if row["figure"] == "nll"
    ]
    assert float(score["mean"]) == pytest.approx(own["nll"], rel=1e-12)


def test_a_score_belongs_to_weights_and_settings(sweep):
    checkpoint = find_checkpoint(sweep / "0")
    name = scores.key(checkpoint, checkpoint.config)
    assert scores.read(sweep / "0", name) is not None
    changed = {**checkpoint.config, "solver": {**checkpoint.config["solver"], "steps": 7}}
    quieter = {**checkpoint.config, "evaluation": {**checkpoint.config["evaluation"], "pictures": True}}
    assert scores.key(checkpoint, changed) != name and scores.key(checkpoint, quieter) == name
    file = checkpoint.folder / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert scores.key(checkpoint, checkpoint.config) != name


@pytest.mark.parametrize("damage", ["", "cut", "other", "link"])
def test_damaged_scores_are_scored_again(damage, sweep, capsys, unscored):
    (file,) = (sweep / "0" / scores.FOLDER).glob("*.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage == "link":
        outside = Path("elsewhere.safetensors")
        outside.write_bytes(content)
        file.symlink_to(outside.absolute())
    elif damage:
        file.write_bytes(content[:100] if damage == "cut" else (sweep / "1" / "checkpoints" / "last").read_bytes())
    rows = figures(capsys, *QUICK)
    if damage == "link":
        assert unscored == [] and all(row["seeds"] == "2" for row in rows if row["row"] == "trainer.steps=80")
    else:
        assert [run.name for run in unscored] == ["0"] and all(row["seeds"] == "3" for row in rows)


HOSTILE = "</script><script>alert(1)</script>\x1b[2J"
CRAFTED = {
    "short": lambda arrays, told: ({**arrays, "log_prob": arrays["log_prob"][:3]}, told),
    "flat": lambda arrays, told: ({**arrays, "w2": arrays["w2"].reshape(1, -1)}, told),
    "nan": lambda arrays, told: ({**arrays, "w2": arrays["w2"] * np.nan}, told),
    "infinite": lambda arrays, told: ({**arrays, "w2": arrays["w2"] * np.inf}, told),
    "whole": lambda arrays, told: ({**arrays, "log_prob": arrays["log_prob"].astype(np.int64)}, told),
    "empty": lambda arrays, told: ({**arrays, "c2st": arrays["c2st"][:0]}, told),
    "strange names": lambda arrays, told: ({**arrays, HOSTILE: arrays["w2"], "w2@x/99999": arrays["w2"]}, told),
    "no words": lambda arrays, told: (arrays, {}),
    "no json": lambda arrays, told: (arrays, {"scores": "{"}),
    "deep": lambda arrays, told: (arrays, {"scores": "[" * 5000}),
    "other words": lambda arrays, told: (arrays, {"scores": json.dumps({"metrics": [1], "points": 3})}),
    "hostile": lambda arrays, told: (
        arrays,
        {"scores": json.dumps({"metrics": {HOSTILE: HOSTILE, "nll": {"a": [1]}, "c": 1e999}, "points": HOSTILE})},
    ),
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] * (how not in ("short", "nan", "deep"))) for how in CRAFTED]
)
def test_scores_of_a_stranger_steer_nothing(how, sweep, capsys):
    """The kept scores of a run are replaced by what no evaluation wrote."""
    for file in (sweep / "3" / scores.FOLDER).glob("*.safetensors"):
        scores.write_arrays(sweep / "3", file.stem, *CRAFTED[how](*scores.read_arrays(sweep / "3", file.stem)))
    capsys.readouterr()
    words = ["--out", "report"] if how == "hostile" else ["--format", "csv"]
    assert main(["compare", "sweep", *QUICK, *words]) == 0
    found = capsys.readouterr()
    assert "Traceback" not in found.err and "\x1b" not in found.out + found.err
    if how == "hostile":
        assert "<script>alert" not in Path("report/index.html").read_text()


@pytest.mark.slow
def test_kept_pictures_of_a_stranger_steer_nothing(sweep, capsys):
    words = ["compare", "sweep", *QUICK, "nfe_draws=2", "--nfe", "2", "--out", "report"]
    assert main(words) == 0
    damaged = 0
    for file in (sweep / "3" / scores.FOLDER).glob("*.safetensors"):
        arrays, told = scores.read_arrays(sweep / "3", file.stem)
        if "samples" in arrays or "figures" in told or "w2@euler/2" in arrays:
            arrays |= {"samples": np.zeros((3, 7), np.float32)}
            told |= {"figures": json.dumps({"../x": [HOSTILE] * 3})}
            scores.write_arrays(sweep / "3", file.stem, arrays, told)
            damaged += 1
    assert damaged == 3
    assert main(words) == 0
    assert "<script>alert" not in Path("report/index.html").read_text() and not Path("x.png").exists()


def test_good_broken_and_foreign_folders_are_compared_anyway(sweep, capsys, unscored):
    for number in (6, 7, 8, 9, 10, 11):
        shutil.copytree(sweep / "0", sweep / str(number))
    (sweep / "6" / "run.json").write_text("?")
    (sweep / "7" / "metrics.json").unlink()
    (sweep / "8" / "metrics.json").unlink()
    (sweep / "8" / "failure.json").write_text('{"reason": "no such \\u001b[2J luck"}')
    (sweep / "9" / "checkpoints" / "best").unlink()
    for weights in (sweep / "10" / "checkpoints").glob("*/ema.safetensors"):
        weights.write_bytes(weights.read_bytes()[:200])
    config = next((sweep / "11" / "checkpoints").glob("*/config.yaml"))
    config.write_text(config.read_text().replace("flowcli.networks.mlp.MLP", "strange.Network"))
    shutil.rmtree(sweep / "11" / scores.FOLDER)
    (sweep / "somebody_else").mkdir()
    (sweep / "somebody_else" / "metrics.json").write_text("[]")
    assert main(["compare", "sweep", *QUICK, "--out", "report"]) == 0
    told = capsys.readouterr().out
    listed = told[told.index("not compared:") :]
    for run, words in {
        "6": "broken: run.json",
        "7": "unfinished:",
        "8": "failed: no such",
        "9": "not scored:",
        "10": "not scored:",
        "11": "not scored:",
    }.items():
        assert f"sweep/{run}  {words}" in listed
    assert "strange.Network" in listed and "somebody_else" not in told and "\x1b" not in told
    assert "trainer.steps=160 has the lowest NLL" in told
    assert "no such" in Path("report/index.html").read_text()


@pytest.mark.slow
def test_all_runs_are_solved_by_one_solver_if_asked(sweep, capsys, unscored):
    own = {row["row"]: row["mean"] for row in figures(capsys, *QUICK) if row["figure"] == "nfe_sample"}
    assert set(own.values()) == {"20"}
    rows = figures(capsys, *QUICK, "solver=euler", "solver.steps=5")
    assert {row["mean"] for row in rows if row["figure"] == "nfe_sample"} == {"5"} and len(unscored) == 6


def test_all_runs_measured_alike_are_called_alike(sweep, capsys):
    """Of what is forced on all runs no row and no remark tells otherwise."""
    forced = ["--filter", "seed=0", *QUICK, "solver=heun3", "solver.steps=4"]
    capsys.readouterr()
    assert main(["compare", "sweep", *forced, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in told["groups"][0]["rows"]] == ["trainer.steps=80", "trainer.steps=160"]
    assert main(["compare", "sweep", *forced, "--format", "markdown"]) == 0
    told = capsys.readouterr().out
    assert "solver=heun3" in told and "solver=rk4" not in told


def test_a_run_whose_samples_are_not_finite_is_left_out(sweep, capsys):
    (file,) = (sweep / "0" / "checkpoints").glob("step-*/ema.safetensors")
    tensors = safetensors.numpy.load_file(file)
    weight = next(name for name in tensors if name.endswith("weight"))
    safetensors.numpy.save_file({**tensors, weight: tensors[weight] * np.float32(1e30)}, file)
    capsys.readouterr()
    assert main(["compare", "sweep", *QUICK, "--format", "csv"]) == 0
    lost = [row for row in csv.DictReader(io.StringIO(capsys.readouterr().out)) if row["verdict"] == "not scored"]
    assert [row["row"] for row in lost] == ["sweep/0"]


@pytest.mark.slow
def test_curves_of_quality_against_cost(sweep, capsys):
    assert main(["compare", "sweep", *QUICK, "nfe_draws=2", "--nfe", "1,4", "--out", "report"]) == 0
    told = capsys.readouterr().out
    assert "W2 of samples by euler" in told and "W2 of samples by rk4" in told and "NFE 4" in told
    assert Path("report/cost.png").is_file()
    rows = figures(capsys, *QUICK, "nfe_draws=2", "--nfe", "1,4")
    assert {"w2@euler/1", "w2@euler/4", "w2@midpoint/4", "w2@rk4/4"} <= {row["figure"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["sweep", "--baseline", "path=vp"], "no row has it"),
        (["sweep", "--filter", "pth=vp"], "no run has such a key"),
        (["sweep", "--by", "pth"], "no run has such a key"),
        (["sweep", "--sort", "nl"], "did you mean nll"),
        (["sweep", "--metrics", "nl"], "did you mean nll"),
        (["sweep", "--nfe", "0"], "--nfe must be a whole number >= 1"),
        (["sweep", "--nfe", "a"], "want whole numbers"),
        (["sweep", "--format", "html"], "--format must be one of text, csv, json, markdown, latex"),
        (["sweep", "trainer.steps=3"], "belongs to training"),
        (["sweep", "solvr=euler"], "did you mean solver"),
        (["sweep", "solver=eulr"], "did you mean solver=euler"),
        (["sweep", "evaluation.draws=1"], "draws must be a whole number >= 2"),
        (["sweep", "solver=euler,rk4"], "one value"),
        (["solver=euler"], "name at least one run"),
        (["sweep", "--format", "csv", "--out", "x"], "--out is where the page goes"),
        (["sweep", "--by", ""], "--by names nothing"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words, told, sweep, capsys):
    capsys.readouterr()
    before = sorted(Path.cwd().rglob("*"))
    settings = [] if words[0] != "sweep" or any("evaluation" in word for word in words) else QUICK
    assert main(["compare", *words, *settings]) == 2
    found = capsys.readouterr()
    assert told in found.err and found.err.count("\n") == 1 and found.out == ""
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_compared_all_the_same(sweep, capsys, monkeypatch):
    def full(run, name, arrays, told):
        raise OSError(28, "No space left on device", str(run))

    monkeypatch.setattr("flowcli.scores.write_arrays", full)
    assert figures(capsys, *QUICK, "evaluation.draws=4", "--filter", "seed=0")


@pytest.mark.parametrize("runs", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_heavy_is_imported_where_everything_is_kept(runs, sweep):
    """60 runs from the cache are a matter of a second: torch and matplotlib alone would take three."""
    for number in range(6, runs):
        shutil.copytree(sweep / str(number % 6), sweep / str(number))
        for config in (sweep / str(number)).rglob("*.yaml"):
            if config.name in ("resolved.yaml", "config.yaml"):
                content = yaml.safe_load(config.read_text())
                content["trainer"]["lr"] = 0.001 * (number // 6 + 1)
                config.write_text(yaml.safe_dump(content))
    words = ["compare", "sweep", *QUICK, "--out", "report"]
    assert main(words) == 0
    code = f"""
import sys
from flowcli.cli import main
assert main({words!r}) == 0
heavy = {{"torch", "matplotlib", "polars", "scipy.stats", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=None, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_tables_for_papers(form, sweep, capsys):
    capsys.readouterr()
    assert main(["compare", "sweep", *QUICK, "--format", form]) == 0
    told = capsys.readouterr().out
    assert ("| ---" in told or "|---" in told or "| :--" in told) if form == "markdown" else r"\toprule" in told
    assert "trainer.steps=160" in told or r"trainer.steps=160" in told.replace("\\_", "_")
