"""A film of noise that becomes data."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowcli.plots.film import write_film
from flowcli.plots.histograms import bin_heights
from flowcli.plots.images import grey_scale, mosaic
from flowcli.plots.panels import alike, axis_names, few_ticks, inside, limits_of, marks, much_wider, thin
from flowcli.plots.style import MODEL_COLOUR, QUIET_COLOUR, STYLE, TRUE_COLOUR, Array, Limits

DOTS = {".gif": 125, ".mp4": 200}
"""Dots per inch."""
SIDE, HEAD, FOOT, LEFT = 4.0, 0.62, 0.66, 0.66
"""Inches: of the panel, and of what stands around it."""
BEFORE, AFTER = 0.6, 1.6
"""Seconds for which the noise and the data stand still."""
ZOOM = 0.05
"""Widths of the view that a zoom by e counts for: as much time as it takes to see it."""
BINS = 60

Update = Callable[[int], None]


def animate(
    points: Array,
    times: Array,
    file: Path,
    *,
    frames: int,
    fps: float,
    data: Array | None = None,
    columns: Sequence[str] | None = None,
    layers: bool = False,
    said: str = "",
) -> None:
    """Film points (T, N, D) or (T, N, C, H, W) on their way from noise at times[0] to data at times[-1], rising (T,).

    D = 1 is a moving histogram, D = 2 the plane, D > 2 its first two columns, images a mosaic. data (M, ...) stands
    behind. Noise much wider than the data is seen whole at first; the picture then closes in on the data. Frames are
    spaced by how far the points go on the screen, not by time.

    Args:
        frames: pictures of the motion; a hold of the first and the last comes on top.
        fps: frames a second.
        layers: the states are those behind the layers of a discrete flow: nothing lies between them.
        said: small words at the foot.
        file: .gif or .mp4.

    Raises:
        UserError: an .mp4, and there is no ffmpeg.
        JobError: ffmpeg failed.
    """
    points, times = np.asarray(points, dtype=float), np.asarray(times, dtype=float)
    truth = points[-1] if data is None else np.asarray(data, dtype=float)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        if points.ndim == 5 and points.shape[2] in (1, 3):
            places, figure, update, more = _of_images(points, truth, frames, layers)
        else:
            places, figure, update, more = _of_points(points, truth, data is not None, columns, frames, layers)
        head = head_of(figure, times, places, len(points) - 1 if layers else None)
        small: dict[str, Any] = {"fontsize": 7.0, "color": QUIET_COLOUR, "ha": "right", "va": "bottom"}
        words = ", ".join(part for part in (said, *more) if part)
        figure.text(1 - 0.1 / figure.get_figwidth(), 0.08 / figure.get_figheight(), words, **small)
        figure.set_dpi(DOTS[file.suffix])
        canvas = FigureCanvasAgg(figure)

        def picture(number: int) -> Array:
            update(number)
            head(number)
            canvas.draw()
            return np.asarray(canvas.buffer_rgba())[..., :3].copy()

        write_film(file, picture, shown(len(places), frames, fps), fps)


def _of_images(points: Array, truth: Array, frames: int, layers: bool) -> tuple[Array, Figure, Update, list[str]]:
    """Places, a figure and what changes in it, of images (T, N, C, H, W) on the grey scale of the truth."""
    grey = grey_scale(truth)
    flat = np.clip(points, *grey).reshape(*points.shape[:2], -1)
    places = _places(flat, np.full((len(points), 1, 2), grey), frames, layers)
    return places, *mosaic_figure(points, places, grey), []


def _of_points(
    points: Array, truth: Array, with_data: bool, columns: Sequence[str] | None, frames: int, layers: bool
) -> tuple[Array, Figure, Update, list[str]]:
    """Places, a figure, what changes in it and words about it, of points (T, N, ...) and their truth (M, ...)."""
    points, truth = points.reshape(*points.shape[:2], -1), truth.reshape(len(truth), -1)
    total, names = points.shape[2], axis_names(columns, points.shape[2])
    points, truth = points[..., :2], truth[:, :2]
    views = camera(points, truth, equal=columns is None)
    places = _places(points, views, frames, layers)
    views = np.stack([between(views, place) for place in places])
    views = views if layers else smoothed(views)
    draw = plane_figure if total > 1 else histogram_figure
    missed = len(points[-1]) - int(inside(points[-1], views[-1]).sum())
    words = [f"{missed:,} end outside" if missed else "", f"first 2 of {total} columns" if total > 2 else ""]
    return places, *draw(points, places, views, truth if with_data else None, names), words


# ---------------------------------------------------------------- which states, for how long
def shown(pictures: int, frames: int, fps: float) -> list[int]:
    """How many frames each picture stays, the first and the last a while longer."""
    each = [max(1, round(frames / pictures))] * pictures
    each[0] += round(BEFORE * fps)
    each[-1] += round(AFTER * fps)
    return each


def _places(points: Array, views: Array, frames: int, layers: bool) -> Array:
    return thin(np.arange(len(points)), frames) if layers else even_steps(points, views, frames)


def even_steps(points: Array, views: Array, count: int) -> Array:
    """Places (count,) among the states of points (T, N, D), 0 to T - 1, that lie evenly along the way.

    A way's length is that of the root mean square step on the screen, in widths of the view (T, D, 2), and of the zoom.
    It starts slowly and ends slowly.
    """
    width = views[..., 1] - views[..., 0]
    steps = np.diff((points - views.mean(2)[:, None]) / width[:, None], axis=0)
    zoom = np.abs(np.diff(np.log(width.mean(1))))
    length = np.concatenate([[0.0], np.cumsum(np.sqrt(np.square(steps).sum(2).mean(1)) + ZOOM * zoom)])
    if length[-1] == 0:
        length = np.linspace(0, 1, len(points))
    part = np.linspace(0, 1, count)
    return np.interp(part**2 * (3 - 2 * part) * length[-1], length, np.arange(len(points)))


def between(x: Array, place: float) -> Array:
    """x (T, ...) at a place from 0 to T - 1, on the line between its neighbours."""
    first = min(int(place), len(x) - 1)
    part = place - first
    return x[first] if part == 0 else (1 - part) * x[first] + part * x[first + 1]


# ---------------------------------------------------------------- what the view holds
def camera(points: Array, truth: Array, *, equal: bool) -> Array:
    """Limits (T, D, 2) for points (T, N, D): one view of all times, or, of much wider noise, one for each.

    equal: one scale on both axes, if the data allows it.
    """
    near = [limits_of(truth[:, column]) for column in range(truth.shape[1])]
    low, high = np.quantile(points, [0.005, 0.995], axis=1)
    margin = 0.04 * (high - low)
    low, high = (np.minimum(low - margin, [pair[0] for pair in near]), np.maximum(high + margin, [p[1] for p in near]))
    whole = list(zip(low.min(0), high.max(0), strict=True))
    if not much_wider(whole, near):
        low, high = np.broadcast_to(low.min(0), low.shape), np.broadcast_to(high.max(0), high.shape)
    views = np.stack([low, high], axis=2)
    if equal and len(near) == 2 and alike(near):
        half = (views[..., 1] - views[..., 0]).max(1)[:, None, None] / 2
        views = views.mean(2, keepdims=True) + half * np.array([-1.0, 1.0])
    return views


def smoothed(views: Array) -> Array:
    """Limits (F, D, 2) without jerks: middles and logarithms of widths, each smoothed over neighbouring frames."""
    middle, width = views.mean(2), np.log(views[..., 1] - views[..., 0])
    half = np.exp(_smooth(width)) / 2
    return np.stack([_smooth(middle) - half, _smooth(middle) + half], axis=2)


def _smooth(x: Array) -> Array:
    """x (F, D) under a Gaussian of a 25th of the film, with both ends at rest."""
    reach = math.ceil(0.1 * len(x))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(0.04 * len(x), 1e-9)) ** 2)
    padded = np.pad(x, ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0) @ (kernel / kernel.sum())


# ---------------------------------------------------------------- figures, and what changes in them
def _panel(side: float = SIDE) -> tuple[Figure, Axes]:
    """A figure whose panel of this height stays in its place, whatever its ticks say; an even number of dots."""
    width, height = SIDE + LEFT + 0.14, side + HEAD + FOOT
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    axes = figure.add_axes((LEFT / width, FOOT / height, SIDE / width, side / height))
    axes.xaxis.set_label_coords(0.5, -0.3 / side)
    axes.yaxis.set_label_coords(-0.44 / SIDE, 0.5)
    return figure, axes


def head_of(figure: Figure, times: Array, places: Array, layers: int | None) -> Update:
    """The time, or the layer, in words and as a bar above the panel."""
    axes = figure.axes[0]
    style: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "solid_capstyle": "butt"}
    height = 1 + 0.09 / (axes.get_position().height * figure.get_figheight())
    axes.add_line(Line2D([0, 1], [height] * 2, color="#DDDDDD", linewidth=2.0, **style))
    bar = axes.add_line(Line2D([0, 0], [height] * 2, color=MODEL_COLOUR, linewidth=2.0, **style))
    words = axes.annotate("", (0, height), (0, 5), "axes fraction", "offset points", fontsize=13.0, va="bottom")
    first, last = float(times[0]), float(times[-1])

    def update(number: int) -> None:
        time = float(between(times, places[number]))
        words.set_text(f"t = {time:.3f}" if layers is None else f"layer {round(places[number])} of {layers}")
        bar.set_xdata([0, (time - first) / (last - first)])

    return update


def plane_figure(
    points: Array, places: Array, views: Array, truth: Array | None, names: Sequence[str]
) -> tuple[Figure, Update]:
    """Points (T, N, 2) over the truth (M, 2)."""
    figure, axes = _panel()
    if truth is not None:
        behind = thin(truth, 2000)
        style: dict[str, Any] = marks(len(behind)) | {"alpha": 0.4, "s": 4.0}
        axes.scatter(behind[:, 0], behind[:, 1], color=TRUE_COLOUR, zorder=1, label="data", **style)
    count = points.shape[1]
    style: dict[str, Any] = marks(count / 2) | {"alpha": float(np.clip(24 / math.sqrt(count), 0.4, 0.9))}
    dots = axes.scatter(points[0, :, 0], points[0, :, 1], color=MODEL_COLOUR, zorder=2, label="samples", **style)
    axes.set(xlabel=names[0], ylabel=names[1])
    few_ticks(axes)
    _legend(axes)

    def update(number: int) -> None:
        dots.set_offsets(between(points, places[number]))
        axes.set(xlim=tuple(views[number, 0]), ylim=tuple(views[number, 1]))

    return figure, update


def histogram_figure(
    points: Array, places: Array, views: Array, truth: Array | None, names: Sequence[str]
) -> tuple[Figure, Update]:
    """Histogram of points (T, N, 1) over that of the truth (M, 1), on the same bins, which follow the view."""
    figure, axes = _panel(2.56)
    edges = np.stack([np.linspace(low, high, BINS + 1) for low, high in views[:, 0]])
    model = np.stack([bin_heights(between(points, p)[:, 0], edge) for p, edge in zip(places, edges, strict=True)])
    data = None if truth is None else np.stack([bin_heights(truth[:, 0], edge) for edge in edges])
    top = (model if data is None else np.maximum(model, data)).max(1)
    still = bool((views == views[0]).all())
    tops = np.full(len(top), top.max()) if still else np.exp(_smooth(np.log(top)[:, None]))[:, 0]
    filled = None if data is None else axes.stairs(data[0], edges[0], fill=True, color=TRUE_COLOUR, alpha=0.35)
    if filled is not None:
        filled.set_label("data")
    line = axes.stairs(model[0], edges[0], color=MODEL_COLOUR, linewidth=1.5, label="samples")
    axes.set(xlabel=names[0], ylabel="density")
    few_ticks(axes)
    axes.tick_params(left=False, labelleft=False)
    axes.yaxis.set_label_coords(-0.08 / SIDE, 0.5)
    _legend(axes)

    def update(number: int) -> None:
        line.set_data(model[number], edges[number])
        if filled is not None and data is not None:
            filled.set_data(data[number], edges[number])
        axes.set(xlim=tuple(views[number, 0]), ylim=(0, 1.15 * tops[number]))

    return figure, update


def mosaic_figure(points: Array, places: Array, grey: Limits) -> tuple[Figure, Update]:
    """Images (T, N, C, H, W) side by side on the grey scale of the data."""
    figure, axes = _panel()
    side = math.ceil(math.sqrt(points.shape[1]))
    drawn = axes.imshow(mosaic(points[0], side, *grey), interpolation="nearest")
    axes.set_axis_off()

    def update(number: int) -> None:
        drawn.set_data(mosaic(between(points, places[number]), side, *grey))

    return figure, update


def _legend(axes: Axes) -> None:
    """What is blue and what is vermilion, above the panel."""
    _, bottom, _, height = axes.get_position().bounds
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1 + 0.24 * (1 - bottom - height) / height),
        ncols=2,
        borderaxespad=0,
        columnspacing=1.2,
        handletextpad=0.4,
        markerscale=2.0,
    )
