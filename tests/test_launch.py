"""The hand-over to Hydra, through the command line, with a toy conf/ and toy tasks (see conftest.py)."""

import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Tasks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import given
from hypothesis import strategies as st

from flowcli import checkpoints, cli, records, run, trust
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.launch import entry, job, preflight, request

pytestmark = pytest.mark.usefixtures("toy_conf")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def flowcli(capfd: Captured) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; return the exit status, stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.main(list(words))
        return status, *capfd.readouterr()

    return call


def train_for_real(config: dict[str, Any], folder: Path) -> None:
    """A toy task that leaves a checkpoint as flowcli.run lays it out."""
    choices = checkpoints.read_config(folder / ".hydra" / "choices.yaml")
    run.RunFolder(folder).save_checkpoint(
        1, weights={}, config=config, description={"choices": choices}, progress={}, optimizer={}, best=1
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `trained` keeps its run for the next test."""
    return tmp_path_factory.mktemp("kept") / "r"


@pytest.fixture
def trained(kept: Path, tasks: Tasks, flowcli: Any) -> str:
    """A trained run, outputs/r: path=vp, model.hidden=32, solver.rtol=1e-3, seed=4."""
    if kept.exists():
        shutil.copytree(kept, "outputs/r")
        return "outputs/r"
    tasks.run = train_for_real
    words = ("path=vp", "model.hidden=32", "solver.rtol=1e-3", "seed=4", "hydra.run.dir=outputs/r")
    assert flowcli("train", *words)[0] == 0
    tasks.run = lambda config, folder: None
    tasks.checked.clear()
    tasks.ran.clear()
    shutil.copytree("outputs/r", kept)
    return "outputs/r"


# ---------------------------------------------------------------- one run
def test_a_run_gets_the_resolved_config_and_its_folder(tasks: Tasks, flowcli: Any) -> None:
    status, out, err = flowcli("train", "path=vp", "trainer.steps=1e4", "hydra.run.dir=outputs/r")
    assert (status, out, err) == (0, "", "")
    ((config, folder),) = tasks.ran
    assert folder.resolve() == Path("outputs/r").resolve()
    assert config["path"] == {"_target_": "toy.VP", "beta_min": 0.1, "beta_max": 20.0}
    assert config["trainer"]["steps"] == 1e4 and config["resume"] is None and config["trust"] == []
    assert "hydra" not in config
    assert tasks.checked == [config]
    assert yaml.safe_load((folder / ".hydra" / "resolved.yaml").read_text()) == config
    choices = yaml.safe_load((folder / ".hydra" / "choices.yaml").read_text())
    assert choices["path"] == "vp" and choices["experiment"] is None
    assert not any(group.startswith("hydra") for group in choices)


def test_the_default_folder_is_in_outputs_train(tasks: Tasks, flowcli: Any) -> None:
    assert flowcli("train")[0] == 0
    (_, folder) = tasks.ran[0]
    assert folder.parent.resolve() == Path("outputs/train").resolve()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "experiment=tiny", "seed=7", "+hydra.job.env_set.SAID=yes"],
        ["train", "hydra.mode=RUN"],
        ["sample", "--ckpt", "outputs/r", "seed=2"],
    ],
    ids=" ".join,
)
def test_a_run_is_composed_once_and_recorded_as_hydra_does(
    words: list[str], tasks: Tasks, flowcli: Any, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[Any] = []
    compose = ConfigLoaderImpl.load_configuration

    def counted(self: Any, *asked: Any, **more: Any) -> Any:
        composed.append(asked)
        return compose(self, *asked, **more)

    def by_hydra_main(request: Any, primary: str, words: list[str], _: Any, job: Any) -> None:
        entry._hand_over(request, primary, words, job)

    def run() -> tuple[int, dict[str, str], Any]:
        composed.clear()
        shutil.rmtree("outputs/again", ignore_errors=True)
        tasks.run = lambda config, folder: seen.append((config, os.environ.get("SAID")))  # type: ignore[func-returns-value]
        assert flowcli(*words, "hydra.run.dir=outputs/again")[0] == 0
        recorded = {str(file): file.read_text() for file in Path("outputs/again").rglob("*.yaml")}
        return len(composed), recorded, seen.pop()

    seen: list[Any] = []
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    once, *ours = run()
    monkeypatch.setattr(entry, "_run", by_hydra_main)
    more, *hydras = run()
    assert (once, more) == (1, 3) and ours == hydras
    assert "outputs/again/.hydra/hydra.yaml" in ours[0]


def test_hydra_tells_how_it_composes_where_it_is_asked_to(tasks: Tasks, flowcli: Any) -> None:
    status, out, err = flowcli("train", "hydra.verbose=true")
    assert status == 0 and "Defaults Tree" in out + err and len(tasks.ran) == 1


def test_imported_modules_are_not_searched_for_garbage() -> None:
    searched: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        searched.append(info["generation"])

    gc.callbacks.append(note)
    try:
        with job._for_good():
            made = [[] for _ in range(5000)]
        assert not searched and gc.isenabled() and gc.get_freeze_count() == 0
        gc.collect(1)
        assert any(each is made for each in gc.get_objects(2)), "they are in the oldest generation at once"
        gc.disable()
        with job._for_good():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.callbacks.remove(note)


def test_nothing_is_searched_for_garbage_on_the_way_out() -> None:
    code = """
import gc
from flowcli.launch import job
with job._for_good():
    pass
gc.callbacks.append(lambda phase, info: print(gc.get_freeze_count() > 10_000))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"True"}


