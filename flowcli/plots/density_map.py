"""Density in the plane, beside the truth where it is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from flowcli.plots.panels import axis_names, few_ticks, panel_shape, remark
from flowcli.plots.style import NAN_COLOUR, Array, write


def density(
    xs: Array,
    ys: Array,
    model_log_prob: Array,
    file: Path,
    *,
    true_log_prob: Array | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Draw exp(log_prob) on the grid xs (X,) by ys (Y,); log-densities (Y, X) in nats, the truth beside if known."""
    write(file, lambda: density_figure(xs, ys, model_log_prob, true_log_prob, columns))


def density_figure(xs: Array, ys: Array, model: Array, truth: Array | None, columns: Sequence[str] | None) -> Figure:
    """Panels of exp of log-densities (Y, X) on one scale, the truth first; its peak is the top of the scale."""
    names = axis_names(columns, 2)
    fields = {"True density": truth, "Model density": model} if truth is not None else {"Model density": model}
    values = {title: np.exp(np.asarray(field, dtype=float)) for title, field in fields.items()}
    reference = next(iter(values.values()))
    top = float(np.max(reference[np.isfinite(reference)], initial=0.0)) or 1.0
    above = any(bool(np.any(value > 1.02 * top)) for value in values.values())
    limits, ratio = panel_shape([(float(axis[0]), float(axis[-1])) for axis in (xs, ys)], columns is None)
    figure = Figure(figsize=(7.2 if len(values) == 2 else 4.2, 0.75 + 2.95 * ratio), layout="compressed")
    panels = figure.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)[0]
    mesh = None
    for axes, (title, value) in zip(panels, values.items(), strict=True):
        mesh = density_mesh(axes, xs, ys, value, top)
        axes.set_title(title)
        remark(axes, f"mass in view {mass(value, xs, ys):.3f}")
        axes.set_xlabel(names[0])
        axes.set_box_aspect(ratio)
        few_ticks(axes)
    panels[0].set(xlim=limits[0], ylim=limits[1], ylabel=names[1])
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=list(panels), extend="max" if above else "neither", aspect=28, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("density")
    return figure


def density_mesh(axes: Axes, xs: Array, ys: Array, value: Array, top: float) -> QuadMesh:
    """Heat map of value (Y, X) from 0 to `top`, grey where it is not a number."""
    shown = np.ma.masked_invalid(value)
    mesh = axes.pcolormesh(xs, ys, shown, vmin=0, vmax=top, shading="nearest", rasterized=True)
    axes.set_facecolor(NAN_COLOUR)
    axes.spines[:].set_visible(False)
    return mesh


def mass(value: Array, xs: Array, ys: Array) -> float:
    """Integral of value (Y, X) over the grid by the trapezoid rule."""
    across, down = (np.convolve(np.diff(axis), [0.5, 0.5]) for axis in (xs, ys))
    return float((down[:, None] * across * value).sum())
