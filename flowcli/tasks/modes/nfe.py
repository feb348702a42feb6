"""mode=nfe: what a sampler's quality costs; distance to the data against evaluations, for several solvers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from flowcli import build, console, metrics, plots
from flowcli.checkpoints import Checkpoint
from flowcli.dataset import Dataset
from flowcli.errors import JobError, UserError, integer
from flowcli.evaluate import Truth
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.randomness import generator
from flowcli.solvers import FIXED, FixedStep
from flowcli.storage import replacing, write_json
from flowcli.tasks.events import open_dataset

KEYS: tuple[str, ...] = ("nfe", "draws")
MAX_NFE = 10_000
MEASURES = ("w2", "energy_distance")


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Open the data.

    Raises:
        UserError: the data cannot be opened, or the flow solves nothing.
    """
    if not isinstance(flow, ContinuousFlow):
        raise UserError("mode=nfe: this model solves nothing, every sample takes one evaluation")
    if not list(_samplers(config, flow)):
        raise UserError(f"nfe={config['nfe']} leaves no solver")
    _settings(config)
    open_dataset(config, checkpoint)


def _settings(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many draws, and of how many points: as many as in the run's own evaluation, so that w2 can be compared."""
    return integer("draws", config["draws"], minimum=2, maximum=10_000), build.evaluation(config).draw_points


@dataclass(frozen=True)
class _Measured:
    """One sampler: its solver, its evaluations, and each measure's value for every draw (K,)."""

    solver: str
    nfe: int
    values: dict[str, Tensor]


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Sample from the same noise by each solver; measure, with the same true points for each; write, draw, print.

    Raises:
        JobError: the run's own solver failed.
    """
    assert isinstance(flow, ContinuousFlow)
    dataset, seed = open_dataset(config, checkpoint), build.seed(config)
    draws, points = _settings(config)
    points = min(points, len(dataset.test))
    samplers = list(_samplers(config, flow))
    console.console().print(f"{len(samplers) + 1} samplers, {draws} draws of {points:,} points each")
    measure = _Measure(dataset, draws, points)

    def measured(flow: ContinuousFlow, name: str) -> _Measured:
        result = flow.sample(draws * points, seed=seed, batch_size=config["batch_size"])
        return _Measured(name, result.nfe, measure(result.value.cpu()))

    own = measured(flow, f"{flow.solver.method} of the run")
    found, failed = [own], []
    for solver in samplers:
        try:
            found.append(measured(flow.with_solver(solver), solver.method))
        except JobError as error:
            failed.append(f"{solver.method}, {solver.steps} steps: {error}")
    floor = measure.floor()
    table = _table(found, own, floor)
    with replacing(folder / "nfe.csv") as file:
        table.write_csv(file)
    _draw(table, floor["w2"], folder / "nfe.png")
    metrics_of_own = {"nfe_sample": own.nfe, **_flat("", own.values), **_flat("_floor", floor)}
    write_json(folder / "metrics.json", {"draws": draws, "draw_points": points, **metrics_of_own})
    _print(table, own.solver, floor, f"{draws} draws of {points:,} points")
    for line in failed:
        console.console().print(line)
    console.console().print(f"wrote nfe.csv, nfe.png in {console.shown(folder)}")


def _samplers(config: Mapping[str, Any], flow: ContinuousFlow) -> Iterator[FixedStep]:
    """Every solver with fixed steps at every number of evaluations that is a whole number of its steps."""
    budgets = config["nfe"]
    if not isinstance(budgets, list) or not budgets:
        raise UserError(f"nfe must be a list of evaluations, e.g. nfe=[1,2,4,8], got {budgets!r}")
    numbers = sorted({integer(f"nfe[{i}]", n, minimum=1, maximum=MAX_NFE) for i, n in enumerate(budgets)})
    for method, stages in FIXED.items():
        for nfe in numbers:
            if nfe % stages == 0:
                yield FixedStep(method, nfe // stages, flow.solver.time, nfe)


class _Measure:
    """Distances from the truth, draw by draw; every sampler meets the same true points."""

    def __init__(self, dataset: Dataset, draws: int, points: int) -> None:
        self._truth, self._draws, self._points = Truth(dataset, points), draws, points
        self._measures: dict[str, Callable[[Tensor, Tensor], float]] = {
            "w2": lambda x, y: metrics.wasserstein_2(x, y, generator=generator(dataset.seed, "slices")),
            "energy_distance": metrics.energy_distance,
        }

    def __call__(self, samples: Tensor) -> dict[str, Tensor]:
        """Values (draws,) of samples (draws * points, ...)."""
        return self._values(list(samples.split(self._points)))

    def floor(self) -> dict[str, Tensor]:
        """Values (draws,) of true points."""
        return self._values([self._truth(draw, "second truth") for draw in range(self._draws)])

    def _values(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        pairs = [(part, self._truth(draw, "truth")) for draw, part in enumerate(parts)]
        return {
            name: torch.tensor([measure(*pair) for pair in pairs], dtype=torch.float64)
            for name, measure in self._measures.items()
        }


# ---------------------------------------------------------------- what is shown of it
def _flat(suffix: str, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means and standard errors by the names of metrics.json."""
    found: dict[str, float] = {}
    for name, each in values.items():
        mean, stderr = metrics.mean_and_stderr(each)
        found |= {f"{name}{suffix}": mean, f"{name}{suffix}_stderr": stderr}
    return found


def _table(found: Sequence[_Measured], own: _Measured, floor: Mapping[str, Tensor]) -> pl.DataFrame:
    """A row a sampler; `*_excess` is over the run's own solver, draw by draw, which leaves the draws' scatter out."""
    rows = []
    for each in found:
        excess = {name: each.values[name] - own.values[name] for name in MEASURES}
        rows.append(
            {"solver": each.solver, "nfe": each.nfe}
            | _flat("", each.values)
            | _flat("_excess", excess)
            | _flat("_floor", floor)
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def _draw(table: pl.DataFrame, floor: Tensor, file: Path) -> None:
    """A curve a solver, a mark for the run's own."""
    curves = {
        str(solver): (rows["nfe"].to_numpy(), rows["w2"].to_numpy(), rows["w2_stderr"].to_numpy())
        for (solver,), rows in table.group_by("solver", maintain_order=True)
    }
    plots.quality_curve(curves, file, floor=metrics.mean_and_stderr(floor), ylabel="2-Wasserstein distance")


def _print(table: pl.DataFrame, own: str, floor: Mapping[str, Tensor], draws: str) -> None:
    """The closing table, by rising evaluations."""
    perfect = console.with_error(*metrics.mean_and_stderr(floor["w2"]))
    rows = []
    for row in table.sort("nfe", maintain_order=True).iter_rows(named=True):
        value = console.with_error(row["w2"], row["w2_stderr"])
        excess = console.with_error(row["w2_excess"], row["w2_excess_stderr"])
        shown = value if row["solver"] == own else f"{value}; {excess}"
        rows.append((f"{row['solver']}, {row['nfe']} evaluations", shown, perfect))
    console.closing_table(rows, f"2-Wasserstein distance to true points; what it is above that of {own}; {draws}")
