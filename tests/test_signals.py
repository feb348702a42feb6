"""Signals: raised at once, or noted where work is held together; tests/test_crash.py sends them to real trainings."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from flowcli.errors import Interrupted
from flowcli.signals import STOPPING, listening


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    earlier = {signum: signal.getsignal(signum) for signum in STOPPING}
    yield
    found = {signum: signal.getsignal(signum) for signum in STOPPING}
    signal.signal(signal.SIGINT, before)
    assert found == earlier, "the handlers are given back"


@pytest.mark.parametrize("signum", STOPPING)
def test_a_signal_is_raised_at_once_with_its_advice(signum):
    with listening("go on") as listener, pytest.raises(Interrupted, match="go on") as stop:
        os.kill(os.getpid(), signum)
    assert listener.received == stop.value.signum == signum
    assert not isinstance(stop.value, Exception), "no library may swallow it"


def test_where_work_is_held_together_it_is_noted():
    with listening("") as listener:
        with listener.held():
            os.kill(os.getpid(), signal.SIGTERM)
            assert listener.received == signal.SIGTERM
            with pytest.raises(Interrupted), listener.released():
                raise AssertionError("one that came before is raised on entry")
        listener.advice = "later"
    with listening("") as listener, listener.held():
        with pytest.raises(Interrupted), listener.released():
            os.kill(os.getpid(), signal.SIGTERM)
        assert listener.received


def test_after_the_first_one_the_system_ends_the_process_itself():
    with listening("") as listener, listener.held():
        os.kill(os.getpid(), signal.SIGINT)
        assert [signal.getsignal(signum) for signum in STOPPING] == [signal.SIG_DFL] * 2
    with listening("", patient=True) as listener, listener.held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert listener.received == signal.SIGINT


def test_one_that_is_ignored_stays_so():
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening("") as listener:
            os.kill(os.getpid(), signal.SIGINT)
            assert not listener.received
            with listener.held():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
            assert listener.received == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)

    def inside() -> None:
        with listening(""):
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_error_that_took_the_place_of_a_signal_is_none():
    def stumble() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise UnboundLocalError

    with pytest.raises(Interrupted, match="how to go on"), listening("how to go on"):
        stumble()
    with pytest.raises(UnboundLocalError), listening("") as listener, listener.held():
        stumble()
