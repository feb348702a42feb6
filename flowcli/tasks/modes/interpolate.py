"""mode=interpolate: between data in latent space, or from data in the direction of a difference (notes 003)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowcli import console, latent, plots
from flowcli.checkpoints import Checkpoint
from flowcli.errors import UserError, integer, number
from flowcli.flows.base import Flow
from flowcli.storage import replacing, write_json
from flowcli.tasks.events import Events, column_names, open_events
from flowcli.tasks.modes import files
from flowcli.tasks.modes.encode import require_latents

KEYS: tuple[str, ...] = ("input", "points", "steps", "direction", "strength")
MAX_STEPS = 10_000


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Open the data and find the rows.

    Raises:
        UserError: no such rows, too few, or the flow does not encode.
    """
    require_latents(flow)
    _settings(config)
    if config["direction"] is None and files.changed(config, "strength"):
        raise UserError(f"strength={config['strength']} is how far to go in a direction; say direction=[a,b], too")
    _chosen(config, open_events(config, checkpoint))


def _settings(config: Mapping[str, Any]) -> tuple[int, float]:
    return integer("steps", config["steps"], minimum=1, maximum=MAX_STEPS), number("strength", config["strength"])


def _chosen(config: Mapping[str, Any], events: Events) -> tuple[list[int], Tensor, Tensor | None]:
    """The rows of `points`, their events (E, ...), and the two events of `direction`."""
    if config["direction"] is None:
        rows = files.chosen_rows("points", config["points"], minimum=2)
        return rows, events.rows("points", rows), None
    rows = files.chosen_rows("points", config["points"], minimum=1)
    pair = files.chosen_rows("direction", config["direction"], minimum=2)
    if len(pair) > 2 or pair[0] == pair[1]:
        raise UserError(f"direction must be two different rows, direction=[a,b] for z(a) - z(b), got {pair}")
    return rows, events.rows("points", rows), events.rows("direction", pair)


@dataclass(frozen=True)
class _Walks:
    """Walks in latent space, (K, S, ...), with a name each, what else is kept of them, and a line for the user."""

    latents: Tensor
    names: list[str]
    kept: dict[str, Tensor]
    said: str


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Encode the rows, walk, decode; write the walks and their picture.

    Raises:
        UserError: two latents between which no great circle is the shortest.
        JobError: the solver failed.
    """
    events, batch_size = open_events(config, checkpoint), config["batch_size"]
    steps, strength = _settings(config)
    rows, x, pair = _chosen(config, events)
    encoded = flow.encode(x if pair is None else torch.cat([x, pair]), batch_size=batch_size)
    z = encoded.value.double()
    walks = _between(z, steps) if pair is None else _directed(rows, z[:-2], z[-2] - z[-1], steps, strength)
    result = flow.decode(walks.latents.flatten(0, 1), batch_size=batch_size)
    paths = result.value.cpu().unflatten(0, walks.latents.shape[:2])
    stem = "interpolation" if pair is None else "direction"
    kept: dict[str, Any] = {name: value.cpu().numpy() for name, value in walks.kept.items()}
    decoded = dict(zip(walks.names, paths.numpy(), strict=True)) if pair is None else {"moved": paths.numpy()}
    with replacing(folder / f"{stem}.npz") as file:
        np.savez(file, rows=np.array(rows), **kept, **decoded)
    data = events.x if config["input"] is None else files.reference(checkpoint)
    plots.interpolation(
        paths.numpy(),
        folder / f"{stem}.png",
        names=walks.names,
        ends=x.numpy() if pair is None or flow.event_shape == (2,) else None,  # else they would be points on one way
        data=None if data is None else data.numpy(),
        columns=column_names(checkpoint),
    )
    back = flow.decode(z[: len(x)], batch_size=batch_size).value.cpu()
    found = {"nfe_encode": encoded.nfe, "nfe_decode": result.nfe, "round_trip": float((back - x).abs().max())}
    write_json(folder / "metrics.json", {"rows": rows, **found})
    console.console().print(f"{walks.said}; the points themselves come back within {found['round_trip']:.2g}")
    console.console().print(f"wrote {stem}.npz, {stem}.png in {console.shown(folder)}")


def _between(z: Tensor, steps: int) -> _Walks:
    """Through the latents z (E, ...), along lines and, with two coordinates or more, along great circles."""
    places = latent.places(len(z), steps)
    walks = {"linear": latent.linear(z, places)}
    if z[0].numel() > 1:
        walks["spherical"] = latent.spherical(z, places)
    norms = ", ".join(f"{norm:.3g}" for norm in z.flatten(1).norm(dim=1)[:8].tolist())
    least = ", ".join(f"{name} {float(walk.flatten(1).norm(dim=1).min()):.3g}" for name, walk in walks.items())
    kept = {"alphas": places, "latents": z} | {f"latents_{name}": walk for name, walk in walks.items()}
    said = f"|z| of the points: {norms}; least on the way: {least}"
    return _Walks(torch.stack(list(walks.values())), list(walks), kept, said)


def _directed(rows: list[int], starts: Tensor, direction: Tensor, steps: int, strength: float) -> _Walks:
    """From the latent (E, ...) of each row in a direction (...)."""
    strengths = strength * latent.places(2, steps)
    walks = latent.along(starts, direction, strengths)
    kept = {"strengths": strengths, "direction": direction, "latents": walks}
    said = f"|z(a) - z(b)| = {float(direction.norm()):.3g}, added up to {strength:g} times"
    return _Walks(walks, [f"row {row}" for row in rows], kept, said)
