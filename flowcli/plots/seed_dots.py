"""Scores of rows: one dot a seed, the mean with its error, and what a perfect model would get."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowcli.plots.panels import counted, few_ticks
from flowcli.plots.row_labels import bulk, row_axis, rows_height, to_error
from flowcli.plots.style import MODEL_COLOUR, QUIET_COLOUR, TRUE_COLOUR, Array, write

ScoreRow = tuple[str, Array, float, float]


def scores(rows: Sequence[ScoreRow], file: Path, *, floor: float | None, xlabel: str) -> None:
    """Draw each row's scores: label, values of its seeds (S,), their mean and its error; the floor is a blue line.

    Values that are not finite are left out and counted; rows far beyond the others are cut with an arrow. An error that
    is not finite is not drawn.
    """
    write(file, lambda: scores_figure(rows, floor, xlabel))


def scores_figure(rows: Sequence[ScoreRow], floor: float | None, xlabel: str) -> Figure:
    """One panel with a row each, in their order."""
    labels = [label for label, *_ in rows]
    figure = Figure(figsize=(6.8, 0.95 + rows_height(labels)))
    axes = figure.add_subplot()
    drawn = [_finite(*row[1:]) for row in rows]
    ends = [(min([mean - error, *values]), max([mean + error, *values])) for values, mean, error in drawn]
    limits, cut = bulk(ends, [] if floor is None else [floor])
    if floor is not None:
        axes.axvline(floor, color=TRUE_COLOUR, linewidth=1.4, zorder=1)
    for row, (values, mean, error) in enumerate(drawn):
        if not math.isfinite(mean):
            continue
        shown = values[(values >= limits[0]) & (values <= limits[1])]
        axes.plot(shown, np.full(len(shown), row), "o", color=QUIET_COLOUR, alpha=0.6, markersize=3.6, zorder=3)
        axes.plot(np.clip([mean - error, mean + error], *limits), [row, row], color=MODEL_COLOUR, linewidth=1.8)
        if limits[0] <= mean <= limits[1]:
            axes.plot([mean], [row], "|", color=MODEL_COLOUR, markersize=12, markeredgewidth=2.0, zorder=4)
        for beyond, edge, mark in ((ends[row][0] < limits[0], 0, "<"), (ends[row][1] > limits[1], 1, ">")):
            if beyond:
                axes.plot([limits[edge]], [row], mark, color=MODEL_COLOUR, markersize=6.5, clip_on=False, zorder=4)
    few_ticks(axes, 6)
    row_axis(axes, labels, [_words(*row[1:]) for row in rows])
    axes.set(xlim=limits, xlabel=xlabel)
    handles = [
        Line2D([], [], linestyle="none", marker="o", color=QUIET_COLOUR, alpha=0.6, markersize=3.6, label="one seed"),
        Line2D([], [], color=MODEL_COLOUR, marker="|", markersize=9, markeredgewidth=2.0, label="mean and its error"),
    ]
    if floor is not None:
        handles.append(Line2D([], [], color=TRUE_COLOUR, label="a perfect model"))
    if cut:
        handles.append(Line2D([], [], linestyle="none", color=MODEL_COLOUR, marker=">", label="beyond the panel"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2, handletextpad=0.4)
    return figure


def _finite(values: Array, mean: float, error: float) -> tuple[Array, float, float]:
    """What of a row can be drawn."""
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)], float(mean), float(error) if math.isfinite(error) else 0.0


def _words(values: Array, mean: float, error: float) -> str:
    """The numbers of a row, as they stand beside it."""
    kept, _, _ = _finite(values, mean, error)
    lost = len(values) - len(kept)
    if not math.isfinite(mean):
        return f"not finite, {counted(len(values), 'seed')}"
    number = to_error(mean, error) + (f" ± {to_error(error, error)}" if math.isfinite(error) else "")
    return ", ".join([number, counted(len(values), "seed")] + ([f"{lost} not finite"] if lost else []))
