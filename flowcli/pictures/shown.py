"""What a comparison shows of a flow, as arrays that can be kept: samples, ways, densities."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from flowcli.dataset import Dataset
from flowcli.flows.base import Flow
from flowcli.pictures.runs import coarse, density_grid
from flowcli.randomness import generator

Arrays = dict[str, NDArray[np.float32]]

SAMPLES, WAYS, TIMES, SIDE = 2000, 1000, 33, 96
"""Samples; ways from noise to data, and times of each; grid points of a density along an axis."""
LARGEST = 1 << 18
"""Numbers in the samples of one flow."""


@torch.no_grad()
def shown(flow: Flow, dataset: Dataset, *, batch_size: int) -> Arrays:
    """Samples (N, ...) and some data beside them; in two dimensions ways (T, W, 2) and log-densities (S, S), too.

    Noise and points are those of the data's seed, so that flows of one data set are shown on the same ones.
    """
    count = max(16, min(SAMPLES, LARGEST // math.prod(dataset.event_shape)))
    data = dataset.points("test")
    chosen = torch.randperm(len(data), generator=generator(dataset.seed, "shown"))[:count]
    samples = flow.sample(count, seed=dataset.seed, batch_size=batch_size).value.cpu()
    found = {"samples": _plain(samples), "data": _plain(data[chosen])}
    if dataset.event_shape != (2,):
        return found
    way = flow.trajectory(WAYS, seed=dataset.seed, points=TIMES)
    found |= {"states": _plain(way.states.cpu()), "times": _plain(way.times.cpu())}
    return found if flow.no_likelihood is not None else found | _density(flow, dataset, batch_size)


def _density(flow: Flow, dataset: Dataset, batch_size: int) -> Arrays:
    xs, ys, grid = density_grid(dataset, SIDE)
    log_prob = coarse(flow).log_prob(grid, batch_size=batch_size).value.cpu()
    found = {"xs": _plain(xs), "ys": _plain(ys), "log_prob": _plain(log_prob.reshape(SIDE, SIDE))}
    truth = None if dataset.target is None else dataset.target.log_prob(grid)
    return found if truth is None else found | {"true_log_prob": _plain(truth.reshape(SIDE, SIDE))}


def _plain(values: torch.Tensor) -> NDArray[np.float32]:
    return values.float().numpy()
