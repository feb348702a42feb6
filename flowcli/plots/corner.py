"""Corner plot: every column and every pair of columns."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowcli.plots.histograms import bin_edges, overlay
from flowcli.plots.panels import MAX_POINTS, counted, few_ticks, inside, left_out, limits_of, marks, thin
from flowcli.plots.style import MODEL_COLOUR, QUIET_COLOUR, TRUE_COLOUR, Array, Limits

MAX_COLUMNS = 6
MASSES = (0.95, 0.8, 0.5)  # probability inside each contour of a corner plot


def corner_figure(data: Array, model: Array, names: Sequence[str], titles: tuple[str, str]) -> Figure:
    """Histogram of each column on the diagonal, each pair below it; data (N, D) may be empty."""
    total = data.shape[1]
    count = min(total, MAX_COLUMNS)
    frame = data if len(data) else model
    limits = [limits_of(frame[:, column]) for column in range(count)]
    missed = len(model) - int(inside(model, limits).sum())
    thin_data, thin_model = thin(data, 100_000), thin(model, 100_000)
    side = max(4.4, 1.32 * count)
    figure = Figure(figsize=(side, side))
    panels = figure.subplots(count, count, squeeze=False)
    contours = False
    for row in range(count):
        for column in range(count):
            axes = panels[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            if column == row:
                edges = bin_edges(thin(frame[:, row], MAX_POINTS), limits[row])
                overlay(axes, data[:, row], model[:, row], edges, titles)
                axes.spines["left"].set_visible(False)
                axes.tick_params(left=False, labelleft=False)
            else:
                pair = [limits[column], limits[row]]
                drawn = _corner_pair(axes, thin_data[:, [column, row]], thin_model[:, [column, row]], pair)
                contours = contours or drawn
                axes.set(xlim=limits[column], ylim=limits[row])
            few_ticks(axes, 3)
            axes.set_box_aspect(1)
            axes.tick_params(labelsize=7, labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
            if row == count - 1:
                axes.set_xlabel(names[column])
                axes.tick_params(axis="x", rotation=40)
            if column == 0 and row > 0:
                axes.set_ylabel(names[row])
    figure.align_labels()
    truth, made = (title.lower() for title in titles)
    remarks = [
        "contours enclose 50, 80 and 95 % of the points" if contours else "",
        f"first {count} of {total} columns" if count < total else "",
        f"{made}: {left_out(missed, len(model))} the panels" if missed else "",
    ]
    handles = [
        Patch(facecolor=TRUE_COLOUR, alpha=0.35, label=f"{truth} ({counted(len(data), 'point')})"),
        Line2D([], [], color=MODEL_COLOUR, linewidth=1.3, label=f"{made} ({counted(len(model), 'point')})"),
    ]
    figure.legend(handles=handles if len(data) else handles[1:], loc="upper right", bbox_to_anchor=(0.99, 0.985))
    note = "\n".join(part for part in remarks if part)
    figure.text(0.985, 0.985 - 0.55 / side, note, ha="right", va="top", fontsize=7.0, color=QUIET_COLOUR)
    return figure


def _corner_pair(axes: Axes, data: Array, model: Array, limits: Sequence[Limits]) -> bool:
    """Data as filled contours, model as lines of the same masses; too few are drawn as points. Any contours?"""
    truth = mass_contours(data[:, 0], data[:, 1], limits)
    if truth is None:
        shown = thin(data, 2000)
        axes.scatter(shown[:, 0], shown[:, 1], color=TRUE_COLOUR, **marks(4 * len(shown)))
    else:
        xs, ys, counts, levels = truth
        shades = [to_rgba(TRUE_COLOUR, alpha) for alpha in (0.18, 0.36, 0.58)]
        axes.contourf(xs, ys, counts, levels=[*levels, float(counts.max()) * 1.01], colors=shades)
    lines = mass_contours(model[:, 0], model[:, 1], limits)
    if lines is None:
        shown = thin(model, 2000)
        axes.scatter(shown[:, 0], shown[:, 1], color=MODEL_COLOUR, **marks(4 * len(shown)))
    else:
        xs, ys, counts, levels = lines
        axes.contour(xs, ys, counts, levels=levels, colors=MODEL_COLOUR, linewidths=0.8)
    return truth is not None or lines is not None


def mass_contours(x: Array, y: Array, limits: Sequence[Limits]) -> tuple[Array, Array, Array, list[float]] | None:
    """Bin centres, smoothed counts (Y, X) and the levels that enclose MASSES; None if too few points for that."""
    if len(x) < 400:
        return None
    bins = int(np.clip(1.6 * len(x) ** (1 / 3), 24, 70))
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=bins, range=limits)
    if counts.sum() < 400:
        return None
    counts = _blur(counts.T, 1.1)
    ranked = np.sort(counts, axis=None)[::-1]
    mass = np.cumsum(ranked) / ranked.sum()
    levels = [float(ranked[int(np.searchsorted(mass, fraction))]) for fraction in MASSES]
    if not 0 < levels[0] < levels[1] < levels[2] < ranked[0]:
        return None
    return (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2, counts, levels


def _blur(counts: Array, width: float) -> Array:
    """Smooth a table of counts (X, Y) by a Gaussian of `width` bins; mass at the rim stays inside."""
    reach = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel /= kernel.sum()

    def along_last(table: Array) -> Array:
        padded = np.pad(table, ((0, 0), (reach, reach)), mode="symmetric")
        return np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=1) @ kernel

    return along_last(along_last(counts).T).T
