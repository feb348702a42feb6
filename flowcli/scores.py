"""What an evaluation found, kept in the run: RUN/scores/KEY.safetensors.

The key holds everything that the figures depend on: the weights, the parts of the config that make the flow and its
data, how it is solved and measured. So a file is right for as long as it is found. Importing this module imports
numpy, and no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowcli import foreign
from flowcli.checkpoints import Checkpoint
from flowcli.errors import UserError
from flowcli.run import WEIGHTS
from flowcli.storage import finite, write_bytes

Array = NDArray[Any]

FOLDER = "scores"
VERSION = 1
"""Of how a flow is measured; another one measures every flow anew."""
MADE_OF = ("data", "model", "network", "path", "coupling", "base", "dtype", "solver", "divergence")
"""Parts of a config that make a flow, its data and how it is solved."""
NOT_MEASURED = ("pictures",)
"""Keys of the node `evaluation` that no figure depends on."""
LARGEST = 1 << 27
"""Bytes of such a file."""


@dataclass(frozen=True)
class Scores:
    """Figures of one run.

    Attributes:
        metrics: flat names and values, as in metrics.json.
        units: what lies behind the means (N,) or (K,), float64: see `evaluate.Evaluated`.
        points: a name of the test points; runs that share it were asked about the same ones.
    """

    metrics: dict[str, Any]
    units: dict[str, Array]
    points: str


def key(checkpoint: Checkpoint, config: Mapping[str, Any], *, more: Any = None) -> str:
    """The name of these figures; config: the checkpoint's, with what is changed for the comparison; more: besides."""
    evaluation = {name: value for name, value in config["evaluation"].items() if name not in NOT_MEASURED}
    asked = {"version": VERSION, "evaluation": evaluation, **{part: config.get(part) for part in MADE_OF}, "more": more}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
    with open(foreign.inner(checkpoint.folder / WEIGHTS["ema"], checkpoint.folder), "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def name_of(points: Array) -> str:
    """A name of test points (N, ...), the same for the same numbers in the same order."""
    return hashlib.sha256(np.ascontiguousarray(points).tobytes() + repr(points.shape).encode()).hexdigest()[:16]


def write(run: Path, name: str, scores: Scores) -> None:
    """Keep the figures.

    Raises:
        OSError: the folder cannot be written.
    """
    values = {"metrics": finite(scores.metrics), "points": scores.points}
    write_arrays(run, name, scores.units, {"scores": json.dumps(values, allow_nan=False)})


def read(run: Path, name: str) -> Scores | None:
    """The figures of that name; None where there are none, or they are damaged."""
    found = read_arrays(run, name)
    if found is None:
        return None
    arrays, told = found
    try:
        values = json.loads(told["scores"])
        metrics, points = values["metrics"], values["points"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    whole = isinstance(metrics, dict) and isinstance(points, str) and are_units(arrays)
    return Scores(metrics, arrays, points) if whole else None


def are_units(arrays: Mapping[str, Array]) -> bool:
    """Whether all are float64 numbers (N,), one or more, and none is NaN."""
    return all(
        array.ndim == 1 and array.dtype == np.float64 and array.size > 0 and not np.isnan(array).any()
        for array in arrays.values()
    )


def write_arrays(run: Path, name: str, arrays: Mapping[str, Array], told: Mapping[str, str]) -> None:
    """Keep arrays and words under a name.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.numpy import save

    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    content = save({label: np.ascontiguousarray(array) for label, array in arrays.items()}, metadata=dict(told))
    write_bytes(folder / f"{name}.safetensors", content)


def try_to_write(run: Path, name: str, arrays: Mapping[str, Array], told: Mapping[str, str]) -> bool:
    """Keep arrays where that can be: a run on a read-only disk is compared all the same."""
    try:
        write_arrays(run, name, arrays, told)
    except OSError:
        return False
    return True


def read_arrays(run: Path, name: str) -> tuple[dict[str, Array], dict[str, str]] | None:
    """Arrays and words under a name; None where there are none, or they are damaged."""
    from safetensors import SafetensorError, safe_open

    file = run / FOLDER / f"{name}.safetensors"
    if not file.is_file():
        return None
    try:
        real = foreign.inner(file, run)
        if real.stat().st_size > LARGEST:
            return None
        with safe_open(real, framework="np") as opened:
            return {label: opened.get_tensor(label) for label in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (UserError, OSError, SafetensorError, AttributeError, ValueError, TypeError):  # AttributeError: float8
        return None
