"""What a task shows on the terminal: a bar where a person watches, plain lines where the output is piped."""

import math
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flowcli import processes
from flowcli.foreign import printable
from flowcli.numbers import with_error
from flowcli.resolution import SelfCheck

LINE_EVERY = 10.0
"""Seconds between two plain lines."""

Row = tuple[str, str, str]
"""A figure's name, its value with error, and what a perfect model would score."""


class _Plain(Console):
    """Takes a text for what it is: no markup, no emoji codes, and nothing that a terminal would obey."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


def console() -> Console:
    """Standard output as it is now, of the process that leads; names in it are shown as they are written."""
    return _Plain(file=sys.stdout, highlight=False, soft_wrap=True, quiet=not processes.leads())


class TrainingProgress:
    """Shows step, loss, speed and time left."""

    def __init__(self, steps: int, first: int) -> None:
        """steps: in all; first: where this training starts."""
        self._steps, self._console = steps, console()
        # bars of several worker processes would overwrite each other
        self._live = processes.leads() and self._console.is_terminal and multiprocessing.parent_process() is None
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=steps, completed=first, loss="-", rate="-")
        self._last = (time.perf_counter(), first)

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def update(self, record: Mapping[str, Any]) -> None:
        """Show a log record that has a loss."""
        if "loss" not in record:
            return
        now, step = time.perf_counter(), int(record["step"])
        began, before = self._last
        rate = (step - before) / max(now - began, 1e-9)
        shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
        if self._live:
            self._bar.update(self._task, completed=step, loss=f"{record['loss']:.4f}", rate=shown)
            self._last = (now, step)
        elif now - began >= LINE_EVERY or step == self._steps:
            left = f", {(self._steps - step) / rate:.0f} s left" if step < self._steps else ""
            self._console.print(f"step {step}/{self._steps}  loss {record['loss']:.4f}  {shown} steps/s{left}")
            self._last = (now, step)


def closing_table(rows: Sequence[Row], title: str) -> None:
    """Print a closing table; plain columns where the output is piped."""
    out = console()
    heads = ("", "value", "perfect model")
    heads = heads if any(row[2] for row in rows) else heads[:2]
    if not out.is_terminal:
        widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
        out.print(title)
        for row in (heads, *rows):
            out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
        return
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[: len(heads)])
    out.print(table)


_SHOWN = (
    ("nll", "NLL, nats"),
    ("outside", "test points outside the base's reach"),
    ("nll_inside", "NLL of the others, nats"),
    ("augment_draws", "draws behind the likelihood's bound"),
    ("nll_gaussian", "NLL of a fitted Gaussian, nats"),
    ("nll_gap", "gap to the true density, nats"),
    ("nll_solver_error", "the solver's error in the NLL, nats"),
    ("nll_standardised", "NLL, standardised units"),
    ("bits_per_dim", "bits/dim"),
    ("w2", "2-Wasserstein distance"),
    ("mmd", "MMD² (unbiased)"),
    ("energy_distance", "energy distance (unbiased)"),
    ("c2st", "C2ST, accuracy of nearest neighbours"),
    ("velocity_error", "velocity error against the oracle, relative"),
    ("velocity_error_train", "the same, against that of the training points"),
    ("continuity_residual", "residual of the continuity equation, nats/time"),
    ("fokker_planck_residual", "residual of the Fokker-Planck equation, nats/time"),
    ("normalized_path_energy", "normalised path energy"),
    ("straightness", "bend of the paths (0: straight)"),
    ("transport_cost", "transport cost of the coupling, model units"),
    ("transport_cost_independent", "the same without it"),
    ("coupling_error", "largest error of a cell's mass, relative"),
    ("coupling_share", "share of the training spent on it"),
    ("coupling_fit_seconds", "fitting it before the training, s"),
    ("base_kl", "KL(p_0 || base), nats"),
    ("nfe_log_prob", "evaluations, likelihood"),
    ("nfe_sample", "evaluations, sampling"),
    ("parameters", "parameters"),
    ("train_seconds", "training, s"),
)


_PERFECT_IS_ZERO = (
    "nll_gap",
    "velocity_error",
    "continuity_residual",
    "fokker_planck_residual",
    "coupling_error",
)


def metric_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """The rows of a closing table out of the flat metrics."""
    rows = []
    for key, name in _SHOWN:
        if key not in metrics:
            continue
        floor = metrics.get(f"{key}_floor")
        perfect = (
            with_error(floor, metrics.get(f"{key}_floor_stderr"))
            if floor is not None
            else "0"
            if key in _PERFECT_IS_ZERO
            else ""
        )
        value = metrics[key]
        shown = str(value) if isinstance(value, int) else with_error(value, metrics.get(f"{key}_stderr"))
        rows.append((name, shown, perfect))
    return rows


def check_rows(check: SelfCheck) -> list[Row]:
    """The rows of a likelihood's self-check."""
    solved = check.nfe_tight > 1
    tight = f"change in float64{', tighter solve' if solved else ''} ({check.rows} rows)"
    rows = [(tight, with_error(check.change, check.change_stderr), "")]
    if math.isfinite(check.hutchinson):
        rows.append(("exact minus Hutchinson", with_error(check.hutchinson, check.hutchinson_stderr), ""))
    trip = ", ".join(f"{value:.1e}" for value in check.round_trip)
    rows.append(("|decode(encode(x)) - x|, 50 %, 95 %, largest", trip, ""))
    if solved:
        rows.append(("evaluations, as asked and tighter", f"{check.nfe}, {check.nfe_tight}", ""))
    return [*rows, ("resolved", "yes" if check.resolved else "no", "")]


def shown(path: Path) -> Path:
    """A path as the user would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path
