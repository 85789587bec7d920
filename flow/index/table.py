"""The table of live flows by identity. Ids shared by several partitions cost only themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from ..record import Record


class Slot(Struct, gc=False):
    """One flow's place: the latest record, and where its history lies. Only evolve writes it.

    Index entries point at slots and carry the record's version: an entry whose version is not
    the slot's record's is stale, and whoever meets it drops it.
    """

    record: Record | None = None
    """None when the flow was removed, or is being created."""
    trail: bytes = b""
    """Positions of all versions in the log, oldest first (see flow/log/position.py)."""
    spent: list[tuple[int, int]] | None = None
    """(last version that names it, number) of values that only the history still names."""
    queue: Any = None
    """The TimeQueue that has the slot's live entry; None while it waits for no time."""


class FlowTable:
    """(partition key, id) → slot.

    The first level is keyed by id alone; where several partitions have that id, its entry is a
    dict by partition key. So a read without a partition needs no second index.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Slot | dict[str | None, Slot]] = {}
        self._size = 0

    def get(self, partition_key: str | None, flow_id: str) -> Slot | None:
        """Return the flow's slot."""
        entry = self._by_id.get(flow_id)
        if entry is None:
            return None
        if isinstance(entry, Slot):
            record = entry.record
            if record is not None and record.partition_key == partition_key:
                return entry
            return None
        return entry.get(partition_key)

    def of_id(self, flow_id: str) -> list[Slot]:
        """Return the slots of every partition that has this id."""
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
                assert entry.record is not None
                entry = {entry.record.partition_key: entry}
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
        else:
            del self._by_id[flow_id]
        self._size -= 1

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Slot]:
        for entry in self._by_id.values():
            if isinstance(entry, dict):
                yield from entry.values()
            else:
                yield entry
