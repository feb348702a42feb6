"""Several processes that do one job together, started by torchrun.

All of them run the same program on the same random numbers: each takes its share of a batch's rows, or of the chunks of
a table, and all know the result. The first one alone writes. Without torchrun there is one process, which takes
everything. Importing this module does not import torch.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowcli.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

LOST = ("closed by peer", "reset by peer", "refused", "timed out", "timeout", "Broken pipe", "NCCL", "gloo")
"""What torch's words for a process that is gone contain."""

_count, _rank = 1, 0  # of the group that `joined` made


def started() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def local_rank() -> int:
    """Number of this process on its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return _count


def rank() -> int:
    """Number of this process, from 0."""
    return _rank


def leads() -> bool:
    """Whether this process is the one that writes."""
    return _rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started.

    Raises:
        JobError: another one is gone.
    """
    global _count, _rank
    import torch
    from torch import distributed

    with watched("start the job again"):
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _count, _rank = distributed.get_world_size(), distributed.get_rank()
    try:
        yield
    finally:
        _count, _rank = 1, 0
        distributed.destroy_process_group()


@contextmanager
def watched(advice: str) -> Iterator[None]:
    """Say in one line that another process is gone, and what to do.

    Raises:
        JobError: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        gone = started() and any(word.lower() in str(error).lower() for word in LOST)
        if not gone or isinstance(error, JobError):
            raise
        told = re.sub(r"^\[\S*\] ", "", " ".join(str(error).split())).partition(". ")[0][:120]
        raise JobError(f"another process of this job is gone ({told}); {advice}") from error


# ---------------------------------------------------------------- what all know
def share(value: Any) -> Any:
    """The first process's value, in every process."""
    if _count == 1:
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def exchange(mine: Any) -> list[Any]:
    """What each process hands over, in the order of their numbers."""
    if _count == 1:
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * _count
    distributed.all_gather_object(found, mine)
    return found


def total(values: Sequence[float]) -> list[float]:
    """Sums over the processes, in double precision."""
    return _reduced(values, "SUM")


def anywhere(flags: Sequence[bool]) -> list[bool]:
    """Which flags any process has set."""
    return [value > 0 for value in _reduced([float(flag) for flag in flags], "MAX")]


def _reduced(values: Sequence[float], kind: str) -> list[float]:
    if _count == 1:
        return list(values)
    import torch
    from torch import distributed

    tensor = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, kind))
    return tensor.tolist()


def wait() -> None:
    """Go on when all have come here."""
    share(None)


# ---------------------------------------------------------------- shares
def part(rows: int) -> slice:
    """The rows of this process out of so many: contiguous, in order, as even as can be."""
    return slice(rows * _rank // _count, rows * (_rank + 1) // _count)


def average(tensor: "Tensor") -> None:
    """The mean over the processes, in place."""
    if _count > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
        tensor /= _count


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Where this process may write: the folder itself, or one that is thrown away."""
    if leads():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="flowcli-") as scratch:
        yield Path(scratch)
