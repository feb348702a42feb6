"""What a data set hands to the rest of the program, whatever it was read from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flowcli.randomness import rows
from flowcli.transforms import Affine

SPLITS = ("train", "validation", "test")


class Target(Protocol):
    """A known distribution behind a data set; float64, data units, nats."""

    @property
    def entropy(self) -> float | None:
        """Differential entropy in nats, or None where it is not known."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n fresh points, (n, ...)."""
        ...

    def log_prob(self, x: Tensor) -> Tensor | None:
        """Exact log-density of x (N, ...), (N,), or None where it is not known."""
        ...


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture: weights (K,), means (K, D), covariances (K, D, D), float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def through(self, transform: Affine) -> "Mixture":
        """The mixture that transformed events have."""
        scale = transform.scale.flatten()
        covariances = self.covariances / (scale[:, None] * scale[None, :])
        return Mixture(self.weights, transform(self.means), covariances)


@dataclass(frozen=True)
class Batch:
    """Events x (B, ...) and what they are conditioned on: None, or a tensor (B, ...)."""

    x: Tensor
    condition: Tensor | None = None


@dataclass(frozen=True)
class Dataset:
    """Fixed splits in data units (float64, before dequantisation) and all that is known of them.

    Attributes:
        train, validation, test: (N, ...) each.
        seed: data.seed; it owns the splits and the fixed dequantisation draws.
        transform: data units to model units, fitted on the training split alone.
        columns: names of the D columns of a table, else None.
        bin_width: event-shaped widths of the bins that the values were rounded to (0 = not rounded), or None.
        discrete: every value is a whole number, so bits/dim has a meaning.
        target: the true distribution where there is one.
        mixture: the target as a Gaussian mixture where it is one (for the oracle).
        source: what goes to data.json: where the data came from, rows, columns, hash.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    seed: int
    transform: Affine
    columns: tuple[str, ...] | None = None
    bin_width: Tensor | None = None
    discrete: bool = False
    target: Target | None = None
    mixture: Mixture | None = None
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event: (D,) or (C, H, W)."""
        return tuple(self.train.shape[1:])

    def points(self, split: str, draw: int = 0) -> Tensor:
        """The split (N, ...) in data units, dequantised by fixed uniform noise (independent for each `draw`)."""
        return dequantize(getattr(self, split), self.bin_width, self.seed, f"dequantize {split} {draw}")


@dataclass(frozen=True)
class TrainingData:
    """What a training reads, in model units, on the device that it runs on.

    Attributes:
        train: (N, ...).
        validation: (M, ...), dequantised.
        jitter: width of the uniform noise that undoes rounding, of the event's shape, or None.
        condition: one row an event, or None.
        mixture: the target as a Gaussian mixture where it is one.
    """

    train: Tensor
    validation: Tensor
    jitter: Tensor | None = None
    condition: Tensor | None = None
    mixture: Mixture | None = None


def dequantize(x: Tensor, bin_width: Tensor | None, seed: int, stream: str) -> Tensor:
    """Add uniform noise of one bin's width to x (N, ...); x itself where nothing was rounded."""
    if bin_width is None:
        return x

    def uniform(n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, *x.shape[1:], generator=generator, dtype=x.dtype)

    return x + bin_width * rows(uniform, seed, stream, 0, len(x))


class Source(Protocol):
    """What a config of the group `data` builds: cheap to construct, opened by `load`."""

    def load(self) -> Dataset:
        """Open, check, split and standardise the data."""
        ...

    def read(self, path: Path, columns: tuple[str, ...] | None, event_shape: tuple[int, ...]) -> Tensor:
        """Events (N, *event_shape) of another file with the same columns, data units, float64.

        An event with a missing or infinite value comes through only where the data itself drops such events.
        """
        ...
