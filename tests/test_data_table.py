"""Tables in files: what is read, what is refused and in which words."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from flowcli.data.files import read_array, read_table
from flowcli.data.table import Table, rounding_width
from flowcli.dataset import SPLITS, Dataset
from flowcli.errors import UserError

CONF = Path(__file__).parent.parent / "conf" / "data" / "table.yaml"


def table(path: Path | str | None, /, **changes: Any) -> Table:
    """The source that data=table data.path=PATH builds."""
    config = yaml.safe_load(CONF.read_text()) | {"path": None if path is None else str(path)} | changes
    assert config.pop("_target_") == "flowcli.data.table.Table"
    return Table(**config)


def refusal(path: Path, **changes: Any) -> str:
    """The one line that loading the table ends with."""
    with pytest.raises(UserError) as caught:
        table(path, **changes).load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def everything(dataset: Dataset) -> np.ndarray:
    """All rows, sorted."""
    rows = torch.cat([getattr(dataset, split) for split in SPLITS]).numpy()
    return rows[np.lexsort(rows.T[::-1])]


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 3)) * [1.0, 10.0, 100.0] + [0.0, 5.0, -3.0]


@pytest.fixture
def csv(tmp_path: Path, values: np.ndarray) -> Path:
    path = tmp_path / "numbers.csv"
    pl.DataFrame(values, schema=["a", "b", "c"]).write_csv(path)
    return path


# ---- what is read


def write(path: Path, values: np.ndarray) -> None:
    frame = pl.DataFrame(values, schema=["a", "b", "c"])
    kind = path.name.partition(".")[2]
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez_compressed(path, values=values, image=np.zeros((2, 2, 2)))
    elif kind == "parquet":
        frame.write_parquet(path)
    else:
        text = frame.write_csv(separator="\t" if kind.startswith("tsv") else ",").encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "tsv.gz", "parquet", "npy", "npz"])
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path, values: np.ndarray) -> None:
    path = tmp_path / f"numbers.{kind}"
    write(path, values)
    dataset = table(path).load()
    assert np.array_equal(everything(dataset), values[np.lexsort(values.T[::-1])])
    assert [len(getattr(dataset, split)) for split in SPLITS] == [48, 6, 6]
    assert dataset.columns == (("x0", "x1", "x2") if kind in ("npy", "npz") else ("a", "b", "c"))
    assert dataset.train.dtype == torch.float64 and dataset.bin_width is None and not dataset.discrete
    assert torch.equal(dataset.points("test"), dataset.test)
    source = json.loads(json.dumps(dataset.source))
    assert source["rows"] == 60 and source["dropped_rows"] == 0 and len(source["sha256"]) == 64


@pytest.mark.parametrize(
    "text",
    [
        "a;b\n1;2\n3;4\n",
        "a|b\r\n1|2\r\n3|4\r\n",
        "\ufeffa,b\r1,2\r3,4",
        'a,b\n"1","2"\n" 3 ",4e0\n\n',
        "a\tb\n+1.0\t2.\n3\t4\n",
    ],
)
def test_dialects(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dialect.csv"
    path.write_text(text, newline="")
    file = read_table(path, header="auto", delimiter="auto")
    assert file.names == ("a", "b") and file.numbers([0, 1]).tolist() == [[1, 2], [3, 4]]


def test_header(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("1,2\n3,4\n")
    assert read_table(path, header="auto", delimiter="auto").names is None
    assert read_table(path, header="auto", delimiter="auto").labels == ("x0", "x1")
    assert read_table(path, header=True, delimiter="auto").names == ("1", "2")
    path.write_text("NA,2\n3,4\n")  # a missing cell does not make a header
    assert read_table(path, header="auto", delimiter="auto").frame.height == 2
    path.write_text("a,2\n3,4\n")
    with pytest.raises(UserError, match=r"row 1 \(line 1\), column 'x0': 'a' is not a number"):
        read_table(path, header=False, delimiter="auto").numbers([0, 1])


def test_columns_by_name_and_number(csv: Path, values: np.ndarray) -> None:
    by_name, by_number = table(csv, columns=["c", "a"]).load(), table(csv, columns=[2, 0]).load()
    assert by_name.columns == by_number.columns == ("c", "a")
    assert torch.equal(by_name.train, by_number.train)
    assert np.array_equal(np.sort(everything(by_name)[:, 1]), np.sort(values[:, 0]))


def test_split_depends_on_the_seed_alone(csv: Path) -> None:
    first = table(csv).load()
    assert torch.equal(first.train, table(csv, standardize=False, dequantize=0.5).load().train)
    assert not torch.equal(first.train, table(csv, seed=1).load().train)
    assert [len(getattr(table(csv, validation=0.2, test=0.5).load(), split)) for split in SPLITS] == [18, 12, 30]


def test_standardisation_is_fitted_on_the_dequantised_training_split(csv: Path) -> None:
    for dataset in (table(csv).load(), table(csv, dequantize=[3.0, 0, 50]).load()):
        z = dataset.transform(dataset.points("train"))
        torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double())
        assert not torch.allclose(dataset.transform(dataset.test).mean(0), torch.zeros(3).double(), atol=1e-6)
    assert float(table(csv, standardize=False).load().transform.log_det) == 0


def test_missing_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    rows = [f"{i},{i * i}" for i in range(40)]
    rows[3], rows[7], rows[8], rows[20], rows[30] = "NA,1", "3,", "nan,null", "inf,2", "None,NaN"
    path.write_text("a,b\n" + "\n".join(rows) + "\n")
    dataset = table(path, missing="drop").load()
    assert dataset.source["rows"] == 35 and dataset.source["dropped_rows"] == 5
    assert everything(dataset)[:, 0].tolist() == [i for i in range(40) if i not in (3, 7, 8, 20, 30)]
    message = refusal(path)
    assert "row 4 (line 5), column 'a' is missing" in message and "5 of 40 rows" in message
    assert "data.missing=drop" in message


# ---- dequantisation


def test_widths_of_rounded_columns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    assert rounding_width(np.rint(10 * x)) == 1
    assert rounding_width(np.rint(x * 100) / 100) == 0.01
    assert rounding_width(np.rint(10 + 4 * x) * 1.15078) == 1.15078  # whole knots in miles an hour
    single = (np.rint(x * 10 + 10_000) / 10).astype(np.float32).astype(float)
    assert rounding_width(single) == pytest.approx(0.1, rel=1e-3)
    assert rounding_width(x) == 0
    assert rounding_width((x > 0) * 2.0) == 2
    assert rounding_width(1.6e9 + 3600 * np.rint(100 * x)) == 3600


def test_widths_are_not_upset_by_a_few_odd_values() -> None:
    x = np.rint(10 * np.random.default_rng(0).normal(size=20_000))
    x[:5] = [1048.36058, 3.5, 4.25, 0.1, -2.7]  # an outlier, other instruments
    x[5:500] = x.mean()  # gaps that were filled in
    assert rounding_width(x) == 1


def test_width_of_a_unit_that_was_rounded_twice() -> None:
    fahrenheit = np.rint(55 + 18 * np.random.default_rng(0).normal(size=20_000))
    celsius = np.rint((fahrenheit - 32) / 1.8 * 10) / 10
    assert rounding_width(celsius * 1.8 + 32) in (0.9, 1.08)


def test_columns_without_regular_rounding_get_none() -> None:
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(5000) < 0.9, 0, rng.gamma(2, size=5000))
    assert rounding_width(rain) == 0
    assert rounding_width(np.log(rng.poisson(30, size=5000) + 1.0)) == 0


def test_dequantize_takes_its_four_forms(tmp_path: Path) -> None:
    path = tmp_path / "rounded.csv"
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"a": rng.poisson(9, 500), "b": rng.normal(size=500), "c": rng.poisson(9, 500) / 10})
    frame.write_csv(path)
    widths = {
        False: None,
        True: [1.0, 0.0, 0.1],
        0.5: [0.5, 0.5, 0.5],
        (1, 0, 0.2): [1.0, 0.0, 0.2],
    }
    for dequantize, expected in widths.items():
        dataset = table(path, dequantize=list(dequantize) if isinstance(dequantize, tuple) else dequantize).load()
        assert (dataset.bin_width if expected is None else dataset.bin_width.tolist()) == expected  # type: ignore
        assert not dataset.discrete
    dataset = table(path, dequantize=True).load()
    assert dataset.source["bin_width"] == {"a": 1.0, "b": 0.0, "c": 0.1} and dataset.source["not_rounded"] == ["b"]
    noise = dataset.points("train") - dataset.train
    assert float(noise[:, 0].min()) >= 0 and 0.9 < float(noise[:, 0].max()) < 1 and not noise[:, 1].any()
    assert table(path, dequantize=True, columns=["a"]).load().discrete
    assert "must have one width a column: 3 (a, b, c), got 2" in refusal(path, dequantize=[1, 1])


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,abc\n", "row 2 (line 3), column 'b': 'abc' is not a number"),
        ("a,b\nx,2\n3,y\n", "row 1 (line 2), column 'a': 'x' is not a number"),
        ("a,b\n1,2\n3\n4,5\n", "line 3 has 1 cell, the first line has 2 cells (delimiter ',')"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells, the first line has 2 cells"),
        ("a,b\n1,2\n\n4,5\n", "line 3 has 1 cell, the first line has 2 cells"),
        ('a,b\n"1\n",2\n3\n', "line 4 has 1 cell"),
        ("a,a\n1,2\n", "the name 'a' twice"),
        ("a,b\n", "the table has no rows"),
        ("\n\n", "the file is empty"),
        ("a,b\n1,2\n", "of its complete rows, 1, the validation split would get 0 and needs 2"),
        ('a,b\n1,"2\n3,4\n', "are its quotes balanced?"),
        (
            "a,b\n" + "".join(f"1,{i}\n" for i in range(30)),
            "column 'a' is constant (1); leave it out with data.columns",
        ),
        ("a,b\n1,inf\n2,-inf\n", "row 1 (line 2), column 'b' is infinite; 2 of 2 rows"),
    ],
)
def test_bad_text_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert message in refusal(path)
    assert refusal(path).startswith(str(path))


def test_text_columns_are_left_to_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text("who,a,b\n" + "\n".join(f"p{i},{i},{i * i}" for i in range(30)))
    assert "'p0' is not a number; choose data.columns among the numeric columns: a, b" in refusal(path)
    assert table(path, columns=["a", "b"]).load().columns == ("a", "b")
    pl.read_csv(path).with_columns(pl.lit("2020-01-01").str.to_date().alias("day")).write_parquet(
        tmp_path / "mixed.parquet"
    )
    assert "row 1, column 'day': '2020-01-01' is not a number" in refusal(tmp_path / "mixed.parquet", columns=["day"])


def test_unknown_columns_are_named(csv: Path, tmp_path: Path, values: np.ndarray) -> None:
    assert "no column 'bb'; did you mean 'b'? it has a, b, c" in refusal(csv, columns=["a", "bb"])
    assert "no column 3; columns are numbered 0 to 2" in refusal(csv, columns=[3])
    assert "data.columns names 'a' twice" in refusal(csv, columns=["a", 0])
    np.save(tmp_path / "x.npy", values)
    assert "has no header, so column 'a' is unknown; give numbers 0 to 2" in refusal(tmp_path / "x.npy", columns=["a"])


def test_damaged_files_are_one_line(tmp_path: Path, values: np.ndarray) -> None:
    for kind in ("csv.gz", "parquet", "npy", "npz"):
        path = tmp_path / f"whole.{kind}"
        write(path, np.tile(values, (50, 1)))
        whole = path.read_bytes()
        for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert str(path) in refusal(path)
        path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0" * 100)
        assert str(path) in refusal(path)


def test_mutated_files_never_end_in_a_traceback(tmp_path: Path, values: np.ndarray) -> None:
    rng = random.Random(0)
    for kind in ("csv", "csv.gz", "parquet", "npy", "npz"):
        path = tmp_path / f"mutated.{kind}"
        write(path, values)
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.randint(len(data) // 2, len(data))] if rng.random() < 0.3 else data)
            try:
                table(path).load()
            except UserError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("zeros.csv", b"a,b\n1,\0\n", "is a binary file"),
        ("wide.csv", "a,b\n1,2\n".encode("utf-16"), "is a binary file (or UTF-16)"),
        ("latin.csv", b"a,b\n1,2\n\xe9,3\n", "line 3 is not UTF-8 text"),
        ("numbers.xlsx", b"PK", "known endings are .csv"),
        ("empty.csv", b"", "the file is empty"),
        ("empty.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
    ],
)
def test_other_bytes_are_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert message in refusal(tmp_path / name)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "absent.csv: No such file or directory" in refusal(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.csv")


def test_arrays_that_are_no_table_are_refused(tmp_path: Path) -> None:
    arrays = {
        "holds Python objects": np.array([{}, {}], dtype=object),
        "a table needs an array of shape (rows, columns), this one is (2, 2, 2)": np.zeros((2, 2, 2)),
        "holds <U1 values": np.array(["a", "b"]),
        "holds complex128 values": np.zeros((2, 2), dtype=complex),
        "has no rows": np.zeros((0, 2)),
        "of shape () has no rows": np.array(1.0),
    }
    for message, array in arrays.items():
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        assert message in refusal(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.zeros((2, 2)))
    assert "it holds a (3,), b (2, 2); save one as NPY" in refusal(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    assert "Python objects" in refusal(tmp_path / "x.npz")
    np.save(tmp_path / "line.npy", np.arange(30.0))
    assert table(tmp_path / "line.npy").load().event_shape == (1,)


def test_a_header_that_claims_more_than_the_file_allocates_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((60, 3)))
    data = (tmp_path / "x.npy").read_bytes()
    claim = data.replace(b"(60, 3), }" + b" " * 9, b"(99999999999, 3), }")
    assert claim != data and len(claim) == len(data)
    (tmp_path / "x.npy").write_bytes(claim)
    assert "not a whole NPY or NPZ file" in refusal(tmp_path / "x.npy")
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("values.npy", claim)
    assert "is not as long as its header says" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, r"data\.path must name a file"),
        ({"columns": "a"}, r"data\.columns must be null or a list"),
        ({"columns": []}, r"data\.columns must be null or a list"),
        ({"columns": [1.5]}, r"data\.columns must be null or a list"),
        ({"header": "maybe"}, r"data\.header must be one of auto, true, false"),
        ({"delimiter": "::"}, r"data\.delimiter must be auto, tab or one character"),
        ({"delimiter": '"'}, r"data\.delimiter cannot be"),
        ({"missing": "ignore"}, r"data\.missing must be one of refuse, drop"),
        ({"dequantize": "yes"}, r"data\.dequantize must be true, false, a width, or a list"),
        ({"dequantize": -1}, r"data\.dequantize must be"),
        ({"dequantize": [1, -1]}, r"data\.dequantize\[1\] must be"),
        ({"standardize": 1}, r"data\.standardize must be true or false"),
        ({"validation": 0}, r"data\.validation must be"),
        ({"validation": 0.5, "test": 0.5}, r"together they must be below 1"),
        ({"seed": "a"}, r"data\.seed must be"),
    ],
)
def test_bad_parameters_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table("x.csv", **changes)


# ---- other files with the same columns


def test_read_finds_columns_by_name(csv: Path, tmp_path: Path) -> None:
    source, other = table(csv), tmp_path / "other.csv"
    other.write_text("c,extra,b,a\n3,text,2,1\n6,text,5,4\n")
    assert source.read(other, ("a", "b", "c"), (3,)).tolist() == [[1, 2, 3], [4, 5, 6]]
    other.write_text("a,c\n1,2\n")
    with pytest.raises(UserError, match=r"lacks column 'b'; needed are a, b, c, found a, c"):
        source.read(other, ("a", "b", "c"), (3,))
    other.write_text("1,2,3\n")
    assert source.read(other, ("a", "b", "c"), (3,)).tolist() == [[1, 2, 3]]
    other.write_text("1,2\n3,4\n")
    with pytest.raises(UserError, match=r"has 2 columns; 3 are needed \(a, b, c\)"):
        source.read(other, ("a", "b", "c"), (3,))
    other.write_text("a,b,c\n1,2,3\n4,NA,6\n")
    with pytest.raises(UserError, match=r"row 2 \(line 3\), column 'b' is missing; finite numbers are needed"):
        source.read(other, ("a", "b", "c"), (3,))


def test_read_takes_arrays_by_count(csv: Path, tmp_path: Path) -> None:
    source, path = table(csv), tmp_path / "rows.npy"
    np.save(path, np.arange(6, dtype=np.int32).reshape(2, 3))
    assert source.read(path, ("a", "b", "c"), (3,)).tolist() == [[0, 1, 2], [3, 4, 5]]
    np.save(path, np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"shape \(2, 4\); \(rows, 3\) is needed"):
        source.read(path, ("a", "b", "c"), (3,))
    np.save(path, np.array([[0, 1, np.inf]]))
    with pytest.raises(UserError, match=r"row 1, column \(2\) is inf"):
        source.read(path, ("a", "b", "c"), (3,))
    np.save(path, np.arange(4.0))
    assert source.read(path, None, (1,)).shape == (4, 1)


def test_read_array_keeps_every_axis(tmp_path: Path) -> None:
    images = np.asfortranarray(np.arange(24, dtype=">i2").reshape(2, 3, 4))
    np.save(tmp_path / "x.npy", images)
    assert np.array_equal(read_array(tmp_path / "x.npy"), images) and read_array(tmp_path / "x.npy").dtype == float
