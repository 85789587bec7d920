"""A stop: asked for by a thread, or by SIGTERM to any thread of the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from shardflow.sdk.stopping import Stop

WAIT_S = 10.0


def test_it_is_asked_for_once_and_for_all() -> None:
    stop = Stop()
    assert not stop.wait(0)
    stop.request()
    stop.request()
    assert stop.wait(0)
    stop.wait_or_sigterm()
    with stop.or_sigterm():
        stop.wait_or_sigterm()
    stop.request()


def to_main() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGTERM)


def to_itself() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


@pytest.mark.parametrize("kill", [to_main, to_itself])
def test_sigterm_ends_the_wait_whichever_thread_receives_it(kill: Callable[[], None]) -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=kill)
    with stop.or_sigterm():
        thread.start()
        stop.wait_or_sigterm()
    thread.join(WAIT_S)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_request_ends_the_wait_for_sigterm() -> None:
    stop = Stop()
    with stop.or_sigterm():
        thread = threading.Thread(target=stop.request)
        thread.start()
        stop.wait_or_sigterm()
    thread.join(WAIT_S)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def wait() -> None:
        with stop.or_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))
            stop.wait_or_sigterm()

    thread = threading.Thread(target=wait)
    thread.start()
    stop.request()
    thread.join(WAIT_S)
    assert seen == [before]
    assert not thread.is_alive()
