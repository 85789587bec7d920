"""How a call waits for its answer."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pykka
import pytest

from shardflow.actors.future import ReplyFuture
from shardflow.flow.limits import WAIT_SLICE_SECONDS


class Gate:
    """A lock that opens at once, or never, on a clock that only waits move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opens = False
        self.now_s = 0.0
        self.waits: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        assert not blocking or timeout >= 0, "a wait without an end would pass over a signal"
        if blocking:
            self.waits.append(timeout)
            self.now_s += timeout
            assert len(self.waits) < 10, "the signal is passed over"
            if len(self.waits) == 5:
                signal.raise_signal(signal.SIGINT)
        return blocking and self.opens

    def release(self) -> None:
        """Nobody else waits."""


def future_with(gate: Gate) -> ReplyFuture[Any]:
    future: ReplyFuture[Any] = ReplyFuture(lambda reply: reply)
    future._gate = gate  # type: ignore[assignment]
    return future


def test_a_wait_of_any_length_is_made_of_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with pytest.raises(pykka.Timeout):
        future_with(gate).get(timeout=2.5 * WAIT_SLICE_SECONDS)
    assert gate.now_s == pytest.approx(2.5 * WAIT_SLICE_SECONDS)
    assert max(gate.waits) == WAIT_SLICE_SECONDS


@pytest.mark.parametrize("timeout", [None, 600.0])
def test_a_thread_that_hears_no_signal_waits_once(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    gate = Gate(monkeypatch)
    gate.opens = True
    thread = threading.Thread(target=future_with(gate).get, kwargs={"timeout": timeout})
    thread.start()
    thread.join()
    assert gate.waits == [threading.TIMEOUT_MAX if timeout is None else timeout]


@pytest.mark.parametrize("timeout", [None, 600.0])
def test_a_signal_that_comes_before_a_wait_ends_it(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    assert threading.current_thread() is threading.main_thread()
    gate = Gate(monkeypatch)
    # What is started in the background has it ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            future_with(gate).get(timeout=timeout)
    finally:
        signal.signal(signal.SIGINT, former)
    assert max(gate.waits) == WAIT_SLICE_SECONDS
