"""The pictures of a comparison: what its rows scored, made and learnt, side by side."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowcli import plots
from flowcli.comparison import view
from flowcli.comparison.catalogue import figure
from flowcli.comparison.differences import choices_of
from flowcli.comparison.material import MOST_ROWS, Array, Material
from flowcli.comparison.standings import Standing, Standings, primary
from flowcli.comparison.variants import Group, Variant
from flowcli.numbers import number_of
from flowcli.run import METRICS

FRAMES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
SLOWEST = 400
"""Points of a training curve that are drawn."""


def figures(found: Standings, order: Sequence[int], material: Material, folder: Path) -> dict[str, view.Figure]:
    """Draw what there is to draw, into PNG files in the folder; by the files' names.

    order: of the rows, as they stand in the table.
    """
    artist, group = _Artist(folder), found.group
    rows = [group.variants[index] for index in order[:MOST_ROWS]]
    cut = "" if len(rows) == len(order) else f" The first {len(rows)} of {len(order)} rows."
    main = primary(group)
    for name in dict.fromkeys(name for name in (main, "w2") if name is not None):
        _differences(artist, group, order[:MOST_ROWS], found[name], cut)
        # the true density's own scatter over the test points is the same in all rows, and leaves the gap
        known = name == "nll" and any(score.average is not None for score in found["nll_gap"].scores)
        _seeds(artist, group, order[:MOST_ROWS], found["nll_gap" if known else name], cut)
    _costs(artist, rows, material, cut)
    shown = [(row.label, material.shown[row.label]) for row in rows if row.label in material.shown]
    _of_flows(artist, shown, material.columns, cut)
    _curves(artist, rows, cut)
    return artist.made


class _Artist:
    """Has pictures drawn into files, and collects them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.made = folder, dict[str, view.Figure]()

    def __call__(self, name: str, title: str, caption: str, draw: Callable[[Path], None]) -> None:
        file = self._folder / f"{name}.png"
        draw(file)
        self.made[name] = view.Figure(title, caption, file.read_bytes(), f"{title}. {caption}")


# ---------------------------------------------------------------- figures as figures
def _differences(artist: _Artist, group: Group, order: Sequence[int], standing: Standing, cut: str) -> None:
    if standing.reference is None:
        return
    title, label = figure(standing.name).title, group.variants[standing.reference].label
    rows = []
    for index in order:
        score = standing.scores[index]
        if score.difference is not None:
            found = score.difference
            rows.append((group.variants[index].label, found.value, found.low, found.high, score.verdict))
    artist(
        f"{standing.name.replace('_', '-')}-differences",
        f"Differences in {title}",
        f"Each row's {title} less that of {label}, on the same points; the intervals hold together at 95 %.{cut}",
        lambda file: plots.differences(rows, file, xlabel=f"difference in {_with_unit(standing)}", reference=label),
    )


def _seeds(artist: _Artist, group: Group, order: Sequence[int], standing: Standing, cut: str) -> None:
    rows = []
    for index in order:
        score = standing.scores[index]
        if score.average is not None:
            dots = np.array(score.runs)
            rows.append((group.variants[index].label, dots, score.average.mean, score.average.stderr))
    if not any(len(dots) > 1 for _, dots, _, _ in rows):
        return
    floor = None if standing.floor is None else standing.floor.mean
    artist(
        f"{standing.name.replace('_', '-')}-seeds",
        f"{figure(standing.name).title}, seed by seed",
        f"A dot a seed, the mean with its standard error; the blue line is what a perfect model has.{cut}",
        lambda file: plots.scores(rows, file, floor=floor, xlabel=_with_unit(standing)),
    )


def _with_unit(standing: Standing) -> str:
    known = figure(standing.name)
    return f"{known.title}, {known.unit}" if known.unit else known.title


def _costs(artist: _Artist, rows: Sequence[Variant], material: Material, cut: str) -> None:
    labels = {row.label for row in rows}
    panels = {
        solver: {label: curve for label, curve in curves.items() if label in labels}
        for solver, curves in material.costs.items()
    }
    if any(panels.values()):
        artist(
            "cost",
            "Quality against cost",
            f"Distance of samples from true ones by the evaluations they take; blue: what true samples score.{cut}",
            lambda file: plots.cost_panels(panels, file, floor=material.cost_floor, ylabel="2-Wasserstein distance"),
        )


