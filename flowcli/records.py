"""What is left of runs, for `compare`: figures, or the reason why there are none.

Importing this module does not import torch.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli.checkpoints import read_config
from flowcli.errors import UserError
from flowcli.run import FORMAT, RUN_FILE


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
            raise UserError(f"{path}: no such folder" if not path.exists() else f"{path}: not a folder")
        records = {run.resolve(): _record(run) for run in _runs(path)}
        if not records:
            raise UserError(f"{path}: holds no training run (a run has a {RUN_FILE}, written by `flowcli train`)")
        found |= {key: record for key, record in records.items() if key not in found}
    return list(found.values())


def _runs(path: Path) -> Iterable[Path]:
    def natural(name: str) -> tuple[int, str]:
        return (int(name), "") if name.isdigit() else (-1, name)

    if (path / RUN_FILE).is_file():
        yield from [path] if _is_training(path) else []
        return
    for child in sorted(
        (c for c in path.iterdir() if c.is_dir() and not c.is_symlink()), key=lambda c: natural(c.name)
    ):
        if child.name != ".hydra":
            yield from _runs(child)


def _is_training(run: Path) -> bool:
    content = _json(run / RUN_FILE)
    return not isinstance(content, dict) or content.get("verb", "train") == "train"  # a broken one is listed as broken


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _record(run: Path) -> RunRecord:
    marker = _json(run / RUN_FILE)
    if not isinstance(marker, dict) or not isinstance(marker.get("format"), int):
        return RunRecord(run, "broken", f"{RUN_FILE} is damaged", {}, {}, {})
    if marker["format"] > FORMAT:
        return RunRecord(run, "broken", f"written by a newer flowcli (format {marker['format']})", {}, {}, {})
    try:
        config = read_config(run / ".hydra" / "resolved.yaml")
        choices = read_config(run / ".hydra" / "choices.yaml")
    except UserError as error:
        return RunRecord(run, "broken", str(error), {}, {}, {})
    choices = {str(group): str(option) for group, option in choices.items()}
    metrics = _json(run / "metrics.json")
    if isinstance(metrics, dict):
        return RunRecord(run, "done", "", config, choices, metrics)
    if (run / "metrics.json").exists():
        return RunRecord(run, "broken", "metrics.json is damaged", config, choices, {})
    failure = _json(run / "failure.json")
    if isinstance(failure, dict):
        return RunRecord(run, "failed", str(failure.get("reason", "no reason given")), config, choices, {})
    return RunRecord(run, "unfinished", "no metrics.json yet: still running, or stopped", config, choices, {})
