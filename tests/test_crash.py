"""What a run survives: kills at any instant, disks that fail, signals, a second process on its folder."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import torch
import yaml
from forks import MOVING, Forks, Servers

from flowcli.checkpoints import find_checkpoint
from flowcli.cli import main
from flowcli.records import collect
from flowcli.run import RUN_FILE, RunFolder

TINY = [
    *["data=moons", "data.train=128", "data.validation=32", "data.test=40", "network.width=8", "network.depth=1"],
    *["network.fourier_features=2", "trainer.batch_size=16", "trainer.warmup=2", "trainer.log_every=2"],
    *["trainer.validate_every=4", "trainer.checkpoint_every=3", "trainer.steps=9", "solver=euler", "solver.steps=2"],
    *["divergence=hutchinson", "evaluation.draws=2", "evaluation.draw_points=20", "evaluation.trajectories=2"],
    *["evaluation.pictures=false", "evaluation.velocity_error=false"],
]
KINDS = {
    "plain": [],
    "ot": ["coupling=ot", "coupling.minibatch=8"],
    "semidiscrete": ["coupling=semidiscrete", "coupling.iterations=5", "coupling.batch_size=32"],
    "mle": ["objective=mle", "objective.solver.steps=1", "network.width=8", "network.depth=1"],
    "nsf": ["model=nsf", "model.transforms=1", "model.width=8", "model.depth=1"],
    "oracle": ["model=oracle", "data=8gaussians"],
    "adamw": ["trainer.optimizer=adamw", "trainer.weight_decay=0.1", "trainer.grad_clip=1", "seed=5"],
}
CLOCKS = ("train_seconds", "steps_per_second", "coupling_share", "coupling_fit_seconds")


def words(kind: str) -> list[str]:
    known = KINDS[kind]
    tiny = [w for w in TINY if kind not in ("mle", "nsf") or w.split("=")[0].split(".")[0] not in ("network",)]
    if kind == "oracle":
        tiny = [w for w in tiny if not w.startswith(("network.", "trainer.", "data=", "evaluation.velocity"))]
    if kind == "nsf":
        tiny = [w for w in tiny if w.split("=")[0].split(".")[0] not in ("solver", "divergence")]
    return ["train", *known, *tiny, "hydra.run.dir=run"]


@pytest.fixture(scope="module")
def forks(servers: Servers) -> Forks:
    return servers[0]


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of a kind that nobody disturbed: {file: content}, how long it took and how often it changed the disk."""
    found: dict[str, tuple[dict[str, Any], float, int]] = {}

    def of(kind: str) -> tuple[dict[str, Any], float, int]:
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            done = forks.run(words(kind), folder)
            assert done["status"] == 0, done
            found[kind] = content(folder / "run"), done["seconds"], len(done["changes"].split())
        return found[kind]

    return of


def content(run: Path) -> dict[str, Any]:
    """All that is promised to be the same, bit for bit."""
    files = [file for file in run.rglob("*") if file.is_file() and ".hydra" not in file.parts]
    kept: dict[str, Any] = {str(file.relative_to(run)): file.read_bytes() for file in files}
    for name in [name for name in kept if name.startswith("scores/")]:  # their heads have clocks
        kept[name] = {key: array.tobytes() for key, array in safetensors.numpy.load(kept[name]).items()}
    for clock in ("timings.jsonl", "environment.json", ".lock", "train.log", "output.txt"):
        kept.pop(clock, None)
    for name in [name for name in kept if name.endswith("progress.json")]:
        values = json.loads(kept[name])
        values["training"] = {key: value for key, value in values["training"].items() if "seconds" not in key}
        values["offsets"].pop("timings.jsonl")
        values["coupling"].pop("coupling_fit_seconds", None)
        kept[name] = values
    for name in [name for name in kept if name.endswith("config.yaml")]:
        kept[name] = yaml.safe_load(kept[name])  # the order of the keys is nobody's
    metrics = json.loads(kept["metrics.json"])
    kept["metrics.json"] = {key: value for key, value in metrics.items() if key not in CLOCKS and "seconds" not in key}
    return kept


