"""The pictures of the lecture notes: crossing pairs, a bent grid, densities on their way, sources and sinks."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowcli import plots
from flowcli.couplings import OT, Coupling, Independent, Pairs
from flowcli.dataset import Dataset
from flowcli.diagnostics import continuity_residual
from flowcli.divergence import Exact
from flowcli.ends import Ends
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.discrete import DiscreteFlow
from flowcli.flows.fields import PathField
from flowcli.flows.oracle import field_of_mixture, noise_of
from flowcli.pictures.runs import coarse
from flowcli.randomness import generator

PAIRS = 256
GRID_LINES, GRID_POINTS, GRID_REACH = 17, 120, 2.5
"""A square grid of latents within 2.5 standard deviations: 17 lines a family."""
SIDE, ARROWS = 96, 16
FRAME_TIMES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
MAP_TIMES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
NEGLIGIBLE = 8.0
"""A field is shown where ln p_t is within this of its peak: beyond, a network has seen nothing."""
FRAMES = 6
ROWS_AT_ONCE = 1024


@torch.no_grad()
def explain(flow: Flow, dataset: Dataset, ends: Ends | None, folder: Path, *, seed: int, batch_size: int) -> list[str]:
    """Draw what the notes draw, as far as this flow has it; the names of the files.

    ends: of the flow's training; None for a flow that has no pairs. All but the pairs need events in two dimensions.
    """
    flow, written = coarse(flow), []
    if ends is not None and isinstance(flow, ContinuousFlow):
        _pairs(flow, dataset, ends, folder / "pairs.png", seed)
        written.append("pairs.png")
    if dataset.event_shape != (2,):
        return written
    if isinstance(flow, DiscreteFlow) or (isinstance(flow, ContinuousFlow) and flow.state_shape == (2,)):
        _grid(flow, dataset, folder / "grid.png")
        written.append("grid.png")
    if flow.no_likelihood is None and isinstance(flow, DiscreteFlow):
        _layers(flow, dataset, folder / "layers.png", batch_size)
        written.append("layers.png")
    if flow.no_likelihood is None and isinstance(flow, ContinuousFlow) and flow.state_shape == (2,):
        written += _frames(flow, dataset, folder, batch_size)
    return written


# ---------------------------------------------------------------- pairs
def _pairs(flow: ContinuousFlow, dataset: Dataset, ends: Ends, file: Path, seed: int) -> None:
    """The same noise and data, paired by chance, by an exact plan, and as the flow was trained."""
    draws = generator(seed, "pairs")
    data = dataset.points("train")
    x_1 = flow.lift(flow.to_model(data[torch.randint(len(data), (PAIRS,), generator=draws)]), draws)
    x_0 = ends.base.sample(PAIRS, draws).to(x_1)
    ways: dict[str, Coupling] = {"independent": Independent(), "optimal": OT(minibatch=PAIRS)}
    if not isinstance(ends.coupling, Independent | OT):
        ways[f"coupling={type(ends.coupling).__name__.lower()}"] = ends.coupling

    def in_data_units(x: Tensor) -> np.ndarray:
        return flow.transform.inverse(x[:, : dataset.event_shape[0]].double()).flatten(1).cpu().numpy()

    panels = {}
    for name, way in ways.items():
        found: Pairs = way(x_0, x_1, None, generator(seed, "pairs", name))
        panels[name] = (in_data_units(found.x_0), in_data_units(found.x_1))
    plots.pairs(panels, file, columns=dataset.columns)


# ---------------------------------------------------------------- a grid, bent
def _grid(flow: Flow, dataset: Dataset, file: Path) -> None:
    """A square grid of latents on its way to the data."""
    across = torch.linspace(-GRID_REACH, GRID_REACH, GRID_LINES, dtype=torch.float64)
    along = torch.linspace(-GRID_REACH, GRID_REACH, GRID_POINTS, dtype=torch.float64)
    fixed, moving = across[:, None].expand(-1, GRID_POINTS), along[None, :].expand(GRID_LINES, -1)
    z = torch.stack([torch.stack([fixed, moving], -1), torch.stack([moving, fixed], -1)])  # (2, L, P, 2)
    way = flow.follow(z.reshape(-1, 2), points=61)
    shown = _spread(len(way.times), FRAMES)
    grids = way.states[shown].reshape(len(shown), *z.shape).cpu().numpy()
    titles = [
        _layer(k, len(way.times) - 1) if isinstance(flow, DiscreteFlow) else f"t = {way.times[k]:.2g}" for k in shown
    ]
    plots.deformed_grid(
        list(zip(titles, grids, strict=True)), file, data=dataset.points("test").numpy(), columns=dataset.columns
    )


def _layer(k: int, last: int) -> str:
    return {0: "noise", last: f"after layer {last}: the model"}.get(k, f"after layer {k}")


def _spread(count: int, wanted: int) -> list[int]:
    """Positions of so many out of count, the first and the last among them."""
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


# ---------------------------------------------------------------- densities on their way
def _view(dataset: Dataset, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Axes (side,) and the points (side * side, 2) of a square that holds the data with room for the noise."""
    data = dataset.points("test")
    middle = (data.amax(0) + data.amin(0)) / 2
    half = 0.65 * float((data.amax(0) - data.amin(0)).max())
    xs, ys = (torch.linspace(float(m) - half, float(m) + half, side, dtype=torch.float64) for m in middle)
    return xs, ys, torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)


