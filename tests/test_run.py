"""The run folder: atomic writes, checkpoints, and reading back what may be damaged or foreign."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from flowcli import checkpoints, records, run, storage
from flowcli.errors import UserError

CONFIG = {"seed": 0, "path": {"_target_": "flowcli.paths.OT", "sigma_min": 0.0}}
DESCRIPTION = {"event_shape": [2], "columns": None, "choices": {"path": "ot"}}


def save(folder: run.RunFolder, step: int, *, best: int, value: float = 1.0) -> Path:
    weights = {"raw": {"w": torch.full((2,), value)}, "ema": {"w": torch.full((2,), value / 2)}}
    return folder.save_checkpoint(
        step,
        weights=weights,
        config=CONFIG,
        description=DESCRIPTION,
        progress={
            "training": {"step": step, "loss_sum": 0.1},
            "offsets": {"metrics.jsonl": 7, "timings.jsonl": 9},
            "coupling": {},
        },
        optimizer={"0.exp_avg": torch.ones(3)},
        best=best,
    )


@pytest.fixture
def folder(tmp_path: Path) -> run.RunFolder:
    return run.RunFolder.create(tmp_path / "outputs" / "train" / "a", "train", CONFIG, {"path": "ot"})


def test_a_checkpoint_comes_back_whole(folder):
    save(folder, 10, best=10, value=3.0)
    found = checkpoints.find_checkpoint(folder.path)
    assert (found.config, found.choices, found.description["step"]) == (CONFIG, {"path": "ot"}, 10)
    assert found.tensors("raw")["w"].tolist() == [3.0, 3.0]
    assert found.tensors("ema")["w"].tolist() == [1.5, 1.5]
    values, optimizer = found.state()
    assert (values["training"], values["offsets"]) == (
        {"step": 10, "loss_sum": 0.1},
        {"metrics.jsonl": 7, "timings.jsonl": 9},
    )
    assert optimizer["0.exp_avg"].tolist() == [1.0, 1.0, 1.0]
    assert found.run == folder.path


def test_pointers_keep_best_and_last_and_the_rest_goes(folder):
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 3)):
        save(folder, step, best=best)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["best", "last", "step-3", "step-5"]
    assert checkpoints.find_checkpoint(folder.path, "best").description["step"] == 3
    assert checkpoints.find_checkpoint(folder.path, "last").description["step"] == 5


def test_tensors_that_share_memory_are_saved(folder):
    shared = torch.ones(4)
    weights = {"raw": {"a": shared, "b": shared}, "ema": {"a": shared[:2], "b": shared}}
    folder.save_checkpoint(
        1, weights=weights, config=CONFIG, description=DESCRIPTION, progress={}, optimizer={}, best=1
    )
    assert checkpoints.find_checkpoint(folder.path).tensors("ema")["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("what", ["run", "checkpoints", "step", "raw", "ema"])
def test_ckpt_may_be_a_run_a_folder_or_a_weights_file(folder, what):
    step = save(folder, 7, best=7)
    given = {"run": folder.path, "checkpoints": folder.checkpoints, "step": step}
    given |= {key: step / name for key, name in run.WEIGHTS.items()}
    found = checkpoints.find_checkpoint(given[what])
    assert found.folder == step
    assert found.weights == (what if what in run.WEIGHTS else None)


def test_latest_is_the_newest_run(folder, monkeypatch):
    save(folder, 1, best=1)
    other = run.RunFolder.create(folder.path.parents[1] / "sweeps" / "s" / "3", "train", {}, {})
    save(other, 2, best=2)
    os.utime(other.checkpoints / "last", ns=(2**62, 2**62))
    monkeypatch.chdir(folder.path.parents[2])
    assert checkpoints.find_checkpoint("latest").description["step"] == 2


def test_a_moved_checkpoint_still_opens(folder, tmp_path):
    step = save(folder, 7, best=7)
    moved = step.rename(tmp_path / "elsewhere")
    assert checkpoints.find_checkpoint(moved).run == moved


class Explosive:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda step: (step / "description.json").write_text("{"), "is damaged"),
        (lambda step: (step / "description.json").write_text('{"format": 99}'), "newer flowcli"),
        (lambda step: (step / "description.json").write_text('{"format": 1}'), "before flowcli's first release"),
        (lambda step: (step / "description.json").write_text("[1]"), "not flowcli's"),
        (lambda step: (step / "config.yaml").write_text("a: ${oc.env:HOME}"), "interpolation"),
        (lambda step: (step / "config.yaml").write_text("'${oc.env:HOME}': 1"), "interpolation"),
        (lambda step: (step / "config.yaml").write_text("!!python/object/apply:os.mkdir [exploded]"), "not a readable"),
        (lambda step: (step / "config.yaml").write_text("a: [1"), "not a readable"),
        (lambda step: (step / "config.yaml").write_text("- 1"), "want a mapping"),
        (lambda step: (step / "config.yaml").write_bytes(b"\xff\x00"), "not a readable"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_in_one_line(folder, tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    damage(save(folder, 1, best=1))
    with pytest.raises(UserError, match=message) as error:
        checkpoints.find_checkpoint(folder.path)
    assert "\n" not in str(error.value)
    assert not Path("exploded").exists()


def test_weights_and_state_are_read_without_running_anything(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = save(folder, 1, best=1)
    (step / "optimizer.safetensors").write_bytes(pickle.dumps(Explosive()))
    (step / "model.safetensors").write_bytes(pickle.dumps(Explosive()))
    (step / "ema.safetensors").write_bytes((step / "ema.safetensors").read_bytes()[:40])
    found = checkpoints.find_checkpoint(folder.path)
    for read in (found.state, lambda: found.tensors("raw"), lambda: found.tensors("ema")):
        with pytest.raises(UserError, match="not a readable"):
            read()
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["../../../etc", "step-1/../..", "/etc", "step-x", "", "step-99"])
def test_a_pointer_leads_nowhere_but_to_a_step_folder(folder, name):
    save(folder, 1, best=1)
    (folder.checkpoints / "best").write_text(name)
    with pytest.raises(UserError, match="names no checkpoint"):
        checkpoints.find_checkpoint(folder.path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing", "no such file"),
        ("a/run.json", "not a checkpoint"),
        ("a", "holds no checkpoint"),
        (".", "runs a|holds no"),
    ],
)
def test_what_is_no_checkpoint_is_said(folder, monkeypatch, given, message):
    monkeypatch.chdir(folder.path.parent)
    with pytest.raises(UserError, match=message):
        checkpoints.find_checkpoint(given)


def test_writes_are_all_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    storage.write_json(file, {"nll": 1.0})

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        storage.write_json(file, {"nll": 2.0})
    assert json.loads(file.read_text()) == {"nll": 1.0}


def test_json_holds_no_nan(tmp_path):
    storage.write_json(tmp_path / "m.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": [None, 1.5]}


def test_lines_are_cut_back_to_an_offset(folder):
    lines = folder.lines("metrics.jsonl")
    lines.append({"step": 1})
    offset = lines.sync()
    lines.append({"step": 2})
    lines.close()
    again = folder.lines("metrics.jsonl", offset)
    again.append({"step": 3})
    again.close()
    assert [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def finished(path: Path, metrics: Any) -> Path:
    made = run.RunFolder.create(path, "train", CONFIG, {"path": "ot"})
    if metrics is not None:
        made.finish(metrics)
    return path


def test_collect_tells_done_failed_unfinished_and_broken_apart(tmp_path):
    sweep = tmp_path / "sweep"
    finished(sweep / "10", {"nll": 2.0})
    finished(sweep / "2", {"nll": 1.0})
    run.RunFolder(finished(sweep / "3", None)).fail("loss is nan")
    finished(sweep / "4", None)
    (finished(sweep / "5", {"nll": 1.0}) / "metrics.json").write_text("{")
    (finished(sweep / "6", {"nll": 1.0}) / ".hydra" / "resolved.yaml").write_text("a: ${b}")
    storage.write_json(finished(sweep / "7", {"nll": 1.0}) / "run.json", {"format": 99, "verb": "train"})
    run.RunFolder.create(sweep / "samples", "sample", {}, {})
    found = records.collect([sweep, sweep / "2"])
    assert [(r.path.name, r.status) for r in found] == [
        ("2", "done"),
        ("3", "failed"),
        ("4", "unfinished"),
        ("5", "broken"),
        ("6", "broken"),
        ("7", "broken"),
        ("10", "done"),
    ]
    assert found[1].reason == "loss is nan"
    assert all(r.reason for r in found if r.status != "done")


def test_collect_says_where_there_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        records.collect([tmp_path / "x"])
    with pytest.raises(UserError, match="holds no training run"):
        records.collect([tmp_path])
