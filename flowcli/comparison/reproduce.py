"""How a comparison came about: the commands behind its rows, how they were measured, and with what."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcli import __version__
from flowcli.checkpoints import flatten
from flowcli.comparison.differences import SEED
from flowcli.comparison.variants import Group, Variant
from flowcli.errors import UserError
from flowcli.foreign import read_json, read_yaml
from flowcli.numbers import text_of

OVERRIDES_FILE = ".hydra/overrides.yaml"
ENVIRONMENT_FILE = "environment.json"


def commands(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """For each row the command that trains it, with all of its seeds; rows whose words are lost have none."""
    found = []
    for group in groups:
        for variant in group.variants:
            words = _words(variant)
            if words is not None:
                label = variant.label if len(groups) == 1 else f"{group.title} {variant.label}"
                found.append((label, shlex.join(words)))
    return found


def _words(variant: Variant) -> list[str] | None:
    kept = [_asked(run.record.path) for run in variant.runs]
    if any(words is None for words in kept):
        return None
    without = [[word for word in words or () if not word.startswith((f"{SEED}=", "hydra."))] for words in kept]
    if any(words != without[0] for words in without):
        return None  # runs that --by put together
    seeds = [text_of(seed) for seed in variant.seeds if seed is not None]
    swept = [f"{SEED}={','.join(seeds)}"] if seeds else []
    return ["flowcli", "train", *(["-m"] if len(seeds) > 1 else []), *without[0], *swept]


def _asked(run: Path) -> list[str] | None:
    try:
        words = read_yaml(run / OVERRIDES_FILE, run)
    except UserError:
        return None
    return [text_of(word) for word in words] if isinstance(words, list) else None


def settings(config: Mapping[str, Any], groups: Sequence[Group]) -> list[tuple[str, str]]:
    """How all rows were measured, and what they were trained with."""
    runs = [run.record for group in groups for variant in group.variants for run in variant.runs]
    solver = config.get("solver")
    told = [
        ("weights", "averaged, of the best checkpoint"),
        ("solver", "each run's own" if solver is None else _flat(solver)),
    ]
    if config.get("divergence") is not None:
        told.append(("divergence", _flat(config["divergence"])))
    told.append(("draws of --nfe", text_of(config["nfe_draws"])))
    told.append(("evaluation", _flat({key: value for key, value in config["evaluation"].items() if key != "pictures"})))
    made = [_environment(run.path) for run in runs]
    for name in ("flowcli", "torch", "device", "git_commit"):
        values = {text_of(each[name]) for each in made if each.get(name) is not None}
        if values:
            told.append((f"trained with {name}", ", ".join(sorted(values))))
    return [*told, ("compared with flowcli", __version__)]


def _environment(run: Path) -> dict[str, Any]:
    try:
        found = read_json(run / ENVIRONMENT_FILE, run)
    except UserError:
        return {}
    packages = found.get("packages") if isinstance(found, dict) else None
    return {**found, "torch": packages.get("torch")} if isinstance(packages, dict) else {}


def _flat(node: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={text_of(value)}" for key, value in flatten(node) if key != "_target_")