def finish(forks: Forks, folder: Path, kind: str) -> dict[str, Any]:
    """Whatever happened, go on as a user would, and see that the state that was left can be read."""
    run = folder / "run"
    if not (run / RUN_FILE).is_file():
        again = forks.run(words(kind), folder)
    else:
        (record,) = collect([run])
        assert record.status in ("unfinished", "failed", "done"), record
        if (run / "checkpoints" / "last").is_file():
            for which in ("last", "best"):
                if (run / "checkpoints" / which).is_file():
                    find_checkpoint(run, which).tensors("ema")
            find_checkpoint(run, "last").state()
        again = forks.run(["train", "--resume", "run"], folder)
    assert again["status"] == 0, again
    return content(run)


def same(ended: dict[str, Any], whole: dict[str, Any]) -> None:
    assert ended.keys() == whole.keys()
    for name in whole:
        assert ended[name] == whole[name], name


# ---------------------------------------------------------------- kills
def killed_at_a_change(forks: Forks, undisturbed: Any, tmp_path: Path, kind: str, first: int, stride: int) -> int:
    whole, _, changes = undisturbed(kind)
    tried = 0
    for k in range(first, changes + 1, stride):
        folder = tmp_path / str(k)
        folder.mkdir()
        died = forks.run(words(kind), folder, kill_at=k)
        assert died["status"] == -signal.SIGKILL, died
        same(finish(forks, folder, kind), whole)
        shutil.rmtree(folder)
        tried += 1
    return tried


def test_a_kill_between_two_changes_of_the_disk_loses_nothing(forks, undisturbed, tmp_path):
    assert killed_at_a_change(forks, undisturbed, tmp_path, "plain", first=11, stride=101) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "semidiscrete"])
def test_a_kill_before_every_change_of_the_disk_loses_nothing(kind, forks, undisturbed, tmp_path):
    assert killed_at_a_change(forks, undisturbed, tmp_path, kind, first=1, stride=1) > 100


def killed_at_random(forks: Forks, undisturbed: Any, tmp_path: Path, kinds: list[str], kills: int, seed: int) -> None:
    draws, killed = random.Random(seed), 0
    while killed < kills:
        kind = draws.choice(kinds)
        whole, seconds, _ = undisturbed(kind)
        folder = tmp_path / f"{kind}-{killed}"
        folder.mkdir()
        line = words(kind)
        for _ in range(draws.randint(1, 3)):  # the run that goes on may be killed, too
            died = forks.run(line, folder, signals=[[draws.uniform(0.0, seconds), signal.SIGKILL]])
            assert died["status"] in (-signal.SIGKILL, 0), died
            killed += died["status"] != 0
            if died["status"] == 0:
                break
            line = ["train", "--resume", "run"] if (folder / "run" / RUN_FILE).is_file() else line
        same(finish(forks, folder, kind), whole)
        shutil.rmtree(folder)


def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(forks, undisturbed, tmp_path):
    kinds = ["semidiscrete", "mle", "nsf"]  # the transport library alone takes the others seconds to import
    killed_at_random(forks, undisturbed, tmp_path, kinds, kills=4, seed=1)


@pytest.mark.slow
def test_fifty_kills_at_random_instants(forks, undisturbed, tmp_path):
    killed_at_random(forks, undisturbed, tmp_path, list(KINDS), kills=50, seed=2)


# ---------------------------------------------------------------- a disk that fails
def failing(forks: Forks, undisturbed: Any, tmp_path: Path, event: str, first: int, stride: int, code: int) -> int:
    whole, _, changes = undisturbed("plain")
    tried = 0
    for k in range(first, changes + 1, stride):
        folder = tmp_path / f"{event}-{k}"
        folder.mkdir()
        failed = forks.run(words("plain"), folder, **{event: k, "error": code})
        if failed["status"] != 0:  # a temporary file that cannot be removed is nobody's loss
            assert failed["status"] in (1, 2), failed
            lines = failed["err"].splitlines()
            assert len(lines) == 1 and lines[0].startswith("flowcli train: error: "), failed["err"]
            assert os.strerror(code).lower() in lines[0].lower(), failed["err"]
            assert "/" in lines[0] or "error: run: " in lines[0], "the file is named"
        same(finish(forks, folder, "plain"), whole)
        shutil.rmtree(folder)
        tried += 1
    return tried


