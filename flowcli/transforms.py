r"""Maps between data units and the units the model works in; each carries its log-determinant."""

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    r"""$z = (x - \mathrm{shift}) / \mathrm{scale}$, element by element.

    Shift and scale are buffers, so a checkpoint carries the units that the model was trained in.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        """Take shift and scale, both of the event's shape (...)."""
        super().__init__()
        if shift.shape != scale.shape or not bool((scale > 0).all()):
            raise ValueError("shift and scale need the same shape, and scale must be positive")
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    @classmethod
    def identity(cls, event_shape: tuple[int, ...]) -> "Affine":
        """Leave every event as it is."""
        return cls(torch.zeros(event_shape, dtype=torch.float64), torch.ones(event_shape, dtype=torch.float64))

    @classmethod
    def standardise(cls, x: Tensor) -> "Affine":
        """Give each coordinate of x (N, ...) mean 0 and standard deviation 1."""
        return cls(x.mean(0), x.std(0, correction=0))

    @classmethod
    def rescale(cls, x: Tensor) -> "Affine":
        """One shift and one scale for all coordinates of x (N, ...): right for pixels, some of which never change."""
        return cls(x.mean().expand(x.shape[1:]).clone(), x.std(correction=0).expand(x.shape[1:]).clone())

    @property
    def log_det(self) -> Tensor:
        """log |dz/dx|, a scalar (nats): the same for every x."""
        return -self.scale.double().log().sum()

    def forward(self, x: Tensor) -> Tensor:
        """Data units (B, ...) to model units (B, ...)."""
        return (x - self.shift) / self.scale

    def inverse(self, z: Tensor) -> Tensor:
        """Model units (B, ...) to data units (B, ...)."""
        return z * self.scale + self.shift
