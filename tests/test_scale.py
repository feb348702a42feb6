"""Samples and rows by the million: what is streamed is what would be held, and memory does not grow with the rows."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from test_processes import together

import flowcli
from flowcli import memory, pictures, plots, storage, streams
from flowcli.cli import main
from flowcli.data import files
from flowcli.errors import JobError, UserError
from flowcli.flows.continuous import ContinuousFlow

SHORT = ["trainer.steps=10", "trainer.batch_size=64", "trainer.threads=1", "network.width=16", "network.depth=1"]
SHORT += ["evaluation.draws=2", "evaluation.draw_points=30", "evaluation.trajectories=4", "evaluation.pictures=false"]
SHORT += ["solver=midpoint", "solver.steps=3"]
TOY = ["data.train=300", "data.validation=40", "data.test=50"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `plane`, over two coordinates, and `wide`, over ten columns."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *SHORT, *TOY, f"hydra.run.dir={folder / 'plane'}"]) == 0
    rows = np.random.default_rng(0).normal(size=(200, 10))
    pl.DataFrame(rows, schema=[f"c{i}" for i in range(10)]).write_csv(folder / "wide.csv")
    path = f"data.path={folder / 'wide.csv'}"
    assert main(["train", *SHORT, "data=table", path, f"hydra.run.dir={folder / 'wide'}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.suffix != ".log"}


# ---------------------------------------------------------------- samples
@pytest.mark.parametrize(
    ("solver", "ending"),
    [("midpoint", ".csv"), ("midpoint", ".parquet"), ("dopri5", ".npy")],  # dopri5: rows of a batch share their steps
)
def test_samples_in_blocks_are_those_of_one_block(solver, ending, runs, monkeypatch, request, capsys):
    line = ["sample", "--ckpt", str(runs / "plane"), "n=100", "batch_size=7", f"solver={solver}", "trajectories=3"]
    if solver != "dopri5":  # once is enough
        request.getfixturevalue("blank_pictures")
    drawn = []
    for numbers in (1 << 20, 60):  # 60: blocks of 28 rows
        monkeypatch.setattr(streams, "NUMBERS", numbers)
        folder, out = Path(f"in-{numbers}"), Path(f"out-{numbers}{ending}")
        assert main([*line, f"hydra.run.dir={folder}", "--out", str(out)]) == 0
        drawn.append((content(folder), out, capsys.readouterr().out.replace(str(numbers), "")))
    (whole, out_1, told_1), (blocks, out_2, told_2) = drawn
    assert whole == blocks and told_1 == told_2
    if ending == ".parquet":  # row groups differ
        assert pl.read_parquet(out_1).equals(pl.read_parquet(out_2))
    else:
        assert out_1.read_bytes() == out_2.read_bytes()


def test_an_array_that_grew_is_what_numpy_writes(tmp_path):
    values = torch.randn(103, 2, 3, dtype=torch.float64)
    with streams.growing(tmp_path / "grown.npy", values.shape) as append:
        for part in values.split(10):
            append(part)
    np.save(tmp_path / "whole.npy", values.numpy())
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert torch.equal(torch.cat(list(streams.read_blocks(tmp_path / "grown.npy"))), values)


@pytest.mark.parametrize(("rows", "most"), [(1, 5), (5, 5), (100, 7), (1000, 999)])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_kept_of_blocks_is_what_would_be_taken_of_all(rows, most, size):
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)).double() * 3 + 1e6
    kept, deviations = streams.Thinned(rows, most), streams.Deviations()
    for part in values.split(size):
        kept.see(part)
        deviations.see(part)
    assert torch.equal(kept.kept, values[np.linspace(0, rows - 1, min(rows, most)).astype(int)])
    if rows > 1:
        torch.testing.assert_close(deviations.value, values.std(0), rtol=1e-9, atol=0)
    else:
        assert bool(deviations.value.isnan().all())


def test_a_picture_of_many_shows_some_at_even_steps_and_says_so(runs, monkeypatch, capsys):
    from flowcli.tasks.modes import samples

    shown: list[Any] = []
    monkeypatch.setattr(samples, "SHOWN_ROWS", 10)
    monkeypatch.setattr(pictures, "samples", lambda drawn, *rest: shown.append(drawn))
    assert main(["sample", "--ckpt", str(runs / "plane"), "n=91", "batch_size=20", "hydra.run.dir=s"]) == 0
    assert np.array_equal(shown[0].numpy(), np.load("s/samples.npy")[::10])
    assert "pictures of 10 of them" in capsys.readouterr().out


STOPS = [(KeyboardInterrupt, 130), (JobError("the solver gave up"), 1), (OSError(28, "No space left on device"), 1)]


@pytest.mark.parametrize(("stop", "status"), STOPS, ids=["interrupt", "solver", "disk"])
def test_nothing_is_left_of_samples_that_were_not_all_drawn(stop, status, runs, blank_pictures, monkeypatch, capsys):
    sample = ContinuousFlow.sample

    def stopping(self: ContinuousFlow, n: int, *, start: int = 0, **how: Any) -> Any:
        if start >= 56:
            raise stop
        return sample(self, n, start=start, **how)

    monkeypatch.setattr(streams, "NUMBERS", 60)
    monkeypatch.setattr(ContinuousFlow, "sample", stopping)
    line = ["sample", "--ckpt", str(runs / "plane"), "n=100", "batch_size=7", "hydra.run.dir=s", "--out", "x.csv"]
    assert main(line) == status
    assert capsys.readouterr().err.count("\n") == 1
    assert not [file for file in Path().rglob("*") if file.suffix in (".npy", ".csv", ".png")]


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from flowcli import streams

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
parts = [torch.randn(1000, 2, dtype=torch.float64)] * 100


def write(file):
    if file.suffix != ".npy":
        return streams.write_table(file, ["a", "b"], parts)
    with streams.growing(file, (100_000, 2)) as append:
        for part in parts:
            append(part)


for name in sys.argv[1:]:
    try:
        write(Path(name))
    except OSError as error:
        print(error.filename, error.errno)
"""


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    old = [tmp_path / name for name in ("x.csv", "x.npy", "x.parquet")]
    for file in old:
        file.write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL, *map(str, old)], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.splitlines() == [f"{file} {errno.EFBIG}" for file in old]
    assert sorted(tmp_path.iterdir()) == old and {file.read_text() for file in old} == {"old"}


