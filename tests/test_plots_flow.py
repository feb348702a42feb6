"""Pictures of what flows do, tested by what is drawn in them; they were looked at by eye besides."""

import math
import subprocess
import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from numpy.testing import assert_allclose
from scipy.optimize import linear_sum_assignment

from flowcli import plots
from flowcli.plots import (
    bent_grid,
    density_frames,
    density_map,
    image_rows,
    interpolation_curves,
    pair_lines,
    panels,
    quality_curves,
    signed_maps,
)
from flowcli.plots.style import STYLE, TRUE_COLOUR


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def words(axes) -> str:
    """The small grey words below a title."""
    return axes.texts[0].get_text()


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- shared ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (4, (1, 4)), (5, (2, 3)), (8, (2, 4)), (9, (3, 3)), (13, (4, 4))]
)
def test_panels_stand_in_even_rows_of_at_most_four(count, shape):
    assert panels.grid_shape(count) == shape


def test_a_panel_above_a_free_place_has_its_own_labels(style):
    _figure, places = panels.small_multiples(5, 1.0, ["a", "b"])
    assert len(places) == 5
    assert [axes.get_xlabel() for axes in places] == ["", "", "a", "a", "a"]
    assert [axes.get_ylabel() for axes in places] == ["b", "", "", "b", ""]


# --- pairs -----------------------------------------------------------------------------------------------------------


def optimal(x_0, x_1):
    rows, columns = linear_sum_assignment(((x_0[:, None] - x_1) ** 2).sum(-1))
    return x_0[rows], x_1[columns]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_swaps_are_counted_as_by_hand_and_vanish_under_an_optimal_plan(rng, width):
    x_0, x_1 = rng.normal(size=(2, 40, width))
    by_hand = 0
    for i in range(40):
        for j in range(i):
            kept = ((x_0[i] - x_1[i]) ** 2).sum() + ((x_0[j] - x_1[j]) ** 2).sum()
            swapped = ((x_0[i] - x_1[j]) ** 2).sum() + ((x_0[j] - x_1[i]) ** 2).sum()
            by_hand += swapped < kept
    assert pair_lines.shortening_swaps(np.stack([x_0, x_1], axis=1)) == by_hand > 100
    assert pair_lines.shortening_swaps(np.stack(optimal(x_0, x_1), axis=1)) == 0
    # equal points may be swapped at no gain
    assert pair_lines.shortening_swaps(np.stack([x_0, np.full_like(x_0, 1 / 3)], axis=1)) == 0


def test_pairs_join_each_noise_point_to_its_data_point(rng, style):
    x_0, x_1 = rng.normal(size=(2, 60, 2))
    figure = pair_lines.pairs_figure({"independent": (x_0, x_1), "ot": optimal(x_0, x_1)}, x_1, None)
    assert titles(figure) == ["independent", "ot"]
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim()
    (lines,) = (part for part in left.collections if isinstance(part, LineCollection))
    assert_allclose(np.array(lines.get_segments()), np.stack([x_0, x_1], axis=1))
    cost = ((x_0 - x_1) ** 2).sum(1).mean()
    assert words(left).split("\n")[0] == f"mean squared distance {cost:.3g}"
    assert ": 0" in words(right) and ": 0" not in words(left)


def test_pairs_of_one_number_are_drawn_against_time_and_many_columns_say_which(rng, style):
    x_0, x_1 = rng.normal(size=(2, 9, 1))
    (axes,) = pair_lines.pairs_figure({"a": (x_0, x_1)}, x_1, ["height"]).axes
    (lines,) = (part for part in axes.collections if isinstance(part, LineCollection))
    segments = np.array(lines.get_segments())
    assert_allclose(segments[:, 0], np.concatenate([np.zeros((9, 1)), x_0], axis=1))
    assert_allclose(segments[:, 1], np.concatenate([np.ones((9, 1)), x_1], axis=1))
    assert axes.get_xlabel() == "time t" and axes.get_ylabel() == "height"
    x_0, x_1 = rng.normal(size=(2, 9, 4))
    (axes,) = pair_lines.pairs_figure({"a": (x_0, x_1)}, None, None).axes
    assert "first 2 of 4 columns" in words(axes)


