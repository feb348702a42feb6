"""Training curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowcli.plots.panels import signed
from flowcli.plots.style import MODEL_COLOUR, QUIET_COLOUR, TRUE_COLOUR, Array, write


def loss(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw training loss (raw and smoothed), validation loss and learning rate against the step.

    records: dicts with `step` and any of `loss`, `validation_loss`, `lr`; missing and non-finite values are left out.
    """
    write(file, lambda: loss_figure(records))


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    """Steps and finite values of one key, sorted by step."""
    pairs = sorted(
        (float(record["step"]), float(record[key]))
        for record in records
        if record.get(key) is not None and math.isfinite(float(record[key]))
    )
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def smooth(values: Array) -> Array:
    """Moving average over a fortieth of the curve: its window shrinks at the steep start, leans back at the end."""
    reach = len(values) // 80
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    before, after = np.minimum(reach, index), np.minimum(np.minimum(reach, index), len(values) - 1 - index)
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def loss_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses above, learning rate below."""
    steps, values = series(records, "loss")
    validation_steps, validation = series(records, "validation_loss")
    rate_steps, rates = series(records, "lr")
    figure = Figure(figsize=(5.4, 3.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.set_title("Loss")
    everything = np.concatenate([values, validation])
    if len(everything) == 0:
        upper.text(0.5, 0.5, "no finite loss was logged", transform=upper.transAxes, ha="center", color=QUIET_COLOUR)
    if len(values):
        smoothed = smooth(values)
        if len(values) >= 80:
            upper.plot(steps, values, color=MODEL_COLOUR, alpha=0.3, linewidth=0.6)
        upper.plot(steps, smoothed, color=MODEL_COLOUR, label="training", marker="." if len(values) < 20 else "")
    if len(validation):
        best = int(np.argmin(validation))
        label = f"validation, best {signed(float(validation[best]))} at step {validation_steps[best]:,.0f}"
        style: dict[str, Any] = {"color": TRUE_COLOUR, "marker": "o", "linewidth": 0.8, "markersize": 3.0}
        upper.plot(validation_steps, validation, label=label, **style)
        upper.plot(validation_steps[best], validation[best], "o", color=TRUE_COLOUR, markersize=7, fillstyle="none")
    if len(everything):
        if everything.min() > 0 and everything.max() > 10 * everything.min():
            upper.set_yscale("log")
        elif len(values) >= 50:
            # The first steps of a fresh network may be off by far; what follows is what the reader came for.
            low, high = float(everything.min()), float(np.quantile(values, 0.98))
            if len(validation):
                high = max(high, float(np.quantile(validation, 0.8)))
            margin = 0.06 * (high - low)
            if everything.max() > high + (high - low) > low:
                upper.set_ylim(low - margin, high + margin)
        upper.legend(loc="upper right")
    upper.set_ylabel("loss")
    lower.plot(rate_steps, rates, color=QUIET_COLOUR, linewidth=1.1)
    lower.set(xlabel="step", ylabel="learning\nrate")
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.align_ylabels()
    return figure
