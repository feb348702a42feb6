"""`flowcli sample`: events of a trained flow, to a file and a picture."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from flowcli import build, console, pictures
from flowcli.errors import UserError, integer
from flowcli.flows.continuous import ContinuousFlow
from flowcli.run import REFERENCE_FILE, Checkpoint, write_json

ENDINGS = (".npy", ".csv", ".parquet")


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Open every job's checkpoint and check its settings.

    Raises:
        UserError: what is wrong, before anything is written.
    """
    for config in configs:
        n, _, _ = _settings(config)
        _, flow = build.from_checkpoint(config)
        _refuse_too_many(n, flow.event_shape)
        if config["trajectories"] and not isinstance(flow, ContinuousFlow):
            raise UserError("trajectories: this model has no paths from noise to data, only continuous flows have")
        _destination(config)


def _settings(config: Mapping[str, Any]) -> tuple[int, int, int]:
    n, batch_size = integer("n", config["n"], minimum=1), integer("batch_size", config["batch_size"], minimum=1)
    return n, batch_size, integer("trajectories", config["trajectories"], minimum=0)


def _refuse_too_many(n: int, event_shape: tuple[int, ...]) -> None:
    """Samples are held in memory before they are written, three times over with the picture's and the table's copy."""
    need, there = 3 * 8 * n * math.prod(event_shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > there:
        raise UserError(f"n={n} needs about {need / 2**30:,.0f} GiB of memory, this machine has {there / 2**30:,.0f}")


def _destination(config: Mapping[str, Any]) -> Path | None:
    """Where --out leads, if anywhere.

    Raises:
        UserError: an ending that is not one of ENDINGS, or a folder that cannot be written.
    """
    if config.get("out") is None:
        return None
    out = Path(str(config["out"])).expanduser()
    if out.suffix not in ENDINGS:
        raise UserError(f"--out {out}: want a name that ends in {', '.join(ENDINGS)}")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: {out.parent} is not a folder that can be written, or the name is a folder's")
    return out


@torch.no_grad()
def run(config: Mapping[str, Any], folder: Path) -> None:
    """Draw samples, write them and their picture.

    Raises:
        UserError: the checkpoint cannot be opened.
        JobError: the solver failed.
    """
    n, batch_size, trajectories = _settings(config)
    checkpoint, flow = build.from_checkpoint(config)
    out, seed = _destination(config), build.seed(config)
    result = flow.sample(n, seed=seed, batch_size=batch_size)
    samples, columns = result.value.cpu(), _columns(checkpoint)
    np.save(folder / "samples.npy", samples.numpy())
    if out is not None:
        _write(samples, columns, out)
    pictures.samples(samples, _reference(checkpoint), columns, folder / "samples.png")
    if trajectories and isinstance(flow, ContinuousFlow):
        way = flow.trajectory(trajectories, seed=seed, points=pictures.PATH_POINTS)
        times, states = way.times.cpu().numpy(), way.states.cpu().numpy()
        np.savez(folder / "trajectories.npz", times=times, states=states)
        pictures.draw_trajectories(way, _reference(checkpoint), columns, folder / "trajectories.png")
    finite = samples.flatten(1)
    write_json(folder / "metrics.json", {"n": n, "seed": seed, "nfe_sample": result.nfe, "status": result.status})
    spread = ", ".join(f"{value:.4g}" for value in finite.std(0)[:8].tolist())
    console.console().print(f"{n:,} samples, {result.nfe} evaluations each; standard deviations {spread}")
    written, pictured = console.shown(out or folder / "samples.npy"), console.shown(folder)
    console.console().print(f"wrote {written}, pictures in {pictured}")


def _columns(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    columns = checkpoint.description.get("columns")
    return None if columns is None else tuple(str(name) for name in columns)


def _reference(checkpoint: Checkpoint) -> Tensor | None:
    """True points that the training left in its run folder, if they are still there."""
    file = checkpoint.run / REFERENCE_FILE
    try:
        points = torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    fits = list(points.shape[1:]) == checkpoint.description["event_shape"] and points.is_floating_point()
    return points.double() if fits else None


def _write(samples: Tensor, columns: tuple[str, ...] | None, out: Path) -> None:
    """Write events (N, ...) as an array of their shape, or as a table with one column a number."""
    if out.suffix == ".npy":
        np.save(out, samples.numpy())
        return
    flat = samples.flatten(1).numpy()
    names = columns or tuple(f"x{i}" for i in range(math.prod(samples.shape[1:])))
    table = pl.DataFrame({name: flat[:, i] for i, name in enumerate(names)})
    table.write_csv(out) if out.suffix == ".csv" else table.write_parquet(out)