def test_panels_of_pairs_have_as_many_lines_and_count_what_is_lost(rng, style):
    x_0, x_1 = rng.normal(size=(2, 900, 2))
    x_1[3] = np.nan
    x_0[7] = 1e6
    figure = pair_lines.pairs_figure({"a": (x_0, x_1), "b": (x_0[:30], x_1[:30])}, None, None)
    counts = [len(part.get_segments()) for axes in figure.axes for part in axes.collections if part.get_paths()[1:]]
    assert counts[0] == counts[-1] == 29
    assert "1 not finite" in words(figure.axes[0]) and "1 partly outside" in words(figure.axes[1])
    assert figure.axes[0].get_xlim()[1] < 1e6


# --- grid ------------------------------------------------------------------------------------------------------------


def square_grid(lines: int = 5, points: int = 9):
    at, along = np.linspace(-1, 1, lines), np.linspace(-1, 1, points)
    first, second = np.broadcast_arrays(at[:, None], along[None])
    return np.stack([np.stack([first, second], -1), np.stack([second, first], -1)])


def test_grid_lines_break_at_points_that_are_not_finite_and_keep_their_order(style, tmp_path, monkeypatch):
    grid = square_grid()
    broken = grid.copy()
    broken[0, 0, 4] = np.nan
    figure = bent_grid.grid_figure([("t = 0", grid), ("t = 1", broken)], grid[0].reshape(-1, 2), None)
    assert titles(figure) == ["t = 0", "t = 1"]
    whole, cut = ([path.vertices for path in axes.collections[1].get_paths()] for axes in figure.axes)
    assert_allclose(np.array(whole), grid[0])
    assert_allclose(np.array(cut), broken[0])
    first, second = (axes.collections[i].get_color() for axes in figure.axes[:1] for i in (1, 2))
    assert not np.allclose(first, second)


def test_grids_share_limits_unless_one_is_much_wider(style):
    grid = square_grid()
    for factor, shared in ((2.0, True), (50.0, False)):
        left, right = bent_grid.grid_figure([("a", factor * grid), ("b", grid)], None, None).axes
        assert (left.get_xlim() == right.get_xlim()) is shared
        assert factor < left.get_xlim()[1] < 1.2 * factor
    assert 1 < right.get_xlim()[1] < 1.2


# --- maps ------------------------------------------------------------------------------------------------------------


def gaussian(xs, ys, width: float = 1.0):
    x, y = np.meshgrid(xs, ys)
    return -(x**2 + y**2) / (2 * width**2) - math.log(2 * math.pi * width**2)


def test_trapezoid_mass_is_exact_for_planes():
    xs, ys = np.array([0.0, 0.5, 2.0]), np.array([0.0, 3.0])
    x, y = np.meshgrid(xs, ys)
    assert density_map.mass(x + y, xs, ys) == pytest.approx(2 * 3 * (1 + 1.5))


def test_each_density_runs_up_to_its_own_peak_which_is_stated(style):
    xs, ys = np.linspace(-5, 5, 61), np.linspace(-4, 4, 51)
    figure = density_frames.frames_figure(
        [("t = 0", gaussian(xs, ys)), ("t = 1", gaussian(xs, ys, 0.5))], xs, ys, ["a", "b"]
    )
    assert titles(figure) == ["t = 0", "t = 1"]
    for axes, width in zip(figure.axes[:2], (1.0, 0.5), strict=True):
        (mesh,) = axes.collections
        assert isinstance(mesh, QuadMesh) and mesh.get_clim() == (0, 1)
        assert np.max(mesh.get_array()) == 1.0
        assert words(axes) == f"peak {1 / (2 * math.pi * width**2):.3g}, mass 1.000"
    assert figure.axes[2].get_ylabel() == "density / its peak"


@pytest.mark.parametrize(
    ("value", "said"),
    [(-np.inf, "nothing in view"), (np.nan, "not a number"), (-1e4, "peak 1e-4343"), (2000.0, "peak 1e869")],
)
def test_densities_beyond_the_floats(style, value, said):
    xs = np.linspace(0, 1, 4)
    assert words(density_frames.frames_figure([("a", np.full((4, 4), value))], xs, xs, None).axes[0]).startswith(said)