def test_the_process_is_given_back_as_it_was(tasks: Tasks, flowcli: Any, trained: str) -> None:
    from hydra.core.global_hydra import GlobalHydra

    logging.getLogger().addHandler(mine := logging.NullHandler())
    state = sys.argv, dict(os.environ), logging.getLogger().handlers[:], logging.getLogger().level
    for words in (["train"], ["train", "path=nope"], ["sample", "--ckpt", trained], ["train", "-m", "seed=1,2"]):
        flowcli(*words)
        assert (sys.argv, dict(os.environ), logging.getLogger().handlers, logging.getLogger().level) == state
        assert not GlobalHydra.instance().is_initialized()
    assert "_ckpt" not in flowcli("train", "path=nope")[2]  # the frozen options of an earlier call are gone
    assert flowcli("train", "path=_ckpt")[0] == 2
    logging.getLogger().removeHandler(mine)


def test_a_run_folder_is_not_overwritten(tasks: Tasks, flowcli: Any, trained: str) -> None:
    status, _, err = flowcli("train", "hydra.run.dir=outputs/r")
    assert status == 2 and "holds a run already" in err and "--resume outputs/r" in err
    shutil.copytree(trained, "outputs/a run")
    assert "--resume 'outputs/a run' goes on" in flowcli("train", "hydra.run.dir='outputs/a run'")[2]


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_failure(closed: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, closed, None)
    monkeypatch.setattr(sys, "argv", ["flowcli", "train", "-m", "seed=0,1,nope", "hydra.sweep.dir=outputs/s"])
    tasks.run = fail
    with pytest.raises(SystemExit) as ended:
        cli.entry()
    getattr(sys, closed).close()
    assert ended.value.code == 0 and len(tasks.ran) == 3


