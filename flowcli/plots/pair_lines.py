"""The pairs of noise and data that a coupling makes: crossings under one beside none under another."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowcli.plots.panels import (
    axis_names,
    grid_shape,
    inside,
    limits_of,
    marks,
    panel_shape,
    small_multiples,
    subtitle,
    thin,
)
from flowcli.plots.style import QUIET_COLOUR, TRUE_COLOUR, Array, Limits, write

MAX_LINES = 400  # in a row of panels


def pairs(
    panels: Mapping[str, tuple[Array, Array]],
    file: Path,
    *,
    data: Array | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Draw the pairs of each coupling, named by the panel: noise x_0 (N, D) joined to data x_1 (N, D).

    D = 1 is drawn against t, D = 2 in the plane over the data (M, 2), D > 2 in its first two columns. Each panel states
    the mean squared distance of its pairs and how many two of those drawn would lower it by swapping their data
    points: none under an optimal plan. Pairs that are not finite are left out and counted.
    """
    write(file, lambda: pairs_figure(panels, data, columns))


def pairs_figure(
    panels: Mapping[str, tuple[Array, Array]], data: Array | None, columns: Sequence[str] | None
) -> Figure:
    """One panel a coupling, all with as many lines."""
    given = {title: _flat(x_0, x_1) for title, (x_0, x_1) in panels.items()}
    kept = {title: ends[np.isfinite(ends).all(axis=(1, 2))] for title, ends in given.items()}
    width = next(iter(given.values())).shape[2]
    places = grid_shape(len(panels))[1]
    count = min([MAX_LINES // places, *(len(ends) for ends in kept.values() if len(ends))])
    drawn = {title: thin(ends, count) for title, ends in kept.items()}
    truth = None if data is None or width == 1 else np.asarray(data, dtype=float).reshape(len(data), -1)[:, :2]
    limits, ratio = _limits(list(drawn.values()), truth, equal=columns is None)
    names = axis_names(columns, width)
    figure, panel_axes = small_multiples(len(panels), ratio, ["time t", *names] if width == 1 else names, lines=2)
    for axes, (title, ends) in zip(panel_axes, drawn.items(), strict=True):
        if truth is not None:
            shown = thin(truth, 2000)
            axes.scatter(*shown.T, color=TRUE_COLOUR, zorder=1, **(marks(len(shown)) | {"alpha": 0.2}))
        lines = _in_plane(ends)
        _draw_pairs(axes, lines, places)
        axes.set(xlim=limits[0], ylim=limits[1])
        lost = len(given[title]) - len(kept[title])
        beyond = int((~_inside_both(lines, limits)).sum())
        remarks = [f"{lost:,} not finite" if lost else "", f"{beyond:,} partly outside" if beyond else ""]
        subtitle(axes, title, *_facts(kept[title], ends, remarks))
    if width == 1:
        panel_axes[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    _legend(figure, truth is not None)
    return figure


def _flat(x_0: Array, x_1: Array) -> Array:
    """Both ends of each pair, (N, 2, D)."""
    return np.stack([np.asarray(x, dtype=float).reshape(len(x), -1) for x in (x_0, x_1)], axis=1)


def _in_plane(ends: Array) -> Array:
    """Lines (N, 2 ends, 2 coordinates) of pairs (N, 2, D); a single coordinate stands over its time."""
    if ends.shape[2] == 1:
        times = np.broadcast_to(np.array([0.0, 1.0])[:, None], ends.shape)
        return np.concatenate([times, ends], axis=2)
    return ends[..., :2]


def _limits(drawn: Sequence[Array], truth: Array | None, *, equal: bool) -> tuple[list[Limits], float]:
    """Common limits of all panels, and their height / width."""
    points = np.concatenate([ends.reshape(-1, ends.shape[2])[:, :2] for ends in drawn])
    if points.shape[1] == 1:
        return [(-0.05, 1.05), limits_of(points[:, 0])], 1.0
    frame = points if truth is None else np.concatenate([points, truth])
    return panel_shape([limits_of(frame[:, column]) for column in (0, 1)], equal)


def _inside_both(lines: Array, limits: Sequence[Limits]) -> Array:
    """Which lines (N, 2, 2) have both ends in the panel, (N,)."""
    return inside(lines[:, 0], limits) & inside(lines[:, 1], limits)


def _draw_pairs(axes: Axes, lines: Array, places: int) -> None:
    """Grey lines (N, 2, 2) from open circles, noise, to full ones, data; marks for `places` panels in a row."""
    crowd = math.sqrt(max(len(lines), 1))
    alpha = float(np.clip(6 / crowd, 0.35, 0.8))
    collection = LineCollection(list(lines), colors=QUIET_COLOUR, linewidths=0.6, alpha=alpha, zorder=2)
    axes.add_collection(collection, autolim=False)
    size = float(np.clip(300 / crowd / places, 6, 24))
    open_circles: dict[str, Any] = {"facecolors": "white", "edgecolors": "#404040", "linewidths": 0.6}
    axes.scatter(*lines[:, 0].T, s=size, zorder=3, **open_circles)
    axes.scatter(*lines[:, 1].T, s=size, color=TRUE_COLOUR, edgecolors="white", linewidths=0.3, zorder=4)


def _facts(kept: Array, drawn: Array, remarks: Sequence[str]) -> tuple[str, str]:
    """What a panel says of all pairs (N, 2, D) and of those that are drawn."""
    if len(kept) == 0:
        return "no pairs", ", ".join(part for part in remarks if part)
    cost = float(((kept[:, 1] - kept[:, 0]) ** 2).sum(axis=1).mean())
    width = kept.shape[2]
    columns = f"first 2 of {width} columns" if width > 2 else ""
    swaps = f"swaps that shorten it: {shortening_swaps(drawn):,}"
    return f"mean squared distance {cost:.3g}", ", ".join(part for part in (swaps, columns, *remarks) if part)


def shortening_swaps(ends: Array) -> int:
    """How many two of the pairs (N, 2, D) have a smaller sum of squared distances if they swap their data points.

    That is (x_0 - x_0') . (x_1 - x_1') < 0. An optimal plan has none; in one dimension these are the lines that cross.
    (Lines of an optimal plan may cross in the plane, but the points on their way are never at one place at one time.)
    """
    product = ends[:, 0] @ ends[:, 1].T
    own = np.diag(product)
    gain = own[:, None] + own - product - product.T
    noise = 1e-9 * max(float(np.abs(product).max(initial=0.0)), 1e-300)
    return int((gain < -noise).sum()) // 2


def _legend(figure: Figure, with_data: bool) -> None:
    """One line above the panels, in the words of the picture of paths."""
    point: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 4.5}
    handles = [
        Line2D([], [], markerfacecolor="white", markeredgecolor="#404040", label="noise, t = 0", **point),
        Line2D([], [], color=QUIET_COLOUR, linewidth=0.9, label="pair"),
        Line2D([], [], color=TRUE_COLOUR, label="its data point, t = 1", **point),
    ]
    if with_data:
        point["markersize"] = 3
        handles.append(Line2D([], [], color=TRUE_COLOUR, alpha=0.35, label="data", **point))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handletextpad=0.4)
