"""A table of numbers in a file of the user's."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowcli.data.files import TableFile, column_index, read_events, read_table
from flowcli.data.units import to_model_units
from flowcli.dataset import SPLITS, Dataset
from flowcli.errors import UserError, boolean, choice, integer, number
from flowcli.randomness import generator
from flowcli.transforms import Affine


@dataclass(kw_only=True)
class Table:
    """Rows of a CSV, TSV (also .gz), Parquet, NPY or NPZ file, shuffled into three splits.

    Attributes:
        path: the file.
        columns: names, or numbers from 0, in the order wanted; None takes every column.
        header: of a text file: True, False, or "auto" (a first row with a cell that is not a number is a header).
        delimiter: of a text file: one character, "tab", or "auto".
        missing: "refuse" a missing or infinite cell, or "drop" its row (the count goes to `source`).
        dequantize: False; True (widths by `rounding_width`); one width for all columns; or one a column (0 = leave it).
        standardize: mean 0 and standard deviation 1 a column, fitted on the dequantised training split alone.
        validation, test: fractions of the rows, above 0 and together below 1.
        seed: owns the shuffle and the dequantisation.
    """

    path: str | None
    columns: Sequence[str | int] | None
    header: str | bool
    delimiter: str
    missing: str
    dequantize: bool | float | Sequence[float]
    standardize: bool
    validation: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        """Check every parameter; the file is opened by `load`.

        Raises:
            UserError: naming the parameter and what is legal.
        """
        if not isinstance(self.path, str) or not self.path:
            raise UserError(f"data.path must name a file of numbers: data.path=FILE, got {self.path!r}")
        if self.columns is not None:
            self.columns = _columns(self.columns)
        if not isinstance(self.header, bool):
            choice("data.header", self.header, ("auto", "true", "false"))
        self.header = {"true": True, "false": False}.get(str(self.header).lower(), "auto")
        self.delimiter = _delimiter(self.delimiter)
        choice("data.missing", self.missing, ("refuse", "drop"))
        self.dequantize = _dequantize(self.dequantize)
        boolean("data.standardize", self.standardize)
        self.validation = number("data.validation", self.validation, above=0, below=1)
        self.test = number("data.test", self.test, above=0, below=1)
        if self.validation + self.test >= 1:
            raise UserError("data.validation and data.test are fractions of the rows; together they must be below 1")
        self.seed = integer("data.seed", self.seed, minimum=0)

    def load(self) -> Dataset:
        """Read the file, refuse or drop what is not a finite number, split and standardise.

        Raises:
            UserError: naming the file and the row, column or parameter.
        """
        assert self.path is not None
        path = Path(self.path).expanduser()
        file = read_table(path, header=self.header, delimiter=self.delimiter)
        indices = self._indices(file)
        names = tuple(file.labels[index] for index in indices)
        values, dropped = self._complete_rows(file, indices)
        splits = self._split(path, values)
        for column, name in enumerate(names):
            if values[:, column].min() == values[:, column].max():
                raise UserError(
                    f"{path}: column {name!r} is constant ({values[0, column]:g}); leave it out with data.columns"
                )
        widths = self._widths(values, names)
        dataset = Dataset(
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            seed=self.seed,
            transform=Affine.identity((len(names),)),
            columns=names,
            bin_width=torch.tensor(widths, dtype=torch.float64) if any(widths) else None,
            discrete=set(widths) == {1.0} and bool((values == np.rint(values)).all()),
            source={
                "kind": "table",
                "path": str(path.resolve()),
                "sha256": _sha256(path),
                "rows": len(values),
                "dropped_rows": dropped,
                "split_rows": {split: len(splits[split]) for split in SPLITS},
                "columns": list(names),
                "bin_width": dict(zip(names, widths, strict=True)) if self.dequantize is not False else None,
                "not_rounded": [
                    n for n, w in zip(names, widths, strict=True) if w == 0 and self.dequantize is not False
                ],
            },
        )
        shown = [f"column {name!r}" for name in names]
        train = dataset.points("train")
        return replace(dataset, transform=to_model_units(train, shown, standardize=self.standardize, source=str(path)))

    def read(self, path: Path, columns: tuple[str, ...] | None, event_shape: tuple[int, ...]) -> Tensor:
        """Rows (N, D) of another file with the same columns; with missing=drop the incomplete ones keep their gaps."""
        numbers = [column for column in self.columns or [] if isinstance(column, int)]
        return read_events(
            path,
            columns,
            event_shape,
            header=self.header,
            delimiter=self.delimiter,
            positions=numbers if self.columns and len(numbers) == len(self.columns) else None,
            incomplete=self.missing == "drop",
        )

    def _indices(self, file: TableFile) -> list[int]:
        if self.columns is not None:
            indices = [column_index(file, column) for column in self.columns]
            repeated = {file.labels[index] for index in indices if indices.count(index) > 1}
            if repeated:
                raise UserError(f"data.columns names {min(repeated)!r} twice")
            return indices
        indices = list(range(file.frame.width))
        numeric = file.numeric()
        if len(numeric) == len(indices):
            return indices
        try:
            file.numbers(indices)
        except UserError as error:
            advice = f"; choose data.columns among the numeric columns: {', '.join(numeric) or 'there are none'}"
            raise UserError(f"{error}{advice}") from error
        raise AssertionError("a column that is not numeric has a cell that is not a number")

    def _complete_rows(self, file: TableFile, indices: Sequence[int]) -> tuple[np.ndarray, int]:
        """Rows without a missing or infinite cell, and how many others there were."""
        values = file.numbers(indices)
        bad = ~np.isfinite(values)
        rows = np.flatnonzero(bad.any(1))
        if len(rows) == 0:
            return values, 0
        row = int(rows[0])
        column = int(np.flatnonzero(bad[row])[0])
        what = "missing" if np.isnan(values[row, column]) else "infinite"
        first = f"{file.path}: {file.cell(row, indices[column])} is {what}"
        if self.missing == "refuse":
            raise UserError(
                f"{first}; {len(rows)} of {len(values)} rows have such cells: "
                "data.missing=drop leaves them out, data.columns chooses other columns"
            )
        if len(rows) == len(values):
            raise UserError(f"{first}, and no row is complete: choose other columns with data.columns")
        return values[~bad.any(1)], len(rows)

    def _widths(self, values: np.ndarray, names: Sequence[str]) -> list[float]:
        if self.dequantize is False:
            return [0.0] * len(names)
        if self.dequantize is True:
            return [rounding_width(column) for column in values.T]
        if isinstance(self.dequantize, float):
            return [self.dequantize] * len(names)
        assert isinstance(self.dequantize, Sequence)
        if len(self.dequantize) != len(names):
            raise UserError(
                f"data.dequantize must have one width a column: {len(names)} ({', '.join(names)}), "
                f"got {len(self.dequantize)}"
            )
        return list(self.dequantize)

    def _split(self, path: Path, values: np.ndarray) -> dict[str, Tensor]:
        rows = len(values)
        counts = {"validation": round(rows * self.validation), "test": round(rows * self.test)}
        counts["train"] = rows - sum(counts.values())
        small = min(SPLITS, key=lambda split: counts[split])
        if counts[small] < 2:
            raise UserError(
                f"{path}: of its complete rows, {rows}, the {small} split would get {counts[small]} and needs 2: "
                "give more rows, or other fractions data.validation and data.test"
            )
        order = torch.randperm(rows, generator=generator(self.seed, "data", "split"))
        parts = torch.from_numpy(values)[order].split([counts[split] for split in SPLITS])
        return dict(zip(SPLITS, parts, strict=True))


def rounding_width(x: np.ndarray) -> float:
    """Width of the bins that a column (N,) was rounded to, or 0 where it shows no rounding.

    The commonest spacing between neighbouring values, where the spacing of two values counts as many times as the
    rarer of them occurs. Counting so, a few values between the steps (a mean that was filled in, a better instrument
    for a day), outliers and steps that nobody took do not matter, and a unit that was rounded twice (degrees
    Fahrenheit by way of tenths of a degree Celsius: steps of 0.9 and 1.08) gets its usual step and not the 0.18 that
    divides both. Spacings that differ by the noise of binary fractions are one spacing.

    A column shows no rounding if fewer than a tenth of its rows share their value with another row, or if no spacing
    stands out: less than a tenth of the count, or seen at one place only. (With two or three values, the smallest
    spacing.) Values that repeat without a regular spacing, such as logarithms of whole numbers, or one value
    that repeats among many that do not, therefore get 0: give the widths by hand.
    """
    tolerance = _rounding_error(x)
    values, counts = _groups(x, tolerance)
    if counts[counts > 1].sum() < 0.1 * len(x) or len(values) < 2:
        return 0.0
    order = np.argsort(spacing := np.diff(values), kind="stable")
    weight = np.minimum(counts[:-1], counts[1:])[order]
    if len(values) <= 3:
        return _tidy(spacing.min())
    spacing = spacing[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(spacing) > 2 * tolerance) + 1])
    weights, places = np.add.reduceat(weight, starts), np.diff(np.append(starts, len(spacing)))
    best = int(weights.argmax())
    if weights[best] < 0.1 * weight.sum() or places[best] < 2:
        return 0.0
    return _tidy(np.median(spacing[starts[best] : starts[best] + places[best]]))


def _tidy(width: float) -> float:
    """The width without the last digits, which are the noise of binary fractions."""
    return float(f"{width:.12g}")


def _rounding_error(x: np.ndarray) -> float:
    """How far apart two cells of x may be that stand for the same number: 0 for whole numbers."""
    if (x == np.rint(x)).all():
        return 0.0
    single = (x == x.astype(np.float32)).all()
    return float(np.abs(x).max()) * (2.0**-21 if single else 2.0**-48)


def _groups(x: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of x up to the tolerance, sorted, and how often each occurs."""
    values, counts = np.unique(x, return_counts=True)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values) > tolerance) + 1])
    return values[starts], np.add.reduceat(counts, starts)


def _columns(columns: object) -> list[str | int]:
    legal = "data.columns must be null or a list of names or of numbers from 0"
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise UserError(f"{legal}: data.columns=[a,b], got {columns!r}")
    if not columns or any(isinstance(c, bool) or not isinstance(c, str | int) for c in columns):
        raise UserError(f"{legal}, got {list(columns)!r}")
    return list(columns)


def _delimiter(delimiter: object) -> str:
    named = {"auto": "auto", "tab": "\t", "\\t": "\t"}
    if not isinstance(delimiter, str) or (delimiter not in named and len(delimiter.encode()) != 1):
        raise UserError(f"data.delimiter must be auto, tab or one character, got {delimiter!r}")
    if delimiter in ('"', "\n", "\r"):
        raise UserError(f"data.delimiter cannot be {delimiter!r}")
    return named.get(delimiter, delimiter)


def _dequantize(value: object) -> bool | float | list[float]:
    if isinstance(value, bool):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number(f"data.dequantize[{i}]", width, minimum=0) for i, width in enumerate(value)]
    if not isinstance(value, int | float):
        raise UserError(f"data.dequantize must be true, false, a width, or a list of a width a column, got {value!r}")
    return number("data.dequantize", value, above=0)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
