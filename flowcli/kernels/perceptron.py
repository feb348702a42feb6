"""The compiled perceptron as an operation of PyTorch: values, Jacobian products and the gradients of both.

For float32 on a CPU. What it computes is in perceptron.cpp.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_bool, c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from flowcli.kernels.library import library

WIDEST = 256
"""Of layers: wider ones do not stay in the cache, and a library's products are as fast."""
SHARED = 1e7
"""Multiplications of each part that is worth a thread."""


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, c_int) for name in ("features", "waves", "width", "hidden", "outputs", "residual"))


class _Inputs(ctypes.Structure):
    _fields_ = (
        ("n", c_int64),
        *((name, c_void_p) for name in ("x", "waves", "directions")),
        *((name, c_bool) for name in ("one_time", "one_direction")),
    )


class _InputGradients(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("x", "waves", "directions"))


@cache
def _functions() -> ctypes.CDLL:
    """The library, with the types of what it takes."""
    found, shape = library(), POINTER(_Shape)
    rows = (c_int64, c_int64)
    found.perceptron_kept.argtypes, found.perceptron_kept.restype = (shape, c_int), c_int64
    found.perceptron_forward.argtypes = (shape, c_void_p, c_int, POINTER(_Inputs), *rows, *[c_void_p] * 3)
    found.perceptron_backward.argtypes = (
        *(shape, c_void_p, c_int, c_int64, *rows),
        *([c_void_p] * 4),
        POINTER(_InputGradients),
    )
    found.perceptron_regression.argtypes = (
        *(shape, c_void_p, POINTER(_Inputs), *rows),
        *(c_void_p, c_void_p, c_float, POINTER(c_double), c_void_p),
    )
    return found


def takes(*tensors: Tensor) -> bool:
    """Whether tensors like these can be given: real ones, in float32 on a CPU, which nothing traces or transforms."""
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return False
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not traced and not transformed


