"""A heap: entries of a time queue in any order of arrival."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from .run import Entry


class Heap(list[Entry]):
    """A binary heap with lazy deletion; does what a Run does, and takes what a run cannot."""

    __slots__ = ()

    def may_be_due(self, now_ms: int) -> bool:
        """Whether the first entry, live or stale, has a time ≤ now_ms."""
        return bool(self) and self[0][0] <= now_ms

    def head(self) -> Entry | None:
        """Return the first live entry, dropping the stale ones before it."""
        while self:
            entry = self[0]
            if entry[3].version == entry[2]:
                return entry
            heappop(self)
        return None

    def take(self, now_ms: int, limit: int) -> list[Entry]:
        """Remove and return up to `limit` live entries with a time ≤ now_ms."""
        taken: list[Entry] = []
        while self and len(taken) < limit and self[0][0] <= now_ms:
            entry = heappop(self)
            if entry[3].version == entry[2]:
                taken.append(entry)
        return taken

    def peek(self, now_ms: int, limit: int) -> list[Entry]:
        """Return what `take` would, removing nothing. O(entries due + limit log limit) at worst."""
        found: list[Entry] = []
        # A walk in heap order visits at most the entries before the limit-th and their children.
        frontier = [(self[0][0], self[0][1], 0)] if self else []
        while frontier and len(found) < limit:
            at_ms, _, index = heappop(frontier)
            if at_ms > now_ms:
                break
            entry = self[index]
            if entry[3].version == entry[2]:
                found.append(entry)
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(self):
                    heappush(frontier, (self[child][0], self[child][1], child))
        return found

    def count_until(self, now_ms: int, *, all_live: bool) -> int:
        """Return how many live entries have a time ≤ now_ms. O(those entries)."""
        return sum(all_live or entry[3].version == entry[2] for entry in self._until(now_ms))

    def _until(self, now_ms: int) -> Iterator[Entry]:
        """Walk the part that is due: children of a later entry are later still."""
        pending = [0]
        while pending:
            index = pending.pop()
            if index < len(self) and self[index][0] <= now_ms:
                yield self[index]
                pending.append(2 * index + 1)
                pending.append(2 * index + 2)

    def cleaned(self) -> Heap:
        """Return a heap of the live entries."""
        kept = Heap([entry for entry in self if entry[3].version == entry[2]])
        heapify(kept)
        return kept
