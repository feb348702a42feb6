"""The one interface of every model: data units outside, standard normal latents inside."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Result:
    """What a flow computed and what it cost.

    Attributes:
        value: (B, ...) events or latents, or (B,) log-densities in nats.
        nfe: evaluations of the field; the most that any chunk of rows took. 1 for a flow that solves nothing.
        status: why the solver stopped.
        stderr: (B,) standard error of an estimated log-density over its probes, where there are two or more.
    """

    value: Tensor
    nfe: int
    status: str
    stderr: Tensor | None = None


@dataclass(frozen=True)
class Trajectory:
    """States on the way from noise to data.

    Attributes:
        times: (T,), from t = 0 (noise) to 1 (data).
        states: (T, B, ...), data units.
        nfe: evaluations of the field.
    """

    times: Tensor
    states: Tensor
    nfe: int


class Flow(nn.Module):
    """An invertible map between latents z (standard normal) and events x (data units).

    `condition` is None or a tensor with one row an event; a model that takes none refuses one.
    """

    event_shape: tuple[int, ...]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the flow computes."""

    @abstractmethod
    def sample(
        self, n: int, *, seed: int, start: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Events number start .. start + n of this seed's endless table, (n, ...); batch_size changes memory alone."""

    @abstractmethod
    def log_prob(
        self, x: Tensor, *, seed: int = 0, batch_size: int | None = None, condition: Tensor | None = None
    ) -> Result:
        """Log-density of x (B, ...) in nats per event, data units. seed: of the divergence's probes, if it has any."""

    @abstractmethod
    def encode(self, x: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Latents z (B, ...) of events x (B, ...)."""

    @abstractmethod
    def decode(self, z: Tensor, *, batch_size: int | None = None, condition: Tensor | None = None) -> Result:
        """Events x (B, ...) of latents z (B, ...)."""

    def trainable_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
