"""What is left of runs, for `compare`: figures, or the reason why there are none.

Importing this module does not import torch.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli.checkpoints import read_config
from flowcli.errors import UserError
from flowcli.foreign import read_json, short
from flowcli.run import CHOICES_FILE, FORMAT, RESOLVED_FILE, RUN_FILE
from flowcli.storage import in_use

MOST_METRICS, LONGEST_REASON = 10_000, 600


@dataclass(frozen=True)
class RunRecord:
    """What is left of a run: `status` is done, failed, unfinished or broken, `reason` says why it is not done."""

    path: Path
    status: str
    reason: str
    config: dict[str, Any]
    choices: dict[str, str]
    metrics: dict[str, Any]


def collect(paths: Iterable[Path]) -> list[RunRecord]:
    """The training runs at or below these paths, each once, in order.

    Raises:
        UserError: a path does not exist or holds no run.
    """
    found: dict[Path, RunRecord] = {}
    for path in paths:
        if not path.is_dir():
            why = "not a folder" if os.path.lexists(path) and not path.is_symlink() else "no such folder"
            raise UserError(f"{path}: {why}")
        records = {
            run.resolve(): _record(run) if error is None else RunRecord(run, "broken", short(error), {}, {}, {})
            for run, error in _runs(path)
            if error is not None or _of_training(run)
        }
        if not records:
            raise UserError(f"{path}: holds no training run (a run has a {RUN_FILE}, written by `flowcli train`)")
        found |= {key: record for key, record in records.items() if key not in found}
    return list(found.values())


def _runs(path: Path) -> Iterable[tuple[Path, OSError | None]]:
    """Every folder with a RUN_FILE, in natural order, and every one that cannot be looked into, with the reason.

    A link is followed where the user names it, and nowhere below: a tree of links may have no end.
    """

    def natural(name: str) -> tuple[int, str]:
        return (int(name), "") if name.isdecimal() and len(name) < 20 else (-1, name)

    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            if os.path.lexists(folder / RUN_FILE):
                yield folder, None
                continue
            with os.scandir(folder) as entries:
                inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            yield folder, error
            continue
        waiting += [folder / name for name in sorted(inner, key=natural, reverse=True) if name != ".hydra"]


def _of_training(run: Path) -> bool:
    """Whether a run is no sampling or scoring; a broken one is listed, as broken."""
    try:
        marker = read_json(run / RUN_FILE, run)
    except UserError:
        return True
    return not isinstance(marker, dict) or marker.get("verb", "train") == "train"


def _record(run: Path) -> RunRecord:
    config: dict[str, Any] = {}
    choices: dict[str, str] = {}
    try:
        _require_format(read_json(run / RUN_FILE, run))
        config = read_config(run / RESOLVED_FILE, run)
        choices = {str(group): str(option) for group, option in read_config(run / CHOICES_FILE, run).items()}
        metrics = _read_ending(run, "metrics.json")
        if metrics is not None:
            return RunRecord(run, "done", "", config, choices, metrics)
        failure = _read_ending(run, "failure.json")
    except UserError as error:
        return RunRecord(run, "broken", _cut(str(error).removeprefix(f"{run}/")), config, choices, {})
    if failure is not None:
        return RunRecord(run, "failed", _cut(str(failure.get("reason", "no reason given"))), config, choices, {})
    holder = in_use(run)
    if holder is not None:
        return RunRecord(run, "unfinished", f"still training: {holder}", config, choices, {})
    return RunRecord(run, "unfinished", f"stopped; flowcli train --resume {run} goes on", config, choices, {})


def _require_format(marker: Any) -> None:
    if not isinstance(marker, dict) or type(marker.get("format")) is not int:
        raise UserError(f"{RUN_FILE} is not flowcli's")
    if marker["format"] > FORMAT:
        raise UserError(f"written by a newer flowcli (format {marker['format']})")


def _read_ending(run: Path, name: str) -> dict[str, Any] | None:
    """What a run wrote when it ended; None where it did not."""
    if not os.path.lexists(run / name):
        return None
    content = read_json(run / name, run)
    if not isinstance(content, dict) or len(content) > MOST_METRICS:
        raise UserError(f"{name} is damaged (want a mapping of at most {MOST_METRICS:,} figures)")
    return content


def _cut(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"
