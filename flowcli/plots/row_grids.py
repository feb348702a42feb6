"""Rows beside each other, a panel each: their samples, densities, paths, and their states on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flowcli.plots.density_map import density_mesh, mass
from flowcli.plots.panels import (
    MAX_POINTS,
    axis_names,
    grid_shape,
    inside,
    left_out,
    limits_of,
    marks,
    much_wider,
    panel_shape,
    small_multiples,
    square,
    subtitle,
    thin,
)
from flowcli.plots.row_labels import fit_height, wrapped
from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array, Limits, write
from flowcli.plots.trajectory_lines import TIME_COLOURS, draw_paths, path_legend, reach, thin_paths

Panels = Sequence[tuple[str, Array]]
PANEL_PATHS = 120


def sample_grid(panels: Panels, data: Array, file: Path, *, columns: Sequence[str] | None) -> None:
    """Draw the data (M, 2), then the samples (N, 2) of each row, all with the limits of the data.

    Each panel has as many points, so that what looks denser is denser.
    """
    write(file, lambda: samples_figure(panels, data, columns))


def density_grid(
    xs: Array,
    ys: Array,
    panels: Panels,
    file: Path,
    *,
    true_log_prob: Array | None,
    columns: Sequence[str] | None,
) -> None:
    """Draw exp(log_prob) of each row on the grid xs (X,) by ys (Y,), log-densities (Y, X), the truth first if known.

    All have one scale, whose top is the peak of the truth, or the middle one of the rows' peaks.
    """
    write(file, lambda: densities_figure(xs, ys, panels, true_log_prob, columns))


def path_grid(panels: Panels, file: Path, *, data: Array | None, columns: Sequence[str] | None) -> None:
    """Draw the paths (T, N, 2) of each row from noise, t = 0, to data, t = 1, over data (M, 2), with common limits.

    A row whose noise is much wider than the data is drawn near the data, and in a panel of its own as a whole.
    """
    write(file, lambda: paths_figure(panels, data, columns))


def frame_grid(rows: Panels, times: Array, file: Path, *, columns: Sequence[str] | None) -> None:
    """Draw where the states (T, N, 2) of each row are at times (T,): a line of panels a row, one panel a time.

    All have the limits of the last states. Panels whose points are much wider have limits of their own and a frame
    around what the others show.
    """
    write(file, lambda: frames_figure(rows, times, columns))


# ---------------------------------------------------------------- samples and densities
def samples_figure(panels: Panels, data: Array, columns: Sequence[str] | None) -> Figure:
    """Small multiples of points."""
    given = [("Data", _points(data)), *((label, _points(points)) for label, points in panels)]
    limits, ratio = panel_shape([limits_of(given[0][1][:, column]) for column in (0, 1)], columns is None)
    titles = _titles([label for label, _ in given], bar=False)
    figure, places = small_multiples(len(given), ratio, axis_names(columns, 2), lines=1)
    count = min(MAX_POINTS // 2, max(1000, min(len(points) for _, points in given)))
    lost = [left_out(len(points) - int(inside(points, limits).sum()), len(points)) for _, points in given]
    for index, (axes, (_, points)) in enumerate(zip(places, given, strict=True)):
        shown = thin(points, count)
        axes.scatter(*shown.T, color=MODEL_COLOUR if index else TRUE_COLOUR, **_small(marks(len(shown))))
        subtitle(axes, titles[index], *(lost[index : index + 1] if any(lost) else []))
    places[0].set(xlim=limits[0], ylim=limits[1])
    fit_height(figure)
    return figure


def densities_figure(
    xs: Array, ys: Array, panels: Panels, truth: Array | None, columns: Sequence[str] | None
) -> Figure:
    """Small multiples of densities with one bar."""
    known = [] if truth is None else [("True density", truth)]
    fields = [(label, np.exp(np.asarray(field, dtype=float))) for label, field in [*known, *panels]]
    peaks = [float(np.max(value[np.isfinite(value)], initial=0.0)) for _, value in fields]
    top = (peaks[0] if known else float(np.median(peaks))) or 1.0
    limits, ratio = panel_shape([(float(axis[0]), float(axis[-1])) for axis in (xs, ys)], columns is None)
    titles = _titles([label for label, _ in fields], bar=True)
    figure, places = small_multiples(len(fields), ratio, axis_names(columns, 2), lines=1, bar=True)
    mesh = None
    for axes, title, (_, value), peak in zip(places, titles, fields, peaks, strict=True):
        mesh = density_mesh(axes, xs, ys, value, top)
        subtitle(axes, title, f"peak {peak:.2g}, mass {mass(value, xs, ys):.2f}")
    places[0].set(xlim=limits[0], ylim=limits[1])
    assert mesh is not None
    extend = "max" if max(peaks) > 1.02 * top else "neither"
    bar = figure.colorbar(mesh, ax=places, extend=extend, aspect=24 * grid_shape(len(fields))[0], pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("density")
    fit_height(figure)
    return figure


# ---------------------------------------------------------------- paths
def paths_figure(panels: Panels, data: Array | None, columns: Sequence[str] | None) -> Figure:
    """Small multiples of paths; wide ones have two panels."""
    given = [(label, np.asarray(states, dtype=float)) for label, states in panels]
    truth = given[0][1][-1] if data is None else _points(data)
    reaches = {label: reach(states, truth) for label, states in given}
    near = next(iter(reaches.values()))[1]
    wide = {label for label, (whole, _) in reaches.items() if much_wider(whole, near)}
    views = [near, *(whole for label, (whole, _) in reaches.items() if label not in wide)]
    common, ratio = panel_shape(_hull(views), columns is None)
    drawn = [(label, states, whole) for label, states in given for whole in (False, True) if label in wide or not whole]
    titles = _titles([label for label, _, _ in drawn], bar=False)
    names = axis_names(columns, 2)
    figure, places = small_multiples(len(drawn), 1.0 if wide else ratio, names, lines=1, shared=not wide)
    for axes, title, (label, states, whole) in zip(places, titles, drawn, strict=True):
        limits = square(reaches[label][0]) if whole else common
        _paths_panel(axes, states, truth if data is not None else None, limits)
        if whole:
            _frame(axes, common)
        outside = left_out(states.shape[1] - int(inside(states[0], limits).sum()), states.shape[1])
        subtitle(axes, title, "whole paths" if whole else f"starts: {outside}" if outside else "")
    path_legend(figure, np.array([0.0, 1.0]), data is not None)
    fit_height(figure)
    return figure


def _paths_panel(axes: Axes, states: Array, truth: Array | None, limits: Sequence[Limits]) -> None:
    """Paths (T, N, 2) over the truth (M, 2)."""
    if truth is not None:
        shown = thin(truth, 1500)
        axes.scatter(*shown.T, color=TRUE_COLOUR, zorder=1, **(_small(marks(len(shown))) | {"alpha": 0.3}))
    paths, times = thin_paths(states, np.linspace(0, 1, len(states)))
    draw_paths(axes, thin(paths.swapaxes(0, 1), PANEL_PATHS).swapaxes(0, 1), times)
    for ends in axes.collections:
        if isinstance(ends, PathCollection):
            ends.set_sizes(0.5 * ends.get_sizes())
    axes.set(xlim=limits[0], ylim=limits[1])


# ---------------------------------------------------------------- states on the way
def frames_figure(rows: Panels, times: Array, columns: Sequence[str] | None) -> Figure:
    """A table of panels."""
    times = np.asarray(times, dtype=float)
    given = [(label, np.asarray(states, dtype=float)) for label, states in rows]
    ends = np.concatenate([states[-1] for _, states in given])
    common, ratio = panel_shape([limits_of(ends[:, column]) for column in (0, 1)], columns is None)
    side = 6.5 / len(times)
    figure = Figure(figsize=(7.2, 0.7 + len(rows) * (side * ratio + 0.4)))
    figure.set_layout_engine("compressed", h_pad=0.11)  # room for the label above each line
    table = figure.subplots(len(rows), len(times), squeeze=False)
    wide = False
    for line, (label, states) in zip(table, given, strict=True):
        for axes, points, time in zip(line, states, times, strict=True):
            wide = _frame_panel(axes, points, common, float(time)) or wide
            axes.set_box_aspect(ratio)
        words = line[0].annotate(wrapped(label, 95, 1), (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8.5)
        words.set_in_layout(False)  # it may be as long as the line of panels
    for axes, time in zip(table[0], times, strict=True):
        axes.set_title(f"t = {time:.3g}", loc="center", fontsize=8.5, pad=18)
    names = axis_names(columns, 2)
    words = "; a frame in a wider view is what the other panels show" if wide else ""
    figure.supxlabel(f"across {names[0]}, up {names[1]}{words}", fontsize=7.5, color="#404040")
    fit_height(figure)
    return figure


def _frame_panel(axes: Axes, points: Array, common: Sequence[Limits], time: float) -> bool:
    """Points (N, 2) at one time, grey early and in the model's colour late. Are they too wide for common limits?"""
    own = square([limits_of(points[:, column]) for column in (0, 1)])
    wide = much_wider(own, common)
    limits = own if wide else common
    shown = thin(points, 2000)
    axes.scatter(*shown.T, color=TIME_COLOURS(float(np.clip(time, 0, 1))), **_small(marks(len(shown))))
    axes.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    if wide:
        _frame(axes, common)
        times_wider = max((w[1] - w[0]) / (c[1] - c[0]) for w, c in zip(own, common, strict=True))
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "fontsize": 6.5}
        paper = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.0}
        axes.text(0.97, 0.03, f"{times_wider:.0f} × wider", **place, bbox=paper, zorder=6)
    return wide


# ---------------------------------------------------------------- shared
def _points(points: Array) -> Array:
    return np.asarray(points, dtype=float).reshape(len(points), 2)


def _titles(labels: Sequence[str], *, bar: bool) -> list[str]:
    """Titles that fit above a panel of a line of so many, a colour bar beside them or not."""
    width = {1: 40, 2: 34, 3: 25}.get(grid_shape(len(labels))[1], 19)
    return [wrapped(label, width - 3 * bar, 4) for label in labels]


def _small(style: dict[str, float]) -> dict[str, float]:
    """Marks for a small panel."""
    return style | {"s": 0.6 * style["s"]}


def _hull(views: Sequence[Sequence[Limits]]) -> list[Limits]:
    return [(min(view[i][0] for view in views), max(view[i][1] for view in views)) for i in (0, 1)]


def _frame(axes: Axes, limits: Sequence[Limits]) -> None:
    """The rectangle that other panels show."""
    (left, right), (bottom, top) = limits
    axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, linewidth=0.9, zorder=5))
