"""What panels have in common: limits that follow the data, thinning, names, marks, remarks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowcli.plots.style import QUIET_COLOUR, Array, Limits

WIDE = 3.0  # noise this many times as wide as the data gets a second, zoomed panel
MAX_POINTS = 10_000


def axis_names(columns: Sequence[str] | None, count: int) -> list[str]:
    """Axis labels: the columns' own names, cut where too long and with no sign taken for mathematics."""
    if columns is not None:
        return [(name if len(name) <= 28 else f"{name[:27]}…").replace("$", r"\$") for name in columns]
    return ["value"] if count == 1 else [f"coordinate {i + 1}" for i in range(count)]


def thin(x: Array, count: int) -> Array:
    """At most `count` rows at even steps: deterministic, and blind to any order in the rows."""
    return x if len(x) <= count else x[np.linspace(0, len(x) - 1, count).astype(int)]


def limits_of(x: Array) -> Limits:
    """Limits that show the bulk of x (N,) with a margin, never much beyond its ends."""
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return -1.0, 1.0
    low, high = (float(q) for q in np.quantile(x, [0.002, 0.998]))
    width = high - low
    if width <= 1e-12 * max(1.0, abs(low), abs(high)):
        half = max(0.5, 0.1 * abs(low))
        return low - half, high + half
    first, last = float(x.min()), float(x.max())
    return max(low - 0.15 * width, first - 0.05 * width), min(high + 0.15 * width, last + 0.05 * width)


def panel_shape(limits: Sequence[Limits], equal: bool) -> tuple[list[Limits], float]:
    """Limits and height / width of a panel: one scale on both axes if asked for and possible, else a square."""
    (left, right), (bottom, top) = limits
    ratio = (top - bottom) / (right - left)
    if not equal or not alike(limits):
        return list(limits), 1.0
    return (list(limits), ratio) if 0.6 <= ratio <= 1.2 else (square(limits), 1.0)


def square(limits: Sequence[Limits]) -> list[Limits]:
    """Limits of one common width about the same centres."""
    half = max(high - low for low, high in limits) / 2
    return [((low + high) / 2 - half, (low + high) / 2 + half) for low, high in limits]


def alike(limits: Sequence[Limits], ratio: float = 2.5) -> bool:
    """Whether the widths are near enough for axes of equal scale to show both."""
    widths = [high - low for low, high in limits]
    return max(widths) <= ratio * min(widths)


def much_wider(whole: Sequence[Limits], near: Sequence[Limits]) -> bool:
    """Whether the data would be lost in a picture of the whole paths."""
    return any(w[1] - w[0] > WIDE * (n[1] - n[0]) for w, n in zip(whole, near, strict=True))


def inside(x: Array, limits: Sequence[Limits]) -> Array:
    """Which rows of x (N, D) are inside the limits of every column, (N,); NaN is outside."""
    inside = np.ones(len(x), dtype=bool)
    for column, (low, high) in enumerate(limits):
        inside &= (x[:, column] >= low) & (x[:, column] <= high)
    return inside


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural if need be."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def left_out(count: int, total: int) -> str:
    """What a panel says of the points it does not show; empty if it shows all."""
    return f"{count:,} of {total:,} outside" if count else ""


def remark(axes: Axes, *parts: str) -> None:
    """Small grey words at the top right of a panel; empty parts are left out."""
    axes.set_title(", ".join(part for part in parts if part), loc="right", fontsize=7.0, color=QUIET_COLOUR)


def marks(count: int) -> dict[str, Any]:
    """Size and opacity of `count` points, so that 1 is seen and 10,000 still show where they are dense."""
    size = float(np.clip(120 / math.sqrt(max(count, 1)), 1.4, 22.0))
    alpha = float(np.clip(18 / math.sqrt(max(count, 1)), 0.3, 0.9))
    return {"s": size, "alpha": alpha, "linewidths": 0}


def few_ticks(axes: Axes, count: int = 5) -> None:
    """About `count` ticks an axis at round numbers."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))


def signed(value: float) -> str:
    """Three decimals with a minus sign as wide as a plus."""
    return f"{value:.3f}".replace("-", "−")


def subtitle(axes: Axes, title: str, *lines: str) -> None:
    """A title with lines of small grey words below it, for panels too narrow for a remark."""
    axes.set_title(title, pad=4.0 + 10.5 * len(lines))
    axes.annotate(
        "\n".join(lines),
        (0, 1),
        (0, 4),
        "axes fraction",
        "offset points",
        fontsize=7.0,
        color=QUIET_COLOUR,
        va="bottom",
        linespacing=1.15,
    )


def small_multiples(
    count: int, ratio: float, names: Sequence[str], *, lines: int = 0, bar: bool = False, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of one height / width in rows of at most four; names label the outer axes.

    Args:
        count: Number of panels.
        ratio: Height / width of a panel.
        names: What stands below and beside.
        lines: Lines of words below each title, which take room.
        bar: Whether a colour bar will stand beside.
        shared: Whether all panels have the same limits.
    """
    rows, columns = grid_shape(count)
    full = 4.2 if columns == 1 else 6.8 if columns == 2 else 7.2
    side = (full - 0.5 - 0.8 * bar) / columns - 0.1
    gaps = 0.0 if shared else 0.2 * (rows - 1)
    if columns * rows > count:
        gaps = 0.35  # labels below the panel above a free place
    figure = Figure(figsize=(full, 0.8 + gaps + rows * (0.27 + 0.15 * lines + side * ratio)), layout="compressed")
    grid = figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.set_axis_off()
            continue
        axes.set_box_aspect(ratio)
        few_ticks(axes, 4)
        if place % columns == 0:
            axes.set_ylabel(names[1])
        if place + columns >= count:
            axes.set_xlabel(names[0])
            axes.tick_params(labelbottom=True)
    figure.align_ylabels()
    return figure, list(grid.flat[:count])


def grid_shape(count: int) -> tuple[int, int]:
    """Rows and columns for `count` panels, at most four in a row and as even as can be."""
    rows = math.ceil(count / 4)
    return rows, math.ceil(count / rows)
