"""Wrong input is refused in one line that names it, with status 2, and nothing is written.

The short form is the same every time; the long one (slow) takes FLOWCLI_WRONG_INPUT cases (2,400 unless told).
"""

import gzip
import os
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import wrong_input as wrong
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flowcli import memory

CASES = int(os.environ.get("FLOWCLI_WRONG_INPUT", "2400"))
MEMORY = 6 << 30
TABLE = "a,b,c\n" + "\n".join(f"{k * 0.7 % 1:.3f},{k * 0.3 % 1:.3f},{k * k % 7}" for k in range(60))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a working folder that holds a run, a table, a file and a folder of configs."""
    root = tmp_path_factory.mktemp("wrong")
    work = root / "a" / "work"
    (work / "CONF").mkdir(parents=True)
    (work / "FILE").write_text("x")
    (work / "TABLE.csv").write_text(TABLE)
    status, _, err = wrong.call(["train", *wrong.SHORT, f"hydra.run.dir={work / 'RUN'}"], 60)
    assert (status, err) == (0, "")
    return root


@pytest.fixture
def work(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with jobs that do nothing and a machine of 6 GiB."""
    for verb in ("train", "sample", "likelihood"):
        monkeypatch.setattr(f"flowcli.tasks.{verb}.run", lambda config, folder: None)
    monkeypatch.chdir(root / "a" / "work")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    earlier = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, earlier[1]))
    yield Path()
    resource.setrlimit(resource.RLIMIT_AS, earlier)


def found(strategy: st.SearchStrategy, one: Callable[..., str | None], cases: int, *, fixed: bool) -> list[str]:
    """What was wrong in so many cases, each kind once."""
    flaws: dict[str, str] = {}

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=fixed,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def go(case: object) -> None:
        flaw = one(case)
        if flaw is not None:
            flaws.setdefault(flaw[:60], f"{str(case)[-900:]}\n    {flaw}")

    go()
    return list(flaws.values())


def line(root: Path) -> Callable[[list[str]], str | None]:
    return lambda words: wrong.flaw(words, root)


def file(root: Path, folder: str) -> Callable[[tuple[str, bytes, list[str]]], str | None]:
    def one(case: tuple[str, bytes, list[str]]) -> str | None:
        name, content, words = case
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        try:
            return wrong.flaw(words, root)
        finally:
            path.unlink()

    return one


