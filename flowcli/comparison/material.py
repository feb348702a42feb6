"""What the pictures of a comparison are made from, besides its figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Curve = tuple[Array, Array, Array]

MOST_ROWS = 12
"""Rows that are shown; of more, those that stand first."""


@dataclass(frozen=True)
class Material:
    """Of one group.

    Attributes:
        shown: for each row, by its label, the arrays of `pictures.shown`; a row whose solver fails has none.
        costs: for each solver, for each row: evaluations, W2 and its error; empty where nobody asked.
        cost_floor: W2 of true samples, and its error.
        columns: names of a table's columns.
    """

    shown: Mapping[str, Mapping[str, Array]]
    costs: Mapping[str, Mapping[str, Curve]]
    cost_floor: tuple[float, float] | None
    columns: tuple[str, ...] | None


def can_be_shown(arrays: Mapping[str, Array], event_shape: tuple[int, ...]) -> bool:
    """Whether arrays out of a file are those of `pictures.shown`, by their names, shapes and kinds of numbers."""
    if not {"samples", "data"} <= arrays.keys() or any(array.dtype != np.float32 for array in arrays.values()):
        return False
    if any(arrays[name].shape[1:] != event_shape or not len(arrays[name]) for name in ("samples", "data")):
        return False
    states, times = arrays.get("states"), arrays.get("times")
    if (states is None) != (times is None):
        return False
    if states is not None and times is not None:
        moving = states.ndim == 3 and times.shape == states.shape[:1] and states.shape[1:][1:] == (2,)
        if not moving or len(times) < 2 or not states.shape[1] or not times[-1] > times[0]:
            return False
    grid = [arrays[name] for name in ("xs", "ys") if name in arrays]
    fields = [arrays[name] for name in ("log_prob", "true_log_prob") if name in arrays]
    if len(grid) != (2 if fields else 0) or any(axis.ndim != 1 or len(axis) < 2 for axis in grid):
        return False
    rising = all(bool((np.diff(axis) > 0).all()) for axis in grid)
    return rising and all(field.shape == (len(grid[1]), len(grid[0])) for field in fields)
