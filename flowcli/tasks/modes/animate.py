"""mode=animate: a film of noise that becomes data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcli import build, console, memory, plots, processes
from flowcli.checkpoints import Checkpoint
from flowcli.errors import JobError, UserError, integer, number
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.plots import film
from flowcli.plots.panels import counted
from flowcli.storage import write_bytes, write_json
from flowcli.tasks.events import column_names
from flowcli.tasks.modes import files

KEYS: tuple[str, ...] = ("frames", "fps", "particles", "out")
MOST_FRAMES = 1000
DENSE = 4
"""States a frame that an adaptive solver is asked for, so that frames can be even in motion."""


@dataclass(frozen=True)
class _Kind:
    """How many particles a kind of film has where the user leaves it open, and at most."""

    noun: str
    particles: int
    most: int


IMAGES, LINE, PLANE = _Kind("image", 36, 100), _Kind("sample", 10_000, 100_000), _Kind("sample", 1000, 20_000)


@dataclass(frozen=True)
class _Settings:
    frames: int
    fps: float
    particles: int
    out: Path | None

    @property
    def name(self) -> str:
        """The film's name in the run folder."""
        return f"animation{'.gif' if self.out is None else self.out.suffix}"


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Refuse what cannot be filmed or written.

    Raises:
        UserError: naming the key.
    """
    settings = _settings(config, flow)
    film.require(Path(settings.name).suffix)
    if files.changed(config, "batch_size"):
        raise UserError(
            f"batch_size={config['batch_size']}: mode=animate solves all its particles at once; say particles=N"
        )
    solver = flow.solver if isinstance(flow, ContinuousFlow) else None
    states = max(DENSE * settings.frames, getattr(solver, "steps", 0)) + 1
    # the states as they are solved, in data units, and those that are drawn
    memory.require(f"particles={settings.particles}", 3 * 8 * states * settings.particles * math.prod(flow.event_shape))


def _settings(config: Mapping[str, Any], flow: Flow) -> _Settings:
    """What the film shall be.

    Raises:
        UserError: naming the key.
    """
    kind = _kind(flow)
    particles = kind.particles
    if config["particles"] != "auto":
        name = f"particles (auto, or a count of {kind.noun}s)"
        particles = integer(name, config["particles"], minimum=1, maximum=kind.most)
    frames = integer("frames", config["frames"], minimum=2, maximum=MOST_FRAMES)
    fps = number("fps", config["fps"], minimum=1, maximum=film.MOST_FPS)
    return _Settings(frames, fps, particles, files.destination(config, film.ENDINGS))


def _kind(flow: Flow) -> _Kind:
    """What the film is of: images of one or three colours, one coordinate, or the plane of the first two."""
    shape = flow.event_shape
    if len(shape) == 3 and shape[0] in (1, 3):
        return IMAGES
    return LINE if math.prod(shape) == 1 else PLANE


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Follow particles from noise to data and film them.

    Raises:
        JobError: the solver or ffmpeg failed, or no particle stays finite.
    """
    settings, seed, data = _settings(config, flow), build.seed(config), files.reference(checkpoint)
    way = flow.trajectory(settings.particles, seed=seed, points=DENSE * settings.frames + 1)
    if not processes.leads():
        return
    states = way.states.cpu()
    kept = torch.isfinite(states).flatten(2).all(2).all(0)
    if not bool(kept.any()):
        raise JobError("no sample stays finite on its way: there is nothing to show")
    file = folder / settings.name
    plots.animate(
        states[:, kept].numpy(),
        way.times.cpu().numpy(),
        file,
        frames=settings.frames,
        fps=settings.fps,
        data=None if data is None else data.numpy(),
        columns=column_names(checkpoint),
        layers=not isinstance(flow, ContinuousFlow),
        said=_said(flow, kept, way.nfe),
    )
    if settings.out is not None:
        write_bytes(settings.out, file.read_bytes())
    found = {"particles": settings.particles, "seed": seed, "nfe_sample": way.nfe}
    write_json(folder / "metrics.json", found | {"frames": settings.frames, "fps": settings.fps})
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    console.console().print(f"wrote {console.shown(settings.out or file)}, {size}")


def _said(flow: Flow, kept: Tensor, nfe: int) -> str:
    """The words at the foot of the picture."""
    count, lost = len(kept), len(kept) - int(kept.sum())
    parts = [counted(count, _kind(flow).noun)]
    parts += [f"{lost:,} not finite"] if lost else []
    parts += [f"{flow.solver.method} with {nfe:,} evaluations"] if isinstance(flow, ContinuousFlow) else []
    return ", ".join(parts)
