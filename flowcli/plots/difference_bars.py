"""Which rows differ from a reference: paired differences with their intervals, as a forest plot."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowcli.plots.panels import few_ticks
from flowcli.plots.row_labels import bulk, row_axis, rows_height, to_error, wrapped
from flowcli.plots.style import MODEL_COLOUR, QUIET_COLOUR, write

VERDICTS: dict[str, dict[str, Any]] = {
    "reference": {"color": "#202020", "marker": "D"},
    "tie": {"color": "#767676", "marker": "o", "markerfacecolor": "white"},
    "worse": {"color": MODEL_COLOUR, "marker": "s"},
    "better": {"color": "#007A5A", "marker": "^"},
}
"""A mark of its own for each verdict, so that the picture can be read without its colours."""

DifferenceRow = tuple[str, float, float, float, str]


def differences(rows: Sequence[DifferenceRow], file: Path, *, xlabel: str, reference: str) -> None:
    """Draw each row's difference from the reference with its interval: label, value, low, high, verdict.

    The verdict is a key of VERDICTS; the row of the reference itself is drawn at zero, without an interval. Rows far
    beyond the others are cut with an arrow; their numbers stand on the right as all do. Differences that are not finite
    are said to be so.
    """
    write(file, lambda: differences_figure(rows, xlabel, reference))


def differences_figure(rows: Sequence[DifferenceRow], xlabel: str, reference: str) -> Figure:
    """One panel with a row each, in their order."""
    labels = [label for label, *_ in rows]
    figure = Figure(figsize=(6.8, 0.95 + rows_height(labels)))
    axes = figure.add_subplot()
    limits, cut = bulk([(low, high) for _, _, low, high, verdict in rows if verdict != "reference"], [0.0])
    axes.axvline(0, color="#202020", linewidth=0.9, zorder=1)
    for row, (_, value, low, high, verdict) in enumerate(rows):
        place = (0.0, 0.0, 0.0) if verdict == "reference" else (value, low, high)
        if all(map(math.isfinite, place)):
            _draw(axes, row, *place, VERDICTS[verdict], limits)
    few_ticks(axes, 6)
    row_axis(axes, labels, [_words(*row[1:]) for row in rows])
    axes.set(xlim=limits, xlabel=xlabel)
    seen = [name for name in VERDICTS if any(row[-1] == name for row in rows)]
    said = {"reference": f"reference: {wrapped(reference, 30, 1)}"}
    handles = [Line2D([], [], linestyle="none", **VERDICTS[name], label=said.get(name, name)) for name in seen]
    if cut:
        handles.append(Line2D([], [], linestyle="none", color=QUIET_COLOUR, marker=">", label="beyond the panel"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2, handletextpad=0.3)
    return figure


def _draw(
    axes: Axes, row: int, value: float, low: float, high: float, style: dict[str, Any], limits: tuple[float, float]
) -> None:
    """Interval and mark of one row; an arrow at the edge that it goes beyond."""
    left, right = limits
    axes.plot([max(low, left), min(high, right)], [row, row], color=style["color"], linewidth=1.6, zorder=2)
    if left <= value <= right:
        axes.plot([value], [row], linestyle="none", markersize=6.5, markeredgewidth=1.3, zorder=3, **style)
    for beyond, edge, mark in ((low < left, left, "<"), (high > right, right, ">")):
        if beyond:
            axes.plot([edge], [row], mark, color=style["color"], markersize=6.5, clip_on=False, zorder=3)


def _words(value: float, low: float, high: float, verdict: str) -> str:
    """The numbers of a row, as they stand beside it."""
    if verdict == "reference":
        return "reference"
    if not all(map(math.isfinite, (value, low, high))):
        return "not finite"
    width = high - low
    return f"{to_error(value, width, '+')} [{to_error(low, width, '+')}, {to_error(high, width, '+')}]"
