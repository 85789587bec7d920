"""A shard's answering: batches in, answers out; what waits, sweeps and relaxed syncs on the side.

The same in a shard process and inside the caller's process; who carries the messages is not
known here. Nothing in it blocks but the engine's own reads, writes and syncs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from ..flow.commands import ClaimDue
from ..flow.creating import is_creating
from ..flow.engine import Answer, Engine
from ..flow.family import Collect, Deliver, Outbound
from ..flow.host import Clock, SetClock
from ..flow.limits import RELAXED_SYNC_MS, WAITERS_MAX
from ..flow.queries import Backup, Tick, Unwatch, Watch
from ..flow.replies import Data, Rejected, reject
from .admission import Admission
from .disk import DiskWatch
from .fanouts import NOTED, Fanouts
from .held import Held
from .messages import Arrival, Departure
from .pace import Pace, SweepPace
from .staging import Staging
from .waiters import Waiter, Waiters

_OWN = frozenset((Watch, Unwatch, Collect, Backup))
"""Requests that are answered here, not by the engine."""


class Service:
    """One engine, and everything about it that needs the time."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        *,
        relaxed: bool,
        staging: Staging | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`now_s`: seconds, by which it measures what its own work takes."""
        self.engine = engine
        self.clock = clock
        self.admission = Admission(engine.state.settings.max_rss_bytes)
        self.disk = DiskWatch(engine)
        self.waiters = Waiters()
        self.fanouts = Fanouts()
        self._held = Held()
        self._collect: Arrival | None = None
        """The courier's request, while there is nothing to be delivered."""
        self._pace = Pace(now_s)
        self._sweep_pace = SweepPace(now_s)
        self.staging = staging or Staging(None)
        engine.log.keeps_files = self.staging.keeps_files
        self._relaxed = relaxed
        self._sync_at_ms: int | None = None

    def serve(self, arrivals: Sequence[Arrival], waiting: int = 0) -> list[Departure]:
        """Answer a batch of requests, and whoever waited for what it changed.

        `waiting`: how many requests wait for the next batch.
        """
        if self.staging.is_holding:
            arrivals = self.staging.keep(arrivals)
        refusal = self.disk.refusal() or self.admission.refusal(waiting)
        if refusal is None:
            return self._serve(arrivals)
        refused = [
            _tell(arrival.caller, arrival.number, refusal)
            for arrival in arrivals
            if is_creating(arrival.request)
        ]
        return refused + self._serve([a for a in arrivals if not is_creating(a.request)])

    def _serve(self, arrivals: Sequence[Arrival]) -> list[Departure]:
        engine = self.engine
        kinds = {arrival.request.__class__ for arrival in arrivals}
        if Tick in kinds:
            self._set_clock(arrivals)
        now_ms = self.clock.now_ms()
        engine.touched = set() if self.waiters or Watch in kinds else None
        own = [] if kinds.isdisjoint(_OWN) else [a for a in arrivals if a.request.__class__ in _OWN]
        asked = [a for a in arrivals if a.request.__class__ not in _OWN] if own else arrivals
        departures = self._put(asked, now_ms, is_noted=not kinds.isdisjoint(NOTED))
        if engine.log.space.is_tight and Deliver in kinds:
            departures = self._held.keep(asked, departures, now_ms)
        while Tick in kinds and self._sweep(now_ms):
            # A clock that stands still between ticks: what is due is done when a tick returns.
            pass
        for arrival in own:
            departures += self._answer_own(arrival, now_ms)
        if ClaimDue in kinds and self.waiters.has_promises:
            for caller, _, request in arrivals:
                if isinstance(request, ClaimDue):
                    self.waiters.claimed(caller, request.type)
        departures += self._follow(now_ms)
        self._pace.served()
        if Backup in kinds:
            departures += self._go_on()
        return departures

    def wake(self) -> list[Departure]:
        """Do what has become due without anyone asking."""
        self.disk.refusal()
        now_ms = self.clock.now_ms()
        if self._sync_at_ms is not None and self._sync_at_ms <= now_ms:
            self.engine.sync()
            self._sync_at_ms = None
        self.engine.touched = set() if self.waiters else None
        self._step([], now_ms)
        departures = self._follow(now_ms)
        if self.staging.is_holding:
            departures += self._go_on()
        if self.engine.upkeep.is_needed:
            upkeep = self.engine.upkeep
            self._pace.run(upkeep.step, upkeep.haste, can_wait=upkeep.can_wait)
            if upkeep.has_caught_up():
                self.admission.give_back()
        return departures

    def next_wake_ms(self) -> int | None:
        """Return when `wake` has something to do next."""
        is_busy = self.engine.upkeep.is_needed
        now_ms = self.clock.now_ms() if is_busy or self.staging.is_holding else 0
        times = (
            self.waiters.next_wake_ms(),
            self.fanouts.next_wake_ms(),
            None if self._collect is None else self.engine.next_ask_ms(),
            self._next_sweep_ms(),
            self._held.next_wake_ms(),
            self._sync_at_ms,
            now_ms + self._pace.wait_ms if is_busy else None,
            now_ms + self.staging.wait_ms() if self.staging.is_holding else None,
        )
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def forget(self, caller: Any) -> None:
        """Drop what a caller that has gone was waiting for, and abort what it drove."""
        if self.waiters:
            self.waiters.forget(caller)
        self.fanouts.forget(caller)
        self.staging.forget(caller)
        self._held.forget(caller)
        if self._collect is not None and self._collect.caller is caller:
            self._collect = None

    def dismiss(self, refused: Rejected | None) -> list[Departure]:
        """End all that waits: it is refused, or else is to look again at the shard's successor."""
        fanouts = refused or reject(
            "shard_unavailable",
            "the shard failed while the fan-out waited for another one of its parent; nothing was "
            "done: try it again",
            reason="went away",
        )
        departures = [
            _tell(waiter.caller, waiter.number, refused or Data(True))
            for waiter in self.waiters.clear()
        ]
        kept_back = [*self.fanouts.clear(), *self.staging.clear()]
        departures += [_tell(kept.caller, kept.number, fanouts) for kept in kept_back]
        departures += [
            _tell(kept.caller, kept.number, refused or _UNDELIVERED) for kept in self._held.clear()
        ]
        parked, self._collect = self._collect, None
        if parked is not None:
            departures.append(_tell(parked.caller, parked.number, refused or _NOTHING))
        return departures

    def close(self, *, at_once: bool = False) -> None:
        """Close the engine; what waits is not answered. `at_once`: somebody waits for it to end."""
        self.engine.close(at_once=at_once)

    def abandon(self) -> None:
        """Let go of the files as they are, after a failure."""
        self.engine.abandon()

    def _go_on(self) -> list[Departure]:
        """Serve what a backup held back, if that is over."""
        held = self.staging.take()
        return self._serve(held) if held else []

    # ---- the engine's work ----

    def _put(self, arrivals: Sequence[Arrival], now_ms: int, *, is_noted: bool) -> list[Departure]:
        """Put requests to the engine; those that find a fan-out of their parent busy wait."""
        answers = self._step([arrival.request for arrival in arrivals], now_ms)
        departures = [
            Departure(arrival.caller, arrival.number, answer)
            for arrival, answer in zip(arrivals, answers, strict=True)
        ]
        if not is_noted:
            return departures
        told = []
        for arrival, departure in zip(arrivals, departures, strict=True):
            given = departure.answer.reply
            reply = self.fanouts.note(arrival, given, now_ms)
            if reply is given:
                told.append(departure)
            elif reply is not None:
                told.append(_tell(arrival.caller, arrival.number, reply))
        return told

    def _follow(self, now_ms: int) -> list[Departure]:
        """Answer what waited, after whatever has been written."""
        ends = self.fanouts.take_ends(now_ms)
        if ends:
            self._step(ends, now_ms)
        departures = []
        waiting = self.fanouts.take_waiting()
        if waiting:
            departures = self._put(waiting, now_ms, is_noted=True)
        if self._held:
            departures += self._try_held(now_ms)
        departures += self._wake_waiters(now_ms)
        if self._collect is not None:
            departures += self._look_into_outbox(now_ms)
        return departures

    def _try_held(self, now_ms: int) -> list[Departure]:
        posts = self._held.take(now_ms, is_full=self.engine.log.space.is_full)
        if not posts:
            return []
        return self._held.keep(posts, self._put(posts, now_ms, is_noted=False), now_ms)

    def _step(self, requests: Sequence[Any], now_ms: int) -> list[Answer]:
        if not self._sweep_pace.wait_ms:
            self._sweep(now_ms)
        answers = self.engine.step(requests, now_ms, self.clock.order_us())
        self._note_unsynced(now_ms)
        return answers

    def _note_unsynced(self, now_ms: int) -> None:
        if self._relaxed and self._sync_at_ms is None and self.engine.log.has_unsynced:
            self._sync_at_ms = now_ms + RELAXED_SYNC_MS

    def _sweep(self, now_ms: int) -> bool:
        """Remove some of what is over; return whether anything was.

        It is in a frame of its own, so that it can be timed.
        """
        sweep = self.engine.sweep(now_ms)
        if sweep is None:
            return False
        order_us = self.clock.order_us()
        self._sweep_pace.run(lambda: self.engine.step([sweep], now_ms, order_us))
        self._note_unsynced(now_ms)
        return True

    def _next_sweep_ms(self) -> int | None:
        due_ms = self.engine.next_sweep_ms()
        if due_ms is None or not (wait_ms := self._sweep_pace.wait_ms):
            return due_ms
        return max(due_ms, self.clock.now_ms() + wait_ms)

    def _set_clock(self, arrivals: Sequence[Arrival]) -> None:
        if isinstance(self.clock, SetClock):
            for _, _, request in arrivals:
                if isinstance(request, Tick) and request.now_ms is not None:
                    self.clock.set(request.now_ms)

    # ---- what waits ----

    def _answer_own(self, arrival: Arrival, now_ms: int) -> list[Departure]:
        caller, number, request = arrival
        if isinstance(request, Unwatch):
            # The watch is answered too: whoever sent it counts its answers.
            waiter = self.waiters.remove(caller, request.request)
            ended = [] if waiter is None else [_tell(caller, waiter.number, Data(False))]
            return [*ended, _tell(caller, number, Data(True))]
        if isinstance(request, Collect):
            return self._park(arrival, now_ms)
        if isinstance(request, Backup):
            return [_tell(caller, number, self.staging.answer(request, self.engine.seal, caller))]
        waiter = Waiter(caller, number, request, request.until_ms)
        if self.waiters.is_full:
            refused = reject(
                "overloaded",
                f"{WAITERS_MAX} claims wait at this shard already; use fewer, larger claims",
                retry_after_ms=1_000,
                reason="waiters",
            )
            return [_tell(caller, number, refused)]
        self.waiters.add(waiter)
        return []

    def _wake_waiters(self, now_ms: int) -> list[Departure]:
        if not self.waiters and not self.waiters.has_promises:
            return []
        woken = self.waiters.woken(self.engine, now_ms, self.engine.touched)
        return [_tell(waiter.caller, waiter.number, Data(is_due)) for waiter, is_due in woken]

    def _park(self, arrival: Arrival, now_ms: int) -> list[Departure]:
        """Let the courier wait for posts: one at a time, the newest."""
        former, self._collect = self._collect, arrival
        departures = [] if former is None else [_tell(former.caller, former.number, _NOTHING)]
        departures += self._look_into_outbox(now_ms)
        if self._collect is not None:
            # Its acknowledgements are taken in; they need not be again after every batch.
            waiting = replace(arrival.request, acked=[])
            self._collect = Arrival(arrival.caller, arrival.number, waiting)
        return departures

    def _look_into_outbox(self, now_ms: int) -> list[Departure]:
        parked = self._collect
        assert parked is not None
        outbound = self.engine.collect(parked.request, now_ms)
        if outbound is None:
            return []
        self._collect = None
        return [_tell(parked.caller, parked.number, outbound)]


_NOTHING = Outbound([], [])
_UNDELIVERED = reject("outcome_unknown", "the shard failed before it took these posts in")


def _tell(caller: Any, number: int, reply: Any) -> Departure:
    return Departure(caller, number, Answer(reply))
