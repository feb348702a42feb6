"""What fits into this machine's memory: settings that plainly do not are refused before anything is allocated."""

import ctypes
import os
import resource
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from flowcli.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_CGROUP = Path("/sys/fs/cgroup/memory.max")
"""The limit of a Linux container; `max` means none."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
KEPT = 1 << 25
"""Blocks up to this size are kept, the most that glibc takes on every machine."""


def there() -> int:
    """Bytes of memory that this process may have at most: the machine's, a container's, or its own limit's."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    found += [limit] if limit != resource.RLIM_INFINITY else []
    text = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.is_file() else ""
    return min([*found, int(text)] if text.isdigit() else found)


@cache
def keep_freed() -> None:
    """Let this process keep the memory that it frees, for its next tensors (where the C library is glibc).

    As it comes, glibc hands blocks of half a megabyte back to the system at once, and every layer's output costs the
    pages anew: twice the time of a small network on some thousand rows.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for setting in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(setting, KEPT)


def require(what: str, size: float) -> None:
    """Refuse what needs so many bytes and more than there are.

    what: the setting as the user says it, `network.width=1000000`.

    Raises:
        UserError: naming the setting.
    """
    available = there()
    if size > available:
        need, have = size / 2**30, available / 2**30
        raise UserError(f"{what} needs about {need:,.3g} GiB of memory, this machine has {have:,.3g}")


def of_weights(shapes: list[tuple[int, int]]) -> int:
    """Bytes of layers with so many inputs and outputs, twice: a run keeps its last and its averaged weights."""
    return 2 * 4 * sum(rows * columns for rows, columns in shapes)


def of_training(model: "nn.Module", rows: int) -> int:
    """Least bytes of a step on so many rows: weights, gradients, two moments and an average; layers' outputs, twice."""
    from torch import nn

    parameters = sum(parameter.numel() for parameter in model.parameters())
    outputs = sum(layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear))
    return 4 * (5 * parameters + 2 * rows * outputs)
