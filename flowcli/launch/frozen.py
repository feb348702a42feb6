"""A run's own config, offered to Hydra as it was."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowcli import foreign, run, storage, tracking
from flowcli.errors import UserError
from flowcli.explain import FLAGS_ONLY, did_you_mean, have
from flowcli.launch.offers import groups, keys
from flowcli.launch.request import ON_CHECKPOINT, ON_RESUME, Request, quote

FROZEN = "_ckpt"
"""The option under which a checkpoint's own node stands in each config group."""

WRITTEN = (".json", ".jsonl", ".npy", ".png", ".safetensors")
"""Endings of the files that a run has beside its folders."""


def freeze(request: Request, ckpt: Path, overrides: Sequence[Any]) -> None:
    """Offer a checkpoint's config to Hydra, and refuse to change what belongs to its training."""
    from flowcli.checkpoints import find_checkpoint

    checkpoint = find_checkpoint(ckpt, which=request.which or keys(request.verb)["which"][0])
    free = list(
        dict.fromkeys([*ON_CHECKPOINT[request.verb], *(key for key in keys(request.verb) if key not in FLAGS_ONLY)])
    )
    for override in overrides:
        root = re.split(r"[./]", override.key_or_group)[0]
        if root in (*free, "hydra"):
            continue
        if root not in checkpoint.config and root not in groups():
            raise UserError(f"{override.key_or_group}: no such key ({have(free)}){did_you_mean(root, free)}")
        hint = "; to score other data: flowcli likelihood --ckpt RUN input=FILE" if root == "data" else ""
        raise UserError(
            f"{override.input_line}: {root} belongs to training and is fixed in a checkpoint"
            f" (may change: {', '.join(free)}){hint}"
        )
    register_frozen(checkpoint.config, checkpoint.choices)


class _FewerSteps(UserError):
    """--resume with a trainer.steps that lies behind the run."""


def _refuse_fewer_steps(overrides: Sequence[Any], done: int) -> None:
    for override in overrides:
        steps = override.value() if override.key_or_group == "trainer.steps" else None
        if isinstance(steps, int | float) and steps < done:
            raise _FewerSteps(f"{override.input_line}: the run has done {done} steps already; give more")


def reopen(request: Request, overrides: Sequence[Any]) -> list[str]:
    """Offer the config of a run that goes on; return the overrides that lead Hydra back into its folder."""
    from flowcli import checkpoints

    if request.multirun or request.config_name is not None:
        raise UserError("--resume goes on with one run and its own config: leave out --multirun and --config-name")
    for override in overrides:
        key = override.key_or_group
        if key not in ON_RESUME and not key.startswith("logger."):
            raise UserError(f"{override.input_line}: with --resume only {', '.join(ON_RESUME)} may change")
    resume = Path(str(request.resume))
    if resume.is_dir():
        foreign.refuse_links(resume)  # the lock, the logs and the arrays are written where a link leads
        storage.require_free(resume)  # before its checkpoints are read, which come and go while somebody trains
        for inner in resume.iterdir():
            if inner.is_dir() and inner.suffix in WRITTEN:
                raise UserError(f"{inner} is a folder, and the run writes a file of that name")
    try:
        checkpoint = checkpoints.find_checkpoint(resume, which="last")
        folder, config, choices = checkpoint.run, checkpoint.config, checkpoint.choices
        _refuse_fewer_steps(overrides, int(checkpoint.description.get("step", 0)))
    except _FewerSteps:
        raise
    except UserError as error:
        inner = resume / "checkpoints"
        if not (resume / run.RUN_FILE).is_file() or ((inner / "last").exists() and any(inner.glob("step-*"))):
            raise UserError(str(error).replace("--ckpt", "--resume", 1)) from error
        # stopped before its first checkpoint: it starts over in place
        folder, config = resume, checkpoints.complete(checkpoints.read_config(resume / run.RESOLVED_FILE))
        choices = checkpoints.read_config(resume / run.CHOICES_FILE)
    tracking.refuse_unsaid(config.get("logger"), {override.key_or_group for override in overrides})
    storage.require_free(folder)
    register_frozen(config, choices)
    # output_subdir: .hydra/ keeps what was first asked; what changes now goes into the checkpoints
    folder = folder.resolve()
    return [f"hydra.run.dir={quote(folder)}", "hydra.output_subdir=null", f"resume={quote(folder)}"]


def register_frozen(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> None:
    """Offer a run's config to Hydra: its node of every group as option `_ckpt`, the rest as the config `_ckpt`.

    `solver=euler` then replaces the frozen solver whole, by the ordinary rules of the defaults list;
    everything else keeps the value it was trained with, whatever conf/ says today.

    Raises:
        UserError: the config holds what no run of ours does.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance().store
    # Hydra's own node would be obeyed (callbacks, launchers), and trust is given by the user, not by a file
    rest = {key: value for key, value in config.items() if key not in (*FLAGS_ONLY, "hydra")}
    defaults: list[Any] = ["_self_"]
    for choice in choices:
        key = choice.rpartition("@")[2]
        if not re.fullmatch(r"\w+(@\w+)?", choice) or key not in rest:
            continue  # Hydra's groups, groups inside another node (they stay there), experiments
        if rest[key] is None:
            defaults.append({choice: None})
            continue
        group, name, node = choice.partition("@")[0], choice.replace(choice.partition("@")[0], FROZEN), rest.pop(key)
        if not isinstance(node, dict) or "defaults" in node:
            raise UserError(f"the checkpoint's config is not one of flowcli's: {key} is not a group's node")
        store(group=group, name=name, node=node)
        defaults.append({choice: name})
    if "defaults" in rest:
        raise UserError("the checkpoint's config is not one of flowcli's: it has a defaults list")
    store(name=FROZEN, node={"defaults": defaults, **rest})


def forget_frozen(entries: dict[str, Any]) -> None:
    """Take out what register_frozen put in, and no more: Hydra's plugins have entries of their own."""
    for name, entry in list(entries.items()):
        if isinstance(entry, dict):
            forget_frozen(entry)
        if name.startswith(FROZEN) or entry == {}:
            del entries[name]
