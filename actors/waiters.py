"""Claims that wait: watches on what becomes due, answered without polling, the oldest first.

A flow that becomes due wakes one waiter, not all of them: it is promised to the one that has waited
longest, until that one has claimed, has said that it is done, or has been silent for PROMISE_MS.
Who comes back with nothing waits on in its old place.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from typing import Any, NamedTuple

from ..flow.engine import Engine
from ..flow.limits import PROBE_KEYS_MAX, PROMISE_MS, WAITERS_MAX
from ..flow.queries import Watch


class Waiter(NamedTuple):
    """Who waits, and until when."""

    caller: Any
    number: int
    watch: Watch
    until_ms: int


_Key = tuple[int, int]
"""(caller identity, request number)"""
_Place = tuple[int, int, Waiter]
"""(when its claim began to wait in µs, order of arrival, waiter)"""
_count = itertools.count()


class _Group:
    """Waiters for the same thing, oldest first, and those that something was promised to."""

    __slots__ = ("places", "promises", "wake_at_ms", "watch")

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.places: list[_Place] = []
        self.promises: dict[_Key, int] = {}
        """Woken waiters that have not claimed yet → when that is given up, in ms."""
        self.wake_at_ms: int | None = None
        """When to look again, should nothing be written until then."""

    def look(self, engine: Engine, now_ms: int) -> list[Waiter]:
        """Take out the waiters that something is there for, and promise it to them."""
        wanted = min(len(self.promises) + len(self.places), PROBE_KEYS_MAX)
        count = engine.count_due(self.watch, wanted, now_ms) - len(self.promises)
        woken = [place[2] for place in self.places[: max(0, count)]]
        del self.places[: len(woken)]
        for waiter in woken:
            self.promises[id(waiter.caller), waiter.number] = now_ms + PROMISE_MS
        times = list(self.promises.values())
        if self.places and count <= 0:
            due_ms = engine.next_due_ms(self.watch)
            # What is due already is promised: it is looked at again when that is over.
            times += [due_ms] if due_ms is not None and due_ms > now_ms else []
        self.wake_at_ms = min(times, default=None)
        return woken


class Waiters:
    """The watches of one shard. Looked at when a flow of their type was written, and in time."""

    def __init__(self) -> None:
        self._by_type: dict[str, dict[Any, _Group]] = {}
        self._homes: dict[_Key, tuple[_Group, _Place]] = {}
        """Where each waiter stands."""
        self._promised: dict[_Key, _Group] = {}
        """Whom something was promised to, oldest first."""
        self._ends: list[tuple[int, _Key]] = []
        """A heap of when waiters give up; what has left in the meantime is passed over."""
        self._changed: set[int] = set()
        """Groups to look at because a promise has ended, by identity."""

    def __len__(self) -> int:
        return len(self._homes)

    @property
    def has_promises(self) -> bool:
        """Whether somebody was woken and has not claimed yet."""
        return bool(self._promised)

    @property
    def is_full(self) -> bool:
        """Whether one more would break the bound."""
        return len(self._homes) >= WAITERS_MAX

    def add(self, waiter: Waiter) -> None:
        """Let a watch wait. If there is something already, the next `woken` tells who gets it."""
        # A number that is used again is that of the new watch alone.
        self.remove(waiter.caller, waiter.number)
        watch = waiter.watch
        groups = self._by_type.setdefault(watch.type, {})
        group = groups.setdefault(_filter_of(watch), _Group(watch))
        place = (watch.since_us, next(_count), waiter)
        insort(group.places, place)
        key = id(waiter.caller), waiter.number
        self._homes[key] = group, place
        heapq.heappush(self._ends, (waiter.until_ms, key))
        self._changed.add(id(group))

    def remove(self, caller: Any, number: int) -> Waiter | None:
        """Take a watch back; of one that was woken, end the promise."""
        key = id(caller), number
        home = self._homes.pop(key, None)
        if home is None:
            self._end_promise(key)
            return None
        group, place = home
        group.places.remove(place)
        self._tidy(group)
        return place[2]

    def claimed(self, caller: Any, flow_type: str) -> None:
        """Take note of a claim: it uses the caller's oldest promise for this type."""
        for key, group in self._promised.items():
            if key[0] == id(caller) and group.watch.type == flow_type:
                self._end_promise(key)
                return

    def clear(self) -> list[Waiter]:
        """Take back and return every watch."""
        ended = [place[2] for _, place in self._homes.values()]
        self._by_type.clear()
        self._homes.clear()
        self._promised.clear()
        self._ends.clear()
        self._changed.clear()
        return ended

    def forget(self, caller: Any) -> None:
        """Take back every watch of a caller that has gone."""
        for _, number in [key for key in self._homes if key[0] == id(caller)]:
            self.remove(caller, number)
        for key in [key for key in self._promised if key[0] == id(caller)]:
            self._end_promise(key)

    def woken(
        self, engine: Engine, now_ms: int, touched: set[str] | None
    ) -> list[tuple[Waiter, bool]]:
        """Remove and return the watches that end now: (waiter, whether something is due).

        `touched`: the types that were written since the last look.
        """
        ended: list[tuple[Waiter, bool]] = []
        for flow_type, groups in list(self._by_type.items()):
            is_touched = touched is not None and flow_type in touched
            for group in list(groups.values()):
                is_due = group.wake_at_ms is not None and group.wake_at_ms <= now_ms
                if is_touched or is_due or id(group) in self._changed:
                    ended += [(waiter, True) for waiter in self._look(group, engine, now_ms)]
        while self._ends and self._ends[0][0] <= now_ms:
            _, key = heapq.heappop(self._ends)
            home = self._homes.get(key)
            if home is not None:
                waiter = home[1][2]
                self.remove(waiter.caller, waiter.number)
                ended.append((waiter, False))
        return ended

    def next_wake_ms(self) -> int | None:
        """Return when a watch has to be looked at again."""
        while self._ends and self._ends[0][1] not in self._homes:
            heapq.heappop(self._ends)
        times = [self._ends[0][0]] if self._ends else []
        for groups in self._by_type.values():
            times += [g.wake_at_ms for g in groups.values() if g.wake_at_ms is not None]
        return min(times, default=None)

    # ---- parts ----

    def _look(self, group: _Group, engine: Engine, now_ms: int) -> list[Waiter]:
        self._changed.discard(id(group))
        for key in [key for key, until_ms in group.promises.items() if until_ms <= now_ms]:
            del group.promises[key], self._promised[key]
        woken = group.look(engine, now_ms)
        for waiter in woken:
            key = id(waiter.caller), waiter.number
            del self._homes[key]
            self._promised[key] = group
        self._tidy(group)
        return woken

    def _end_promise(self, key: _Key) -> None:
        group = self._promised.pop(key, None)
        if group is not None:
            del group.promises[key]
            self._changed.add(id(group))
            self._tidy(group)

    def _tidy(self, group: _Group) -> None:
        """Forget a group that nobody waits in and nothing is promised in."""
        if group.places or group.promises:
            return
        groups = self._by_type.get(group.watch.type, {})
        if groups.pop(_filter_of(group.watch), None) is not None and not groups:
            del self._by_type[group.watch.type]
        self._changed.discard(id(group))


def _filter_of(watch: Watch) -> Any:
    states = None if watch.states is None else tuple(watch.states)
    keys = None if watch.partition_keys is None else tuple(watch.partition_keys)
    return states, keys, watch.priority, watch.due, watch.expired
