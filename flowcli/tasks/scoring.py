"""Measuring a trained flow, once: what was found stays in its run, by a name that holds all it depends on."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flowcli import build, quality, scores
from flowcli.checkpoints import Checkpoint
from flowcli.comparison.catalogue import cost
from flowcli.dataset import Dataset
from flowcli.errors import JobError
from flowcli.evaluate import FLOOR, Evaluated
from flowcli.flows.base import Flow
from flowcli.pictures.shown import shown
from flowcli.tasks.events import open_dataset, require_same

Arrays = dict[str, np.ndarray]


def keep(checkpoint: Checkpoint, config: Mapping[str, Any], found: Evaluated, dataset: Dataset) -> scores.Scores:
    """Write what an evaluation found into the checkpoint's run.

    Raises:
        OSError: the folder cannot be written.
    """
    made = _scores(found, dataset)
    scores.write(checkpoint.run, scores.key(checkpoint, config), made)
    return made


def _require_numbers(found: Evaluated) -> None:
    lost = len(found.samples) - int(found.samples.flatten(1).isfinite().all(1).sum())
    if lost:
        raise JobError(f"{lost:,} of its {len(found.samples):,} samples are not finite")
    for name, values in found.units.items():
        if bool(values.isnan().any()):
            raise JobError(f"its {name} is not a number at {int(values.isnan().sum()):,} of {len(values):,} points")


def _scores(found: Evaluated, dataset: Dataset) -> scores.Scores:
    units = {name: values.double().numpy() for name, values in found.units.items()}
    return scores.Scores(dict(found.metrics), units, scores.name_of(dataset.points("test").numpy()))


class Scorer:
    """Opens runs and scores them; each data set is opened once."""

    def __init__(self, trusted: Collection[str]) -> None:
        """trusted: names of classes of the user's own that configs may build."""
        self._trusted, self._opened = trusted, dict[str, Dataset]()

    def require(self, config: Mapping[str, Any]) -> None:
        """Build what a comparison measures by: the nodes solver, divergence and evaluation, where they are not null.

        Raises:
            UserError: naming the key.
        """
        for node in ("solver", "divergence"):
            if config[node] is not None:
                build.construct(config[node], node)
        build.evaluation(config)

    def flow(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Flow:
        """The flow of a checkpoint, averaged weights.

        Raises:
            UserError: it cannot be opened, or not be trusted.
        """
        return build.restore(config, checkpoint, "ema", self._trusted)

    def dataset(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Dataset:
        """The data that a checkpoint was trained on.

        Raises:
            UserError: it cannot be opened, or is not what it was.
        """
        node = json.dumps([config["data"], checkpoint.description.get("event_shape")], sort_keys=True, default=str)
        if node not in self._opened:
            self._opened[node] = open_dataset({**config, "trust": list(self._trusted)}, checkpoint)
        require_same(self._opened[node], checkpoint)  # of every run: one may have been trained on an older file
        return self._opened[node]

    @torch.no_grad()
    def __call__(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[scores.Scores, bool]:
        """Score a run anew, and say whether the figures could be kept in it.

        Raises:
            UserError: it cannot be opened.
            JobError: its solver failed.
        """
        flow, dataset = self.flow(checkpoint, config), self.dataset(checkpoint, config)
        flow.requires_grad_()  # only what training adjusts is counted as a parameter
        found = build.evaluation({**config, "trust": []})(flow, dataset)
        _require_numbers(found)
        try:
            return keep(checkpoint, config, found, dataset), True
        except OSError:  # a run on a read-only disk is compared all the same
            return _scores(found, dataset), False

    def costs(self, checkpoint: Checkpoint, config: Mapping[str, Any], budgets: Sequence[int], draws: int) -> Arrays:
        """W2 of samples (draws,) by every solver with fixed steps at these evaluations, and its floor, by `cost` names.

        A solver that fails at some, or leaves the finite numbers, is left out there.

        Raises:
            UserError: the run cannot be opened.
        """
        flow, dataset = self.flow(checkpoint, config), self.dataset(checkpoint, config)
        evaluation = build.evaluation({**config, "trust": []})
        yardstick = quality.Yardstick(dataset, draws, evaluation.draw_points)
        found, _ = quality.curve(flow, budgets, yardstick, seed=dataset.seed, batch_size=evaluation.batch_size)
        found = [each for each in found if not bool(each.values["w2"].isnan().any())]
        floor, made = yardstick.floor()["w2"].numpy(), Arrays()
        for each in found:
            name = cost(each.solver, each.nfe)
            made |= {name: each.values["w2"].numpy(), name + FLOOR: floor}
        return made

    def shown(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Arrays:
        """What pictures show of a run's flow, by the names of `pictures.shown`.

        Raises:
            UserError: the run cannot be opened.
            JobError: its solver failed.
        """
        batch_size = build.evaluation({**config, "trust": []}).batch_size
        return dict(shown(self.flow(checkpoint, config), self.dataset(checkpoint, config), batch_size=batch_size))