def test_more_than_the_disk_holds_is_refused_before_a_sample_is_drawn(runs, monkeypatch, capsys):
    monkeypatch.setattr(ContinuousFlow, "sample", lambda *args, **how: pytest.fail("drawn"))
    assert main(["sample", "--ckpt", str(runs / "plane"), "n=1000000000000", "hydra.run.dir=s"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "n=1000000000000" in told and "GiB of disk" in told
    assert not list(Path("s").glob(".*.tmp*")) and not Path("s/samples.npy").exists()
    with pytest.raises(UserError, match="n=5"):
        storage.require_room("n=5", 1 << 70, Path())


def test_what_counts_as_memory_is_a_block(runs, monkeypatch, capsys):
    """Ten million samples of ten columns take 800 MB."""
    monkeypatch.setattr("flowcli.tasks.sample.run", lambda config, folder: None)
    monkeypatch.setattr(memory, "there", lambda: 200 * MIB)
    line = ["sample", "--ckpt", str(runs / "wide"), "n=10000000"]
    assert main(line) == 0
    assert main([*line, "batch_size=10000000"]) == 2
    assert "batch_size=10000000" in capsys.readouterr().err


# ---------------------------------------------------------------- tables
def test_an_npy_file_is_mapped_and_not_changed(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 2))
    np.save(tmp_path / "x.npy", values)
    before = (tmp_path / "x.npy").read_bytes()
    found = files.read_array(tmp_path / "x.npy")
    found[0] = 7.0
    assert np.array_equal(found[1:], values[1:]) and (tmp_path / "x.npy").read_bytes() == before
    large = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float64, (1 << 20, 1 << 10))  # 8 GiB, all holes
    large[1000, 3] = 1.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = files.read_array(tmp_path / "large.npy")
    assert found[:2000].sum() == 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000, "it was read"