# ---------------------------------------------------------------- what flows make
def _of_flows(
    artist: _Artist,
    shown: Sequence[tuple[str, Mapping[str, Array]]],
    columns: tuple[str, ...] | None,
    cut: str,
) -> None:
    if not shown:
        return
    data = shown[0][1]["data"]
    if data.shape[1:] != (2,):
        for number, (label, arrays) in enumerate(shown, 1):
            artist(
                f"samples-{number}",
                f"Samples of {label}",
                "Samples beside data.",
                lambda file, arrays=arrays: plots.samples(
                    data, arrays["samples"], file, columns=columns, event_shape=data.shape[1:]
                ),
            )
        return
    artist(
        "samples",
        "Samples beside data",
        f"Of each row's first seed; the limits are those of the data.{cut}",
        lambda file: plots.sample_grid(
            [(label, each["samples"]) for label, each in shown], data, file, columns=columns
        ),
    )
    dense = [(label, each) for label, each in shown if "log_prob" in each]
    if dense:
        first = dense[0][1]
        artist(
            "densities",
            "Densities",
            f"Of each row's first seed, and the true one where it is known, on one scale.{cut}",
            lambda file: plots.density_grid(
                first["xs"],
                first["ys"],
                [(label, each["log_prob"]) for label, each in dense],
                file,
                true_log_prob=first.get("true_log_prob"),
                columns=columns,
            ),
        )
    ways = [(label, each["states"], each["times"]) for label, each in shown if "states" in each]
    if ways:
        artist(
            "trajectories",
            "From noise to data",
            f"Paths of the same noise (but for models with coordinates of their own), each row's first seed.{cut}",
            lambda file: plots.path_grid([(label, way) for label, way, _ in ways], file, data=data, columns=columns),
        )
        framed = [(label, _at(way, times)) for label, way, times in ways]
        artist(
            "frames",
            "Densities on their way",
            f"Where samples are at six times between noise (0) and data (1); of layers, at that share of them.{cut}",
            lambda file: plots.frame_grid(framed, np.array(FRAMES), file, columns=columns),
        )


def _at(states: Array, times: Array) -> Array:
    """The states (T, N, 2) nearest to each of FRAMES."""
    share = (times - times[0]) / (times[-1] - times[0])
    return states[[int(np.abs(share - time).argmin()) for time in FRAMES]]


# ---------------------------------------------------------------- how they were trained
def _curves(artist: _Artist, rows: Sequence[Variant], cut: str) -> None:
    """Validation losses, apart for each objective: losses of different ones cannot be compared."""
    kinds: dict[str, list[tuple[str, list[tuple[Array, Array]]]]] = {}
    for row in rows:
        curves = [curve for curve in (_validation(run.record.path) for run in row.runs) if curve is not None]
        if curves:
            kinds.setdefault(_loss_of(row), []).append((row.label, curves))
    for number, (kind, found) in enumerate(kinds.items(), 1):
        artist(
            f"training-{number}",
            f"Training, {kind}",
            "Validation loss, one line a seed. Under another path or coupling it is another quantity: compare how it "
            f"falls, not how high it lies.{cut}",
            lambda file, found=found: plots.training_curves(found, file, ylabel="validation loss"),
        )


def _loss_of(row: Variant) -> str:
    """What makes two losses the same quantity: the objective, its weighting, and the parametrisation."""
    record = row.runs[0].record
    objective: Any = record.config.get("objective")
    name = choices_of(record).get("objective", "objective")
    weighting = objective.get("weighting") if isinstance(objective, Mapping) else None
    return f"{name} ({weighting} weighting)" if weighting else name


def _validation(run: Path) -> tuple[Array, Array] | None:
    found = [record for record in _lines(run / METRICS) if "validation_loss" in record]
    pairs = [(number_of(record.get("step")), number_of(record["validation_loss"])) for record in found]
    numbers = [(step, value) for step, value in pairs if step is not None and value is not None]
    if not numbers:
        return None
    every = math.ceil(len(numbers) / SLOWEST)
    steps, values = np.array(numbers[::every], dtype=float).T
    return steps, values


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """What a log holds; a line that is none is left out, as is the part of one that is being written."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