def test_signed_maps_share_one_symmetric_scale_and_state_their_ranges(style):
    xs = np.linspace(-1, 1, 21)
    slope = np.broadcast_to(xs, (21, 21))
    figure = signed_maps.maps_figure([("a", slope), ("b", -3 * slope)], xs, xs, "divergence (1/time)", None, None, None)
    left, right, bar = figure.axes
    meshes = [axes.collections[0] for axes in (left, right)]
    low, high = meshes[0].get_clim()
    assert low == -high and meshes[1].get_clim() == (low, high)
    assert 1 < high <= 3
    assert words(left) == "from −1 to 1" and words(right) == "from −3 to 3"
    assert bar.get_ylabel() == "divergence (1/time)"
    assert_allclose(meshes[0].to_rgba(0.0), [1, 1, 1, 1])


def test_masked_points_count_for_nothing_and_show_no_arrow(style):
    xs = np.linspace(-1, 1, 21)
    value = np.ones((21, 21))
    value[:10] = 1e9
    value[15, 3] = np.nan
    mask = np.zeros((21, 21), dtype=bool)
    mask[:10] = True
    arrows = np.ones((5, 5, 2))
    arrows[4, 4] = np.nan
    figure = signed_maps.maps_figure([("a", value)], xs, xs, "c", mask, [arrows], None)
    axes = figure.axes[0]
    assert axes.collections[0].get_clim() == (-1, 1)
    assert words(axes) == "from 1 to 1"
    assert legend(figure) == ["negligible density"]
    quiver = axes.collections[-1]
    assert quiver.N == 3 * 5 - 1  # arrows in the lower two of five rows are hidden, one is not a number
    assert quiver.XY[:, 1].min() == 0


# --- interpolation ---------------------------------------------------------------------------------------------------


def test_walks_in_the_plane_are_whole_and_their_ends_lettered(rng, style):
    walks = np.cumsum(rng.normal(size=(2, 41, 2)), axis=1)
    figure = interpolation_curves.plane_figure(walks, ["linear", "spherical"], walks[0, [0, 20, 40]], None, None)
    (axes,) = figure.axes
    assert_allclose([line.get_xydata() for line in axes.lines], walks)
    assert [text.get_text() for text in axes.texts] == ["A", "B", "C"]
    assert legend(figure) == ["linear", "spherical"]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert axes.get_xlim()[0] < walks[..., 0].min() and axes.get_xlim()[1] > walks[..., 0].max()


def test_one_wild_walk_does_not_hide_the_data(rng, style):
    data, walks = rng.normal(size=(300, 2)), rng.normal(size=(2, 11, 2))
    walks[1, 5] = 1e9
    walks[0, 3] = np.nan
    (axes,) = interpolation_curves.plane_figure(walks, ["a", "b"], walks[0, [0, -1]], data, None).axes
    assert axes.get_xlim()[1] < 10
    assert isinstance(axes.collections[0], PathCollection)


