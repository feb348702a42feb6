"""What pictures of several rows have in common: their labels, which anybody may have written, and their looks."""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from flowcli.plots.style import QUIET_COLOUR, STYLE, series_style

STYLES = 12
"""Rows whose lines have looks of their own."""
LATER_MARKS = ("P", "X", "*", "<", ">", "h", "p")
LATER_COLOURS = ("#7A3B00", "#8C8C8C", "#7B2D8E", "#5B7F00", "#B59CE0", "#00626B", "#A3123A")
"""Of the sixth row and those after it; no blue, which is the truth's."""
BEYOND = 8.0
"""Rows this many times as wide as the middle one are cut, so that the others can still be told apart."""


def wrapped(label: str, width: int, lines: int) -> str:
    """A label on at most so many lines of so many letters, nothing in it taken for mathematics or a missing letter."""
    plain = "".join(letter if _has(letter) else "□" for letter in " ".join(label.split()))
    rows = [""]
    for word in plain.split():
        # a word too long for a line is broken behind its signs, any other only before it
        pieces = re.findall(rf"[^=/_.,]{{0,{width - 1}}}[=/_.,]|[^=/_.,]{{1,{width}}}", word)
        for piece in [word] if len(word) <= width else pieces:
            if rows[-1] and len(rows[-1] + piece) > width:
                rows.append("")
            rows[-1] += piece
        rows[-1] = f"{rows[-1].rstrip()} "
    if len(rows) > lines:
        rows[lines - 1 :] = [f"{rows[lines - 1].rstrip()[: width - 1]}…"]
    return "\n".join(row.rstrip() for row in rows).replace("$", r"\$")


@cache
def _has(letter: str) -> bool:
    """Whether the font of all pictures has a letter."""
    return letter == " " or get_font(findfont(STYLE["font.family"])).get_char_index(ord(letter)) != 0


def row_style(index: int) -> dict[str, Any]:
    """Colour, dashes and mark of row number `index`: those of any series first, twelve in all, then they return."""
    place = index % STYLES
    style = dict(series_style(place))
    later = place - (STYLES - len(LATER_MARKS))
    if later >= 0:
        style |= {"color": LATER_COLOURS[later], "marker": LATER_MARKS[later]}
    return style


def row_handle(index: int, label: str, **marks: Any) -> Line2D:
    """What a legend shows of a row."""
    return Line2D([], [], **(row_style(index) | marks), label=wrapped(label, 34, 3))


def bulk(ends: Sequence[tuple[float, float]], always: Sequence[float]) -> tuple[tuple[float, float], bool]:
    """Limits that show intervals (low, high) and the values `always`, and whether some interval sticks out.

    One row that failed would squeeze all others into a point, so it is cut where it is far beyond the middle row.
    """
    found = np.array([pair for pair in ends if np.isfinite(pair).all()], dtype=float).reshape(-1, 2)
    found = np.sort(found, axis=1)
    values = [value for value in always if np.isfinite(value)] or ([float(np.median(found))] if len(found) else [0.0])
    centre = float(np.median(values))
    reach = np.sort(np.abs(found - centre).max(axis=1)) if len(found) else np.array([0.0])
    reach = reach[reach > 0] if (reach > 0).any() else np.array([0.5])
    most = BEYOND * float(reach[(len(reach) - 1) // 2])
    kept = found[np.abs(found - centre).max(axis=1) <= most]
    low, high = min([*values, *kept[:, 0]]), max([*values, *kept[:, 1]])
    margin = 0.08 * (high - low) or 0.5
    return (low - margin, high + margin), len(kept) < len(found)


def to_error(value: float, error: float, sign: str = "") -> str:
    """A value to the second digit of its error, or to four digits where that is not known, with a wide minus."""
    if math.isfinite(error) and 0 < error < 1e3 and abs(value) < 1e5:
        text = f"{value:{sign}.{min(max(1 - math.floor(math.log10(error)), 0), 6)}f}"
    else:
        text = f"{value:{sign}.4g}"
    return text.replace("-", "−")


def row_axis(axes: Axes, labels: Sequence[str], words: Sequence[str]) -> None:
    """Rows from the top, their labels left of a panel and small words right of it, with faint lines between."""
    count = len(labels)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), [wrapped(label, 38, 3) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(count):
        axes.axhline(row, color="#E6E6E6", linewidth=0.7, zorder=0)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(count), list(words))
    right.tick_params(axis="y", length=0, labelsize=7.5, labelcolor=QUIET_COLOUR, pad=7)
    right.spines[:].set_visible(False)


def rows_height(labels: Sequence[str]) -> float:
    """Height in inches of rows with these labels."""
    return sum(max(0.3, 0.08 + 0.15 * (1 + wrapped(label, 38, 3).count("\n"))) for label in labels)


def fit_height(figure: Figure) -> None:
    """Give a figure of panels with fixed shapes the height that they and their titles, of any length, need."""
    FigureCanvasAgg(figure)
    figure.set_figheight(2 * figure.get_figheight())
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
    height = Bbox.union([box for box in (axes.get_tightbbox() for axes in panels) if box is not None]).height
    height += sum(legend.get_window_extent().height for legend in figure.legends)
    height += sum(text.get_window_extent().height for text in figure.texts)
    figure.set_figheight(height / figure.dpi + 0.12 + 0.12 * len([*figure.legends, *figure.texts]))
