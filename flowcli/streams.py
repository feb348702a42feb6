"""Rows that are more than memory should hold: made, written and looked at a block at a time."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from flowcli import processes
from flowcli.storage import replacing

NUMBERS = 1 << 20
"""Numbers of a block: 8 MiB in double precision."""


# ---------------------------------------------------------------- blocks
def block_rows(batch_size: int, event_shape: Sequence[int]) -> int:
    """Rows of a block: whole batches, equally many for each process and at least one; about NUMBERS numbers."""
    least = batch_size * processes.count()
    return least * max(1, NUMBERS // (least * math.prod(event_shape)))


def blocks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """First row and end of each block of so many rows."""
    return ((first, min(first + size, rows)) for first in range(0, rows, size))


# ---------------------------------------------------------------- what is known of them all
class Thinned:
    """At most `most` of so many rows, at even steps; the rows come in order, in blocks."""

    def __init__(self, rows: int, most: int) -> None:
        """Take how many rows will come, and how many are kept."""
        self._wanted = np.linspace(0, rows - 1, min(rows, most)).astype(np.int64)
        self._seen, self._kept = 0, list[Tensor]()

    def see(self, block: Tensor) -> None:
        """Keep what is wanted of the next rows (B, ...)."""
        low, high = np.searchsorted(self._wanted, (self._seen, self._seen + len(block)))
        self._kept.append(block[torch.from_numpy(self._wanted[low:high] - self._seen)])
        self._seen += len(block)

    @property
    def kept(self) -> Tensor:
        """The rows (M, ...), in order."""
        return torch.cat(self._kept)


class Deviations:
    """Standard deviations of the columns of rows that come in blocks, in double precision (Chan et al., 1979)."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._rows, self._mean, self._squares = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def see(self, block: Tensor) -> None:
        """Take the next rows (B, D)."""
        block, rows = block.double(), self._rows + len(block)
        mean = block.mean(0)
        shift, share = mean - self._mean, len(block) / rows
        self._squares = self._squares + (block - mean).square().sum(0) + shift.square() * self._rows * share
        self._mean, self._rows = self._mean + shift * share, rows

    @property
    def value(self) -> Tensor:
        """The deviations (D,); NaN of a single row."""
        return (self._squares / (self._rows - 1)).sqrt() if self._rows > 1 else self._squares * math.nan


# ---------------------------------------------------------------- files
@contextmanager
def growing(file: Path, shape: Sequence[int]) -> Iterator[Callable[[Tensor], None]]:
    """An NPY file of this shape (N, ...), float64, that takes blocks of rows in order and appears once it is whole.

    Of several processes the first one alone writes.

    Raises:
        OSError: with the file's name; the file is what it was.
    """
    if not processes.leads():
        yield lambda block: None
        return
    with replacing(file) as temporary, temporary.open("wb") as grown:
        header = {"descr": "<f8", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(grown, header)

        def append(block: Tensor) -> None:
            grown.write(np.ascontiguousarray(block.numpy(), dtype="<f8").data)

        yield append


def read_blocks(file: Path) -> Iterator[Tensor]:
    """The rows of a file that `growing` wrote, in order."""
    with file.open("rb") as whole:
        np.lib.format.read_magic(whole)
        (rows, *event_shape), _, _ = np.lib.format.read_array_header_1_0(whole)
        width = math.prod(event_shape)
        for first, end in blocks(rows, max(1, NUMBERS // width)):
            block = np.fromfile(whole, "<f8", (end - first) * width)
            yield torch.from_numpy(block).reshape(end - first, *event_shape)


def write_table(file: Path, names: Sequence[str], parts: Iterable[Tensor], numbers: Tensor | None = None) -> None:
    """Write rows, which come in parts (B, ...), as a table of named columns, behind row numbers (N,).

    file: its ending is .csv or .parquet.

    Raises:
        OSError: with the file's name; the file is what it was.
    """
    with replacing(file) as temporary:
        (_write_csv if file.suffix == ".csv" else _write_parquet)(temporary, _tables(names, parts, numbers))


def _tables(names: Sequence[str], parts: Iterable[Tensor], numbers: Tensor | None) -> Iterator[pl.DataFrame]:
    first = 0
    for part in parts:
        flat, end = part.flatten(1).numpy(), first + len(part)
        front = {} if numbers is None else {"row": numbers[first:end].numpy()}
        yield pl.DataFrame(front | {name: flat[:, i] for i, name in enumerate(names)})
        first = end


def _write_csv(file: Path, tables: Iterable[pl.DataFrame]) -> None:
    with file.open("wb") as grown:
        for number, table in enumerate(tables):
            text = io.BytesIO()
            table.write_csv(text, include_header=number == 0)
            grown.write(text.getbuffer())


def _write_parquet(file: Path, tables: Iterable[pl.DataFrame]) -> None:
    """By pyarrow, whose errors of the disk are the operating system's."""
    import pyarrow.parquet  # here, because it is heavy and only this function needs it

    parts = (table.to_arrow() for table in tables)
    first = next(parts)
    with pyarrow.parquet.ParquetWriter(file, first.schema, compression="zstd") as grown:
        grown.write_table(first)
        for part in parts:
            grown.write_table(part)
