"""The compiled step of Adam: the arithmetic of `flowcli.training.adam`, in one pass over the weights."""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_float, c_int64, c_void_p
from functools import cache

from torch import Tensor

from flowcli.kernels.library import library


class _Rates(ctypes.Structure):
    _fields_ = tuple(
        (name, c_float) for name in ("decay", "size", "scale", "memory", "beta_1", "beta_2", "epsilon", "clip")
    )


@cache
def _function() -> Callable[..., float]:
    found = library().adam
    found.argtypes, found.restype = (c_int64, *[c_void_p] * 5, POINTER(_Rates)), c_double
    return found


def step(vectors: Sequence[Tensor], gradient: Tensor, rates: Sequence[float], constants: Sequence[float]) -> float:
    """Move the weights, both means and the average, (P,) each in float32; return the gradient's norm.

    rates: decay, size, scale, and the part of the average that is kept.
    constants: both means' memories, what is added to the root, and the largest norm of a gradient.
    Where the norm is not finite nothing is touched.
    """
    places = [vector.data_ptr() for vector in (*vectors, gradient)]
    return _function()(len(gradient), *places, _Rates(*rates, *constants))
