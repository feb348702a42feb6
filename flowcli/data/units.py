"""From data units to the model's, where the numbers allow it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcli.errors import UserError
from flowcli.transforms import Affine

LARGEST = 1e100
"""Of a standardised column: its square must still be a number in double precision, summed over many rows."""
LARGEST_RAW = 1e9
"""Of a column that stays as it is: a network's loss takes squares of squares in single precision."""


def to_model_units(train: Tensor, names: Sequence[str], *, standardize: bool, source: str) -> Affine:
    """Give each column of train (N, D) mean 0 and standard deviation 1, or leave it as it is.

    names: of the columns, for messages; source: where they are from.

    Raises:
        UserError: naming a column that is constant, or whose numbers are too large to be computed with.
    """
    largest = train.abs().amax(0)
    most = LARGEST if standardize else LARGEST_RAW
    for column, name in enumerate(names):
        if not float(largest[column]) <= most:
            size, advice = f"up to {float(largest[column]):.3g}", "" if standardize else "; say data.standardize=true"
            raise UserError(f"{source}: {name} has values {size}, the largest that can be learned are {most:g}{advice}")
    if not standardize:
        return Affine.identity(tuple(train.shape[1:]))
    spread = train.std(0, correction=0)
    for column, name in enumerate(names):
        # less spread than this is the rounding of the values themselves
        if not float(spread[column]) > float(largest[column]) * torch.finfo(torch.float64).eps:
            raise UserError(f"{source}: {name} is constant in the training split and cannot be standardised")
    return Affine.standardise(train)
