r"""Distances between two samples, and small statistics; every function computes in float64.

Samples are tensors (N, ...), flattened to (N, D). Of each two-sample metric report the floor too: the same metric
between two samples of the truth, of the same sizes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowcli.assignment import cheapest

EXACT_LIMIT = 5000
"""Most points of a sample for which `wasserstein_2` solves the exact problem."""
_PROJECTIONS = 200
_BANDWIDTH_POINTS = 2000
_CHUNK = 1 << 22
"""Elements of a block of the distance matrix (32 MiB)."""


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    stderr: float


def wasserstein_2(x: Tensor, y: Tensor, *, generator: torch.Generator) -> float:
    r"""2-Wasserstein distance of two empirical measures: the root of the least mean squared cost of transport.

    Exact (a linear programme) up to EXACT_LIMIT points a side, `sliced_wasserstein_2` beyond, which is another, smaller
    number: compare only values of the same sizes. NaN where a point is not finite.
    """
    x, y = _pair(x, y)
    if not bool(x.isfinite().all() and y.isfinite().all()):
        return math.nan
    if max(len(x), len(y)) > EXACT_LIMIT:
        return sliced_wasserstein_2(x, y, projections=_PROJECTIONS, generator=generator)
    if len(x) == len(y):  # then a plan is a pairing
        return math.sqrt(float((x[cheapest(x, y)] - y).square().sum(1).mean()))
    import ot  # here, because it is slow to import

    a, b = (np.full(len(points), 1 / len(points)) for points in (x, y))
    cost = np.asarray(ot.emd2(a, b, ot.dist(x.numpy(), y.numpy()), numItermax=100_000_000))
    return math.sqrt(max(cost.item(), 0.0))


def sliced_wasserstein_2(x: Tensor, y: Tensor, *, projections: int, generator: torch.Generator) -> float:
    r"""Root of the mean over random directions of the squared 1-D 2-Wasserstein distances.

    A translation by m has the distance $|m|/\sqrt D$.
    """
    import ot

    x, y = _pair(x, y)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    distance = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy())
    return np.asarray(distance).item()


def median_bandwidth(reference: Tensor) -> float:
    """Median distance between two of the first 2,000 points of a reference sample: the usual bandwidth for `mmd`.

    Take it from the truth alone, once, and use it for the model and for the floor.
    """
    points = _flat(reference)[:_BANDWIDTH_POINTS]
    return float(torch.nn.functional.pdist(points).median())


def mmd(x: Tensor, y: Tensor, *, bandwidth: float) -> float:
    r"""Unbiased squared maximum mean discrepancy with the kernel $\exp(-|x - y|^2 / 2h^2)$.

    $E k(x, x') + E k(y, y') - 2 E k(x, y)$ over different points: mean 0, and as often negative as not, for equal
    distributions (Gretton et al., 2012).
    """
    return _Against(y, (_gaussian(bandwidth),))(x)[0]


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Unbiased $2 E|x - y| - E|x - x'| - E|y - y'|$ over different points; mean 0 for equal distributions."""
    return -_Against(y, (_DISTANCE,))(x)[0]


def mmd_and_energy(y: Tensor, *, bandwidth: float) -> Callable[[Tensor], tuple[float, float]]:
    """A function that takes an x to `mmd` and `energy_distance`: what depends on y alone is computed once."""
    against = _Against(y, (_gaussian(bandwidth), _DISTANCE))

    def both(x: Tensor) -> tuple[float, float]:
        squared, negative = against(x)
        return squared, -negative

    return both


