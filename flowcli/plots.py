"""Pictures of data, samples, densities, trajectories, losses and likelihoods; numpy arrays in, one PNG file out.

Every picture speaks one language: what is true is blue, what a model made is vermilion (both tell apart under every
common colour blindness), everything else is grey. Limits follow the data, so a model's outliers are counted in the
panel instead of shrinking it. Large inputs are thinned at even steps, the same way each time.
"""

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Array = NDArray[Any]
Limits = tuple[float, float]

TRUE_COLOUR = "#0072B2"
MODEL_COLOUR = "#D55E00"
QUIET_COLOUR = "#6E6E6E"
MAX_POINTS = 10_000
MAX_COLUMNS = 6
MAX_PATHS = 250
MAX_TIMES = 200
GRID_SIDE = 6
MASSES = (0.95, 0.8, 0.5)  # probability inside each contour of a corner plot
WIDE = 3.0  # noise this many times as wide as the data gets a second, zoomed panel

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


def samples(
    data: Array | None, samples: Array, file: Path, *, columns: Sequence[str] | None = None, event_shape: Sequence[int]
) -> None:
    """Draw data beside a model's samples, both (N, *event_shape) in data units; the samples alone without data.

    One number an event: both histograms; two: scatter panels with the same limits; more: a corner plot of the first
    six columns; images (C, H, W) with C = 1 or 3: two grids on one grey or colour scale.
    """
    shape = tuple(event_shape)
    samples = np.asarray(samples, dtype=float).reshape(len(samples), *shape)
    data = np.empty((0, *shape)) if data is None else np.asarray(data, dtype=float).reshape(len(data), *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        _draw(file, lambda: _images_figure(data, samples))
        return
    width = math.prod(shape)
    data, samples = data.reshape(len(data), width), samples.reshape(len(samples), width)
    names = _names(columns, width)
    if data.shape[1] == 1:
        _draw(file, lambda: _histogram_figure(data[:, 0], samples[:, 0], names[0]))
    elif data.shape[1] == 2:
        _draw(file, lambda: _scatter_figure(data, samples, names, equal=columns is None))
    else:
        _draw(file, lambda: _corner_figure(data, samples, names))


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
    _draw(file, lambda: _density_figure(xs, ys, model_log_prob, true_log_prob, columns))


def trajectories(
    points: Array, times: Array, file: Path, *, data: Array | None = None, columns: Sequence[str] | None = None
) -> None:
    """Draw paths from noise (t = 0) to data (t = 1): points (T, N, D) or (T, N, C, H, W) at times (T,).

    D = 1 is drawn against t, D = 2 in the plane, D > 2 in its first two columns; of images some frames are shown.
    data (M, ...) lies behind the paths. Noise much wider than the data gets a second panel near the data.
    """
    times = np.asarray(times, dtype=float)
    points = np.asarray(points, dtype=float)[np.argsort(times, kind="stable")]
    times = np.sort(times, kind="stable")
    if points.ndim == 5 and points.shape[2] in (1, 3):
        _draw(file, lambda: _frames_figure(points, times, data))
        return
    points = points.reshape(*points.shape[:2], -1)
    truth = points[-1] if data is None else np.asarray(data, dtype=float).reshape(len(data), -1)
    names = _names(columns, points.shape[2])
    if points.shape[2] == 1:
        _draw(file, lambda: _timeline_figure(points[..., 0], times, truth[:, 0], data is not None, names[0]))
    else:
        _draw(file, lambda: _paths_figure(points, times, truth, data is not None, names, equal=columns is None))


def loss(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw training loss (raw and smoothed), validation loss and learning rate against the step.

    records: dicts with `step` and any of `loss`, `validation_loss`, `lr`; missing and non-finite values are left out.
    """
    _draw(file, lambda: _loss_figure(records))


def likelihood(log_prob: Array, file: Path, *, true_log_prob: Array | None = None) -> None:
    """Draw the histogram of log_prob (N,) in nats with its mean; model against truth (N,) where that is known."""
    _draw(file, lambda: _likelihood_figure(log_prob, true_log_prob))


# --- shared parts ----------------------------------------------------------------------------------------------------


def _draw(file: Path, build: Callable[[], Figure]) -> None:
    """Build a figure in the house style and write it whole: no half of a picture under its final name."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = build()
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, file)


def _names(columns: Sequence[str] | None, count: int) -> list[str]:
    """Axis labels: the columns' own names, cut where too long and with no sign taken for mathematics."""
    if columns is not None:
        return [(name if len(name) <= 28 else f"{name[:27]}…").replace("$", r"\$") for name in columns]
    return ["value"] if count == 1 else [f"coordinate {i + 1}" for i in range(count)]


def _thin(x: Array, count: int) -> Array:
    """At most `count` rows at even steps: deterministic, and blind to any order in the rows."""
    return x if len(x) <= count else x[np.linspace(0, len(x) - 1, count).astype(int)]


def _limits(x: Array) -> Limits:
    """Limits that show the bulk of x (N,) with a margin, never much beyond its ends."""
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return -1.0, 1.0
    low, high = (float(q) for q in np.quantile(x, [0.002, 0.998]))
    width = high - low
    if width <= 1e-12 * max(1.0, abs(low), abs(high)):
        half = max(0.5, 0.1 * abs(low))
        return low - half, high + half
    first, last = float(x.min()), float(x.max())
    return max(low - 0.15 * width, first - 0.05 * width), min(high + 0.15 * width, last + 0.05 * width)


def _shape(limits: Sequence[Limits], equal: bool) -> tuple[list[Limits], float]:
    """Limits and height / width of a panel: one scale on both axes if asked for and possible, else a square."""
    (left, right), (bottom, top) = limits
    ratio = (top - bottom) / (right - left)
    if not equal or not _alike(limits):
        return list(limits), 1.0
    return (list(limits), ratio) if 0.6 <= ratio <= 1.2 else (_square(limits), 1.0)


def _square(limits: Sequence[Limits]) -> list[Limits]:
    """Limits of one common width about the same centres."""
    half = max(high - low for low, high in limits) / 2
    return [((low + high) / 2 - half, (low + high) / 2 + half) for low, high in limits]


def _alike(limits: Sequence[Limits], ratio: float = 2.5) -> bool:
    """Whether the widths are near enough for axes of equal scale to show both."""
    widths = [high - low for low, high in limits]
    return max(widths) <= ratio * min(widths)


def _inside(x: Array, limits: Sequence[Limits]) -> Array:
    """Which rows of x (N, D) are inside the limits of every column, (N,); NaN is outside."""
    inside = np.ones(len(x), dtype=bool)
    for column, (low, high) in enumerate(limits):
        inside &= (x[:, column] >= low) & (x[:, column] <= high)
    return inside


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _outside(count: int, total: int) -> str:
    """What a panel says of the points it does not show; empty if it shows all."""
    return f"{count:,} of {total:,} outside" if count else ""


def _remark(axes: Axes, *parts: str) -> None:
    axes.set_title(", ".join(part for part in parts if part), loc="right", fontsize=7.0, color=QUIET_COLOUR)


def _marks(count: int) -> dict[str, Any]:
    """Size and opacity of `count` points, so that 1 is seen and 10,000 still show where they are dense."""
    size = float(np.clip(120 / math.sqrt(max(count, 1)), 1.4, 22.0))
    alpha = float(np.clip(18 / math.sqrt(max(count, 1)), 0.3, 0.9))
    return {"s": size, "alpha": alpha, "linewidths": 0}


def _few_ticks(axes: Axes, count: int = 5) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))