@pytest.mark.parametrize("ending", ["npy", "npz", "csv", "parquet"])
def test_a_likelihood_is_the_same_of_every_file(ending, runs, monkeypatch, capsys):
    rows = np.random.default_rng(1).normal(size=(90, 10))
    table, file = pl.DataFrame(rows, schema=[f"c{i}" for i in range(10)]), f"x.{ending}"
    writes: dict[str, Callable[[], Any]] = {
        "npy": lambda: np.save(file, rows),
        "npz": lambda: np.savez(file, rows=rows),
        "csv": lambda: table.write_csv(file),
        "parquet": lambda: table.write_parquet(file),
    }
    writes[ending]()
    monkeypatch.setattr(plots, "likelihood", lambda *args, **how: None)
    line = ["likelihood", "--ckpt", str(runs / "wide"), "batch_size=7", "check_rows=0", "hydra.run.dir=l"]
    assert main([*line, f"input={file}"]) == 0
    flow = flowcli.load(runs / "wide")
    with torch.no_grad():
        expected = torch.cat([flow.log_prob(part).value for part in torch.from_numpy(rows).split(7)])
    assert np.array_equal(np.load("l/log_prob.npy"), expected.numpy())
    table = pl.read_csv("l/log_prob.csv")
    assert table["row"].to_list() == list(range(90)) and np.array_equal(table["log_prob"].to_numpy(), expected.numpy())


@pytest.mark.parametrize("ending", ["npy", "csv"])
def test_a_gap_in_a_later_block_is_found(ending, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "ROWS_AT_ONCE", 10)
    rows = np.random.default_rng(1).normal(size=(90, 2))
    rows[37, 1] = rows[51, 0] = np.nan
    file = tmp_path / f"x.{ending}"
    np.save(file, rows) if ending == "npy" else pl.DataFrame(rows, schema=["a", "b"]).write_csv(file)
    with pytest.raises(UserError, match="row 38"):
        files.read_events(file, None, (2,), header="auto", delimiter="auto")
    found = files.read_events(file, None, (2,), header="auto", delimiter="auto", incomplete=True)
    assert np.array_equal(found.numpy(), rows, equal_nan=True)


def test_more_rows_than_memory_holds_log_densities_are_refused(runs, monkeypatch, capsys):
    rows = 10_000_000
    np.lib.format.open_memmap("x.npy", "w+", np.float64, (rows, 10))
    monkeypatch.setattr(memory, "there", lambda: 32 * rows)
    assert main(["likelihood", "--ckpt", str(runs / "wide"), "input=x.npy"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "x.npy" in told and "10,000,000 rows" in told and not Path("outputs").exists()


# ---------------------------------------------------------------- several processes, and the whole thing
@pytest.mark.slow
def test_blocks_of_two_processes_are_those_of_one(runs, servers, tmp_path):
    line = ["sample", "--ckpt", str(runs / "plane"), "n=1300000", "batch_size=50000", "solver=euler", "solver.steps=2"]
    alone = servers[0].run([*line, "hydra.run.dir=one", "--out", "one.csv"], tmp_path)
    both = together(servers, [*line, "hydra.run.dir=two", "--out", "two.csv"], tmp_path)
    assert [alone["status"], *(each["status"] for each in both)] == [0, 0, 0], both
    for one, two in (("one.csv", "two.csv"), ("one/samples.npy", "two/samples.npy")):
        assert (tmp_path / one).read_bytes() == (tmp_path / two).read_bytes()


def peak(*line: str) -> int:
    """Most memory, in MiB, that a process of its own held while it ran this command line."""
    code = "import resource, sys; from flowcli.cli import main; status = main(sys.argv[1:]); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) // 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(runs):
    quick = ["sample", "--ckpt", str(runs / "wide"), "solver=euler", "solver.steps=1", "--out", "x.csv"]
    few, many = (peak(*quick, f"n={n}") for n in (10_000, 2_000_000))  # 160 MB
    assert many < 2000 and many - few < 130


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "most_more"), [("npy", 250), ("parquet", 600), ("csv", 1100)])
def test_a_million_rows_are_scored_within_two_gigabytes(ending, most_more, runs):
    """most_more: MiB that the rows may take beside what a thousand take; those of a mapped file count, too."""
    rows = np.random.default_rng(1).normal(size=(1_000_000, 10))
    for name, part in (("few", rows[:1000]), ("many", rows)):
        table = pl.DataFrame(part, schema=[f"c{i}" for i in range(10)])
        if ending == "npy":
            np.save(f"{name}.npy", part)
        else:
            table.write_csv(f"{name}.csv") if ending == "csv" else table.write_parquet(f"{name}.parquet")
    quick = ["likelihood", "--ckpt", str(runs / "wide"), "check_rows=0", "solver=euler", "solver.steps=1"]
    few, many = (peak(*quick, "divergence=hutchinson", f"input={name}.{ending}") for name in ("few", "many"))
    assert many < 2000 and many - few < most_more
