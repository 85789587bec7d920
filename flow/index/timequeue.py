"""A queue ordered by time, then by order of entry, with lazy deletion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from ..limits import LONG_QUEUE_MIN
from .heap import Heap
from .run import Entry, Run
from .table import Slot

__all__ = ["Entry", "Source", "TimeQueue", "head", "peek", "take"]

_STALE_MIN = 64
"""Below this many stale entries a clean-up is not worth its pass."""
_RUNS_MAX = 4
"""Flows that are due at once make one run, those with a like delay another: a few are enough."""

Part = Heap | Run


class TimeQueue:
    """All entries in runs and a heap, and those of each explicit partition in a heap of their own.

    Entries mostly come in order: once the heap is large, an entry goes to the end of a run if it
    belongs there, and to the heap if it belongs at the end of none.

    A flow that leaves is only counted (`live`); its entry is dropped when it comes up, or by a
    clean-up once more than half of all are stale. So memory stays within twice the live
    entries, and leaving costs O(1).
    """

    __slots__ = ("_heap", "_lane_size", "_lanes", "_run_size", "_runs", "live")

    def __init__(self) -> None:
        self._heap = Heap()
        self._runs: list[Run] = []
        self._run_size = 0
        """Of all runs."""
        self._lanes: dict[str, Heap] = {}
        self._lane_size = 0
        self.live = 0

    def push(self, at_ms: int, order: int, version: int, slot: Slot, lane: str | None) -> None:
        """Add an entry; each (slot, version) at most once."""
        self.live += 1
        if self._runs:
            self._run_size += 1
            if not self._runs[0].push(at_ms, order, version, slot):
                self._push_elsewhere(at_ms, order, version, slot)
        elif len(self._heap) < LONG_QUEUE_MIN:
            heappush(self._heap, (at_ms, order, version, slot))
        else:
            self._run_size += 1
            self._push_elsewhere(at_ms, order, version, slot)
        if lane is not None:
            heap = self._lanes.get(lane)
            if heap is None:
                heap = self._lanes[lane] = Heap()
            heappush(heap, (at_ms, order, version, slot))
            self._lane_size += 1

    def _push_elsewhere(self, at_ms: int, order: int, version: int, slot: Slot) -> None:
        """Add an entry that the first run, if there is one, does not take."""
        for run in self._runs[1:]:
            if run.push(at_ms, order, version, slot):
                return
        if len(self._runs) < _RUNS_MAX:
            run = Run()
            run.push(at_ms, order, version, slot)
            self._runs.append(run)
        else:
            self._run_size -= 1
            heappush(self._heap, (at_ms, order, version, slot))

    def put_back(self, at_ms: int, order: int, version: int, slot: Slot, lane: str | None) -> None:
        """Undo the `take` of an entry, from the part that it was taken from."""
        entry = (at_ms, order, version, slot)
        if lane is None:
            heappush(self._heap, entry)
        else:
            heappush(self._lanes.setdefault(lane, Heap()), entry)
            self._lane_size += 1

    def discard(self) -> None:
        """Note that one entry has gone stale, or was taken."""
        self.live -= 1
        assert self.live >= 0
        if len(self._heap) + self._run_size > 2 * self.live + _STALE_MIN:
            self._heap = self._heap.cleaned()
            self._runs = [kept for run in self._runs if (kept := run.cleaned())]
            self._run_size = sum(map(len, self._runs))
        if self._lane_size > 2 * self.live + _STALE_MIN:
            cleaned = ((lane, heap.cleaned()) for lane, heap in self._lanes.items())
            self._lanes = {lane: heap for lane, heap in cleaned if heap}
            self._lane_size = sum(map(len, self._lanes.values()))

    def parts(self, lane: str | None) -> Sequence[Part]:
        """Return where the entries of one partition, or of all (None), are."""
        if lane is not None:
            heap = self._lanes.get(lane)
            return () if heap is None else (heap,)
        if not self._runs:
            return (self._heap,)
        return (*self._runs, self._heap)

    def forget(self, lane: str | None, count: int) -> None:
        """Note that `count` entries were removed from a part, and drop it if it is empty."""
        if lane is None:
            if self._runs:
                self._runs = [run for run in self._runs if run]
                self._run_size = sum(map(len, self._runs))
        else:
            self._lane_size -= count
            if not self._lanes.get(lane, True):
                del self._lanes[lane]

    def count_until(self, now_ms: int) -> int:
        """Return how many live entries have a time ≤ now_ms."""
        all_live = len(self._heap) + self._run_size == self.live
        return sum(part.count_until(now_ms, all_live=all_live) for part in self.parts(None))

    def entries(self) -> Iterator[Entry]:
        """Return the live entries, unordered."""
        return (
            entry for part in self.parts(None) for entry in part if entry[3].version == entry[2]
        )


Source = tuple[TimeQueue, str | None]
"""A queue, and the partition that is looked at in it (None = all)."""


def head(source: Source) -> Entry | None:
    """Return the earliest live entry, dropping stale ones on the way."""
    queue, lane = source
    first: Entry | None = None
    dropped = 0
    for part in queue.parts(lane):
        before = len(part)
        entry = part.head()
        dropped += before - len(part)
        if entry is not None and (first is None or entry < first):
            first = entry
    if dropped:
        queue.forget(lane, dropped)
    return first


def take(sources: Iterable[Source], now_ms: int, limit: int) -> list[Entry]:
    """Remove and return up to `limit` live entries with a time ≤ now_ms, merged in order.

    The caller changes the record of each entry in the same step: the index forgets them here.
    """
    found = [
        (source, part, len(part))
        for source in sources
        if source[0].live
        for part in source[0].parts(source[1])
        if part.may_be_due(now_ms)
    ]
    if len(found) == 1:
        taken = found[0][1].take(now_ms, limit)
    else:
        taken = _merge([part for _, part, _ in found], now_ms, limit)
    for (queue, lane), part, before in found:
        queue.forget(lane, before - len(part))
    return taken


def _merge(parts: list[Part], now_ms: int, limit: int) -> list[Entry]:
    heads: list[tuple[int, int, int]] = []
    for number, part in enumerate(parts):
        if (entry := part.head()) is not None and entry[0] <= now_ms:
            heads.append((entry[0], entry[1], number))
    heapify(heads)
    taken: list[Entry] = []
    while heads and len(taken) < limit:
        at_ms, _, number = heads[0]
        part = parts[number]
        others = heads[1:3]
        next_ms = min(others)[0] if others else now_ms + 1
        if next_ms > at_ms:
            # All that comes before the next part's head at once.
            taken += part.take(next_ms - 1, limit - len(taken))
        else:
            taken += part.take(at_ms, 1)
        if (entry := part.head()) is not None and entry[0] <= now_ms:
            heapreplace(heads, (entry[0], entry[1], number))
        else:
            heappop(heads)
    return taken


def peek(sources: Iterable[Source], now_ms: int, limit: int) -> list[Entry]:
    """Return what `take` would, removing nothing. O(entries due + limit log limit) at worst."""
    best: list[Entry] = []
    for queue, lane in sources:
        for part in queue.parts(lane):
            best += part.peek(now_ms, limit)
    best.sort(key=_order)
    return best[:limit]


def _order(entry: Entry) -> tuple[int, int]:
    return entry[:2]