def _edges(x: Array, limits: Limits) -> Array:
    """Histogram edges over the limits by the rule of Freedman and Diaconis, within 12 to 90 bins."""
    inside = x[(x >= limits[0]) & (x <= limits[1])]
    width = limits[1] - limits[0]
    spread = float(np.subtract(*np.quantile(inside, [0.75, 0.25]))) if len(inside) else 0.0
    step = 2 * spread / len(inside) ** (1 / 3) if spread > 0 else width / 31
    fewest = 40 if len(inside) >= 2000 else 12  # the rule is too coarse for several peaks
    return np.linspace(*limits, int(np.clip(math.ceil(width / step), fewest, 90)) + 1)


def _heights(x: Array, edges: Array) -> Array:
    """Density in each bin; what lies outside the edges still counts in the total, so curves stay comparable."""
    counts, _ = np.histogram(x[np.isfinite(x)], bins=edges)
    return counts / max(len(x), 1) / np.diff(edges)


def _overlay(axes: Axes, data: Array, model: Array, edges: Array) -> None:
    """Histogram of the data (filled) and of the model (line) in one panel."""
    if len(data):
        axes.stairs(_heights(data, edges), edges, fill=True, color=TRUE_COLOUR, alpha=0.35, label="data")
    axes.stairs(_heights(model, edges), edges, color=MODEL_COLOUR, linewidth=1.3, label="model")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)


