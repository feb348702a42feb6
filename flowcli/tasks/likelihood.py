"""`flowcli likelihood`: log-densities of the test split or of a file, and whether they can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from flowcli import build, console, evaluate, metrics, plots
from flowcli.dataset import Dataset, dequantize
from flowcli.errors import UserError, integer
from flowcli.flows.continuous import ContinuousFlow
from flowcli.run import Checkpoint, write_json


@dataclass(frozen=True)
class _Events:
    """What is scored: draw 0 of the dequantised events, how to make another draw, and the truth where known.

    dataset is None for a file: its true density is not asked for. numbers: each event's row in its source, from 0.
    """

    x: Tensor
    bin_width: Tensor | None
    discrete: bool
    dataset: Dataset | None
    raw: Tensor
    title: str
    numbers: Tensor

    def draw(self, number: int) -> Tensor:
        if self.dataset is not None:
            return self.dataset.points("test", number)
        return dequantize(self.raw, self.bin_width, 0, f"dequantize input {number}")


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Open every job's checkpoint and data.

    Raises:
        UserError: what is wrong, before anything is written.
    """
    for config in configs:
        _settings(config)
        build.evaluation(config)
        checkpoint, _ = build.from_checkpoint(config)
        _events(config, checkpoint)


def _settings(config: Mapping[str, Any]) -> tuple[int, int]:
    return (
        integer("batch_size", config["batch_size"], minimum=1),
        integer("check_rows", config["check_rows"], minimum=0),
    )


def _events(config: Mapping[str, Any], checkpoint: Checkpoint) -> _Events:
    """The test split of the run's own data, or the rows of `input`.

    Raises:
        UserError: the file is not there, not readable, or has other columns than the run.
    """
    source, description = build.source(config), checkpoint.description
    event_shape = tuple(description["event_shape"])
    if config.get("input") is None:
        dataset = source.load()
        if dataset.event_shape != event_shape:
            raise UserError(f"data: has events of shape {dataset.event_shape}, the checkpoint's have {event_shape}")
        x = dataset.points("test")
        title, numbers = f"test split, {len(x):,} rows", torch.arange(len(x))
        return _Events(x, dataset.bin_width, dataset.discrete, dataset, dataset.test, title, numbers)
    path = Path(str(config["input"])).expanduser()
    columns = description.get("columns")
    raw = source.read(path, None if columns is None else tuple(columns), event_shape)
    complete = torch.isfinite(raw).flatten(1).all(1)
    numbers, dropped = complete.nonzero().flatten(), len(raw) - int(complete.sum())
    if len(numbers) == 0:
        raise UserError(f"{path}: no row is complete")
    raw = raw[complete]
    width = description.get("bin_width")
    bin_width = None if width is None else torch.tensor(width, dtype=raw.dtype).reshape(event_shape)
    x = dequantize(raw, bin_width, 0, "dequantize input 0")
    title = f"{path.name}, {len(x):,} rows" + (f" ({dropped:,} incomplete ones left out)" if dropped else "")
    return _Events(x, bin_width, bool(description.get("discrete")), None, raw, title, numbers)


@torch.no_grad()
def run(config: Mapping[str, Any], folder: Path) -> float:
    """Score the events, check the numerics, write log_prob.csv and .npy; return the NLL.

    Raises:
        UserError: the checkpoint or the data cannot be opened, or the flow has no density.
        JobError: the solver failed.
    """
    batch_size, check_rows = _settings(config)
    checkpoint, flow = build.from_checkpoint(config)
    events, seed = _events(config, checkpoint), build.seed(config)
    result = flow.log_prob(events.x, seed=seed, batch_size=batch_size)
    log_prob = result.value.cpu()
    nll = metrics.mean_and_stderr(-log_prob)
    found: evaluate.Metrics = {"rows": len(log_prob), "nll": nll.mean, "nll_stderr": nll.stderr}
    found["nfe_log_prob"] = result.nfe
    truth = None
    if events.dataset is not None:
        found |= evaluate.against_truth(log_prob, events.x, events.dataset)
        truth = None if events.dataset.target is None else events.dataset.target.log_prob(events.x)
    if events.discrete:
        count = build.evaluation(config).dequantization_draws
        others = [flow.log_prob(events.draw(k), seed=seed, batch_size=batch_size).value.cpu() for k in range(1, count)]
        found |= evaluate.discrete_likelihood(torch.stack([log_prob, *others]), events.x[0].numel())
    checked = None
    if check_rows and isinstance(flow, ContinuousFlow):
        checked = evaluate.self_check(
            flow, events.x, log_prob, nll.stderr, rows=check_rows, batch_size=batch_size, seed=seed
        )
        found |= checked.as_metrics()
    _write(events.numbers, log_prob, None if result.stderr is None else result.stderr.cpu(), folder)
    plots.likelihood(log_prob.numpy(), folder / "log_prob.png", true_log_prob=None if truth is None else truth.numpy())
    write_json(folder / "metrics.json", found)
    rows = [*console.metric_rows(found), *([] if checked is None else console.check_rows(checked))]
    console.closing_table(rows, events.title)
    console.console().print(f"wrote log_prob.csv, log_prob.npy, log_prob.png in {console.shown(folder)}")
    return nll.mean


def _write(numbers: Tensor, log_prob: Tensor, stderr: Tensor | None, folder: Path) -> None:
    """One line a row: its number, log_prob in nats, and the probes' standard error where there is one."""
    np.save(folder / "log_prob.npy", log_prob.numpy())
    columns = {"row": numbers.numpy(), "log_prob": log_prob.numpy()}
    if stderr is not None:
        columns["stderr"] = stderr.numpy()
    pl.DataFrame(columns).write_csv(folder / "log_prob.csv")
