"""Multi-layer perceptrons over a flattened event and its time."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from flowcli import memory, threads
from flowcli.errors import UserError, boolean, boolean_or_auto, integer, number
from flowcli.kernels import library, perceptron


class MLP(nn.Module):
    r"""SiLU blocks over x, random Fourier features of x and octaves of time.

    Without the Fourier features a standardised target with fine structure is out of reach of a short training
    (arXiv 2006.10739). The last layer starts at zero, so training starts from the best constant guess.

    Attributes:
        kernel: whether compiled code of flowcli's own computes it, where it takes the tensors.
        no_kernel: why not, where it was wanted and there is none.
    """

    frequencies: Tensor
    octaves: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        width: int,
        depth: int,
        fourier_features: int,
        fourier_std: float,
        time_octaves: int,
        residual: bool,
        kernel: bool | str,
    ) -> None:
        """Build for one event shape.

        Args:
            event_shape: (D,) or (C, H, W); flattened inside.
            width: hidden units.
            depth: hidden layers after the first.
            fourier_features: random frequencies of x; 0 shows x alone.
            fourier_std: their standard deviation in 2-D; scaled by sqrt(2 / D) to keep the phase's spread.
            time_octaves: sin and cos of 2^k time, k < time_octaves; 0 shows the time itself.
            residual: add each hidden layer to its input; false stacks them.
            kernel: whether compiled code of flowcli's own computes the layers, in float32 on a CPU: true; false: torch
                does; auto: where there is a compiler and they are narrow enough to gain by it. Rounding differs.
        """
        super().__init__()
        self.event_shape, size = event_shape, math.prod(event_shape)
        width, depth = integer("width", width, minimum=1), integer("depth", depth, minimum=0, maximum=1000)
        features = integer("fourier_features", fourier_features, minimum=0)
        shapes = [(size, features), (size + 2 * features, width), *[(width, width)] * depth, (width, size)]
        memory.require(f"width={width} with depth={depth}, fourier_features={features}", memory.of_weights(shapes))
        octaves = integer("time_octaves", time_octaves, minimum=0, maximum=16)
        std = number("fourier_std", fourier_std, above=0, maximum=1e6)
        self.residual = boolean("residual", residual)
        kernel = boolean_or_auto("kernel", kernel)
        wanted = width <= perceptron.WIDEST if kernel == "auto" else bool(kernel)
        reason = library.missing() if wanted else None
        if reason is not None and kernel is True:
            raise UserError(f"network.kernel=true: {reason}; say network.kernel=auto")
        self.kernel, self.no_kernel = wanted and reason is None, reason
        self.register_buffer("frequencies", torch.randn(size, features) * std * math.sqrt(2 / size))
        self.register_buffer("octaves", 2.0 ** torch.arange(octaves))
        # two maps and a sum instead of one map of both: a solve has one time for all rows
        self.of_event = nn.Linear(size + 2 * features, width)
        self.of_time = nn.Linear(max(1, 2 * octaves), width, bias=False)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """x (B, ...), t a scalar or (B,) -> (B, ...)."""
        _refuse(condition)
        layers = self.layers()
        with _quiet(layers):
            flat, waves = self.shown(x, t)
        if layers is not None and layers.take(flat, waves):
            return layers(flat, waves)[0].reshape(x.shape)
        h = self._first(flat, waves)
        for layer in self.hidden:
            step = layer(nn.functional.silu(h))
            h = h + step if self.residual else step
        return self.last(nn.functional.silu(h)).reshape(x.shape)

    def along(self, x: Tensor, t: Tensor, condition: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The output (B, ...) and its Jacobian in x times each direction (K, B or 1, ...), (K, B, ...).

        Forward mode, written out: all directions share the activations and their slopes.
        """
        _refuse(condition)
        layers = self.layers()
        with _quiet(layers):
            flat, waves = self.shown(x, t)
            moved = self._shown_along(flat, directions.flatten(2))
        if layers is not None and layers.take(flat, waves, moved):
            output, products = layers(flat, waves, moved)
            assert products is not None
            return output.reshape(x.shape), products.reshape(-1, *x.shape)
        h, moved = self._first(flat, waves), moved @ self.of_event.weight.t()
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            step, pushed = layer(nn.functional.silu(h)), (moved * _slope(h)) @ layer.weight.t()
            h, moved = (h + step, moved + pushed) if self.residual else (step, pushed)
        products = (moved * _slope(h)) @ self.last.weight.t()
        return self.last(nn.functional.silu(h)).reshape(x.shape), products.reshape(-1, *x.shape)

    def layers(self) -> perceptron.Layers | None:
        """For the kernel; None: torch computes them."""
        if not self.kernel or not perceptron.takes(self.last.weight):
            return None
        weights = [self.of_event.weight, self.of_event.bias, self.of_time.weight]
        for layer in (*self.hidden, self.last):
            assert isinstance(layer, nn.Linear)
            weights += [layer.weight, layer.bias]
        return perceptron.Layers(weights, residual=self.residual)

    def shown(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layer sees of x (B, ...), (B, F), and of t, a scalar or (B,), (1 or B, Q)."""
        flat, waves = x.flatten(1), t.reshape(-1, 1)
        if self.frequencies.shape[1]:
            phase = flat @ self.frequencies
            flat = torch.cat([flat, phase.sin(), phase.cos()], 1)
        if len(self.octaves):
            waves = torch.cat([(waves * self.octaves).sin(), (waves * self.octaves).cos()], 1)
        return flat, waves

    def _shown_along(self, flat: Tensor, moved: Tensor) -> Tensor:
        """The derivative of what is shown of x, flat (B, F), along each direction (K, B or 1, D), (K, B or 1, F)."""
        size, features = self.frequencies.shape
        if not features:
            return moved
        turned, (_, sine, cosine) = moved @ self.frequencies, flat.split([size, features, features], 1)
        return torch.cat([moved.expand(-1, len(flat), -1), turned * cosine, -turned * sine], 2)

    def _first(self, flat: Tensor, waves: Tensor) -> Tensor:
        """The first layer's output (B, width); a time that all rows share is a part of the bias."""
        of_time = self.of_time(waves)
        if len(waves) > 1:
            return self.of_event(flat) + of_time
        return nn.functional.linear(flat, self.of_event.weight, self.of_event.bias + of_time[0])


def _quiet(layers: perceptron.Layers | None) -> AbstractContextManager[None]:
    """Before the kernel, one thread of torch's: others would wait for more work by spinning, in the way of its own."""
    return nullcontext() if layers is None or torch.get_num_threads() == 1 else threads.using(1)


def _refuse(condition: Tensor | None) -> None:
    if condition is not None:
        raise UserError("network=mlp takes no condition")


def _slope(h: Tensor) -> Tensor:
    """The derivative of SiLU at h, in one pass where it need not be differentiated again."""
    if torch.is_grad_enabled():
        gate = torch.sigmoid(h)
        return gate * (1 + h * (1 - gate))
    return torch.ops.aten.silu_backward(torch.ones_like(h), h)
