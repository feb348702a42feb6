"""Randomness as a function of (seed, stream name, step or block of rows).

Nothing here keeps a state, so a resumed run, a worker process and another batch size all see the same
numbers as one undisturbed process.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1024
"""Rows are drawn in whole blocks of this many, then cut: row i depends on (seed, stream, i) alone."""


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator whose state is a hash of the seed and the key."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def rows(draw: Callable[[int, torch.Generator], Tensor], seed: int, stream: str, start: int, stop: int) -> Tensor:
    """Rows start..stop of the endless table that `draw(n, generator)` defines, (stop - start, ...)."""
    first, last = start // BLOCK, max(stop - 1, start) // BLOCK
    blocks = [draw(BLOCK, generator(seed, stream, block)) for block in range(first, last + 1)]
    return torch.cat(blocks)[start - first * BLOCK : stop - first * BLOCK]
