"""mode=samples: events of a trained flow, to a file and a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flowcli import build, console, memory, pictures, storage, streams
from flowcli.checkpoints import Checkpoint
from flowcli.errors import integer
from flowcli.flows.base import Flow
from flowcli.tasks.events import column_names
from flowcli.tasks.modes import files

KEYS: tuple[str, ...] = ("n", "trajectories", "out")


SHOWN_ROWS, SHOWN_NUMBERS = 100_000, 1 << 22
"""Samples behind the picture, and numbers in them; 64 of them are shown whatever their size."""
COLUMNS_TOLD = 8
COPIES = 4
"""A block is in memory as its batches, as a whole, as a part of a table, and on its way between processes."""


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Refuse what cannot be drawn or written.

    Raises:
        UserError: naming the key.
    """
    n, _ = _settings(config)
    rows = min(n, streams.block_rows(config["batch_size"], flow.event_shape))
    what = f"batch_size={config['batch_size']} with n={n}"
    memory.require(what, COPIES * 8 * rows * math.prod(flow.event_shape))
    out = files.destination(config)
    if out is not None:
        _require_room(n, flow, out.parent)


def _settings(config: Mapping[str, Any]) -> tuple[int, int]:
    return integer("n", config["n"], minimum=1), integer("trajectories", config["trajectories"], minimum=0)


def _require_room(n: int, flow: Flow, folder: Path) -> None:
    storage.require_room(f"n={n}", 8 * n * math.prod(flow.event_shape), folder)


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Draw samples, write them and their picture; follow some of them.

    Samples are drawn and written in blocks. The picture is of SHOWN_ROWS of them at most, at even steps.

    Raises:
        UserError: the disk has no room for so many.
        JobError: the solver failed.
    """
    n, trajectories = _settings(config)
    out, seed, columns = files.destination(config), build.seed(config), column_names(checkpoint)
    _require_room(n, flow, folder)
    drawn = _drawn(flow, n, seed, config["batch_size"], folder / "samples.npy")
    shape, data = (n, *flow.event_shape), files.reference(checkpoint)
    if out is not None:
        names = columns or [f"x{i}" for i in range(math.prod(flow.event_shape))]
        files.write(streams.read_blocks(folder / "samples.npy"), shape, names, out)
    pictures.samples(drawn.shown, data, columns, folder / "samples.png")
    if trajectories:
        way = flow.trajectory(trajectories, seed=seed, points=pictures.PATH_POINTS)
        times, states = way.times.cpu().numpy(), way.states.cpu().numpy()
        with storage.replacing(folder / "trajectories.npz") as file:
            np.savez(file, times=times, states=states)
        pictures.draw_trajectories(way, data, columns, folder / "trajectories.png")
    found = {"n": n, "seed": seed, "nfe_sample": drawn.nfe, "status": drawn.status}
    storage.write_json(folder / "metrics.json", found)
    spread = ", ".join(f"{value:.4g}" for value in drawn.deviations.tolist())
    console.console().print(f"{n:,} samples, {drawn.nfe} evaluations each; standard deviations {spread}")
    written, pictured = console.shown(out or folder / "samples.npy"), console.shown(folder)
    part = f" of {len(drawn.shown):,} of them" if len(drawn.shown) < n else ""
    console.console().print(f"wrote {written}, pictures{part} in {pictured}")


@dataclass(frozen=True)
class _Drawn:
    """What is known of samples that are in a file.

    Attributes:
        shown: (M, ...), some of them, at even steps.
        deviations: (D,), standard deviations of the first coordinates of all.
        nfe, status: as in `flowcli.flows.base.Result`.
    """

    shown: Tensor
    deviations: Tensor
    nfe: int
    status: str


def _drawn(flow: Flow, n: int, seed: int, batch_size: int, file: Path) -> _Drawn:
    """Draw n samples into an NPY file, a block at a time; batches begin where they would without blocks."""
    most = min(SHOWN_ROWS, max(64, SHOWN_NUMBERS // math.prod(flow.event_shape)))
    shown, deviations, nfe, status = streams.Thinned(n, most), streams.Deviations(), 0, ""
    with streams.growing(file, (n, *flow.event_shape)) as append:
        for first, end in streams.blocks(n, streams.block_rows(batch_size, flow.event_shape)):
            result = flow.sample(end - first, seed=seed, start=first, batch_size=batch_size).cpu()
            append(result.value)
            shown.see(result.value)
            deviations.see(result.value.flatten(1)[:, :COLUMNS_TOLD])
            nfe, status = max(nfe, result.nfe), status or result.status
    return _Drawn(shown.kept, deviations.value, nfe, status)
