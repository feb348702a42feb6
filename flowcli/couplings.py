"""Which noise goes with which datum (lecture notes 004; Tong et al., arXiv 2302.00482)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Coupling(ABC):
    """Pairs a batch of noise with a batch of data.

    Attributes:
        independent: x_0 and x_1 stay independent, so that scores and the closed-form field apply.
    """

    independent: bool

    @abstractmethod
    def __call__(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise (B, ...) re-ordered or redrawn so that row i belongs to datum i of x_1 (B, ...).

        The data and their labels stay where they are: every datum appears once.
        """


class Independent(Coupling):
    """Each datum gets the noise it was drawn with."""

    independent = True

    def __call__(self, x_0: Tensor, x_1: Tensor, generator: torch.Generator) -> Tensor:
        """Return x_0 as it is."""
        return x_0
