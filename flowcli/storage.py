"""Writing so that a kill at any instant, or a full disk, leaves the old content or the new, never a part.

Every file of a run comes into being by a rename of a whole, synced file, or grows by whole lines of which a checkpoint
says how many count. Importing this module does not import torch.
"""

import errno
import fcntl
import json
import logging
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowcli.errors import UserError

log = logging.getLogger(__name__)

OURS = f"{os.getpid()}-{os.urandom(3).hex()}"
"""In the names of this process's temporary files: containers on several machines share process numbers."""
LEFT_OVER = re.compile(r"\.[\w-]+\.\d+-[0-9a-f]{6}\.tmp(\.\w+)?")
"""A temporary name of a process that may be dead."""

LOCK_FILE = ".lock"
LOCK_TRIES, LOCK_PAUSE = 4, 0.05
"""Somebody who only asks who has a lock holds it himself for a moment."""


# ---------------------------------------------------------------- whole files
@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary name with the same ending; what is written there takes the file's place once it is whole.

    Raises:
        OSError: with the file's name; the file is what it was.
    """
    file = Path(os.path.realpath(file))  # through a link, not over it
    temporary = file.with_name(f".{file.stem}.{OURS}.tmp{file.suffix}")
    try:
        with naming(file):
            yield temporary
            _sync(temporary)
            os.replace(temporary, file)
            sync_folder(file.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file; `replacing` says what holds on the way."""
    with replacing(file) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)


def write_json(file: Path, content: Any) -> None:
    """Write JSON whole; a figure that is not finite becomes null, which every reader takes."""
    write_bytes(file, (json.dumps(finite(content), indent=2, allow_nan=False) + "\n").encode())


def finite(node: Any) -> Any:
    """The same with null for every number that JSON has not."""
    if isinstance(node, Mapping):
        return {str(key): finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made, or written into; it makes nothing.

    Raises:
        UserError: as above.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{folder} cannot be written: {there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: no permission in {there}, or it is read-only")


def require_room(what: str, size: float, folder: Path) -> None:
    """Refuse what needs so many bytes and more than the disk of a folder has free.

    what: the setting as the user says it, `n=1000000`.

    Raises:
        UserError: naming the setting and the folder.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        need, have = size / 2**30, free / 2**30
        raise UserError(f"{what} needs about {need:,.3g} GiB of disk, {folder} has {have:,.3g} free")


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Give an error of the operating system the name of the file that the user knows."""
    try:
        yield
    except OSError as error:
        told = re.search(r"os error (\d+)", str(error))  # polars
        number = error.errno or (int(told[1]) if told else 0)
        what = os.strerror(number) if number else f"cannot be written ({error}); is the disk full?"
        raise OSError(number or errno.EIO, what, str(file)) from error


# ---------------------------------------------------------------- growing files
class Lines:
    """A JSON-lines file that a resumed run cuts back to where its checkpoint was taken."""

    def __init__(self, file: Path, offset: int) -> None:
        """Open the file, or make it, and cut it at this many bytes.

        Raises:
            UserError: it is shorter.
            OSError: it cannot be opened.
        """
        require_length(file, offset)
        self._file, self._end = file, offset
        new = not file.exists()
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if new:
            sync_folder(file.parent)
        with naming(file):
            os.ftruncate(self._descriptor, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line and hand it to the operating system."""
        line = (json.dumps(finite(record), allow_nan=False) + "\n").encode()
        with naming(self._file):
            try:
                _write(self._descriptor, line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._end)  # no part of a line
                raise
        self._end += len(line)

    def sync(self) -> int:
        """Make what was written durable; return the file's length in bytes."""
        with naming(self._file):
            os.fsync(self._descriptor)
        return self._end

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def require_length(file: Path, offset: int) -> None:
    """Refuse a log that has not the bytes that its checkpoint counts.

    Raises:
        UserError: as above.
    """
    if offset and (not file.is_file() or file.stat().st_size < offset):
        raise UserError(f"{file}: shorter than its checkpoint says ({offset} bytes): somebody has changed it")


# ---------------------------------------------------------------- one writer a folder
@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder; the operating system ends it with this process, however.

    Raises:
        UserError: another process has it; it says who.
    """
    file = folder / LOCK_FILE
    with naming(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _locked(descriptor, fcntl.LOCK_EX):
            began = time.strftime("%Y-%m-%d %H:%M:%S")
            with naming(file):
                os.ftruncate(descriptor, 0)
                _write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {began}\n".encode())
        else:
            raise _in_use(folder, _holder(descriptor))
        yield
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> str | None:
    """Who writes into a folder now, if anybody does."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return None if _locked(descriptor, fcntl.LOCK_SH) else _holder(descriptor)
    finally:
        os.close(descriptor)


def require_free(folder: Path) -> None:
    """Refuse a folder that another process writes into.

    Raises:
        UserError: it says who.
    """
    holder = in_use(folder)
    if holder is not None:
        raise _in_use(folder, holder)


def _in_use(folder: Path, holder: str) -> UserError:
    return UserError(f"{folder} is in use: {holder} trains into it; wait for it, or stop it")


def _locked(descriptor: int, kind: int) -> bool:
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE if attempt < LOCK_TRIES - 1 else 0)
        except OSError as error:  # some network file systems
            log.warning("this file system has no locks (%s): take care that no two processes share a run", error)
            return True
        else:
            return True
    return False


def _holder(descriptor: int) -> str:
    told = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
    return told if told.isprintable() and told else "another process"
