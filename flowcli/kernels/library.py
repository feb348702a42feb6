"""The C++ sources as a library of this machine: compiled when it is first needed, and kept in the user's cache.

One second once, instead of binaries that fit every processor and none.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("perceptron.cpp", "adam.cpp"))
COMPILERS = ("g++", "clang++")
"""What is looked for, after $CXX."""
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
TIMEOUT = 120
"""Seconds for the compiler."""
_CPU = Path("/proc/cpuinfo")


class NotBuilt(Exception):
    """There is no library; the message says why."""


def compiler() -> str | None:
    """The path of a C++ compiler, if there is one."""
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    return next((found for name in wanted if (found := shutil.which(name))), None)


def no_compiler() -> str:
    """What to say where there is none."""
    return f"there is no C++ compiler ({', '.join((os.environ['CXX'],) if os.environ.get('CXX') else COMPILERS)})"


@cache
def library() -> ctypes.CDLL:
    """The compiled code.

    Raises:
        NotBuilt: there is no compiler, or it does not do it.
    """
    program = compiler()
    if program is None or os.name != "posix":
        raise NotBuilt(no_compiler() if program is None else "Windows is not supported")
    name = f"{_key(program)}.so"
    kept = _cache()
    if kept is not None and _own(kept / name):
        try:
            return ctypes.CDLL(str(kept / name))
        except OSError:  # damaged: build it anew
            pass
    if kept is not None:
        try:
            return _built(program, kept, name)
        except OSError:  # a full or a read-only disk
            pass
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file is not needed any more
        try:
            return _built(program, Path(folder), name)
        except OSError as error:
            raise NotBuilt(f"the compiled kernels cannot be loaded: {error}") from error


def missing() -> str | None:
    """Why there is no library; None: there is one."""
    try:
        library()
    except NotBuilt as error:
        return str(error)
    return None


def _key(program: str) -> str:
    """A name for what comes out: of the sources, the compiler and the processor."""
    known = os.stat(program)
    parts = [*FLAGS, os.path.realpath(program), str(known.st_mtime_ns), str(known.st_size), platform.machine()]
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
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "flowcli"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, a file in the way; no home
        return None
    return folder if _own(folder) else None


def _own(path: Path) -> bool:
    """Whether it is there and nobody else may change it: what it holds is run."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022 and not path.is_symlink()


def _built(program: str, folder: Path, name: str) -> ctypes.CDLL:
    """Compile into this folder, under this name in the end, and load.

    Raises:
        NotBuilt: the compiler fails.
        OSError: the folder takes no file, or the file does not load.
    """
    handle, partial = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        command = [program, *FLAGS, *map(str, SOURCES), "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it says nothing"]
            raise NotBuilt(f"{program} fails: {lines[0]}")
        os.chmod(partial, 0o700)
        os.replace(partial, folder / name)
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{program} takes more than {TIMEOUT} s") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return ctypes.CDLL(str(folder / name))
