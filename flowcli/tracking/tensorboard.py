"""Event files in the run folder: `tensorboard --logdir outputs` finds every run."""

import importlib
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from flowcli.tracking.tracker import Entry, Subject, Tracker, numbers

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Scalars in single precision, settings as hparams, pictures. A run that goes on writes its file anew."""

    option: ClassVar[str] = "tensorboard"
    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def failures(self) -> tuple[type[Exception], ...]:
        """A disk that is full or gone."""
        return (OSError,)

    def begin(self, subject: Subject, earlier: Sequence[Entry]) -> None:
        """Write a new event file, and remove what an earlier process left once that is whole."""
        events, hparams = _module("compat.proto.event_pb2"), _module("plugins.hparams.summary_v2")
        folder = subject.folder / FOLDER
        folder.mkdir(exist_ok=True)
        left = list(folder.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "xb")  # noqa: SIM115  # until `end` or `drop`
        self._records = _module("summary.writer.record_writer").RecordWriter(self._file)
        self._write(events.Event(wall_time=time.time(), file_version="brain.Event:2"))
        # a board that is open takes it for a new start, and forgets the old file's points
        self._write(
            events.Event(wall_time=time.time(), step=0, session_log=events.SessionLog(status=events.SessionLog.START))
        )
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in subject.settings.items()}
        self._summary(hparams.hparams_pb(plain, trial_id=subject.name), 0, time.time())
        for entry in earlier:
            self._scalars(entry.step, entry.figures, entry.time)
        self._file.flush()
        for file in left:
            file.unlink()

    def log(self, entry: Entry) -> None:
        """Write it at once."""
        self._scalars(entry.step, entry.figures, entry.time)
        self._file.flush()

    def settle(self) -> None:
        """All is written."""

    def end(self, status: str, step: int, figures: Mapping[str, Any], pictures: Sequence[Path]) -> None:
        """Add the final figures as final/NAME, the pictures, and how it ended."""
        summaries, hparams = _module("compat.proto.summary_pb2"), _module("plugins.hparams.plugin_data_pb2")
        metadata, states = _module("plugins.hparams.metadata"), _module("plugins.hparams.api_pb2")
        now = time.time()
        self._scalars(step, {f"final/{name}": value for name, value in numbers(figures).items()}, now)
        for file in pictures:
            content = file.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # of every PNG
            image = summaries.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
            self._summary(
                summaries.Summary(value=[summaries.Summary.Value(tag=f"pictures/{file.stem}", image=image)]), step, now
            )
        ended = states.STATUS_SUCCESS if status == "done" else states.STATUS_FAILURE
        told = hparams.HParamsPluginData(session_end_info=hparams.SessionEndInfo(status=ended, end_time_secs=now))
        value = summaries.Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(told),
            tensor=metadata.NULL_TENSOR,
        )
        self._summary(summaries.Summary(value=[value]), step, now)
        self._file.close()

    def drop(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            with suppress(OSError):
                self._file.close()

    def _scalars(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        summaries = _module("compat.proto.summary_pb2")
        values = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._summary(summaries.Summary(value=values), step, seconds)

    def _summary(self, summary: Any, step: int, seconds: float) -> None:
        self._write(_module("compat.proto.event_pb2").Event(wall_time=seconds, step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _module(name: str) -> Any:
    return importlib.import_module(f"tensorboard.{name}")