@pytest.mark.parametrize(("event", "code"), [("fail_at", errno.EIO), ("fail_from", errno.ENOSPC)])
def test_a_change_of_the_disk_that_fails_is_said_and_nothing_is_lost(event, code, forks, undisturbed, tmp_path):
    assert failing(forks, undisturbed, tmp_path, event, first=3, stride=131, code=code) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("event", "code"), [("fail_at", errno.EIO), ("fail_from", errno.ENOSPC)])
def test_every_change_of_the_disk_may_fail(event, code, forks, undisturbed, tmp_path):
    assert failing(forks, undisturbed, tmp_path, event, first=1, stride=1, code=code) > 100


def mounted(folder: Path, options: str) -> bool:
    """A small or read-only file system at a new folder, where this user may mount one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
    return made.returncode == 0


@pytest.mark.parametrize("kilobytes", [48, 120])
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(kilobytes, forks, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    if not mounted(disk, f"size={kilobytes}k"):
        pytest.skip("this user may not mount a small disk; the changes that fail are tested above")
    try:
        failed = forks.run(words("plain"), disk)
        assert failed["status"] == 1 and failed["err"].count("\n") == 1, failed
        assert "no space left on device" in failed["err"] and "run/" in failed["err"]
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        same(finish(forks, disk, "plain"), undisturbed("plain")[0])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(forks, tmp_path):
    disk = tmp_path / "disk"
    read_only = mounted(disk, "ro,size=1m")
    if not read_only:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere, and may not mount here")
        disk.chmod(0o500)
    try:
        refused = forks.run([*words("plain")[:-1], f"hydra.run.dir={disk}/a/run"], tmp_path)
    finally:
        if read_only:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    assert refused["status"] == 2 and refused["err"].count("\n") == 1, refused
    assert str(disk) in refused["err"] and "cannot be written" in refused["err"]
    assert not any(disk.iterdir())


# ---------------------------------------------------------------- while a training goes on
LONG = ["trainer.steps=100000", "trainer.max_time=120"]


def during(forks: Forks, folder: Path, event: Any, *extra: str) -> dict[str, Any]:
    """Train for long; when the first checkpoint is there, do something from outside."""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(forks.run, [*words("plain"), *LONG, *extra], folder)
        until = time.monotonic() + 60
        while not (folder / "run/checkpoints/last").exists() and time.monotonic() < until:
            time.sleep(0.01)
        done = event()
        return training.result() | {"event": done}


def test_a_run_folder_that_is_deleted_ends_the_training(forks, tmp_path):
    ended = during(forks, tmp_path, lambda: shutil.move(tmp_path / "run", tmp_path / "moved"))
    assert ended["status"] == 1 and ended["err"].count("\n") == 1, ended
    assert "deleted or moved" in ended["err"]
    assert not (tmp_path / "run").exists(), "no half of a run in its place"
    assert find_checkpoint(tmp_path / "moved", "last").state()


def test_a_second_process_is_told_who_has_the_folder(forks, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def meanwhile() -> Any:
        resumed = main(["train", "--resume", "run"]), capfd.readouterr().err
        (record,) = collect([tmp_path / "run"])
        told = (tmp_path / "run" / ".lock").read_text()
        os.kill(int(told.split()[1]), signal.SIGKILL)
        return resumed, record, told

    ended = during(forks, tmp_path, meanwhile)
    again = forks.run(["train", "--resume", "run", "trainer.steps=100000", "trainer.max_time=0.001"], tmp_path)
    (status, err), record, told = ended["event"]
    assert ended["status"] == -signal.SIGKILL
    assert status == 2 and err.count("\n") == 1
    assert told.strip() in err and f"on {socket.gethostname()}" in err
    assert record.status == "unfinished" and told.strip() in record.reason
    assert again["status"] == 0, "the lock of a dead process is no lock"


# ---------------------------------------------------------------- signals
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(signum, status, forks, undisturbed, tmp_path):
    whole, seconds, _ = undisturbed("plain")
    draws, ended = random.Random(signum), []
    for attempt in range(8):  # until one was in time, on whatever machine
        folder = tmp_path / str(attempt)
        folder.mkdir()
        stopped = forks.run(words("plain"), folder, signals=[[draws.uniform(0.3, 0.9) * seconds, signum]])
        ended.append(stopped["status"])
        seconds = min(seconds, stopped["seconds"])
        if stopped["status"] != 0:
            assert stopped["status"] == status, stopped
            assert stopped["err"].count("\n") == 1 and "flowcli train: " in stopped["err"], stopped
            if (folder / "run" / RUN_FILE).exists():
                assert "flowcli train --resume run" in stopped["err"], stopped
        same(finish(forks, folder, "plain"), whole)
        if attempt and status in ended:
            break
    assert status in ended


def later(seconds: float) -> float:
    """When a run that takes so long has surely come to what it hangs in."""
    return 1.5 * seconds + 0.3


SLOW = {
    "a step": ("flowcli.training.batches:Batches.__call__", "stopped at step 0"),
    "the validation": ("flowcli.training.validation:Validation.__call__", "stopped at step 4"),
    "the weights": (MOVING, "stopped at step 1"),
    "the evaluation": ("flowcli.evaluate:Evaluation.__call__", "stopped in the evaluation"),
    "the data": ("flowcli.data.toys:Toy.load", ""),
}


@pytest.mark.parametrize("what", SLOW)
def test_a_signal_is_heard_within_five_seconds_whatever_goes_on(what, forks, undisturbed, tmp_path):
    target, told = SLOW[what]
    whole, seconds, _ = undisturbed("plain")
    first = later(seconds)
    hang = {"target": target, "seconds": first + 0.5 if what == "the weights" else 60.0}
    stopped = forks.run(words("plain"), tmp_path, hang=hang, signals=[[first, signal.SIGTERM]])
    assert stopped["status"] == 143 and told in stopped["err"] and stopped["err"].count("\n") == 1, stopped
    assert stopped["seconds"] - first < 5
    same(finish(forks, tmp_path, "plain"), whole)


def test_a_second_signal_stops_at_once(forks, undisturbed, tmp_path):
    whole, seconds, _ = undisturbed("plain")
    hang = {"target": MOVING, "seconds": 60.0}
    first = later(seconds)
    events = [[first, signal.SIGTERM], [first + 0.5, signal.SIGTERM]]
    stopped = forks.run(words("plain"), tmp_path, hang=hang, signals=events)
    assert stopped["status"] == -signal.SIGTERM and stopped["seconds"] < first + 2
    same(finish(forks, tmp_path, "plain"), whole)


@pytest.mark.parametrize("verb", ["sample", "likelihood"])
def test_the_other_verbs_end_on_a_signal_with_its_status(verb, forks, undisturbed, tmp_path):
    first = later(forks.run(words("plain"), tmp_path)["seconds"])
    hang = {"target": f"flowcli.flows.continuous:ContinuousFlow.{'sample' if verb == 'sample' else 'log_prob'}"}
    line = [verb, "--ckpt", "run", "hydra.run.dir=other"]
    stopped = forks.run(line, tmp_path, hang=hang | {"seconds": 60.0}, signals=[[first, signal.SIGTERM]])
    assert (stopped["status"], stopped["err"]) == (143, f"flowcli {verb}: interrupted\n")
    assert stopped["seconds"] - first < 5


# ---------------------------------------------------------------- what a second pair of eyes found
@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_resuming_what_needs_no_training_never_removes_its_only_checkpoint(stride, forks, undisturbed, tmp_path):
    whole, _, _ = undisturbed("oracle")
    assert forks.run(words("oracle"), tmp_path)["status"] == 0
    changes = len(forks.run(["train", "--resume", "run"], tmp_path)["changes"].split())
    for k in range(1, changes + 1, stride):
        forks.run(["train", "--resume", "run"], tmp_path, kill_at=k)
        assert find_checkpoint(tmp_path / "run", "best").tensors("ema")
    same(finish(forks, tmp_path, "oracle"), whole)


@pytest.mark.parametrize("target", ["flowcli.run:RunFolder.settle", "flowcli.run:RunFolder.point"])
def test_a_signal_while_the_last_checkpoint_is_written_is_heard(target, forks, tmp_path):
    line = [*words("plain"), "trainer.checkpoint_every=9", "trainer.validate_every=9"]
    (tmp_path / "whole").mkdir()
    seconds = forks.run(line, tmp_path / "whole")["seconds"]
    hang = {"target": target, "seconds": 1.0}
    stopped = forks.run(line, tmp_path, hang=hang, signals=[[seconds + 0.3, signal.SIGTERM]])
    assert stopped["status"] == 143 and "flowcli train --resume run" in stopped["err"], stopped
    assert forks.run(["train", "--resume", "run"], tmp_path)["status"] == 0
    same(content(tmp_path / "run"), content(tmp_path / "whole" / "run"))


def test_what_resume_changes_is_kept_before_the_next_checkpoint(forks, tmp_path):
    whole = forks.run(words("plain"), tmp_path)
    assert whole["status"] == 0
    hang = {"target": MOVING, "seconds": 60.0}
    line = ["train", "--resume", "run", "trainer.steps=15"]
    killed = forks.run(line, tmp_path, hang=hang, signals=[[later(whole["seconds"]), signal.SIGKILL]])
    assert killed["status"] == -signal.SIGKILL
    assert forks.run(["train", "--resume", "run"], tmp_path)["status"] == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 15


@pytest.mark.slow
def test_two_jobs_never_share_a_run_folder(forks, tmp_path):
    """A process that passed its preflight before another one trained there, and cells of a sweep with one name."""
    late = {"target": "flowcli.launch.job:Job.__call__", "seconds": 2.5}
    with Forks() as second, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(second.run, [*words("plain"), "seed=1"], tmp_path, hang=late)
        time.sleep(0.8)
        assert forks.run(words("plain"), tmp_path)["status"] == 0
        before = content(tmp_path / "run")
        refused = slow.result()
    assert refused["status"] == 2 and "holds a run already" in refused["err"], refused
    same(content(tmp_path / "run"), before)
    line = [*words("plain")[:-1], "-m", "seed=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${data.train}"]
    refused = forks.run(line, tmp_path)
    assert refused["status"] == 2 and "jobs 0 and 1 would share sweep/128" in refused["err"], refused
    assert not (tmp_path / "sweep").exists()


def test_every_new_name_is_synced_before_a_checkpoint_counts(tmp_path, monkeypatch):
    """What a power cut leaves: a checkpoint that `last` names has all its files, and so have its logs."""
    unsynced: set[str] = set()
    created: dict[int, str] = {}
    really = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "mkdir", "close")}

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        new = flags & os.O_CREAT and not os.path.exists(path)
        descriptor = really["open"](path, flags, *args, **kwargs)
        created[descriptor] = os.path.realpath(path)
        if new:
            unsynced.add(os.path.realpath(path))
        return descriptor

    def fsync(descriptor: int) -> None:
        path = created[descriptor]
        unsynced.discard(path)  # a folder: the names in it; a file: its bytes
        for name in [name for name in unsynced if name.startswith("in ") and name == f"in {path}"]:
            unsynced.discard(name)
        really["fsync"](descriptor)

    def moved(name: str) -> Any:
        def move(source: Any, target: Any) -> None:
            if os.path.basename(target) == "last":
                left = {path for path in unsynced if not path.endswith(os.path.basename(source))}
                assert not left, f"`last` would name a checkpoint while these are not on the disk: {left}"
            really[name](source, target)
            unsynced.discard(os.path.realpath(source))
            unsynced.add(f"in {os.path.realpath(os.path.dirname(target))}")

        return move

    def made(path: Any, *args: Any, **kwargs: Any) -> None:
        really["mkdir"](path, *args, **kwargs)
        unsynced.add(f"in {os.path.realpath(os.path.dirname(path))}")

    for name, function in (("open", opened), ("fsync", fsync), ("mkdir", made)):
        monkeypatch.setattr(os, name, function)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, moved(name))
    folder = RunFolder.create(tmp_path / "outputs" / "run", "train", {"a": 1}, {})
    lines = folder.lines("metrics.jsonl")
    for step in (1, 2):
        lines.append({"step": step})
        offset = lines.sync()
        folder.save_checkpoint(
            step,
            weights={"raw": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}},
            config={"a": 1},
            description={},
            progress={"training": {}, "offsets": {"metrics.jsonl": offset}, "coupling": {}},
            optimizer={},
            best=step,
        )
    lines.close()
