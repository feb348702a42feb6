"""A density on its way: at several times of a flow, or after each of its layers."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flowcli.plots.density_map import density_mesh, mass
from flowcli.plots.panels import axis_names, grid_shape, panel_shape, small_multiples, subtitle
from flowcli.plots.style import Array, write


def densities(
    panels: Sequence[tuple[str, Array]], xs: Array, ys: Array, file: Path, *, columns: Sequence[str] | None = None
) -> None:
    """Draw exp(log_prob) of each titled panel on the grid xs (X,) by ys (Y,); log-densities (Y, X) in nats.

    Peaks differ by orders of magnitude between noise and data, so the colours of a panel run up to its own peak,
    which stands above it with the mass in view. Grey is not a number.
    """
    write(file, lambda: frames_figure(panels, xs, ys, columns))


def frames_figure(panels: Sequence[tuple[str, Array]], xs: Array, ys: Array, columns: Sequence[str] | None) -> Figure:
    """Small multiples with one bar, in parts of each panel's peak."""
    limits, ratio = panel_shape([(float(axis[0]), float(axis[-1])) for axis in (xs, ys)], columns is None)
    figure, places = small_multiples(len(panels), ratio, axis_names(columns, 2), lines=1, bar=True)
    mesh = None
    for axes, (title, log_prob) in zip(places, panels, strict=True):
        log_prob = np.asarray(log_prob, dtype=float)
        log_peak = float(np.max(log_prob[np.isfinite(log_prob)], initial=-np.inf))
        relative = np.exp(log_prob - (log_peak if np.isfinite(log_peak) else 0.0))
        mesh = density_mesh(axes, xs, ys, relative, 1.0)
        subtitle(axes, title, _facts(log_prob, log_peak, mass(relative, xs, ys)))
    places[0].set(xlim=limits[0], ylim=limits[1])
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=places, aspect=24 * grid_shape(len(panels))[0], pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("density / its peak")
    return figure


def _facts(log_prob: Array, log_peak: float, relative_mass: float) -> str:
    """Peak and mass of a panel, in words; a peak beyond the floats is given as a power of ten."""
    if np.isnan(log_prob).all():
        return "not a number"
    if not np.isfinite(log_peak):
        return "nothing in view"
    decimal = log_peak / math.log(10)
    peak = f"{math.exp(log_peak):.3g}" if abs(decimal) < 300 else f"1e{decimal:.0f}"
    total = math.exp(log_peak + math.log(relative_mass)) if relative_mass > 0 and decimal < 300 else math.nan
    return f"peak {peak}" + (f", mass {total:.3f}" if math.isfinite(total) else "")
