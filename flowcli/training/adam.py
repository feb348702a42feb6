r"""Adam on one flat vector (arXiv 1412.6980), with decoupled weight decay (arXiv 1711.05101).

Plain arithmetic in place, so that one compiled graph holds a whole step; what depends on the step's number comes in.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowcli.errors import UserError
from flowcli.training.flat import Flat

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class State(NamedTuple):
    """What a step changes, (P,) each: the weights, Adam's two memories, the averaged weights."""

    weights: Tensor
    first: Tensor
    second: Tensor
    average: Tensor


class Adam:
    """The update and its memory.

    Attributes:
        first, second: (P,), running means of the gradient and of its square.
    """

    def __init__(self, flat: Flat, weight_decay: float) -> None:
        self._flat, self._weight_decay = flat, weight_decay
        self.first, self.second = torch.zeros_like(flat.vector), torch.zeros_like(flat.vector)

    def rates(self, step: int, lr: float) -> tuple[float, float, float]:
        """What step number `step`, counted from 0, does at learning rate lr: decay, size, and the second mean's scale.

        Both means start at 0, and are divided by the weight that they have gathered by then.
        """
        return 1 - lr * self._weight_decay, lr / (1 - BETA_1 ** (step + 1)), math.sqrt(1 - BETA_2 ** (step + 1))

    @staticmethod
    def update(
        weights: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rates: Sequence[float] | Sequence[Tensor]
    ) -> None:
        """One step in place on (P,) each; rates: what `rates` gave, as numbers or as scalars."""
        decay, size, scale = rates
        first.lerp_(gradient, 1 - BETA_1)
        second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
        weights.mul_(decay).sub_((first / second.sqrt().div_(scale).add_(EPSILON)).mul_(size))

    def tensors(self, step: int) -> dict[str, Tensor]:
        """The memory after so many steps, by number of the parameter, dot, name."""
        found: dict[str, Tensor] = {}
        for name, memory in (("exp_avg", self.first), ("exp_avg_sq", self.second)):
            found |= {f"{number}.{name}": part for number, (_, part) in enumerate(self._flat.named(memory))}
        return found | {f"{number}.step": torch.tensor(float(step)) for number in range(len(self._flat.parameters))}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave.

        Raises:
            UserError: they are another optimizer's, or another network's.
        """
        mine = self.tensors(0)
        if mine.keys() != tensors.keys() or any(value.shape != tensors[name].shape for name, value in mine.items()):
            raise UserError("the checkpoint's optimizer does not belong to this model")
        for name, value in mine.items():
            value.copy_(tensors[name])
