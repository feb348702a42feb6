"""What a model is made of, and what the config group `model` builds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from flowcli.bases import Base
from flowcli.dataset import Mixture
from flowcli.divergence import Divergence
from flowcli.flows.base import Flow
from flowcli.paths import Path
from flowcli.sde import Stochastic
from flowcli.solvers import Solver
from flowcli.transforms import Affine


@dataclass(frozen=True)
class Parts:
    """All that a model may be made of; `build` fills it in. None where the config says none.

    Attributes:
        network: an untrained network of the state's shape.
        base: over the state's shape.
        train: training data (N, ...) in model units; None when a checkpoint brings its own numbers.
        mixture: the target as a mixture in model units, where it is one.
        tensors: the checkpoint's state dict when a flow is restored: it gives the sizes.
        no_score: why x_0 and x_1 have no score between them (the base, the coupling); None where they have.
        seed: of initial weights.
    """

    network: nn.Module | None
    path: Path | None
    base: Base
    transform: Affine
    solver: Solver | Stochastic | None
    divergence: Divergence | None
    event_shape: tuple[int, ...]
    train: Tensor | None
    mixture: Mixture | None
    tensors: dict[str, Tensor] | None
    no_score: str | None
    seed: int


class Model(ABC):
    """An option of the group `model`.

    Attributes:
        trained: whether there is anything to train.
    """

    trained: bool

    def state_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a latent, of what the base draws and the network sees."""
        return event_shape

    @abstractmethod
    def flow(self, parts: Parts) -> Flow:
        """An untrained flow.

        Raises:
            UserError: parts that do not go together.
        """
