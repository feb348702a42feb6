"""Tables and arrays in ordinary files: CSV and TSV (also .gz), Parquet, NPY, NPZ.

Whatever is wrong with a file is a `UserError` of one line that names the file and, where there is one, the cell.
Nothing is unpickled, and no array is allocated before the file has been seen to be as long as its header says.
"""

import csv
import gzip
import io
import re
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from flowcli import memory
from flowcli.errors import UserError

TEXT = {".csv": None, ".tsv": "\t"}
"""Endings of text tables and the delimiter that they imply; .gz may follow."""
ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".npy", ".npz")
MISSING = ("", "NA", "NaN", "nan", "null", "None")
"""Cells that count as missing."""
TEXT_COPIES, ARRAY_COPIES = 4, 2
"""How many times the bytes of a text, or of an array, are in memory at once, at least, while it is read."""
ROW_BYTES = 64
"""What is held of a row of a file that is mapped: its number, what is found out about it, and copies of both."""
ROWS_AT_ONCE = 1 << 16
BOMB_SIZE, BOMB_RATIO = 1 << 28, 200
"""A file that unpacks to more bytes than this, and to more than so many times its own, holds no measurements."""
_HEADER_ERRORS = (SyntaxError, tokenize.TokenError)  # numpy parses the header of an NPY file as Python
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class TableFile:
    """A table that was read but whose cells are not numbers yet.

    Attributes:
        path: for messages.
        names: of the columns, or None where the file has no header.
        frame: the cells: text in a CSV, else whatever the file holds.
        lines: the file line (from 1) of every data row of a text file, else None.
    """

    path: Path
    names: tuple[str, ...] | None
    frame: pl.DataFrame
    lines: Sequence[int] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns; x0, x1, ... without a header."""
        return self.names or tuple(f"x{index}" for index in range(self.frame.width))

    def cell(self, row: int, column: int) -> str:
        """Where a cell is, in words; row and column count from 0 here and rows from 1 in the words."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"row {row + 1}{line}, column {self.labels[column]!r}"

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        """The columns as float64 (N, D), NaN where a cell is missing.

        Raises:
            UserError: naming the first cell, row by row, that is not a number.
        """
        parsed = [self._parse(column) for column in columns]
        bad = [(row, column) for (_, row), column in zip(parsed, columns, strict=True) if row is not None]
        if bad:
            row, column = min(bad)
            raise UserError(f"{self.path}: {self.cell(row, column)}: {self._quote(row, column)} is not a number")
        return np.stack([values for values, _ in parsed], 1)

    def numeric(self) -> list[str]:
        """Labels of the columns that hold nothing but numbers and missing cells."""
        return [label for column, label in enumerate(self.labels) if self._parse(column)[1] is None]

    def _parse(self, column: int) -> tuple[np.ndarray, int | None]:
        """Values (N,) of a column and the first row that is not a number, or None."""
        cells = self.frame.to_series(column)
        if cells.dtype == pl.String:
            cells = cells.fill_null("").str.strip_chars()
            missing = cells.is_in(MISSING)
            values = cells.cast(pl.Float64, strict=False)
            bad = (values.is_null() & ~missing).arg_true()
        elif cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null):
            values, bad = cells.cast(pl.Float64), pl.Series([], dtype=pl.UInt32)
        else:
            return np.full(len(cells), np.nan), 0
        return values.fill_null(float("nan")).to_numpy(), int(bad[0]) if len(bad) else None

    def _quote(self, row: int, column: int) -> str:
        value = str(self.frame.to_series(column)[row])
        return repr(value if len(value) <= 40 else value[:37] + "...")


def read_table(path: Path, *, header: str | bool, delimiter: str) -> TableFile:
    """Open a table of at least one row.

    Args:
        path: the file; its ending says what it is.
        header: of a text file: True, False or "auto" (the first row is a header if one of its cells is not a number).
        delimiter: of a text file: one character, or "auto".

    Raises:
        UserError: the file cannot be read as a table.
    """
    _check_file(path)
    ending = _ending(path)
    if ending in (".npy", ".npz"):
        array = read_array(path)
        if array.ndim > 2:
            raise UserError(f"{path}: a table needs an array of shape (rows, columns), this one is {array.shape}")
        memory.require(f"{path}: an array of {array.nbytes:,} bytes", ARRAY_COPIES * array.nbytes)
        frame, names, lines = pl.from_numpy(array.reshape(len(array), -1)), None, None
    elif ending == ".parquet":
        frame = _read_parquet(path)
        names, lines = tuple(frame.columns), None
    else:
        names, frame, lines = _read_text(path, header, delimiter)
    if frame.height == 0 or frame.width == 0:
        raise UserError(f"{path}: the table has no {'columns' if frame.width == 0 else 'rows'}")
    return TableFile(path, names, frame, lines)


