"""The house rules about imports, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "flowcli"

FLOORS = {
    6: ["", "__main__"],  # the front doors: `import flowcli`, `python -m flowcli`
    5: ["tasks", "tasks.*"],
    4: ["engine", "training", "training.*", "build", "console"],
    3: ["objectives", "evaluate", "resolution", "quality", "diagnostics", "pictures", "pictures.*", "cli"],
    2: [
        *["flows", "flows.base", "flows.parts", "flows.fields", "flows.clocks", "flows.continuous", "flows.augmented"],
        *["flows.cnf", "flows.oracle", "flows.discrete"],
        *["launch", "launch.*", "checkpoints", "records", "scores"],
        *["comparison", "comparison.*"],
    ],
    1: [
        *[
            "paths",
            "parametrizations",
            "couplings",
            "couplings.*",
            "assignment",
            "bases",
            "ends",
            "solvers",
            "runge_kutta",
            "sde",
            "divergence",
            "transforms",
        ],
        *["metrics", "latent", "expressions", "plots", "plots.*"],
        *["errors", "randomness", "dataset", "trust", "explain", "provenance"],
        *["numbers", "foreign", "allowance", "storage", "signals", "processes", "run", "memory", "configs"],
        *["significance", "streams", "compiling", "threads"],
        *["kernels", "kernels.*"],
        *["tracking", "tracking.*"],
    ],
}
"""A name that ends in .* stands for every module of a package."""
CONFIG_ONLY = ("data", "networks")
"""Named by configs alone: nothing imports them but tests and each other. They stand on floor 1."""


def floor_of(module: str) -> int:
    """The floor a module stands on."""
    if module.split(".")[0] in CONFIG_ONLY:
        return 1
    found = [floor for floor, names in FLOORS.items() if any(fnmatch(module, name) for name in names)]
    assert found, f"flowcli.{module} has no floor yet: give it one in this table"
    return found[0]


def modules() -> dict[str, Path]:
    """Every module of the package by its name below flowcli."""
    files = {file.relative_to(PACKAGE).with_suffix("").as_posix(): file for file in PACKAGE.rglob("*.py")}
    return {name.removesuffix("__init__").rstrip("/").replace("/", "."): file for name, file in files.items()}


def imported(file: Path) -> Iterator[str]:
    """What a file imports of flowcli, in functions too, by names below flowcli."""
    known = modules()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"]
            names = [name if name.removeprefix("flowcli.") in known else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name == "flowcli" or name.startswith("flowcli."):
                yield name.removeprefix("flowcli").removeprefix(".")


@pytest.mark.parametrize("module", [name for name in modules() if name])
def test_imports_run_downward(module: str) -> None:
    for other in imported(modules()[module]):
        assert floor_of(other) <= floor_of(module), f"flowcli.{module} imports flowcli.{other}, which stands above it"
        if other.split(".")[0] in CONFIG_ONLY:
            assert module.split(".")[0] in CONFIG_ONLY, (
                f"flowcli.{module} imports flowcli.{other}: only a config may name it"
            )


def test_no_circles() -> None:
    TopologicalSorter({name: set(imported(file)) - {name} for name, file in modules().items() if name}).prepare()


@pytest.mark.parametrize("module", ["flowcli", "flowcli.cli", "flowcli.checkpoints", "flowcli.trust"])
def test_light_imports(module: str) -> None:
    heavy = (
        "torch",
        "hydra",
        "omegaconf",
        "numpy",
        "matplotlib",
        "polars",
        "yaml",
        "pydantic",
        "rich.console",
        "rich.table",
    )
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_one_package_talks_to_hydra_and_one_file_reads_its_errors() -> None:
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(str(name).split(".")[0] in ("hydra", "omegaconf") for name in names):
                assert module.split(".")[0] in ("launch", "explain"), f"flowcli.{module} talks to Hydra"
