"""Curves of several rows: how they were trained, and what their quality costs under each solver."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowcli.plots.loss_curves import smooth
from flowcli.plots.panels import remark, small_multiples
from flowcli.plots.quality_curves import finite_points, log_evaluations, log_values
from flowcli.plots.row_labels import fit_height, row_handle, row_style, wrapped
from flowcli.plots.style import QUIET_COLOUR, TRUE_COLOUR, Array, write

TrainingRow = tuple[str, Sequence[tuple[Array, Array]]]
Curve = tuple[Array, Array, Array]


def training_curves(rows: Sequence[TrainingRow], file: Path, *, ylabel: str) -> None:
    """Draw each row's curves, steps (P,) and values (P,) of each seed, as moving averages in the row's colour.

    Values that are not finite are left out and counted.
    """
    write(file, lambda: training_figure(rows, ylabel))


def cost_panels(
    panels: Mapping[str, Mapping[str, Curve]], file: Path, *, floor: tuple[float, float] | None, ylabel: str
) -> None:
    """Draw a metric against the number of function evaluations: a panel a solver, a curve a row, common axes.

    Args:
        panels: For each solver and row NFE, value and standard error of the value, each (P,), in any order.
        floor: The metric between two sets of true samples, and its standard error: a line with a band.
        ylabel: The metric's name and unit.
    """
    write(file, lambda: cost_figure(panels, floor, ylabel))


def training_figure(rows: Sequence[TrainingRow], ylabel: str) -> Figure:
    """One panel, the legend beside it."""
    figure = Figure(figsize=(7.2, max(3.2, 0.6 + 0.26 * len(rows))))
    axes = figure.add_subplot()
    lost, drawn = 0, []
    for index, (_, curves) in enumerate(rows):
        for steps, values in curves:
            pairs = np.stack([np.asarray(part, dtype=float) for part in (steps, values)])
            kept = pairs[:, np.isfinite(pairs).all(axis=0)]
            kept = kept[:, np.argsort(kept[0], kind="stable")]
            lost += pairs.shape[1] - kept.shape[1]
            if kept.shape[1] == 0:
                continue
            line = smooth(kept[1])
            every = 0.2 if len(line) > 9 else 1  # marks at a fifth of the curve's length tell it from its neighbours
            axes.plot(kept[0], line, **_solid(index), linewidth=1.0, alpha=0.85, markersize=3.5, markevery=every)
            drawn.append(line)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if drawn:
        _robust(axes, drawn)
    else:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=QUIET_COLOUR)
    handles = [row_handle(i, label, linestyle="-", markersize=4.0) for i, (label, _) in enumerate(rows)]
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.8)
    averaged = any(len(line) >= 80 for line in drawn)
    remark(axes, "moving averages" if averaged else "", "one line a seed", f"{lost:,} not finite" if lost else "")
    return figure


def _solid(index: int) -> dict[str, Any]:
    """A row's look without dashes, which noise would hide."""
    return row_style(index) | {"linestyle": "-"}


def _robust(axes: Any, lines: Sequence[Array]) -> None:
    """Limits that the first steps of a fresh network, or a row that went astray, do not spoil."""
    everything = np.concatenate(lines)
    low, last = float(everything.min()), max(float(np.quantile(line, 0.9)) for line in lines)
    if low > 0 and everything.max() > 10 * low:
        axes.set_yscale("log")
    elif everything.max() > last + (last - low) > low:
        axes.set_ylim(low - 0.06 * (last - low), last + 0.25 * (last - low))


def cost_figure(panels: Mapping[str, Mapping[str, Curve]], floor: tuple[float, float] | None, ylabel: str) -> Figure:
    """Small multiples with one legend."""
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    figure, places = small_multiples(len(panels), 0.9, ["function evaluations (NFE)", ylabel])
    marks: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.25}
    levels = [np.array([] if floor is None else [floor[0]])]
    for axes, (solver, curves) in zip(places, panels.items(), strict=True):
        lost = 0
        for label, curve in curves.items():
            nfe, value, error = finite_points(*curve)
            lost += len(np.asarray(curve[0])) - len(nfe)
            style = row_style(labels.index(label))
            axes.errorbar(nfe, value, error, **style, **marks, linewidth=1.2, elinewidth=0.8, capsize=1.8)
            levels.append(value)
        if floor is not None:
            axes.axhspan(floor[0] - floor[1], floor[0] + floor[1], color=TRUE_COLOUR, alpha=0.2, linewidth=0)
            axes.axhline(floor[0], color=TRUE_COLOUR, linewidth=1.0, zorder=1)
        axes.set_title(wrapped(solver, 20, 2))
        remark(axes, f"{lost:,} not finite" if lost else "")
    values = np.concatenate(levels)
    for axes in places:
        if len(values) and values.min() > 0:
            log_values(axes, values)
        log_evaluations(axes)
    handles = [row_handle(i, label, **marks) for i, label in enumerate(labels)]
    if floor is not None:
        handles.append(Line2D([], [], color=TRUE_COLOUR, linewidth=1.0, label="floor: true samples"))
    widest = max(len(label) for label in labels) if labels else 0
    columns = 4 if widest <= 12 else 3 if widest <= 20 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8, columnspacing=1.4)
    fit_height(figure)
    return figure
