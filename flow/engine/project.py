"""Projecting: ended flows beyond a number become cold, the oldest first, a slice at a time."""

from __future__ import annotations

from ..codec import decode_record, encoder
from ..cold.changes import Leaving
from ..cold.environment import ColdFull
from ..cold.store import Cold
from ..index.table import Slot
from ..limits import (
    COLD_BATCH_BYTES,
    COLD_BATCH_FLOWS,
    COLD_COMPACT_FLOWS,
    COLD_HASTE_FLOWS,
    COLD_SLACK_FLOWS,
)
from ..log.log import Log
from ..log.position import unpack
from ..log.values import Values
from ..machine.state import ShardState
from ..record import TERMINAL_STATES, Record, numbers_of

_encode = encoder.encode


class Projector:
    """A job of the upkeep that begins again whenever enough flows have ended.

    A flow is in memory until its row is committed. If the process ends in between, recovery knows
    nothing of the row.
    """

    def __init__(self, log: Log, state: ShardState, values: Values, cold: Cold) -> None:
        assert state.closed is not None, "it has been noted which flows have ended"
        self._log = log
        self._state = state
        self._values = values
        self._cold = cold
        self._closed = state.closed
        self._keep = state.settings.cold_flows_min
        self._rest_until = 0
        """How many have to have ended before a disk that was full is tried again."""
        self.has_caught_up = False
        """Set when a line has come to its end; whoever has seen to that unsets it."""
        self._left = 0
        """How many have left the table since it was last made smaller."""

    @property
    def is_done(self) -> bool:
        """Whether no more flows are in memory than may be."""
        return len(self._closed) <= max(self._keep, self._rest_until)

    @property
    def haste(self) -> float:
        """How far flows end faster than they become cold, from 0 to 1."""
        waiting = len(self._closed) - self._keep - COLD_SLACK_FLOWS
        return max(0.0, min(1.0, waiting / COLD_HASTE_FLOWS))

    def step(self) -> None:
        """Project the oldest flows, as many as one slice may."""
        slots, leaving = self._choose()
        if leaving:
            try:
                self._cold.project(leaving, self._log.lsn)
            except ColdFull:
                self._give_back(slots, leaving)
                return
        self._rest_until = 0
        forget = self._state.forget
        for slot, (record, *_) in zip(slots, leaving, strict=True):
            forget(slot, record)
        self._left += len(slots)
        self.has_caught_up = self.is_done
        if self._left > COLD_COMPACT_FLOWS + 2 * len(self._state.table):
            self._state.table.compact()
            self._left = 0

    def _choose(self) -> tuple[list[Slot], list[Leaving]]:
        """Take flows out of the line, and their values out of the keydir."""
        closed, keep = self._closed, self._keep
        slots: list[Slot] = []
        leaving: list[Leaving] = []
        seen: set[int] = set()
        size = 0
        while len(closed) > keep and len(slots) < COLD_BATCH_FLOWS and size < COLD_BATCH_BYTES:
            slot = closed.popleft()
            if not slot.version or id(slot) in seen:
                continue
            held = slot.held
            record: Record = decode_record(held) if isinstance(held, bytes) else held
            if not may_leave(record):
                # When that changes, it has a new record, and is in line again.
                continue
            seen.add(id(slot))
            packed = held if isinstance(held, bytes) else _encode(record)
            spent = slot.spent
            numbers = set(numbers_of(record, spent))
            values = self._take(numbers)
            if len(values) < len(numbers):
                # A row that names what is nowhere could not be told from a damaged one.
                self._put_back(values)
                continue
            slots.append(slot)
            leaving.append(Leaving(record, packed, slot.trail, spent, values))
            size += len(packed) + len(slot.trail)
        return slots, leaving

    def _take(self, numbers: set[int]) -> list[tuple[int, bytes]]:
        take = self._values.take
        return [(number, place) for number in numbers if (place := take(number)) is not None]

    def _put_back(self, values: list[tuple[int, bytes]]) -> None:
        for number, place in values:
            self._values.add(number, *next(unpack(place)))

    def _give_back(self, slots: list[Slot], leaving: list[Leaving]) -> None:
        """Keep in memory what the disk has no room for, and let some time pass."""
        for flow in leaving:
            self._put_back(flow.values)
        self._closed.extendleft(reversed(slots))
        self._rest_until = len(self._closed) + COLD_BATCH_FLOWS


def may_leave(record: Record) -> bool:
    """Whether a flow has ended, and nothing is to come that its children would tell it."""
    if record.state not in TERMINAL_STATES:
        return False
    if record.extras is None or record.extras.groups is None:
        return True
    return all(group.open_count == 0 for group in record.extras.groups.values())