FORMS = [
    pytest.param(0.015, True, id="short"),
    pytest.param(1.0, False, id="long", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("share", "fixed"), FORMS)
def test_command_lines(share: float, fixed: bool, root: Path, work: Path) -> None:
    flaws = found(wrong.command_lines(), line(root), int(CASES * share * 0.5), fixed=fixed)
    assert not flaws, "\n".join(flaws)


@pytest.mark.parametrize(("share", "fixed"), FORMS)
def test_config_files(share: float, fixed: bool, root: Path, work: Path) -> None:
    flaws = found(wrong.yaml_files(), file(root, "CONF"), int(CASES * share * 0.25), fixed=fixed)
    assert not flaws, "\n".join(flaws)


@pytest.mark.parametrize(("share", "fixed"), FORMS)
def test_data_files(share: float, fixed: bool, root: Path, work: Path) -> None:
    flaws = found(wrong.data_files(), file(root, "."), int(CASES * share * 0.25), fixed=fixed)
    assert not flaws, "\n".join(flaws)


# ---------------------------------------------------------------- what was found once
FOUND: list[tuple[str, list[str]]] = [
    ("path=custom path.alpha=t^2", ["path.alpha=t^2", "quotes", "\"path.alpha='t^2'\""]),
    ("path=custom path.alpha=sin(t)", ["\"path.alpha='sin(t)'\""]),
    ("solver=dopri5 solver.steps=3", ["solver.steps", "solver=euler"]),
    ("device=mps", ["device", "cpu"]),
    ("path=true", ["path=true", "have: "]),
    ("path=null", ["path=null", "none"]),
    ("coupling=[true]", ["coupling=[true]", "independent"]),
    ("=3", ["key=value"]),
    ("a:b=3", ["a:b", "is no key"]),
    ("data.std='${'", ["data.std", "${name}"]),
    ("seed=" + "9" * 5000, ["seed=999", "digits"]),
    ("seed=1e30", ["seed", "9223372036854775807"]),
    ("trainer.lr=\x07[", ["trainer.lr=\\x07["]),
    ("--config-dir " + "x" * 300, ["--config-dir", "no such folder"]),
    ("--cfg job --info all", ["--cfg", "--info"]),
    ("-m seed=range(1,1e9)", ["seed=range(1,1e9)", "100,000"]),
    ("-m seed=shuffle(range(1e9))", ["100,000"]),
    ("-m seed=range(0,1,0)", ["seed=range(0,1,0)"]),
    ("-m seed=range(5,1)", ["no value"]),
    ("-m seed=range(1000) network.depth=range(1000)", ["1,000,000 jobs"]),
    ("-m seed=interval(0,1)", ["seed=interval(0,1)", "list the values"]),
    ("-m seed=1,2 hydra.sweep.subdir=x", ["hydra.sweep.subdir=x", "each of the 2 jobs"]),
    ("-m seed=1,2 path=ot,vp hydra.sweep.subdir=${seed}", ["hydra.sweep.subdir=${seed}", "jobs 0 and 1"]),
    ("--retry-failed", ["--retry-failed", "-m"]),
    ("-m hydra.launcher=null", ["hydra.launcher"]),
    ("-m hydra.launcher._target_=os.system", ["hydra.launcher", "os.system"]),
    ("-m hydra.sweeper=null", ["hydra.sweeper"]),
    ("-m hydra.sweeper.max_batch_size=0", ["hydra.sweeper.max_batch_size"]),
    ("-m hydra.mode=RUN", ["hydra.mode=RUN", "--multirun"]),
    ("+hydra.sweeper.params.seed=1", ["hydra.sweeper.params", "-m"]),
    ("hydra.job.env_copy=[NOT_THERE]", ["hydra.job.env_copy", "NOT_THERE"]),
    ("hydra.job.chdir=true", ["hydra.job.chdir"]),
    ("hydra.job.name=a/b", ["hydra.job.name"]),
    ("hydra.output_subdir=run.json", ["hydra.output_subdir=run.json"]),
    ("hydra.run.dir=", ["hydra.run.dir"]),
    ("hydra.run.dir='a\x1bb'", ["hydra.run.dir", "\\x1b"]),
    ("hydra.searchpath=[nowhere]", ["hydra.searchpath", "nowhere"]),
    ("hydra.searchpath=[pkg://nope]", ["hydra.searchpath", "nope"]),
    ("hydra.searchpath=[x://y]", ["hydra.searchpath", "x://y"]),
    ("hydra.verbose=5", ["hydra.verbose"]),
    ("hydra.job_logging={version:2}", ["hydra.job_logging"]),
    ("hydra=5", ["hydra=5"]),
    ("data.train=1e12", ["data.train=1000000000000", "GiB"]),
    ("data.test=9223372036854775808", ["data.test", "9223372036854775807"]),
    ("network.width=1000000000", ["network.width=1000000000", "GiB"]),
    ("network.depth=16777216", ["network.depth", "1000"]),
    ("network.fourier_std=1e308", ["network.fourier_std"]),
    ("data=moons data.std=1e308", ["data.std"]),
    ("data.std=1e-320", ["data.std"]),
    ("data=moons data.shift=1e30", ["data", "coordinate 0", "constant"]),
    ("data=pinwheel data.rate=-1e308", ["data", "coordinate 0"]),
    ("data=checkerboard data.half_width=1e308", ["data.half_width"]),
    ("base=mixture base.std=1e308", ["base.std"]),
    ("base=mixture base.std=1e-320", ["base.std"]),
    ("path=vp path.beta_min=1e-320", ["path.beta_min"]),
    ("path=ve path.sigma_min=1e-320", ["path.sigma_min"]),
    ("path=custom path.warp=true", ["path.warp"]),
    ("model.augment_dim=1000000000", ["model.augment_dim"]),
    ("divergence=hutchinson divergence.probes=1000000000000", ["divergence.probes"]),
    ("coupling=reflow coupling.ckpt=RUN coupling.pairs=1000000000000000", ["coupling.pairs", "GiB"]),
    ("coupling=sinkhorn coupling.regularization=1e-320", ["coupling.regularization"]),
    ("solver.steps=10000000 solver.max_nfe=10000000", ["solver.steps"]),
    ("solver=euler_maruyama solver.steps=3 solver.diffusion=1e300*t", ["solver.diffusion"]),
    ("network._target_=a..b", ["_target_ 'a..b'"]),
    ("network._target_=flowcli.paths.Path", ["_target_ 'flowcli.paths.Path'", "abstract"]),
    ("data._target_=torch.Tensor", ["_target_ 'torch.Tensor'"]),
]


@pytest.mark.parametrize(("command", "said"), FOUND, ids=[ascii(command)[:60] for command, _ in FOUND])
def test_found_once(command: str, said: list[str], root: Path, work: Path) -> None:
    words = ["train", *wrong.SHORT, *command.split(" ")]
    flaw, status, err = wrong.judged(words, root)
    assert flaw is None
    assert status == 2 and not [word for word in said if word not in err], err


CONFIGS: list[tuple[str, str]] = [
    ("5", "keys with values"),
    ("a: &a [*a]", "alias"),
    ("!!timestamp 2020-13-45", "month"),
    ("!!int x", "'x'"),
    ("defaults: x", "defaults"),
    ("defaults: null", "defaults"),
    ("defaults: [{a: b, c: d}]", "defaults"),
    ("defaults: [[a]]", "defaults"),
    ("defaults: [mine]", "back to itself"),
    ("# @package", "@package"),
    ("# @package a b\nx: 1", "@package"),
    ("# @packagel_\nx: 1", "@package"),
    ("a: " + "9" * 5000, "digits"),
    ("a: " + "[" * 500 + "]" * 500, "deep"),
    ("[" * 5000, "deep"),
    (wrong._BOMB, "aliases"),
    (wrong._MERGES, "aliases"),
    ("# @package _global_\nhydra: {job_logging: {version: 3}}", "hydra.job_logging"),
    ("# @package _global_\nhydra: {job: {chdir: true}}", "hydra.job.chdir"),
]


@pytest.mark.parametrize(("text", "said"), CONFIGS, ids=[ascii(text)[:40] for text, _ in CONFIGS])
def test_configs_found_once(text: str, said: str, root: Path, work: Path) -> None:
    words = ["train", "--config-dir", "CONF", *wrong.SHORT, "experiment=mine"]
    Path("CONF/experiment").mkdir(exist_ok=True)
    Path("CONF/experiment/mine.yaml").write_text(text)
    flaw, status, err = wrong.judged(words, root)
    assert flaw is None
    Path("CONF/experiment/mine.yaml").unlink()
    assert status == 2 and said in err and ("mine.yaml" in err or "hydra." in err), err


def bomb_gz(path: Path) -> None:
    block = gzip.compress(b"0,0\n" * (1 << 22), mtime=0)
    path.write_bytes(block * 640)  # ten gigabytes


def bomb_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (1 << 25, 2)})
        for _ in range(1 << 5):
            member.write(bytes(1 << 24))


