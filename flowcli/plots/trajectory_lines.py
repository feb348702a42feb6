"""Paths from noise to data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from flowcli.plots.histograms import bin_edges, bin_heights
from flowcli.plots.images import grey_scale, mosaic
from flowcli.plots.panels import (
    alike,
    axis_names,
    counted,
    few_ticks,
    inside,
    limits_of,
    marks,
    much_wider,
    remark,
    square,
    thin,
)
from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array, Limits, write

MAX_PATHS = 250
MAX_TIMES = 200
TIME_COLOURS = LinearSegmentedColormap.from_list("time", ["#B9B9B9", "#9A8F88", MODEL_COLOUR])


def trajectories(
    points: Array, times: Array, file: Path, *, data: Array | None = None, columns: Sequence[str] | None = None
) -> None:
    """Draw paths from noise (t = 0) to data (t = 1): points (T, N, D) or (T, N, C, H, W) at times (T,).

    D = 1 is drawn against t, D = 2 in the plane, D > 2 in its first two columns; of images some frames are shown.
    data (M, ...) lies behind the paths. Noise much wider than the data gets a second panel near the data.
    """
    times = np.asarray(times, dtype=float)
    points = np.asarray(points, dtype=float)[np.argsort(times, kind="stable")]
    times = np.sort(times, kind="stable")
    if points.ndim == 5 and points.shape[2] in (1, 3):
        write(file, lambda: frames_figure(points, times, data))
        return
    points = points.reshape(*points.shape[:2], -1)
    truth = points[-1] if data is None else np.asarray(data, dtype=float).reshape(len(data), -1)
    names = axis_names(columns, points.shape[2])
    if points.shape[2] == 1:
        write(file, lambda: timeline_figure(points[..., 0], times, truth[:, 0], data is not None, names[0]))
    else:
        write(file, lambda: paths_figure(points, times, truth, data is not None, names, equal=columns is None))


def paths_figure(
    points: Array, times: Array, truth: Array, with_data: bool, names: Sequence[str], *, equal: bool
) -> Figure:
    """Paths (T, N, D) in the plane of the first two columns over the truth (M, D)."""
    columns = points.shape[2]
    points, truth = points[..., :2], truth[:, :2]
    whole, near = reach(points, truth)
    equal = equal and alike(near)
    if equal:
        whole, near = square(whole), square(near)
    zoom = len(truth) >= 10 and much_wider(whole, near)
    paths, times = thin_paths(points, times)
    figure = Figure(figsize=(6.8, 3.75) if zoom else (4.4, 4.75), layout="compressed")
    panels = figure.subplots(1, 2 if zoom else 1, squeeze=False)[0]
    views = [("Whole paths", whole), ("Near the data", near)] if zoom else [("Paths", whole)]
    for axes, (title, limits) in zip(panels, views, strict=True):
        if with_data:
            shown = thin(truth, 2000)
            axes.scatter(shown[:, 0], shown[:, 1], color=TRUE_COLOUR, zorder=1, **(marks(len(shown)) | {"alpha": 0.3}))
        draw_paths(axes, paths, times)
        axes.set(xlim=limits[0], ylim=limits[1], title=title, xlabel=names[0], ylabel=names[1])
        axes.set_box_aspect(1)
        few_ticks(axes)
    first_two = f"first 2 of {columns} columns" if columns > 2 else ""
    remark(panels[0], counted(paths.shape[1], "path"), _starts_outside(paths[0], whole), first_two)
    if zoom:
        (left, right), (bottom, top) = near
        frame = Rectangle((left, bottom), right - left, top - bottom, fill=False, linewidth=0.9, zorder=5)
        panels[0].add_patch(frame)
    path_legend(figure, times, with_data)
    return figure


def timeline_figure(points: Array, times: Array, truth: Array, with_data: bool, name: str) -> Figure:
    """Paths (T, N) against time, the histogram of the truth (M,) beside."""
    whole, near = reach(points[..., None], truth[:, None])
    zoom = len(truth) >= 10 and much_wider(whole, near)
    paths, times = thin_paths(points[..., None], times)
    outside = _starts_outside(paths[0], whole)
    paths = np.concatenate([np.broadcast_to(times[:, None, None], paths.shape), paths], axis=2)
    views = [("Whole paths", whole[0]), ("Near the data", near[0])] if zoom else [("Paths", whole[0])]
    ratios = [4.0] * len(views) + ([1.0] if with_data else [])
    figure = Figure(figsize=(3.3 * len(views) + (1.0 if with_data else 0.6), 3.5))
    panels = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    for axes, (title, limits) in zip(panels, views, strict=False):
        draw_paths(axes, paths, times)
        axes.set(ylim=limits, title=title, xlabel="time t", ylabel=name)
        span = float(times[-1] - times[0])
        axes.set_xlim(times[0] - 0.02 * span, times[-1] + 0.02 * span)
        few_ticks(axes)
    remark(panels[0], counted(paths.shape[1], "path"), outside)
    if zoom:
        panels[0].axhspan(*near[0], color=TRUE_COLOUR, alpha=0.15, linewidth=0)
    if with_data:
        side, limits = panels[-1], views[-1][1]
        edges = bin_edges(truth, near[0])
        heights = bin_heights(truth, edges)
        side.stairs(heights, edges, orientation="horizontal", fill=True, color=TRUE_COLOUR, alpha=0.35)
        side.set(ylim=limits, xlim=(0, 1.05 * max(float(heights.max()), 1e-12)), title="Data")
        side.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
        side.spines[:].set_visible(False)
    path_legend(figure, times, False)
    return figure


def frames_figure(points: Array, times: Array, data: Array | None) -> Figure:
    """Some images (rows) at even steps of the path (columns), on the grey scale of the data."""
    low, high = grey_scale(points[-1] if data is None else np.asarray(data, dtype=float))
    frames, shown = thin(points, 8), thin(times, 8)
    rows = min(5, points.shape[1])
    figure = Figure(figsize=(0.8 * len(frames) + 0.1, 0.8 * rows + 0.55))
    panels = figure.subplots(rows, len(frames), squeeze=False)
    for row in range(rows):
        for column, frame in enumerate(frames):
            axes = panels[row, column]
            axes.imshow(mosaic(frame[row : row + 1], 1, low, high), interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(f"t = {shown[column]:.2f}", fontsize=8, loc="center")
    figure.suptitle("From noise to data, on the grey scale of the data", fontsize=9.5, x=0.01, ha="left")
    return figure


def reach(points: Array, truth: Array) -> tuple[list[Limits], list[Limits]]:
    """Limits of the whole paths of the 90 % nearest starts, and of the data alone; points (T, N, D)."""
    near = [limits_of(truth[:, column]) for column in range(points.shape[2])]
    centre = np.array([sum(pair) / 2 for pair in near])
    width = np.array([high - low for low, high in near])
    distance = np.linalg.norm((points[0] - centre) / width, axis=1)
    kept = points[:, distance <= np.quantile(distance, 0.9)]
    whole = []
    for column, (low, high) in enumerate(near):
        values = kept[..., column][np.isfinite(kept[..., column])]
        first, last = min(low, float(values.min(initial=low))), max(high, float(values.max(initial=high)))
        margin = 0.04 * (last - first)
        whole.append((first - margin, last + margin))
    return whole, near


def draw_paths(axes: Axes, paths: Array, times: Array) -> None:
    """Lines that turn from grey to the model's colour as time goes on, with both ends marked; paths (T, N, 2)."""
    segments = np.stack([paths[:-1], paths[1:]], axis=2).transpose(1, 0, 2, 3)  # (N, T - 1, 2, 2)
    width = float(np.clip(5 / math.sqrt(paths.shape[1]), 0.55, 1.3))
    shades = np.tile((times[:-1] + times[1:]) / 2, paths.shape[1])
    lines = LineCollection(
        list(segments.reshape(-1, 2, 2)), array=shades, cmap=TIME_COLOURS, linewidths=width, alpha=0.55, zorder=2
    )
    lines.set_clim(float(times[0]), float(times[-1]))
    axes.add_collection(lines, autolim=False)
    size = float(np.clip(220 / math.sqrt(paths.shape[1]), 7, 26))
    axes.scatter(*paths[0].T, s=size * 0.7, facecolors="white", edgecolors="#404040", linewidths=0.6, zorder=3)
    axes.scatter(*paths[-1].T, s=size * 0.8, color=MODEL_COLOUR, edgecolors="white", linewidths=0.3, zorder=4)


