"""Histograms of data and model on common bins."""

import math

import numpy as np
from matplotlib.axes import Axes

from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array, Limits


def bin_edges(x: Array, limits: Limits) -> Array:
    """Histogram edges over the limits by the rule of Freedman and Diaconis, within 12 to 90 bins."""
    inside = x[(x >= limits[0]) & (x <= limits[1])]
    width = limits[1] - limits[0]
    spread = float(np.subtract(*np.quantile(inside, [0.75, 0.25]))) if len(inside) else 0.0
    step = 2 * spread / len(inside) ** (1 / 3) if spread > 0 else width / 31
    fewest = 40 if len(inside) >= 2000 else 12  # the rule is too coarse for several peaks
    return np.linspace(*limits, int(np.clip(math.ceil(width / step), fewest, 90)) + 1)


def bin_heights(x: Array, edges: Array) -> Array:
    """Density in each bin; what lies outside the edges still counts in the total, so curves stay comparable."""
    counts, _ = np.histogram(x[np.isfinite(x)], bins=edges)
    return counts / max(len(x), 1) / np.diff(edges)


def overlay(axes: Axes, data: Array, model: Array, edges: Array, titles: tuple[str, str]) -> None:
    """Histogram of the data (filled) and of the model (line) in one panel, called by their titles."""
    if len(data):
        axes.stairs(bin_heights(data, edges), edges, fill=True, color=TRUE_COLOUR, alpha=0.35, label=titles[0].lower())
    axes.stairs(bin_heights(model, edges), edges, color=MODEL_COLOUR, linewidth=1.3, label=titles[1].lower())
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
