"""Combinations that make no sense are refused before anything is written, in one line that says why."""

import shutil
from pathlib import Path

import pytest

from flowcli.cli import main

TINY = [
    *["trainer.steps=2", "trainer.batch_size=32", "trainer.threads=1", "trainer.validate_every=2"],
    *["network.width=8", "network.depth=1", "data.train=64", "data.validation=8", "data.test=20"],
    *["evaluation.draws=2", "evaluation.draw_points=10", "evaluation.trajectories=4"],
]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, blank_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that this command says, with status 2, and nothing written."""
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    status = main(list(args))
    _, error = capsys.readouterr()
    assert status == 2, error
    assert error.count("\n") == 1 and "Traceback" not in error, error
    assert sorted(Path().rglob("*")) == before, "something was written"
    return error


REFUSED: list[tuple[str, list[str]]] = [
    # what the precision cannot hold
    ("path=custom path.alpha='t+1e25*t*(1-t)' path.sigma='1-t'", ["range of float32", "dtype=float64"]),
    # what has no score
    ("objective=score base=uniform", ["objective=score", "score", "not Gaussian", "base=gaussian"]),
    ("objective=score coupling=ot", ["objective=score", "score", "coupling=ot", "coupling=independent"]),
    ("solver=euler_maruyama base=uniform", ["solver=euler_maruyama", "score", "not Gaussian", "base=gaussian"]),
    ("solver=euler_maruyama coupling=ot", ["solver=euler_maruyama", "score", "coupling=ot", "coupling=independent"]),
    ("solver=stochastic_heun coupling=ot", ["solver=stochastic_heun", "score", "coupling=ot"]),
    ("solver=euler_maruyama objective=mle", ["solver=euler_maruyama", "score", "path"]),
    # what has no density
    ("objective=mle base=data", ["objective=mle", "base=data", "no density"]),
    # what has no closed form
    ("evaluation.velocity_error=true coupling=ot", ["evaluation.velocity_error", "closed form", "coupling=ot"]),
    ("evaluation.velocity_error=true base=uniform", ["evaluation.velocity_error", "closed form", "base=gaussian"]),
    ("evaluation.velocity_error=true model=nsf", ["evaluation.velocity_error", "velocity"]),
    ("objective=marginal data=moons", ["objective=marginal", "no Gaussian mixture", "objective.over=train"]),
    ("objective=marginal base=uniform", ["objective=marginal", "closed form", "base=gaussian"]),
    ("objective=marginal coupling=ot", ["objective=marginal", "closed form", "coupling=independent"]),
    ("model=oracle coupling=ot", ["model=oracle", "coupling=independent"]),
    ("model=oracle base=uniform", ["base=gaussian"]),
    # maximum likelihood has no pairs and no path
    ("objective=mle coupling=ot", ["objective=mle", "pairs", "coupling=none"]),
    ("objective=mle path=ot", ["objective=mle", "path", "path=none"]),
    ("model=cnf objective=mle model.precondition=true", ["model.precondition=true", "path"]),
    ("objective=mle model.prediction=noise model.precondition=false", ["model.prediction=noise", "path"]),
    ("objective=mle solver.time=angle", ["solver.time=angle", "path"]),
    # paths that do not start at the noise
    *[
        (f"coupling={coupling} path={path}", [f"coupling={coupling}", "alpha_0", "path=ot"])
        for coupling, path in (("ot", "vp"), ("ot", "ve"), ("sinkhorn", "vp"), ("semidiscrete", "ve"))
    ],
    ("coupling=reflow coupling.ckpt=RUN path=vp", ["coupling=reflow", "alpha_0", "path=ot"]),
    ("base=uniform path=vp", ["path", "base=gaussian"]),
    ("base=mixture path=ve", ["path", "base=gaussian"]),
    # one network predicts everything
    ("model.prediction=noise model.precondition=true", ["model.prediction=noise", "precondition=false"]),
    ("model.prediction=noise", ["model.prediction=noise", "precondition=false"]),
    # discrete flows have no field
    ("model=realnvp path=vp", ["objective=mle", "path=none"]),
    ("model=realnvp coupling=ot", ["coupling=none"]),
    ("model=realnvp network=mlp", ["model=realnvp", "network=none"]),
    ("objective=marginal objective.over=train data=digits", ["objective.over=train", "dequantised"]),
    ("coupling=reflow coupling.ckpt=latest", ["coupling.ckpt", "latest"]),
    ("coupling=reflow coupling.ckpt=RUN coupling.pairs=1", ["coupling.pairs", ">= 2"]),
    ("model=realnvp objective.solver=rk4", ["objective.solver", "solves nothing"]),
    ("model=realnvp solver=rk4", ["model=realnvp", "solver=none"]),
    ("model=nsf divergence=exact", ["model=nsf", "divergence=none"]),
    (
        "model=realnvp objective=flow_matching",
        ["model=realnvp", "takes objective=mle", "leave out the other objective"],
    ),
    ("model=realnvp objective.kinetic=0.1", ["objective.kinetic", "continuous"]),
    ("model=realnvp objective.gradient=adjoint", ["objective", "continuous"]),
    ("model=realnvp base=data", ["base=data", "density"]),
    # others
    ("model.augment_dim=1 data=digits", ["augment_dim", "vectors"]),
    ("objective=marginal model.augment_dim=1", ["objective=marginal", "model.augment_dim=0"]),
    ("coupling=semidiscrete model.augment_dim=1", ["coupling=semidiscrete", "augment_dim"]),
    ("coupling=reflow", ["coupling.ckpt"]),
    ("coupling=reflow coupling.ckpt=nowhere", ["coupling.ckpt", "nowhere"]),
    ("base=mixture data=digits", ["base.means"]),
    ("base=data base.data=digits", ["base", "shape"]),
    ("model=oracle objective=mle", ["objective=none"]),
]


@pytest.mark.parametrize(("command", "words"), REFUSED, ids=[command for command, _ in REFUSED])
def test_what_makes_no_sense_is_refused_before_training(command, words, capsys):
    error = refused(capsys, "train", *command.split())
    missing = [word for word in words if word not in error]
    assert not missing, f"{error} does not say {missing}"


def test_one_bad_job_of_a_sweep_stops_the_sweep(capsys):
    assert "objective=score" in refused(capsys, "train", "-m", "objective=flow_matching,score", "base=uniform")


def test_a_run_from_another_data_set_has_samples_and_no_likelihood(capsys, tmp_path):
    assert main(["train", *TINY, "base=data", "solver=euler", "solver.steps=2", "hydra.run.dir=run"]) == 0
    assert "no likelihood" in capsys.readouterr().out
    error = refused(capsys, "likelihood", "--ckpt", "run")
    assert "base=data" in error and "no density" in error
    assert main(["sample", "--ckpt", "run", "n=4", "hydra.run.dir=drawn"]) == 0
    shutil.rmtree("drawn")


def test_an_sde_is_no_likelihood(capsys):
    settings = [*TINY, "objective=flow_matching", "solver=euler", "solver.steps=2", "hydra.run.dir=run"]
    assert main(["train", *settings]) == 0
    error = refused(capsys, "likelihood", "--ckpt", "run", "solver=euler_maruyama", "solver.steps=20")
    assert "solver=euler_maruyama" in error and "ODE" in error
