"""How a command ends: one line on stderr and an exit status."""

import os
import shlex
import signal
import sys
from pathlib import Path

from flowcli import foreign, processes

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def hush() -> int:
    """Nobody reads stdout any more (`flowcli ... | head`): let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def say(verb: str, message: str, status: int) -> int:
    """Say one line on stderr, and with torchrun which process says it; return the status."""
    follower = f" [process {os.environ.get('RANK')}]" if processes.started() and os.environ.get("RANK") != "0" else ""
    print(f"flowcli {verb}{follower}: {foreign.printable(message)}", file=sys.stderr, flush=True)
    return status


def shown(path: Path) -> Path:
    """A path as the user would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def typed(path: Path) -> str:
    """A path as a word of a command that the user may paste."""
    return shlex.quote(str(shown(path)))
