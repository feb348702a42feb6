"""`flowcli likelihood`: log-densities of the test split or of a file, and whether they can be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from flowcli import build, console, evaluate, plots, processes
from flowcli.errors import UserError, integer
from flowcli.resolution import self_check
from flowcli.storage import replacing, write_json
from flowcli.tasks.events import Events, open_events


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Open every job's checkpoint and data.

    Raises:
        UserError: what is wrong, before anything is written.
    """
    for config in configs:
        _settings(config)
        build.evaluation(config)
        checkpoint, flow = build.from_checkpoint(config)
        if flow.no_likelihood is not None:
            raise UserError(f"this flow has no likelihood: {flow.no_likelihood}")
        open_events(config, checkpoint)


def _settings(config: Mapping[str, Any]) -> tuple[int, int]:
    return (
        integer("batch_size", config["batch_size"], minimum=1),
        integer("check_rows", config["check_rows"], minimum=0),
    )


@torch.no_grad()
def run(config: Mapping[str, Any], folder: Path) -> float:
    """Score the events, check the numerics, write log_prob.csv and .npy; return the NLL.

    Raises:
        UserError: the checkpoint or the data cannot be opened, or the flow has no density.
        JobError: the solver failed.
    """
    with processes.writing(folder) as own:
        return _score(config, own)


def _score(config: Mapping[str, Any], folder: Path) -> float:
    batch_size, check_rows = _settings(config)
    checkpoint, flow = build.from_checkpoint(config)
    scored, seed = open_events(config, checkpoint), build.seed(config)
    result = flow.log_prob(scored.x, seed=seed, batch_size=batch_size)
    log_prob = result.value.cpu()
    found: evaluate.Metrics = {"rows": len(log_prob), **evaluate.scores(flow, result)}
    nll, stderr = float(found["nll"]), float(found["nll_stderr"])
    truth = None
    if scored.dataset is not None:
        truth = evaluate.true_log_prob(scored.x, scored.dataset)
        found |= evaluate.against_truth(log_prob, truth, scored.dataset)
    if scored.discrete:
        count = build.evaluation(config).dequantization_draws
        others = [flow.log_prob(scored.draw(k), seed=seed, batch_size=batch_size).value.cpu() for k in range(1, count)]
        found |= evaluate.discrete_likelihood(
            evaluate.bits_per_dim(torch.stack([log_prob, *others]), scored.x[0].numel()), count
        )
    checked = None
    if check_rows:
        checked = self_check(flow, scored.x, stderr, rows=check_rows, batch_size=batch_size, seed=seed)
        found |= checked.as_metrics()
    _write(scored.numbers, log_prob, None if result.stderr is None else result.stderr.cpu(), folder)
    plots.likelihood(log_prob.numpy(), folder / "log_prob.png", true_log_prob=None if truth is None else truth.numpy())
    write_json(folder / "metrics.json", found)
    rows = [*console.metric_rows(found), *([] if checked is None else console.check_rows(checked))]
    console.closing_table(rows, _title(scored))
    console.console().print(f"wrote log_prob.csv, log_prob.npy, log_prob.png in {console.shown(folder)}")
    return nll


def _title(scored: Events) -> str:
    left_out = f" ({scored.left_out:,} incomplete ones left out)" if scored.left_out else ""
    return f"{scored.source}, {len(scored.x):,} rows{left_out}"


def _write(numbers: Tensor, log_prob: Tensor, stderr: Tensor | None, folder: Path) -> None:
    """One line a row: its number, log_prob in nats, and the probes' standard error where there is one."""
    with replacing(folder / "log_prob.npy") as file:
        np.save(file, log_prob.numpy())
    columns = {"row": numbers.numpy(), "log_prob": log_prob.numpy()}
    if stderr is not None:
        columns["stderr"] = stderr.numpy()
    with replacing(folder / "log_prob.csv") as file:
        pl.DataFrame(columns).write_csv(file)
