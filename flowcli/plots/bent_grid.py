"""A square grid of the latent space, carried along by the flow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowcli.plots.panels import axis_names, limits_of, marks, much_wider, panel_shape, small_multiples, thin
from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array, Limits, write

FAMILIES = (MODEL_COLOUR, "#4B2E83")
"""Lines of each family; the second is violet, far from blue, which is the data's."""


def deformed_grid(
    panels: Sequence[tuple[str, Array]], file: Path, *, data: Array | None = None, columns: Sequence[str] | None = None
) -> None:
    """Draw the grid (2, L, P, 2) of each titled panel.

    The first family are L lines of P points whose first latent coordinate is constant, the second those of the second.
    Lines break where a point is not finite. data (M, 2) lies behind the grid. The panels share their limits unless
    that would lose the narrow ones.
    """
    write(file, lambda: grid_figure(panels, data, columns))


def grid_figure(panels: Sequence[tuple[str, Array]], data: Array | None, columns: Sequence[str] | None) -> Figure:
    """Small multiples in their order."""
    titles, grids = [title for title, _ in panels], [np.asarray(grid, dtype=float) for _, grid in panels]
    truth = None if data is None else np.asarray(data, dtype=float).reshape(len(data), -1)
    views = [_view(grid, truth) for grid in grids]
    common = [_hull([view[column] for view in views]) for column in (0, 1)]
    apart = any(much_wider(common, view) for view in views)
    limits, ratio = panel_shape(common, columns is None)
    figure, places = small_multiples(len(grids), 1.0 if apart else ratio, axis_names(columns, 2), shared=not apart)
    for axes, grid, title, view in zip(places, grids, titles, views, strict=True):
        if truth is not None:
            shown = thin(truth, 2000)
            axes.scatter(*shown.T, color=TRUE_COLOUR, zorder=1, **(marks(len(shown)) | {"alpha": 0.25}))
        _draw_grid(axes, grid)
        left_right, bottom_top = panel_shape(view, columns is None)[0] if apart else limits
        axes.set(xlim=left_right, ylim=bottom_top)
        axes.set_title(title)
    labels = ["first latent coordinate constant", "second constant"]
    handles = [Line2D([], [], color=FAMILIES[i], linewidth=1.2, label=label) for i, label in enumerate(labels)]
    if truth is not None:
        handles.append(Line2D([], [], color=TRUE_COLOUR, marker="o", markersize=3, linestyle="none", label="data"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handletextpad=0.5)
    return figure


def _view(grid: Array, truth: Array | None) -> list[Limits]:
    """Limits that show one grid (2, L, P, 2) and the data."""
    points = grid.reshape(-1, 2)
    found = [limits_of(points[:, column]) for column in (0, 1)]
    return found if truth is None else [_hull([found[i], limits_of(truth[:, i])]) for i in (0, 1)]


def _hull(limits: Sequence[Limits]) -> Limits:
    return min(low for low, _ in limits), max(high for _, high in limits)


def _draw_grid(axes: Axes, grid: Array) -> None:
    for family, colour in zip(grid, FAMILIES, strict=True):
        lines = list(np.ma.masked_invalid(family))
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.6, alpha=0.8, zorder=2), autolim=False)
