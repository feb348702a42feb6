"""What a sampler's quality costs: a metric against the number of function evaluations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from flowcli.plots.panels import remark
from flowcli.plots.style import QUIET_COLOUR, TRUE_COLOUR, Array, series_style, write


def quality_curve(
    curves: Mapping[str, tuple[Array, Array, Array]],
    file: Path,
    *,
    floor: tuple[float, float] | None,
    ylabel: str,
) -> None:
    """Draw a metric against the number of function evaluations (NFE), one curve for each title.

    Both axes are logarithmic; the metric's is linear where a value is not positive. Values that are not finite are
    left out and counted.

    Args:
        curves: NFE, value and standard error of the value, each (P,), in any order.
        floor: The metric between two sets of true samples, and its standard error: a line with a band.
        ylabel: The metric's name and unit.
    """
    write(file, lambda: quality_figure(curves, floor, ylabel))


def quality_figure(
    curves: Mapping[str, tuple[Array, Array, Array]], floor: tuple[float, float] | None, ylabel: str
) -> Figure:
    """One panel with all curves and the floor."""
    figure = Figure(figsize=(4.8, 3.4))
    axes = figure.add_subplot()
    drawn = {title: finite_points(*curve) for title, curve in curves.items()}
    marks: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    for index, (nfe, value, error) in enumerate(drawn.values()):
        axes.errorbar(nfe, value, error, **series_style(index), **marks, linewidth=1.3, elinewidth=0.9, capsize=2.0)
    handles = [Line2D([], [], **series_style(i), **marks, label=title) for i, title in enumerate(drawn)]
    if floor is not None:
        axes.axhspan(floor[0] - floor[1], floor[0] + floor[1], color=TRUE_COLOUR, alpha=0.2, linewidth=0)
        axes.axhline(floor[0], color=TRUE_COLOUR, linewidth=1.0, zorder=1)
        handles.append(Line2D([], [], color=TRUE_COLOUR, linewidth=1.0, label="floor: true samples"))
    axes.set(xlabel="number of function evaluations (NFE)", ylabel=ylabel)
    values = np.concatenate([value for _, value, _ in drawn.values()])
    levels = values if floor is None else np.append(values, floor[0])
    if len(values) == 0:
        axes.text(0.5, 0.6, "no finite value", transform=axes.transAxes, ha="center", color=QUIET_COLOUR)
    if len(levels) and levels.min() > 0:
        log_values(axes, levels)
    log_evaluations(axes)
    lost = sum(len(np.asarray(curve[0])) for curve in curves.values()) - len(values)
    remark(axes, "error bars: ± 1 standard error", f"{lost:,} not finite" if lost else "")
    axes.legend(handles=handles, loc="best", handlelength=2.8)
    return figure


def finite_points(nfe: Array, value: Array, error: Array) -> tuple[Array, Array, Array]:
    """The points of a curve that can be drawn, by rising NFE; an unknown error is no bar."""
    rows = np.stack([np.asarray(part, dtype=float) for part in (nfe, value, error)])
    rows = rows[:, np.isfinite(rows[:2]).all(axis=0) & (rows[0] > 0)]
    rows = rows[:, np.argsort(rows[0], kind="stable")]
    return rows[0], rows[1], np.where(np.isfinite(rows[2]), rows[2], 0.0)


def log_values(axes: Axes, levels: Array) -> None:
    """A logarithmic axis that all values fit, whatever their error bars do."""
    axes.set_yscale("log", nonpositive="clip")
    low, high = float(levels.min()), float(levels.max())
    axes.set_ylim(low / 1.5, high * 1.5)
    if high < 300 * low:  # decades alone would leave next to no ticks
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_evaluations(axes: Axes) -> None:
    """A logarithmic axis in powers of two, as steps are usually doubled."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
