"""Is a likelihood resolved, or is its solver's error in it? Scored twice, there and back, and with random probes."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcli import metrics
from flowcli.divergence import Hutchinson
from flowcli.flows.base import Flow, Result
from flowcli.flows.continuous import ContinuousFlow
from flowcli.solvers import Solver, tightened


@dataclass(frozen=True)
class SelfCheck:
    """Whether the numerics behind an NLL can be trusted, from a subset of its rows.

    Attributes:
        rows: how many were checked.
        change, change_stderr: paired mean change of log_prob in float64, for a flow that is solved with 10x tighter
            tolerances or twice the steps.
        hutchinson, hutchinson_stderr: exact minus Hutchinson, mean over rows and its error; NaN where not applicable.
        round_trip: quantiles (50 %, 95 %, 100 %) of the largest coordinate of |decode(encode(x)) - x|, data units.
        nfe, nfe_tight: evaluations of the two solves.
        resolved: the change is below a tenth of the NLL's standard error.
    """

    rows: int
    change: float
    change_stderr: float
    hutchinson: float
    hutchinson_stderr: float
    round_trip: tuple[float, float, float]
    nfe: int
    nfe_tight: int
    resolved: bool

    def as_metrics(self) -> dict[str, Any]:
        """Flat names and values."""
        flat: dict[str, Any] = {f"check_{key}": value for key, value in vars(self).items() if key != "round_trip"}
        for name, value in zip(("median", "95", "max"), self.round_trip, strict=True):
            flat[f"check_round_trip_{name}"] = value
        resolved = flat.pop("check_resolved")
        return {**flat, "resolved": resolved}


@dataclass(frozen=True)
class Rescored:
    """Log-densities as they are reported, beside those of a better solve.

    Attributes:
        reported: as asked.
        nfe_tight: evaluations of the better solve.
        change: paired mean change of log_prob, nats, with its error.
    """

    reported: Result
    nfe_tight: int
    change: metrics.Estimate


@torch.no_grad()
def rescored(flow: Flow, x: Tensor, *, seed: int, batch_size: int) -> Rescored:
    """Score x (N, ...) as asked, and in float64 with 10x tighter tolerances or twice the steps.

    Both anew: the noise of a row (probes, extra coordinates) depends on its number in the call.
    """
    # deepcopy, because casting moves a module's own numbers
    tight = copy.deepcopy(flow).cast(torch.float64, flow.device)
    if isinstance(tight, ContinuousFlow):
        assert isinstance(tight.solver, Solver)  # a stochastic one has no likelihood to check
        tight = tight.with_solver(tightened(tight.solver))
    reported = flow.log_prob(x, seed=seed, batch_size=batch_size).cpu()
    better = tight.log_prob(x, seed=seed, batch_size=batch_size).cpu()
    change = (better.value - reported.value).double()
    inside = torch.isfinite(change)  # outside of a base without tails both are infinite
    return Rescored(reported, better.nfe, metrics.mean_and_stderr(change[inside]))


def spread_out(x: Tensor, rows: int) -> Tensor:
    """At most so many rows of x (N, ...), evenly spaced."""
    return x[torch.linspace(0, len(x) - 1, min(rows, len(x))).round().long()]


@torch.no_grad()
def self_check(flow: Flow, x: Tensor, nll_stderr: float, *, rows: int, batch_size: int, seed: int) -> SelfCheck:
    """Check the log-densities of x (N, ...) on evenly spaced rows of them."""
    points = spread_out(x, rows)
    twice = rescored(flow, points, seed=seed, batch_size=batch_size)
    there_and_back = flow.decode(flow.encode(points, batch_size=batch_size).value, batch_size=batch_size).value
    estimate = None
    if isinstance(flow, ContinuousFlow) and not isinstance(flow.divergence, Hutchinson):
        probing = flow.with_divergence(Hutchinson(probes=4, distribution="rademacher"))
        estimate = probing.log_prob(points, seed=seed, batch_size=batch_size).value.cpu()
    reported, change = twice.reported.value, twice.change
    difference = metrics.mean_and_stderr(torch.full((2,), math.nan) if estimate is None else reported - estimate)
    error = (there_and_back.cpu() - points).abs().flatten(1).amax(1).double()
    quantiles = torch.quantile(error, torch.tensor([0.5, 0.95, 1.0], dtype=torch.float64))
    return SelfCheck(
        rows=len(points),
        change=change.mean,
        change_stderr=change.stderr,
        hutchinson=difference.mean,
        hutchinson_stderr=difference.stderr,
        round_trip=(float(quantiles[0]), float(quantiles[1]), float(quantiles[2])),
        nfe=twice.reported.nfe,
        nfe_tight=twice.nfe_tight,
        # the mean's own scatter counts too: five rows that happen to agree resolve nothing
        resolved=abs(change.mean) + (change.stderr if len(points) > 1 else 0.0) < nll_stderr / 10,
    )
