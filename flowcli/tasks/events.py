"""What a trained flow is asked about: the test split of its own data, or the rows of a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcli import build, console
from flowcli.checkpoints import Checkpoint
from flowcli.dataset import SPLITS, Dataset, dequantize
from flowcli.errors import UserError
from flowcli.foreign import printable, read_json

DATA_FILE = "data.json"
MOST_MADE = 1 << 25
"""Numbers of a data set that is drawn from a formula because a checkpoint says so."""
FEW = 10
"""Rows of such a data set whose events show their shape."""
ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Events:
    """Complete events of a split or a file, dequantised.

    Attributes:
        x: (N, ...), data units, float64: draw 0 of the dequantising noise.
        raw: (N, ...), as they were read; x and raw of an NPY file may be the file itself, mapped: not to be changed.
        numbers: (N,), each event's row in its source, from 0.
        source: what they are, for people.
        bin_width: of the rounding, of the event's shape, or None.
        discrete: every value is a whole number.
        dataset: of a split; None for a file, whose true density nobody knows.
        left_out: rows that were incomplete.
    """

    x: Tensor
    raw: Tensor
    numbers: Tensor
    source: str
    bin_width: Tensor | None
    discrete: bool
    dataset: Dataset | None = None
    left_out: int = 0

    def draw(self, number: int) -> Tensor:
        """The events (N, ...) under another draw of the dequantising noise."""
        if self.dataset is not None:
            return self.dataset.points("test", number)
        return dequantize(self.raw, self.bin_width, 0, f"dequantize input {number}")

    def rows(self, key: str, chosen: Sequence[int]) -> Tensor:
        """The events (E, ...) of these rows of the source.

        Raises:
            UserError: naming the config key: there is no such row, or it is incomplete.
        """
        last = int(self.numbers[-1])
        for row in chosen:
            if row not in self.numbers:
                why = "is incomplete" if row < last else f"is not there, complete ones are among 0 to {last}"
                raise UserError(f"{key}: row {row} of {self.source} {why}")
        return torch.cat([self.x[self.numbers == row] for row in chosen])


def open_events(config: Mapping[str, Any], checkpoint: Checkpoint) -> Events:
    """The rows of `input`, or of the test split of the run's own data.

    Raises:
        UserError: the file or the data is not there, not readable, or of other columns than the run's.
    """
    description = checkpoint.description
    if config.get("input") is None:
        opened = open_dataset(config, checkpoint)
        x = opened.points("test")
        numbers = torch.arange(len(x))
        return Events(x, opened.test, numbers, "the test split", opened.bin_width, opened.discrete, opened)
    file, event_shape = Path(str(config["input"])).expanduser(), tuple(description["event_shape"])
    read = build.source(config).read(file, column_names(checkpoint), event_shape)
    complete = torch.cat([part.isfinite().flatten(1).all(1) for part in read.split(ROWS_AT_ONCE)])
    if not bool(complete.any()):
        raise UserError(f"{file}: no row is complete")
    raw, width = read if bool(complete.all()) else read[complete], description.get("bin_width")
    bin_width = None if width is None else torch.tensor(width, dtype=raw.dtype).reshape(event_shape)
    x = dequantize(raw, bin_width, 0, "dequantize input 0")
    discrete, left_out = bool(description.get("discrete")), len(read) - len(raw)
    return Events(x, raw, complete.nonzero().flatten(), file.name, bin_width, discrete, None, left_out)


def open_dataset(config: Mapping[str, Any], checkpoint: Checkpoint) -> Dataset:
    """The run's own data.

    Raises:
        UserError: it cannot be opened, or is not what it was.
    """
    source, node = build.source(config), config["data"]
    if node.get("path") is not None:
        _say_opening(str(node["path"]))
    rows = [node.get(split) for split in SPLITS]
    if all(isinstance(count, int) for count in rows):  # drawn from a formula, as many as the config says
        _require_shape(build.source({**config, "data": {**node, **dict.fromkeys(SPLITS, FEW)}}).load(), checkpoint)
        if sum(rows) * math.prod(checkpoint.description["event_shape"]) > MOST_MADE:
            raise UserError(f"data: {sum(rows):,} rows are too many to draw because a checkpoint says so")
    opened = source.load()
    _require_shape(opened, checkpoint)
    require_same(opened, checkpoint)
    return opened


def require_same(opened: Dataset, checkpoint: Checkpoint) -> None:
    """Refuse a file that has changed since the training: its split would hold rows that were trained on.

    Raises:
        UserError: as above.
    """
    file = checkpoint.run / DATA_FILE
    kept = read_json(file, checkpoint.run) if file.is_file() else {}
    then, now = (found.get("sha256") for found in (kept if isinstance(kept, dict) else {}, opened.source))
    if then is not None and now is not None and then != now:
        name = printable(str(opened.source.get("path", "its file")))
        raise UserError(
            f"data: {name} has changed since the training (its hash is another), and with it the test split; "
            "to score the rows that are there now: flowcli likelihood --ckpt RUN input=FILE"
        )


def _require_shape(opened: Dataset, checkpoint: Checkpoint) -> None:
    if list(opened.event_shape) != checkpoint.description["event_shape"]:
        wanted = tuple(checkpoint.description["event_shape"])
        raise UserError(f"data: has events of shape {opened.event_shape}, the checkpoint's have {wanted}")


@cache
def _say_opening(file: str) -> None:
    """Name a file that nobody named on the command line; once, though a preflight opens it before the job does."""
    console.console().print(f"reading {file}, the data that the checkpoint names")


def column_names(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Names of a table's columns."""
    names = checkpoint.description.get("columns")
    return None if names is None else tuple(str(name) for name in names)
