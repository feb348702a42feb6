"""Pictures are tested by what is drawn in them, and as files by their size; they were looked at by eye besides."""

import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from numpy.testing import assert_allclose

from flowcli import plots
from flowcli.plots import (
    corner,
    density_map,
    histograms,
    images,
    likelihood_histogram,
    loss_curves,
    panels,
    sample_panels,
    trajectory_lines,
)
from flowcli.plots.style import STYLE

TITLES = ("Data", "Model")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def png_size(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def title(axes, loc: str = "left") -> str:
    return axes.get_title(loc=loc)


def test_limits_ignore_outliers_and_hold_the_data(rng):
    x = rng.normal(size=10_000)
    low, high = panels.limits_of(x)
    assert low < -2.5 and high > 2.5
    # one wild point in ten thousand is left out
    assert panels.limits_of(np.append(x, 1e9))[1] < 10
    assert panels.limits_of(np.append(x, np.nan)) == panels.limits_of(x)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e9, 1e-9])
def test_limits_of_equal_values_have_a_width(value):
    low, high = panels.limits_of(np.full(5, value))
    assert low < value < high


def test_scatter_panels_share_limits_and_count_the_points_outside(rng):
    data, model = rng.normal(size=(3000, 2)), rng.normal(size=(2000, 2))
    model[:7] = 1e3
    model[7] = np.nan
    figure = sample_panels.scatter_figure(data, model, ["a", "b"], TITLES, equal=True)
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert left.get_xlim()[1] < 10
    stated = int(title(right, "right").split(", ")[1].split(" of ")[0])
    (x_low, x_high), (y_low, y_high) = left.get_xlim(), left.get_ylim()
    inside = (model[:, 0] >= x_low) & (model[:, 0] <= x_high) & (model[:, 1] >= y_low) & (model[:, 1] <= y_high)
    assert stated == 2000 - inside.sum() >= 8
    # as many points in both panels
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes] == [2000, 2000]
    assert left.get_xlabel() == "a" and left.get_ylabel() == "b"


def test_equal_scale_only_where_units_may_be_compared(rng):
    data = rng.normal(size=(500, 2)) * [1, 0.8]
    axes = sample_panels.scatter_figure(data, data, ["a", "b"], TITLES, equal=True).axes[0]
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    assert_allclose(axes.get_box_aspect(), height / width)
    assert (
        sample_panels.scatter_figure(data * [1, 100], data, ["a", "b"], TITLES, equal=True).axes[0].get_box_aspect()
        == 1
    )


def test_thinning_is_deterministic_and_bounded():
    x = np.arange(1_000_003.0)
    thin = panels.thin(x, 10_000)
    assert len(thin) == 10_000 and thin[0] == 0 and thin[-1] == x[-1]
    assert np.ptp(np.diff(thin)) <= 1
    assert len(panels.thin(x[:7], 10)) == 7


def test_histograms_keep_the_mass_that_is_outside():
    heights = histograms.bin_heights(np.array([0.25, 0.75, 9.0, np.nan]), np.array([0.0, 0.5, 1.0]))
    assert_allclose(heights, [0.5, 0.5])  # 1/4 of the rows in each bin of width 1/2


def test_contours_enclose_the_stated_mass(rng):
    x, y = rng.normal(size=(2, 200_000))
    found = corner.mass_contours(x, y, [(-5, 5), (-5, 5)])
    assert found is not None
    xs, ys, counts, levels = found
    radius = np.hypot(*np.meshgrid(xs, ys))
    for level, mass in zip(levels, corner.MASSES, strict=True):
        # a standard normal holds 1 - exp(-r^2/2) within r; the blur of ~1 bin widens it a little
        expected = math.sqrt(-2 * math.log(1 - mass))
        assert abs(radius[counts >= level].max() - expected) < 0.3
    assert corner.mass_contours(x[:100], y[:100], [(-5, 5), (-5, 5)]) is None


def test_corner_shows_six_columns_and_says_so(rng):
    data = rng.normal(size=(600, 9))
    figure = corner.corner_figure(data, data[:50], panels.axis_names(None, 9), TITLES)
    assert sum(axes.axison for axes in figure.axes) == 21
    words = " ".join(text.get_text() for text in figure.texts)
    assert "first 6 of 9 columns" in words
    drawn = [axes for axes in figure.axes if axes.axison]
    for axes in drawn[1:]:
        assert axes.get_xlim()[1] < 10


def test_image_grids_share_the_scale_of_the_data(rng):
    data = rng.uniform(0, 16, size=(40, 1, 8, 8))
    data[0, 0, 0, :2] = 0, 16
    model = np.full((4, 1, 8, 8), 8.0)
    model[0], model[1] = 99, -99
    figure = sample_panels.images_figure(data, model, TITLES)
    left, right = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert left.shape == right.shape
    assert_allclose(right[0, 0], [1, 1, 1])  # beyond the data's white
    assert_allclose(right[0, 9 + 0], [0, 0, 0])  # second image starts after 8 pixels and a gap of 1
    assert_allclose(right[0, 18], [0.5, 0.5, 0.5])
    assert_allclose(right[-1, -1], [1, 1, 1])  # a free place


