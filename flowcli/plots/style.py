"""The language of every picture: colours, letters, lines; and how a picture becomes a file."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowcli.storage import write_bytes

Array = NDArray[Any]
Limits = tuple[float, float]

TRUE_COLOUR = "#0072B2"
MODEL_COLOUR = "#D55E00"
QUIET_COLOUR = "#6E6E6E"
MASKED_COLOUR = "#DDDDDD"
"""Where there is nothing to show."""
NAN_COLOUR = "#B0B0B0"
"""Where a value is not a number."""
SERIES: tuple[dict[str, Any], ...] = (
    {"color": MODEL_COLOUR, "linestyle": "-", "marker": "o"},
    {"color": "#303030", "linestyle": (0, (5, 1.5)), "marker": "s"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1.5, 1, 1.5)), "marker": "^"},
    {"color": "#009E73", "linestyle": (0, (2, 1)), "marker": "D"},
    {"color": "#E69F00", "linestyle": (0, (8, 2)), "marker": "v"},
)
"""Lines of several kinds in one panel, told apart by dashes and marks besides colour."""

STYLE: dict[str, Any] = {
    "savefig.dpi": 150,
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same letters
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#404040",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.4,
    "image.cmap": "viridis",
}


def write(file: Path, build: Callable[[], Figure]) -> None:
    """Build a figure in the house style and write it whole: no half of a picture under its final name."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = build()
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(file, buffer.getvalue())


def series_style(index: int) -> dict[str, Any]:
    """Colour, dashes and mark of the line number `index` of a panel; after five they begin again."""
    return SERIES[index % len(SERIES)]
