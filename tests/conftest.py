"""What several test files share: a small conf/ of our own with toy tasks, so that the front is tested without torch."""

import base64
import gc
import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Servers

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and often many workers (pytest -n)
os.environ.setdefault("MPLBACKEND", "Agg")
os.fsync = os.fstat  # no test cuts the power: what was written is read by whoever comes, a killed process's bytes too
gc.set_threshold(20_000, 20, 50)  # thousands of collected tests are nothing to walk through again and again

HYDRA = """
hydra:
  run: {dir: "outputs/VERB/${now:%Y-%m-%d_%H-%M-%S-%f}"}
  sweep: {dir: "outputs/sweeps/${now:%Y-%m-%d_%H-%M-%S-%f}", subdir: "${hydra.job.num}"}
"""
ON_CKPT = "defaults: [_ckpt, _self_, override hydra/job_logging: file, override hydra/hydra_logging: plain]\n"
TOY_CONF = {
    "train.yaml": """
defaults:
  - network: mlp
  - path: ot
  - objective: fm
  - solver: dopri5
  - trainer: default
  - logger: none
  - model: cnf
  - _self_
  - experiment: null
  - override hydra/job_logging: file
  - override hydra/hydra_logging: quiet
seed: 0 # of everything
crash: null
trust: []
resume: null
"""
    + HYDRA.replace("VERB", "train"),
    "resume.yaml": ON_CKPT + "trust: []\nresume: ???\n",
    "sample.yaml": ON_CKPT
    + "n: 1000 # how many\nseed: 0\nckpt: ???\nweights: ema\nwhich: best\nout: null\ntrust: []\n"
    + HYDRA.replace("VERB", "sample"),
    "likelihood.yaml": ON_CKPT
    + "input: null # a file to score\nseed: 0\nckpt: ???\nweights: ema\nwhich: best\ntrust: []\n"
    + HYDRA.replace("VERB", "likelihood"),
    "network/mlp.yaml": "_target_: toy.MLP\nwidth: 64\n",
    "path/ot.yaml": "_target_: toy.OT\nsigma_min: 1.0e-4\n",
    "path/vp.yaml": "_target_: toy.VP\nbeta_min: 0.1\nbeta_max: 20.0\n",
    "path/none.yaml": "_target_: toy.NoPath\n",
    "objective/fm.yaml": "_target_: toy.FM\nweighting: unit\n",
    "objective/none.yaml": "_target_: toy.NoObjective\n",
    "solver/dopri5.yaml": "_target_: toy.Dopri5\nrtol: 1.0e-5\natol: 1.0e-5\n",
    "solver/euler.yaml": "_target_: toy.Euler\nsteps: 100\n",
    "trainer/default.yaml": "_target_: toy.Trainer\nsteps: 100\nmax_time: null\nlr: 0.001\n",
    "logger/none.yaml": "_target_: toy.NoLogger\n",
    "logger/csv.yaml": "_target_: toy.CSV\n",
    "model/cnf.yaml": "_target_: toy.CNF\nhidden: 64\n",
    "model/oracle.yaml": """
defaults:
  - override /objective@_global_.objective: none
  - _self_
_target_: toy.Oracle
""",
    "experiment/tiny.yaml": "# @package _global_\ndefaults: [{override /path: vp}]\ntrainer: {steps: 5}\n",
    "experiment/paths.yaml": """
# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {path: "ot,vp", seed: "0,1"}}}
""".lstrip(),
}
REPOSITORY = Path(__file__).resolve().parents[1]
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")
"""A PNG of one pixel."""


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is a dot: what it shows is computed, and drawn by the tests of the plots."""
    import flowcli.plots
    from flowcli.storage import write_bytes

    for module in pkgutil.iter_modules(flowcli.plots.__path__, "flowcli.plots."):
        found = importlib.import_module(module.name)
        if hasattr(found, "write"):
            monkeypatch.setattr(found, "write", lambda file, build: write_bytes(file, DOT))


def write_conf(folder: Path) -> Path:
    """Write the toy conf/ with the real logging options."""
    for name, text in TOY_CONF.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in ("job_logging/file.yaml", "hydra_logging/plain.yaml", "hydra_logging/quiet.yaml"):
        file = folder / "hydra" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((REPOSITORY / "conf" / "hydra" / name).read_text())
    return folder


@pytest.fixture
def toy_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in (tmp/work), and a toy conf/ (tmp/conf) in place of the shipped one."""
    from flowcli import trust

    conf = write_conf(tmp_path / "conf")
    monkeypatch.setattr(trust, "conf_dir", lambda: conf)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return conf


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Fork servers, one for each process of a job; all test files share them."""
    servers = Servers()
    yield servers
    for server in servers.values():
        server.__exit__()


class Tasks:
    """Toy tasks in place of flowcli.tasks.<verb>; they remember what they were given."""

    def __init__(self) -> None:
        self.checked: list[dict[str, Any]] = []
        self.ran: list[tuple[dict[str, Any], Path]] = []
        self.check: Callable[[list[dict[str, Any]]], None] = lambda configs: None
        self.run: Callable[[dict[str, Any], Path], float | None] = lambda config, folder: None

    def _check(self, configs: list[dict[str, Any]]) -> None:
        self.checked += configs
        self.check(configs)

    def _run(self, config: dict[str, Any], folder: Path) -> float | None:
        self.ran.append((config, folder))
        return self.run(config, folder)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """Stand in for every task that Hydra starts."""
    toy = Tasks()
    for verb in ("train", "sample", "likelihood"):
        module: Any = types.ModuleType(f"flowcli.tasks.{verb}")
        module.check, module.run = toy._check, toy._run
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return toy
