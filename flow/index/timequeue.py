"""A queue ordered by time, then by order of entry: a binary heap with lazy deletion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from .table import Slot

Entry = tuple[int, int, int, Slot]
"""time, order, version, slot. Order is unique per flow and state, so slots are never compared."""

_STALE_MIN = 64
"""Below this many stale entries a clean-up is not worth its pass."""


def is_live(entry: Entry) -> bool:
    """Whether the flow is unchanged since the entry was made."""
    record = entry[3].record
    return record is not None and record.version == entry[2]


class TimeQueue:
    """All entries in one heap, and those of each explicit partition in a heap of their own.

    A flow that leaves is only counted (`live`); its entry is dropped when it comes up, or by a
    clean-up once more than half of the heap is stale. So memory stays within twice the live
    entries, and leaving costs O(1).
    """

    __slots__ = ("_heap", "_lane_size", "_lanes", "live")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._lanes: dict[str, list[Entry]] = {}
        self._lane_size = 0
        self.live = 0

    def push(self, at_ms: int, order: int, version: int, slot: Slot, lane: str | None) -> None:
        """Add an entry; each (slot, version) at most once."""
        entry = (at_ms, order, version, slot)
        heappush(self._heap, entry)
        self.live += 1
        if lane is not None:
            heap = self._lanes.get(lane)
            if heap is None:
                self._lanes[lane] = [entry]
            else:
                heappush(heap, entry)
            self._lane_size += 1

    def discard(self) -> None:
        """Note that one entry has gone stale."""
        self.live -= 1
        assert self.live >= 0
        if len(self._heap) > 2 * self.live + _STALE_MIN:
            self._heap = [entry for entry in self._heap if is_live(entry)]
            heapify(self._heap)
        if self._lane_size > 2 * self.live + _STALE_MIN:
            self._clean_lanes()

    def _clean_lanes(self) -> None:
        lanes = {}
        self._lane_size = 0
        for lane, heap in self._lanes.items():
            if kept := [entry for entry in heap if is_live(entry)]:
                heapify(kept)
                lanes[lane] = kept
                self._lane_size += len(kept)
        self._lanes = lanes

    def heap(self, lane: str | None) -> list[Entry]:
        """Return the heap of one partition, or of all (None). For `head` and `take` below."""
        if lane is None:
            return self._heap
        return self._lanes.get(lane, [])

    def forget(self, lane: str | None, count: int) -> None:
        """Note that `count` entries were popped from a lane's heap, and drop it when empty."""
        if lane is None:
            return
        self._lane_size -= count
        if not self._lanes.get(lane, True):
            del self._lanes[lane]

    def count_until(self, now_ms: int) -> int:
        """Return how many live entries have a time ≤ now_ms. O(those entries)."""
        return sum(1 for entry in _until(self._heap, now_ms) if is_live(entry))

    def entries(self) -> Iterator[Entry]:
        """Return the live entries, unordered."""
        return (entry for entry in self._heap if is_live(entry))


def _until(heap: list[Entry], now_ms: int) -> Iterator[Entry]:
    """Walk the part of a heap that is due: children of a later entry are later still."""
    pending = [0]
    while pending:
        index = pending.pop()
        if index < len(heap) and heap[index][0] <= now_ms:
            yield heap[index]
            pending.append(2 * index + 1)
            pending.append(2 * index + 2)


Source = tuple[TimeQueue, str | None]
"""A queue, and the partition that is looked at in it (None = all)."""


def head(source: Source) -> Entry | None:
    """Return the earliest live entry, dropping stale ones on the way."""
    queue, lane = source
    heap = queue.heap(lane)
    dropped = 0
    found: Entry | None = None
    while heap:
        entry = heap[0]
        if is_live(entry):
            found = entry
            break
        heappop(heap)
        dropped += 1
    if dropped:
        queue.forget(lane, dropped)
    return found


def take(sources: Iterable[Source], now_ms: int, limit: int) -> list[Entry]:
    """Remove and return up to `limit` live entries with a time ≤ now_ms, merged in order.

    The caller changes the record of each entry in the same step: the index forgets them here.
    """
    found = [source for source in sources if source[0].live]
    if len(found) == 1:
        return _take_one(found[0], now_ms, limit)
    heads = []
    for number, source in enumerate(found):
        if (entry := head(source)) is not None and entry[0] <= now_ms:
            heads.append((entry[0], entry[1], number))
    heapify(heads)
    taken: list[Entry] = []
    while heads and len(taken) < limit:
        _, _, number = heappop(heads)
        source = found[number]
        queue, lane = source
        taken.append(heappop(queue.heap(lane)))
        queue.forget(lane, 1)
        if (entry := head(source)) is not None and entry[0] <= now_ms:
            heappush(heads, (entry[0], entry[1], number))
    return taken


def _take_one(source: Source, now_ms: int, limit: int) -> list[Entry]:
    queue, lane = source
    heap = queue.heap(lane)
    taken: list[Entry] = []
    before = len(heap)
    while heap and len(taken) < limit:
        if heap[0][0] > now_ms:
            break
        entry = heappop(heap)
        record = entry[3].record
        if record is not None and record.version == entry[2]:
            taken.append(entry)
    queue.forget(lane, before - len(heap))
    return taken


def peek(sources: Iterable[Source], now_ms: int, limit: int) -> list[Entry]:
    """Return what `take` would, removing nothing. O(entries due + limit log limit) at worst."""
    best: list[Entry] = []
    for queue, lane in sources:
        heap = queue.heap(lane)
        # A walk in heap order visits at most the entries before the limit-th and their children.
        frontier = [(heap[0][0], heap[0][1], 0)] if heap else []
        found = 0
        while frontier and found < limit:
            at_ms, _, index = heappop(frontier)
            if at_ms > now_ms:
                break
            if is_live(heap[index]):
                best.append(heap[index])
                found += 1
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(heap):
                    heappush(frontier, (heap[child][0], heap[child][1], child))
    best.sort(key=_order)
    return best[:limit]


def _order(entry: Entry) -> tuple[int, int]:
    return entry[:2]
