"""mode=animate: what a film shows, how long, and as what file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flowcli import build, launch, plots, trust
from flowcli.checkpoints import find_checkpoint
from flowcli.cli import main
from flowcli.errors import JobError, UserError
from flowcli.flows.base import Trajectory
from flowcli.plots import film
from flowcli.plots.animation import camera, even_steps, histogram_figure, mosaic_figure, plane_figure, smoothed
from flowcli.randomness import rows
from flowcli.tasks import sample as task

SHORT = [
    *["trainer.steps=2", "trainer.batch_size=32", "trainer.threads=1", "evaluation.pictures=false"],
    *[
        "evaluation.draws=2",
        "evaluation.draw_points=30",
        "evaluation.trajectories=4",
        "evaluation.velocity_error=false",
    ],
]
TOY = ["data.train=200", "data.validation=40", "data.test=60"]
LEARNED = [*SHORT, "network.width=8", "network.depth=1", "solver=midpoint", "solver.steps=3"]
LINE = [*SHORT, *TOY, "model=oracle", "path=ve", "data=gaussian", "data.mean=[2.0]", "data.covariance=[[9.0]]"]
RUNS = {
    "plane": [*LEARNED, "data=moons", *TOY],
    "line": [*LINE, "solver.rtol=1e-3", "solver.atol=1e-3"],
    "images": [*LEARNED, "data=digits"],
    "layers": [*SHORT, "data=moons", "model=realnvp", "model.transforms=3", "model.width=8", "model.depth=1", *TOY],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def trained(runs: Path, name: str) -> Path:
    if not (runs / name).exists():
        words = RUNS.get(name)
        if words is None:
            table = np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 100.0, 1.0]
            np.savetxt(runs / "t.csv", table, delimiter=",", header="a,b,c", comments="")
            words = [*LEARNED, "data=table", f"data.path={runs / 't.csv'}"]
        assert main(["train", *words, f"hydra.run.dir={runs / name}"]) == 0
    return runs / name


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def filmed(run: Path, *, folder: str = "out", **given: Any) -> Path:
    """What the command does behind Hydra, which is slower than a small film."""
    asked = config(run, **{"frames": 5, **given})
    task.check([asked])
    Path(folder).mkdir()
    task.run(asked, Path(folder))
    return Path(folder)


def config(run: Path, **given: Any) -> dict[str, Any]:
    own = {key: yaml.safe_load(default) for key, (default, _) in launch.keys("sample").items()}
    return {**find_checkpoint(run).config, **own, "ckpt": str(run), "mode": "animate", **given}


def solver(name: str, **given: Any) -> dict[str, Any]:
    return {**yaml.safe_load((trust.conf_dir() / "solver" / f"{name}.yaml").read_text()), **given}


def durations(file: Path) -> list[int]:
    with Image.open(file) as image:
        assert image.format == "GIF" and image.info["loop"] == 0
        found = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append(image.info["duration"])
    return found


# ---------------------------------------------------------------- every kind of flow
@pytest.mark.parametrize(
    ("name", "given", "pictures"),
    [
        ("plane", {"particles": 40}, 5),
        ("plane", {"particles": 40, "solver": solver("euler_maruyama", steps=20)}, 5),
        ("line", {"particles": 60}, 5),
        pytest.param("table", {"particles": 40}, 5, marks=pytest.mark.slow),
        pytest.param("images", {"particles": 5}, 5, marks=pytest.mark.slow),
        ("layers", {"particles": 40}, 4),
    ],
    ids=["plane", "sde", "line", "table", "images", "layers"],
)
def test_every_flow_makes_a_film(runs, name, given, pictures, capsys):
    folder = filmed(trained(runs, name), **given)
    assert {file.name for file in folder.iterdir()} == {"animation.gif", "metrics.json"}
    assert durations(folder / "animation.gif") == [640, *[40] * (pictures - 2), 1640]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["particles"] == given["particles"] and metrics["frames"] == 5
    assert "animation.gif" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "height"), [((6, 20, 1), 480), ((6, 20, 2), 660), ((6, 20, 5), 660), ((6, 5, 3, 4, 4), 660)]
)
def test_every_shape_has_a_picture(tmp_path, shape, height):
    points = np.random.default_rng(0).normal(size=shape)
    for data, columns in ((None, None), (points[-1], list("abcde")[: shape[2]])):
        plots.animate(points, np.linspace(0, 1, 6), tmp_path / "a.gif", frames=4, fps=20, data=data, columns=columns)
        with Image.open(tmp_path / "a.gif") as image:
            assert image.size == (600, height) and getattr(image, "n_frames", 1) == 4


def test_the_command_leaves_the_film_where_it_is_asked_for(runs, capsys):
    words = ["mode=animate", "frames=3", "fps=20", "particles=7", "--out", "film.gif", "hydra.run.dir=out"]
    assert main(["sample", "--ckpt", str(trained(runs, "plane")), *words]) == 0
    assert durations(Path("film.gif")) == [650, 50, 1650]
    assert Path("film.gif").read_bytes() == Path("out/animation.gif").read_bytes()
    assert "wrote film.gif" in capsys.readouterr().out


def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def animate(points: Any, times: Any, file: Path, **options: Any) -> None:
        calls.append({"points": points, "times": times, **options})
        file.write_bytes(b"GIF89a")

    monkeypatch.setattr(plots, "animate", animate)
    return calls


@pytest.mark.parametrize(("name", "layers"), [("plane", False), ("layers", True)])
def test_it_goes_from_the_noise_of_the_seed_to_its_samples(runs, name, layers, monkeypatch):
    run, calls = trained(runs, name), seen(monkeypatch)
    filmed(run, particles=30, seed=4)
    shown = calls[0]
    _, flow = build.from_checkpoint(config(run))
    np.testing.assert_allclose(shown["points"][-1], flow.sample(30, seed=4).value.numpy(force=True), rtol=1e-6)
    noise = flow.transform.inverse(rows(flow.start.sample, 4, "sample", 0, 30).double())
    np.testing.assert_allclose(shown["points"][0], noise.numpy(), rtol=1e-5, atol=1e-5)
    assert shown["times"][0] == 0 and shown["times"][-1] == 1 and (np.diff(shown["times"]) > 0).all()
    assert shown["layers"] is layers and shown["frames"] == 5 and shown["fps"] == 25
    assert shown["data"].shape[1:] == (2,) and shown["columns"] is None
    assert ("midpoint with 6 evaluations" in shown["said"]) != layers


def test_what_does_not_stay_finite_is_counted(runs, monkeypatch):
    run, calls = trained(runs, "plane"), seen(monkeypatch)
    _, flow = build.from_checkpoint(config(run))
    states = torch.zeros(3, 4, 2, dtype=torch.float64)
    states[1, 2, 0] = torch.nan
    monkeypatch.setattr(type(flow), "trajectory", lambda *a, **o: Trajectory(torch.linspace(0, 1, 3), states, 7))
    filmed(run, particles=4)
    assert calls[0]["points"].shape == (3, 3, 2) and "1 not finite" in calls[0]["said"]
    states[:] = torch.inf
    with pytest.raises(JobError, match="no sample stays finite"):
        filmed(run, particles=4, folder="none")


def test_a_film_is_the_same_bytes_every_time(runs):
    first, second, other = (
        (filmed(trained(runs, "plane"), particles=40, frames=3, seed=seed, folder=name) / "animation.gif").read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second != other


# ---------------------------------------------------------------- which states, for how long
def test_frames_are_even_in_motion_and_not_in_time():
    times = np.linspace(0, 1, 401)
    points = np.stack([times**6 * height for height in (1.0, -2.0)], 1)[:, :, None]  # nearly all of it at the end
    places = even_steps(points, np.full((401, 1, 2), (-2.0, 2.0)), 21)
    part = np.linspace(0, 1, 21)
    way = np.interp(places, np.arange(401), points[:, 0, 0])
    np.testing.assert_allclose(way, part**2 * (3 - 2 * part), atol=1e-3)
    assert places[0] == 0 and places[-1] == 400 and places[10] > 340


def test_a_zoom_takes_its_time():
    there = np.linspace(0, 1, 401)
    scale = 100.0 ** -(there**2)  # a cloud that shrinks, and a view that goes along: on the screen nothing moves
    points = scale[:, None, None] * np.array([[-1.0], [1.0]])
    places = even_steps(points, scale[:, None, None] * np.array([-2.0, 2.0]), 11)
    part = np.linspace(0, 1, 11)
    np.testing.assert_allclose((places / 400) ** 2, part**2 * (3 - 2 * part), atol=0.01)


def test_every_column_counts_in_its_own_unit():
    there = np.linspace(0, 1, 101)
    points = np.stack([there**3 * 1e-3, np.zeros(101)], 1)[:, None]
    places = even_steps(points, np.full((101, 2, 2), [[0.0, 1e-3], [0.0, 1e3]]), 3)
    np.testing.assert_allclose(places, [0, 100 * 0.5 ** (1 / 3), 100], atol=0.1)


def test_points_that_stand_still_are_shown_in_time():
    places = even_steps(np.zeros((5, 3, 2)), np.full((5, 2, 2), (0.0, 1.0)), 3)
    np.testing.assert_allclose(places, [0, 2, 4])


# ---------------------------------------------------------------- what the view holds
def cloud(scale: Any, seed: int = 0) -> Any:
    return np.asarray(scale)[:, None, None] * np.random.default_rng(seed).normal(size=(400, 2))


def test_wide_noise_is_seen_whole_and_then_the_camera_closes_in():
    points, truth = cloud(np.geomspace(60, 1, 80)), cloud([1.0], 1)[0]
    views = smoothed(camera(points, truth, equal=True))
    for state, view in zip(points, views, strict=True):
        held = (state >= view[:, 0]) & (state <= view[:, 1])
        assert held.all(1).mean() > 0.97
        assert (view[:, 0] < truth.min(0) + 0.6).all() and (view[:, 1] > truth.max(0) - 0.6).all()
    width = views[..., 1] - views[..., 0]
    np.testing.assert_allclose(width[:, 0], width[:, 1])
    assert width[0, 0] > 200 and width[-1, 0] < 10
    zoom = np.diff(np.log(width[:, 0]))
    assert (zoom < 0.01).all() and np.abs(np.diff(zoom)).max() < 0.03, "smooth, and never out again"


def test_noise_as_wide_as_the_data_needs_no_camera():
    views = camera(cloud(np.linspace(1.5, 1, 20)), cloud([1.0], 1)[0], equal=False)
    assert (views == views[0]).all()


# ---------------------------------------------------------------- what is drawn
def test_the_drawn_dots_are_the_states():
    points, views = cloud([3.0, 2.0, 1.0]), np.array([[[-9.0, 9.0]] * 2, [[-5.0, 5.0]] * 2, [[-3.0, 3.0]] * 2])
    figure, update = plane_figure(points, np.array([0.0, 0.5, 2.0]), views, cloud([1.0], 1)[0], ["a", "b"])
    axes = figure.axes[0]
    data, dots = axes.collections
    for number, expected in ((0, points[0]), (1, (points[0] + points[1]) / 2), (2, points[2])):
        update(number)
        np.testing.assert_allclose(np.asarray(dots.get_offsets()), expected)
        assert axes.get_xlim() == tuple(views[number, 0]) and axes.get_ylim() == tuple(views[number, 1])
        np.testing.assert_allclose(np.asarray(data.get_offsets()), cloud([1.0], 1)[0])


def test_the_histogram_is_that_of_the_states():
    points, views = cloud([3.0, 1.0])[..., :1], np.array([[[-12.0, 12.0]], [[-4.0, 4.0]]])
    figure, update = histogram_figure(points, np.array([0.0, 1.0]), views, cloud([1.0], 1)[0][:, :1], ["a"])
    _data, line = figure.axes[0].patches
    for number in (0, 1):
        update(number)
        values, edges, _ = line.get_data()  # type: ignore[attr-defined]
        expected = np.histogram(points[number], bins=edges)[0]
        np.testing.assert_allclose(values * np.diff(edges) * 400, expected, atol=1e-9)
        assert (edges[0], edges[-1]) == tuple(views[number, 0])


def test_the_mosaic_is_that_of_the_states():
    points = np.random.default_rng(0).uniform(size=(2, 4, 1, 3, 3))
    figure, update = mosaic_figure(points, np.array([0.0, 1.0]), (0.0, 1.0))
    for number in (0, 1):
        update(number)
        drawn = np.asarray(figure.axes[0].images[0].get_array())[..., 0]
        np.testing.assert_allclose(drawn[:3, :3], points[number, 0, 0])
        np.testing.assert_allclose(drawn[4:, 4:], points[number, 3, 0])


# ---------------------------------------------------------------- the files
def test_a_gif_keeps_its_pace_and_its_colours(tmp_path):
    def picture(number: int) -> Any:
        page = np.full((10, 12, 3), 255, np.uint8)
        page[:5] = (0xD5, 0x5E, 0x00)
        page[number] = 0
        return page

    film.write_film(tmp_path / "a.gif", picture, [1] * 7, 30)  # 3 1/3 hundredths of a second each
    found = durations(tmp_path / "a.gif")
    assert sum(found) == 230 and set(found) == {30, 40}
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(6)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture(6))


def test_an_mp4_plays_everywhere(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    pages = [np.full((40, 60, 3), 255, np.uint8) for _ in range(3)]
    for number, page in enumerate(pages):
        page[:, 20 * number : 20 * number + 20] = (0xD5, 0x5E, 0x00)
    film.write_film(tmp_path / "a.mp4", lambda number: pages[number], [3, 1, 2], 12.5)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content[4:8] == b"ftyp" and content.index(b"moov") < content.index(b"mdat"), "faststart"
    command = [film.ffmpeg(), "-i", str(tmp_path / "a.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    about = done.stderr.decode()
    assert "Video: h264" in about and "yuv420p" in about and "60x40" in about and "12.50 fps" in about
    found = np.frombuffer(done.stdout, np.uint8).reshape(-1, 40, 60, 3)
    for page, number in zip(found, [0, 0, 0, 1, 2, 2], strict=True):
        assert np.abs(page[:, 4::10].astype(int) - pages[number][:, 4::10]).max() < 40, "away from the edges"


@pytest.mark.slow
def test_the_command_makes_an_mp4(runs):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = filmed(trained(runs, "plane"), particles=40, out="film.mp4")
    assert Path("film.mp4").read_bytes() == (folder / "animation.mp4").read_bytes()
    assert {file.name for file in folder.iterdir()} == {"animation.mp4", "metrics.json"}
    count, seconds = ffmpeg.count_frames_and_secs("film.mp4")
    assert count == 5 + 15 + 40 and seconds == pytest.approx(2.4)


def no_ffmpeg(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str | None) -> None:
    """A machine without the package, and with this program as the system's ffmpeg, if any."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (folder / "bin").mkdir()
    if script is not None:
        (folder / "bin" / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin" if script else "")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, 'pip install "flowcli[video]"'),
        ("echo ' V....D h263 '", "has none"),
    ],
    ids=["none", "without H.264"],
)
def test_without_ffmpeg_there_is_one_line_and_no_folder(runs, tmp_path_factory, monkeypatch, capsys, script, message):
    run = trained(runs, "plane")
    no_ffmpeg(monkeypatch, tmp_path_factory.mktemp("machine"), script)
    capsys.readouterr()
    assert main(["sample", "--ckpt", str(run), "mode=animate", "--out", "film.mp4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and "an .mp4 needs" in error
    assert not list(Path().iterdir()), "something was written"


def test_an_ffmpeg_that_fails_leaves_its_last_words_and_no_file(runs, tmp_path_factory, monkeypatch, capsys):
    run = trained(runs, "plane")
    script = 'case "$*" in *-encoders*) echo " V....D libx264 x";; *) echo "no such luck" >&2; exit 3;; esac'
    no_ffmpeg(monkeypatch, tmp_path_factory.mktemp("machine"), script)
    capsys.readouterr()
    words = ["sample", "--ckpt", str(run), "mode=animate", "frames=3", "--out", "film.mp4", "hydra.run.dir=out"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no such luck" in error
    assert not Path("film.mp4").exists() and not list(Path("out").glob("*.mp4")) + list(Path("out").glob(".*.mp4"))


# ---------------------------------------------------------------- wrong input
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("plane", {"out": "film.avi"}, "--out film.avi: mode=animate wants a name that ends in .gif, .mp4"),
        ("plane", {"out": "gone/film.gif"}, "--out gone/film.gif"),
        ("plane", {"frames": 1}, "frames must be"),
        ("plane", {"frames": 1001}, "frames must be"),
        ("plane", {"frames": 2.5}, "frames must be"),
        ("plane", {"fps": 0}, "fps must be"),
        ("plane", {"fps": 51}, "fps must be"),
        ("plane", {"particles": 0}, "particles (auto, or a count of samples) must be"),
        ("plane", {"particles": 20_001}, "particles (auto, or a count of samples) must be"),
        ("plane", {"particles": "all"}, "particles (auto, or a count of samples) must be"),
        pytest.param(
            *("images", {"particles": 101}, "particles (auto, or a count of images) must be"), marks=pytest.mark.slow
        ),
        ("plane", {"batch_size": 10}, "batch_size=10: mode=animate"),
        ("plane", {"n": 10}, "n=10: mode=animate has no use for it, only mode=samples"),
        ("plane", {"mode": "samples", "frames": 10}, "frames=10: mode=samples has no use for it, only mode=animate"),
        ("plane", {"mode": "samples", "out": "film.gif"}, "--out film.gif"),
    ],
)
def test_what_is_refused(runs, name, given, message):
    with pytest.raises(UserError) as error:
        task.check([config(trained(runs, name), **given)])
    assert message in str(error.value)


def test_more_states_than_memory_holds_are_refused(runs):
    many = solver("euler", steps=1_000_000, max_nfe=1_000_000)
    with pytest.raises(UserError, match="particles=20000 needs about"):
        task.check([config(trained(runs, "plane"), solver=many, particles=20_000)])