# --- samples ---------------------------------------------------------------------------------------------------------


def _histogram_figure(data: Array, model: Array, name: str) -> Figure:
    figure = Figure(figsize=(4.8, 3.0))
    axes = figure.add_subplot()
    frame = data if len(data) else model
    limits = _limits(frame)
    _overlay(axes, data, model, _edges(frame, limits))
    missed = len(model) - int(_inside(model[:, None], [limits]).sum())
    axes.set_title("Data and model samples" if len(data) else "Model samples")
    _remark(axes, f"model: {_outside(missed, len(model))}" if missed else "")
    axes.set_xlabel(name)
    axes.set_ylabel("density")
    axes.legend()
    return figure


def _scatter_figure(data: Array, model: Array, names: Sequence[str], *, equal: bool) -> Figure:
    frame = data if len(data) else model
    limits, ratio = _shape([_limits(frame[:, column]) for column in (0, 1)], equal)
    drawn = [(data, "Data", TRUE_COLOUR), (model, "Model", MODEL_COLOUR)][0 if len(data) else 1 :]
    figure = Figure(figsize=(0.2 + 3.2 * len(drawn), 0.75 + 2.95 * ratio), layout="compressed")
    # As many points in both panels, unless one has next to none: what looks denser is denser.
    count = min(MAX_POINTS, max(1000, min(len(x) for x, _, _ in drawn)))
    panels = figure.subplots(1, len(drawn), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (x, title, colour) in zip(panels, drawn, strict=True):
        shown = _thin(x, count)
        axes.scatter(shown[:, 0], shown[:, 1], color=colour, **_marks(len(shown)))
        axes.set_title(title)
        _remark(axes, _counted(len(shown), "point"), _outside(len(x) - int(_inside(x, limits).sum()), len(x)))
        axes.set_xlabel(names[0])
        axes.set_box_aspect(ratio)
        _few_ticks(axes)
    panels[0].set(xlim=limits[0], ylim=limits[1], ylabel=names[1])
    return figure


def _blur(counts: Array, width: float) -> Array:
    """Smooth a table of counts (X, Y) by a Gaussian of `width` bins; mass at the rim stays inside."""
    reach = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel /= kernel.sum()

    def along_last(table: Array) -> Array:
        padded = np.pad(table, ((0, 0), (reach, reach)), mode="symmetric")
        return np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=1) @ kernel

    return along_last(along_last(counts).T).T


