"""Data beside samples: histograms, scatter panels, a corner plot or images."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flowcli.plots.corner import corner_figure
from flowcli.plots.histograms import bin_edges, overlay
from flowcli.plots.images import grey_scale, mosaic
from flowcli.plots.panels import (
    MAX_POINTS,
    axis_names,
    counted,
    few_ticks,
    inside,
    left_out,
    limits_of,
    marks,
    panel_shape,
    remark,
    thin,
)
from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array, write

GRID_SIDE = 6


def samples(
    data: Array | None,
    samples: Array,
    file: Path,
    *,
    columns: Sequence[str] | None = None,
    event_shape: Sequence[int],
    titles: tuple[str, str] = ("Data", "Model"),
) -> None:
    """Draw data beside a model's samples, both (N, *event_shape) in data units; the samples alone without data.

    titles: of the two, for what is no data and no sample.

    One number an event: both histograms; two: scatter panels with the same limits; more: a corner plot of the first
    six columns; images (C, H, W) with C = 1 or 3: two grids on one grey or colour scale.
    """
    shape = tuple(event_shape)
    samples = np.asarray(samples, dtype=float).reshape(len(samples), *shape)
    data = np.empty((0, *shape)) if data is None else np.asarray(data, dtype=float).reshape(len(data), *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        write(file, lambda: images_figure(data, samples, titles))
        return
    width = math.prod(shape)
    data, samples = data.reshape(len(data), width), samples.reshape(len(samples), width)
    names = axis_names(columns, width)
    if data.shape[1] == 1:
        write(file, lambda: histogram_figure(data[:, 0], samples[:, 0], names[0], titles))
    elif data.shape[1] == 2:
        write(file, lambda: scatter_figure(data, samples, names, titles, equal=columns is None))
    else:
        write(file, lambda: corner_figure(data, samples, names, titles))


def histogram_figure(data: Array, model: Array, name: str, titles: tuple[str, str]) -> Figure:
    """Histograms of data (N,), may be empty, and model (M,) on common bins."""
    figure = Figure(figsize=(4.8, 3.0))
    axes = figure.add_subplot()
    frame = data if len(data) else model
    limits = limits_of(frame)
    overlay(axes, data, model, bin_edges(frame, limits), titles)
    missed = len(model) - int(inside(model[:, None], [limits]).sum())
    axes.set_title(f"{titles[0]} and {titles[1].lower()}" if len(data) else titles[1])
    remark(axes, f"{titles[1].lower()}: {left_out(missed, len(model))}" if missed else "")
    axes.set_xlabel(name)
    axes.set_ylabel("density")
    axes.legend()
    return figure


def scatter_figure(data: Array, model: Array, names: Sequence[str], titles: tuple[str, str], *, equal: bool) -> Figure:
    """Data (N, 2), may be empty, beside model (M, 2)."""
    frame = data if len(data) else model
    limits, ratio = panel_shape([limits_of(frame[:, column]) for column in (0, 1)], equal)
    drawn = [(data, titles[0], TRUE_COLOUR), (model, titles[1], MODEL_COLOUR)][0 if len(data) else 1 :]
    figure = Figure(figsize=(0.2 + 3.2 * len(drawn), 0.75 + 2.95 * ratio), layout="compressed")
    # As many points in both panels, unless one has next to none: what looks denser is denser.
    count = min(MAX_POINTS, max(1000, min(len(x) for x, _, _ in drawn)))
    panels = figure.subplots(1, len(drawn), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (x, title, colour) in zip(panels, drawn, strict=True):
        shown = thin(x, count)
        axes.scatter(shown[:, 0], shown[:, 1], color=colour, **marks(len(shown)))
        axes.set_title(title)
        remark(axes, counted(len(shown), "point"), left_out(len(x) - int(inside(x, limits).sum()), len(x)))
        axes.set_xlabel(names[0])
        axes.set_box_aspect(ratio)
        few_ticks(axes)
    panels[0].set(xlim=limits[0], ylim=limits[1], ylabel=names[1])
    return figure


def images_figure(data: Array, model: Array, titles: tuple[str, str]) -> Figure:
    """Grids of data (N, C, H, W), may be empty, and model."""
    low, high = grey_scale(data if len(data) else model)
    side = max(1, min(GRID_SIDE, math.isqrt(max(len(data), len(model)))))
    drawn = [(data, titles[0]), (model, titles[1])][0 if len(data) else 1 :]
    figure = Figure(figsize=(3.3 * len(drawn), 3.55))
    panels = figure.subplots(1, len(drawn), gridspec_kw={"wspace": 0.06}, squeeze=False)[0]
    for axes, (images, title) in zip(panels, drawn, strict=True):
        shown = thin(images, side**2)
        axes.imshow(mosaic(shown, side, low, high), interpolation="nearest")
        axes.set_title(title)
        remark(axes, f"{len(shown)} of {counted(len(images), 'image')}")
        axes.set_axis_off()
    return figure
