"""The front: help, options, completion, and what comes out of a pipe."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Tasks

from flowcli import __version__, cli, launch, trust

Captured = pytest.CaptureFixture[str]


def start(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m flowcli ...` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **options.pop("env", {})}
    command = [sys.executable, "-m", "flowcli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)


# ---------------------------------------------------------------- help
@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_no_arguments_and_help_show_the_verbs(words: list[str], capsys: Captured) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for verb in ("train", "sample", "likelihood", "compare", "--install-completion", "--version"):
        assert verb in out


@pytest.mark.parametrize("verb", ["train", "sample", "likelihood", "compare"])
def test_each_verbs_help_fits_80_columns_and_has_an_example(verb: str, capsys: Captured) -> None:
    assert cli.main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(f"  flowcli {verb} ") for line in lines)
    assert not any(
        "<list" in line or line.endswith("...") for line in lines if "RUN}" not in line and "Usage" not in line
    )


def test_help_lists_the_shipped_groups_and_keys(capsys: Captured) -> None:
    cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for group, options in launch.groups().items():
        assert f"{group} {', '.join(options)}" in text
    assert (
        "seed=0 " in text
        and "trust=" not in text
        and "defaults" not in text.replace("defaults-tree", "").replace("defaults,", "")
    )
    cli.main(["sample", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for key, (default, comment) in launch.keys("sample").items():
        assert key in cli.CHOICES or key in ("ckpt", "out", "trust") or f"{key}={default} {comment}" in text
    assert "dopri5" in text and "network" not in text


def test_version(capsys: Captured) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"flowcli {__version__}\n"


# ---------------------------------------------------------------- wrong options: one line, exit 2
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trian"],
            "flowcli: error: no such verb 'trian' (have: train, sample, likelihood, compare); did you mean train?",
        ),
        (["train", "--ckpt", "x"], "flowcli train: error: no such option: --ckpt"),
        (["sample", "n=3"], "flowcli sample: error: missing option '--ckpt'"),
        (["sample", "--ckpt", "x", "--weights", "mean"], "--weights must be one of ema, raw, got 'mean'"),
        (["train", "--cfg", "all,"], "--cfg must be one of job, hydra, all, got 'all,'"),
        (["train", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["compare"], "flowcli compare: error: missing argument 'RUN'"),
        (["compare", "x", "--format", "xml"], "--format must be one of text, csv, json, markdown, latex, got 'xml'"),
        (["--nope"], "flowcli: error: no such option: --nope"),
    ],
)
def test_wrong_options(words: list[str], message: str, capsys: Captured, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and message in err
    assert os.listdir() == []


def test_compare_hands_its_options_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Task:
        run = staticmethod(lambda **options: calls.append(options))

    monkeypatch.setitem(sys.modules, "flowcli.tasks.compare", Task)
    words = [
        "compare",
        "a",
        "solver=euler",
        "b",
        "--sort",
        "nll",
        "--format",
        "csv",
        "--metrics",
        "nll, w2",
        "--nfe",
        "1,2",
    ]
    assert cli.main([*words, "--filter", "path=ot", "--filter", "seed=1", "--by", "path", "--fresh"]) == 0
    assert cli.main(["compare", "a"]) == 0
    nothing = {"by": None, "baseline": None, "sort": None, "filters": (), "metrics": None, "nfe": [], "format": "text"}
    nothing |= {
        "words": [],
        "out": None,
        "fresh": False,
        "trust": (),
        "runs": [Path("a")],
        "command": "flowcli compare a",
    }
    assert calls[1] == nothing
    assert calls[0].pop("command").startswith("flowcli compare a solver=euler b --sort nll")
    assert calls[0] == {
        "runs": [Path("a"), Path("b")],
        "words": ["solver=euler"],
        "sort": "nll",
        "format": "csv",
        "by": ["path"],
        "metrics": ["nll", "w2"],
        "nfe": [1, 2],
        "filters": ["path=ot", "seed=1"],
        "baseline": None,
        "out": None,
        "fresh": True,
        "trust": (),
    }


# ---------------------------------------------------------------- processes
def test_start_up_imports_no_pydantic_and_an_error_no_torch(tmp_path: Path) -> None:
    for words in (["train", "--help"], ["train", "path.sigma_mn=1"]):
        code = f"import sys; from flowcli.cli import main; main({words!r}); print(*sys.modules, file=sys.stderr)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        loaded = done.stderr.split("\n")[-2].split()
        assert "typer" in loaded and "pydantic" not in loaded and "torch" not in loaded and "rich.console" not in loaded


def test_output_into_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m flowcli train --cfg all | true; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")


def test_module_and_exit_status(tmp_path: Path) -> None:
    done = start("train", "path=nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(
        "flowcli train: error: path=nope: no such option"
    )
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- completion
def complete_bash(words: Sequence[str], folder: Path) -> list[str]:
    """What bash would offer for the last word; it splits words at '='."""
    code = f"""
from pathlib import Path
from flowcli import trust
trust.conf_dir = lambda: Path({str(trust.conf_dir())!r})
from flowcli.cli import main
main()
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "_FLOWCLI_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["flowcli", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tra"], ["train"]),
        (["train", "path", "="], ["none", "ot", "vp"]),
        (["train", "path", "=", "o"], ["ot"]),
        (["train", "-m", "path", "=", "vp", "path.beta_mi"], ["path.beta_min=0.1"]),
        (["train", "path", "=", "vp", "solver", "=", "eu"], ["euler"]),
        (["train", "solver."], ["solver.atol=", "solver.rtol="]),
        (["train", "path", "=", "nope", "solver."], []),
        (["train", "--mul"], ["--multirun"]),
    ],
)
def test_bash_completion(words: list[str], expected: list[str], toy_conf: Path) -> None:
    assert complete_bash(words, Path.cwd()) == expected


def test_zsh_completion_and_completion_with_a_checkpoint(
    tasks: Tasks, toy_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_launch import train_for_real

    tasks.run = train_for_real
    assert cli.main(["train", "path=vp", "hydra.run.dir=run"]) == 0
    assert complete_bash(["sample", "--ckpt", "run", "solver", "="], Path.cwd()) == ["dopri5", "euler"]
    assert complete_bash(["sample", "--ckpt", "run", "solver.rt"], Path.cwd()) == ["solver.rtol=1e-05"]
    assert complete_bash(["sample", "--ckpt", "nothing", "solver.rt"], Path.cwd()) == []
    request = launch.Request("train", overrides=["path=vp"])
    assert launch.complete(request, "path.beta_m") == ["path.beta_max=", "path.beta_min="]
    assert launch.complete(request, "solver=") == ["solver=dopri5", "solver=euler"]


def test_completion_is_installed_by_typer(tmp_path: Path) -> None:
    # without the detection of a shell among our parents: a job of a machine may have none
    environment = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = start("--show-completion", "bash", env=environment)
    assert done.returncode == 0 and "_FLOWCLI_COMPLETE=complete_bash" in done.stdout
    done = start("--install-completion", "bash", env=environment)
    assert done.returncode == 0 and any(tmp_path.rglob("*flowcli*")), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [["--help"], ["train", "--cfg", "job"]], ids=" ".join)
def test_output_that_cannot_be_written_is_said(words: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flowcli", *words], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the output cannot be written: no space left on device" in done.stderr
