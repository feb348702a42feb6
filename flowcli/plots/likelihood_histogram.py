"""Log-likelihoods of rows, against the truth where it is known."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowcli.plots.histograms import bin_edges, bin_heights
from flowcli.plots.panels import MAX_POINTS, few_ticks, inside, left_out, limits_of, marks, remark, signed, thin
from flowcli.plots.style import MODEL_COLOUR, TRUE_COLOUR, Array, write


def likelihood(log_prob: Array, file: Path, *, true_log_prob: Array | None = None) -> None:
    """Draw the histogram of log_prob (N,) in nats with its mean; model against truth (N,) where that is known."""
    write(file, lambda: likelihood_figure(log_prob, true_log_prob))


def likelihood_figure(log_prob: Array, true_log_prob: Array | None) -> Figure:
    """Histogram of log_prob (N,), and model against truth where that is given."""
    log_prob = np.asarray(log_prob, dtype=float).reshape(-1)
    finite = np.isfinite(log_prob)
    truth = None if true_log_prob is None else np.asarray(true_log_prob, dtype=float).reshape(-1)
    figure = Figure(figsize=(6.8, 3.3) if truth is not None else (4.6, 3.1))
    panels = figure.subplots(1, 2 if truth is not None else 1, squeeze=False)[0]
    axes = panels[0]
    limits = limits_of(log_prob)
    edges = bin_edges(log_prob[finite], limits)
    axes.stairs(bin_heights(log_prob, edges), edges, fill=True, color=MODEL_COLOUR, alpha=0.45)
    axes.set_title("Log-likelihood of each row")
    outside = left_out(len(log_prob) - int(inside(log_prob[:, None], [limits]).sum()), len(log_prob))
    remark(axes, outside)
    if finite.any():
        mean = float(log_prob[finite].mean())
        label = f"mean {signed(mean)}" + ("" if finite.all() else f" of the {finite.sum():,} finite rows")
        axes.axvline(mean, color=MODEL_COLOUR, linewidth=1.2, label=label)
    if truth is not None and np.isfinite(truth).any():
        axes.stairs(bin_heights(truth, edges), edges, color=TRUE_COLOUR, linewidth=1.1)
        mean = float(truth[np.isfinite(truth)].mean())
        axes.axvline(mean, color=TRUE_COLOUR, linewidth=1.2, linestyle=(0, (4, 2)), label=f"true mean {signed(mean)}")
    axes.set(xlim=limits, xlabel="log-likelihood (nats)", ylabel="density")
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    axes.legend(loc="upper left")
    if truth is not None:
        _against_truth(panels[1], log_prob, truth)
    return figure


def _against_truth(axes: Axes, log_prob: Array, truth: Array) -> None:
    """Model against truth, a point a row, with the diagonal on which a perfect model lies."""
    ends = [*limits_of(log_prob), *limits_of(truth)]
    low, high = min(ends), max(ends)
    pairs = np.stack([truth, log_prob], axis=1)
    shown = thin(pairs, MAX_POINTS)
    axes.scatter(shown[:, 0], shown[:, 1], color=MODEL_COLOUR, **marks(len(shown)))
    axes.plot([low, high], [low, high], color="#303030", linewidth=0.9, label="model = truth")
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="true log-density (nats)", ylabel="model log-density (nats)")
    axes.set_title("Model against truth")
    remark(axes, left_out(len(pairs) - int(inside(pairs, [(low, high)] * 2).sum()), len(pairs)))
    axes.set_box_aspect(1)
    few_ticks(axes)
    axes.legend(loc="upper left")
