"""Which entries of the log still count: what a merge keeps."""

from __future__ import annotations

from typing import Any

from ..cold.store import Cold
from ..events import (
    Delivered,
    PolicyStored,
    Posted,
    Prepared,
    Received,
    RecordKey,
    ValueKey,
)
from ..index.table import Slot, trail_index
from ..log.facts import Key, key_of
from ..log.position import Position, pack
from ..log.values import Values
from ..machine.state import ShardState


class Liveness:
    """Asks the shard's own indexes; an entry that they do not name is dead."""

    def __init__(self, state: ShardState, values: Values, cold: Cold | None = None) -> None:
        self._state = state
        self._values = values
        self._cold = cold

    def owner_of(self, entry: Any, position: Position) -> Slot | int | Key | bool:
        """Return who names an entry: a flow's slot, a value's number, minus the row of a cold flow,
        a fact's key; or whether anyone does.

        `entry`: its outline. Tombstones (`Dropped` and its like) are not asked for here: whether
        they are needed depends on the files before them.
        """
        kind = entry.__class__
        if kind is RecordKey:
            for slot in self._state.table.peek(entry.id):
                # No two entries lie in one place: who has the position has the record.
                if trail_index(slot.trail, pack(*position)) >= 0:
                    return slot
            return self._row_of(entry, position)
        if kind is ValueKey:
            number: int = entry.number
            return number if self._values.place(number) == position else False
        key = key_of(entry)
        place = self._values.facts.place(key)
        if place is None:
            # A checkpoint of an older version does not say where facts lie.
            return self._is_current(entry)
        return key if place == position else False

    def _row_of(self, record: RecordKey, position: Position) -> int | bool:
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