def read_array(path: Path) -> np.ndarray:
    """The array of real numbers in an NPY or NPZ file, (N, ...), float64.

    An NPY file that holds such numbers, row by row, is mapped: its rows are read when they are used, and what is
    written into the array does not reach the file. Any other file is read whole. An NPZ file needs to hold one array,
    or one of 1 or 2 dimensions beside others.

    Raises:
        UserError: the file is damaged, holds objects or several candidates, or an array without rows.
    """
    _check_file(path)
    try:
        # "c" and not "r": torch takes no array that cannot be written
        array = _read_npz(path) if path.suffix.lower() == ".npz" else np.asarray(np.load(path, mmap_mode="c"))
    except UserError:
        raise
    except (ValueError, EOFError, OSError, KeyError, TypeError, OverflowError, *_HEADER_ERRORS) as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise UserError(f"{path}: holds Python objects, which are not opened; save an array of numbers") from error
        raise UserError(f"{path}: not a whole NPY or NPZ file ({_first_line(error)})") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: holds {array.dtype} values; real numbers are needed")
    if array.ndim == 0 or array.size == 0:
        raise UserError(f"{path}: an array of shape {array.shape} has no rows")
    if array.dtype == np.float64 and array.flags.c_contiguous:
        return array
    memory.require(f"{path}: {array.size:,} numbers", ARRAY_COPIES * 8 * array.size)
    return array.astype(np.float64, order="C")


def read_events(
    path: Path,
    columns: tuple[str, ...] | None,
    event_shape: tuple[int, ...],
    *,
    header: str | bool,
    delimiter: str,
    positions: Sequence[int] | None = None,
    incomplete: bool = False,
) -> Tensor:
    """Events (N, *event_shape) of a file, float64, every cell finite unless `incomplete` lets gaps through.

    positions: where the columns stand in a wider table that has no names.

    A table with a header is read by name if `columns` are given (their order in the file does not matter, others are
    ignored); any other table needs as many columns as an event has numbers. An NPY file may also hold an array of
    shape (N, *event_shape).

    Raises:
        UserError: other columns or another shape, a cell that is missing, infinite or not a number.
    """
    _check_file(path)
    width = int(np.prod(event_shape))
    if _ending(path) in (".npy", ".npz"):
        array = read_array(path)
        if array.ndim == 1 and width == 1:
            array = array[:, None]
        if positions is not None and array.ndim == 2 and max(positions) < array.shape[1] != width:
            array = array[:, list(positions)]
        if array.shape[1:] not in (event_shape, (width,)):
            raise UserError(f"{path}: holds an array of shape {array.shape}; {_shape_text(event_shape)} is needed")
        memory.require(f"{path}: {len(array):,} rows", ROW_BYTES * len(array))
        values = array.reshape(len(array), width)
        gap = None if incomplete else _first_gap(values)
        if gap is not None:
            row, column = gap
            index = ", ".join(str(int(i)) for i in np.unravel_index(column, event_shape))
            raise UserError(
                f"{path}: row {row + 1}, column ({index}) is {values[row, column]}; finite numbers are needed"
            )
    else:
        table = read_table(path, header=header, delimiter=delimiter)
        if table.names is None and positions is not None and max(positions) < table.frame.width != width:
            indices = list(positions)
        else:
            indices = _matching(table, columns, width)
        values = table.numbers(indices)
        gap = None if incomplete else _first_gap(values)
        if gap is not None:
            row, column = gap
            what = "missing" if np.isnan(values[row, column]) else "infinite"
            raise UserError(f"{path}: {table.cell(row, indices[column])} is {what}; finite numbers are needed")
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(-1, *event_shape)