# ---------------------------------------------------------------- wrong input: one line, exit 2, nothing written
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["path.sigma_mn=1"], "path.sigma_mn: no such key (path has: sigma_min); did you mean path.sigma_min?"),
        (["path=ott"], "path=ott: no such option (have: none, ot, vp); did you mean path=ot?"),
        (["pth=vp"], "did you mean path?"),
        (["sede=1"], "did you mean seed?"),
        (["model.width=5"], "did you mean network.width?"),
        (["+experimnt=tiny"], "+experimnt=tiny: nothing reads the key 'experimnt'; did you mean experiment?"),
        (["path", "ot"], "'path' is not key=value; write path=OPTION, one of none, ot, vp"),
        (["nonsense"], "'nonsense' is not key=value"),
        (["trainer.lr=["], "cannot read the override 'trainer.lr=['"),
        (["path=ot,vp"], "path=ot,vp is a sweep: add -m to run each"),
        (["-m", "path=ot,vpp"], "did you mean path=vp?"),
        (["-m", "seed=0,1", "path.sigma_mn=1"], "did you mean path.sigma_min?"),
        (["-m", "solver=euler,dopri5", "solver.steps=8"], "solver.steps: no such key"),
        (["-m", "seed=0,1,0"], "jobs 0 and 2 are the very same training (seed=0; seed=0)"),
        (["experiment=paths", "path=ot", "++seed=3,4"], "jobs 0 and 2 are the very same training"),
        (["-m", "experiment=tiny,paths"], "experiment=paths is a sweep of its own: give each its own command"),
        (["-m", "experiment=paths,null", "path=vp"], "experiment=paths is a sweep of its own"),
        (["experiment=paths,tiny", "seed=3"], "experiment=paths is a sweep of its own"),
        (["-m", "path=ot,vp", "experiment=choice(paths)", "seed=3"], "experiment=paths is a sweep of its own"),
        (["seed=${nope}"], "seed: Interpolation key 'nope' not found"),
        (["seed=???"], "seed: a value is required"),
        (["seed='\\${x}'"], "seed: a value may not hold '${'"),
        (["hydra/launcher=nope"], "is its plugin installed?"),
        (["-cn", "trian"], "did you mean train?"),
        (["resume=true"], "use the flag --resume"),
        (["trust=[os.system]"], "use the flag --trust"),
        (["--trust", "os"], "want the full name of a class"),
        (["--resolve"], "add --cfg job"),
        (["--cfg", "job", "-p", "pth"], "--package pth: there is nothing under that key"),
        (["-m", "--cfg", "job"], "leave out --multirun"),
        (["model._target_=os.system"], "'os.system' belongs to Python itself"),
        (["hydra.run.dir=FILE/x"], "not a directory"),
        (["--resume", "outputs/none"], "--resume outputs/none: no such file or folder"),
    ],
)
def test_wrong_input(words: list[str], message: str, tasks: Tasks, flowcli: Any) -> None:
    Path("FILE").touch()
    status, out, err = flowcli("train", *words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("flowcli train: error: ") and message in err
    assert tasks.ran == [] and sorted(os.listdir()) == ["FILE"]


def test_a_damaged_config_of_the_users_own(tasks: Tasks, flowcli: Any) -> None:
    (Path("mine") / "path").mkdir(parents=True)
    Path("mine/path/bad.yaml").write_text("_target_: [\n")
    status, _, err = flowcli("train", "-cd", "mine", "path=bad")
    assert (status, err.count("\n")) == (2, 1) and "bad.yaml" in err


def test_what_the_check_refuses_leaves_no_folder(tasks: Tasks, flowcli: Any) -> None:
    def check(configs: list[dict[str, Any]]) -> None:
        if any(config["seed"] < 0 for config in configs):
            raise UserError("seed must be a whole number >= 0, got -1")

    tasks.check = check
    for words in (["seed=-1"], ["-m", "seed=0,-1"]):
        assert flowcli("train", *words) == (2, "", "flowcli train: error: seed must be a whole number >= 0, got -1\n")
    assert os.listdir() == []


def test_every_value_of_a_large_sweep_is_checked(tasks: Tasks, flowcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MAX_PREFLIGHT", 3)
    status, _, err = flowcli("train", "-m", "path=ot,vp,vpp", "seed=range(5)")
    assert status == 2 and "did you mean path=vp?" in err


# ---------------------------------------------------------------- failures inside a job
def fail(config: dict[str, Any], folder: Path) -> float:
    """Fail as config.crash says."""
    match config["crash"]:
        case "user":
            raise UserError("the file is gone")
        case "job":
            raise JobError("non-finite loss at step 3; try trainer.lr=1e-4")
        case "stop":
            raise Interrupted(15, f"stopped at step 7; go on with flowcli train --resume {folder}")
        case "key":
            raise KeyboardInterrupt
        case "bug":
            raise RuntimeError("boom\nsecond line")
    return 1.0


@pytest.mark.parametrize(
    ("crash", "status", "message"),
    [
        ("user", 2, "error: the file is gone\n"),
        ("job", 1, "error: non-finite loss at step 3; try trainer.lr=1e-4\n"),
        ("bug", 1, "error: RuntimeError: boom second line; the traceback is in outputs/r/train.log\n"),
        ("stop", 143, "stopped at step 7; go on with flowcli train --resume "),
        ("key", 130, "interrupted\n"),
    ],
)
def test_failures(crash: str, status: int, message: str, tasks: Tasks, flowcli: Any) -> None:
    tasks.run = fail
    got, out, err = flowcli("train", f"crash={crash}", "hydra.run.dir=outputs/r")
    assert (got, out, err.count("\n")) == (status, "", 1), err
    assert err.startswith(f"flowcli train: {message}")
    if crash in ("user", "job", "bug"):
        (record,) = records.collect([Path("outputs/r")])
        assert record.status == "failed" and record.reason in err
        assert ("Traceback" in Path("outputs/r/train.log").read_text()) == (crash != "user")


def test_full_error_shows_the_traceback(tasks: Tasks, flowcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    tasks.run = fail
    status, _, err = flowcli("train", "crash=bug")
    assert status == 1 and "Traceback" in err and "in fail" in err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_sweep_goes_on_and_lists_its_failed_cells(tasks: Tasks, flowcli: Any) -> None:
    tasks.run = fail
    status, out, err = flowcli("train", "-m", "crash=null,job,bug,user", "seed=1", "hydra.sweep.dir=outputs/s")
    assert status == 1
    assert [config["crash"] for config, _ in tasks.ran] == [None, "job", "bug", "user"]
    assert "cell 3  crash=user" in out and "#3" not in out
    assert err == (
        "flowcli train: 3 of 4 jobs failed:\n"
        "  outputs/s/1 (crash=job): non-finite loss at step 3; try trainer.lr=1e-4\n"
        "  outputs/s/2 (crash=bug): RuntimeError: boom second line; the traceback is in outputs/s/2/train.log\n"
        "  outputs/s/3 (crash=user): the file is gone\n"
        "run them again with: flowcli train -m crash=null,job,bug,user seed=1 hydra.sweep.dir=outputs/s"
        " --retry-failed\n"
    )
    assert [record.status for record in records.collect([Path("outputs/s")])] == [
        "unfinished",
        "failed",
        "failed",
        "failed",
    ]


def test_a_signal_ends_the_sweep(tasks: Tasks, flowcli: Any) -> None:
    tasks.run = fail
    status, _, err = flowcli("train", "-m", "crash=null,stop,bug")
    assert status == 143 and len(tasks.ran) == 2 and "go on with: flowcli train -m crash=null,stop,bug" in err


def test_an_experiment_may_be_a_sweep(tasks: Tasks, flowcli: Any) -> None:
    assert flowcli("train", "experiment=paths", "seed=7")[0] == 0
    assert [(config["path"]["_target_"], config["seed"]) for config, _ in tasks.ran] == [("toy.OT", 7), ("toy.VP", 7)]
    assert tasks.checked == [config for config, _ in tasks.ran]


@pytest.mark.slow
def test_keys_of_swept_options_may_be_said(tasks: Tasks, flowcli: Any, toy_conf: Path) -> None:
    (toy_conf / "solver" / "rk4.yaml").write_text("_target_: toy.RK4\nsteps: 50\n")
    swept = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {solver: 'euler,rk4'}}}\n"
    (toy_conf / "experiment" / "solvers.yaml").write_text(swept)
    for words in (
        ["-m", "solver=euler,rk4", "solver.steps=8"],
        ["-m", "solver.steps=8", "solver=euler,rk4"],
        ["-m", "solver=euler,rk4", "solver.steps=8,9"],
        ["experiment=solvers", "solver.steps=8"],
        ["experiment=solvers", "solver.steps=8", "solver=euler,rk4", "solver.steps=8,9"],
    ):
        status, out, err = flowcli("train", *words)
        assert (status, err) == (0, ""), (words, err)
        solvers = [tuple(config["solver"].values()) for config, _ in tasks.ran]
        steps = [8, 9] if "8,9" in words[-1] else [8]
        assert sorted(solvers) == [(f"toy.{name}", n) for name in ("Euler", "RK4") for n in steps], words
        assert tasks.checked == [config for config, _ in tasks.ran] and ("steps=8" in out.partition("cell")[2]) == (
            len(steps) == 2
        )
        tasks.ran.clear()
        tasks.checked.clear()


@pytest.mark.slow
def test_hydras_values_are_those_of_the_job_before_it_starts(
    tasks: Tasks, flowcli: Any, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (200, 1):
        monkeypatch.setattr(preflight, "MAX_PREFLIGHT", limit)
        assert flowcli("train", "-m", "seed=${hydra:job.num}", "trainer.steps=5,6", f"crash=x{limit}")[0] == 0
        assert [config["seed"] for config, _ in tasks.ran] == [0, 1] and len(tasks.checked) == 2
        tasks.ran.clear()
        tasks.checked.clear()
    assert flowcli("train", "crash=${hydra:runtime.output_dir}", "hydra.run.dir=outputs/here")[0] == 0
    assert tasks.checked[-1] == tasks.ran[-1][0] and tasks.ran[-1][0]["crash"] == str(Path("outputs/here").resolve())
    assert flowcli("sample", "--ckpt", trained, "-m", "n=1,2", "seed=${hydra:job.num}")[0] == 0
    assert [config["seed"] for config, _ in tasks.ran[-2:]] == [0, 1]


# ---------------------------------------------------------------- printing configs
def test_cfg_prints_nothing_but_yaml(tasks: Tasks, flowcli: Any, trained: str) -> None:
    status, out, err = flowcli("train", "experiment=tiny", "--cfg", "job")
    assert (status, err) == (0, "")
    shown = yaml.safe_load(out)
    assert shown["path"]["_target_"] == "toy.VP" and shown["trainer"]["steps"] == 5
    out = flowcli("sample", "--ckpt", trained, "n=5", "--cfg", "job", "--resolve")[1]
    shown = yaml.safe_load(out)
    assert shown["n"] == 5 and shown["model"]["hidden"] == 32 and shown["ckpt"] == trained
    assert yaml.safe_load(flowcli("train", "--cfg", "job", "-p", "path")[1]) == {
        "_target_": "toy.OT",
        "sigma_min": 1e-4,
    }
    assert "path: vp" in flowcli("train", "path=vp", "--info", "defaults-tree")[1]
    assert tasks.ran == []


def test_a_model_may_bring_its_objective_along_and_the_user_has_the_last_word(tasks: Tasks, flowcli: Any) -> None:
    shown = yaml.safe_load(flowcli("train", "model=oracle", "--cfg", "job")[1])
    assert shown["objective"] == {"_target_": "toy.NoObjective"} and shown["model"] == {"_target_": "toy.Oracle"}
    for words in (["model=oracle", "objective=fm"], ["objective=fm", "model=oracle"]):
        assert yaml.safe_load(flowcli("train", *words, "--cfg", "job")[1])["objective"]["_target_"] == "toy.FM"


def test_a_config_folder_of_the_users_own(tasks: Tasks, flowcli: Any) -> None:
    (Path("my conf") / "path").mkdir(parents=True)
    Path("my conf/path/my.yaml").write_text("_target_: mine.Path\nsigma: 1.0\n")
    Path("my conf/exp.yaml").write_text("defaults: [train, {override path: my}, _self_]\ntrainer: {steps: 2}\n")
    assert flowcli("train", "-cd", "my conf", "path=my")[0] == 0
    assert flowcli("train", "-cd", "my conf", "-cn", "exp")[0] == 0
    for config, _ in tasks.ran:
        assert config["path"] == {"_target_": "mine.Path", "sigma": 1.0} and config["trust"] == ["mine.Path"]
    assert tasks.ran[1][0]["trainer"]["steps"] == 2


# ---------------------------------------------------------------- starting from a checkpoint
def test_a_checkpoint_keeps_its_config_when_conf_changes(
    tasks: Tasks, flowcli: Any, trained: str, toy_conf: Path
) -> None:
    (toy_conf / "path" / "vp.yaml").unlink()
    (toy_conf / "model" / "cnf.yaml").write_text("_target_: toy.CNF\nhidden: 999\nact: silu\n")
    (toy_conf / "solver" / "euler.yaml").write_text("_target_: toy.Euler\nsteps: 7\n")
    assert flowcli("sample", "--ckpt", trained, "n=5") == (0, "", "")
    config, folder = tasks.ran[0]
    assert config["model"] == {"_target_": "toy.CNF", "hidden": 32} and config["path"]["_target_"] == "toy.VP"
    assert config["solver"] == {"_target_": "toy.Dopri5", "rtol": 1e-3, "atol": 1e-5}
    assert (config["n"], config["seed"], config["ckpt"], config["weights"]) == (5, 0, trained, "ema")
    assert folder.parent.resolve() == Path("outputs/sample").resolve()

    flowcli("sample", "--ckpt", trained, "solver=euler", "--weights", "raw", "--which", "last", "--out", "x.csv")
    config = tasks.ran[1][0]
    assert config["solver"] == {"_target_": "toy.Euler", "steps": 7}  # switched whole, nothing left over
    assert (config["weights"], config["which"], config["out"]) == ("raw", "last", "x.csv")

    assert flowcli("sample", "--ckpt", trained, "-m", "solver=euler,_ckpt", "n=1,2")[0] == 0
    assert [config["solver"]["_target_"] for config, _ in tasks.ran[2:]] == 2 * ["toy.Euler"] + 2 * ["toy.Dopri5"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("path=ot", "path belongs to training and is fixed in a checkpoint"),
        ("model.hidden=5", "model belongs to training"),
        ("+model.hidden=5", "model belongs to training"),
        ("~path", "path belongs to training"),
        ("modle=5", "modle: no such key"),
        ("slover=euler", "did you mean solver?"),
        ("solver.rtl=1", "did you mean solver.rtol?"),
        ("ckpt=other", "use the flag --ckpt"),
    ],
)
def test_what_belongs_to_training_stays(word: str, message: str, tasks: Tasks, flowcli: Any, trained: str) -> None:
    for more in ([], ["--cfg", "job"]):
        status, out, err = flowcli("sample", "--ckpt", trained, word, *more)
        assert (status, out, err.count("\n")) == (2, "", 1) and message in err
    assert tasks.ran == []


def test_data_of_a_checkpoint_hints_at_input(tasks: Tasks, flowcli: Any, trained: str, toy_conf: Path) -> None:
    (toy_conf / "data").mkdir()
    (toy_conf / "data" / "table.yaml").write_text("_target_: toy.Table\n")
    assert "likelihood --ckpt RUN input=FILE" in flowcli("likelihood", "--ckpt", trained, "data.path=x.csv")[2]


AWKWARD = ["a b, 'c'={x}", 'quo"te', "back\\", "ünï", "[1,2]", "=", "a,b", "$HOME", "null"]


@pytest.mark.parametrize(
    "name", ["".join(AWKWARD[:-1]), *(pytest.param(name, marks=pytest.mark.slow) for name in AWKWARD)]
)
def test_awkward_paths(name: str, tasks: Tasks, flowcli: Any, trained: str) -> None:
    shutil.copytree(trained, f"outputs/{name}")
    status, _, err = flowcli("sample", "--ckpt", f"outputs/{name}", "--out", f"{name}.npy")
    assert (status, err) == (0, "")
    assert (tasks.ran[0][0]["ckpt"], tasks.ran[0][0]["out"]) == (f"outputs/{name}", f"{name}.npy")
    assert flowcli("train", "--resume", f"outputs/{name}")[0] == 0
    assert tasks.ran[1][1].resolve() == Path(f"outputs/{name}").resolve()
    assert flowcli("sample", "--ckpt", "outputs/${x}")[0] == 2


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Cc"]), min_size=1))
def test_quote_survives_hydras_parser(text: str) -> None:
    if "${" in text:
        with pytest.raises(UserError):
            request.quote(text)
        return
    (override,) = request.parse([f"key={request.quote(text)}"])
    assert str(override.value()) == text


def test_a_strangers_checkpoint_gives_no_trust_and_steers_no_hydra(tasks: Tasks, flowcli: Any, trained: str) -> None:
    (file,) = Path(trained).glob("checkpoints/step-*/config.yaml")
    config = yaml.safe_load(file.read_text())
    evil = {"hydra": {"callbacks": {"x": {"_target_": "os.system"}}}, "trust": ["os.system"], "ckpt": "/etc"}
    file.write_text(yaml.safe_dump({**config, **evil}))
    assert flowcli("sample", "--ckpt", trained)[0] == 0
    config = tasks.ran[0][0]
    assert config["trust"] == [] and config["ckpt"] == trained and "hydra" not in config
    assert flowcli("sample", "--ckpt", trained, "--trust", "mine.Net")[0] == 0
    assert tasks.ran[1][0]["trust"] == ["mine.Net"]

    for bad in ({"solver": {"defaults": ["x"]}}, {"defaults": ["x"]}, {"path": "ot"}, {"seed": "${oc.env:HOME}"}):
        file.write_text(yaml.safe_dump({**config, **bad}))
        status, _, err = flowcli("sample", "--ckpt", trained)
        assert (status, err.count("\n")) == (2, 1), err


# ---------------------------------------------------------------- going on with a run
def test_resume_keeps_the_frozen_config_and_the_folder(
    tasks: Tasks, flowcli: Any, trained: str, toy_conf: Path
) -> None:
    (toy_conf / "model" / "cnf.yaml").write_text("_target_: toy.CNF\nhidden: 999\n")
    before = {file.name: file.read_bytes() for file in Path(trained, ".hydra").iterdir()}
    status, _, err = flowcli("train", "--resume", trained, "trainer.steps=200", "trainer.max_time=60", "logger=csv")
    assert (status, err) == (0, "")
    config, folder = tasks.ran[0]
    assert folder.resolve() == Path(trained).resolve()
    assert config["resume"] == str(folder) and config["model"]["hidden"] == 32 and config["seed"] == 4
    assert (config["trainer"]["steps"], config["trainer"]["max_time"]) == (200, 60)
    assert config["logger"] == {"_target_": "toy.CSV"}
    assert {file.name: file.read_bytes() for file in Path(trained, ".hydra").iterdir()} == before


@pytest.mark.parametrize(
    "words", [["trainer.lr=1"], ["path=ot"], ["seed=1"], ["hydra.run.dir=x"], ["-m"], ["-cn", "train"]]
)
def test_resume_changes_nothing_else(words: list[str], tasks: Tasks, flowcli: Any, trained: str) -> None:
    status, _, err = flowcli("train", "--resume", trained, *words)
    assert (status, err.count("\n")) == (2, 1) and "--resume" in err and tasks.ran == []


def test_resume_of_a_run_that_was_stopped_before_its_first_checkpoint(tasks: Tasks, flowcli: Any) -> None:
    assert flowcli("train", "seed=3", "hydra.run.dir=outputs/early")[0] == 0
    assert flowcli("train", "--resume", "outputs/early")[0] == 0
    config, folder = tasks.ran[1]
    assert config["seed"] == 3 and config["resume"] == str(folder) and folder.name == "early"


# ---------------------------------------------------------------- workers in processes of their own
SITE = """
import os, sys, types
from pathlib import Path

def run(config, folder):
    from flowcli.errors import JobError
    Path(folder, "pid").write_text(f"{os.getpid()} {config['path']['_target_']} {config['model']['hidden']}")
    if config["seed"] == 1:
        raise JobError("non-finite loss at step 3")
    if config["seed"] == 2:
        raise RuntimeError("boom")

from flowcli import trust
trust.conf_dir = lambda: Path(os.environ["TOY_CONF"])
for verb in ("train", "sample"):
    module = types.ModuleType(f"flowcli.tasks.{verb}")
    module.check, module.run = (lambda configs: None), run
    sys.modules[module.__name__] = module
"""


@pytest.mark.slow
def test_joblib_workers(tasks: Tasks, flowcli: Any, trained: str, toy_conf: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)  # run by every Python process, the workers too
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path, "TOY_CONF": str(toy_conf)}

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flowcli", *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    done = start("train", "-m", "path=ot,vp", "seed=0,1,2", "hydra.sweep.dir=outputs/s")
    assert done.returncode == 1, done.stderr
    assert "4 of 6 jobs failed:\n  outputs/s/1 (path=ot seed=1): non-finite loss at step 3\n" in done.stderr
    assert "cell 1  path=ot seed=1  failed  non-finite loss at step 3" in done.stdout
    assert "Traceback" not in done.stderr and "Traceback" in Path("outputs/s/2/train.log").read_text()
    assert len({Path(f"outputs/s/{n}/pid").read_text().split()[0] for n in range(6)}) >= 2

    done = start("sample", "--ckpt", trained, "-m", "n=1,2", "hydra.sweep.dir=outputs/t")  # frozen options travel, too
    assert done.returncode == 0, done.stderr
    assert [Path(f"outputs/t/{n}/pid").read_text().split()[1:] for n in range(2)] == 2 * [["toy.VP", "32"]]


