"""Trackers hold what metrics.jsonl holds, each point once, whatever happened to the run; none ends a training."""

import importlib
import importlib.util
import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Forks, Servers

from flowcli import build, trust
from flowcli.cli import main
from flowcli.configs import read
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.tracking import Entry, Feed, Subject, Tracker, refuse_unsaid
from flowcli.tracking.tensorboard import TensorBoard

SHORT = [
    *["data=moons", "data.train=128", "data.validation=32", "data.test=40", "network.width=8", "network.depth=1"],
    *["network.fourier_features=2", "trainer.batch_size=16", "trainer.log_every=2", "trainer.validate_every=6"],
    *["trainer.checkpoint_every=6", "trainer.steps=12", "trainer.threads=1", "solver=euler", "solver.steps=2"],
    *["divergence=hutchinson", "evaluation.draws=2", "evaluation.draw_points=20", "evaluation.trajectories=2"],
    *["evaluation.pictures=false", "evaluation.velocity_error=false"],
]
REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = ("tensorboard", "mlflow", "wandb")
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # mlflow's models under SQLAlchemy 2.1
    pytest.mark.filterwarnings(
        "ignore:unclosed database:ResourceWarning"
    ),  # mlflow keeps its store while it is imported
]


def needs(option: str, *, slow: bool = False) -> Any:
    missing = importlib.util.find_spec(option) is None
    marks = [pytest.mark.skipif(missing, reason=f"needs {option}"), *([pytest.mark.slow] if slow else [])]
    return pytest.param(option, marks=marks)


BACKENDS = [needs(option) for option in OPTIONS]
QUICK_BACKENDS = [needs(option, slow=option == "mlflow") for option in OPTIONS]
"""A new database takes mlflow seconds."""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # no netrc, no settings


def train(*words: str, folder: str = "outputs/train/run") -> Path:
    Path(folder).mkdir(parents=True)
    (Path(folder) / "dot.png").write_bytes(PNG)  # stands for the pictures, which take longer to draw than to train
    assert main(["train", *SHORT, f"hydra.run.dir={folder}", *words]) == 0
    return Path(folder)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = b"".join(
    [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(2 * b"\0\1\2\3")),
        _chunk(b"IEND", b""),
    ]
)


# ---------------------------------------------------------------- what the backends hold, read by their own readers
Points = dict[str, list[tuple[int, float]]]
CLOCK = re.compile("seconds|steps_per_second")
"""Figures that differ where the same evaluation is done again."""


def logged(run: Path) -> Points:
    """metrics.jsonl, and the final figures at the last step."""
    found: Points = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            found.setdefault(name, []).append((step, value))
    metrics = json.loads((run / "metrics.json").read_text())
    for name, value in metrics.items():
        if isinstance(value, int | float) and not CLOCK.search(name):
            found[f"final/{name}"] = [(metrics["step"], value)]
    return found


