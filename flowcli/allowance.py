"""A bound on what is built out of a stranger's config: it may not need far more memory than his weights fill."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flowcli.errors import UserError

SPARE = 1 << 26
"""Bytes that may be made besides."""
TIMES = 12
"""How often the weights' bytes may be made; flowcli's own models take 1 to 6 times as much as they keep."""
_SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)
_PLAIN_CALLS, _CALLS_A_TENSOR = 10_000, 1_000


class Allowance(TorchFunctionMode):
    """While it is entered, tensors are made up to a bound, which is checked before a constructor makes one.

    Operations on tensors that are there are counted afterwards: none of them makes much of little.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """weights: what the weights file holds."""
        super().__init__()
        self._bytes = SPARE + TIMES * sum(tensor.nbytes for tensor in weights.values())
        self._calls = _PLAIN_CALLS + _CALLS_A_TENSOR * len(weights)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Count one call of PyTorch.

        Raises:
            UserError: it is one too many.
        """
        kwargs = kwargs or {}
        if self._bytes < 8 * _elements(func, args, kwargs):
            self._refuse()
        made = func(*args, **kwargs)
        shared = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in shared:
            self._bytes -= made.untyped_storage().nbytes()
        self._calls -= 1
        if self._bytes < 0 or self._calls < 0:
            self._refuse()
        return made

    def _refuse(self) -> None:
        raise UserError("the config describes a far larger model than the weights fill, so it is refused")


def _elements(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """How many numbers a constructor is about to make; 0 for anything that is none."""
    if func in _SIZED:
        sizes = kwargs.get("size", args)
        return math.prod(_numbers(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Iterable) else sizes))
    if func is torch.full:
        return math.prod(_numbers(kwargs.get("size", args[:1][0] if args else ())))
    if func is torch.eye:
        return math.prod(_numbers((*args, *args)[:2]))
    if func in (torch.arange, torch.linspace):
        return max([abs(value) for value in _numbers(args)], default=0.0)
    return 0.0


def _numbers(values: Iterable[Any]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]
