"""Batches prepared ahead by forked processes, which take turns: the numbers are those that one process would have made.

A worker answers in order through a pipe of its own, which fills up after a block or so; that holds it back.
"""

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from flowcli.errors import JobError
from flowcli.objectives import Inputs
from flowcli.signals import STOPPING
from flowcli.training.batches import Batches

MOST_WORKERS = 8
"""More plans than so many processes make, no training uses up."""


def available(device: torch.device) -> bool:
    """Whether processes can be forked here: not from one that a GPU's driver knows."""
    return sys.platform == "linux" and device.type == "cpu"


def suggested() -> int:
    """How many workers the processor's cores serve, of which other processes of the job have their share.

    One a core, because the training leaves its own idle while it waits; none for one of several jobs of a sweep.
    """
    if multiprocessing.parent_process() is not None:
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores, MOST_WORKERS))


@contextmanager
def ahead(batches: Batches, first: int, last: int, workers: int) -> Iterator[None]:
    """In here so many workers prepare the blocks of steps first .. last before they are asked for.

    There are no more workers than blocks, and none for a single block.
    """
    numbers = range(first // batches.steps, -(-last // batches.steps))
    if workers == 0 or len(numbers) < 2:
        yield
        return
    crew = _Crew(batches.block, numbers)
    try:
        for i in range(min(workers, len(numbers))):
            crew.hire(numbers[i :: min(workers, len(numbers))])
        batches.elsewhere = crew
        yield
    finally:
        batches.elsewhere = None
        crew.dismiss()


class _Crew:
    """Workers, of which number i of w prepares the blocks i, i + w, i + 2 w and so on."""

    def __init__(self, block: Callable[[int], Inputs], numbers: range) -> None:
        self._block, self._first = block, numbers.start
        self._next = numbers.start
        self._pids: list[int] = []
        self._pipes: list[Connection] = []

    def __call__(self, number: int) -> Inputs:
        """The block; one that is out of turn is made here.

        Raises:
            JobError: in a worker, or it is gone.
        """
        if number != self._next:
            return self._block(number)
        try:
            made = self._pipes[(number - self._first) % len(self._pipes)].recv()
        except (EOFError, OSError) as error:
            raise JobError(
                "a process that prepared batches is gone (killed, or out of memory); "
                "go on from the last checkpoint, with trainer.workers=0 if memory is short"
            ) from error
        if isinstance(made, JobError):
            raise made
        self._next += 1
        return Inputs(**{name: torch.from_numpy(array) for name, array in made.items()})

    def hire(self, numbers: range) -> None:
        """Start one more, for these blocks.

        Raises:
            JobError: the machine has no room for it.
        """
        ours, theirs = Pipe(duplex=False)
        # until the child ignores them, it would answer signals as the training does
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: a worker takes no lock of theirs
                pid = os.fork()
            if pid == 0:
                _work(self._block, numbers, theirs, unused=[*self._pipes, ours])
        except OSError as error:
            raise JobError(f"trainer.workers: no process can be started ({error.strerror}); say 0") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        theirs.close()
        self._pids.append(pid)
        self._pipes.append(ours)

    def dismiss(self) -> None:
        """End them, whatever they are at."""
        for pipe in self._pipes:
            pipe.close()
        for pid in self._pids:
            with suppress(ProcessLookupError, ChildProcessError):  # SIGCHLD may be ignored here
                os.kill(pid, signal.SIGKILL)  # it keeps nothing
                os.waitpid(pid, 0)


def _work(
    block: Callable[[int], Inputs], numbers: range, pipe: Connection, *, unused: Sequence[Connection]
) -> NoReturn:
    """A worker's life. unused: the training's ends of pipes; while they are open nobody notices that it is gone."""
    try:
        for signum in STOPPING:
            signal.signal(signum, signal.SIG_IGN)  # a worker ends with the training
        for other in unused:
            other.close()
        torch.set_num_threads(1)
        for number in numbers:
            pipe.send(_made(block, number))
    except BrokenPipeError:
        pass  # the training is over, or gone
    finally:
        error = sys.exception()
        if error is not None:
            traceback.print_exception(error)
        os._exit(0)


def _made(block: Callable[[int], Inputs], number: int) -> Any:
    """A block as arrays, which need no shared memory, or what went wrong."""
    try:
        return {name: value.numpy() for name, value in block(number)._asdict().items() if value is not None}
    except JobError as error:
        return error
    except Exception as error:  # whatever it is, the training says it
        return JobError(
            f"a batch could not be prepared: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        )
