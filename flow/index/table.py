"""The table of flows by identity. Ids shared by several partitions cost only themselves."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import Any

from msgspec import Struct

from ..codec import decode_record
from ..limits import TABLE_WALK_FLOWS
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


_Entry = Slot | dict[str | None, Slot]
_LEFT = Slot()
"""Stands where a flow was that has gone during a walk."""


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

    A `walk` through millions of slots may rest while flows come and go. A dict can be walked
    through as long as its keys stay: new ids go to another dict, and those that go leave a mark.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, _Entry] = {}
        self._shared: set[str] = set()
        """Ids that several partitions have, or had."""
        self._is_walked = False
        self._young: dict[str, _Entry] = {}
        """Ids that have come during a walk."""
        self._left: list[str] = []
        """Those that have gone during a walk: the key is there still, unless it has come again."""
        self._added: dict[int, Slot] = {}
        """Slots that were added during a walk, by their addresses."""
        self._size = 0
        self._unpacked: list[tuple[Slot, Record, bytes]] = []
        """Slots with the record that `get` unpacked, and its bytes."""

    def get(self, partition_key: str | None, flow_id: str) -> Slot | None:
        """Return the flow's slot."""
        entry = self._by_id.get(flow_id)
        if entry is None:
            entry = self._young.get(flow_id)
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
        entry = self._by_id.get(flow_id) or self._young.get(flow_id)
        if entry is None or entry is _LEFT:
            return []
        return list(entry.values()) if isinstance(entry, dict) else [entry]

    def add(self, slot: Slot) -> None:
        """Add a slot that holds a record and is not in the table yet."""
        record = slot.record
        assert record is not None
        by_id = self._by_id
        if self._is_walked or self._young:
            by_id = self._level_of(record.id)
        if self._is_walked:
            self._added[id(slot)] = slot
        entry = by_id.setdefault(record.id, slot)
        if entry is _LEFT:
            by_id[record.id] = slot
        elif entry is not slot:
            if not isinstance(entry, dict):
                first = entry.record
                assert first is not None
                entry = {first.partition_key: entry}
                self._shared.add(record.id)
                by_id[record.id] = entry
            assert record.partition_key not in entry, "a flow is added once"
            entry[record.partition_key] = slot
        self._size += 1

    def _level_of(self, flow_id: str) -> dict[str, _Entry]:
        """Return where an id belongs, while some are new."""
        is_young = flow_id in self._young or (self._is_walked and flow_id not in self._by_id)
        return self._young if is_young else self._by_id

    def remove(self, partition_key: str | None, flow_id: str) -> None:
        """Remove a flow that is there."""
        by_id = self._level_of(flow_id) if self._young else self._by_id
        entry = by_id[flow_id]
        assert entry is not _LEFT, "a flow is removed once"
        self._size -= 1
        if isinstance(entry, dict):
            del entry[partition_key]
            if entry:
                return
            self._shared.remove(flow_id)
        if self._is_walked and by_id is self._by_id:
            by_id[flow_id] = _LEFT
            self._left.append(flow_id)
        else:
            del by_id[flow_id]

    def walk(self) -> Generator[list[Slot]]:
        """Yield the slots that there are as it begins, in the order of their ids' coming.

        So many at a time as take a millisecond or two; some may have lost their flows meanwhile.
        One walk at a time: close it, or go to its end.
        """
        assert not self._is_walked, "one walk at a time"
        self._settle(len(self._left) + len(self._young))
        self._is_walked = True
        entries = iter(self._by_id.values())
        try:
            while found := list(islice(entries, TABLE_WALK_FLOWS)):
                yield self._slots_of(found)
        finally:
            self._is_walked = False
            self._added = {}
        while self._left or self._young:
            self._settle(TABLE_WALK_FLOWS // 10 or 1)
            yield []

    def _slots_of(self, entries: list[Any]) -> list[Slot]:
        if self._shared:
            levels = (entry.values() if entry.__class__ is dict else (entry,) for entry in entries)
            entries = [slot for level in levels for slot in level]
        if self._added:
            entries = [slot for slot in entries if id(slot) not in self._added]
        return entries

    def _settle(self, count: int) -> None:
        """Let so many ids be as if there had been no walk."""
        for _ in range(min(count, len(self._left))):
            flow_id = self._left.pop()
            if self._by_id.get(flow_id) is _LEFT:
                del self._by_id[flow_id]
        if not self._left:
            for flow_id in list(islice(self._young, count)):
                self._by_id[flow_id] = self._young.pop(flow_id)

    def pack(self) -> None:
        """Pack again what was unpacked, unless it has another record by now."""
        for slot, record, packed in self._unpacked:
            if slot.held is record:
                slot.held = packed
        self._unpacked.clear()

    def compact(self) -> None:
        """Give back the memory of flows that are gone: a dict keeps the room that it ever had."""
        assert not self._is_walked
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
        for entry in chain(self._by_id.values(), self._young.values()):
            if isinstance(entry, dict):
                yield from entry.values()
            elif entry is not _LEFT:
                yield entry


def trail_index(trail: bytes, packed: bytes) -> int:
    """Return where in a trail a packed position stands, in bytes; -1 if it does not."""
    at = trail.find(packed)
    while at > 0 and at % len(packed):
        at = trail.find(packed, at + 1)
    return at
