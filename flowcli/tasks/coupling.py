"""A dependent coupling's part of a training: what it is fitted to, before the first step, and what it changes."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowcli import build, console
from flowcli.bases import Base, StandardNormal
from flowcli.checkpoints import fitted_coupling
from flowcli.couplings import Coupling, Reflow, Semidiscrete
from flowcli.dataset import Dataset, TrainingData
from flowcli.ends import Ends
from flowcli.errors import JobError, UserError
from flowcli.flows.augmented import AugmentedFlow
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.fields import PathField
from flowcli.randomness import generator, rows
from flowcli.run import RunFolder
from flowcli.sde import Stochastic

PAIRS_AT_ONCE = 10_000
"""Pairs of a reflow that are solved together."""
DEGENERATE = 1e-10
"""Least part of its variance that one end has of its own, given the other: single precision still resolves its root."""


def check(config: Mapping[str, Any], dataset: Dataset, flow: Flow, ends: Ends) -> None:
    """Say which couplings that keep a whole table of pairs fit which flows, and open a reflow's first flow.

    Raises:
        UserError: they do not fit, or that flow cannot be opened.
    """
    coupling = ends.coupling
    if isinstance(coupling, Reflow | Semidiscrete) and isinstance(flow, AugmentedFlow):
        name = type(coupling).__name__.lower()
        raise UserError(f"coupling={name} pairs events, which have no extra coordinates (model.augment_dim=0)")
    if not isinstance(coupling, Reflow):
        return
    if not ends.base.is_gaussian:
        raise UserError("coupling=reflow starts from the first flow's Gaussian noise: it takes base=gaussian")
    if not config.get("resume"):  # a run that goes on has its pairs
        _teacher(config, coupling, dataset)


def fit(
    config: Mapping[str, Any],
    dataset: Dataset,
    flow: Flow,
    ends: Ends | None,
    data: TrainingData,
    folder: Path,
    *,
    batch_size: int,
    earlier: dict[str, Any] | None,
) -> dict[str, Any]:
    """Fit a dependent coupling, or load its fit, and give the flow its moments; what it saves in transport.

    earlier: what this gave when the training began, for a run that goes on.

    Raises:
        JobError: the pairs leave nothing to learn.
    """
    if ends is None or ends.coupling.independent:
        return {}
    coupling = ends.coupling
    assert isinstance(flow, ContinuousFlow)
    if earlier is not None:  # the flow's moments came with its weights
        coupling.load(fitted_coupling(folder))
        return earlier
    metrics = _fit_coupling(config, dataset, coupling, ends.base, flow, data)
    RunFolder(folder).save_coupling(coupling.state())
    if not coupling.keeps_marginals:
        console.console().print(
            "this coupling changes the marginals: the flow leads from the noise to the data as the plan re-weights both"
        )
    seed = build.seed(config)
    states = flow.lift(flow.to_model(dataset.points("train")), generator(seed, "lift"))
    found = ends.measure(states, data.condition, batch_size=batch_size, seed=seed)
    moments = found.moments
    if float(moments.delta) < DEGENERATE * float(moments.var_0 * moments.var_1):
        raise JobError("the coupling's pairs are a linear map of each other: there is nothing left to learn")
    field = flow.field
    assert isinstance(field, PathField)
    field.moments.load_state_dict(moments.state_dict())
    return metrics | {"transport_cost": found.cost, "transport_cost_independent": found.independent_cost}


def _fit_coupling(
    config: Mapping[str, Any],
    dataset: Dataset,
    coupling: Coupling,
    base: Base,
    flow: ContinuousFlow,
    data: TrainingData,
) -> dict[str, Any]:
    """Fit what a coupling keeps for the whole training; how long that took, and how good it is."""
    seed, began = build.seed(config), time.perf_counter()
    if isinstance(coupling, Reflow):
        console.console().print(f"drawing {coupling.pairs:,} pairs from {coupling.ckpt}")
        coupling.fill(*_reflow_pairs(coupling, _teacher(config, coupling, dataset), base, flow, seed))
    elif isinstance(coupling, Semidiscrete):
        console.console().print(f"fitting coupling=semidiscrete to {len(data.train):,} points")
    coupling.prepare(data.train, base, seed, condition=data.condition, jitter=data.jitter)
    if not isinstance(coupling, Reflow | Semidiscrete):
        return {}
    metrics = {"coupling_fit_seconds": time.perf_counter() - began}
    return metrics | ({"coupling_error": coupling.largest_error} if isinstance(coupling, Semidiscrete) else {})


def _teacher(config: Mapping[str, Any], coupling: Reflow, dataset: Dataset) -> Flow:
    """The flow whose pairs are learned: it takes standard normal latents to events like the data's, one to one.

    Raises:
        UserError: it cannot be opened, or is not such a flow.
    """
    said = f"coupling.ckpt={coupling.ckpt}"
    try:
        teacher = build.load(coupling.ckpt, device=str(config["device"]), trusted=config.get("trust") or ())
    except UserError as error:
        raise UserError(f"{said}: {error}".replace("--ckpt ", "", 1)) from error
    if teacher.event_shape != dataset.event_shape:
        raise UserError(f"{said}: its events have the shape {teacher.event_shape}, the data's {dataset.event_shape}")
    if isinstance(teacher, ContinuousFlow) and isinstance(teacher.solver, Stochastic):
        raise UserError(f"{said}: it samples by an SDE, which pairs no noise with an event")
    if isinstance(teacher, AugmentedFlow):
        raise UserError(f"{said}: its latents have coordinates more than its events (model.augment_dim)")
    if not teacher.start.is_gaussian:
        raise UserError(f"{said}: it does not start from Gaussian noise")
    return teacher


@torch.no_grad()
def _reflow_pairs(
    coupling: Reflow, teacher: Flow, base: Base, flow: ContinuousFlow, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and what the teacher makes of it, (P, ...) each, in the new flow's units."""
    z = rows(StandardNormal(tuple(base.mean.shape)).sample, seed, "reflow", 0, coupling.pairs)
    events = teacher.decode(z, batch_size=PAIRS_AT_ONCE).value
    return base.from_latent(z.double()).to(flow.start.mean), flow.transform(events).to(flow.start.mean)
