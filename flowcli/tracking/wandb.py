"""Weights & Biases: offline into a folder beside the runs (`wandb sync` sends it later), or online."""

import importlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from flowcli import foreign, storage
from flowcli.errors import UserError, choice
from flowcli.tracking.tracker import Entry, Subject, Tracker, numbers

MODES = ("offline", "online")
PATIENCE = 30.0
"""Seconds for the server to answer at the start, and to take the rest at the end."""


class WandB(Tracker):
    """One run of a project. A run that goes on is written anew under the same id, which replaces what was there."""

    option: ClassVar[str] = "wandb"
    packages: ClassVar[tuple[str, ...]] = ("wandb",)
    places: ClassVar[tuple[str, ...]] = ("mode", "dir")

    def __init__(self, mode: str, project: str, dir: str) -> None:
        """Check the settings.

        Args:
            mode: offline or online.
            project: name of the one that the run belongs to.
            dir: the folder that gets a folder wandb/, not the run: wandb puts links there that lead elsewhere.
        """
        self.mode = choice("mode", mode, MODES)
        if not isinstance(project, str) or not project.strip() or set(project) & set("/\\#?%:"):
            raise UserError(f"project must be a name without / \\ # ? % :, got {project!r}")
        if not isinstance(dir, str) or not dir.strip():
            raise UserError(f"dir must be a folder, got {dir!r}")
        self.project, self.dir = project, Path(dir).absolute()
        self._started = False

    def require(self) -> None:
        """The package, a folder that can be written, and online an account."""
        super().require()
        storage.require_writable(self.dir)
        if self.mode == "online":
            _quiet()
            logins = _module("wandb.sdk.lib.wbauth")
            try:
                host = _module("wandb.sdk.wandb_setup").singleton().settings.base_url
                known = logins.authenticate_session(host=host, source="flowcli", prompt=False, update_session=False)
            except (_module("wandb.errors").Error, ValueError) as error:
                raise UserError(f"logger.mode=online: {foreign.short(error)}") from error
            if known is None:
                raise UserError("logger.mode=online needs an account: say `wandb login` first, or logger.mode=offline")

    def failures(self) -> tuple[type[Exception], ...]:
        """A server that does not answer, a service process that is gone, a disk that is full, a setting of its own."""
        service = _module("wandb.sdk.mailbox")
        # ValueError: of pydantic, for the environment's WANDB_... and wandb's own settings files
        errors = (_module("wandb.errors").Error, ValueError, OSError)
        return (*errors, service.HandleAbandonedError, service.MailboxClosedError)

    def begin(self, subject: Subject, earlier: Sequence[Entry]) -> None:
        """Start the run, and remove what an earlier process left once the new one holds all of it."""
        _quiet()
        self._started = True
        wandb = _module("wandb")
        name = subject.known_as(self.option)
        if name is None:
            name = secrets.token_hex(8)
            subject.keep_name(self.option, name)
        self.dir.mkdir(parents=True, exist_ok=True)
        left = [folder for kind in ("offline-run", "run") for folder in self.dir.glob(f"wandb/{kind}-*-{name}*")]
        settings = wandb.Settings(
            mode=self.mode,
            console="off",
            silent=True,
            symlink=False,
            init_timeout=PATIENCE,
            finish_timeout=PATIENCE,
            finish_timeout_raises=True,
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=self.project,
            id=name,
            name=subject.name,
            group=subject.sweep,
            notes=str(subject.folder),
            config=dict(subject.settings),
            dir=str(self.dir),
            settings=settings,
        )
        for entry in earlier:
            self.log(entry)
        for folder in left:
            if folder != Path(self._run.settings.sync_dir):
                shutil.rmtree(folder, ignore_errors=True)  # a service that was orphaned may still write there

    def log(self, entry: Entry) -> None:
        """Hand it to the service process."""
        self._run.log(dict(entry.figures), step=entry.step)

    def settle(self) -> None:
        """All is handed over."""

    def end(self, status: str, step: int, figures: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """Add the final figures as final/NAME, the pictures, and how it ended."""
        wandb = _module("wandb")
        final: dict[str, Any] = {f"final/{name}": value for name, value in numbers(figures).items()}
        final |= {f"pictures/{file.stem}": wandb.Image(str(file)) for file in pictures}
        if final:
            self._run.log(final, step=step)
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "done" else 1)

    def drop(self) -> None:
        """End the service process, if there still is one."""
        if not self._started:
            return
        with suppress(*self.failures()):
            _module("wandb").teardown(exit_code=1)


def _quiet() -> None:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")


def _module(name: str) -> Any:
    return importlib.import_module(name)