def test_colour_images_keep_their_channels():
    image = np.zeros((1, 3, 4, 4))
    image[0, 1] = 1
    assert_allclose(images.mosaic(image, 1, 0.0, 1.0), np.broadcast_to([0, 1, 0], (4, 4, 3)))


def test_density_panels_share_one_scale_and_state_the_mass(rng):
    xs, ys = np.linspace(-6, 6, 121), np.linspace(-5, 5, 101)
    x, y = np.meshgrid(xs, ys)
    truth = -(x**2 + y**2) / 2 - math.log(2 * math.pi)
    figure = density_map.density_figure(xs, ys, truth - math.log(2), truth, None)
    true_axes, model_axes = figure.axes[:2]
    assert title(true_axes) == "True density" and title(model_axes) == "Model density"
    meshes = [axes.collections[0] for axes in (true_axes, model_axes)]
    assert meshes[0].get_clim() == meshes[1].get_clim() == (0, pytest.approx(1 / (2 * math.pi)))
    assert title(true_axes, "right").endswith("1.000") and title(model_axes, "right").endswith("0.500")


def test_density_where_log_prob_is_not_finite(tmp_path):
    xs = np.linspace(0, 1, 5)
    for value in (np.nan, -np.inf):
        plots.density(xs, xs, np.full((5, 5), value), tmp_path / "density.png")


def ve_like(rng, paths: int, width: float, columns: int = 2):
    times = np.linspace(0, 1, 30)
    end, noise = rng.normal(size=(2, paths, columns))
    return np.stack([end + width * (1 - t) * noise for t in times]), times, end


def test_noise_much_wider_than_data_gets_a_second_panel(rng):
    points, times, end = ve_like(rng, 200, 50.0)
    figure = trajectory_lines.paths_figure(points, times, end, True, ["a", "b"], equal=True)
    whole, near = figure.axes
    assert np.ptp(whole.get_xlim()) > 100 and np.ptp(near.get_xlim()) < 10
    (x_low, x_high), (y_low, y_high) = whole.get_xlim(), whole.get_ylim()
    inside = (points[..., 0] > x_low) & (points[..., 0] < x_high) & (points[..., 1] > y_low) & (points[..., 1] < y_high)
    assert inside.all(axis=0).mean() >= 0.9
    (frame,) = (patch for patch in whole.patches)
    assert_allclose(frame.get_bbox().intervalx, near.get_xlim())
    assert len(trajectory_lines.paths_figure(*ve_like(rng, 200, 0.5)[:2], end, True, ["a", "b"], equal=True).axes) == 1


def test_paths_run_from_noise_to_data_whatever_the_order_of_times(rng, tmp_path, monkeypatch):
    points, times, _end = ve_like(rng, 20, 1.0)
    seen = []
    draw = trajectory_lines.draw_paths

    def spy(axes, paths, t):
        seen.append((paths, t))
        draw(axes, paths, t)

    monkeypatch.setattr(trajectory_lines, "draw_paths", spy)
    plots.trajectories(points[::-1], times[::-1], tmp_path / "t.png")
    paths, drawn_times = seen[0]
    assert_allclose(drawn_times, times)
    assert_allclose(paths, points)


def test_path_segments_are_in_order_and_coloured_by_time(rng):
    points, times, end = ve_like(rng, 3, 1.0)
    axes = trajectory_lines.paths_figure(points, times, end, False, ["a", "b"], equal=True).axes[0]
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    segments, shades = np.array(lines.get_segments()), np.asarray(lines.get_array())
    assert_allclose(segments[29], points[:2, 1])  # 29 segments a path: the first of the second path
    assert_allclose(shades[29], (times[0] + times[1]) / 2)


def test_one_column_is_drawn_against_time_and_many_say_which(rng):
    points, times, end = ve_like(rng, 30, 50.0, columns=1)
    figure = trajectory_lines.timeline_figure(points[..., 0], times, end[:, 0], True, "temp")
    assert len(figure.axes) == 3  # whole, near, histogram of the data
    assert figure.axes[0].get_xlabel() == "time t" and figure.axes[0].get_ylabel() == "temp"
    assert figure.axes[1].get_ylim() == figure.axes[2].get_ylim()
    points, times, end = ve_like(rng, 30, 1.0, columns=5)
    figure = trajectory_lines.paths_figure(points, times, end, False, list("abcde"), equal=False)
    assert "first 2 of 5 columns" in title(figure.axes[0], "right")


def records(count: int, loss) -> list[dict]:
    return [{"step": 10 * i, "loss": loss(i), "lr": 1e-3} for i in range(count)]


