r"""Is one variant better than another? Paired differences, resampled over seeds and test points at once.

A variant's scores are a matrix (S, N): S seeds, N units (test points, or draws of a two-sample metric) that all
variants share. Two sources of chance are kept apart: which test points were drawn, common to all, and which seeds, each
variant's own. Importing this module does not import torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REPLICATES = 2000
MOST_UNITS = 20_000
"""Units that are resampled one by one."""
_BLOCK = 1 << 21
"""Random numbers drawn at once (16 MiB)."""


@dataclass(frozen=True)
class Average:
    """A variant's mean over seeds and units.

    Attributes:
        mean: over both.
        deviation: standard deviation of the seeds' means; NaN with one seed.
        stderr: of the mean: over units alone with one seed, else over both.
        seeds: how many.
    """

    mean: float
    deviation: float
    stderr: float
    seeds: int


@dataclass(frozen=True)
class Difference:
    """A variant's mean less another's, unit by unit.

    Attributes:
        value: the difference of the means.
        low, high: an interval that holds the true one at the level that was asked for; NaN where there is none.
        units_only: a variant has one seed, so that the interval covers the choice of test points alone.
    """

    value: float
    low: float
    high: float
    units_only: bool

    @property
    def real(self) -> bool:
        """Whether the interval leaves out 0."""
        if math.isnan(self.low) or math.isnan(self.high):
            return math.isinf(self.value)
        return self.low > 0 or self.high < 0


def average(scores: Array) -> Average:
    """Mean of scores (S, N), with what it scatters by."""
    seeds = len(scores)
    means = scores.mean(1)
    value = float(means.mean())
    if not np.isfinite(scores).all():
        return Average(value, math.nan, math.nan, seeds)
    units = _variance_of_mean(scores.mean(0))
    between = _variance_of_mean(means)
    deviation = float(means.std(ddof=1)) if seeds > 1 else math.nan
    return Average(value, deviation, math.sqrt(units + between), seeds)


def resampled(variants: Sequence[Array], *, seed: int) -> Array:
    r"""Bootstrap means (REPLICATES, V) of V variants' scores (S_v, N), finite.

    A replicate draws units once for all variants, and seeds for each variant: N - 1 of N and S - 1 of S, with
    replacement, because the variance of the resampled mean is then unbiased (Rao and Wu, 1988): with S of S it is
    a third too small for three seeds.
    """
    source = np.random.default_rng(seed)
    variants = [_in_blocks(scores) for scores in variants]
    units = variants[0].shape[1]
    stacked = np.concatenate(variants).T  # (N, all seeds)
    drawn = max(units - 1, 1)
    rows = max(1, _BLOCK // drawn)
    means = np.empty((REPLICATES, stacked.shape[1]))
    for first in range(0, REPLICATES, rows):
        count = min(rows, REPLICATES - first)
        chosen = source.integers(units, size=(count, drawn), dtype=np.int64)
        chosen += np.arange(count)[:, None] * units
        weights = np.bincount(chosen.ravel(), minlength=count * units).reshape(count, units)
        means[first : first + count] = weights @ stacked / drawn
    found, start = np.empty((REPLICATES, len(variants))), 0
    for column, scores in enumerate(variants):
        seeds = len(scores)
        own = means[:, start : start + seeds]
        picked = source.integers(seeds, size=(REPLICATES, max(seeds - 1, 1)))
        found[:, column] = np.take_along_axis(own, picked, 1).mean(1)
        start += seeds
    return found


def _in_blocks(scores: Array) -> Array:
    """Means of equally many neighbours, where there are more units than resampling can tell apart in its time."""
    size = math.ceil(scores.shape[1] / MOST_UNITS)
    whole = scores.shape[1] // size * size
    return scores[:, :whole].reshape(len(scores), -1, size).mean(2)


def differences(
    variants: Sequence[Array], reference: int, *, level: float, chosen: bool, seed: int
) -> list[Difference]:
    """Each variant's difference from the one at `reference`, the reference's own being 0.

    level: of all intervals together, 0.95 say: each is taken at 1 - (1 - level) / m (Bonferroni) for m comparisons: one
    fewer than variants; or, if the reference was chosen because it is the lowest, all pairs, because the lowest of many
    equal variants is low by chance.
    """
    finite = [bool(np.isfinite(scores).all()) for scores in variants]
    means = [float(scores.mean()) for scores in variants]
    usable = [index for index, ok in enumerate(finite) if ok]
    column = {index: place for place, index in enumerate(usable)}
    replicates = resampled([variants[index] for index in usable], seed=seed) if usable else np.empty((REPLICATES, 0))
    count = len(variants)
    compared = max(count * (count - 1) // 2 if chosen else count - 1, 1)
    found = []
    for index, scores in enumerate(variants):
        alone = len(scores) == 1 or len(variants[reference]) == 1
        if index == reference:
            found.append(Difference(0.0, 0.0, 0.0, alone))
            continue
        if not (finite[index] and finite[reference]):
            gap = 0.0 if means[index] == means[reference] else means[index] - means[reference]
            found.append(Difference(gap, math.nan, math.nan, alone))
            continue
        spread = float((replicates[:, column[index]] - replicates[:, column[reference]]).std(ddof=1))
        half = spread * _quantile(1 - (1 - level) / (2 * compared), _freedom(scores, variants[reference]))
        value = means[index] - means[reference]
        found.append(Difference(value, value - half, value + half, alone))
    return found


def _variance_of_mean(values: Array) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _freedom(first: Array, second: Array) -> float:
    """Degrees of freedom of a difference's standard error (Welch and Satterthwaite): three seeds are few."""
    parts = [
        (_variance_of_mean(first.mean(0) - second.mean(0)), first.shape[1] - 1),
        (_variance_of_mean(first.mean(1)), len(first) - 1),
        (_variance_of_mean(second.mean(1)), len(second) - 1),
    ]
    total = sum(variance for variance, _ in parts)
    weighed = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
    return total**2 / weighed if weighed > 0 else math.inf


def _quantile(probability: float, freedom: float) -> float:
    """Of Student's t."""
    from scipy.special import ndtri, stdtrit  # a third of a second less than scipy.stats

    return float(ndtri(probability) if math.isinf(freedom) else stdtrit(freedom, probability))
