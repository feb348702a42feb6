"""An MLflow store: by default a SQLite file in outputs/, which `mlflow ui --backend-store-uri ...` shows."""

import fcntl
import importlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from flowcli import foreign, storage
from flowcli.errors import UserError
from flowcli.tracking.tracker import Entry, Subject, Tracker, numbers

STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500
"""Of one request, and letters of a parameter that every store takes."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a server's links, behind our own last words
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # by default a training would stand still for minutes where a server is gone
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
"""Of its environment, where the user says nothing else."""


class MLflow(Tracker):
    """One run of an experiment.

    MLflow cannot take a point back, so points reach it when a checkpoint counts them: a run that goes on never changes
    them afterwards.
    """

    option: ClassVar[str] = "mlflow"
    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy")
    places: ClassVar[tuple[str, ...]] = ("tracking_uri", "artifacts")

    def __init__(self, tracking_uri: str, experiment: str, artifacts: str) -> None:
        """Check the settings.

        Args:
            tracking_uri: sqlite:///FILE, a server's http(s)://HOST, or another database.
            experiment: name of the one that the run belongs to; it is made where there is none.
            artifacts: folder for the pictures of a new experiment in a SQLite file; a server has its own.
        """
        known = isinstance(tracking_uri, str) and re.match(
            r"(sqlite:///.|https?://.|(postgresql|mysql|mssql)(\+\w+)?://.)", tracking_uri
        )
        if not known:
            raise UserError(f"tracking_uri must be sqlite:///FILE or a server's http(s)://HOST, got {tracking_uri!r}")
        for key, value in (("experiment", experiment), ("artifacts", artifacts)):
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{key} must be a name, got {value!r}")
        local = tracking_uri.startswith("sqlite:///")
        self.database = Path(tracking_uri.removeprefix("sqlite:///")).absolute() if local else None
        self.tracking_uri = tracking_uri if self.database is None else f"sqlite:///{self.database}"
        self.experiment, self.artifacts = experiment, Path(artifacts).absolute()
        self._waiting: list[Any] = []
        self._known: dict[str, set[int]] = {}

    def require(self) -> None:
        """The packages, the driver of a database, and for a SQLite file a folder that can be written."""
        super().require()
        if self.database is None and not self.tracking_uri.startswith("http"):
            _require_driver(self.tracking_uri)
        if self.database is not None:
            storage.require_writable(self.database if self.database.is_dir() else self.database.parent)
            if self.database.is_dir():
                raise UserError(f"logger.tracking_uri: {self.database} is a folder")

    def failures(self) -> tuple[type[Exception], ...]:
        """A database that is locked or full, a server that does not answer, refuses, or is none of MLflow's."""
        ours, database = _module("mlflow.exceptions"), _module("sqlalchemy.exc")
        answers = (_module("google.protobuf.message").Error, _module("google.protobuf.json_format").Error)
        return (ours.MlflowException, database.SQLAlchemyError, *answers, OSError)  # OSError: those of requests, too

    def begin(self, subject: Subject, earlier: Sequence[Entry]) -> None:
        """Find the run, or make it, and send what it does not have."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        with self._alone():
            self._client = _module("mlflow").MlflowClient(self.tracking_uri)
        self._run = self._found(subject) or ""
        if not self._run:
            tags = {"folder": str(subject.folder)} | ({} if subject.sweep is None else {"sweep": subject.sweep})
            made = self._client.create_run(self._experiment(), run_name=subject.name, tags=tags)
            self._run = made.info.run_id
            subject.keep_name(self.option, self._run)
        self._set_params({key: str(value)[:LONGEST] for key, value in subject.settings.items()})
        for entry in earlier:
            self.log(entry)
        self.settle()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other job of ours make the tables of a SQLite file at the same time: one of them would fail."""
        if self.database is None:
            yield
            return
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.database}.lock", "wb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _experiment(self) -> str:
        place = None if self.database is None else self.artifacts.as_uri()
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return self._client.create_experiment(self.experiment, artifact_location=place)
            except _module("mlflow.exceptions").MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self.experiment)  # another job of the sweep was first
                if found is None:
                    raise
        return found.experiment_id

    def _found(self, subject: Subject) -> str | None:
        """The run's id where this store has it; then `_known` says which points."""
        name = subject.known_as(self.option)
        if name is None:
            return None
        try:
            run = self._client.get_run(name)
        except _module("mlflow.exceptions").MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(name, status="RUNNING")
        for key in run.data.metrics:
            self._known[key] = {point.step for point in self._client.get_metric_history(name, key)}
        return name

    def _set_params(self, wanted: Mapping[str, str]) -> None:
        """A parameter never changes in MLflow; what a run that goes on does differently becomes a tag."""
        entities = _module("mlflow.entities")
        there = self._client.get_run(self._run).data.params
        new = [entities.Param(key, value) for key, value in wanted.items() if key not in there]
        for part in _parts(new, MOST_PARAMS):
            self._client.log_batch(self._run, params=part, synchronous=True)
        for key, value in wanted.items():
            if there.get(key, value) != value:
                self._client.set_tag(self._run, key, value)

    def log(self, entry: Entry) -> None:
        """Keep it for the next checkpoint."""
        self._add(entry.step, entry.figures, entry.time)

    def _add(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        entities = _module("mlflow.entities")
        for name, value in figures.items():
            if step not in self._known.setdefault(name, set()):
                self._known[name].add(step)
                self._waiting.append(entities.Metric(name, float(value), int(1000 * seconds), step))

    def settle(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        for part in _parts(waiting, MOST_METRICS):
            self._client.log_batch(self._run, metrics=part, synchronous=True)

    def end(self, status: str, step: int, figures: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """Add the final figures as final/NAME, the pictures as artifacts, and how it ended."""
        self._add(step, {f"final/{name}": value for name, value in numbers(figures).items()}, time.time())
        self.settle()
        for file in pictures:
            self._client.log_artifact(self._run, str(file), "pictures")
        self._client.set_terminated(self._run, STATUS[status])

    def drop(self) -> None:
        """There is nothing open."""


def _require_driver(uri: str) -> None:
    """Import what speaks to a database.

    Raises:
        UserError: it is not installed, or SQLAlchemy knows no such database.
    """
    try:
        _module("sqlalchemy").make_url(uri).get_dialect().import_dbapi()
    except (ImportError, ValueError, _module("sqlalchemy.exc").ArgumentError) as error:  # ValueError: a port
        kind = uri.partition("://")[0]  # not the rest: a password may be in it
        raise UserError(f"logger.tracking_uri={kind}://... cannot be opened: {foreign.short(error)}") from error


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _module(name: str) -> Any:
    return importlib.import_module(name)