def test_loss_scale_and_validation():
    falling = records(200, lambda i: 10 * math.exp(-i / 20) + 0.01)
    falling[100]["validation_loss"], falling[150]["validation_loss"] = 0.5, 0.7
    figure = loss_curves.loss_figure(falling)
    upper, lower = figure.axes
    assert upper.get_yscale() == "log"
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["training", "validation, best 0.500 at step 1,000"]
    assert upper.get_xlim() == lower.get_xlim()
    assert loss_curves.loss_figure(records(200, lambda i: 1 + 0.1 * math.sin(i))).axes[0].get_yscale() == "linear"
    assert loss_curves.loss_figure(records(200, lambda i: 5 * math.exp(-i / 20) - 3)).axes[0].get_yscale() == "linear"


def test_one_huge_first_loss_does_not_hide_the_rest():
    spiked = records(200, lambda i: 1e5 if i == 0 else math.sin(i))
    assert loss_curves.loss_figure(spiked).axes[0].get_ylim()[1] < 10


def test_series_leaves_out_what_is_missing_or_not_finite():
    losses = {3: 1.0, 1: 2.0, 4: None, 5: math.nan}
    rows = [{"step": 2}, *({"step": step, "loss": value} for step, value in losses.items())]
    steps, values = loss_curves.series(rows, "loss")
    assert steps.tolist() == [1, 3] and values.tolist() == [2, 1]


def test_smoothing_keeps_lines_straight():
    line = np.arange(1000.0)
    assert_allclose(loss_curves.smooth(line)[:-12], line[:-12])  # the window is 25 long
    assert_allclose(loss_curves.smooth(np.ones(7)), 1)
    assert loss_curves.smooth(np.array([1.0, -1.0] * 500))[100:].std() < 0.1


def test_likelihood_marks_the_mean_of_the_finite_rows(rng):
    log_prob = rng.normal(-2, 1, size=1000)
    expected = log_prob[3:].mean()
    log_prob[:3] = -np.inf
    figure = likelihood_histogram.likelihood_figure(log_prob, None)
    (axes,) = figure.axes
    (line,) = axes.lines
    assert_allclose(line.get_xdata(), expected)
    assert "997 finite rows" in line.get_label()
    assert "of 1,000 outside" in title(axes, "right")


def test_likelihood_against_truth_has_equal_axes(rng):
    truth = rng.normal(size=500)
    _left, right = likelihood_histogram.likelihood_figure(truth - 0.1, truth).axes
    assert right.get_xlim() == right.get_ylim()
    assert_allclose(right.collections[0].get_offsets(), np.stack([truth, truth - 0.1], axis=1))


def test_names_are_not_taken_for_mathematics(rng, tmp_path):
    data = rng.normal(size=(50, 2))
    plots.samples(data, data, tmp_path / "s.png", columns=["$\\frac{$", "cost $"], event_shape=(2,))
    assert panels.axis_names(["a" * 40], 1)[0] == "a" * 27 + "…"


SHAPES = [(1,), (2,), (3,), (1, 8, 8), (3, 5, 4), (2, 2, 1)]
KINDS = ["ordinary", "one sample", "equal", "nan"]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [  # the short form: every shape with two kinds
        pytest.param(shape, kind, marks=[pytest.mark.slow] * ((i + j) % 2), id=f"{kind}-{'x'.join(map(str, shape))}")
        for i, shape in enumerate(SHAPES)
        for j, kind in enumerate(KINDS)
    ],
)
def test_every_shape_becomes_a_png(rng, tmp_path, shape, kind):
    data = rng.normal(size=(200, *shape))
    model = {
        "ordinary": data[::-1],
        "one sample": data[:1],
        "equal": np.ones((50, *shape)),
        "nan": np.full((20, *shape), np.nan),
    }[kind]
    plots.samples(data, model, tmp_path / "samples.png", event_shape=shape)
    width, height = png_size(tmp_path / "samples.png")
    assert 500 <= width <= 1400 and 250 <= height <= 1400
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 400])
def test_every_kind_of_path_becomes_a_png(rng, tmp_path, shape, count):
    points = rng.normal(size=(4, count, *shape))
    for data in (None, rng.normal(size=(60, *shape))):
        plots.trajectories(points, np.linspace(0, 1, 4), tmp_path / "t.png", data=data)
        assert png_size(tmp_path / "t.png")[0] > 300


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "validation_loss": 2.0, "lr": 1e-3}]])
def test_short_logs_become_a_png(tmp_path, rows):
    plots.loss(rows, tmp_path / "loss.png")
    assert png_size(tmp_path / "loss.png") == (810, 570)


def test_the_same_input_gives_the_same_bytes(rng, tmp_path):
    data = rng.normal(size=(20_000, 2))
    for name in "ab":
        plots.samples(data, data, tmp_path / f"{name}.png", event_shape=(2,))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_million_points_are_quick(rng, tmp_path):
    data = rng.normal(size=(1_000_000, 2))
    start = time.perf_counter()
    plots.samples(data, data, tmp_path / "s.png", event_shape=(2,))
    assert time.perf_counter() - start < 4  # 0.3 s on an idle machine
