"""Signed scalars in the plane: the divergence of a field, the residual of its continuity equation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flowcli.plots.panels import axis_names, grid_shape, panel_shape, small_multiples, subtitle
from flowcli.plots.style import MASKED_COLOUR, NAN_COLOUR, Array, Limits, write

SIGNED_COLOURS = LinearSegmentedColormap.from_list(
    "signed",
    [
        *[(0.0, "#2D0F5C"), (0.25, "#7B68B0"), (0.42, "#C9C1E3")],
        (0.5, "#FFFFFF"),  # steeper about zero, where weak sources part from weak sinks
        *[(0.58, "#FADBA8"), (0.75, "#DE8B1F"), (1.0, "#6B2F06")],
    ],
    N=255,  # odd, so that zero is white
)
"""Violet below zero, orange above: not the blue and vermilion of truth and model."""
SHARE = 0.99
"""Part of all values that the colours cover; the rest has the colour of the end."""


def scalar_maps(
    panels: Sequence[tuple[str, Array]],
    xs: Array,
    ys: Array,
    file: Path,
    *,
    label: str,
    mask: Array | None = None,
    arrows: Sequence[Array] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Draw a signed scalar (Y, X) of each titled panel on the grid xs (X,) by ys (Y,); zero is white.

    All panels share one scale, which covers 99 % of the values, so that they can be compared; what a panel holds at
    most and at least stands above it.

    Args:
        panels: Title and values; grey is not a number.
        label: What is drawn, with its unit, beside the scale.
        mask: True where the density is negligible and nothing is drawn: (Y, X), or (panels, Y, X).
        arrows: For each panel velocities (n, m, 2) at n by m points evenly over ys and xs.
    """
    write(file, lambda: maps_figure(panels, xs, ys, label, mask, arrows, columns))


def maps_figure(
    panels: Sequence[tuple[str, Array]],
    xs: Array,
    ys: Array,
    label: str,
    mask: Array | None,
    arrows: Sequence[Array] | None,
    columns: Sequence[str] | None,
) -> Figure:
    """Small multiples with one bar."""
    values = np.stack([np.asarray(value, dtype=float) for _, value in panels])
    hidden = np.broadcast_to(np.zeros((), dtype=bool) if mask is None else np.asarray(mask, dtype=bool), values.shape)
    top = _top(values[~hidden])
    limits, ratio = panel_shape([(float(axis[0]), float(axis[-1])) for axis in (xs, ys)], columns is None)
    figure, places = small_multiples(len(panels), ratio, axis_names(columns, 2), lines=1, bar=True)
    mesh = None
    for axes, (title, _), value, blank in zip(places, panels, values, hidden, strict=True):
        mesh = _signed_mesh(axes, xs, ys, value, blank, top)
        subtitle(axes, title, _range(value[~blank]))
    if arrows is not None:
        _draw_arrows(places, arrows, limits, hidden)
    places[0].set(xlim=limits[0], ylim=limits[1])
    assert mesh is not None
    beyond = values[~hidden & np.isfinite(values)]
    below, above = bool(np.any(beyond < -top)), bool(np.any(beyond > top))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    bar = figure.colorbar(mesh, ax=places, extend=extend, aspect=24 * grid_shape(len(panels))[0], pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(label)
    if hidden.any():
        patch = Patch(facecolor=MASKED_COLOUR, label="negligible density")
        figure.legend(handles=[patch], loc="outside upper right")
    return figure


def _top(values: Array) -> float:
    """End of the scale: the size that SHARE of the values do not pass."""
    sizes = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(sizes, SHARE)) or float(sizes.max()) or 1.0) if len(sizes) else 1.0


def _range(values: Array) -> str:
    """Smallest and largest of the values, in words."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "no finite value"
    return f"from {values.min():.3g} to {values.max():.3g}".replace("-", "−")


def _signed_mesh(axes: Axes, xs: Array, ys: Array, value: Array, blank: Array, top: float) -> QuadMesh:
    """Heat map of value (Y, X) from -top to top, light grey where blank, dark grey where not a number."""
    shown = np.ma.masked_invalid(value)
    mesh = axes.pcolormesh(xs, ys, shown, cmap=SIGNED_COLOURS, vmin=-top, vmax=top, shading="nearest", rasterized=True)
    axes.set_facecolor(NAN_COLOUR)
    if blank.any():
        cover = np.ma.masked_array(np.zeros(blank.shape), mask=~blank)
        flat = LinearSegmentedColormap.from_list("blank", [MASKED_COLOUR] * 2)
        axes.pcolormesh(xs, ys, cover, cmap=flat, shading="nearest", rasterized=True)
    axes.spines[:].set(visible=True, color="#A0A0A0", linewidth=0.5)
    return mesh


def _draw_arrows(places: Sequence[Axes], arrows: Sequence[Array], limits: Sequence[Limits], hidden: Array) -> None:
    """Velocities of all panels at one scale: a fast one (95 %) spans the gap to its neighbour."""
    fields = [np.asarray(field, dtype=float) for field in arrows]
    speeds = np.concatenate([np.linalg.norm(field, axis=-1).reshape(-1) for field in fields])
    fast = float(np.quantile(speeds[np.isfinite(speeds)], 0.95)) if np.isfinite(speeds).any() else 0.0
    for axes, field, blank in zip(places, fields, hidden, strict=True):
        rows, columns = field.shape[:2]
        gap = (limits[0][1] - limits[0][0]) / max(columns - 1, 1)
        x, y = np.linspace(*limits[0], columns), np.linspace(*limits[1], rows)
        row = np.linspace(0, blank.shape[0] - 1, rows).round().astype(int)
        column = np.linspace(0, blank.shape[1] - 1, columns).round().astype(int)
        drawn = np.isfinite(field).all(axis=-1) & ~blank[np.ix_(row, column)]
        x, y = (table[drawn] for table in np.meshgrid(x, y))
        axes.quiver(
            x,
            y,
            *field[drawn].T,
            angles="xy",
            scale_units="xy",
            scale=(fast or 1.0) / gap,
            color="#202020",
            width=0.005,
        )
