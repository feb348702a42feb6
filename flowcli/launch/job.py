"""What Hydra runs: one job, in its folder."""

import atexit
import gc
import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli import foreign, memory, processes, run, storage
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.explain import explain
from flowcli.launch import cells
from flowcli.launch.cells import Notes
from flowcli.launch.ending import FAILED, WRONG_INPUT, say, shown, typed
from flowcli.launch.preflight import plain
from flowcli.signals import listening

log = logging.getLogger(__name__)


def task(verb: str) -> Any:
    """The module that does a verb's work, in a process that is ready for it."""
    memory.keep_freed()
    name = f"flowcli.tasks.{verb}"
    if name not in sys.modules:
        with _for_good():
            importlib.import_module(name)
    return sys.modules[name]


@contextmanager
def _for_good() -> Iterator[None]:
    """What is made here lives until the process ends: it is not searched for garbage, nor is anything on the way out.

    With torch's third of a million objects that takes 0.8 s.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation
        if collects:
            gc.enable()
        atexit.register(gc.freeze)


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
        self.announce = True
        """Whether a sweep's failure is said at once."""
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
                with processes.watched(f"go on with: flowcli train --resume {typed(folder)}"):
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
        if self.announce and hydra.mode is not None and hydra.mode.name == "MULTIRUN":
            say(self.verb, f"job {hydra.job.num} failed: {reason}", FAILED)
        if folder is not None:
            _leave_reason(folder, reason)


class CellJob(Job):
    """A job of a training sweep: it goes on with what its folder holds, or leaves it as it is."""

    def __init__(self, verb: str, *, own: bool, debug: bool, notes: Notes, retry_failed: bool) -> None:
        """notes: where it tells what becomes of it."""
        super().__init__(verb, own=own, debug=debug)
        self.notes, self.retry_failed, self.announce = notes, retry_failed, False

    def __call__(self, cfg: Any) -> float | None:
        """Run one job, and write what it prints into its folder.

        Raises:
            Interrupted: a signal ended the job.
        """
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        if self.notes.stopped():
            return None
        with ExitStack() as stack:
            try:
                with listening("stopped"):  # here and below: some launchers let their workers pass signals by
                    config = self._enter(stack, cfg, folder)
            except Exception as error:
                if self.debug:
                    traceback.print_exc()
                self._tell(Notes.REFUSED, hydra, folder, reason=explain(error))  # in the folder lies another's
                return None
            if isinstance(config, _Elsewhere):
                self._tell(Notes.LEFT, hydra, folder, reason=config.holder)
                return None
            if config is None:
                self._tell(Notes.KEPT, hydra, folder)
                return _nll(folder)
            try:
                with listening("stopped"):
                    return self._train(config, cfg, folder)
            except Exception as error:
                self._failed(error, folder, hydra)
                return None

    def _train(self, config: dict[str, Any], cfg: Any, folder: Path) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        if not config.get("resume"):
            _keep_words(folder, cfg, hydra)
        self._open(folder, config, hydra.runtime.choices)
        here = {"host": socket.gethostname(), "process": os.getpid(), "began": time.time()}
        here["again"] = bool(config.get("resume"))
        self._tell(Notes.TRAINS, hydra, folder, **here)
        with open(folder / cells.OUTPUT_FILE, "a", encoding="utf-8", buffering=1) as told, redirect_stdout(told):
            value = task(self.verb).run(config, folder)
        with suppress(OSError):  # what counts is written
            self._tell(Notes.ENDED, hydra, folder, **here)
        return value

    def _enter(self, stack: ExitStack, cfg: Any, folder: Path) -> "dict[str, Any] | _Elsewhere | None":
        """Take the cell for this process. Its config, to be trained; None: it has ended; or who trains it.

        Raises:
            UserError: something else lies there.
        """
        foreign.refuse_links(folder)
        try:
            stack.enter_context(storage.lock(folder))
        except UserError:
            return _Elsewhere(storage.in_use(folder) or "another process")
        config, standing = plain(cfg, self.own), cells.standing(folder)
        started = (folder / run.RUN_FILE).exists()
        if started:
            cells.refuse_another(folder, config)
        if standing == cells.DONE or (standing == cells.FAILED and not self.retry_failed):
            return None
        if started:
            config["resume"] = str(folder)
            task(self.verb).check([config])
        return config

    def _tell(self, what: str, hydra: Any, folder: Path, **more: Any) -> None:
        self.notes.write(int(hydra.job.num), what, folder, hydra.overrides.task, **more)


@dataclass(frozen=True)
class _Elsewhere:
    """Another process trains a cell."""

    holder: str


def _nll(folder: Path) -> float | None:
    """What a cell that has ended tells the sweeper, which may optimise it."""
    if cells.standing(folder) != cells.DONE:
        return None
    value = cells.ending(folder).get("nll")
    return float(value) if isinstance(value, int | float) else None


def _keep_words(folder: Path, cfg: Any, hydra: Any) -> None:
    """What Hydra itself would leave in .hydra, but whole, and before the folder is a run."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    nodes = {"config": cfg, "hydra": HydraConfig.instance().cfg, "overrides": hydra.overrides.task}
    for name, node in nodes.items():
        storage.write_bytes(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(node).encode())


def _leave_reason(folder: Path, reason: str) -> None:
    with suppress(OSError):  # a full disk, a deleted folder: the reason itself still reaches the terminal
        run.RunFolder(folder).fail(reason)
