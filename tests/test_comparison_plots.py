"""Pictures of a comparison, tested by what is drawn in them; they were looked at by eye besides."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from flowcli import plots
from flowcli.plots import difference_bars, row_curves, row_grids, row_labels, seed_dots
from flowcli.plots.style import MODEL_COLOUR, STYLE, TRUE_COLOUR

DIFFERENCES = [
    ("path=ot", 0.0, 0.0, 0.0, "reference"),
    ("path=vp", 0.012, 0.006, 0.018, "worse"),
    ("path=ve", 0.9, 0.8, 1.0, "worse"),
    ("coupling=ot", 0.001, -0.004, 0.006, "tie"),
    ("oracle", -0.03, -0.04, -0.02, "better"),
]
LABELS = [f"path=ot, trainer.steps={1000 * i}" for i in range(12)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def right_words(axes) -> list[str]:
    """What stands on the right of each row."""
    return [text.get_text() for text in axes.child_axes[0].get_yticklabels()]


def lines_of(axes, mark: str) -> list:
    return [line for line in axes.lines if line.get_marker() == mark]


def walks(rng, width: float, count: int = 200):
    """Straight paths (9, N, 2) from normal noise of a width to a square."""
    start, end = width * rng.normal(size=(count, 2)), rng.uniform(-1, 1, size=(count, 2))
    times = np.linspace(0, 1, 9)[:, None, None]
    return (1 - times) * start + times * end


# ---------------------------------------------------------------- labels
@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("path=ot, coupling=ot", "path=ot,\ncoupling=ot"),
        ("network.width=256", "network.width=256"),
        ("objective=epsilon_matching", "objective=epsilon_\nmatching"),
        ("x" * 45, "x" * 19 + "\n" + "x" * 19 + "\n" + "x" * 7),
        ("runs/one two three four five six seven ten eleven", "runs/one two three\nfour five six seven\nten eleven"),
        ("one two three four " * 4, "one two three four\n" * 2 + "one two three four…"),
        ("cost $x_1$\n\t5", "cost \\$x_1\\$ 5"),
        ("你 a\x07", "□ a□"),
        ("", ""),
    ],
    ids=["space", "fits", "sign", "letters", "words", "cut", "mathematics", "missing", "empty"],
)
def test_labels_are_broken_where_they_may_be(label, shown):
    assert row_labels.wrapped(label, 19, 3) == shown


def test_twelve_rows_have_looks_of_their_own_and_none_is_the_truth():
    looks = [row_labels.row_style(i) for i in range(12)]
    assert len({str(look["color"]) for look in looks}) == 12
    assert len({look["marker"] for look in looks}) == 12
    assert TRUE_COLOUR not in {look["color"] for look in looks}
    assert row_labels.row_style(12) == looks[0]


@pytest.mark.parametrize(
    ("value", "error", "sign", "shown"),
    [
        (2.63, 0.0123, "", "2.630"),
        (-0.00123, 0.0004, "+", "−0.00123"),
        (12345.6, 250.0, "", "12346"),
        (0.5, float("nan"), "", "0.5"),
        (1e7, 3.0, "", "1e+07"),
        (0.0, 0.0, "+", "+0"),
    ],
    ids=str,
)
def test_numbers_have_the_digits_of_their_error(value, error, sign, shown):
    assert row_labels.to_error(value, error, sign) == shown


def test_limits_cut_the_row_that_failed_alone():
    limits, cut = row_labels.bulk([(0.0, 0.02), (-0.01, 0.03), (0.9, 1.1)], [0.0])
    assert cut and limits[0] < -0.01 and 0.03 < limits[1] < 0.1
    limits, cut = row_labels.bulk([(0.0, 0.02), (0.1, 0.12)], [0.0])
    assert not cut and limits[1] > 0.12
    for nothing in ([], [(np.nan, 1.0)], [(0.0, 0.0)]):
        (low, high), cut = row_labels.bulk(nothing, [0.0])
        assert low < 0 < high and not cut


# ---------------------------------------------------------------- rows of numbers
def test_differences_are_drawn_from_zero_each_verdict_with_its_mark(style):
    figure = difference_bars.differences_figure(DIFFERENCES, "x", "path=ot")
    axes = figure.axes[0]
    for _, value, low, high, verdict in (DIFFERENCES[1], DIFFERENCES[3], DIFFERENCES[4]):
        look = difference_bars.VERDICTS[verdict]
        marks = [line for line in lines_of(axes, look["marker"]) if np.isclose(line.get_xdata()[0], value)]
        assert len(marks) == 1 and marks[0].get_color() == look["color"]
        assert any(np.allclose(line.get_xdata(), [low, high]) for line in axes.lines if len(line.get_xdata()) == 2)
    assert [line.get_xdata()[0] for line in lines_of(axes, "D")] == [0.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [row[0] for row in DIFFERENCES]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert right_words(axes) == [
        "reference",
        "+0.012 [+0.006, +0.018]",
        "+0.90 [+0.80, +1.00]",
        "+0.001 [−0.004, +0.006]",
        "−0.030 [−0.040, −0.020]",
    ]
    assert legend(figure) == ["reference: path=ot", "tie", "worse", "better", "beyond the panel"]


def test_a_row_far_beyond_is_cut_with_an_arrow(style):
    axes = difference_bars.differences_figure(DIFFERENCES, "x", "path=ot").axes[0]
    assert axes.get_xlim()[1] < 0.1
    arrows = lines_of(axes, ">")
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in arrows] == [(axes.get_xlim()[1], 2)]


def test_a_difference_that_is_not_finite_is_said_to_be_so(style):
    rows = [DIFFERENCES[0], ("broken", np.nan, np.nan, np.nan, "worse"), ("gone", np.inf, np.inf, np.inf, "worse")]
    axes = difference_bars.differences_figure(rows, "x", "path=ot").axes[0]
    assert right_words(axes)[1:] == ["not finite", "not finite"]
    assert np.isfinite(axes.get_xlim()).all() and not lines_of(axes, "s")


def test_each_seed_is_a_dot_and_a_perfect_model_a_blue_line(style):
    rows = [("a", np.array([1.0, 1.2, np.nan]), 1.1, 0.1), ("b", np.array([2.0]), 2.0, np.nan)]
    figure = seed_dots.scores_figure(rows, 0.9, "nll")
    axes = figure.axes[0]
    assert [list(line.get_xdata()) for line in lines_of(axes, "o")] == [[1.0, 1.2], [2.0]]
    assert [line.get_xdata()[0] for line in lines_of(axes, "|")] == [1.1, 2.0]
    blue = [line for line in axes.lines if line.get_color() == TRUE_COLOUR]
    assert [list(line.get_xdata()) for line in blue] == [[0.9, 0.9]]
    assert right_words(axes) == ["1.10 ± 0.10, 3 seeds, 1 not finite", "2, 1 seed"]
    assert "a perfect model" in legend(figure)
    unknown = seed_dots.scores_figure(rows, None, "x").axes[0]
    assert TRUE_COLOUR not in [line.get_color() for line in unknown.lines]


# ---------------------------------------------------------------- panels
def test_samples_stand_beside_the_data_on_its_limits(rng, style):
    data, made = rng.normal(size=(1200, 2)), rng.normal(size=(3000, 2))
    made[:5] = 50
    figure = row_grids.samples_figure([("a", made), ("b", data)], data, None)
    assert titles(figure) == ["Data", "a", "b"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1 and figure.axes[0].get_xlim()[1] < 10
    drawn = [axes.collections[0] for axes in figure.axes]
    assert {len(points.get_offsets()) for points in drawn} == {1200}
    colours = [to_hex(points.get_facecolor()[0][:3]).upper() for points in drawn]
    assert colours == [TRUE_COLOUR, MODEL_COLOUR, MODEL_COLOUR]
    said = [axes.texts[0].get_text() for axes in figure.axes]
    assert int(said[1].split()[0]) >= 5 and said[1].endswith("of 3,000 outside")


def test_densities_have_one_scale_with_the_truth_on_top(style):
    xs = np.linspace(-4, 4, 61)
    square = (xs**2)[None] + (xs**2)[:, None]

    def normal(width):
        return -square / (2 * width**2) - np.log(2 * np.pi * width**2)

    panels = [("sharp", normal(0.5)), ("wide", normal(1.5))]
    figure = row_grids.densities_figure(xs, xs, panels, normal(1.0), None)
    assert titles(figure) == ["True density", "sharp", "wide"]
    meshes = [axes.collections[0] for axes in figure.axes[:3]]
    assert_allclose([mesh.get_clim()[1] for mesh in meshes], 1 / (2 * np.pi))
    assert [axes.texts[0].get_text() for axes in figure.axes[:2]] == ["peak 0.16, mass 1.00", "peak 0.64, mass 1.00"]
    alone = row_grids.densities_figure(xs, xs, [*panels, ("a", normal(1.0))], None, None)
    assert_allclose(alone.axes[0].collections[0].get_clim()[1], 1 / (2 * np.pi))  # the middle peak


def test_paths_share_their_limits_and_a_wide_one_has_a_panel_of_its_own(rng, style):
    data = rng.uniform(-1, 1, size=(500, 2))
    figure = row_grids.paths_figure([("a", walks(rng, 1.0)), ("wide", walks(rng, 50.0))], data, None)
    assert titles(figure) == ["a", "wide", "wide"]
    near, also_near, whole = figure.axes
    assert near.get_xlim() == also_near.get_xlim() and near.get_xlim()[1] < 6
    assert whole.get_xlim()[1] > 40 and any(isinstance(patch, Rectangle) for patch in whole.patches)
    assert also_near.texts[0].get_text().startswith("starts: ") and whole.texts[0].get_text() == "whole paths"
    for axes in figure.axes:
        assert [line for line in axes.collections if isinstance(line, LineCollection)]
    plain = row_grids.paths_figure([("a", walks(rng, 1.0)), ("b", walks(rng, 1.0))], None, None)
    assert titles(plain) == ["a", "b"]


def test_frames_are_a_row_a_model_and_a_column_a_time(rng, style):
    times = np.array([0.0, 0.5, 1.0])
    wide = walks(rng, 50.0)[::4]
    figure = row_grids.frames_figure([("a", walks(rng, 0.5)[::4]), ("wide", wide)], times, None)
    panels = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in panels[0]] == ["t = 0", "t = 0.5", "t = 1"]
    assert [line[0].texts[-1].get_text() for line in panels] == ["a", "wide"]
    assert panels[0, 0].get_xlim() == panels[0, 2].get_xlim() == panels[1, 2].get_xlim()
    assert panels[1, 0].get_xlim()[1] > 40 and "× wider" in panels[1, 0].texts[0].get_text()
    shown = [points for points in panels[1, 2].collections if isinstance(points, PathCollection)]
    assert_allclose(shown[0].get_offsets(), wide[-1])


def test_figures_are_as_high_as_their_panels_need(rng, style):
    data = rng.normal(size=(500, 2))
    heights = []
    for labels in (LABELS[:3], [f"{label}, coupling=ot, objective=fm" for label in LABELS[:3]], LABELS):
        figure = row_grids.samples_figure([(label, data) for label in labels], data, None)
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
        panel = figure.axes[0].get_window_extent()
        assert_allclose(panel.height / panel.width, 1, atol=0.2)
        spare = figure.get_figheight() - (max(box.y1 for box in boxes) - min(box.y0 for box in boxes)) / figure.dpi
        assert 0 <= spare < 0.35
        heights.append(figure.get_figheight())
        assert_allclose(figure.get_figwidth(), 7.2)
    assert heights[0] < heights[1] < heights[2]


# ---------------------------------------------------------------- curves
def test_each_row_has_one_look_for_all_its_seeds(rng, style):
    steps = np.arange(0, 100, 10)
    curves = [(steps, np.linspace(3, 1, 10)), (steps[::-1], np.linspace(1, 3, 10))]
    broken = (steps, np.full(10, np.nan))
    figure = row_curves.training_figure([("a", curves), ("b", [broken])], "loss")
    drawn = figure.axes[0].lines
    assert len(drawn) == 2 and {line.get_color() for line in drawn} == {MODEL_COLOUR}
    assert_allclose(drawn[0].get_ydata(), drawn[1].get_ydata())  # by rising step
    assert legend(figure) == ["a", "b"]
    assert "10 not finite" in figure.axes[0].get_title(loc="right")
    nothing = row_curves.training_figure([("b", [broken]), ("c", [])], "loss")
    assert nothing.axes[0].texts[0].get_text() == "no finite value"


def test_costs_share_axes_and_a_row_looks_alike_under_each_solver(style):
    nfe, error = np.array([4.0, 1.0, 2.0]), np.full(3, 0.01)
    curve = (nfe, np.array([0.2, 0.8, 0.4]), error)
    panels = {"euler": {"a": curve, "b": curve}, "rk4": {"b": (nfe, np.array([0.1, np.inf, 0.3]), error)}}
    figure = row_curves.cost_figure(panels, (0.05, 0.01), "w2")
    euler, rk4 = figure.axes
    assert titles(figure) == ["euler", "rk4"]
    assert euler.get_ylim() == rk4.get_ylim() and euler.get_yscale() == rk4.get_yscale() == "log"
    curves = [[bar[0] for bar in axes.containers] for axes in (euler, rk4)]
    assert list(curves[0][0].get_xdata()) == [1, 2, 4] and list(curves[1][0].get_xdata()) == [2, 4]
    assert curves[0][1].get_color() == curves[1][0].get_color() != curves[0][0].get_color()
    assert rk4.get_title(loc="right") == "1 not finite"
    assert legend(figure) == ["a", "b", "floor: true samples"]


# ---------------------------------------------------------------- files
XS = np.linspace(-1, 1, 5)
NAN = np.full((4, 2), np.nan)
EVERY = {
    "differences": lambda rng, file: plots.differences(DIFFERENCES, file, xlabel="x", reference="$"),
    "one difference": lambda rng, file: plots.differences(DIFFERENCES[:1], file, xlabel="x", reference="path=ot"),
    "scores": lambda rng, file: plots.scores(
        [(label, rng.normal(size=3), 0.0, 0.1) for label in LABELS], file, floor=-2.0, xlabel="nll"
    ),
    "scores of nan": lambda rng, file: plots.scores([("a", NAN[0], np.nan, np.nan)], file, floor=None, xlabel="x"),
    "samples": lambda rng, file: plots.sample_grid(
        [("你" * 90, NAN)], rng.normal(size=(9, 2)), file, columns=["$", "b"]
    ),
    "densities": lambda rng, file: plots.density_grid(
        XS, XS, [("a", np.full((5, 5), np.nan))], file, true_log_prob=None, columns=None
    ),
    "paths": lambda rng, file: plots.path_grid([("a", walks(rng, 1.0, 3))], file, data=None, columns=["a", "b"]),
    "paths of nan": lambda rng, file: plots.path_grid(
        [("a", np.full((3, 4, 2), np.nan))], file, data=NAN, columns=None
    ),
    "frames": lambda rng, file: plots.frame_grid([("a" * 200, walks(rng, 50.0, 3)[:1])], XS[:1], file, columns=None),
    "training": lambda rng, file: plots.training_curves([("a", [(XS[:1], XS[:1])])], file, ylabel="loss"),
    "cost": lambda rng, file: plots.cost_panels(
        {"euler": {"$": (XS, XS, XS)}, "none": {}}, file, floor=None, ylabel="w2"
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_picture_becomes_one_whole_file_and_leaves_the_style_alone(rng, tmp_path, name):
    before = dict(matplotlib.rcParams)
    EVERY[name](rng, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 6, 12])
def test_pictures_of_many_long_rows_are_quick_and_no_wider_than_a_page(rng, tmp_path, count):
    data = rng.normal(size=(2000, 2))
    labels = [f"{label}, coupling=ot, network.width=256" for label in LABELS[:count]]
    plots.sample_grid([(label, data) for label in labels], data, tmp_path / "a.png", columns=None)
    plots.path_grid([(label, walks(rng, 50.0)) for label in labels], tmp_path / "b.png", data=data, columns=None)
    frames = [(label, walks(rng, 1.0, 2000)[:6]) for label in labels]
    plots.frame_grid(frames, np.linspace(0, 1, 6), tmp_path / "c.png", columns=None)
    for file in tmp_path.iterdir():
        assert int.from_bytes(file.read_bytes()[16:20], "big") <= 1080
