"""The run folder: what is written there, atomically.

    run.json                   format version and verb: what makes a folder a run
    .hydra/                    what was asked, in full (resolved.yaml, choices.yaml)
    metrics.jsonl              one line a log step or evaluation, reproduced bit for bit by a resumed run
    timings.jsonl              the same steps with the clock
    metrics.json               the final figures; failure.json instead where the job failed
    checkpoints/step-N/        model, ema (safetensors), config.yaml, description.json, state.pt
    checkpoints/last, best     pointers: files that hold the name of a step folder

Importing this module does not import torch.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowcli.storage import Lines, sync_folder, write_bytes, write_json

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
        sync_folder(self.checkpoints)
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

    def _prune(self) -> None:
        kept = {name for name in (pointed(self.checkpoints, pointer) for pointer in POINTERS) if name}
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


def pointed(checkpoints: Path, pointer: str) -> str | None:
    """The step folder's name in a pointer, if it is one that exists here (a name, never a path elsewhere)."""
    try:
        name = (checkpoints / pointer).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    known = name.startswith("step-") and name[5:].isdigit()
    return name if known and (checkpoints / name).is_dir() else None
