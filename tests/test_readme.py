"""Every command of the README runs, on a small run; its tables and links say what is there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from flowcli import launch
from flowcli.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN, SWEEP = "outputs/train/RUN", "outputs/sweeps/SWEEP"
COLUMNS = ("temp", "dewp", "humid")
SOLVER = ("solver=euler", "solver.steps=4")
SMALL = (
    "trainer.steps=10",
    "trainer.batch_size=64",
    "network.width=8",
    "evaluation.draws=2",
    "evaluation.draw_points=40",
    "evaluation.trajectories=20",
    "evaluation.dequantization_draws=2",
    "evaluation.pictures=false",
)
SPLITS = ("data.train=1000", "data.validation=100", "data.test=100")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SLOW = (
    "hydra/launcher=joblib",
    "torchrun ",
    "trainer.compile=true",
    "experiment=paths",
    "--nfe ",
    "--sort w2",
    "--sort nll",
    "mode=animate",
    "mode=explain",
)


class Block(NamedTuple):
    """A fenced block: its language, the file name behind it, and its text."""

    language: str
    name: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]
LINES = [line for block in BLOCKS if block.language == "bash" for line in block.text.splitlines() if line.strip()]
SET_UP = [line for line in LINES if line.startswith("python3 -m venv ")]
TOUR = [line for line in LINES if line not in SET_UP]
NOTES = "From the notes to a command"
DISCRETE = ("realnvp", "maf", "nsf", "nice")


def shortened(words: list[str]) -> list[str]:
    """A training's overrides, followed by those that make it small; of its own values only counts and seeds are cut."""
    if "--cfg" in words:
        return words
    if "--resume" in words:
        return [re.sub(r"^(trainer\.steps=)\d+$", r"\g<1>24", word) for word in words]
    words = [re.sub(r"^(solver\.steps=\d)\d+$|^(seed=\d+),.*$", r"\1\2", word) for word in words]  # 50 -> 5; 0,1 -> 0
    said = {word.partition("=")[0] for word in words}
    discrete = any(word.startswith("model=") and word[6:].split(",")[0] in DISCRETE for word in words)
    bare = discrete or any(word.startswith("model=oracle") for word in words)
    small = [word for word in SMALL if not (word.startswith("network.") and bare)]
    if "evaluation.pictures" in said:
        small.remove("evaluation.pictures=false")
    if not said & {"solver", "solver.steps"} and not discrete:
        small += SOLVER
    small += ["coupling.iterations=20"] if "coupling=semidiscrete" in words else []
    if "data=table" not in words and "data=digits" not in words:
        small += [word for word in SPLITS if word.partition("=")[0] not in said]
    return [*words, *small]


def run(line: str) -> None:
    """Run one command line of the README in this process."""
    words = shlex.split(line)
    while "=" in words[0]:
        assert words.pop(0) == "PYTHONPATH=.", f"{line}: the test sets no other variable"
    if words[0] == "torchrun":
        at = words.index("train")
        subprocess.run([*TORCHRUN, *words[1 : at + 1], *shortened(words[at + 1 :])], check=True)
        return
    program, verb, *rest = words
    assert program == "flowcli", f"{line}: not a flowcli command"
    if verb == "train":
        rest = shortened(rest)
    elif verb == "sample" and not any(word.startswith(("n=", "mode=")) for word in rest):
        rest = [*rest, "n=50"]
    assert main([verb, *rest]) == 0, line


