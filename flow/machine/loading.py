"""How a shard's state comes back from the log: records in its order, the last one wins."""

from __future__ import annotations

from ..codec import decode_record
from ..events import Dropped
from ..index.table import Slot
from ..record import Record
from .state import ShardState, note_spent

_FRESH_MAX = 3_000
"""Their memory is used over and over, and stays in the processor's caches: with 10,000 recovery
takes a fifth more time."""


class Loading:
    """Takes in what recovery reads. Indexes are true once `finish` has returned.

    Most flows change again soon after they were created, so the newest records wait here,
    unpacked and in no index, for the next ones of their flows. The others are packed.
    """

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._fresh: list[tuple[Slot, Record, bytes]] = []
        """Their slots have version 0, which says that no index has them."""
        self._with_extras: dict[int, Slot] = {}
        """By identity: what may have a family or a deadline."""

    def load(self, record: Record, packed: bytes, entered: list[int] | None = None) -> Slot:
        """Take in a record, and the bytes that it was read from; return its slot.

        `entered`: it stands for several; the values that the first of them names.
        """
        state = self._state
        slot = state.table.get(record.partition_key, record.id)
        if slot is None:
            slot = Slot(record)
            state.table.add(slot)
        else:
            old: Record = slot.held  # The table unpacks what it hands out.
            note_spent(slot, old, record, entered)
            if slot.version:
                state.leave(slot, old)
                slot.version = 0
            slot.held = record
        if record.extras is not None:
            self._with_extras[id(slot)] = slot
        if record.state_seq > state.last_order:
            state.last_order = record.state_seq
        self._fresh.append((slot, record, packed))
        if len(self._fresh) >= _FRESH_MAX:
            self._enter_fresh()
        return slot

    def adopt(self, packed: bytes, trail: bytes, spent: list[tuple[int, int]] | None) -> None:
        """Take in a flow as it was kept elsewhere; it is the only one of its name so far."""
        state = self._state
        record = decode_record(packed)
        slot = Slot(record, record.version, trail, spent)
        state.table.add(slot)
        slot.held = packed
        if record.extras is not None:
            self._with_extras[id(slot)] = slot
        state.enter(slot, record)

    def unload(self, drop: Dropped) -> None:
        """Take in a removal."""
        state = self._state
        slot = state.table.get(drop.partition_key, drop.id)
        if slot is not None:
            state.table.remove(drop.partition_key, drop.id)
            if slot.version:
                state.leave(slot, slot.held)
            slot.held = slot.queue = None
            slot.version = 0
            state.buried.append(slot.trail)
            self._with_extras.pop(id(slot), None)

    def finish(self) -> None:
        """Make all indexes true."""
        self._enter_fresh()
        state = self._state
        for slot in self._with_extras.values():
            record = slot.record
            assert record is not None
            if record.extras is not None:
                state.lineage.enter(slot, record)
                state.deadlines.enter(slot, record)
        self._with_extras.clear()

    def _enter_fresh(self) -> None:
        enter = self._state.enter
        for slot, record, packed in self._fresh:
            if slot.held is record:
                slot.held = packed
                slot.version = record.version
                enter(slot, record)
        self._fresh.clear()
        self._state.table.pack()
