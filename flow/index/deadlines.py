"""Flows that may be active only for so long, by the end of that time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from ..record import TERMINAL_STATES, Record
from .table import Slot

_Entry = tuple[int, int, Slot]
"""deadline, order of creation, slot; stale once the flow has ended or is gone."""


_CLEAN_MIN = 64


class Deadlines:
    """A heap with one entry per flow that has a max_active_ms; its deadline never changes."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._clean_at = _CLEAN_MIN
        """The size at which stale entries are looked for: twice what the last look left."""

    def __bool__(self) -> bool:
        return bool(self._heap)

    def enter(self, slot: Slot, record: Record) -> None:
        """Add a flow, if it has a deadline."""
        at_ms = deadline_of(record)
        if at_ms is not None and record.state not in TERMINAL_STATES:
            heappush(self._heap, (at_ms, record.state_seq, slot))
            if len(self._heap) > self._clean_at:
                self._heap = [entry for entry in self._heap if _is_live(entry)]
                heapify(self._heap)
                self._clean_at = 2 * len(self._heap) + _CLEAN_MIN

    def next_at_ms(self) -> int | None:
        """Return the earliest deadline of an active flow."""
        heap = self._heap
        while heap and not _is_live(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now_ms: int, limit: int) -> list[Slot]:
        """Remove and return up to `limit` active flows whose time is over."""
        taken: list[Slot] = []
        while len(taken) < limit:
            at_ms = self.next_at_ms()
            if at_ms is None or at_ms > now_ms:
                break
            taken.append(heappop(self._heap)[2])
        return taken


def deadline_of(record: Record) -> int | None:
    """Return until when a flow may be active; None = for ever."""
    extras = record.extras
    if extras is None or extras.max_active_ms is None:
        return None
    return record.created_at_ms + extras.max_active_ms


def is_overdue(record: Record, now_ms: int) -> bool:
    """Whether an active flow has been so for too long."""
    at_ms = deadline_of(record)
    return at_ms is not None and at_ms <= now_ms and record.state not in TERMINAL_STATES


def _is_live(entry: _Entry) -> bool:
    record = entry[2].record
    return record is not None and record.state not in TERMINAL_STATES
