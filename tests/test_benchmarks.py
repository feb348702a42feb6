"""The benchmarks: their definitions, their table and their protocol, never the time that anything takes."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import report
import workers
from rounds import Rounds
from run import main, parsed
from works import OFFERS, WORKS, Product, Work, operations, products

TINY = {"width": 4, "layers": 2, "repeat": 2, "trained": 2, "solve_steps": 2, "tolerance": 1e-2}


def tiny(name: str) -> Work:
    return replace(WORKS[name], **TINY, rows=8)


@pytest.fixture
def cores() -> list[int]:
    return workers.cores_for(1)


# ---------------------------------------------------------------- definitions
def test_every_work_is_offered_by_someone_and_every_offer_is_a_work():
    assert {name for offered in OFFERS.values() for name in offered} == set(WORKS)
    assert OFFERS.keys() == workers.SCRIPTS.keys() and report.TITLES.keys() == OFFERS.keys() - {"limits"}
    assert all((workers.FOLDER / script).is_file() for script, *_ in workers.SCRIPTS.values())


def test_a_network_s_products_are_those_of_its_layers():
    work = Work("x", "", "sampling", rows=10, width=5, layers=3)
    assert products(work) == [Product(10, 3, 5), Product(10, 5, 5), Product(10, 5, 5), Product(10, 5, 2)]
    # backwards: every weight's gradient, and every input's but that of the data
    forward, first = operations(work), 2 * 10 * 3 * 5
    assert operations(replace(work, kind="training")) == 3 * forward - first
    assert operations(replace(work, kind="density")) == forward + 2 * (2 * 2 * 10 * 5 * 5)
    assert operations(WORKS["peak"]) == 2 * 2048**3


def test_limits_and_ours_know_what_they_offer():
    import limits
    import ours

    assert set(OFFERS["ours"]) == set(ours.DOINGS) and set(OFFERS["limits"]) == set(limits.DOINGS)


@pytest.mark.parametrize(
    ("script", "package", "name"),
    [
        ("torchcfm_peer", "torchcfm.models", "torchcfm"),
        ("flow_matching_peer", "flow_matching", "flow_matching"),
        ("zuko_peer", "zuko", "zuko"),
        ("jax_peer", "diffrax", "jax"),
    ],
)
def test_a_peer_knows_what_it_offers(script, package, name):
    pytest.importorskip(package)
    assert set(__import__(script).DOINGS) == set(OFFERS[name])


# ---------------------------------------------------------------- the table
FOUND = {
    "peak": {"limits": {"seconds": [5 * 2 * 2048**3 / 1e11] * 3, "facts": {}, "prepared": 0.0}},
    "step": {
        "ours": {"seconds": [0.1, 0.9, 0.15], "facts": {}, "prepared": 1.0},
        "torchcfm": {"seconds": [0.3, 0.3, 0.4], "facts": {}, "prepared": 2.0},
        "jax": {"skipped": "it broke"},
        "limits": {"seconds": [0.2, 0.2, 0.3], "facts": {"repeats": 1000}, "prepared": 0.1},
    },
    "dopri5": {"ours": {"seconds": [0.3, 0.3, 0.3], "facts": {"nfe": 50}, "prepared": 1.0}},
}


def test_the_table_has_medians_ratios_and_limits():
    header, _, step, dopri5 = report.table(FOUND, WORKS, ["ours", "torchcfm", "jax"]).splitlines()
    assert header.count("|") == step.count("|") == dopri5.count("|") == 7
    seconds = operations(WORKS["step"]) / 1e11
    assert [cell.strip() for cell in step.split("|")[2:-1]] == [
        report.shown(seconds),
        "200 µs",
        "300 µs",
        "600 µs (2.00 x)",
        "—",
    ]
    seconds = 50 * operations(WORKS["dopri5"]) / 1e11  # as often as ours evaluates the field
    assert [cell.strip() for cell in dopri5.split("|")[2:-1]] == [report.shown(seconds), "—", "100 ms", "—", "—"]


def test_notes_say_why_there_is_a_dash():
    told = "\n".join(report.notes(FOUND, {"zuko": "No module named 'zuko'"}))
    assert "it broke" in told and "No module named 'zuko'" in told and "nfe 50" in told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5e-7, "0.25 µs"), (1.234e-4, "123 µs"), (0.99996e-3, "1.00 ms"), (0.0567, "56.7 ms"), (12.34, "12.3 s")],
)
def test_three_digits_and_a_unit(seconds, text):
    assert report.shown(seconds) == text


# ---------------------------------------------------------------- the protocol
class Turns:
    """A worker's two streams, filled and read by a test."""

    def __init__(self, count: int) -> None:
        self._out = io.StringIO()
        self.rounds = Rounds(io.StringIO('"go"\n' * count + '"end"\n'), self._out)

    @property
    def answers(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    file = tmp_path_factory.mktemp("points") / "points.npy"
    np.save(file, np.random.default_rng(0).standard_normal((100, 2), dtype=np.float32))
    return file


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours reads its own data."""
    import ours

    words = ours.words
    sizes = ["data.train=100", "data.validation=10", "data.test=10", "trainer.compile=false"]
    monkeypatch.setattr(ours, "words", lambda *given: [*words(*given), *sizes])
    monkeypatch.setattr("flowcli.ends.MEASURED_ROWS", 64)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", ["step", "ot_step", "euler", "dopri5", "log_prob", "mle_step", "large_step"])
def test_ours_does_every_work(name, points):
    import ours

    turns = Turns(2)
    ours.DOINGS[name](tiny(name), points, turns.rounds)
    ready, *taken = turns.answers
    assert "prepared" in ready and len(taken) == 2 and all(answer["seconds"] > 0 for answer in taken)  # type: ignore[operator]
    facts = {"nfe"} if name in ("euler", "dopri5") else {"nfe", "nll"} if name in ("log_prob", "mle_step") else set()
    assert set(ready["facts"]) == facts  # type: ignore[call-overload]


@pytest.mark.parametrize("name", OFFERS["limits"])
def test_limits_does_every_work(name, points):
    import limits

    turns = Turns(1)
    limits.DOINGS[name](tiny(name), points, turns.rounds)
    assert [set(answer) for answer in turns.answers] == [{"prepared", "facts"}, {"seconds"}]


@pytest.mark.parametrize(
    ("script", "package", "names"),
    [
        ("torchcfm_peer", "torchcfm.models", ("step", "ot_step", "euler", "dopri5")),
        ("flow_matching_peer", "flow_matching", ("step", "euler", "dopri5", "log_prob")),
        ("zuko_peer", "zuko", ("mle_step",)),
        ("jax_peer", "diffrax", ("step",)),
    ],
)
def test_peers_do_theirs(script, package, names, points):
    pytest.importorskip(package)
    for name in names:
        turns = Turns(1)
        __import__(script).DOINGS[name](tiny(name), points, turns.rounds)
        assert [set(answer) for answer in turns.answers] == [{"prepared", "facts"}, {"seconds"}]


def test_a_process_answers_and_a_missing_interpreter_or_package_is_told(tmp_path, points, cores):
    with pytest.raises(workers.Gone, match="no-such-python"):
        workers.Worker("limits", str(tmp_path / "no-such-python"), cores)
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(workers.Gone, match="No module named 'diffrax'"):
        workers.Worker("jax", str(bare), cores)
    worker = workers.Worker("limits", sys.executable, cores)
    try:
        assert "torch" in worker.versions
        (found,) = workers.measure([tiny("step")], {"limits": worker}, {"limits": ("step",)}, 2, points)
        assert found[:2] == ("step", "limits") and len(found[2]["seconds"]) == 2
        (found,) = workers.measure([replace(tiny("step"), rows=-1)], {"limits": worker}, OFFERS, 1, points)
        assert "RuntimeError" in found[2]["skipped"]
        (found,) = workers.measure([tiny("step")], {"limits": worker}, OFFERS, 1, points)  # started again
        assert len(found[2]["seconds"]) == 1
    finally:
        worker.close()


def test_a_peer_that_is_missing_is_a_dash(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("run.write_points", lambda file: None)
    out, nothing = tmp_path / "timings.json", str(tmp_path / "nothing")
    words = ["--works", "step", "--peers", "jax", "--without-ours", "--python", f"jax={nothing}", "--out", str(out)]
    assert main(words) == 0
    kept, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert "nothing" in kept["missing"]["jax"] and kept["results"] == {} and kept["machine"]["threads"] == 1
    assert "not run" in shown and "nothing" in shown


@pytest.mark.parametrize(
    "words", [["--works", "steps"], ["--threads", "4096"], ["--python", "jaxx=python"], ["--rounds", "0"]]
)
def test_words_that_mean_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(words)
    assert words[0] in capsys.readouterr().err
