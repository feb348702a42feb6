r"""Discrete normalizing flows: a chain of invertible layers $z = f_L \circ \dots \circ f_1(x)$ (notes 000, 003, 004).

$\log p(x) = \log p_0(z) + \sum_k \log |\det \partial f_k|$, and every layer has a triangular Jacobian, up to the order
of the coordinates: its determinant is the product of the diagonal. The layers are zuko's.
"""

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import zuko.flows
from torch import Tensor, nn
from zuko.lazy import LazyComposedTransform
from zuko.transforms import AdditiveTransform, MonotonicAffineTransform, MonotonicRQSTransform

from flowcli import memory
from flowcli.bases import Base
from flowcli.errors import UserError, integer, number
from flowcli.flows.base import Flow, Result, Trajectory, in_chunks
from flowcli.flows.parts import Model, Parts
from flowcli.randomness import generator, rows
from flowcli.transforms import Affine

SLOPE = 0.1
"""An affine layer stretches by a factor in (SLOPE, 1 / SLOPE). Fits are as good as with zuko's 0.001, under which an
outlier's density underflows to 0 in float32: its network, linear far out, asks every layer for the extreme."""
AFFINE = functools.partial(MonotonicAffineTransform, slope=SLOPE)


def _refuse(condition: Tensor | None) -> None:
    if condition is not None:
        raise UserError("discrete flows (realnvp, maf, nsf, nice) take no condition")


