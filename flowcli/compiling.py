"""Functions of tensors as compiled graphs (torch.compile), for work that is long enough to pay for the compiler.

A function is traced once, on examples: it must not look at a tensor's values.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowcli.errors import JobError
from flowcli.kernels import library

NARROW = 8
"""Products with fewer columns than this are taken transposed: as they stand they are five times slower."""

Function = Callable[..., Any]


class NotCompiled(Exception):
    """There is no compiled form; the message says why."""


def missing(device: torch.device) -> str | None:
    """What the machine lacks to compile for this device; None: nothing."""
    if device.type != "cpu":
        return None
    return library.no_compiler() if library.compiler() is None else None


def compiled(function: Function, examples: Sequence[Tensor]) -> Function:
    """The function as one graph for tensors of these shapes, with nothing of Python in it.

    It takes and gives tensors, and may write into those it takes. Rounding may differ from the plain function's.

    Raises:
        NotCompiled: the machine, or the function, does not allow it.
        JobError: raised by the function itself.
    """
    _require(examples[0].device)
    with _trying():
        from torch.fx.experimental.proxy_tensor import make_fx  # here, because it takes a second to import

        graph = make_fx(function, {torch.ops.aten.mm.default: _product})(*[example.clone() for example in examples])
        ready = torch.compile(graph, fullgraph=True, dynamic=False, options=_options(examples[0].device))
        ready(*[example.clone() for example in examples])
    return ready


def differentiable(function: Function, examples: Sequence[Tensor]) -> Function:
    """The function as one graph for arguments like these, with gradients for them and for all that it closes over.

    Raises:
        NotCompiled: the machine, or the function, does not allow it.
    """
    device = examples[0].device
    _require(device)
    with _trying():
        ready = torch.compile(function, fullgraph=True, dynamic=False, options=_options(device))
        ready(*examples)
    return ready


def _require(device: torch.device) -> None:
    reason = missing(device)
    if reason is not None:
        raise NotCompiled(reason)


def _options(device: torch.device) -> dict[str, Any]:
    return {"cpp_wrapper": True} if device.type == "cpu" else {}


@contextmanager
def _trying() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own parts
            yield
    except JobError:
        raise
    except (RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        told = "it looks at a tensor's values" if "aten._local_scalar_dense" in lines[0] else lines[0]
        raise NotCompiled(told) from error


def _product(left: Tensor, right: Tensor) -> Any:
    """left @ right, turned where that is quicker (on a CPU)."""
    if left.device.type == "cpu" and right.shape[1] < NARROW <= left.shape[0] and right.is_contiguous():
        return torch.mm(right.t(), left.t()).t()
    return NotImplemented
