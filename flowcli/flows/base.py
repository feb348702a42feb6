"""The one interface of every model: data units outside, standard normal latents inside."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from flowcli import processes
from flowcli.bases import Base
from flowcli.errors import JobError, UserError
from flowcli.transforms import Affine


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

    def cpu(self) -> "Result":
        """The same on the CPU."""
        return replace(self, value=self.value.cpu(), stderr=None if self.stderr is None else self.stderr.cpu())


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
    transform: Affine
    start: Base

    @property
    def no_likelihood(self) -> str | None:
        """Why there is no log_prob; None where there is one."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the flow computes."""
        return self.start.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """What the flow computes in."""
        return self.start.mean.dtype

    def cast(self, dtype: torch.dtype, device: torch.device) -> Self:
        """Move to a device and compute in this dtype; the transform to data units stays in float64."""
        for part in self.children():
            part.to(device=device, dtype=torch.float64 if part is self.transform else dtype)
        return self

    def to_model(self, x: Tensor) -> Tensor:
        """Events x (B, ...) in model units, in the flow's dtype and on its device.

        Raises:
            UserError: events of another shape.
        """
        if tuple(x.shape[1:]) != self.event_shape:
            raise UserError(f"events must have the shape {self.event_shape}, got {tuple(x.shape[1:])}")
        return self.transform(x.to(device=self.device, dtype=torch.float64)).to(self.dtype)

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

    @abstractmethod
    def trajectory(self, n: int, *, seed: int, points: int, condition: Tensor | None = None) -> Trajectory:
        """The ways of samples 0 .. n from noise to data: at `points` times, or at every step or layer there is."""

    @abstractmethod
    def follow(self, z: Tensor, *, points: int, condition: Tensor | None = None) -> Trajectory:
        """The ways of latents z (B, ...), as in `trajectory`."""

    def trainable_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def in_chunks(
    chunk: Callable[[int, int, Tensor | None], Result],
    n: int,
    batch_size: int | None,
    condition: Tensor | None,
    shape: tuple[int, ...],
) -> Result:
    """Results of rows 0 .. n, each of this shape, computed batch_size at a time; processes take chunks in turn."""
    if n == 0:
        return Result(torch.empty(0, *shape, dtype=torch.float64), 0, "done")
    size = max(1, n if batch_size is None else batch_size)
    firsts = range(0, n, size)

    def computed(firsts: Sequence[int]) -> list[Result]:
        return [
            chunk(first, min(first + size, n), None if condition is None else condition[first : first + size])
            for first in firsts
        ]

    parts = computed(firsts) if processes.count() == 1 else _together(computed, firsts)
    stderr = None if parts[0].stderr is None else torch.cat([part.stderr for part in parts if part.stderr is not None])
    return Result(torch.cat([part.value for part in parts]), max(part.nfe for part in parts), parts[0].status, stderr)


def _together(computed: Callable[[Sequence[int]], list[Result]], firsts: Sequence[int]) -> list[Result]:
    """The chunks that begin at these rows, each computed by one process, in order, on the CPU of all.

    Raises:
        JobError: of whichever process, in all.
    """
    try:
        mine = [result.cpu() for result in computed(firsts[processes.rank() :: processes.count()])]
    except JobError as error:
        mine = error
    found = processes.exchange(mine)
    for each in found:
        if isinstance(each, JobError):
            raise each
    return [found[chunk % len(found)][chunk // len(found)] for chunk in range(len(firsts))]