def table(file: Path) -> None:
    """A table in which one cell is missing."""
    values = np.random.default_rng(0).normal(size=(200, len(COLUMNS))).round(1)
    frame = pl.DataFrame({name: values[:, i] for i, name in enumerate(COLUMNS)})
    frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col("dewp")).alias("dewp")
    ).write_csv(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's commands find: a run, a sweep, tables, and the files that it shows itself."""
    folder = tmp_path_factory.mktemp("readme")
    before = Path.cwd()
    os.chdir(folder)
    try:
        run(f"flowcli train path=vp evaluation.pictures=true hydra.run.dir={RUN}")
        run(f"flowcli train path=ot hydra.run.dir={SWEEP}/1")
        shutil.copytree(RUN, f"{SWEEP}/0")
    finally:
        os.chdir(before)
    table(folder / "weather.csv")
    points = np.random.default_rng(1).normal(size=(50, 2)) * 3
    pl.DataFrame({"x0": points[:, 0], "x1": points[:, 1]}).write_csv(folder / "new.csv")
    for block in BLOCKS:
        if block.name:
            (folder / block.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.name).write_text(block.text)
    return folder


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A copy of those files to work in, where `PYTHONPATH=.` would find modules; what is quick draws dots."""
    if not request.node.get_closest_marker("slow"):
        request.getfixturevalue("blank_pictures")
        monkeypatch.setattr("flowcli.ends.MEASURED_ROWS", 1024)
        monkeypatch.setattr("flowcli.objectives.COUPLED_ROWS", 1024)
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.syspath_prepend(tmp_path / "w")
    return tmp_path / "w"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = README.split(f" {heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def ticked(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


# ---------------------------------------------------------------- commands
def commands() -> list[object]:
    """The tour, command by command; one that needs the run of the command before it comes with that one."""
    found: list[object] = []
    own = [line for line in TOUR if "mynets" in line or "--config-dir" in line]
    for line in TOUR:
        if line not in own:
            slow = [pytest.mark.slow] if any(word in line for word in SLOW) else []
            found.append(pytest.param([line], id=line.removeprefix("flowcli "), marks=slow))
    return [*found, pytest.param(own, id="own parts")]


@pytest.mark.parametrize("lines", commands())
def test_tour(lines: list[str], workspace: Path) -> None:
    for line in lines:
        run(line)


NOTED = [ticked(row[1])[0] for row in rows(NOTES)]
TRAINED = ("objective.gradient=adjoint", "model=realnvp,nice", "model=maf,nsf", "mode=nfe", "points=[3,17,5]")
"""What the tour has, too, or every form of tests/test_tasks.py."""


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=[pytest.mark.slow] * any(word in line for word in SLOW + TRAINED)) for line in NOTED],
    ids=lambda line: line.removeprefix("flowcli "),
)
def test_notes(line: str, workspace: Path) -> None:
    run(re.sub(r"( [\w.]+=[\w.]+)(,\w+)+", r"\1", line).replace(" -m ", " "))  # of a sweep its first cell


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for line in NOTED if " -m " in line], ids=lambda line: line.removeprefix("flowcli ")
)
def test_sweeps_of_the_notes(line: str, workspace: Path) -> None:
    run(line)


def test_every_system_of_the_notes_has_its_row() -> None:
    commands = " ".join(ticked(row[1])[0] for row in rows(NOTES))
    for group in ("model", "objective", "coupling", "base"):
        said = {option for found in re.findall(rf"\b{group}=([\w,]+)", commands) for option in found.split(",")}
        usual = {"cnf", "flow_matching", "independent", "gaussian", "none"}
        assert set(launch.groups()[group]) - usual <= said, group
    assert all(row[0] for row in rows(NOTES))


def test_the_tour_is_all_there() -> None:
    lines = [line for line in TOUR if not line.startswith("torchrun ")]
    assert {shlex.split(line.removeprefix("PYTHONPATH=. "))[1] for line in lines} == {
        "train",
        "sample",
        "likelihood",
        "compare",
    }
    assert all(block.language in ("bash", "python", "yaml") for block in BLOCKS)
    assert sum(line.startswith("```") for line in README.splitlines()) == 2 * len(BLOCKS)  # the pattern missed none


def test_python(workspace: Path) -> None:
    (example,) = [block.text for block in BLOCKS if block.language == "python" and not block.name]
    exec(compile(example, "README.md", "exec"), {})


# ---------------------------------------------------------------- set-up
def test_set_up_commands(workspace: Path) -> None:
    install = r'\.venv/bin/pip install -c constraints\.txt -e "?\.(\[[\w,]+\])?"?'
    pattern = rf"python3 -m venv \.venv && {install} && \.venv/bin/(.+)"
    found = [re.fullmatch(pattern, line) for line in SET_UP]
    assert len(found) == 2 and all(found), SET_UP
    (_, main_job), (extras, tests) = [match.groups() for match in found if match]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tests == "pytest" and set(extras.strip("[]").split(",")) <= set(project["optional-dependencies"])
    assert (ROOT / "constraints.txt").is_file() and "flowcli" in project["scripts"]
    run(main_job)


def test_ci_runs_the_second() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    (pattern,) = re.findall(r"grep -x '(.*)' README\.md", script)
    assert [line for line in README.splitlines() if re.fullmatch(pattern, line)] == [SET_UP[1]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# ---------------------------------------------------------------- what it says
def test_config_groups() -> None:
    said = {
        ticked(group)[0]: ticked(re.sub("`(rtol|atol|steps|diffusion)`", "", options))
        for group, options in rows("Config groups")
    }
    assert {group: sorted(options) for group, options in said.items()} == launch.groups()


def test_metric_names(made: Path) -> None:
    known = json.loads((made / RUN / "metrics.json").read_text())
    names = {name for row in rows("What the numbers mean") for name in ticked(row[0])}
    # those of whole numbers, of a bounded base, of extra coordinates, of a coupling: other tests have them
    some = {"bits_per_dim", "outside", "nll_inside", "augment_draws"}
    some |= {"transport_cost", "transport_cost_independent", "coupling_share", "coupling_error", "velocity_error_train"}
    some |= {"coupling_fit_seconds", "fokker_planck_residual"}
    assert names - some <= set(known)
    assert {name for name in known if not name.endswith(("_stderr", "_floor"))} <= names


ELSEWHERE = ("coupling.safetensors", "output.txt", "tensorboard/", "tracking.json")
"""Files that other runs have: tests/test_tasks.py, test_sweeps.py, test_tracking.py."""


def test_run_folder(made: Path) -> None:
    for row in rows("The run folder"):
        for name in ticked(row[0]):
            if name in ELSEWHERE:
                continue
            assert list((made / RUN).glob(name.replace("step-N", "step-*"))), f"a run has no {name}"
    (step,) = [row for row in rows("The run folder") if "step-N" in row[0]]
    (folder,) = (made / RUN / "checkpoints").glob("step-*")
    assert {file.name for file in folder.iterdir()} == set(ticked(step[1]))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in [*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'<img src="([^"]+)"', text)]:
        file, _, anchor = target.partition("#")
        assert not file or (ROOT / file).is_file(), target
        assert not anchor or anchor in headings(file or name), target


def headings(name: str) -> set[str]:
    """What a link may name in a file."""
    titles = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures and all(picture.stat().st_size < 150_000 for picture in pictures)
