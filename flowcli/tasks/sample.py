"""`flowcli sample`: what a trained flow makes of noise and of data; the modes are modules of `flowcli.tasks.modes`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from flowcli import build, processes
from flowcli.checkpoints import Checkpoint
from flowcli.errors import UserError, choice, integer
from flowcli.flows.base import Flow
from flowcli.tasks.modes import animate, encode, explain, files, interpolate, nfe, samples


class Mode(Protocol):
    """What a mode's module has.

    Attributes:
        KEYS: the keys of conf/sample.yaml that it reads, besides those that all modes read.
    """

    KEYS: tuple[str, ...]

    def check(self, config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
        """Raise UserError for what is wrong, before anything is written."""
        ...

    def run(self, config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
        """Do the work, into the folder."""
        ...


MODES: dict[str, Mode] = {
    "samples": samples,
    "encode": encode,
    "interpolate": interpolate,
    "nfe": nfe,
    "explain": explain,
    "animate": animate,
}


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Open every job's checkpoint, and the data that its mode needs, and check its settings.

    Raises:
        UserError: what is wrong, before anything is written.
    """
    for config in configs:
        mode = MODES[choice("mode", config["mode"], MODES)]
        _refuse_unread(config)
        integer("batch_size", config["batch_size"], minimum=1)
        build.seed(config)
        checkpoint, flow = build.from_checkpoint(config)
        mode.check(config, checkpoint, flow)


def _refuse_unread(config: Mapping[str, Any]) -> None:
    """Refuse a value for a key that the mode does not read: one that is not conf/sample.yaml's own."""
    for key in sorted({key for mode in MODES.values() for key in mode.KEYS}):
        if key in MODES[config["mode"]].KEYS or not files.changed(config, key):
            continue
        said = f"--out {config[key]}" if key == "out" else f"{key}={config[key]}".replace(" ", "")
        readers = " or ".join(f"mode={name}" for name, mode in MODES.items() if key in mode.KEYS)
        raise UserError(f"{said}: mode={config['mode']} has no use for it, only {readers}")


@torch.no_grad()
def run(config: Mapping[str, Any], folder: Path) -> None:
    """Do what the mode does.

    Raises:
        UserError: the checkpoint or the data cannot be opened, or the flow cannot do it.
        JobError: the solver failed.
    """
    checkpoint, flow = build.from_checkpoint(config)
    config = {**config, "batch_size": integer("batch_size", config["batch_size"], minimum=1)}
    with processes.writing(folder) as own:
        MODES[config["mode"]].run(config, checkpoint, flow, own)
