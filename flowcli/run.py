"""The run folder: what is written there, atomically, and how it is read back.

    run.json                   format version and verb: what makes a folder a run
    .hydra/                    what was asked, in full (resolved.yaml, choices.yaml)
    metrics.jsonl              one line a log step or evaluation, reproduced bit for bit by a resumed run
    timings.jsonl              the same steps with the clock
    metrics.json               the final figures; failure.json instead where the job failed
    checkpoints/step-N/        model, ema (safetensors), config.yaml, description.json, state.pt
    checkpoints/last, best     pointers: files that hold the name of a step folder

Importing this module does not import torch.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flowcli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
"""Of run folders. 1, before the first release, had other classes in its configs: only its figures can be read."""
RUN_FILE = "run.json"
CONFIG_FILE, DESCRIPTION_FILE, STATE_FILE = "config.yaml", "description.json", "state.pt"
COUPLING_FILE = "coupling.safetensors"
REFERENCE_FILE = "reference.npy"
"""Some true points that a training leaves in its run folder, for pictures beside later samples."""
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
POINTERS = ("best", "last")


# ---------------------------------------------------------------- writing, all or nothing
def write_bytes(file: Path, content: bytes) -> None:
    """Write a file so that a kill at any instant leaves the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)
    _sync_folder(file.parent)


def write_json(file: Path, content: Any) -> None:
    """Write JSON atomically; a figure that is not finite becomes null, which every reader takes."""
    write_bytes(file, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def _finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lines:
    """A JSON-lines file that a resumed run cuts back to where its checkpoint was taken."""

    def __init__(self, file: Path, offset: int) -> None:
        self._handle: IO[bytes] = open(file, "r+b" if file.exists() else "w+b")  # noqa: SIM115
        self._handle.truncate(offset)
        self._handle.seek(offset)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line and hand it to the operating system."""
        self._handle.write((json.dumps(_finite(record), allow_nan=False) + "\n").encode())
        self._handle.flush()

    def sync(self) -> int:
        """Make what was written durable; return the file's length in bytes."""
        os.fsync(self._handle.fileno())
        return self._handle.tell()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


class RunFolder:
    """A training run's folder, opened for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, verb: str) -> "RunFolder":
        """Mark a new folder as a run of this verb."""
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / RUN_FILE, {"format": FORMAT, "verb": verb})
        return cls(path)

    def lines(self, name: str, offset: int = 0) -> Lines:
        """Open a JSON-lines file at this offset; what stood behind it is cut off."""
        return Lines(self.path / name, offset)

    def save_checkpoint(
        self,
        step: int,
        *,
        weights: Mapping[str, Mapping[str, "Tensor"]],
        config: Mapping[str, Any],
        description: Mapping[str, Any],
        state: Mapping[str, Any],
        best: bool,
    ) -> Path:
        """Write checkpoints/step-N whole, point `last` (and `best`) to it, remove what nothing points to.

        weights: state dicts by the keys of WEIGHTS; state: what resuming needs, plain values and tensors.
        """
        import torch
        import yaml
        from safetensors.torch import save

        folder = self.checkpoints / f"step-{step}"
        temporary = self.checkpoints / f".step-{step}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for key, tensors in weights.items():
            content = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            write_bytes(temporary / WEIGHTS[key], save(content))
        write_bytes(temporary / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False).encode())
        write_json(temporary / DESCRIPTION_FILE, {"format": FORMAT, "step": step, **description})
        with open(temporary / STATE_FILE, "wb") as handle:
            torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        if folder.exists():  # left by a run that was killed between the rename and the pointer, or an older ending
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        _sync_folder(self.checkpoints)
        for pointer in POINTERS if best else ("last",):
            write_bytes(self.checkpoints / pointer, f"{folder.name}\n".encode())
        self._prune()
        return folder

    def save_coupling(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Keep what a coupling was fitted to, once for all checkpoints."""
        from safetensors.torch import save

        write_bytes(
            self.path / COUPLING_FILE, save({name: value.cpu().contiguous() for name, value in tensors.items()})
        )

    def coupling(self) -> dict[str, "Tensor"]:
        """What `save_coupling` kept.

        Raises:
            UserError: the file is missing or damaged.
        """
        return _tensors(self.path / COUPLING_FILE)

    def _prune(self) -> None:
        kept = {name for name in (_pointed(self.checkpoints, pointer) for pointer in POINTERS) if name}
        for folder in self.checkpoints.iterdir():
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the final figures."""
        write_json(self.path / "metrics.json", metrics)

    def fail(self, reason: str) -> None:
        """Leave the reason of a failure where `compare` finds it."""
        write_json(self.path / "failure.json", {"reason": reason})

    def reopen(self) -> None:
        """Forget an earlier ending before the run goes on."""
        for name in ("metrics.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- reading a checkpoint
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
    name = _pointed(folder, which)
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


def _pointed(checkpoints: Path, pointer: str) -> str | None:
    """The step folder's name in a pointer, if it is one that exists here (a name, never a path elsewhere)."""
    try:
        name = (checkpoints / pointer).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    known = name.startswith("step-") and name[5:].isdigit()
    return name if known and (checkpoints / name).is_dir() else None


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


# ---------------------------------------------------------------- reading runs for compare
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
