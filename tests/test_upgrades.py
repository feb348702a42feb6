"""Runs that earlier versions wrote stay readable; a newer version's is refused with a sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import flowcli
from flowcli.cli import main
from flowcli.records import collect
from flowcli.run import FORMAT, OLDEST

RUNS = Path(__file__).resolve().parent / "runs"
"""A run of each format and kind, as the version that had this format wrote it, with what it answered (expected.json).

They are never written again. `tests/runs/README.md` says how each was made.
"""
KEPT = sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir())


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, blank_pictures: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(RUNS / request.param, "run"))


@pytest.mark.parametrize("run", KEPT, indirect=True)
def test_a_kept_run_opens_and_answers_as_it_did(run, capsys):
    expected = json.loads((run / "expected.json").read_text())
    flow = flowcli.load(run)
    x = torch.tensor(expected["x"], dtype=torch.float64)
    with torch.no_grad():
        found = flow.log_prob(x).value
        samples = flow.sample(3, seed=0).value
    # another version of torch may round differently, no more
    np.testing.assert_allclose(found.numpy(), expected["log_prob"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(samples.numpy(), expected["samples"], rtol=1e-3, atol=1e-3)
    assert main(["sample", "--ckpt", "run", "n=5", "--out", "x.csv", "hydra.run.dir=s"]) == 0
    assert main(["likelihood", "--ckpt", "run", "check_rows=5", "hydra.run.dir=l"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    scored = json.loads(Path("l/metrics.json").read_text())
    assert scored["nll"] == pytest.approx(metrics["nll"], rel=1e-4)
    (record,) = collect([run])
    assert (record.status, record.metrics["nll"]) == ("done", metrics["nll"])
    capsys.readouterr()


@pytest.mark.parametrize("run", KEPT, indirect=True)
def test_a_kept_run_goes_on(run, capsys):
    steps = json.loads((run / "metrics.json").read_text())["step"]
    assert main(["train", "--resume", "run", f"trainer.steps={steps + 5}"]) == 0
    logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1] == steps + 5 and logged == sorted(logged)
    capsys.readouterr()


def test_every_format_has_a_run():
    """Whoever raises the format leaves a run of it here; 2 was in no release."""
    assert {int(name.split("-")[1]) for name in KEPT} >= set(range(max(OLDEST, 3), FORMAT + 1))


@pytest.mark.parametrize("run", KEPT[-1:], indirect=True)
def test_a_newer_run_is_refused_with_a_sentence(run, capsys):
    for file in (run / "run.json", *run.glob("checkpoints/step-*/description.json")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT + 1}))
    for line in (["sample", "--ckpt", "run"], ["likelihood", "--ckpt", "run"], ["train", "--resume", "run"]):
        before = sorted(Path().rglob("*"))
        assert main(line) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "newer flowcli" in error and "upgrade" in error
        assert sorted(Path().rglob("*")) == before
    (record,) = collect([run])
    assert record.status == "broken" and "newer flowcli" in record.reason


@pytest.mark.parametrize("run", KEPT[-1:], indirect=True)
def test_an_older_run_without_its_optimizer_is_read_but_does_not_go_on(run, capsys):
    for file in (run / "run.json", *run.glob("checkpoints/step-*/description.json")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": OLDEST}))
    assert flowcli.load(run).sample(2, seed=0).value.shape == (2, 2)
    capsys.readouterr()
    assert main(["train", "--resume", "run", "trainer.steps=1000"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"format {OLDEST}" in error and "cannot go on" in error