def _first_gap(values: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the first value of a table (N, D) that is not finite."""
    for first in range(0, len(values), ROWS_AT_ONCE):
        bad = ~np.isfinite(values[first : first + ROWS_AT_ONCE])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return first + int(row), int(column)
    return None


def column_index(table: TableFile, column: str | int) -> int:
    """Position of a column given by its name or its number from 0.

    Raises:
        UserError: naming the columns there are.
    """
    if isinstance(column, int):
        if 0 <= column < table.frame.width:
            return column
        raise UserError(f"{table.path}: no column {column}; columns are numbered 0 to {table.frame.width - 1}")
    if table.names is None:
        raise UserError(
            f"{table.path}: has no header, so column {column!r} is unknown; give numbers 0 to {table.frame.width - 1}"
        )
    if column not in table.names:
        close = get_close_matches(column, table.names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{table.path}: no column {column!r}; {hint}it has {', '.join(table.names)}")
    return table.names.index(column)


def _matching(table: TableFile, columns: tuple[str, ...] | None, width: int) -> list[int]:
    if columns is not None and table.names is not None:
        lost = [column for column in columns if column not in table.names]
        if lost:
            raise UserError(
                f"{table.path}: lacks column {', '.join(map(repr, lost))}; needed are {', '.join(columns)}, "
                f"found {', '.join(table.names)}"
            )
        return [table.names.index(column) for column in columns]
    if table.frame.width != width:
        wanted = f" ({', '.join(columns)})" if columns is not None else ""
        raise UserError(f"{table.path}: has {table.frame.width} columns; {width} are needed{wanted}")
    return list(range(width))


def _shape_text(event_shape: tuple[int, ...]) -> str:
    return f"(rows, {', '.join(map(str, event_shape))})"


def _ending(path: Path) -> str:
    name = path.name.lower()
    ending = max((e for e in ENDINGS if name.endswith(e)), key=len, default=None)
    if ending is None:
        raise UserError(f"{path}: unknown kind of file; known endings are {', '.join(ENDINGS)}")
    return ending


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    if not path.is_file():
        raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'not an ordinary file'}, not a data file")
    if size == 0:
        raise UserError(f"{path}: the file is empty")


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# ---- text


def _read_text(
    path: Path, header: str | bool, delimiter: str
) -> tuple[tuple[str, ...] | None, pl.DataFrame, Sequence[int]]:
    """Names, cells as text, and the file line of every data row."""
    text = _text(path)
    separator = _separator(path, text, delimiter)
    lines = _check_widths(path, text, separator)
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()),
            has_header=False,
            infer_schema=False,
            empty_string_is_null=False,
            separator=separator,
            glob=False,
        )
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(
            f"{path}: cannot be read as a table ({_first_line(error)}); are its quotes balanced?"
        ) from error
    if frame.height != len(lines):
        raise UserError(f"{path}: cannot be read as a table; are its quotes balanced?")
    first = [(cell or "").strip() for cell in frame.row(0)]
    if header == "auto":
        header = any(cell not in MISSING and not _is_number(cell) for cell in first)
    if not header:
        return None, frame, lines
    repeated = sorted({name for name in first if first.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: its header has the name {repeated[0]!r} twice")
    return tuple(first), frame[1:], lines[1:]


def _text(path: Path) -> str:
    try:
        memory.require(f"{path}: a text of {path.stat().st_size:,} bytes", TEXT_COPIES * path.stat().st_size)
        data = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is damaged or cut short ({_first_line(error)})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)})") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory") from error
    if b"\0" in data:
        raise UserError(f"{path}: is a binary file (or UTF-16), not a table of text in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text; convert the file to UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return text


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file, a block at a time, so that a bomb is seen before it fills the memory."""
    blocks, size = [], 0
    with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
        while block := file.read(1 << 24):
            size += len(block)
            _refuse_bomb(path, packed.tell(), size)
            memory.require(f"{path}: a text of more than {size:,} bytes", TEXT_COPIES * size)
            blocks.append(block)
    return b"".join(blocks)


def _refuse_bomb(path: Path, packed: int, unpacked: int) -> None:
    if unpacked > BOMB_SIZE and unpacked > BOMB_RATIO * packed:
        raise UserError(f"{path}: {packed:,} of its bytes unpack to {unpacked:,} or more, as no table of numbers does")


def _separator(path: Path, text: str, delimiter: str) -> str:
    if delimiter != "auto":
        return delimiter
    implied = TEXT[Path(path.name.lower().removesuffix(".gz")).suffix]
    if implied is not None:
        return implied
    first = re.sub(r'"[^"]*"', "", text[: text.find("\n")] if "\n" in text else text)
    return max(_DELIMITERS, key=first.count)  # the earliest of equals, so a single column counts as comma-separated


def _check_widths(path: Path, text: str, separator: str) -> Sequence[int]:
    """The file line of every row; all rows must be as wide as the first."""
    if '"' in text:
        reader = csv.reader(io.StringIO(text), delimiter=separator)
        widths, lines, previous = [], [], 0
        try:
            for row in reader:
                widths.append(len(row))
                lines.append(previous + 1)
                previous = reader.line_num
        except csv.Error as error:
            raise UserError(f"{path}: cannot be read as a table ({error}); are its quotes balanced?") from error
        counts: np.ndarray = np.array(widths)
        counts[counts == 0] = 1
        numbers: Sequence[int] = lines
    else:
        rows = pl.Series(text.split("\n"))
        counts = rows.str.count_matches(separator, literal=True).to_numpy() + 1
        numbers = range(1, len(rows) + 1)
    uneven = np.flatnonzero(counts != counts[0])
    if len(uneven):
        row = int(uneven[0])
        raise UserError(
            f"{path}: line {numbers[row]} has {_cells(int(counts[row]))}, the first line has {_cells(int(counts[0]))} "
            f"(delimiter {separator!r})"
        )
    return numbers


def _cells(count: int) -> str:
    return f"{count} cell" + ("s" if count != 1 else "")


def _is_number(cell: str) -> bool:
    return pl.Series([cell]).cast(pl.Float64, strict=False)[0] is not None


# ---- Parquet, NPZ


def _read_parquet(path: Path) -> pl.DataFrame:
    import pyarrow  # here, because it is heavy and only this function needs it
    import pyarrow.parquet

    # pyarrow and not polars: on a damaged file polars may panic, past every handler and onto stderr.
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_parquet_size(path, file.metadata)
            table = file.read()
        table.validate(full=True)
        # Names are decoded here, and metadata left behind, because bytes that are not UTF-8 would make polars panic.
        frame = pl.from_arrow(pyarrow.table(table.columns, names=table.column_names))
    except UserError:
        raise
    except (pyarrow.ArrowException, pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({_first_line(error)})") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory") from error
    assert isinstance(frame, pl.DataFrame)
    return frame


def _check_parquet_size(path: Path, metadata: Any) -> None:
    cells = metadata.num_rows * metadata.num_columns
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    size = max(8 * cells, sum(groups))
    _refuse_bomb(path, path.stat().st_size, size)
    memory.require(f"{path}: {metadata.num_rows:,} rows of {metadata.num_columns:,} columns", ARRAY_COPIES * size)


def _read_npz(path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {info.filename: _npy_shape(archive, info) for info in archive.infolist()}
            flat = [name for name, shape in shapes.items() if len(shape) in (1, 2)]
            chosen = flat if len(flat) == 1 else list(shapes)
            if len(chosen) != 1:
                found = ", ".join(f"{name.removesuffix('.npy')} {shape}" for name, shape in shapes.items()) or "none"
                raise UserError(f"{path}: one array of 1 or 2 dimensions is needed, it holds {found}; save one as NPY")
            entry = archive.getinfo(chosen[0])
            _refuse_bomb(path, min(entry.compress_size, path.stat().st_size), entry.file_size)
            memory.require(f"{path}: an array of {entry.file_size:,} bytes", ARRAY_COPIES * entry.file_size)
            with archive.open(entry) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a whole NPZ file ({_first_line(error)})") from error


def _npy_shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """Shape of a member, once its header has been held against the member's size."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        if dtype.hasobject:
            raise ValueError("Python objects")
        if int(np.prod(shape, dtype=object)) * dtype.itemsize != info.file_size - member.tell():
            raise ValueError(f"{info.filename} is not as long as its header says")
    return shape