def test_other_walks_are_drawn_column_by_column(rng, style):
    walks, data = rng.normal(size=(2, 21, 11)), rng.normal(size=(100, 11))
    figure = interpolation_curves.columns_figure(walks, ["a", "b"], walks[0, [0, -1]], data, list("abcdefghijk"))
    assert titles(figure) == list("abcdefgh")
    assert figure.axes[1].get_title(loc="right") == "first 8 of 11 columns"
    axes = figure.axes[3]
    assert_allclose(axes.lines[1].get_ydata(), walks[1, :, 3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A", "B"]
    (band,) = axes.patches
    assert_allclose(band.get_y(), np.quantile(data[:, 3], 0.025))


def test_strips_show_every_image_on_the_scale_of_the_data(style):
    data = np.zeros((2, 1, 3, 3))
    data[1] = 4.0
    strip = np.linspace(0, 8, 21)[:, None, None, None] * np.ones((1, 3, 3))
    figure = image_rows.strips_figure({"linear": strip, "spherical": strip[:1]}, data)
    assert len(figure.axes) == 2 * 11
    shades = [float(np.asarray(axes.images[0].get_array())[0, 0, 0]) for axes in figure.axes[:11]]
    assert_allclose(shades, np.clip(np.linspace(0, 2, 11), 0, 1))
    assert [axes.get_title(loc="center") for axes in figure.axes[:11:5]] == ["0", "0.5", "1"]
    assert figure.axes[0].texts[0].get_text() == "linear" and figure.axes[11].texts[0].get_text() == "spherical"
    assert sum(len(axes.images) for axes in figure.axes[11:]) == 1


# --- quality ---------------------------------------------------------------------------------------------------------


def test_quality_is_drawn_by_rising_cost_with_its_errors_and_its_floor(style):
    curve = np.array([8.0, 2.0, np.nan, 4.0]), np.array([0.1, 0.4, 9.0, np.inf]), np.array([0.01, 0.1, 9.0, 9.0])
    (axes,) = quality_curves.quality_figure({"euler": curve}, (0.05, 0.01), "w2").axes
    line, floor = axes.lines[0], axes.lines[-1]
    assert line.get_xdata().tolist() == [2, 8] and line.get_ydata().tolist() == [0.4, 0.1]
    assert floor.get_color() == TRUE_COLOUR and floor.get_ydata()[0] == 0.05
    (band,) = axes.patches
    assert_allclose([band.get_y(), band.get_height()], [0.04, 0.02])
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 0.05 and axes.get_ylim()[1] > 0.4
    assert "2 not finite" in axes.get_title(loc="right")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["euler", "floor: true samples"]


def test_quality_is_linear_where_a_value_is_not_positive(style):
    curve = np.array([2.0, 4.0]), np.array([0.1, -0.01]), np.array([0.01, 0.01])
    (axes,) = quality_curves.quality_figure({"euler": curve}, None, "gap").axes
    assert axes.get_yscale() == "linear"


# --- files -----------------------------------------------------------------------------------------------------------


def titled(panels):
    return [(f"panel {i}", panel) for i, panel in enumerate(panels)]


def grids(rng):
    return rng.normal(size=(2, 2, 3, 4, 2))


XS = np.linspace(-1, 1, 5)
EVERY = {
    "pairs": lambda rng, file: plots.pairs({"a": tuple(rng.normal(size=(2, 5, 2)))}, file),
    "one pair": lambda rng, file: plots.pairs({"a": (np.ones((1, 2)), np.ones((1, 2)))}, file),
    "no pair": lambda rng, file: plots.pairs({"a": (np.full((3, 1), np.nan), np.ones((3, 1)))}, file),
    "grid": lambda rng, file: plots.deformed_grid(titled(grids(rng)), file, data=np.ones((1, 2))),
    "grid of one point": lambda rng, file: plots.deformed_grid(titled(0 * grids(rng)), file),
    "grid of nan": lambda rng, file: plots.deformed_grid(titled(np.nan * grids(rng)), file),
    "densities": lambda rng, file: plots.densities([("a", np.full((5, 5), -np.inf))] * 5, XS, XS, file),
    "equal maps": lambda rng, file: plots.scalar_maps([("a", np.zeros((5, 5)))], XS, XS, file, label="b"),
    "maps of nan": lambda rng, file: plots.scalar_maps(
        [("a", np.full((5, 5), np.nan))], XS, XS, file, label="b", arrows=[np.full((3, 3, 2), np.nan)]
    ),
    "masked maps": lambda rng, file: plots.scalar_maps(
        [("a", np.ones((5, 5)))], XS, XS, file, label="b", mask=np.ones((5, 5), dtype=bool), arrows=[np.ones((3, 3, 2))]
    ),
    "walks": lambda rng, file: plots.interpolation(rng.normal(size=(2, 11, 2)), file, names=["a", "b"]),
    "walks of one point": lambda rng, file: plots.interpolation(np.ones((2, 1, 2)), file, names=["a", "b"]),
    "walks of nan": lambda rng, file: plots.interpolation(np.full((1, 5, 3), np.nan), file, names=["a"]),
    "column": lambda rng, file: plots.interpolation(
        np.ones((1, 5, 1)), file, names=["a"], data=np.ones((9, 1)), columns=["$"]
    ),
    "images": lambda rng, file: plots.interpolation(rng.normal(size=(2, 5, 1, 4, 4)), file, names=["a", "b"]),
    "quality": lambda rng, file: plots.quality_curve(
        {"a": (np.array([2.0]), np.array([0.1]), np.array([np.nan]))}, file, floor=(0.0, 0.1), ylabel="w2"
    ),
    "no quality": lambda rng, file: plots.quality_curve(
        {"a": (np.array([2.0]), np.array([np.nan]), np.array([0.1]))}, file, floor=None, ylabel="w2"
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_picture_becomes_one_whole_file_and_leaves_the_style_alone(rng, tmp_path, name):
    before = dict(matplotlib.rcParams)
    EVERY[name](rng, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]
    assert dict(matplotlib.rcParams) == before


def test_pictures_never_meet_pyplot():
    code = "import sys, flowcli.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
