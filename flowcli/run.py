"""What a run folder is made of.

    run.json                   format version and verb: what makes a folder a run; written last of what was asked
    .lock                      held by the process that trains into it
    .hydra/                    what was asked, in full (resolved.yaml, choices.yaml)
    metrics.jsonl              one line a log step or evaluation, reproduced bit for bit by a resumed run
    timings.jsonl              the same steps with the clock
    metrics.json               the final figures; failure.json instead where the job failed
    coupling.safetensors       what a coupling was fitted to, where it keeps anything
    checkpoints/step-N/        model, ema, optimizer (safetensors), config.yaml, description.json, progress.json
    checkpoints/last, best     pointers: files that hold the name of a step folder

A checkpoint counts from the moment that `last` names it. Importing this module does not import torch.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowcli.errors import JobError, UserError
from flowcli.foreign import read_text
from flowcli.storage import LEFT_OVER, OURS, Lines, naming, sync_folder, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
"""Of run folders. 2 had the optimizer in a pickle: such a run is read like this one, but not resumed."""
OLDEST = 2
"""Of formats that are read. 1, before the first release, had other classes in its configs: only its figures are."""
RUN_FILE = "run.json"
RESOLVED_FILE, CHOICES_FILE = ".hydra/resolved.yaml", ".hydra/choices.yaml"
CONFIG_FILE, DESCRIPTION_FILE, PROGRESS_FILE = "config.yaml", "description.json", "progress.json"
OPTIMIZER_FILE, COUPLING_FILE = "optimizer.safetensors", "coupling.safetensors"
REFERENCE_FILE = "reference.npy"
"""Some true points that a training leaves in its run folder, for pictures beside later samples."""
METRICS, TIMINGS = LOGS = ("metrics.jsonl", "timings.jsonl")
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
POINTERS = ("best", "last")
LONGEST_POINTER = 100
"""Bytes."""


class RunFolder:
    """A training run's folder, opened for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, verb: str, config: Mapping[str, Any], choices: Mapping[str, Any]) -> "RunFolder":
        """Write what was asked, then mark the folder as a run of this verb."""
        folder = cls(path)
        (path / ".hydra").mkdir(parents=True, exist_ok=True)
        for made in (path, path.parent, path.parent.parent):  # outputs/train/RUN may all be new
            sync_folder(made)
        for name, content in ((RESOLVED_FILE, config), (CHOICES_FILE, choices)):
            _write_yaml(path / name, content)
        write_json(path / RUN_FILE, {"format": FORMAT, "verb": verb})
        return folder

    def reopen(self) -> None:
        """Forget an earlier ending, and what a killed process left, before the run goes on."""
        for name in ("metrics.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path, self.path / ".hydra", self.checkpoints):
            for rest in folder.iterdir() if folder.is_dir() else ():
                if LEFT_OVER.fullmatch(rest.name):
                    _remove(rest) if rest.is_dir() else rest.unlink()

    def lines(self, name: str, offset: int = 0) -> Lines:
        """Open a JSON-lines file at this offset; what stood behind it is cut off."""
        return Lines(self.path / name, offset)

    # ------------------------------------------------------------ checkpoints
    def save_checkpoint(
        self,
        step: int,
        *,
        weights: Mapping[str, Mapping[str, "Tensor"]],
        config: Mapping[str, Any],
        description: Mapping[str, Any],
        progress: Mapping[str, Any],
        optimizer: Mapping[str, "Tensor"],
        best: int,
    ) -> Path:
        """Write checkpoints/step-N whole, point `last` to it and `best` to the step of that name.

        weights: state dicts by the keys of WEIGHTS; progress and optimizer: what resuming needs.

        Raises:
            JobError: the run folder is gone.
            OSError: it cannot be written; the checkpoints that were there still are.
        """
        folder, temporary = self.checkpoints / f"step-{step}", self.checkpoints / f".step-{step}.{OURS}.tmp"
        if pointed(self.checkpoints, "last") == folder.name:  # the same weights, validated since
            write_json(folder / PROGRESS_FILE, progress)
            self.settle(best)
            return folder
        try:
            with naming(folder):
                if not self.checkpoints.is_dir():
                    self.checkpoints.mkdir()
                    sync_folder(self.path)
                temporary.mkdir()
                for key, tensors in weights.items():
                    _write_tensors(temporary / WEIGHTS[key], tensors)
                _write_tensors(temporary / OPTIMIZER_FILE, optimizer)
                _write_yaml(temporary / CONFIG_FILE, config)
                write_json(temporary / DESCRIPTION_FILE, {"format": FORMAT, "step": step, **description})
                write_json(temporary / PROGRESS_FILE, progress)
                if folder.exists():  # nothing points to it: left by a process that was killed before it could
                    _remove(folder)
                os.rename(temporary, folder)
            sync_folder(self.checkpoints)
            self.point("last", step)
            self.settle(best)
        except FileNotFoundError as error:
            if (self.path / RUN_FILE).is_file():
                raise
            raise JobError(f"{self.path}: the run folder is gone, deleted or moved during the training") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def point(self, pointer: str, step: int) -> None:
        """Let `last` or `best` name a step."""
        write_bytes(self.checkpoints / pointer, f"step-{step}\n".encode())

    def settle(self, best: int) -> None:
        """Let `best` name what the last checkpoint says, and remove what nothing points to."""
        if pointed(self.checkpoints, "best") != f"step-{best}" and (self.checkpoints / f"step-{best}").is_dir():
            self.point("best", best)
        kept = self._pointed()
        for folder in self.checkpoints.iterdir():
            if folder.is_dir() and folder.name not in kept:
                _remove(folder)

    def _pointed(self) -> set[str]:
        return {name for name in (pointed(self.checkpoints, pointer) for pointer in POINTERS) if name}

    def rewrite_config(self, config: Mapping[str, Any]) -> None:
        """Keep what a run that goes on was asked to do differently, in its last checkpoint or where there is none."""
        last = pointed(self.checkpoints, "last")
        _write_yaml(self.path / RESOLVED_FILE if last is None else self.checkpoints / last / CONFIG_FILE, config)

    def save_coupling(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Keep what a coupling was fitted to, once for all checkpoints."""
        _write_tensors(self.path / COUPLING_FILE, tensors)

    # ------------------------------------------------------------ how it ended
    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the final figures."""
        write_json(self.path / "metrics.json", metrics)

    def fail(self, reason: str) -> None:
        """Leave the reason of a failure where `compare` finds it."""
        write_json(self.path / "failure.json", {"reason": reason})


def _remove(folder: Path) -> None:
    with naming(folder):
        shutil.rmtree(folder)


def pointed(checkpoints: Path, pointer: str) -> str | None:
    """The step folder's name in a pointer, if it is one that exists here (a name, never a path elsewhere)."""
    try:
        name = read_text(checkpoints / pointer, checkpoints, limit=LONGEST_POINTER).strip()
    except UserError:
        return None
    known = name.startswith("step-") and name[5:].isdigit()
    return name if known and (checkpoints / name).is_dir() else None


def _write_tensors(file: Path, tensors: Mapping[str, "Tensor"]) -> None:
    from safetensors.torch import save

    write_bytes(file, save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}))


def _write_yaml(file: Path, content: Mapping[str, Any]) -> None:
    write_bytes(file, as_yaml(content).encode())


def as_yaml(content: Mapping[str, Any]) -> str:
    """A config as it stands in a run."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # what is read back may have none

    return yaml.dump(dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True)
