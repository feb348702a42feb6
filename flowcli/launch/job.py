"""What Hydra runs: one job, in its folder."""

import importlib
import importlib.util
import logging
import signal
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli import processes, run, storage
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.explain import explain
from flowcli.launch.ending import FAILED, WRONG_INPUT, say, shown
from flowcli.launch.preflight import plain

log = logging.getLogger(__name__)


def task(verb: str) -> Any:
    """The module that does a verb's work."""
    return importlib.import_module(f"flowcli.tasks.{verb}")


@dataclass(frozen=True)
class _Failure:
    reason: str
    status: int


class Job:
    """What Hydra runs. It travels to worker processes, and imports the task (and so torch) only there."""

    def __init__(self, verb: str, *, own: bool, debug: bool) -> None:
        """Take the verb, whether the user wrote the config, and whether tracebacks go to the terminal."""
        self.verb, self.own, self.debug = verb, own, debug
        self.failure: _Failure | None = None
        self.__module__ = f"flowcli.tasks.{verb}"  # Hydra takes the job's name from it

    def __call__(self, cfg: Any) -> float | None:
        """Run one job. A failure is written down, not raised: the other jobs of a sweep go on.

        Raises:
            Interrupted: a signal ended the job, or nobody reads its output any more.
        """
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        with ExitStack() as locked:
            opened = ours = None
            try:
                if self.verb == "train":
                    locked.enter_context(storage.lock(folder))
                config = plain(cfg, self.own)
                if self.verb == "train" and not config.get("resume") and (folder / run.RUN_FILE).exists():
                    raise UserError(f"{folder} holds a run already: another process, or another job, was there first")
                ours = folder  # until then it is another's, who needs no reason of ours in it
                self._open(folder, config, hydra.runtime.choices)
                opened = config, folder
            except Exception as error:
                self._failed(error, ours, hydra)
            if processes.share(opened) is None or opened is None:
                return None
            try:
                with processes.watched(f"go on with: flowcli train --resume {shown(folder)}"):
                    return task(self.verb).run(*opened)
            except BrokenPipeError:
                raise Interrupted(signal.SIGPIPE, "") from None
            except Exception as error:
                self._failed(error, folder, hydra)
                return None

    def _open(self, folder: Path, config: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
        """Mark the folder as a run and write what was asked; a run that goes on keeps what was first asked."""
        if not config.get("resume"):
            asked = {str(group): option for group, option in choices.items() if not str(group).startswith("hydra/")}
            run.RunFolder.create(folder, self.verb, config, asked)
        run.RunFolder(folder).reopen()

    def _failed(self, error: Exception, folder: Path | None, hydra: Any) -> None:
        """Say what happened, and leave the reason in the folder, where the sweep's list is read from."""
        if self.debug:
            traceback.print_exc()
        if logging.getLogger().handlers:  # without one, Python would print the traceback on the terminal
            with suppress(OSError):  # a full disk, a deleted folder
                log.error("%s", explain(error), exc_info=not isinstance(error, UserError))
        reason = explain(error)
        if folder is not None and not isinstance(error, UserError | JobError | OSError):
            file = folder / f"{hydra.job.name}.log"
            reason += f"; the traceback is in {shown(file)}" if file.is_file() else ""
        self.failure = _Failure(reason, WRONG_INPUT if isinstance(error, UserError) else FAILED)
        if hydra.mode is not None and hydra.mode.name == "MULTIRUN":
            say(self.verb, f"job {hydra.job.num} failed: {reason}", FAILED)
        if folder is not None:
            _leave_reason(folder, reason)


def _leave_reason(folder: Path, reason: str) -> None:
    with suppress(OSError):  # a full disk, a deleted folder: the reason itself still reaches the terminal
        run.RunFolder(folder).fail(reason)