def classifier_accuracy(x: Tensor, y: Tensor) -> float:
    r"""Accuracy of a classifier that tells x from y on points it has not seen: the two-sample test C2ST.

    $k$ nearest neighbours with $k = \lfloor\sqrt{n}\rfloor$ among the first halves, asked about the second ones; y's
    standard deviations are the unit of every coordinate. Mean 1/2 for equal distributions, 1 where nothing overlaps
    (Lopez-Paz and Oquab, arXiv 1610.06545). NaN where a point is not finite.
    """
    x, y = _pair(x, y)
    if not bool(x.isfinite().all() and y.isfinite().all()):
        return math.nan
    scale = y.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    size = min(len(x), len(y))
    half = size // 2
    points = [part[:size] / scale for part in (x, y)]
    learnt, asked = (torch.cat([part[rows] for part in points]) for rows in (slice(half), slice(half, size)))
    neighbours = max(1, math.isqrt(2 * half))
    of_y = [
        (torch.cdist(chunk, learnt).topk(neighbours, largest=False, sorted=False).indices >= half).double().mean(1)
        for chunk in asked.split(max(1, _CHUNK // len(learnt)))
    ]
    told = torch.cat(of_y) > 0.5
    return float((told == (torch.arange(len(asked)) >= size - half)).double().mean())


def path_energy(trajectory: Tensor, times: Tensor) -> float:
    r"""$E \int |v|^2 dt$ along trajectories (T, N, ...) at times (T,): $\sum |\Delta x|^2 / \Delta t$, mean over N.

    Exact for straight pieces; for curved ones it grows to the integral from below as the times get denser.
    """
    x, t = trajectory.double().flatten(2), times.double()
    if x.shape[0] != t.shape[0] or len(t) < 2 or bool((t.diff() == 0).any()):
        raise ValueError("need a trajectory (T, N, ...) at T >= 2 different times")
    return float((x.diff(dim=0).square().sum(-1) / t.diff().abs()[:, None]).sum(0).mean())


def straightness(trajectory: Tensor, times: Tensor) -> float:
    r"""$E \int |v - (x_1 - x_0)|^2 dt / E |x_1 - x_0|^2$ along trajectories (T, N, ...) at times (T,).

    NaN where nothing moves. Straight paths at even speed have 0 and take one Euler step (arXiv 2209.03003). The mean of
    v is x_1 - x_0, so the integral is the path energy less the squared distance.
    """
    distance = float((trajectory[-1] - trajectory[0]).double().flatten(1).square().sum(1).mean())
    return path_energy(trajectory, times) / distance - 1 if distance > 0 else math.nan


def normalized_path_energy(energy: float, w2_squared: float) -> float:
    r"""$|E - W_2^2| / W_2^2$, with W_2 between the two ends: 0 for optimal transport; NaN where nothing moves."""
    return abs(energy - w2_squared) / w2_squared if w2_squared > 0 else math.nan


def bits_per_dim(nll: float, dimensions: int) -> float:
    """Bits a dimension of an NLL in nats an event, for bins of unit width."""
    return nll / (dimensions * math.log(2))


def mean_and_stderr(x: Tensor) -> Estimate:
    """Mean of x (N,) and its standard error; NaN error for one value."""
    x = x.double()
    return Estimate(float(x.mean()), float(x.std() / math.sqrt(len(x))) if len(x) > 1 else math.nan)


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """log of the mean of exp(x) over one dimension."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def repeated(
    metric: Callable[[Tensor, Tensor], float], draw: Callable[[int], tuple[Tensor, Tensor]], draws: int
) -> Estimate:
    """Mean of a two-sample metric over independent draws, with its standard error.

    Args:
        metric: takes two samples.
        draw: gives the pair number i: model and truth for the metric, truth and truth for its floor.
        draws: how many; a single draw of 2,000 points can be 29 % off.
    """
    values = [metric(*draw(i)) for i in range(draws)]
    return mean_and_stderr(torch.tensor(values, dtype=torch.float64))


def _flat(x: Tensor) -> Tensor:
    return x.detach().cpu().double().reshape(len(x), -1)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = _flat(x), _flat(y)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"need two samples of at least 2 points of one dimension; got {x.shape}, {y.shape}")
    return x, y


class _Kernel(NamedTuple):
    """A function of distances, and its value at 0."""

    of: Callable[[Tensor], Tensor]
    diagonal: float


def _gaussian(bandwidth: float) -> _Kernel:
    return _Kernel(lambda distance: torch.exp(distance.square() / (-2 * bandwidth**2)), 1.0)


_DISTANCE = _Kernel(lambda distance: distance, 0.0)


class _Against:
    """Each kernel's mean within x and within y, over different points, less twice its mean between them."""

    def __init__(self, y: Tensor, kernels: Sequence[_Kernel]) -> None:
        self._y, self._kernels = _flat(y), kernels
        self._within_y: list[float] | None = None

    def __call__(self, x: Tensor) -> list[float]:
        x, y = _pair(x, self._y)
        if self._within_y is None:
            self._within_y = self._within(y)
        between = self._sums(x, y)
        means = zip(self._within(x), self._within_y, between, strict=True)
        return [within_x + within_y - 2 * total / (len(x) * len(y)) for within_x, within_y, total in means]

    def _within(self, x: Tensor) -> list[float]:
        n, sums = len(x), self._sums(x, x)
        return [(s - n * kernel.diagonal) / (n * (n - 1)) for s, kernel in zip(sums, self._kernels, strict=True)]

    def _sums(self, x: Tensor, y: Tensor) -> list[float]:
        rows, sums = max(1, _CHUNK // len(y)), [0.0] * len(self._kernels)
        for chunk in x.split(rows):
            # Differences and not |x|^2 + |y|^2 - 2xy: a point's distance to itself must be 0.
            distance = torch.cdist(chunk, y, compute_mode="donot_use_mm_for_euclid_dist")
            sums = [s + float(kernel.of(distance).sum()) for s, kernel in zip(sums, self._kernels, strict=True)]
        return sums