def _tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0})
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _mlflow_run(run: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")  # it keeps a store for each name
    return client, client.get_run(json.loads((run / "tracking.json").read_text())["mlflow"])


def _mlflow(run: Path) -> Points:
    client, found = _mlflow_run(run)
    name = found.info.run_id
    return {
        key: sorted((point.step, point.value) for point in client.get_metric_history(name, key))
        for key in found.data.metrics
    }


def _wandb_records(run: Path) -> list[Any]:
    """The records of the run's .wandb file; its service writes the last ones a moment after the run has ended."""
    name = json.loads((run / "tracking.json").read_text())["wandb"]
    for _ in range(500):
        (file,) = Path("outputs/wandb").glob(f"offline-run-*-{name}*/run-{name}.wandb")
        records = list(_parsed(file.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.01)
    raise AssertionError(f"{file} has no end")


def _parsed(content: bytes) -> Iterator[Any]:
    """7 bytes of head, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, joined = 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        if at + 7 > len(content):
            return
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if at + 7 + size > len(content):
            return
        joined += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or a last part
            record = Record()
            record.ParseFromString(joined)
            joined = b""
            yield record


def _wandb(run: Path) -> Points:
    found: Points = {}
    for record in _wandb_records(run):
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key, value in items.items():
            if not key.startswith(("_", "pictures/")):
                found.setdefault(key, []).append((items["_step"], value))
    return found


READERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def single(points: Points) -> Points:
    """In single precision, which is TensorBoard's."""
    return {name: [(step, float(np.float32(value))) for step, value in each] for name, each in points.items()}


def assert_holds(option: str, run: Path) -> None:
    expected = logged(run)
    assert len(expected["loss"]) >= 6 and len(expected["validation_loss"]) >= 2
    if option == "tensorboard":
        assert len(list((run / "tensorboard").iterdir())) == 1
    found = {name: points for name, points in READERS[option](run).items() if not CLOCK.search(name)}
    assert found == (single(expected) if option == "tensorboard" else expected)


# ---------------------------------------------------------------- the whole of a run
@pytest.mark.parametrize("option", QUICK_BACKENDS)
def test_a_tracker_holds_every_point_once_and_the_final_figures(option, capfd):
    run = train(f"logger={option}")
    assert_holds(option, run)
    told = capfd.readouterr()
    assert told.err == "" and "goes on without" not in told.out
    assert {path.name for path in Path().iterdir()} == {"outputs"}, "no mlruns/, no wandb/"
    assert main(["likelihood", "--ckpt", str(run), "check_rows=5"]) == 0, "the run folder opens again"


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_gets_settings_pictures_and_times(capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = train("logger=tensorboard", "seed=7")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (image,) = events.Images("pictures/dot")
    assert (image.width, image.height, image.encoded_image_string) == (3, 2, PNG)
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(hparams).session_start_info
    assert start.hparams["seed"].number_value == 7 and start.hparams["trainer.lr"].number_value == 2e-3
    ended = events.summary_metadata["_hparams_/session_end_info"].plugin_data.content
    assert HParamsPluginData.FromString(ended).session_end_info.status == 1
    times = [each.wall_time for each in events.Scalars("loss")]
    seconds = {r["step"]: r["seconds"] for r in map(json.loads, (run / "timings.jsonl").read_text().splitlines())}
    steps = [each.step for each in events.Scalars("loss")]
    assert np.allclose(np.diff(times), np.diff([seconds[step] for step in steps]), atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_gets_settings_pictures_and_how_it_ended(capsys):
    run = train("logger=mlflow", "logger.experiment=moons", "seed=7")
    client, found = _mlflow_run(run)
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params["seed"] == "7" and found.data.params["path._target_"] == "flowcli.paths.OT"
    assert found.data.tags["folder"] == str(run.absolute())
    assert client.get_experiment(found.info.experiment_id).name == "moons"
    (picture,) = Path("outputs/mlartifacts").rglob("*.png")
    assert picture.read_bytes() == PNG
    assert main(["train", "--resume", str(run), "trainer.steps=20"]) == 0
    assert_holds_all_steps(run)
    _, found = _mlflow_run(run)
    assert found.data.params["trainer.steps"] == "12" and found.data.tags["trainer.steps"] == "20"
    assert main(["train", *SHORT, "logger=mlflow", "trainer.lr=1e30", "hydra.run.dir=outputs/train/bad"]) == 1
    assert _mlflow_run(Path("outputs/train/bad"))[1].info.status == "FAILED"


def assert_holds_all_steps(run: Path) -> None:
    """Of a run that was trained further: final figures of both ends are there."""
    found = _mlflow(run)
    assert {name: points for name, points in found.items() if not name.startswith("final/")} == {
        name: points for name, points in logged(run).items() if not name.startswith("final/")
    }
    assert [step for step, _ in found["final/nll"]] == [12, 20]


# ---------------------------------------------------------------- runs that go on
@pytest.mark.parametrize("option", QUICK_BACKENDS)
def test_a_tracker_that_comes_later_gets_the_whole_curve(option, capsys):
    run = train()
    assert not (run / "tracking.json").exists()
    assert main(["train", "--resume", str(run), f"logger={option}"]) == 0
    assert_holds(option, run)
    assert main(["train", "--resume", str(run)]) == 0
    assert_holds(option, run)


@pytest.fixture(scope="module")
def forks(servers: Servers) -> Forks:
    return servers[0]


@pytest.mark.slow
@pytest.mark.parametrize("option", BACKENDS)
def test_killed_at_any_moment_no_point_is_lost_and_none_doubled(option, forks, tmp_path):
    words = ["train", *SHORT, f"logger={option}", "hydra.run.dir=outputs/train/run"]
    home = {"HOME": str(tmp_path / "home")}
    whole = forks.run(words, tmp_path, environment=home)
    assert whole["status"] == 0, whole
    changes = len(whole["changes"].split())
    run, undisturbed = tmp_path / "outputs/train/run", logged(tmp_path / "outputs/train/run")
    for number, part in enumerate([0.3, 0.5, 0.7, 0.8, 0.9]):
        run.rename(tmp_path / f"earlier-{number}")
        killed = forks.run(words, tmp_path, kill_at=int(part * changes), environment=home)
        assert killed["status"] == -9, killed
        resumed = forks.run(["train", "--resume", str(run)], tmp_path, environment=home)
        assert resumed["status"] == 0, resumed
        assert_holds(option, run)
        assert logged(run)["loss"] == undisturbed["loss"]


@pytest.mark.parametrize("option", QUICK_BACKENDS)
def test_points_that_a_run_logs_again_are_not_doubled(option, tmp_path):
    """What a kill leaves behind, without the processes: points that no checkpoint counts, and no end."""
    folder = tmp_path / "outputs/train/run"
    folder.mkdir(parents=True)
    node = read(trust.conf_dir() / "logger" / f"{option}.yaml")
    lines = [{"step": 2 * n, "loss": 1 / n, "validation_loss": 0.5} for n in range(1, 9)]
    clocks = [{"step": 2 * n, "seconds": 0.1 * n} for n in range(1, 9)]
    ends = {}
    for name, records in (("metrics.jsonl", lines), ("timings.jsonl", clocks)):
        written = "".join(json.dumps(record) + "\n" for record in records)
        (folder / name).write_text(written)
        ends[name] = len("".join(json.dumps(record) + "\n" for record in records[:5]))
    first = Feed(build.tracker({"logger": node}), Subject(folder, {"seed": 0}, False), pytest.fail)
    first.begin({"metrics.jsonl": 0, "timings.jsonl": 0})
    for number, (record, clock) in enumerate(zip(lines[:7], clocks[:7], strict=True)):
        first.logged(record, clock)
        if number == 4:
            first.settled()
    if option == "wandb":  # its service would go on writing: it dies with the process
        first._tracker._run.finish()  # type: ignore[union-attr]
    if option == "tensorboard":
        first._tracker._file.close()  # type: ignore[union-attr]
    again = [*lines[:5], *({**record, "loss": -record["loss"]} for record in lines[5:])]  # with other steps, say
    (folder / "metrics.json").write_text(json.dumps({"step": 16, "nll": 2.5, "nll_missing": "no"}))
    with Feed(build.tracker({"logger": node}), Subject(folder, {"seed": 0}, True), pytest.fail) as second:
        second.begin(ends)
        for record, clock in zip(again[5:], clocks[5:], strict=True):
            second.logged(record, clock)
        second.settled()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in again))
    assert_holds(option, folder)


# ---------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("option", OPTIONS)
def test_a_missing_package_is_one_line_before_anything_is_written(option, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, option, None)
    assert main(["train", *SHORT, f"logger={option}"]) == 2
    error = capsys.readouterr().err
    assert error == (
        f'flowcli train: error: logger={option} needs the package {option}: pip install "flowcli[{option}]"\n'
    )
    assert not any(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["logger=mlflow", "logger.tracking_uri=nowhere"], "logger.tracking_uri"),
        (["logger=mlflow", "logger.tracking_uri=3"], "logger.tracking_uri"),
        (["logger=mlflow", "logger.tracking_uri=sqlite:///a-file/mlflow.db"], "a-file"),
        (["logger=mlflow", "logger.tracking_uri=postgresql+psycopg2://u:word@host/x"], "psycopg2"),
        (["logger=mlflow", "logger.tracking_uri=mysql+csv://u:word@host/x"], "logger.tracking_uri"),
        (["logger=mlflow", "logger.tracking_uri=mysql://u:word@host:port/x"], "logger.tracking_uri"),
        (["logger=mlflow", "logger.experiment=''"], "logger.experiment"),
        (["logger=mlflow", "logger.artifacts=null"], "logger.artifacts"),
        (["logger=wandb", "logger.mode=disabled"], "logger.mode"),
        (["logger=wandb", "logger.project=a/b"], "logger.project"),
        (["logger=wandb", "logger.dir=3"], "logger.dir"),
        (["logger=wandb", "logger.dir=a-file"], "a-file"),
        (["logger=wandb", "logger.mode=online"], "wandb login"),
        (["logger=wandb", "+logger.entity=x"], "logger.entity"),
        (["logger=tensorboard", "+logger.dir=x"], "logger.dir"),
        (["logger=csv"], "mlflow, none, tensorboard, wandb"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_one_line_before_anything_is_written(words, named, monkeypatch, capsys):
    option = words[0].removeprefix("logger=")
    if option in OPTIONS and importlib.util.find_spec(option) is None:
        pytest.skip(f"needs {option}")
    Path("a-file").write_text("")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    assert main(["train", *SHORT, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error and "u:word" not in error
    assert [path.name for path in Path().iterdir()] == ["a-file"]


def test_a_tracker_that_fails_is_left_out_and_said_and_catches_up(monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    really, asked = TensorBoard._write, []

    def full(self: TensorBoard, event: Any) -> None:
        asked.append(event)
        if len(asked) > 6:
            raise OSError(28, "No space left on device")
        really(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoard, "_write", full)
        run = train("logger=tensorboard")
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if "logger=tensorboard" in line]
    assert len(lines) == 2 and "No space left" in lines[0] and "--resume" in lines[1] and told.err == ""
    assert len(asked) == 7, "it is not asked again"
    assert main(["train", "--resume", str(run)]) == 0
    assert_holds("tensorboard", run)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_a_broken_database_or_a_server_that_is_gone_does_not_end_a_training(capsys):
    Path("outputs").mkdir()
    Path("outputs/broken.db").write_bytes(b"no database " * 1000)
    train("logger=mlflow", "logger.tracking_uri=sqlite:///outputs/broken.db")
    assert capsys.readouterr().out.count("logger=mlflow") == 2
    run = train("logger=mlflow", "logger.tracking_uri=http://127.0.0.1:9", folder="outputs/train/server")
    told = capsys.readouterr()
    assert told.out.count("logger=mlflow") == 2 and told.err == "" and (run / "metrics.json").is_file()


@contextmanager
def serving(answer: Any) -> Iterator[str]:
    """The address of a service that says the same to every request."""
    content = json.dumps(answer).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_a_service_that_is_no_mlflow_does_not_end_a_training(capsys):
    with serving({"experiment": 3}) as address:
        run = train("logger=mlflow", f"logger.tracking_uri={address}")
    told = capsys.readouterr()
    assert told.out.count("logger=mlflow") == 2 and told.err == "" and (run / "metrics.json").is_file()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_a_server_says_nothing_behind_our_last_words(capsys, tmp_path):
    info = {"run_id": "ab" * 16, "run_uuid": "ab" * 16, "experiment_id": "1", "status": "RUNNING", "start_time": 1}
    info |= {"lifecycle_stage": "active", "artifact_uri": (tmp_path / "kept").as_uri()}
    answer = {"experiment": {"experiment_id": "1", "name": "flowcli"}, "run": {"info": info}, "run_info": info}
    with serving(answer) as address:
        train("logger=mlflow", f"logger.tracking_uri={address}")
    told = capsys.readouterr().out
    assert "logger=mlflow" not in told and told.splitlines()[-1].startswith("run ")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_an_environment_that_a_tracker_refuses_does_not_end_a_training(monkeypatch, capsys):
    importlib.import_module("wandb").teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    run = train("logger=wandb")
    told = capsys.readouterr()
    assert told.out.count("logger=wandb") == 2 and told.err == "" and (run / "metrics.json").is_file()
    assert main(["train", *SHORT, "logger=wandb", "logger.mode=online", "hydra.run.dir=outputs/train/other"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "logger.mode" in error and not Path("outputs/train/other").exists()


class Told(Tracker):
    """Keeps what it is asked for."""

    option, packages = "told", ()

    def __init__(self) -> None:
        self.asked: list[str] = []

    def failures(self) -> tuple[type[Exception], ...]:
        return ()

    def begin(self, subject: Subject, earlier: Sequence[Entry]) -> None:
        self.asked.append("begin")

    def log(self, entry: Entry) -> None:
        self.asked.append("log")

    def settle(self) -> None:
        self.asked.append("settle")

    def end(self, status: str, step: int, figures: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        self.asked.append(status)

    def drop(self) -> None:
        self.asked.append("drop")


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted(15, "stopped"), "interrupted"), (JobError("bad"), "failed")],
    ids=["signal", "job"],
)
def test_interrupted_is_not_done(error, status, tmp_path):
    tracker = Told()
    feed = Feed(tracker, Subject(tmp_path, {}, False), pytest.fail)
    feed.begin({"metrics.jsonl": 0, "timings.jsonl": 0})
    with pytest.raises(type(error)), feed:
        raise error
    assert tracker.asked == ["begin", status]


def test_what_goes_wrong_before_the_tracker_opens_is_what_the_user_hears(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{\n")
    tracker = Told()
    with pytest.raises(UserError), Feed(tracker, Subject(tmp_path, {}, True), pytest.fail) as feed:
        feed.begin({"metrics.jsonl": 2, "timings.jsonl": 0})
    assert tracker.asked == ["drop"]
    for option in OPTIONS:
        shipped = build.construct(read(trust.conf_dir() / "logger" / f"{option}.yaml"), "logger")
        with pytest.raises(FileNotFoundError), Feed(shipped, Subject(tmp_path, {}, True), pytest.fail):
            raise FileNotFoundError(2, "the data are gone")


@pytest.mark.parametrize(
    ("name", "damage"),
    [("metrics.jsonl", b"}"), ("timings.jsonl", b"}"), ("timings.jsonl", b'{"step": 2, "seconds": []}')],
    ids=["metrics", "timings", "seconds"],
)
def test_a_damaged_log_is_one_line_and_nothing_changes(name, damage, capsys):
    run = train()
    first, _, rest = (run / name).read_bytes().partition(b"\n")
    (run / name).write_bytes(damage + b" " * (len(first) - len(damage)) + b"\n" + rest)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert main(["train", "--resume", str(run), "logger=tensorboard"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and name in error
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("cell", "sweep", "name"),
    [
        ("s/0", "s", "s/0"),
        ("s/lr=1/0", "s", "s/lr=1/0"),
        ("s/a/b/c", "s", "s/a/b/c"),
        ("s/a/b/c/d", None, "d"),
        ("s/t/0", "t", "t/0"),
        ("elsewhere/0", None, "0"),
    ],
)
def test_a_cell_knows_its_sweep(cell, sweep, name, tmp_path):
    for folder in ("s", *(["s/t"] if sweep == "t" else [])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "multirun.yaml").write_text("")
    subject = Subject(tmp_path / cell, {}, False)
    assert (subject.sweep, subject.name) == (sweep, name)


# ---------------------------------------------------------------- a stranger's run
@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("mlflow", "tracking_uri", "http://example.org"),
        ("mlflow", "tracking_uri", "sqlite:////tmp/other.db"),
        ("mlflow", "artifacts", "/tmp/other"),
        ("wandb", "mode", "online"),
        ("wandb", "dir", "/tmp/other"),
    ],
)
def test_a_place_that_a_runs_own_file_names_has_to_be_said(option, key, value):
    shipped = read(trust.conf_dir() / "logger" / f"{option}.yaml")
    refuse_unsaid(shipped, ())
    strange = {**shipped, key: value}
    with pytest.raises(UserError, match=f"logger.{key}"):
        refuse_unsaid(strange, ())
    with pytest.raises(UserError, match=f"logger.{key}"):
        refuse_unsaid(strange, {"logger.experiment", "trainer.steps"})
    with pytest.raises(UserError, match=f"logger.{key}"):
        refuse_unsaid({name: each for name, each in shipped.items() if name != key}, ())
    refuse_unsaid(strange, {f"logger.{key}"})
    refuse_unsaid(strange, {"logger"})
    refuse_unsaid(None, ())


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"wandb": "../../x"}', '{"wandb": 3}', '{"wandb": "0123456789abcdeg"}']
)
def test_an_id_that_is_none_is_a_new_run(content, tmp_path):
    (tmp_path / "tracking.json").write_text(content)
    subject = Subject(tmp_path, {}, True)
    assert subject.known_as("wandb") is None
    subject.keep_name("wandb", "0123456789abcdef")
    assert subject.known_as("wandb") == "0123456789abcdef"


# ---------------------------------------------------------------- several jobs, several processes
def test_nothing_is_imported_without_a_logger(monkeypatch, capsys):
    code = (
        "import sys, flowcli.tracking.tensorboard, flowcli.tracking.mlflow, flowcli.tracking.wandb\n"
        f"print([name for name in {(*OPTIONS, 'torch')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    for option in OPTIONS:
        monkeypatch.setitem(sys.modules, option, None)  # to import it is an ImportError
    train()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_jobs_side_by_side_share_one_database(capfd):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*SHORT, "logger=mlflow", "seed=0,1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert main(["train", "-m", *words, "hydra.sweep.dir=outputs/sweeps/s"]) == 0
    assert "goes on without" not in capfd.readouterr().out
    for number in range(4):
        run = Path(f"outputs/sweeps/s/{number}")
        assert_holds("mlflow", run)
        _, found = _mlflow_run(run)
        assert found.info.run_name == f"s/{number}" and found.data.tags["sweep"] == "s"
    with sqlite3.connect("outputs/mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (4,)
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("option", BACKENDS)
def test_of_several_processes_one_logs(option, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "flowcli"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [*words, "train", *SHORT, f"logger={option}", "hydra.run.dir=outputs/train/run"],
        env=environment,
        check=True,
        capture_output=True,
    )
    assert_holds(option, Path("outputs/train/run"))


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_choose_where_its_figures_go(capsys):
    pytest.importorskip("wandb")
    run = train("logger=wandb", "logger.dir=elsewhere", "logger.project=moons")
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert main(["train", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "logger.dir" in error
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert main(["train", "--resume", str(run), "logger.dir=outputs"]) == 0
    assert_holds("wandb", run)
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", "--resume", str(run), "logger=none"]) == 0
