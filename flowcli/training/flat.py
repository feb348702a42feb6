"""A model's trainable numbers as one vector: one operation on it instead of one a tensor."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's trainable parameters by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class Flat:
    """Parameters, which become views of one vector.

    Attributes:
        vector: (P,), all of them in their order; what is written into it, their module computes with.
        parameters: themselves.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._names, self.parameters = list(named), list(named.values())
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self.vector = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        for parameter, (_, part) in zip(self.parameters, self.named(self.vector), strict=True):
            parameter.data = part

    def named(self, vector: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and part, shaped like the parameter, of a vector (P,)."""
        parts = vector.split(self._sizes)
        for name, parameter, part in zip(self._names, self.parameters, parts, strict=True):
            yield name, part.view(parameter.shape)
