"""Reading a run folder: the checkpoint that --ckpt means, its config and its tensors.

What is read here may come from a stranger (SECURITY.md). Importing this module does not import torch.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowcli import foreign
from flowcli.errors import UserError
from flowcli.run import (
    CONFIG_FILE,
    COUPLING_FILE,
    DESCRIPTION_FILE,
    FORMAT,
    LOGS,
    LONGEST_POINTER,
    OLDEST,
    OPTIMIZER_FILE,
    PROGRESS_FILE,
    RUN_FILE,
    WEIGHTS,
    as_yaml,
    pointed,
)

if TYPE_CHECKING:
    from torch import Tensor

MOST_SETTINGS = 20_000
"""Values in a config. Hydra copies each a dozen times."""
LARGEST_DESCRIPTION = 1 << 23
"""Bytes of a description.json: one of wide tables or of large images names every column, or every pixel's bin."""
LARGEST_EVENT = 1 << 24
"""Numbers in an event."""
LARGEST_HEADER = 1 << 24
"""Bytes of a weights file's header, about 100 a tensor."""
HOLLOW = 1 << 26
"""Bytes from which on a weights file must have half of its length on the disk: holes cost a stranger nothing."""
PERCEPTRON = "flowcli.networks.mlp.MLP"
LATER = {"flowcli.engine.Trainer": {"compile": False, "workers": "auto"}, PERCEPTRON: {"kernel": False}}
"""What classes did before these settings were theirs: a run of that time goes on so."""
_KEY = re.compile(r"[\w./@:+ -]+")
"""Of a config, dots between: tab completion offers keys to a shell, which obeys other signs."""
_CHOICE = re.compile(r"[A-Za-z][\w/-]*(@[\w.-]+)?")


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

    def state(self) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
        """What resuming needs besides the weights: plain values, and the optimizer's tensors.

        Raises:
            UserError: the files are missing, damaged, or of an older format.
        """
        if self.description["format"] < FORMAT:
            raise UserError(
                f"{self.folder}: written by an older flowcli (format {self.description['format']}, here {FORMAT}): "
                "sample, likelihood and compare read it, but its training cannot go on"
            )
        file = self.folder / PROGRESS_FILE
        values = foreign.read_json(file, self.folder)
        try:
            training, offsets = values["training"], values["offsets"]
            whole = isinstance(training, dict) and isinstance(offsets, dict) and "coupling" in values
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: not the progress of a training ({foreign.short(error)})") from error
        # a run that goes on cuts the files that are named here, so it may name its logs alone
        if not whole or set(offsets) != set(LOGS) or not all(_is_count(offset) for offset in offsets.values()):
            raise UserError(f"{file}: not the progress of a training")
        return values, _tensors(self.folder / OPTIMIZER_FILE)


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

    real = foreign.inner(file, file.parent)
    try:
        _refuse_hollow(real)
        tensors = load_file(real)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({foreign.short(error)})") from error
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UserError(f"{file}: {foreign.printable(name[:80])} is not made of finite real numbers")
    return _Tensors(file, tensors)


def _is_finite(tensor: "Tensor") -> bool:
    """Whether a tensor is of real numbers, every one finite."""
    try:
        return not tensor.numel() or all(math.isfinite(float(end)) for end in tensor.aminmax())
    except (RuntimeError, TypeError):  # complex numbers, and floats of 8 bits or less
        return False


def _refuse_hollow(file: Path) -> None:
    """Refuse what would take far more memory than it has bytes on the disk."""
    found = os.stat(file)
    with open(file, "rb") as handle:
        header = int.from_bytes(handle.read(8), "little")
    if header > LARGEST_HEADER:
        raise ValueError(f"its header claims {header:,} bytes")
    there = found.st_blocks * 512
    if found.st_size > HOLLOW and 0 < there < found.st_size // 2:  # 0: this file system does not say
        raise ValueError(f"of its {found.st_size:,} bytes less than half are there: copy it again")


def find_checkpoint(ckpt: str | Path, which: str = "best") -> Checkpoint:
    """The checkpoint that --ckpt means: a run, a checkpoint folder, a weights file, or `latest`.

    Raises:
        UserError: there is none there, or its config is not one that may be loaded.
    """
    path = latest_run(Path("outputs")) if str(ckpt) == "latest" else Path(ckpt)
    if not path.exists():
        raise UserError(f"--ckpt {ckpt}: no such file or folder")
    if path.is_dir():
        return _open_checkpoint(_step_folder(path, ckpt, which), ckpt, None)
    keys = [key for key, name in WEIGHTS.items() if name == path.name]
    if not keys:
        raise UserError(
            f"--ckpt {ckpt}: not a checkpoint; give a run, a folder step-N or {' or '.join(WEIGHTS.values())}"
        )
    return _open_checkpoint(path.parent, ckpt, keys[0])


