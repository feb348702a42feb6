"""SIGINT and SIGTERM: an exception at once, or, where work is held together, a note that somebody asks for."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from flowcli.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""A terminal's Ctrl-C; what `kill`, SLURM and torchrun send."""


class Listener:
    """What becomes of the first signal; the second one ends the process on the spot.

    Attributes:
        advice: what the user reads when the signal is raised.
        received: the first signal's number.
        raised: it has been raised.
    """

    def __init__(self, advice: str, *, patient: bool = False, farewell: Callable[[], None] | None = None) -> None:
        """Take what to do and say.

        advice: as above; patient: let later signals pass (torchrun sends its own after a terminal's Ctrl-C);
        farewell: is called before the signal is raised.
        """
        self.advice, self.received, self.raised = advice, 0, False
        self._held, self._patient, self._farewell = False, patient, farewell

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.received:
            return
        self.received = signum
        for each in STOPPING:
            if signal.getsignal(each) is not signal.SIG_IGN:
                signal.signal(each, signal.SIG_IGN if self._patient else signal.SIG_DFL)
        if not self._held:
            if self._farewell is not None:
                self._farewell()
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """What to raise after a signal."""
        self.raised = True
        return Interrupted(self.received, self.advice)

    @contextmanager
    def held(self) -> Iterator[None]:
        """In here a signal only notes itself in `received`."""
        earlier, self._held = self._held, True
        try:
            yield
        finally:
            self._held = earlier

    @contextmanager
    def released(self) -> Iterator[None]:
        """In here, inside of `held`, it is raised again; one that came before is raised now.

        Raises:
            Interrupted: on a signal.
        """
        earlier, self._held = self._held, False
        try:
            if self.received:
                raise self.interrupted()
            yield
        finally:
            self._held = earlier


@contextmanager
def listening(advice: str, *, patient: bool = False, farewell: Callable[[], None] | None = None) -> Iterator[Listener]:
    """Hear both signals in the main thread, the only one that Python tells; one that is ignored (nohup) stays so.

    Raises:
        Interrupted: on a signal, whatever became of it on its way here.
    """
    listener = Listener(advice, patient=patient, farewell=farewell)
    if threading.current_thread() is not threading.main_thread():
        yield listener
        return
    heard = [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]
    earlier = {signum: signal.signal(signum, listener) for signum in heard}
    try:
        yield listener
    except Exception as error:
        if not listener.raised:
            raise
        raise listener.interrupted() from error  # somebody's `finally` had stumbled, and its error took the place
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
