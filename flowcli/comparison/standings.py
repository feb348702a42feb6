"""Where each row of a group stands: its figures, and which of their differences are real."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mode
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowcli.comparison.catalogue import TWO_SAMPLE, UNITS, costs, figure
from flowcli.comparison.resolved import LIKELIHOODS, is_resolved, solver_error
from flowcli.comparison.variants import Group, Scored, Variant
from flowcli.numbers import Scalar, number_of
from flowcli.significance import Average, Difference, average, differences

LEVEL = 0.95
"""Of all intervals of a metric together."""
AT_FLOOR = 2.0
"""Standard errors above its floor within which a metric is that of a perfect model."""
FLOOR = "_floor"

Array = NDArray[np.float64]
Verdict = Literal["", "reference", "tie", "worse", "better", "unresolved"]


@dataclass(frozen=True)
class Score:
    """One figure of one row.

    Attributes:
        value: mean over the seeds; a text where it is no number; None where there is none.
        spread: standard deviation over the seeds, of one seed the standard error; None where neither is known.
        average: of a figure with something behind it to resample.
        difference: from the row of reference, paired.
        at_floor: it cannot be told from true samples.
        runs: each run's own, where something is behind it to resample.
    """

    value: Scalar
    spread: float | None = None
    average: Average | None = None
    difference: Difference | None = None
    verdict: Verdict = ""
    at_floor: bool = False
    runs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Standing:
    """One figure of all rows.

    Attributes:
        reference: the row that the others are compared with; None where nothing is compared.
        floor: what a perfect model has; None where that is not known.
        best: the reference is the lowest, and not a baseline that was named.
    """

    name: str
    scores: tuple[Score, ...]
    reference: int | None = None
    floor: Average | None = None
    best: bool = True


class Standings:
    """Every figure of a group, each worked out when it is first asked for.

    Attributes:
        baseline: the row to compare with; None: the lowest.
    """

    def __init__(self, group: Group, baseline: int | None = None) -> None:
        """Take the rows."""
        self.group, self.baseline = group, baseline
        self._found: dict[str, Standing] = {}

    def __getitem__(self, name: str) -> Standing:
        """One figure of all rows."""
        if name not in self._found:
            self._found[name] = _standing(self.group, name, self.baseline)
        return self._found[name]


def known(group: Group) -> list[str]:
    """The names of all figures that any run of the group has."""
    found = dict.fromkeys(UNITS)
    for variant in group.variants:
        for run in variant.runs:
            found |= dict.fromkeys([*run.scores.metrics, *filter(costs, run.scores.units), *run.record.metrics])
    return [
        name
        for name in found
        if not name.endswith(("_stderr", FLOOR))
        and any(_values(variant, name) or _behind(variant, name) is not None for variant in group.variants)
    ]


def primary(group: Group) -> str | None:
    """The figure that the verdict is about: the likelihood where some row's is resolved, else the samples' distance."""
    if any(_behind(variant, "nll") is not None and is_resolved(variant) for variant in group.variants):
        return "nll"
    return "w2" if any(_behind(variant, "w2") is not None for variant in group.variants) else None


def _has_floor(name: str) -> bool:
    return name in TWO_SAMPLE or costs(name) is not None


# ---------------------------------------------------------------- one figure
def _standing(group: Group, name: str, baseline: int | None) -> Standing:
    behind = [_behind(variant, name) for variant in group.variants]
    if all(each is None for each in behind):
        return Standing(name, tuple(_plain(variant, name) for variant in group.variants))
    length = mode(each.shape[1] for each in behind if each is not None)  # one odd run is left out, not the others
    behind = [None if each is None or each.shape[1] != length else each for each in behind]
    averages = [None if each is None else average(each) for each in behind]
    excess = [_excess(variant, name) for variant in group.variants]
    at_floor = [each is not None and each.mean <= AT_FLOOR * each.stderr for each in excess]
    errors = [_error_of_solver(variant, name) for variant in group.variants]
    ranked = [index for index, each in enumerate(behind) if each is not None and errors[index] is not None]
    reference = _reference(ranked, averages, baseline)
    found: dict[int, Difference] = {}
    if reference is not None and len(ranked) > 1:
        columns = [each for index, each in enumerate(behind) if each is not None and index in ranked]
        made = differences(columns, ranked.index(reference), level=LEVEL, chosen=baseline is None, seed=0)
        found = dict(zip(ranked, made, strict=True))
    scores = []
    for index, each in enumerate(averages):
        if each is None:
            scores.append(Score(None))
            continue
        difference = found.get(index)
        no_matter = group.seeds_alone
        if difference is not None and reference is not None:
            no_matter |= at_floor[index] and at_floor[reference]
            no_matter |= 0 < abs(difference.value) <= (errors[index] or 0.0) + (errors[reference] or 0.0)
        verdict = _verdict(difference, index == reference, no_matter) if index in ranked else "unresolved"
        own = tuple(np.asarray(behind[index]).mean(1).tolist())
        scores.append(Score(each.mean, _spread(each), each, difference, verdict, at_floor[index], own))
    return Standing(name, tuple(scores), reference if found else None, _floor(group, name), baseline is None)


def _reference(ranked: list[int], averages: list[Average | None], baseline: int | None) -> int | None:
    """The row to compare with: the baseline, if it can be ranked, else the lowest."""
    if baseline is not None:
        return baseline if baseline in ranked else None
    return min(ranked, key=lambda index: _mean(averages[index])) if ranked else None


def _error_of_solver(variant: Variant, name: str) -> float | None:
    """Of a figure, in its own units; None where it is too large for the figure to be ranked."""
    if name not in LIKELIHOODS:
        return 0.0
    return solver_error(variant) if is_resolved(variant) else None


def _mean(found: Average | None) -> float:
    return np.inf if found is None or np.isnan(found.mean) else found.mean


def _spread(found: Average) -> float | None:
    spread = found.deviation if found.seeds > 1 else found.stderr
    return None if np.isnan(spread) else spread


def _verdict(difference: Difference | None, is_reference: bool, no_matter: bool) -> Verdict:
    if difference is None:
        return ""
    if is_reference:
        return "reference"
    if no_matter or not difference.real:
        return "tie"
    return "worse" if difference.value > 0 else "better"


def _behind(variant: Variant, name: str) -> Array | None:
    """What a figure is the mean of (S, N); None where a run has none: the others' mean would be another figure."""
    rows = [row for row in (_units(run, name) for run in variant.runs) if row is not None]
    lengths = {len(row) for row in rows}
    return np.stack(rows) if len(rows) == len(variant.runs) and len(lengths) == 1 and lengths != {0} else None