def _step_folder(path: Path, ckpt: str | Path, which: str) -> Path:
    """The folder of a checkpoint: the one that is given, or the one that a run's pointer names."""
    if (path / CONFIG_FILE).is_file():
        return path
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if not folder.is_dir():
        inner = sorted(child.name for child in path.iterdir() if (child / "checkpoints").is_dir())
        hint = f"; it holds the runs {foreign.printable(', '.join(inner[:8]))}: name one" if inner else ""
        raise UserError(f"--ckpt {ckpt}: holds no checkpoint (a run has a folder checkpoints/){hint}")
    foreign.refuse_links(path)
    if (folder / which).exists():
        foreign.read_text(folder / which, path, limit=LONGEST_POINTER)
    name = pointed(folder, which)
    if name is None:
        raise UserError(
            f"--ckpt {ckpt}: {folder / which} names no checkpoint; was the run stopped before its first one?"
        )
    return folder / name


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
        foreign.refuse_links(folder)
        description = foreign.read_json(folder / DESCRIPTION_FILE, folder, LARGEST_DESCRIPTION)
    except UserError as error:
        raise UserError(f"--ckpt {ckpt}: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise UserError(f"--ckpt {ckpt}: {folder / DESCRIPTION_FILE} is not flowcli's")
    if description["format"] > FORMAT:
        raise UserError(
            f"--ckpt {ckpt}: written by a newer flowcli (format {description['format']}, here {FORMAT}): upgrade"
        )
    if description["format"] < OLDEST:
        raise UserError(
            f"--ckpt {ckpt}: written before flowcli's first release (format {description['format']}, here {FORMAT}): "
            "train it again"
        )
    wrong = _wrong_in(description)
    if wrong is not None:
        raise UserError(f"--ckpt {ckpt}: {folder / DESCRIPTION_FILE} is not flowcli's: {wrong}")
    found = Checkpoint(folder, complete(read_config(folder / CONFIG_FILE)), description, weights)
    if found.run != folder:
        foreign.refuse_links(found.run)
    return found


def _wrong_in(description: Mapping[str, Any]) -> str | None:
    """What no description of ours holds, if there is anything."""
    step, choices = description.get("step", 0), description.get("choices", {})
    if not _is_count(step):
        return "step must be a whole number"
    if not isinstance(choices, dict) or not all(is_choice(*pair) for pair in choices.items()):
        return "choices must be options of config groups"
    shape, columns, widths = (description.get(key) for key in ("event_shape", "columns", "bin_width"))
    if shape is None:
        return None  # no flow is restored without one
    if not isinstance(shape, list) or not 0 < len(shape) <= 3 or not all(_is_count(n) and n > 0 for n in shape):
        return "event_shape must be one to three whole numbers"
    size = math.prod(shape)
    if size > LARGEST_EVENT:
        return f"an event may have {LARGEST_EVENT:,} numbers at most"
    if columns is not None and not (isinstance(columns, list) and len(columns) == size and _are_names(columns)):
        return "columns must be one name a number of an event, without control characters"
    if widths is not None and _shape(widths) != shape:
        return "bin_width must be one number >= 0 a number of an event"
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_names(columns: list[Any]) -> bool:
    return all(isinstance(name, str) and not foreign.has_control(name) for name in columns)


def is_choice(group: object, option: object) -> bool:
    """A group's name (data, hydra/job_logging, data@base.data) and an option's name, or none."""
    names = isinstance(group, str) and (option is None or isinstance(option, str | int | float))
    return names and _CHOICE.fullmatch(str(group)) is not None and not foreign.has_control(str(option))


def _shape(node: Any) -> list[int] | None:
    """The shape of nested lists of numbers >= 0, None where they have none."""
    if not isinstance(node, list):
        return [] if isinstance(node, int | float) and not isinstance(node, bool) and 0 <= node < math.inf else None
    inner = [_shape(each) for each in node]
    return [len(node), *inner[0]] if inner and inner[0] is not None and inner.count(inner[0]) == len(inner) else None


def require_readable(config: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Refuse to train what could not be opened again: the limits of `find_checkpoint` bind our own runs, too.

    Raises:
        UserError: naming the key.
    """
    try:
        text = as_yaml(config)
        if len(text.encode()) > foreign.LARGEST:
            raise UserError(f"the config is longer than {foreign.LARGEST:,} bytes")
        _require_plain(Path(CONFIG_FILE), foreign.parse_yaml(Path(CONFIG_FILE), text, MOST_SETTINGS))
        wrong = _wrong_in(description)
        if wrong is not None:
            raise UserError(wrong)
    except UserError as error:
        raise UserError(f"a run of this could not be opened again: {error}") from error


def read_config(file: Path, inside: Path | None = None) -> dict[str, Any]:
    """A saved, resolved config. Interpolations are refused: they could read the environment.

    inside: the folder that it may not lead out of; its own one, if None.

    Raises:
        UserError: unreadable, not a mapping, or it holds `${`, a control character or a key that is no name.
    """
    return _require_plain(file, foreign.read_yaml(file, inside or file.parent, most=MOST_SETTINGS))


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the settings that its classes were given later, and fit for another machine."""
    return {group: _complete(node) if isinstance(node, dict) else node for group, node in config.items()}


def _complete(node: dict[str, Any]) -> dict[str, Any]:
    found = node | {key: value for key, value in LATER.get(str(node.get("_target_")), {}).items() if key not in node}
    if found.get("_target_") == PERCEPTRON and found["kernel"] is True:  # insisted where it was trained
        found["kernel"] = "auto"
    return found


def _require_plain(file: Path, config: Any) -> dict[str, Any]:
    """Refuse what no resolved config of ours holds."""
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a config (want a mapping, found {type(config).__name__})")
    for key, value in flatten(config):
        if "${" in key or (isinstance(value, str) and "${" in value):
            shown = foreign.printable(key)
            raise UserError(f"{file}: {shown} holds an interpolation (${{...}}), which a saved config may not")
        if not _KEY.fullmatch(key):
            raise UserError(f"{file}: {foreign.printable(key)!r} is not a key that a saved config may have")
        if isinstance(value, str) and foreign.has_control(value):
            raise UserError(f"{file}: {foreign.printable(key)} holds a control character, which a saved config may not")
    if not all(_CHOICE.fullmatch(key) for key in config):
        raise UserError(f"{file}: not a config (a key at its top is neither a word nor a group)")
    return config


def flatten(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested mappings and lists with their dotted keys."""
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if not children:
        yield prefix.removesuffix("."), node
    for key, value in children:
        yield from flatten(value, f"{prefix}{key}.")