def path_legend(figure: Figure, times: Array, with_data: bool) -> None:
    """One line above the panels that reads from noise to data."""
    open_mark: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markerfacecolor": "white",
        "markeredgecolor": "#404040",
    }
    handles = [
        Line2D([], [], markersize=4.5, markeredgewidth=0.7, label=f"noise, t = {times[0]:.3g}", **open_mark),
        Line2D([], [], color="#A8744F", linewidth=1.2, label="path, grey early and red late"),
        Line2D([], [], color=MODEL_COLOUR, marker="o", markersize=4.5, linestyle="none", label=f"t = {times[-1]:.3g}"),
    ]
    if with_data:
        handles.append(Line2D([], [], color=TRUE_COLOUR, marker="o", markersize=3, linestyle="none", label="data"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handletextpad=0.4)


def _starts_outside(starts: Array, limits: Sequence[Limits]) -> str:
    """What a panel says of drawn starts (N, D) that it does not show."""
    count = len(starts) - int(inside(starts, limits).sum())
    return f"{counted(count, 'start')} outside" if count else ""


def thin_paths(points: Array, times: Array) -> tuple[Array, Array]:
    """At most MAX_PATHS paths of MAX_TIMES points each."""
    return thin(np.swapaxes(thin(points, MAX_TIMES), 0, 1), MAX_PATHS).swapaxes(0, 1), thin(times, MAX_TIMES)
