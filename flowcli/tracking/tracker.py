"""What every tracker offers, and what a run's own file may not say of it."""

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flowcli import configs, trust
from flowcli.errors import UserError
from flowcli.foreign import read_json
from flowcli.storage import write_json

IDS_FILE = "tracking.json"
"""In a run folder: the names under which trackers with a store of their own know the run."""
LEVELS = 3
"""How many folders above a cell its sweep's folder may be."""
_ID = re.compile("[0-9a-f]{16,32}")


@dataclass(frozen=True)
class Subject:
    """The run that is tracked.

    Attributes:
        folder: of the run, absolute.
        settings: the flat resolved config.
        resumed: whether the run goes on; a new one is new to the tracker, too.
    """

    folder: Path
    settings: Mapping[str, Any]
    resumed: bool

    @property
    def sweep(self) -> str | None:
        """Name of the sweep's folder, where the run is one of its cells."""
        return None if self._sweep is None else self._sweep.name

    @property
    def name(self) -> str:
        """The run folder's name; a sweep's cells are often just numbered, so it stands in front."""
        return self.folder.name if self._sweep is None else self.folder.relative_to(self._sweep.parent).as_posix()

    @property
    def _sweep(self) -> Path | None:
        """The sweep's folder; hydra.sweep.subdir may put folders between it and the cell."""
        near = list(self.folder.parents)[:LEVELS]
        return next((folder for folder in near if (folder / "multirun.yaml").is_file()), None)

    def known_as(self, tracker: str) -> str | None:
        """The id that `keep_name` kept, if the run goes on."""
        found = self._ids().get(tracker) if self.resumed else None
        # it becomes part of a path
        return found if isinstance(found, str) and _ID.fullmatch(found) else None

    def keep_name(self, tracker: str, name: str) -> None:
        """Keep the id under which a tracker knows the run.

        Raises:
            OSError: it cannot be written.
        """
        write_json(self.folder / IDS_FILE, {**self._ids(), tracker: name})

    def _ids(self) -> dict[str, Any]:
        with suppress(UserError):  # none yet, or damaged: the tracker gets a new run, with all of the curve
            ids = read_json(self.folder / IDS_FILE, self.folder)
            return ids if isinstance(ids, dict) else {}
        return {}


@dataclass(frozen=True)
class Entry:
    """A line of metrics.jsonl: figures by name, at a step, at a time in seconds since 1970."""

    step: int
    figures: Mapping[str, float]
    time: float

    @classmethod
    def of(cls, record: Mapping[str, Any], time: float) -> "Entry":
        """What is a number in a record."""
        return cls(int(record["step"]), numbers({k: v for k, v in record.items() if k != "step"}), time)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a mapping."""
    return {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}


class Tracker(ABC):
    """A place for figures. Its constructor checks settings and touches nothing.

    Attributes:
        option: of the config group `logger`.
        packages: what it imports, by module.
        places: keys that say where figures go; a run's own file may give them no value of its own.
    """

    option: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    places: ClassVar[tuple[str, ...]] = ()

    def require(self) -> None:
        """Look whether a training can be tracked here, before anything is written.

        Raises:
            UserError: a package is not installed, or the place cannot be used.
        """
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f'logger={self.option} needs the package {package}: pip install "flowcli[{self.option}]"'
                )

    @abstractmethod
    def failures(self) -> tuple[type[Exception], ...]:
        """What its methods raise where the place cannot be reached or is full."""

    @abstractmethod
    def begin(self, subject: Subject, earlier: Sequence[Entry]) -> None:
        """Open the run's place; afterwards it holds the earlier entries, each once, and no others."""

    @abstractmethod
    def log(self, entry: Entry) -> None:
        """Take an entry; one that a killed run logs again comes after `begin`."""

    @abstractmethod
    def settle(self) -> None:
        """What was logged stands in a checkpoint now: no run that goes on will change it."""

    @abstractmethod
    def end(self, status: str, step: int, figures: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """Close it. status: done, failed or interrupted; figures and pictures: of a run that is done."""

    @abstractmethod
    def drop(self) -> None:
        """Let go of what is open, if anything is: after one of `failures`, or where `begin` was not reached."""


def refuse_unsaid(node: Any, said: Collection[str]) -> None:
    """Refuse a place that a run's own file names: whoever wrote it might want to see what is trained.

    node: the run's logger; said: the keys that the user gave himself.

    Raises:
        UserError: naming the key and how to say it.
    """
    if not isinstance(node, Mapping) or "logger" in said:
        return
    for option, shipped in _shipped():
        if shipped.get(trust.TARGET) != node.get(trust.TARGET):
            continue
        own = [key for key in shipped if node.get(key) != shipped[key] and f"logger.{key}" not in said]
        places = getattr(trust.locate(str(node[trust.TARGET])), "places", ()) if own else ()
        for key in own:
            if key in places:
                raise UserError(
                    f"logger.{key}={node.get(key)} stands in the run's own file; if that is where its figures should "
                    f"go, say so: logger.{key}=... (or logger={option}, logger=none)"
                )


def _shipped() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((trust.conf_dir() / "logger").glob("*.yaml")):
        found = configs.read(file)
        if trust.TARGET in found:
            yield file.stem, found
