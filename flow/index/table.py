"""The table of flows by identity. Ids shared by several partitions cost only themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from ..codec import decode_record
from ..record import Record


class Slot(Struct, gc=False):
    """One flow's place: the latest record, and where its history lies. Only evolve changes it.

    Index entries point at slots and carry the record's version: an entry whose version is not
    the slot's is stale, and whoever meets it drops it.
    """

    held: Any = None
    """The record, or its bytes: packed it takes a third of the memory. None when the flow was
    removed, or is being created. `record` reads them all."""
    version: int = 0
    """The record's; 0 when there is none."""
    trail: bytes = b""
    """Positions of all versions in the log, oldest first (see flow/log/position.py)."""
    spent: list[tuple[int, int]] | None = None
    """(last version that names it, number) of values that only the history still names."""
    queue: Any = None
    """The TimeQueue that has the slot's live entry; None while it waits for no time."""

    @property
    def record(self) -> Record | None:
        """The latest record; each reading of a packed one unpacks it anew."""
        held: Record | bytes | None = self.held
        return decode_record(held) if isinstance(held, bytes) else held


def unpacked(slot: Slot) -> Record:
    """Return the record of a flow that is about to change, and hold it unpacked until then."""
    record = slot.held = slot.record
    assert record is not None
    return record


class FlowTable:
    """(partition key, id) → slot.

    The first level is keyed by id alone; where several partitions have that id, its entry is a
    dict by partition key. So a read without a partition needs no second index.

    A record that will hardly be asked for soon is packed by the end of the step. Which ones are is
    a matter of speed and memory alone: whoever meets a packed one unpacks it.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Slot | dict[str | None, Slot]] = {}
        self._shared: set[str] = set()
        """Ids that several partitions have, or had."""
        self._size = 0
        self._unpacked: list[tuple[Slot, Record, bytes]] = []
        """Slots with the record that `get` unpacked, and its bytes."""

    def get(self, partition_key: str | None, flow_id: str) -> Slot | None:
        """Return the flow's slot."""
        entry = self._by_id.get(flow_id)
        if entry is None:
            return None
        if not isinstance(entry, Slot):
            slot = entry.get(partition_key)
            if slot is not None and isinstance(slot.held, bytes):
                self._unpack(slot)
            return slot
        held: Record | bytes | None = entry.held
        if isinstance(held, bytes):
            held = self._unpack(entry)
        if held is not None and held.partition_key == partition_key:
            return entry
        return None

    def of_id(self, flow_id: str) -> list[Slot]:
        """Return the slots of every partition that has this id."""
        slots = self.peek(flow_id)
        for slot in slots:
            if isinstance(slot.held, bytes):
                self._unpack(slot)
        return slots

    def peek(self, flow_id: str) -> list[Slot]:
        """Return the slots that have this id as they are held, be it packed."""
        entry = self._by_id.get(flow_id)
        if entry is None:
            return []
        return list(entry.values()) if isinstance(entry, dict) else [entry]

    def add(self, slot: Slot) -> None:
        """Add a slot that holds a record and is not in the table yet."""
        record = slot.record
        assert record is not None
        entry = self._by_id.setdefault(record.id, slot)
        if entry is not slot:
            if not isinstance(entry, dict):
                first = entry.record
                assert first is not None
                entry = {first.partition_key: entry}
                self._shared.add(record.id)
                self._by_id[record.id] = entry
            assert record.partition_key not in entry, "a flow is added once"
            entry[record.partition_key] = slot
        self._size += 1

    def remove(self, partition_key: str | None, flow_id: str) -> None:
        """Remove a flow that is there."""
        entry = self._by_id[flow_id]
        if isinstance(entry, dict):
            del entry[partition_key]
            if not entry:
                del self._by_id[flow_id]
                self._shared.remove(flow_id)
        else:
            del self._by_id[flow_id]
        self._size -= 1

    def slots(self) -> list[Any]:
        """Return the slots that there are, at once: the newest first, and among them other things.

        A loop that can tell the one from the other at once would take several times as long.
        """
        found: list[Any] = list(self._by_id.values())
        for flow_id in self._shared:
            entry = self._by_id[flow_id]
            assert isinstance(entry, dict)
            found += entry.values()
        found.reverse()
        return found

    def pack(self) -> None:
        """Pack again what was unpacked, unless it has another record by now."""
        for slot, record, packed in self._unpacked:
            if slot.held is record:
                slot.held = packed
        self._unpacked.clear()

    def compact(self) -> None:
        """Give back the memory of flows that are gone: a dict keeps the room that it ever had."""
        self._by_id = dict(self._by_id)

    def _unpack(self, slot: Slot) -> Record:
        """Unpack a slot until the end of the step."""
        packed = slot.held
        assert isinstance(packed, bytes)
        record = slot.held = decode_record(packed)
        self._unpacked.append((slot, record, packed))
        return record

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Slot]:
        for entry in self._by_id.values():
            if isinstance(entry, dict):
                yield from entry.values()
            else:
                yield entry


def trail_index(trail: bytes, packed: bytes) -> int:
    """Return where in a trail a packed position stands, in bytes; -1 if it does not."""
    at = trail.find(packed)
    while at > 0 and at % len(packed):
        at = trail.find(packed, at + 1)
    return at
