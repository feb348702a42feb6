"""model=cnf: which continuous flow a network becomes."""

import torch
from torch import nn

from flowcli.bases import Base
from flowcli.errors import UserError, boolean, choice, integer
from flowcli.flows.augmented import AugmentedFlow, augmented_moments, augmented_shape
from flowcli.flows.continuous import ContinuousFlow, start_of
from flowcli.flows.fields import Field, FreeField, LearnedField
from flowcli.flows.parts import Model, Parts
from flowcli.parametrizations import PREDICTIONS, Moments, Preconditioned, Raw
from flowcli.paths import Path


class CNF(Model):
    """model=cnf: a network as the field, on a path or free of one (for maximum likelihood)."""

    trained = True

    def __init__(self, precondition: bool | str, prediction: str | None, augment_dim: int, augment_draws: int) -> None:
        """Check the settings.

        Args:
            precondition: auto (true on a path, false without one), true or false.
            prediction: what a raw network on a path puts out (precondition=false); null otherwise.
            augment_dim: noise coordinates that are added to an event at both ends (arXiv 1904.01681).
            augment_draws: draws of them behind the bound on a likelihood, with augment_dim > 0.
        """
        self.precondition = precondition if precondition == "auto" else boolean("precondition", precondition)
        if self.precondition and prediction is not None:
            raise UserError(
                f"prediction={prediction} needs precondition=false: the preconditioned network predicts "
                "velocity, data, noise and score at once"
            )
        self.prediction = None if prediction is None else choice("prediction", prediction, PREDICTIONS)
        self.augment_dim = integer("augment_dim", augment_dim, minimum=0, maximum=10_000)
        self.augment_draws = integer("augment_draws", augment_draws, minimum=1, maximum=10_000)

    def state_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """An event's shape with augment_dim more coordinates.

        Raises:
            UserError: images cannot be augmented.
        """
        return augmented_shape(event_shape, self.augment_dim) if self.augment_dim else event_shape

    def flow(self, parts: Parts) -> ContinuousFlow:
        """An untrained flow."""
        if parts.network is None:
            raise UserError("model=cnf needs a network, e.g. network=mlp")
        if parts.solver is None or parts.divergence is None:
            raise UserError("model=cnf needs a solver and a divergence, e.g. solver=dopri5 divergence=exact")
        field, start = self._free(parts.network, parts) if parts.path is None else self._on(parts.path, parts)
        rest = (field, start, parts.transform, parts.solver, parts.divergence, parts.event_shape)
        made = AugmentedFlow(*rest, draws=self.augment_draws) if self.augment_dim else ContinuousFlow(*rest)
        made.require_plan(parts.tensors)
        return made

    def _free(self, network: nn.Module, parts: Parts) -> tuple[Field, Base]:
        if self.precondition is True:
            raise UserError("model.precondition=true needs a path, and objective=mle has none")
        if self.prediction not in (None, "velocity"):
            raise UserError(f"model.prediction={self.prediction} needs a path; without one the network is the velocity")
        return FreeField(network), parts.base

    def _on(self, path: Path, parts: Parts) -> tuple[Field, Base]:
        if self.precondition is False and self.prediction is None:
            choice("model.prediction", None, PREDICTIONS)
        moments = self._moments(parts)
        parametrization = Preconditioned() if self.prediction is None else Raw(self.prediction, path)
        assert parts.network is not None
        return LearnedField(parts.network, parametrization, path, moments, parts.no_score), start_of(
            path, parts.base, moments
        )

    def _moments(self, parts: Parts) -> Moments:
        mean_0, var_0 = parts.base.mean, parts.base.std.square()
        # without training data a checkpoint brings the numbers
        train = torch.zeros(2, *parts.event_shape, dtype=torch.float64) if parts.train is None else parts.train
        if not self.augment_dim:
            return Moments.measured(train, mean_0, var_0)
        return augmented_moments(Moments.measured(train, mean_0, var_0), self.augment_dim)