# ---------------------------------------------------------------- trust
def test_shipped_targets_are_those_of_a_yaml_reader(toy_conf: Path) -> None:
    (toy_conf / "model" / "odd.yaml").write_text(
        "# _target_: not.this\n_target_: 'a.Quoted' # nor _target_: this.one\n"
        'net: {_target_: b.Flow, x: [{"_target_": c.List}]}\n'
    )
    read = {name for file in toy_conf.rglob("*.yaml") for name in trust.targets(yaml.safe_load(file.read_text()))}
    assert trust.shipped_targets() == read and {"a.Quoted", "b.Flow", "c.List"} <= read


def test_targets_are_compared_whole() -> None:
    trust.refuse_untrusted({"a": [{"_target_": "toy.OT"}, {"b": {"_target_": "mine.Net"}}]}, {"mine.Net"})
    for name in ("toy.OTT", "toy", "toy.OT.system", "mine.Net", "flowcli.run.os.system", "os.system", 3, ["toy.OT"]):
        with pytest.raises(UserError, match="--trust"):
            trust.refuse_untrusted({"a": [{"b": {"_target_": name}}]}, ())


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "subprocess.Popen", "builtins.eval", "nope.X", "flowcli.nope", "flowcli.records.collect"),
        *("flowcli.run.os.system", "flowcli.run.Path", "flowcli.run.shutil.rmtree"),
    ],
)
def test_nothing_but_classes_outside_of_python_itself_is_located(name: str) -> None:
    with pytest.raises(UserError, match="_target_"):
        trust.locate(name)


def test_locate() -> None:
    assert trust.locate("flowcli.run.RunFolder") is run.RunFolder


@pytest.mark.parametrize(
    ("word", "read_as"),
    [
        ("base.data=moons", "data@base.data=moons"),
        ("objective.solver=euler,rk4", "solver@objective.solver=euler,rk4"),
        ("objective.divergence=hutchinson", "divergence@objective.divergence=hutchinson"),
        ("data.path=ot", "data.path=ot"),
        ("trainer.data=moons", "trainer.data=moons"),
        ("base.data=none_such", "base.data=none_such"),
        ("../x.data=moons", "../x.data=moons"),
    ],
)
def test_an_option_for_a_node_inside_a_node_is_told_from_a_value(monkeypatch, word, read_as):
    monkeypatch.setattr(trust, "conf_dir", lambda: Path(__file__).resolve().parents[1] / "conf")
    assert request.nested_choice(word) == read_as
