"""The pictures of a run: what to compute of a flow for each, and at what price."""

import json
import math
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from flowcli import plots
from flowcli.dataset import Dataset
from flowcli.flows.base import Flow, Trajectory
from flowcli.flows.continuous import ContinuousFlow
from flowcli.sde import Stochastic
from flowcli.solvers import Adaptive

AnyFlow = TypeVar("AnyFlow", bound=Flow)
DENSITY_SIDE = 128
"""Grid points along each axis of a density picture."""
PATHS = 300
PATH_POINTS = 65
COARSE, ODE_NFE = 1e-3, 10_000
"""Tolerance behind pictures: two digits below what a pixel can show."""


def samples(samples: Tensor, data: Tensor | None, columns: tuple[str, ...] | None, file: Path) -> None:
    """Data (N, ...) beside samples (M, ...), both in data units."""
    points = None if data is None else data.numpy()
    plots.samples(points, samples.numpy(), file, columns=columns, event_shape=tuple(samples.shape[1:]))


def density_grid(dataset: Dataset, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Axes (side,), (side,) and the points (side * side, 2) between them, around two-dimensional test data."""
    data = dataset.points("test")
    low, high = data.amin(0), data.amax(0)
    margin = 0.1 * (high - low)
    xs, ys = (
        torch.linspace(float(low[i] - margin[i]), float(high[i] + margin[i]), side, dtype=torch.float64) for i in (0, 1)
    )
    return xs, ys, torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)


@torch.no_grad()
def density(flow: Flow, dataset: Dataset, file: Path, *, batch_size: int) -> None:
    """Density heat map of a flow over two-dimensional data, beside the truth where that is known."""
    xs, ys, grid = density_grid(dataset, DENSITY_SIDE)
    model = coarse(flow).log_prob(grid, batch_size=batch_size).value.cpu()
    truth = None if dataset.target is None else dataset.target.log_prob(grid)
    shape = (DENSITY_SIDE, DENSITY_SIDE)
    plots.density(
        xs.numpy(),
        ys.numpy(),
        model.reshape(shape).numpy(),
        file,
        true_log_prob=None if truth is None else truth.reshape(shape).numpy(),
        columns=dataset.columns,
    )


@torch.no_grad()
def trajectories(flow: Flow, data: Tensor | None, columns: tuple[str, ...] | None, file: Path, *, seed: int) -> None:
    """Paths of some samples from noise to data."""
    count = PATHS if math.prod(flow.event_shape) <= 16 else 16
    draw_trajectories(flow.trajectory(count, seed=seed, points=PATH_POINTS), data, columns, file)


def draw_trajectories(way: Trajectory, data: Tensor | None, columns: tuple[str, ...] | None, file: Path) -> None:
    """Paths that were computed already; data (N, ...) lies behind them."""
    points = None if data is None else data.numpy()
    plots.trajectories(way.states.cpu().numpy(), way.times.cpu().numpy(), file, data=points, columns=columns)


def loss(metrics_file: Path, file: Path) -> None:
    """Training curves out of metrics.jsonl."""
    plots.loss([json.loads(line) for line in metrics_file.read_text().splitlines()], file)


def coarse(flow: AnyFlow) -> AnyFlow:
    """The same flow at a tolerance good enough to look at."""
    if not isinstance(flow, ContinuousFlow):
        return flow
    solver = flow.solver
    if isinstance(solver, Stochastic):  # the ODE with the same marginals
        return flow.with_solver(Adaptive("dopri5", COARSE, COARSE, solver.time, ODE_NFE))
    if isinstance(solver, Adaptive) and solver.rtol < COARSE:
        return flow.with_solver(Adaptive(solver.method, COARSE, COARSE, solver.time, solver.max_nfe))
    return flow
