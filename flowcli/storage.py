"""Writing so that a kill at any instant, or a full disk, leaves the old content or the new, never a part.

Importing this module does not import torch.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file so that a kill at any instant leaves the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)
    sync_folder(file.parent)


def write_json(file: Path, content: Any) -> None:
    """Write JSON atomically; a figure that is not finite becomes null, which every reader takes."""
    write_bytes(file, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def _finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lines:
    """A JSON-lines file that a resumed run cuts back to where its checkpoint was taken."""

    def __init__(self, file: Path, offset: int) -> None:
        self._handle: IO[bytes] = open(file, "r+b" if file.exists() else "w+b")  # noqa: SIM115
        self._handle.truncate(offset)
        self._handle.seek(offset)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line and hand it to the operating system."""
        self._handle.write((json.dumps(_finite(record), allow_nan=False) + "\n").encode())
        self._handle.flush()

    def sync(self) -> int:
        """Make what was written durable; return the file's length in bytes."""
        os.fsync(self._handle.fileno())
        return self._handle.tell()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
