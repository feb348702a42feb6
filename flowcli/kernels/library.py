"""The C++ sources as a library of this machine: compiled when it is first needed, and kept in the user's cache.

Two seconds once, instead of binaries that fit every processor and none.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from flowcli import storage

SOURCES = tuple(Path(__file__).with_name(name) for name in ("perceptron.cpp", "adam.cpp"))
COMPILERS = ("g++", "clang++")
"""What is looked for, after $CXX."""
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC")
PROCESSOR = ("-march=native",)
"""Left out where the compiler does not know it."""
TIMEOUT = 120
"""Seconds for the compiler."""
_CPU = Path("/proc/cpuinfo")


class NotBuilt(Exception):
    """There is no library; the message says why."""


def compiler() -> list[str] | None:
    """The words that start a C++ compiler, if there is one."""
    given = os.environ.get("CXX")
    for name in (given,) if given else COMPILERS:
        for words in ([name], shlex.split(name)):  # a path may hold blanks, or arguments may follow
            found = shutil.which(words[0]) if words else None
            if found is not None:
                return [found, *words[1:]]
    return None


def no_compiler() -> str:
    """What to say where there is none."""
    return f"there is no C++ compiler ({os.environ.get('CXX') or ', '.join(COMPILERS)})"


def library() -> ctypes.CDLL:
    """The compiled code.

    Raises:
        NotBuilt: there is no compiler, or it does not do it.
    """
    found = _outcome()
    if isinstance(found, NotBuilt):
        raise found
    return found


def missing() -> str | None:
    """Why there is no library; None: there is one."""
    found = _outcome()
    return str(found) if isinstance(found, NotBuilt) else None


@cache
def _outcome() -> ctypes.CDLL | NotBuilt:
    """The library, or why there is none: asked once a process."""
    program = compiler()
    if program is None or os.name != "posix":
        return NotBuilt(no_compiler() if program is None else "Windows is not supported")
    folder = _cache()
    kept = None if folder is None else folder / f"{_key(program)}.so"
    if kept is not None and _own(kept):
        try:
            return ctypes.CDLL(str(kept))
        except OSError:  # damaged, or nothing may be run from there: build it anew
            pass
    try:
        with tempfile.TemporaryDirectory() as place:  # once loaded, the file is not needed any more
            fresh = Path(place) / "kernels.so"
            _build(program, fresh)
            found = ctypes.CDLL(str(fresh))
            if kept is not None:
                _publish(fresh, kept)
            return found
    except NotBuilt as error:
        return error
    except OSError as error:
        return NotBuilt(f"the compiled kernels cannot be loaded: {error}")


def _publish(fresh: Path, kept: Path) -> None:
    """Keep a copy for other processes, if the folder takes one."""
    try:
        kept.unlink(missing_ok=True)  # a link would be written through
        with storage.replacing(kept) as temporary:
            shutil.copyfile(fresh, temporary)
            temporary.chmod(0o600)
    except OSError:  # a full or a read-only disk
        pass


def _key(program: list[str]) -> str:
    """A name for what comes out: of the sources, the compiler and the processor."""
    known = os.stat(program[0])
    parts = [*FLAGS, *PROCESSOR, *program, os.path.realpath(program[0]), str(known.st_mtime_ns), str(known.st_size)]
    parts.append(platform.machine())
    if _CPU.is_file():
        lines = _CPU.read_text(encoding="utf-8", errors="replace").splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    else:
        parts.append(platform.processor())
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _cache() -> Path | None:
    """A folder that only this user may write into; None: there is none."""
    given, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    base = given if os.path.isabs(given) else os.path.join(home, ".cache")
    if not os.path.isabs(base) or home == "/":
        return None
    folder = Path(base) / "flowcli"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # read-only, or a file in the way
        return None
    return folder if _own(folder) else None


def _own(path: Path) -> bool:
    """Whether it is there and nobody else may change it: what it holds is run."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022 and not path.is_symlink()


def _build(program: list[str], to: Path) -> None:
    """Compile into this file.

    Raises:
        NotBuilt: the compiler fails.
    """
    for special in (PROCESSOR, ()):
        command = [*program, *FLAGS, *special, *map(str, SOURCES), "-o", str(to)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise NotBuilt(f"{program[0]} takes more than {TIMEOUT} s") from error
        except OSError as error:
            raise NotBuilt(f"{program[0]} does not start: {error}") from error
        if not done.returncode:
            return
    lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it says nothing"]
    raise NotBuilt(f"{program[0]} fails: {lines[0]}")
