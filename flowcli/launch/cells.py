"""The cells of a sweep: what lies in a cell's folder already, and what the sweep's jobs tell of theirs."""

import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flowcli import run, storage
from flowcli.checkpoints import flatten, read_config
from flowcli.errors import UserError
from flowcli.foreign import read_json
from flowcli.launch.ending import shown, typed
from flowcli.launch.request import ON_RESUME

FRESH, OPEN, DONE, FAILED = "fresh", "open", "done", "failed"
"""What lies in a cell's folder: no run, one that was stopped, one that ended well, one that failed."""
OUTPUT_FILE = "output.txt"
"""What a job prints."""
NOTES, STOP = ".cells", "stop"

_NOT_COMPARED = ("resume", "trust", *(key for key in ON_RESUME if key != "trainer.steps"))
"""Keys that say nothing of what is trained, or that may change when a run goes on."""


@dataclass(frozen=True)
class Cell:
    """A job of a sweep.

    Attributes:
        number: Hydra's, from 0.
        words: what is its own, e.g. path=vp seed=1.
        config: resolved.
    """

    number: int
    folder: Path
    words: str
    config: Mapping[str, Any]


def standing(folder: Path) -> str:
    """FRESH, OPEN, DONE or FAILED."""
    marked = os.path.lexists(folder / run.RUN_FILE)
    if marked and os.path.lexists(folder / "metrics.json"):
        return DONE
    if os.path.lexists(folder / "failure.json"):
        return FAILED
    return OPEN if marked else FRESH


def ending(folder: Path) -> dict[str, Any]:
    """What metrics.json or failure.json holds.

    Raises:
        UserError: it cannot be read.
    """
    name = "metrics.json" if standing(folder) == DONE else "failure.json"
    content = read_json(folder / name, folder)
    if not isinstance(content, dict):
        raise UserError(f"{folder / name} is damaged")
    return content


def reason(folder: Path) -> str:
    """Why a failed cell failed."""
    try:
        return str(ending(folder).get("reason", "no reason given"))
    except UserError as error:
        return str(error)


def refuse_another(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to take the run of another config for this one.

    Raises:
        UserError: naming the folder, the key and both values; or the run's config cannot be read.
    """
    last = run.pointed(folder / "checkpoints", "last")
    file = run.RESOLVED_FILE if last is None else f"checkpoints/{last}/{run.CONFIG_FILE}"
    held, asked = (
        {key: value for key, value in flatten(node) if not any(_within(key, other) for other in _NOT_COMPARED)}
        for node in (read_config(folder / file, folder), config)
    )
    unlike = [key for key in {**asked, **held} if not _same(held.get(key, ...), asked.get(key, ...))]
    # a node that is null in one of the two differs once
    differing = [key for key in unlike if not any(key != other and _within(key, other) for other in unlike)]
    if not differing:
        return
    key, count = differing[0], len(differing) - 1
    more = f" (and {count} key{'s' if count > 1 else ''} more)" if count else ""
    told = [_told(key, found) for found in (held, asked)]
    advice = "give another hydra.sweep.dir"
    if differing == ["trainer.steps"]:
        advice += f", or go on with it alone: flowcli train --resume {typed(folder)} {told[1]}"
    raise UserError(f"{shown(folder)} holds a run with {told[0]}, and this sweep asks for {told[1]}{more}: {advice}")


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _told(key: str, found: Mapping[str, Any]) -> str:
    """What a config has under a key, or where a null hides it."""
    for there in (key, *(node for node in found if _within(node, key) or _within(key, node))):
        if there in found:
            value = found[there]
            return f"{there}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
    return f"no {key}"


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and (one == other or (one != one and other != other))


# ---------------------------------------------------------------- what the jobs tell
class Notes:
    """What a sweep's jobs tell the process that started it. They may run on other machines, so it is files:
    NUMBER.json in a folder of the sweep that is this process's own, and is gone when it ends.

    TRAINS: the job trains the cell now; ENDED: it has done so, and nothing went wrong; LEFT: another process trains it;
    REFUSED: something else lies there; KEPT: it had ended before.
    """

    TRAINS, ENDED, LEFT, REFUSED, KEPT = "trains", "ended", "left", "refused", "kept"

    def __init__(self, sweep_dir: Path) -> None:
        self.folder = sweep_dir.resolve() / NOTES / f"{socket.gethostname()}-{os.getpid()}"

    def __enter__(self) -> Self:
        """Clear what dead processes of this machine left."""
        others = self.folder.parent.iterdir() if self.folder.parent.is_dir() else ()
        for other in others:
            host, _, process = other.name.rpartition("-")
            if host == socket.gethostname() and process.isdecimal() and not _lives(int(process)):
                shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # of a dead process with this one's number
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other sweeps' notes
            self.folder.parent.rmdir()

    def write(self, number: int, what: str, folder: Path, words: Sequence[str], **more: Any) -> None:
        """Tell what becomes of a job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"number": number, "what": what, "folder": str(folder), "words": list(words), **more}
        storage.write_json(self.folder / f"{number}.json", note)

    def stop(self) -> None:
        """Let no further job begin."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STOP).touch()

    def stopped(self) -> bool:
        """Whether that was said."""
        return (self.folder / STOP).exists()

    def read(self) -> dict[int, dict[str, Any]]:
        """The notes by their jobs' numbers."""
        found: dict[int, dict[str, Any]] = {}
        with suppress(OSError):
            for file in self.folder.glob("[0-9]*.json"):
                with suppress(OSError, ValueError):
                    found[int(file.stem)] = json.loads(file.read_text(encoding="utf-8"))
        return found


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
