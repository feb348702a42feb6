"""Is a row's likelihood its model's own, or its solver's? What is not resolved is shown, and not ranked."""

import math

from flowcli.comparison.variants import Scored, Variant
from flowcli.numbers import number_of

LIKELIHOODS = ("nll", "nll_gap", "bits_per_dim")
"""Figures that a solver's error goes into."""
SHARE = 0.1
"""Of the NLL's standard error, below which the solver's error must be."""


def is_resolved(variant: Variant) -> bool:
    """Whether every run's NLL is."""
    return all(_is_resolved(run) for run in variant.runs if "log_prob" in run.scores.units)


def solver_error(variant: Variant) -> float:
    """The largest of its runs', nats: the change under a tighter solve, and its own error; infinite where unknown."""
    return max((_error(run) for run in variant.runs if "log_prob" in run.scores.units), default=math.inf)


def _is_resolved(run: Scored) -> bool:
    log_prob = run.scores.units["log_prob"]
    inside = log_prob[abs(log_prob) < math.inf]
    return len(inside) > 1 and _error(run) <= SHARE * float(inside.std(ddof=1)) / math.sqrt(len(inside))


def _error(run: Scored) -> float:
    found = [number_of(run.scores.metrics.get(f"nll_solver_error{kind}")) for kind in ("", "_stderr")]
    return math.inf if found[0] is None else abs(found[0]) + (found[1] or 0.0)