def _contours(x: Array, y: Array, limits: Sequence[Limits]) -> tuple[Array, Array, Array, list[float]] | None:
    """Bin centres, smoothed counts (Y, X) and the levels that enclose MASSES; None if too few points for that."""
    if len(x) < 400:
        return None
    bins = int(np.clip(1.6 * len(x) ** (1 / 3), 24, 70))
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=bins, range=limits)
    if counts.sum() < 400:
        return None
    counts = _blur(counts.T, 1.1)
    ranked = np.sort(counts, axis=None)[::-1]
    mass = np.cumsum(ranked) / ranked.sum()
    levels = [float(ranked[int(np.searchsorted(mass, fraction))]) for fraction in MASSES]
    if not 0 < levels[0] < levels[1] < levels[2] < ranked[0]:
        return None
    return (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2, counts, levels


def _corner_figure(data: Array, model: Array, names: Sequence[str]) -> Figure:
    total = data.shape[1]
    count = min(total, MAX_COLUMNS)
    frame = data if len(data) else model
    limits = [_limits(frame[:, column]) for column in range(count)]
    missed = len(model) - int(_inside(model, limits).sum())
    thin_data, thin_model = _thin(data, 100_000), _thin(model, 100_000)
    side = max(4.4, 1.32 * count)
    figure = Figure(figsize=(side, side))
    panels = figure.subplots(count, count, squeeze=False)
    contours = False
    for row in range(count):
        for column in range(count):
            axes = panels[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            if column == row:
                _overlay(axes, data[:, row], model[:, row], _edges(_thin(frame[:, row], MAX_POINTS), limits[row]))
                axes.spines["left"].set_visible(False)
                axes.tick_params(left=False, labelleft=False)
            else:
                pair = [limits[column], limits[row]]
                drawn = _corner_pair(axes, thin_data[:, [column, row]], thin_model[:, [column, row]], pair)
                contours = contours or drawn
                axes.set(xlim=limits[column], ylim=limits[row])
            _few_ticks(axes, 3)
            axes.set_box_aspect(1)
            axes.tick_params(labelsize=7, labelbottom=row == count - 1, labelleft=column == 0 and row > 0)
            if row == count - 1:
                axes.set_xlabel(names[column])
                axes.tick_params(axis="x", rotation=40)
            if column == 0 and row > 0:
                axes.set_ylabel(names[row])
    figure.align_labels()
    remarks = [
        "contours enclose 50, 80 and 95 % of the points" if contours else "",
        f"first {count} of {total} columns" if count < total else "",
        f"model: {_outside(missed, len(model))} the panels" if missed else "",
    ]
    handles = [
        Patch(facecolor=TRUE_COLOUR, alpha=0.35, label=f"data ({_counted(len(data), 'point')})"),
        Line2D([], [], color=MODEL_COLOUR, linewidth=1.3, label=f"model ({_counted(len(model), 'point')})"),
    ]
    figure.legend(handles=handles if len(data) else handles[1:], loc="upper right", bbox_to_anchor=(0.99, 0.985))
    note = "\n".join(part for part in remarks if part)
    figure.text(0.985, 0.985 - 0.55 / side, note, ha="right", va="top", fontsize=7.0, color=QUIET_COLOUR)
    return figure


def _corner_pair(axes: Axes, data: Array, model: Array, limits: Sequence[Limits]) -> bool:
    """Data as filled contours, model as lines of the same masses; too few are drawn as points. Any contours?"""
    truth = _contours(data[:, 0], data[:, 1], limits)
    if truth is None:
        shown = _thin(data, 2000)
        axes.scatter(shown[:, 0], shown[:, 1], color=TRUE_COLOUR, **_marks(4 * len(shown)))
    else:
        xs, ys, counts, levels = truth
        shades = [to_rgba(TRUE_COLOUR, alpha) for alpha in (0.18, 0.36, 0.58)]
        axes.contourf(xs, ys, counts, levels=[*levels, float(counts.max()) * 1.01], colors=shades)
    lines = _contours(model[:, 0], model[:, 1], limits)
    if lines is None:
        shown = _thin(model, 2000)
        axes.scatter(shown[:, 0], shown[:, 1], color=MODEL_COLOUR, **_marks(4 * len(shown)))
    else:
        xs, ys, counts, levels = lines
        axes.contour(xs, ys, counts, levels=levels, colors=MODEL_COLOUR, linewidths=0.8)
    return truth is not None or lines is not None


def _mosaic(images: Array, side: int, low: float, high: float) -> Array:
    """Images (N, C, H, W) on side^2 places of one picture (.., .., 3) in [0, 1]; free places stay white."""
    height, width = images.shape[2:]
    shades = np.clip((images - low) / (high - low), 0, 1)
    gap = max(1, round(0.06 * height)) if side > 1 else 0
    canvas = np.ones((side * (height + gap) - gap, side * (width + gap) - gap, 3))
    for i in range(len(images)):
        top, left = (i // side) * (height + gap), (i % side) * (width + gap)
        canvas[top : top + height, left : left + width] = np.moveaxis(shades[i], 0, -1)  # grey spreads to 3 channels
    return canvas


def _scale(images: Array) -> Limits:
    """Black and white of the data; the extremes themselves, as pixels have few outliers."""
    finite = images[np.isfinite(images)]
    if len(finite) == 0 or finite.min() == finite.max():
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _images_figure(data: Array, model: Array) -> Figure:
    low, high = _scale(data if len(data) else model)
    side = max(1, min(GRID_SIDE, math.isqrt(max(len(data), len(model)))))
    drawn = [(data, "Data"), (model, "Model")][0 if len(data) else 1 :]
    figure = Figure(figsize=(3.3 * len(drawn), 3.55))
    panels = figure.subplots(1, len(drawn), gridspec_kw={"wspace": 0.06}, squeeze=False)[0]
    for axes, (images, title) in zip(panels, drawn, strict=True):
        shown = _thin(images, side**2)
        axes.imshow(_mosaic(shown, side, low, high), interpolation="nearest")
        axes.set_title(title)
        _remark(axes, f"{len(shown)} of {_counted(len(images), 'image')}")
        axes.set_axis_off()
    return figure


# --- density ---------------------------------------------------------------------------------------------------------


def _density_figure(xs: Array, ys: Array, model: Array, truth: Array | None, columns: Sequence[str] | None) -> Figure:
    names = _names(columns, 2)
    fields = {"True density": truth, "Model density": model} if truth is not None else {"Model density": model}
    values = {title: np.exp(np.asarray(field, dtype=float)) for title, field in fields.items()}
    reference = next(iter(values.values()))
    top = float(np.max(reference[np.isfinite(reference)], initial=0.0)) or 1.0
    above = any(bool(np.any(value > 1.02 * top)) for value in values.values())
    limits, ratio = _shape([(float(axis[0]), float(axis[-1])) for axis in (xs, ys)], columns is None)
    figure = Figure(figsize=(7.2 if len(values) == 2 else 4.2, 0.75 + 2.95 * ratio), layout="compressed")
    panels = figure.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)[0]
    mesh = None
    for axes, (title, value) in zip(panels, values.items(), strict=True):
        mesh = axes.pcolormesh(
            xs, ys, np.ma.masked_invalid(value), vmin=0, vmax=top, shading="nearest", rasterized=True
        )
        axes.set_facecolor("#B0B0B0")  # where the density is not a number
        axes.set_title(title)
        mass = float(np.trapezoid(np.trapezoid(value, xs, axis=1), ys))
        _remark(axes, f"mass in view {mass:.3f}")
        axes.set_xlabel(names[0])
        axes.spines[:].set_visible(False)
        axes.set_box_aspect(ratio)
        _few_ticks(axes)
    panels[0].set(xlim=limits[0], ylim=limits[1], ylabel=names[1])
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=list(panels), extend="max" if above else "neither", aspect=28, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("density")
    return figure


# --- trajectories ----------------------------------------------------------------------------------------------------

TIME_COLOURS = LinearSegmentedColormap.from_list("time", ["#B9B9B9", "#9A8F88", MODEL_COLOUR])


def _reach(points: Array, truth: Array) -> tuple[list[Limits], list[Limits]]:
    """Limits of the whole paths of the 90 % nearest starts, and of the data alone; points (T, N, D)."""
    near = [_limits(truth[:, column]) for column in range(points.shape[2])]
    centre = np.array([sum(pair) / 2 for pair in near])
    width = np.array([high - low for low, high in near])
    distance = np.linalg.norm((points[0] - centre) / width, axis=1)
    kept = points[:, distance <= np.quantile(distance, 0.9)]
    whole = []
    for column, (low, high) in enumerate(near):
        values = kept[..., column][np.isfinite(kept[..., column])]
        first, last = min(low, float(values.min(initial=low))), max(high, float(values.max(initial=high)))
        margin = 0.04 * (last - first)
        whole.append((first - margin, last + margin))
    return whole, near


def _much_wider(whole: Sequence[Limits], near: Sequence[Limits]) -> bool:
    """Whether the data would be lost in a picture of the whole paths."""
    return any(w[1] - w[0] > WIDE * (n[1] - n[0]) for w, n in zip(whole, near, strict=True))


def _draw_paths(axes: Axes, paths: Array, times: Array) -> None:
    """Lines that turn from grey to the model's colour as time goes on, with both ends marked; paths (T, N, 2)."""
    segments = np.stack([paths[:-1], paths[1:]], axis=2).transpose(1, 0, 2, 3)  # (N, T - 1, 2, 2)
    width = float(np.clip(5 / math.sqrt(paths.shape[1]), 0.55, 1.3))
    shades = np.tile((times[:-1] + times[1:]) / 2, paths.shape[1])
    lines = LineCollection(
        list(segments.reshape(-1, 2, 2)), array=shades, cmap=TIME_COLOURS, linewidths=width, alpha=0.55, zorder=2
    )
    lines.set_clim(float(times[0]), float(times[-1]))
    axes.add_collection(lines, autolim=False)
    size = float(np.clip(220 / math.sqrt(paths.shape[1]), 7, 26))
    axes.scatter(*paths[0].T, s=size * 0.7, facecolors="white", edgecolors="#404040", linewidths=0.6, zorder=3)
    axes.scatter(*paths[-1].T, s=size * 0.8, color=MODEL_COLOUR, edgecolors="white", linewidths=0.3, zorder=4)


def _path_legend(figure: Figure, times: Array, with_data: bool) -> None:
    """One line above the panels that reads from noise to data."""
    open_mark: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markerfacecolor": "white",
        "markeredgecolor": "#404040",
    }
    handles = [
        Line2D([], [], markersize=4.5, markeredgewidth=0.7, label=f"noise, t = {times[0]:.3g}", **open_mark),
        Line2D([], [], color="#A8744F", linewidth=1.2, label="path, grey early and red late"),
        Line2D([], [], color=MODEL_COLOUR, marker="o", markersize=4.5, linestyle="none", label=f"t = {times[-1]:.3g}"),
    ]
    if with_data:
        handles.append(Line2D([], [], color=TRUE_COLOUR, marker="o", markersize=3, linestyle="none", label="data"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handletextpad=0.4)


def _starts_outside(starts: Array, limits: Sequence[Limits]) -> str:
    """What a panel says of drawn starts (N, D) that it does not show."""
    count = len(starts) - int(_inside(starts, limits).sum())
    return f"{_counted(count, 'start')} outside" if count else ""


def _thin_paths(points: Array, times: Array) -> tuple[Array, Array]:
    """At most MAX_PATHS paths of MAX_TIMES points each."""
    return _thin(np.swapaxes(_thin(points, MAX_TIMES), 0, 1), MAX_PATHS).swapaxes(0, 1), _thin(times, MAX_TIMES)


def _paths_figure(
    points: Array, times: Array, truth: Array, with_data: bool, names: Sequence[str], *, equal: bool
) -> Figure:
    columns = points.shape[2]
    points, truth = points[..., :2], truth[:, :2]
    whole, near = _reach(points, truth)
    equal = equal and _alike(near)
    if equal:
        whole, near = _square(whole), _square(near)
    zoom = len(truth) >= 10 and _much_wider(whole, near)
    paths, times = _thin_paths(points, times)
    figure = Figure(figsize=(6.8, 3.75) if zoom else (4.4, 4.75), layout="compressed")
    panels = figure.subplots(1, 2 if zoom else 1, squeeze=False)[0]
    views = [("Whole paths", whole), ("Near the data", near)] if zoom else [("Paths", whole)]
    for axes, (title, limits) in zip(panels, views, strict=True):
        if with_data:
            shown = _thin(truth, 2000)
            axes.scatter(shown[:, 0], shown[:, 1], color=TRUE_COLOUR, zorder=1, **(_marks(len(shown)) | {"alpha": 0.3}))
        _draw_paths(axes, paths, times)
        axes.set(xlim=limits[0], ylim=limits[1], title=title, xlabel=names[0], ylabel=names[1])
        axes.set_box_aspect(1)
        _few_ticks(axes)
    first_two = f"first 2 of {columns} columns" if columns > 2 else ""
    _remark(panels[0], _counted(paths.shape[1], "path"), _starts_outside(paths[0], whole), first_two)
    if zoom:
        (left, right), (bottom, top) = near
        frame = Rectangle((left, bottom), right - left, top - bottom, fill=False, linewidth=0.9, zorder=5)
        panels[0].add_patch(frame)
    _path_legend(figure, times, with_data)
    return figure


def _timeline_figure(points: Array, times: Array, truth: Array, with_data: bool, name: str) -> Figure:
    whole, near = _reach(points[..., None], truth[:, None])
    zoom = len(truth) >= 10 and _much_wider(whole, near)
    paths, times = _thin_paths(points[..., None], times)
    outside = _starts_outside(paths[0], whole)
    paths = np.concatenate([np.broadcast_to(times[:, None, None], paths.shape), paths], axis=2)
    views = [("Whole paths", whole[0]), ("Near the data", near[0])] if zoom else [("Paths", whole[0])]
    ratios = [4.0] * len(views) + ([1.0] if with_data else [])
    figure = Figure(figsize=(3.3 * len(views) + (1.0 if with_data else 0.6), 3.5))
    panels = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    for axes, (title, limits) in zip(panels, views, strict=False):
        _draw_paths(axes, paths, times)
        axes.set(ylim=limits, title=title, xlabel="time t", ylabel=name)
        span = float(times[-1] - times[0])
        axes.set_xlim(times[0] - 0.02 * span, times[-1] + 0.02 * span)
        _few_ticks(axes)
    _remark(panels[0], _counted(paths.shape[1], "path"), outside)
    if zoom:
        panels[0].axhspan(*near[0], color=TRUE_COLOUR, alpha=0.15, linewidth=0)
    if with_data:
        side, limits = panels[-1], views[-1][1]
        edges = _edges(truth, near[0])
        heights = _heights(truth, edges)
        side.stairs(heights, edges, orientation="horizontal", fill=True, color=TRUE_COLOUR, alpha=0.35)
        side.set(ylim=limits, xlim=(0, 1.05 * max(float(heights.max()), 1e-12)), title="Data")
        side.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
        side.spines[:].set_visible(False)
    _path_legend(figure, times, False)
    return figure


def _frames_figure(points: Array, times: Array, data: Array | None) -> Figure:
    """Some images (rows) at even steps of the path (columns), on the grey scale of the data."""
    low, high = _scale(points[-1] if data is None else np.asarray(data, dtype=float))
    frames, shown = _thin(points, 8), _thin(times, 8)
    rows = min(5, points.shape[1])
    figure = Figure(figsize=(0.8 * len(frames) + 0.1, 0.8 * rows + 0.55))
    panels = figure.subplots(rows, len(frames), squeeze=False)
    for row in range(rows):
        for column, frame in enumerate(frames):
            axes = panels[row, column]
            axes.imshow(_mosaic(frame[row : row + 1], 1, low, high), interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(f"t = {shown[column]:.2f}", fontsize=8, loc="center")
    figure.suptitle("From noise to data, on the grey scale of the data", fontsize=9.5, x=0.01, ha="left")
    return figure


# --- loss ------------------------------------------------------------------------------------------------------------


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    """Steps and finite values of one key, sorted by step."""
    pairs = sorted(
        (float(record["step"]), float(record[key]))
        for record in records
        if record.get(key) is not None and math.isfinite(float(record[key]))
    )
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def _smooth(values: Array) -> Array:
    """Moving average over a fortieth of the curve: its window shrinks at the steep start, leans back at the end."""
    reach = len(values) // 80
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    before, after = np.minimum(reach, index), np.minimum(np.minimum(reach, index), len(values) - 1 - index)
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def _loss_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    steps, values = _series(records, "loss")
    validation_steps, validation = _series(records, "validation_loss")
    rate_steps, rates = _series(records, "lr")
    figure = Figure(figsize=(5.4, 3.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.set_title("Loss")
    everything = np.concatenate([values, validation])
    if len(everything) == 0:
        upper.text(0.5, 0.5, "no finite loss was logged", transform=upper.transAxes, ha="center", color=QUIET_COLOUR)
    if len(values):
        smoothed = _smooth(values)
        if len(values) >= 80:
            upper.plot(steps, values, color=MODEL_COLOUR, alpha=0.3, linewidth=0.6)
        upper.plot(steps, smoothed, color=MODEL_COLOUR, label="training", marker="." if len(values) < 20 else "")
    if len(validation):
        best = int(np.argmin(validation))
        label = f"validation, best {_signed(float(validation[best]))} at step {validation_steps[best]:,.0f}"
        style: dict[str, Any] = {"color": TRUE_COLOUR, "marker": "o", "linewidth": 0.8, "markersize": 3.0}
        upper.plot(validation_steps, validation, label=label, **style)
        upper.plot(validation_steps[best], validation[best], "o", color=TRUE_COLOUR, markersize=7, fillstyle="none")
    if len(everything):
        if everything.min() > 0 and everything.max() > 10 * everything.min():
            upper.set_yscale("log")
        elif len(values) >= 50:
            # The first steps of a fresh network may be off by far; what follows is what the reader came for.
            low, high = float(everything.min()), float(np.quantile(values, 0.98))
            if len(validation):
                high = max(high, float(np.quantile(validation, 0.8)))
            margin = 0.06 * (high - low)
            if everything.max() > high + (high - low) > low:
                upper.set_ylim(low - margin, high + margin)
        upper.legend(loc="upper right")
    upper.set_ylabel("loss")
    lower.plot(rate_steps, rates, color=QUIET_COLOUR, linewidth=1.1)
    lower.set(xlabel="step", ylabel="learning\nrate")
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.align_ylabels()
    return figure


# --- likelihood ------------------------------------------------------------------------------------------------------


def _likelihood_figure(log_prob: Array, true_log_prob: Array | None) -> Figure:
    log_prob = np.asarray(log_prob, dtype=float).reshape(-1)
    finite = np.isfinite(log_prob)
    truth = None if true_log_prob is None else np.asarray(true_log_prob, dtype=float).reshape(-1)
    figure = Figure(figsize=(6.8, 3.3) if truth is not None else (4.6, 3.1))
    panels = figure.subplots(1, 2 if truth is not None else 1, squeeze=False)[0]
    axes = panels[0]
    limits = _limits(log_prob)
    edges = _edges(log_prob[finite], limits)
    axes.stairs(_heights(log_prob, edges), edges, fill=True, color=MODEL_COLOUR, alpha=0.45)
    axes.set_title("Log-likelihood of each row")
    outside = _outside(len(log_prob) - int(_inside(log_prob[:, None], [limits]).sum()), len(log_prob))
    _remark(axes, outside)
    if finite.any():
        mean = float(log_prob[finite].mean())
        label = f"mean {_signed(mean)}" + ("" if finite.all() else f" of the {finite.sum():,} finite rows")
        axes.axvline(mean, color=MODEL_COLOUR, linewidth=1.2, label=label)
    if truth is not None and np.isfinite(truth).any():
        axes.stairs(_heights(truth, edges), edges, color=TRUE_COLOUR, linewidth=1.1)
        mean = float(truth[np.isfinite(truth)].mean())
        axes.axvline(mean, color=TRUE_COLOUR, linewidth=1.2, linestyle=(0, (4, 2)), label=f"true mean {_signed(mean)}")
    axes.set(xlim=limits, xlabel="log-likelihood (nats)", ylabel="density")
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    axes.legend(loc="upper left")
    if truth is not None:
        _against_truth(panels[1], log_prob, truth)
    return figure


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _against_truth(axes: Axes, log_prob: Array, truth: Array) -> None:
    """Model against truth, a point a row, with the diagonal on which a perfect model lies."""
    ends = [*_limits(log_prob), *_limits(truth)]
    low, high = min(ends), max(ends)
    pairs = np.stack([truth, log_prob], axis=1)
    shown = _thin(pairs, MAX_POINTS)
    axes.scatter(shown[:, 0], shown[:, 1], color=MODEL_COLOUR, **_marks(len(shown)))
    axes.plot([low, high], [low, high], color="#303030", linewidth=0.9, label="model = truth")
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="true log-density (nats)", ylabel="model log-density (nats)")
    axes.set_title("Model against truth")
    _remark(axes, _outside(len(pairs) - int(_inside(pairs, [(low, high)] * 2).sum()), len(pairs)))
    axes.set_box_aspect(1)
    _few_ticks(axes)
    axes.legend(loc="upper left")