class DiscreteFlow(Flow):
    """Data to noise through invertible layers: density and latents are exact, and nothing is solved (nfe = 1).

    Layers see events flattened to (B, D), in model units; `transform` stays in float64.
    """

    def __init__(
        self, layers: Sequence[nn.Module], start: Base, transform: Affine, event_shape: tuple[int, ...]
    ) -> None:
        """Take zuko's lazy transforms of (B, D), in the order from data to noise, and the noise's distribution."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.start, self.transform, self.event_shape = start, transform, event_shape

    # ------------------------------------------------------------ what training maximises
    def density(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Log-density (B,) of x (B, ...), both in model units; differentiable."""
        _refuse(condition)
        return self._density(x, self.layers)

    # ------------------------------------------------------------ the interface of every flow
    def sample(
        self, n: int, *, seed: int, start: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Events (n, ...) from noise that depends on (seed, row) alone."""
        _refuse(condition)

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            return self._to_data(rows(self.start.sample, seed, "sample", start + first, start + last))

        return in_chunks(chunk, n, batch_size, condition, self.event_shape)

    def decode(self, z: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Events x (B, ...) of latents z (B, ...)."""
        _refuse(condition)

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            return self._to_data(self.start.from_latent(z[first:last].to(device=self.device, dtype=self.dtype)))

        return in_chunks(chunk, len(z), batch_size, condition, self.event_shape)

    def encode(self, x: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Latents z (B, ...) of events x (B, ...)."""
        _refuse(condition)

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            noise, _ = self._to_noise(self.to_model(x[first:last]), self.layers)
            return Result(self.start.to_latent(noise), 1, "done")

        return in_chunks(chunk, len(x), batch_size, condition, self.event_shape)

    def log_prob(
        self, x: Tensor, *, seed: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Log-density of x (B, ...) in nats, data units; exact, so the seed has no effect."""

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            density = self.density(self.to_model(x[first:last]), condition)
            return Result(density.double() + self.transform.log_det, 1, "done")

        return in_chunks(chunk, len(x), batch_size, condition, ())

    def trajectory(self, n: int, *, seed: int, points: int, condition: Tensor | None = None) -> Trajectory:
        """The states of samples 0 .. n after each layer, at times k / L; L layers count as L evaluations."""
        _refuse(condition)
        return self._way(rows(self.start.sample, seed, "sample", 0, n).to(device=self.device, dtype=self.dtype))

    def follow(self, z: Tensor, *, points: int, condition: Tensor | None = None) -> Trajectory:
        """The states of latents z (B, ...) after each layer, as in `trajectory`."""
        _refuse(condition)
        return self._way(self.start.from_latent(z.to(device=self.device, dtype=self.dtype)))

    def _way(self, noise: Tensor) -> Trajectory:
        states = torch.stack(list(self._states(noise)))
        times = torch.linspace(0, 1, len(states), dtype=self.dtype, device=self.device)
        return Trajectory(times, self.transform.inverse(states.double()), len(self.layers))

    # ------------------------------------------------------------ what only discrete flows have
    def layer_log_probs(self, x: Tensor, *, batch_size: int | None = None) -> Result:
        """Log-densities (B, L + 1) at x (B, ...) in data units: column k is that of `trajectory`'s states k.

        The noise has the density of column 0; each layer pushes it on; column L is `log_prob`.
        """

        def chunk(first: int, last: int, condition: Tensor | None) -> Result:
            state, count = self.to_model(x[first:last]), len(self.layers)
            columns = [self._density(state, self.layers[count - k :]) for k in range(count + 1)]
            return Result(torch.stack(columns, 1).double() + self.transform.log_det, 1, "done")

        return in_chunks(chunk, len(x), batch_size, None, (len(self.layers) + 1,))

    # ------------------------------------------------------------ through the layers
    def _to_data(self, noise: Tensor) -> Result:
        *_, x = self._states(noise.to(device=self.device, dtype=self.dtype))
        return Result(self.transform.inverse(x.double()), 1, "done")

    def _states(self, noise: Tensor) -> Iterator[Tensor]:
        """Noise (B, ...), then the state after each layer on its way to the data."""
        yield noise
        flat = noise.flatten(1)
        for layer in reversed(self.layers):
            flat = layer().inv(flat)
            yield flat.reshape(noise.shape)

    def _to_noise(self, x: Tensor, layers: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
        """Noise (B, ...) of x (B, ...), and log |det d noise / d x| (B,)."""
        flat, log_det = x.flatten(1), x.new_zeros(len(x))
        for layer in layers:
            flat, more = layer().call_and_ladj(flat)
            log_det = log_det + more
        return flat.reshape(x.shape), log_det

    def _density(self, x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
        noise, log_det = self._to_noise(x, layers)
        return self.start.log_prob(noise) + log_det


# ---------------------------------------------------------------- models
class Discrete(Model):
    """What the models below share: so many layers, each steered by a ReLU network."""

    trained = True
    smallest = 1
    """Least number of values in an event."""
    outputs = 1
    """Numbers that a layer's network gives for a value, at least."""

    def __init__(self, transforms: int, width: int, depth: int) -> None:
        """transforms: layers of the flow; width, depth: hidden units and hidden layers of each one's network."""
        self.transforms = integer("transforms", transforms, minimum=1, maximum=1000)
        self.width = integer("width", width, minimum=1)
        self.depth = integer("depth", depth, minimum=1, maximum=100)

    @property
    def name(self) -> str:
        """What the config calls it."""
        return type(self).__name__.lower()

    def flow(self, parts: Parts) -> DiscreteFlow:
        """An untrained flow whose weights depend on the seed alone.

        Raises:
            UserError: parts that it has no use for, a base without a density, or events that are too small or too large
                for its layers.
        """
        for group in ("network", "path", "solver", "divergence"):
            if getattr(parts, group) is not None:
                raise UserError(
                    f"model={self.name} has no {group}: it takes {group}=none, which model={self.name} brings along"
                )
        if not parts.base.has_density:
            raise UserError("base=data has no density, which maximum likelihood needs: it is known by its points alone")
        size = math.prod(parts.event_shape)
        if size < self.smallest:
            raise UserError(
                f"model={self.name} needs events of {self.smallest} values or more: one part steers the other; "
                "in one dimension use model=nsf (or model=maf, which fits a Gaussian there)"
            )
        shapes = [(size, self.width), *[(self.width, self.width)] * (self.depth - 1), (self.width, size * self.outputs)]
        said = f"model.width={self.width} with model.transforms={self.transforms}, model.depth={self.depth}"
        memory.require(said, memory.of_weights(shapes * self.transforms))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(parts.seed, "network").initial_seed())
            layers = self.layers(size)
        return DiscreteFlow(layers, parts.base, parts.transform, parts.event_shape)

    @abstractmethod
    def layers(self, size: int) -> Sequence[nn.Module]:
        """Untrained layers over `size` values, from data to noise."""

    @property
    def common(self) -> dict[str, Any]:
        """What every one of zuko's flows takes."""
        return {"transforms": self.transforms, "hidden_features": [self.width] * self.depth}


class RealNVP(Discrete):
    """model=realnvp: affine couplings (arXiv 1605.08803): every other value moves, given the rest, which move next."""

    smallest = 2

    def layers(self, size: int) -> Sequence[nn.Module]:
        """Couplings x exp(s) + m."""
        return _layers(zuko.flows.RealNVP(size, **self.common, univariate=AFFINE))


class NICE(Discrete):
    """model=nice: additive couplings, which keep volumes, and one scale a coordinate at the end (arXiv 1410.8516)."""

    smallest = 2

    def layers(self, size: int) -> Sequence[nn.Module]:
        """Couplings x + m, then the scales (with shifts), which start as the identity."""
        couplings = zuko.flows.NICE(size, **self.common, univariate=AdditiveTransform, shapes=[()])
        scales = zuko.flows.ElementWiseTransform(size)
        for parameter in scales.parameters():
            nn.init.zeros_(parameter)
        return [*_layers(couplings), scales]


class MAF(Discrete):
    """model=maf: affine autoregressive layers (arXiv 1705.07057): each value moves, given those before it.

    The next layer takes them in the opposite order. In one dimension this is an affine map: a Gaussian.
    """

    def __init__(self, transforms: int, width: int, depth: int, passes: int | None) -> None:
        """passes: evaluations that a layer takes to sample; null: one a value; 2: couplings of halves."""
        super().__init__(transforms, width, depth)
        self.passes = None if passes is None else integer("passes", passes, minimum=2)

    def layers(self, size: int) -> Sequence[nn.Module]:
        """Layers x_i exp(s(x_<i)) + m(x_<i).

        Raises:
            UserError: a network so narrow that its masks would hide the last of the conditions.
        """
        return self.masked(size, univariate=AFFINE)

    def masked(self, size: int, **univariate: Any) -> Sequence[nn.Module]:
        """Layers of this kind over another map of one value."""
        needed = min(size, self.passes or size) - 1
        if self.width < needed:
            raise UserError(
                f"model.width must be at least {needed} for events of {size} values, one unit for every set of "
                f"conditions, got {self.width}"
            )
        return _layers(zuko.flows.MAF(size, **self.common, passes=self.passes, **univariate))


class NSF(MAF):
    """model=nsf: rational-quadratic splines in the layers of `MAF` (arXiv 1906.04032).

    A spline moves [-bound, bound] (model units) onto itself and leaves what is beyond where it is: outliers keep a
    finite density, about the base's.
    """

    def __init__(self, transforms: int, width: int, depth: int, passes: int | None, bins: int, bound: float) -> None:
        """bins: pieces of a spline; bound: where splines end, in standard deviations of standardised data."""
        super().__init__(transforms, width, depth, passes)
        self.bins = self.outputs = integer("bins", bins, minimum=2)
        self.bound = number("bound", bound, minimum=1e-3, maximum=1e6)

    def layers(self, size: int) -> Sequence[nn.Module]:
        """Layers of splines; widths, heights and inner slopes of the pieces are functions of x_<i."""
        spline = functools.partial(MonotonicRQSTransform, bound=self.bound)
        return self.masked(size, univariate=spline, shapes=[(self.bins,), (self.bins,), (self.bins - 1,)])


def _layers(flow: zuko.flows.Flow) -> Sequence[nn.Module]:
    assert isinstance(flow.transform, LazyComposedTransform)
    return list(flow.transform.transforms)
