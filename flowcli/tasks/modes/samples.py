"""mode=samples: events of a trained flow, to a file and a picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowcli import build, console, memory, pictures
from flowcli.checkpoints import Checkpoint
from flowcli.errors import integer
from flowcli.flows.base import Flow
from flowcli.storage import replacing, write_json
from flowcli.tasks.events import column_names
from flowcli.tasks.modes import files

KEYS: tuple[str, ...] = ("n", "trajectories", "out")


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Refuse what cannot be drawn or written.

    Raises:
        UserError: naming the key.
    """
    n, _ = _settings(config)
    # samples are held in memory before they are written, three times over with the picture's and the table's copy
    memory.require(f"n={n}", 3 * 8 * n * math.prod(flow.event_shape))
    files.destination(config)


def _settings(config: Mapping[str, Any]) -> tuple[int, int]:
    return integer("n", config["n"], minimum=1), integer("trajectories", config["trajectories"], minimum=0)


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Draw samples, write them and their picture; follow some of them.

    Raises:
        JobError: the solver failed.
    """
    n, trajectories = _settings(config)
    out, seed, columns = files.destination(config), build.seed(config), column_names(checkpoint)
    result = flow.sample(n, seed=seed, batch_size=config["batch_size"])
    samples, data = result.value.cpu(), files.reference(checkpoint)
    with replacing(folder / "samples.npy") as file:
        np.save(file, samples.numpy())
    if out is not None:
        files.write(samples, columns or [f"x{i}" for i in range(samples[0].numel())], out)
    pictures.samples(samples, data, columns, folder / "samples.png")
    if trajectories:
        way = flow.trajectory(trajectories, seed=seed, points=pictures.PATH_POINTS)
        times, states = way.times.cpu().numpy(), way.states.cpu().numpy()
        with replacing(folder / "trajectories.npz") as file:
            np.savez(file, times=times, states=states)
        pictures.draw_trajectories(way, data, columns, folder / "trajectories.png")
    write_json(folder / "metrics.json", {"n": n, "seed": seed, "nfe_sample": result.nfe, "status": result.status})
    spread = ", ".join(f"{value:.4g}" for value in samples.flatten(1).std(0)[:8].tolist())
    console.console().print(f"{n:,} samples, {result.nfe} evaluations each; standard deviations {spread}")
    written, pictured = console.shown(out or folder / "samples.npy"), console.shown(folder)
    console.console().print(f"wrote {written}, pictures in {pictured}")
