"""A stop: asked for by a thread, or as SIGTERM or SIGINT to any thread of the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from shardflow.sdk.stopping import SIGNALS, Stop

WAIT_S = 10.0


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_it_is_asked_for_once_and_for_all() -> None:
    stop = Stop()
    assert not stop.wait(0)
    assert not stop.is_requested
    stop.request()
    stop.request()
    assert stop.wait(0)
    assert stop.is_requested
    assert not stop.is_urgent
    with stop.or_signals():
        stop.wait_until(lambda: stop.is_requested)
    stop.insist()
    assert stop.is_urgent
    stop.wake()


def to_main(number: signal.Signals) -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, number)


def to_itself(number: signal.Signals) -> None:
    signal.pthread_kill(threading.get_ident(), number)


@pytest.mark.parametrize("kill", [to_main, to_itself])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_wait_whichever_thread_receives_it(
    number: signal.Signals, kill: Callable[[signal.Signals], None]
) -> None:
    stop = Stop()
    before = handlers()
    thread = threading.Thread(target=kill, args=[number])
    with stop.or_signals():
        assert stop.hears_signals
        thread.start()
        stop.wait_until(lambda: stop.is_requested)
        assert not stop.is_urgent
    thread.join(WAIT_S)
    assert not stop.hears_signals
    assert handlers() == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_is_urgent(second: signal.Signals) -> None:
    stop = Stop()
    before = handlers()
    with stop.or_signals():
        to_itself(signal.SIGTERM)
        stop.wait_until(lambda: stop.is_requested)
        to_itself(second)
        stop.wait_until(lambda: stop.is_urgent)
    assert handlers() == before


def test_a_request_or_a_wake_ends_the_wait_for_signals() -> None:
    stop = Stop()
    over = threading.Event()

    def request() -> None:
        stop.request()
        over.set()
        stop.wake()

    with stop.or_signals():
        thread = threading.Thread(target=request)
        thread.start()
        stop.wait_until(lambda: stop.is_requested)
        stop.wait_until(over.is_set)
    thread.join(WAIT_S)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    stop = Stop()
    before = handlers()
    seen: list[object] = []

    def wait() -> None:
        with stop.or_signals():
            seen.append((handlers(), stop.hears_signals))
            stop.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    stop.request()
    thread.join(WAIT_S)
    assert seen == [(before, False)]
    assert not thread.is_alive()
