"""Rows of images that turn into one another."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flowcli.plots.images import grey_scale, mosaic
from flowcli.plots.panels import thin
from flowcli.plots.style import Array, write

MAX_FRAMES = 11


def image_strips(strips: Mapping[str, Array], file: Path, *, data: Array | None = None) -> None:
    """Draw one row of images for each title: strips (S, C, H, W) with C = 1 or 3, at most eleven at even steps.

    All are on the grey or colour scale of the data (M, C, H, W), or of all strips without data.
    """
    write(file, lambda: strips_figure(strips, data))


def strips_figure(strips: Mapping[str, Array], data: Array | None) -> Figure:
    """A row a strip, with the part of the way gone above the first."""
    rows = {title: np.asarray(strip, dtype=float) for title, strip in strips.items()}
    low, high = grey_scale(np.concatenate(list(rows.values())) if data is None else np.asarray(data, dtype=float))
    frames = min(MAX_FRAMES, max(len(strip) for strip in rows.values()))
    figure = Figure(figsize=(0.8 + 0.6 * frames, 0.27 + 0.6 * len(rows)))
    grid = figure.subplots(len(rows), frames, squeeze=False)
    for row, (places, (title, strip)) in enumerate(zip(grid, rows.items(), strict=True)):
        gone = thin(np.linspace(0, 1, len(strip)), frames)
        for axes in places:
            axes.set_axis_off()
        for axes, image, part in zip(places, thin(strip, frames), gone, strict=False):
            axes.imshow(mosaic(image[None], 1, low, high), interpolation="nearest")
            if row == 0:
                axes.set_title(f"{part:.2g}", fontsize=8, loc="center")
        places[0].annotate(title, (0, 0.5), (-6, 0), "axes fraction", "offset points", ha="right", va="center")
    return figure
