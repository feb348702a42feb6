"""mode=encode: the latents of data, and whether they are what the noise is."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowcli import build, console, memory, metrics, plots, streams
from flowcli.checkpoints import Checkpoint
from flowcli.errors import UserError
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.randomness import generator
from flowcli.sde import Stochastic
from flowcli.storage import replacing, write_json
from flowcli.tasks.events import open_events
from flowcli.tasks.modes import files

KEYS: tuple[str, ...] = ("input", "out")
DRAWS, DRAW_POINTS = 20, 1000
"""Subsets behind the energy distance, and the most points of each."""
COPIES = 4
"""Latents, shuffled ones, the noise beside them and a table's copy are in memory at once."""


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Open the data.

    Raises:
        UserError: the data cannot be opened, or the flow does not encode.
    """
    require_latents(flow)
    files.destination(config)
    events = open_events(config, checkpoint)
    size = COPIES * 8 * len(events.x) * flow.start.mean.numel()
    memory.require(f"the latents of {events.source}, {len(events.x):,} rows,", size)


def require_latents(flow: Flow) -> None:
    """Refuse a flow that draws samples alone.

    Raises:
        UserError: its solver is stochastic.
    """
    if isinstance(flow, ContinuousFlow) and isinstance(flow.solver, Stochastic):
        raise UserError(f"solver={flow.solver.method} has no latents: an ODE has, e.g. solver=dopri5")


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Encode, write latents and a picture of them beside the noise.

    Raises:
        JobError: the solver failed.
    """
    events, out, seed = open_events(config, checkpoint), files.destination(config), build.seed(config)
    result = flow.encode(events.x, batch_size=config["batch_size"])
    latents = result.value.double().cpu()
    with replacing(folder / "latents.npy") as file:
        np.save(file, latents.numpy())
    names = [f"z{i}" for i in range(latents[0].numel())]
    if out is not None:
        size = streams.block_rows(1, latents.shape[1:])
        files.write(latents.split(size), latents.shape, names, out, events.numbers)
    noise, shape = _noise(flow, max(len(latents), DRAW_POINTS), seed), tuple(latents.shape[1:])
    picture, titles = folder / "latents.png", ("Noise", "Latents")
    plots.samples(noise.numpy(), latents.numpy(), picture, event_shape=shape, titles=titles)
    found = {"rows": len(latents), "nfe_encode": result.nfe} | _moments(latents) | _distance(latents, flow, seed)
    write_json(folder / "metrics.json", found)
    console.closing_table(_rows(found), f"latents of {events.source}, {len(latents):,} rows, {result.nfe} evaluations")
    written = console.shown(out or folder / "latents.npy")
    console.console().print(f"wrote {written}, beside the noise in {console.shown(picture)}")


def _noise(flow: Flow, n: int, seed: int, *key: int) -> Tensor:
    """What latents should be draws of (n, ...): N(0, I), or the standardised base where that is no Gaussian."""
    noise = flow.start.sample(n, generator(seed, "noise", *key)).to(flow.start.mean)
    return flow.start.to_latent(noise).double().cpu()


def _moments(latents: Tensor) -> dict[str, float]:
    """Mean and standard deviation of every coordinate of latents (N, ...), the farthest from 0 and 1, with errors."""
    flat = latents.flatten(1)
    if len(flat) < 2:
        return {}
    mean, std = flat.mean(0), flat.std(0)
    far, wide = int(mean.abs().argmax()), int((std - 1).abs().argmax())
    kurtosis = float(((flat[:, wide] - mean[wide]) / std[wide]).pow(4).mean())
    return {
        "latent_mean": float(mean[far]),
        "latent_mean_stderr": float(std[far]) / math.sqrt(len(flat)),
        "latent_std": float(std[wide]),
        "latent_std_stderr": float(std[wide]) * math.sqrt(max(kurtosis - 1, 0.0) / (4 * len(flat))),
    }


def _distance(latents: Tensor, flow: Flow, seed: int) -> dict[str, float]:
    """Energy distance of latents (N, ...) from the noise, over disjoint subsets, and that of noise from noise."""
    points = min(DRAW_POINTS, len(latents) // 2)
    if points < 2:
        return {}
    shuffled = latents[torch.randperm(len(latents), generator=generator(seed, "subsets"))]
    draws = min(DRAWS, len(latents) // points)

    def pair(draw: int) -> tuple[Tensor, Tensor]:
        return shuffled[draw * points : (draw + 1) * points], _noise(flow, points, seed, draw)

    def noise_pair(draw: int) -> tuple[Tensor, Tensor]:
        return _noise(flow, points, seed, DRAWS + draw), _noise(flow, points, seed, draw)

    value = metrics.repeated(metrics.energy_distance, pair, draws)
    floor = metrics.repeated(metrics.energy_distance, noise_pair, draws)
    return {
        "latent_energy_distance": value.mean,
        "latent_energy_distance_stderr": value.stderr,
        "latent_energy_distance_floor": floor.mean,
        "latent_energy_distance_floor_stderr": floor.stderr,
    }


def _rows(found: Mapping[str, float]) -> list[console.Row]:
    """The closing table."""
    rows: list[console.Row] = []
    for key, name, perfect in (
        ("latent_mean", "mean of the coordinate that is farthest off", "0"),
        ("latent_std", "standard deviation of the one farthest off", "1"),
        ("latent_energy_distance", "energy distance from the noise (unbiased)", ""),
    ):
        if key not in found:
            continue
        floor = found.get(f"{key}_floor")
        told = perfect if floor is None else console.with_error(floor, found[f"{key}_floor_stderr"])
        rows.append((name, console.with_error(found[key], found[f"{key}_stderr"]), told))
    return rows