def _units(run: Scored, name: str) -> Array | None:
    units = run.scores.units
    if name == "nll":
        return -units["log_prob"] if "log_prob" in units else None
    if name == "nll_gap":
        return _paired(units, "true_log_prob", "log_prob")
    return units.get(name) if name in UNITS or costs(name) else None


def _paired(units: Mapping[str, Array], first: str, second: str) -> Array | None:
    """The difference of two, unit by unit, where both are there and of the same units."""
    if not {first, second} <= units.keys() or units[first].shape != units[second].shape:
        return None
    return units[first] - units[second]


def _excess(variant: Variant, name: str) -> Average | None:
    """By how much a distance lies above its floor, draw by draw, the same true points in both.

    None where true samples are known by the splits alone: their draws share rows, so that no error of them is known.
    """
    if not _has_floor(name) or not any("true_log_prob" in run.scores.units for run in variant.runs):
        return None
    found = [_paired(run.scores.units, name, name + FLOOR) for run in variant.runs]
    found = [each for each in found if each is not None]
    return average(np.stack(found)) if len({len(each) for each in found}) == 1 else None


def _floor(group: Group, name: str) -> Average | None:
    """What a perfect model has on the points of this group."""
    perfect = figure(name).perfect
    if perfect is not None:
        return Average(perfect, np.nan, np.nan, 1)
    for variant in group.variants:
        for run in variant.runs:
            units = run.scores.units
            if name == "nll" and "true_log_prob" in units:
                return average(-units["true_log_prob"][None])
            if _has_floor(name) and name + FLOOR in units:
                return average(units[name + FLOOR][None])
    return None


# ---------------------------------------------------------------- figures of a run as a whole
def _plain(variant: Variant, name: str) -> Score:
    values = _values(variant, name)
    numbers = [number for number in map(number_of, values) if number is not None]
    if not values:
        return Score(None)
    if len(numbers) < len(values):
        return Score(values[0] if len(set(map(str, values))) == 1 else ", ".join(map(str, values)))
    if all(isinstance(value, int) for value in values) and len(set(numbers)) == 1:
        return Score(values[0])
    own = variant.runs[0].scores.metrics.get(f"{name}_stderr")
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else number_of(own)
    return Score(float(np.mean(numbers)), spread if spread else None)


def _values(variant: Variant, name: str) -> list[Any]:
    """Of the runs that have it; what was measured anew goes before what a run wrote of itself."""
    found = (run.scores.metrics.get(name, run.record.metrics.get(name)) for run in variant.runs)
    return [value for value in found if isinstance(value, float | int | str)]