def bomb_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array(np.zeros(1 << 22))
    with pyarrow.parquet.ParquetWriter(path, pyarrow.schema({"a": column.type})) as writer:
        for _ in range(10):
            writer.write_table(pyarrow.table({"a": column}))


@pytest.mark.parametrize(
    ("name", "write"), [("bomb.csv.gz", bomb_gz), ("bomb.npz", bomb_npz), ("bomb.parquet", bomb_parquet)]
)
def test_bombs(name: str, write: Callable[[Path], None], root: Path, work: Path, tmp_path: Path) -> None:
    write(tmp_path / name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = [word for word in wrong.SHORT if not word.startswith("data.")]
    status, _, err = wrong.call(["train", *base, "data=table", f"data.path={tmp_path / name}"])
    assert status == 2 and name in err and "unpack" in err, err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20, "more than a gigabyte was filled"


def test_values_that_cannot_be_computed_with_are_refused_before_a_run(root: Path, work: Path) -> None:
    base = [word for word in wrong.SHORT if not word.startswith("data.")]
    for scale, extra in ((1e155, []), (1e308, []), (1e20, ["data.standardize=false"])):
        rows = "\n".join(f"{np.sin(k) * scale!r},{k}" for k in map(float, range(60))).replace("np.float64(", "")
        case = ("large.csv", ("a,b\n" + rows.replace(")", "")).encode(), ["train", *base, "data=table", *extra])
        case[2].append("data.path=large.csv")
        Path("large.csv").write_bytes(case[1])
        flaw, status, err = wrong.judged(case[2], root)
        assert flaw is None
        Path("large.csv").unlink()
        assert status == 2 and "large.csv: column 'a'" in err, err


def test_memory_is_what_the_process_may_have(work: Path) -> None:
    assert memory.there() <= resource.getrlimit(resource.RLIMIT_AS)[0]
