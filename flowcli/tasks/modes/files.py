"""What the modes of `flowcli sample` read and write: rows, reference points, arrays and tables."""

import math
import os
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from flowcli import launch, processes, streams
from flowcli.checkpoints import Checkpoint
from flowcli.errors import UserError, integer
from flowcli.run import REFERENCE_FILE

ENDINGS = (".npy", ".csv", ".parquet")
MOST_REFERENCE = 1 << 24
"""Numbers that are read of the true points."""
_HEADER_ERRORS = (SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""numpy parses the header of an NPY file as a Python literal."""


def changed(config: Mapping[str, Any], key: str) -> bool:
    """Whether a key's value is not conf/sample.yaml's own: the user gave it."""
    return config[key] != yaml.safe_load(launch.keys("sample")[key][0])


def chosen_rows(key: str, value: object, *, minimum: int) -> list[int]:
    """Row numbers out of the config.

    Raises:
        UserError: naming the key: no list of at least `minimum` whole numbers.
    """
    if not isinstance(value, list) or len(value) < minimum:
        wanted = {1: "one row or more", 2: "two rows or more"}[minimum]
        raise UserError(f"{key} must be a list of {wanted}, e.g. {key}=[3,17], got {value!r}")
    return [integer(f"{key}[{i}]", row, minimum=0) for i, row in enumerate(value)]


# ---------------------------------------------------------------- what a training left
def reference(checkpoint: Checkpoint) -> Tensor | None:
    """True points (N, ...) that the training left in its run folder, if they are still there, float64."""
    try:
        # mapped and not read: a header may claim more rows than memory holds
        with np.errstate(over="raise"):
            points = np.lib.format.open_memmap(checkpoint.run / REFERENCE_FILE, mode="r")
    except (OSError, ValueError, EOFError, TypeError, ArithmeticError, *_HEADER_ERRORS):
        return None
    shape = checkpoint.description["event_shape"]
    if points.dtype not in (np.float32, np.float64) or list(points.shape[1:]) != shape or not len(points):
        return None
    some = torch.from_numpy(np.array(points[: max(1, MOST_REFERENCE // math.prod(shape))], dtype=np.float64))
    return some if bool(some.isfinite().all()) else None


# ---------------------------------------------------------------- --out
def destination(config: Mapping[str, Any], endings: Sequence[str] = ENDINGS) -> Path | None:
    """Where --out leads, if anywhere.

    Raises:
        UserError: an ending that is none of these, or a folder that cannot be written.
    """
    if config["out"] is None:
        return None
    out = Path(str(config["out"])).expanduser()
    if out.suffix not in endings:
        raise UserError(f"--out {out}: mode={config['mode']} wants a name that ends in {', '.join(endings)}")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: {out.parent} is not a folder that can be written, or the name is a folder's")
    return out


def write(
    parts: Iterable[Tensor], shape: Sequence[int], names: Sequence[str], out: Path, numbers: Tensor | None = None
) -> None:
    """Write rows of this shape (N, ...), which come in parts, as an array of it, or as a table of named columns.

    numbers: of the rows (N,); a table's first column.

    Raises:
        OSError: the file cannot be written; it is what it was.
    """
    if not processes.leads():
        return
    if out.suffix != ".npy":
        streams.write_table(out, names, parts, numbers)
        return
    with streams.growing(out, shape) as append:
        for part in parts:
            append(part)
