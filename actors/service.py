"""A shard's answering: batches in, answers out; watches, sweeps and relaxed syncs on the side.

The same in a shard process and inside the caller's process; who carries the messages is not
known here. Nothing in it blocks but the engine's own reads, writes and syncs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..flow.engine import Answer, Engine
from ..flow.host import Clock, SetClock
from ..flow.limits import RELAXED_SYNC_MS, WAITERS_MAX
from ..flow.queries import Tick, Unwatch, Watch
from ..flow.replies import Data, Reply, reject
from .waiters import Waiter, Waiters


class Arrival(NamedTuple):
    """A request, who asked, and under which number."""

    caller: Any
    number: int
    request: Any


class Departure(NamedTuple):
    """An answer on its way to who asked."""

    caller: Any
    number: int
    answer: Answer


class Service:
    """One engine, and everything about it that needs the time."""

    def __init__(self, engine: Engine, clock: Clock, *, relaxed: bool) -> None:
        self.engine = engine
        self.clock = clock
        self.waiters = Waiters()
        self._relaxed = relaxed
        self._sync_at_ms: int | None = None

    def serve(self, arrivals: Sequence[Arrival]) -> list[Departure]:
        """Answer a batch of requests, and whoever waited for what it changed."""
        engine = self.engine
        is_ticked = False
        for arrival in arrivals:
            if arrival.request.__class__ is Tick:
                self._set_clock(arrival.request)
                is_ticked = True
        now_ms = self.clock.now_ms()
        engine.touched = set() if self.waiters or self._has_watch(arrivals) else None
        asked = [a for a in arrivals if a.request.__class__ not in _OWN]
        answers = self._step([arrival.request for arrival in asked], now_ms)
        while is_ticked and engine.sweep(now_ms) is not None:
            # A clock that stands still between ticks: what is due is done when a tick returns.
            self._step([], now_ms)
        departures = [
            Departure(arrival.caller, arrival.number, answer)
            for arrival, answer in zip(asked, answers, strict=True)
        ]
        if len(asked) != len(arrivals):
            for arrival in arrivals:
                if arrival.request.__class__ in _OWN:
                    departures += self._answer_own(arrival, now_ms)
        return departures + self._wake_waiters(now_ms, engine.touched)

    def wake(self) -> list[Departure]:
        """Do what has become due without anyone asking."""
        now_ms = self.clock.now_ms()
        if self._sync_at_ms is not None and self._sync_at_ms <= now_ms:
            self.engine.sync()
            self._sync_at_ms = None
        self._step([], now_ms)
        return self._wake_waiters(now_ms, None)

    def next_wake_ms(self) -> int | None:
        """Return when `wake` has something to do next."""
        times = (self.waiters.next_wake_ms(), self.engine.next_sweep_ms(), self._sync_at_ms)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def forget(self, caller: Any) -> None:
        """Drop what a caller that has gone was waiting for."""
        if self.waiters:
            self.waiters.forget(caller)

    def dismiss(self, reply: Reply) -> list[Departure]:
        """End every watch with this reply."""
        return [
            Departure(waiter.caller, waiter.number, Answer(reply))
            for waiter in self.waiters.clear()
        ]

    def close(self) -> None:
        """Close the engine; what waits is not answered."""
        self.engine.close()

    def abandon(self) -> None:
        """Let go of the files as they are, after a failure."""
        self.engine.abandon()

    def _step(self, requests: list[Any], now_ms: int) -> list[Answer]:
        sweep = self.engine.sweep(now_ms)
        if sweep is not None:
            requests = [sweep, *requests]
        answers = self.engine.step(requests, now_ms, self.clock.order_us())
        if sweep is not None:
            del answers[0]
        if self._relaxed and self._sync_at_ms is None and self.engine.log.has_unsynced:
            self._sync_at_ms = now_ms + RELAXED_SYNC_MS
        return answers

    def _set_clock(self, tick: Tick) -> None:
        if isinstance(self.clock, SetClock) and tick.now_ms is not None:
            self.clock.set(tick.now_ms)

    @staticmethod
    def _has_watch(arrivals: Sequence[Arrival]) -> bool:
        return any(arrival.request.__class__ is Watch for arrival in arrivals)

    def _answer_own(self, arrival: Arrival, now_ms: int) -> list[Departure]:
        caller, number, request = arrival
        if isinstance(request, Unwatch):
            # The watch is answered too: whoever sent it counts its answers.
            waiter = self.waiters.remove(caller, request.request)
            ended = [] if waiter is None else [_tell(caller, waiter.number, data=False)]
            return [*ended, _tell(caller, number, data=True)]
        waiter = Waiter(caller, number, request, request.until_ms)
        if self.waiters.is_full:
            refused = reject(
                "overloaded",
                f"{WAITERS_MAX} claims wait at this shard already; use fewer, larger claims",
                retry_after_ms=1_000,
                reason="waiters",
            )
            return [Departure(caller, number, Answer(refused))]
        if self.waiters.add(waiter, self.engine, now_ms):
            return []
        return [_tell(caller, number, data=True)]

    def _wake_waiters(self, now_ms: int, touched: set[str] | None) -> list[Departure]:
        if not self.waiters:
            return []
        woken = self.waiters.woken(self.engine, now_ms, touched)
        return [_tell(waiter.caller, waiter.number, data=is_due) for waiter, is_due in woken]


_OWN = (Watch, Unwatch)


def _tell(caller: Any, number: int, *, data: bool) -> Departure:
    return Departure(caller, number, Answer(Data(data)))
