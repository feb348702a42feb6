"""What a walk through latent space decodes to: curves in the plane, columns along the way, or images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowcli.plots.image_rows import image_strips
from flowcli.plots.panels import axis_names, few_ticks, limits_of, marks, panel_shape, remark, thin
from flowcli.plots.style import TRUE_COLOUR, Array, Limits, series_style, write

MAX_COLUMNS = 8
BAND = (0.025, 0.975)
"""Quantiles of the data between which a column is shaded."""


def interpolation(
    paths: Array,
    file: Path,
    *,
    names: Sequence[str],
    ends: Array | None = None,
    data: Array | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Draw K decoded walks through the same ends: paths (K, S, *event) at S even steps, ends (E, *event) in order.

    D = 2 is drawn in the plane over the data (M, 2), with a mark every tenth of the way; other D column by column,
    the first eight, with the middle 95 % of the data shaded; images (C, H, W) with C = 1 or 3 as one strip a walk.
    Without `ends` the walks' own first and last points are marked. names: what each walk is.
    """
    paths = np.asarray(paths, dtype=float)
    if paths.ndim == 5 and paths.shape[2] in (1, 3):
        image_strips(dict(zip(names, paths, strict=True)), file, data=data)
        return
    paths = paths.reshape(*paths.shape[:2], -1)
    marked = paths[0, [0, -1]] if ends is None else np.asarray(ends, dtype=float).reshape(len(ends), -1)
    truth = None if data is None else np.asarray(data, dtype=float).reshape(len(data), -1)
    figure = plane_figure if paths.shape[2] == 2 else columns_figure
    write(file, lambda: figure(paths, names, marked, truth, columns))


def plane_figure(
    paths: Array, names: Sequence[str], ends: Array, truth: Array | None, columns: Sequence[str] | None
) -> Figure:
    """Walks (K, S, 2) as curves, with the ends as letters."""
    frame = paths.reshape(-1, 2) if truth is None else truth
    limits, ratio = panel_shape(
        [_reach(limits_of(frame[:, i]), ends[:, i], paths[..., i]) for i in (0, 1)], columns is None
    )
    figure = Figure(figsize=(4.4, 0.95 + 3.6 * ratio), layout="compressed")
    axes = figure.add_subplot()
    if truth is not None:
        shown = thin(truth, 3000)
        axes.scatter(*shown.T, color=TRUE_COLOUR, zorder=1, **(marks(len(shown)) | {"alpha": 0.25}))
    for index, path in enumerate(paths):
        _draw_walk(axes, path[:, 0], path[:, 1], index)
    for i, (x, y) in enumerate(ends):
        if np.isfinite([x, y]).all():
            halo = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8}
            axes.annotate(_letter(i), (x, y), fontsize=8, ha="center", va="center", bbox=halo, zorder=6)
    names_of_axes = axis_names(columns, 2)
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=names_of_axes[0], ylabel=names_of_axes[1])
    axes.set_title("Through latent space")
    remark(axes, "a mark every tenth of the way")
    axes.set_box_aspect(ratio)
    few_ticks(axes)
    point = Line2D([], [], color=TRUE_COLOUR, marker="o", markersize=3, linestyle="none", label="data")
    _legend(figure, names, None if truth is None else point)
    return figure


def columns_figure(
    paths: Array, names: Sequence[str], ends: Array, truth: Array | None, columns: Sequence[str] | None
) -> Figure:
    """Each column of walks (K, S, D) against the way gone, a panel a column."""
    total = paths.shape[2]
    count = min(total, MAX_COLUMNS)
    across = 1 if count == 1 else 2
    down = math.ceil(count / across)
    figure = Figure(figsize=(4.6 if across == 1 else 6.8, 0.65 + (2.4 if count == 1 else 1.45 * down)))
    grid = figure.subplots(down, across, sharex=True, squeeze=False)
    gone, stops = np.linspace(0, 1, paths.shape[1]), np.linspace(0, 1, len(ends))
    labels = axis_names(columns, total)
    for column, axes in enumerate(grid.flat):
        if column >= count:
            axes.set_axis_off()
            continue
        bulk = limits_of(paths[..., column].reshape(-1))
        if truth is not None and np.isfinite(truth[:, column]).any():
            low, high = np.nanquantile(truth[:, column], BAND)
            axes.axhspan(low, high, color=TRUE_COLOUR, alpha=0.12, linewidth=0)
            bulk = (float(low), float(high)) if high > low else bulk
        for index, path in enumerate(paths):
            _draw_walk(axes, gone, path[:, column], index)
        axes.plot(stops, ends[:, column], "o", color="black", markersize=4.5, zorder=5, clip_on=False)
        axes.set_title(labels[column])
        few_ticks(axes, 4)
        axes.set(xlim=(0, 1), ylim=_reach(bulk, ends[:, column], paths[..., column]))
        axes.set_xticks(stops, [_letter(i) for i in range(len(ends))])
        axes.tick_params(labelbottom=True)
        if column + across >= count:
            axes.set_xlabel("way through latent space")
    remark(grid[0, -1], f"first {count} of {total} columns" if count < total else "")
    shade = Patch(facecolor=TRUE_COLOUR, alpha=0.15, label="middle 95 % of the data")
    _legend(figure, names, None if truth is None else shade)
    return figure


def _draw_walk(axes: Axes, x: Array, y: Array, index: int) -> None:
    """One walk with a mark every tenth of the way."""
    tenths = np.unique(np.linspace(0, len(x) - 1, 11).round().astype(int)).tolist()
    edge: dict[str, Any] = {"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.plot(x, y, **series_style(index), **edge, markevery=tenths, zorder=3)


def _reach(bulk: Limits, ends: Array, walks: Array) -> Limits:
    """Limits that show the bulk of the data, all ends, and of the walks what is not far beyond."""
    low, high = bulk
    far = high - low
    values = np.concatenate([ends, walks[np.abs(walks - (low + high) / 2) <= far]])
    values = values[np.isfinite(values)]
    margin = 0.06 * far
    return float(values.min(initial=low)) - margin, float(values.max(initial=high)) + margin


def _letter(index: int) -> str:
    return chr(ord("A") + index % 26)


def _legend(figure: Figure, names: Sequence[str], data: Line2D | Patch | None) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], **series_style(index), markersize=4, label=name) for index, name in enumerate(names)
    ]
    if data is not None:
        handles.append(data)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handlelength=2.6)
