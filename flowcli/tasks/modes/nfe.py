"""mode=nfe: what a sampler's quality costs; distance to the data against evaluations, for several solvers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from flowcli import build, console, metrics, plots, quality
from flowcli.checkpoints import Checkpoint
from flowcli.errors import UserError, integer
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.quality import MEASURES, Measured, Yardstick
from flowcli.storage import replacing, write_json
from flowcli.tasks.events import open_dataset

KEYS: tuple[str, ...] = ("nfe", "draws")
MAX_NFE = 10_000


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Open the data.

    Raises:
        UserError: the data cannot be opened, or the flow solves nothing.
    """
    if not isinstance(flow, ContinuousFlow):
        raise UserError("mode=nfe: this model solves nothing, every sample takes one evaluation")
    if not list(quality.samplers(_budgets(config), flow)):
        raise UserError(f"nfe={config['nfe']} leaves no solver")
    _settings(config)
    open_dataset(config, checkpoint)


def _budgets(config: Mapping[str, Any]) -> list[int]:
    """Numbers of evaluations."""
    budgets = config["nfe"]
    if not isinstance(budgets, list) or not budgets:
        raise UserError(f"nfe must be a list of evaluations, e.g. nfe=[1,2,4,8], got {budgets!r}")
    return [integer(f"nfe[{i}]", n, minimum=1, maximum=MAX_NFE) for i, n in enumerate(budgets)]


def _settings(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many draws, and of how many points: as many as in the run's own evaluation, so that w2 can be compared."""
    return integer("draws", config["draws"], minimum=2, maximum=10_000), build.evaluation(config).draw_points


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Sample from the same noise by each solver; measure, with the same true points for each; write, draw, print.

    Raises:
        JobError: the run's own solver failed.
    """
    assert isinstance(flow, ContinuousFlow)
    dataset, how = open_dataset(config, checkpoint), {"seed": build.seed(config), "batch_size": config["batch_size"]}
    budgets, yardstick = _budgets(config), Yardstick(dataset, *_settings(config))
    draws = f"{yardstick.draws} draws of {yardstick.points:,} points"
    console.console().print(f"{len(list(quality.samplers(budgets, flow))) + 1} samplers, {draws} each")
    own = yardstick.measured(flow, **how)
    own = replace(own, solver=f"{own.solver} of the run")
    found, failed = quality.curve(flow, budgets, yardstick, **how)
    floor = yardstick.floor()
    table = _table([own, *found], own, floor)
    with replacing(folder / "nfe.csv") as file:
        table.write_csv(file)
    _draw(table, floor["w2"], folder / "nfe.png")
    metrics_of_own = {"nfe_sample": own.nfe, **_flat("", own.values), **_flat("_floor", floor)}
    write_json(folder / "metrics.json", {"draws": yardstick.draws, "draw_points": yardstick.points, **metrics_of_own})
    _print(table, own.solver, floor, draws)
    for line in failed:
        console.console().print(line)
    console.console().print(f"wrote nfe.csv, nfe.png in {console.shown(folder)}")


# ---------------------------------------------------------------- what is shown of it
def _flat(suffix: str, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means and standard errors by the names of metrics.json."""
    found: dict[str, float] = {}
    for name, each in values.items():
        mean, stderr = metrics.mean_and_stderr(each)
        found |= {f"{name}{suffix}": mean, f"{name}{suffix}_stderr": stderr}
    return found


def _table(found: Sequence[Measured], own: Measured, floor: Mapping[str, Tensor]) -> pl.DataFrame:
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
