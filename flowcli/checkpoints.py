"""Reading a run folder: the checkpoint that --ckpt means, its config and its tensors.

What is read here may come from a stranger (SECURITY.md). Importing this module does not import torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowcli.errors import UserError
from flowcli.run import CONFIG_FILE, COUPLING_FILE, DESCRIPTION_FILE, FORMAT, RUN_FILE, STATE_FILE, WEIGHTS, pointed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and its small files.

    Attributes:
        folder: checkpoints/step-N.
        config: the resolved config that trained it.
        choices: the config group's option behind each group, {"path": "ot", ...}.
        description: event shape, columns, step, ...
        weights: which weights file is meant, a key of WEIGHTS, where the user named one.
    """

    folder: Path
    config: dict[str, Any]
    description: dict[str, Any]
    weights: str | None = None

    @property
    def choices(self) -> dict[str, str]:
        """The option behind each config group."""
        return dict(self.description.get("choices", {}))

    @property
    def run(self) -> Path:
        """The run folder that holds this checkpoint (the checkpoint's own folder where it was moved out)."""
        outer = self.folder.parent.parent
        return outer if (outer / RUN_FILE).is_file() else self.folder

    def tensors(self, weights: str) -> dict[str, "Tensor"]:
        """The state dict of the raw or the averaged weights.

        Raises:
            UserError: the file is missing or damaged.
        """
        return _tensors(self.folder / WEIGHTS[weights])

    def state(self) -> dict[str, Any]:
        """What resuming needs; nothing but tensors and plain values is unpickled.

        Raises:
            UserError: the file is missing or damaged.
        """
        import pickle
        import warnings

        import torch

        file = self.folder / STATE_FILE
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of a pickle that is not its own before it refuses it
                return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{file}: not a readable training state ({_short(error)})") from error


def fitted_coupling(run: Path) -> dict[str, "Tensor"]:
    """What the training in this run folder fitted its coupling to.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _tensors(run / COUPLING_FILE)


class _Tensors(dict[str, "Tensor"]):
    """A file's tensors; one that is not there is the user's matter, not a KeyError."""

    def __init__(self, file: Path, tensors: Mapping[str, "Tensor"]) -> None:
        super().__init__(tensors)
        self._file = file

    def __missing__(self, name: str) -> "Tensor":
        raise UserError(f"{self._file}: there is no tensor {name!r} in it, so it does not belong to this config")


def _tensors(file: Path) -> dict[str, "Tensor"]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _Tensors(file, load_file(file))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({_short(error)})") from error


def find_checkpoint(ckpt: str | Path, which: str = "best") -> Checkpoint:
    """The checkpoint that --ckpt means: a run, a checkpoint folder, a weights file, or `latest`.

    Raises:
        UserError: there is none there, or its config is not one that may be loaded.
    """
    path = latest_run(Path("outputs")) if str(ckpt) == "latest" else Path(ckpt)
    if not path.exists():
        raise UserError(f"--ckpt {ckpt}: no such file or folder")
    if path.is_file():
        keys = [key for key, name in WEIGHTS.items() if name == path.name]
        if not keys:
            raise UserError(
                f"--ckpt {ckpt}: not a checkpoint; give a run, a folder step-N or {' or '.join(WEIGHTS.values())}"
            )
        return _open_checkpoint(path.parent, ckpt, keys[0])
    if (path / CONFIG_FILE).is_file():
        return _open_checkpoint(path, ckpt, None)
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if not folder.is_dir():
        inner = sorted(child.name for child in path.iterdir() if (child / "checkpoints").is_dir())
        hint = f"; it holds the runs {', '.join(inner[:8])}: name one" if inner else ""
        raise UserError(f"--ckpt {ckpt}: holds no checkpoint (a run has a folder checkpoints/){hint}")
    name = pointed(folder, which)
    if name is None:
        raise UserError(
            f"--ckpt {ckpt}: {folder / which} names no checkpoint; was the run stopped before its first one?"
        )
    return _open_checkpoint(folder / name, ckpt, None)


def latest_run(root: Path) -> Path:
    """The newest run below a folder that has a checkpoint.

    Raises:
        UserError: there is none.
    """
    pointers = [*root.glob("train/*/checkpoints/last"), *root.glob("sweeps/*/*/checkpoints/last")]
    if not pointers:
        raise UserError(f"--ckpt latest: no run with a checkpoint below {root}/")
    return max(pointers, key=lambda file: file.stat().st_mtime_ns).parent.parent


def _open_checkpoint(folder: Path, ckpt: str | Path, weights: str | None) -> Checkpoint:
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--ckpt {ckpt}: {folder / DESCRIPTION_FILE} is missing or damaged ({_short(error)})"
        ) from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise UserError(f"--ckpt {ckpt}: {folder / DESCRIPTION_FILE} is not flowcli's")
    if description["format"] > FORMAT:
        raise UserError(
            f"--ckpt {ckpt}: written by a newer flowcli (format {description['format']}, here {FORMAT}): upgrade"
        )
    if description["format"] < FORMAT:
        raise UserError(
            f"--ckpt {ckpt}: written before flowcli's first release (format {description['format']}, here {FORMAT}): "
            "train it again"
        )
    return Checkpoint(folder, read_config(folder / CONFIG_FILE), description, weights)


def read_config(file: Path) -> dict[str, Any]:
    """A saved, resolved config. Interpolations are refused: they could read the environment.

    Raises:
        UserError: unreadable, not a mapping, or it holds `${`.
    """
    import yaml

    try:
        config = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # safe, only faster
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not a readable config ({_short(error)})") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a config (want a mapping, found {type(config).__name__})")
    for key, value in flatten(config):
        if "${" in key or (isinstance(value, str) and "${" in value):
            raise UserError(f"{file}: {key} holds an interpolation (${{...}}), which a saved config may not")
    return config


def flatten(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested mappings and lists with their dotted keys."""
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if not children:
        yield prefix.removesuffix("."), node
    for key, value in children:
        yield from flatten(value, f"{prefix}{key}.")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
