"""Which entries of the log still count: what a merge keeps."""

from __future__ import annotations

from typing import Any

from ..cold.store import Cold
from ..events import (
    Delivered,
    Dropped,
    PolicyStored,
    Posted,
    Prepared,
    Received,
    Unprepared,
    ValueStored,
)
from ..index.table import Slot
from ..log.position import Position, pack
from ..log.values import Values
from ..machine.state import ShardState
from ..record import Record


class Liveness:
    """Asks the shard's own indexes; an entry that they do not name is dead."""

    def __init__(self, state: ShardState, values: Values, cold: Cold | None = None) -> None:
        self._state = state
        self._values = values
        self._cold = cold

    def owner_of(self, entry: Any, position: Position) -> Slot | int | bool:
        """Return who names an entry: a flow's slot, a value's number, minus the row of a cold flow;
        or whether anyone does.

        Tombstones (`Dropped`, `Unprepared`) are not asked for here: whether they are needed
        depends on the files before them.
        """
        if isinstance(entry, Record):
            slot = self._state.table.get(entry.partition_key, entry.id)
            if slot is None:
                return self._row_of(entry, position)
            return slot if _names(slot.trail, position) else False
        if isinstance(entry, ValueStored):
            return entry.number if self._values.place(entry.number) == position else False
        return self._is_current(entry)

    def _row_of(self, record: Record, position: Position) -> int | bool:
        if self._cold is None:
            return False
        row = self._cold.owner(record.partition_key, record.id, pack(*position))
        return -row if row else False

    def _is_current(self, fact: Any) -> bool:
        families = self._state.families
        if isinstance(fact, PolicyStored):
            stored = self._state.policies.get(fact.type)
            return stored is not None and stored.generation == fact.generation
        if isinstance(fact, Prepared):
            return fact.txn in families.prepared
        if isinstance(fact, Posted):
            return fact.number > families.outbox.cleared(fact.dest)
        if isinstance(fact, Received):
            return families.seen.get(fact.source) == fact.number
        assert isinstance(fact, Delivered), f"{type(fact).__name__} is nobody's"
        return families.outbox.cleared(fact.dest) == fact.number

    @staticmethod
    def is_tombstone(entry: Any) -> bool:
        """Whether an entry says that earlier ones are dead."""
        return isinstance(entry, Dropped | Unprepared)


def _names(trail: bytes, position: Position) -> bool:
    return trail_index(trail, position) >= 0


def trail_index(trail: bytes, position: Position) -> int:
    """Return where in a trail a position stands, in bytes; -1 if it does not."""
    wanted = pack(*position)
    size = len(wanted)
    at = trail.find(wanted)
    while at > 0 and at % size:
        at = trail.find(wanted, at + 1)
    return at