def _layers(flow: DiscreteFlow, dataset: Dataset, file: Path, batch_size: int) -> None:
    """The density after some of the layers."""
    xs, ys, points = _view(dataset, SIDE)
    columns = flow.layer_log_probs(points, batch_size=batch_size).value.cpu()
    last = columns.shape[1] - 1
    panels = [(_layer(k, last), columns[:, k].reshape(SIDE, SIDE).numpy()) for k in _spread(last + 1, FRAMES)]
    plots.densities(panels, xs.numpy(), ys.numpy(), file, columns=dataset.columns)


def _frames(flow: ContinuousFlow, dataset: Dataset, folder: Path, batch_size: int) -> list[str]:
    """p_t of the model; the divergence of its field; the residual of the continuity equation where that is known."""
    xs, ys, points = _view(dataset, SIDE)
    states = flow.to_model(points)
    scale = float(flow.transform.log_det)

    def log_density(t: float) -> np.ndarray:
        found = [part_density(part, 1 - t) for part in states.split(batch_size)]
        return (torch.cat(found).double() + scale).reshape(SIDE, SIDE).cpu().numpy()

    def part_density(part: Tensor, u: float) -> Tensor:
        if u == 1:  # the start itself: nothing to solve
            return flow.start.log_prob(part)
        return flow.density(part, flow.divergence.directions(part, 0, 0), condition=None, u=u).log_prob.mean(1)

    frames = [(f"t = {t:g}", log_density(t)) for t in FRAME_TIMES]
    plots.densities(frames, xs.numpy(), ys.numpy(), folder / "frames.png", columns=dataset.columns)
    seen = np.stack([_negligible(log_density(t)) for t in MAP_TIMES])
    _divergence(flow, dataset, folder / "divergence.png", seen)
    field = flow.field
    if dataset.mixture is None or not isinstance(field, PathField) or field.no_score is not None:
        return ["frames.png", "divergence.png"]
    _residual(flow, field, dataset, folder / "residual.png")
    return ["frames.png", "divergence.png", "residual.png"]


def _negligible(log_density: np.ndarray) -> np.ndarray:
    return log_density < log_density.max() - NEGLIGIBLE


def _divergence(flow: ContinuousFlow, dataset: Dataset, file: Path, mask: np.ndarray) -> None:
    """Where the field makes density (a sink of the flux: div v < 0 gathers) and where it thins it, with arrows."""
    xs, ys, points = _view(dataset, SIDE)
    _, _, few = _view(dataset, ARROWS)
    states, exact = flow.to_model(points), Exact()
    panels, arrows = [], []
    for t in MAP_TIMES:
        u = states.new_tensor(1 - t)
        parts = [
            exact(lambda x, u=u: flow.field.velocity(x, u, None), part, exact.directions(part, 0, 0)).divergence
            for part in states.split(ROWS_AT_ONCE)
        ]
        panels.append((f"t = {t:g}", torch.cat(parts)[:, 0].double().reshape(SIDE, SIDE).cpu().numpy()))
        arrows.append(flow.velocity(few, torch.tensor(t)).reshape(ARROWS, ARROWS, 2).cpu().numpy())
    label = "divergence of the velocity, 1 / time"
    plots.scalar_maps(panels, xs.numpy(), ys.numpy(), file, label=label, mask=mask, arrows=arrows)


def _residual(flow: ContinuousFlow, field: PathField, dataset: Dataset, file: Path) -> None:
    """By how much the field fails to move the true p_t."""
    xs, ys, points = _view(dataset, SIDE)
    own, transform = copy.deepcopy(field).cpu().double(), copy.deepcopy(flow.transform).cpu()
    assert dataset.mixture is not None
    oracle = field_of_mixture(dataset.mixture.through(transform), own.path, noise_of(own.moments))
    x = transform(points)
    panels, mask = [], []
    for t in MAP_TIMES:
        u = x.new_tensor(1 - t)
        panels.append((f"t = {t:g}", continuity_residual(own, oracle, x, u).reshape(SIDE, SIDE).numpy()))
        mask.append(_negligible(oracle.log_density(x, u).reshape(SIDE, SIDE).numpy()))
    label = "residual of the continuity equation, nats / time"
    plots.scalar_maps(panels, xs.numpy(), ys.numpy(), file, label=label, mask=np.stack(mask))