class Layers:
    """A perceptron's weights.

    Attributes:
        weights: as torch keeps them (out, in): the first layer's of x, its bias, its map of waves of time; then matrix
            and bias of each layer.
        residual: whether each hidden layer is added to its input.
    """

    def __init__(self, weights: Sequence[Tensor], *, residual: bool) -> None:
        self.weights, self.residual = tuple(weights), residual

    def take(self, x: Tensor, waves: Tensor, directions: Tensor | None = None) -> bool:
        """Whether these can be given; PyTorch says of others what is wrong with them."""
        n, size = len(x), self.weights[0].shape[1]
        fit = x.shape == (n, size) and waves.shape[0] in (1, n) and waves.shape[1:] == self.weights[2].shape[1:]
        if directions is not None:
            rows = directions.shape[1:2]
            fit = fit and len(directions) > 0 and rows in ((1,), (n,)) and directions.shape[2:] == (size,)
        given = (x, waves) if directions is None else (x, waves, directions)
        return fit and takes(*given, *self.weights) and all(weight.is_contiguous() for weight in self.weights)

    def __call__(self, x: Tensor, waves: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, D), and the Jacobian in x times each direction, (K, B, D); they have gradients, once.

        x: (B, F), what the first layer sees of the events; waves: (B or 1, Q), of time; directions: (K, B or 1, F).
        `take` must hold of them.
        """
        if torch.is_grad_enabled():
            found = _Perceptron.apply(self.residual, x, waves, directions, *self.weights)
            return found if directions is not None else (found, None)
        directions = None if directions is None else directions.contiguous()
        given, shape = _Given(x.contiguous(), waves.contiguous(), directions), _shape_of(self.weights, self.residual)
        return _evaluate(shape, self.weights, given, None, _parts(shape, given))


class Regression:
    """The weighted square error of batches of so many rows, with its gradient.

    Attributes:
        gradient: (P,), of the last batch, one weight behind the other.
    """

    def __init__(self, layers: Layers, rows: int) -> None:
        """The weights may change in place, and nowhere else."""
        self._layers, self._shape = layers, _shape_of(layers.weights, layers.residual)
        self._own, self._rows, self._run = pointers(layers.weights), rows, _functions().perceptron_regression
        sizes, count = [weight.numel() for weight in layers.weights], _threads(self._shape, rows, 0)
        self._vectors = [layers.weights[0].new_empty(sum(sizes)) for _ in range(count)]
        self._places = [pointers(vector.split(sizes)) for vector in self._vectors]
        self._losses = [c_double() for _ in self._vectors]
        self.gradient = self._vectors[0]

    def __call__(self, x: Tensor, waves: Tensor, target: Tensor, weight: Tensor | None, scale: float) -> float:
        """scale * sum(weight * |y - target|^2) of x (B, F), waves (B, Q), target (B, D), weight (B,), contiguous."""
        assert len(x) == self._rows
        inputs, ends = _inputs(x, waves, None), (target.data_ptr(), _pointer(weight), scale)

        def part(i: int, first: int, last: int) -> int:
            own = self._losses[i], self._places[i]
            return self._run(self._shape, self._own, inputs, first, last, *ends, *own)

        _in_parts(self._rows, len(self._vectors), part, alive=(self, x, waves, target, weight))
        for other in self._vectors[1:]:
            self.gradient += other
        return scale * sum(loss.value for loss in self._losses)


class _Given(NamedTuple):
    """What `Layers` takes, contiguous."""

    x: Tensor
    waves: Tensor
    directions: Tensor | None

    @property
    def tangents(self) -> int:
        """K."""
        return 0 if self.directions is None else len(self.directions)


def _evaluate(
    shape: _Shape, weights: Sequence[Tensor], given: _Given, kept: Tensor | None, parts: int
) -> tuple[Tensor, Tensor | None]:
    """Outputs and products; what their gradients need is written into kept."""
    n, tangents, inputs, own = len(given.x), given.tangents, _inputs(*given), pointers(weights)
    y = given.x.new_empty(n, shape.outputs)
    products = given.x.new_empty(tangents, *y.shape) if tangents else None
    ends, run = (y.data_ptr(), _pointer(products), _pointer(kept)), _functions().perceptron_forward

    def part(_: int, first: int, last: int) -> int:
        return run(shape, own, tangents, inputs, first, last, *ends)

    _in_parts(n, parts, part, alive=(weights, given, kept, y, products))
    return y, products


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: bool, x: Tensor, waves: Tensor, directions: Tensor | None, *weights: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        shape, n, wanted, kept = _shape_of(weights, residual), len(x), ctx.needs_input_grad, None
        if directions is not None:
            directions = (directions.expand(-1, n, -1) if wanted[3] else directions).contiguous()
        given = _Given(x.contiguous(), (waves.expand(n, -1) if wanted[2] else waves).contiguous(), directions)
        parts = _parts(shape, given)
        if any(wanted):
            kept = x.new_empty(_up(n, _step()) * _functions().perceptron_kept(shape, given.tangents))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, *weights)
        ctx.shape, ctx.tangents, ctx.n, ctx.parts = shape, given.tangents, n, parts  # kept has the parts' tiles
        y, products = _evaluate(shape, weights, given, kept, parts)
        return y if products is None else (y, products)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("compiled layers have first derivatives alone: for more, set network.kernel = False")
        (kept, *weights), shape, n, tangents = ctx.saved_tensors, ctx.shape, ctx.n, ctx.tangents
        sizes = (n, shape.features), (n, shape.waves), (tangents, n, shape.features)
        wanted = zip(ctx.needs_input_grad[1:4], sizes, strict=True)
        inputs = [kept.new_empty(size) if wants else None for wants, size in wanted]
        of = _InputGradients(*(_pointer(value) for value in inputs))
        gy, gproducts = (None if value is None else value.contiguous() for value in (*grad_outputs, None)[:2])
        ends, given = (kept.data_ptr(), _pointer(gy), _pointer(gproducts)), pointers(weights)
        sizes = [weight.numel() for weight in weights]
        found = [kept.new_empty(sum(sizes)) for _ in range(ctx.parts)]
        pieces = [gradient.split(sizes) for gradient in found]
        places, run = [pointers(each) for each in pieces], _functions().perceptron_backward

        def part(i: int, first: int, last: int) -> int:
            return run(shape, given, tangents, n, first, last, *ends, places[i], of)

        _in_parts(n, ctx.parts, part, alive=(weights, kept, gy, gproducts, found, inputs))
        for other in found[1:]:
            found[0] += other
        return None, *inputs, *(piece.view(weight.shape) for piece, weight in zip(pieces[0], weights, strict=True))


# ---------------------------------------------------------------- what the library takes
def _shape_of(weights: Sequence[Tensor], residual: bool) -> _Shape:
    of_x, of_waves, last = weights[0], weights[2], weights[-1]
    return _Shape(of_x.shape[1], of_waves.shape[1], len(of_x), (len(weights) - 5) // 2, len(last), residual)


def _inputs(x: Tensor, waves: Tensor, directions: Tensor | None) -> _Inputs:
    one_direction = directions is not None and directions.shape[1] == 1
    places = (_pointer(value) for value in (x, waves, directions))
    return _Inputs(len(x), *places, len(waves) == 1, one_direction)


def pointers(tensors: Sequence[Tensor]) -> Any:
    """Their addresses, one behind the other; the tensors must outlive it."""
    return (c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# ---------------------------------------------------------------- rows in parts
def _parts(shape: _Shape, given: _Given) -> int:
    return _threads(shape, len(given.x), given.tangents)


def _threads(shape: _Shape, n: int, tangents: int) -> int:
    """How many parts n rows are worth."""
    inner = shape.hidden * shape.width + shape.features + shape.waves + shape.outputs
    return max(1, min(torch.get_num_threads(), int(n * (1 + tangents) * shape.width * inner / SHARED)))


def _in_parts(n: int, count: int, work: Callable[[int, int, int], int], *, alive: object) -> None:
    """Do work(i, first, last) for each of so many parts of n rows, all at the same time.

    alive: what the parts read and write; a signal may end this while one is still at it.

    Raises:
        MemoryError: there is none.
    """
    size = _up(-(-n // count), _step())
    failed = [0] * count

    def run(i: int, _: object) -> None:
        failed[i] = work(i, min(n, i * size), min(n, (i + 1) * size))

    started: list[threading.Thread] = []  # anew each time: a pool does not survive a fork
    try:
        for i in range(1, count):
            thread = threading.Thread(target=run, args=(i, alive))
            thread.start()
            started.append(thread)
        run(0, alive)
    finally:
        for thread in started:
            thread.join()
    if any(failed):
        raise MemoryError("a network's layers do not fit into memory")


def _up(n: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-n // to) * to


@cache
def _step() -> int:
    """Parts of the rows begin at multiples of this."""
    return _functions().perceptron_step()
