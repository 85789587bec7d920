"""Flows of a type in order of their last change: built by the first listing, then kept up."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from ..order import cursor_of
from ..queries import Cursor
from ..record import Record
from .table import FlowTable, Slot

_Entry = tuple[Cursor, int, Slot]
"""Sort key, version, slot; stale when the slot has another version."""

_BACKLOG_MIN = 10_000
"""Changes since the last listing, beyond the listing's own size, that drop it again."""


class Listing:
    """One sorted list per type that was ever listed.

    A type that nobody lists costs nothing. Changes are noted in a backlog and merged by the next
    listing (a sort of two runs, O(n)); a backlog that outgrows the list drops both.
    """

    def __init__(self) -> None:
        self._sorted: dict[str, list[_Entry]] = {}
        self._backlog: dict[str, list[_Entry]] = {}
        self._gone: dict[str, int] = {}
        """How many flows of a list have gone since it was last sorted."""
        self.is_used = False
        """Whether any type is listed, so that changes have to be noted."""

    def note(self, slot: Slot, record: Record) -> None:
        """Take in a slot's new record, if its type is listed at all."""
        backlog = self._backlog.get(record.type)
        if backlog is None:
            return
        backlog.append((cursor_of(record), record.version, slot))
        if len(backlog) > len(self._sorted[record.type]) + _BACKLOG_MIN:
            self._drop(record.type)

    def forget(self, flow_type: str) -> None:
        """Take in that a flow is gone: a list that most flows have left is dropped."""
        entries = self._sorted.get(flow_type)
        if entries is None:
            return
        self._gone[flow_type] = gone = self._gone.get(flow_type, 0) + 1
        if 2 * gone > len(entries) + _BACKLOG_MIN:
            self._drop(flow_type)

    def _drop(self, flow_type: str) -> None:
        del self._sorted[flow_type], self._backlog[flow_type]
        self._gone.pop(flow_type, None)
        self.is_used = bool(self._sorted)

    def walk(
        self, table: FlowTable, flow_type: str, after: Cursor | None, *, reverse: bool
    ) -> Iterator[Record]:
        """Return records in (updated_at_ms, id, partition) order, beyond `after`."""
        entries = self._settled(table, flow_type)
        if reverse:
            end = len(entries) if after is None else bisect_left(entries, after, key=_key)
            indexes = range(end - 1, -1, -1)
        else:
            start = 0 if after is None else bisect_right(entries, after, key=_key)
            indexes = range(start, len(entries))
        for index in indexes:
            _, version, slot = entries[index]
            if slot.version == version and (record := slot.record) is not None:
                yield record

    def _settled(self, table: FlowTable, flow_type: str) -> list[_Entry]:
        entries = self._sorted.get(flow_type)
        if entries is None:
            entries = [
                (cursor_of(record), record.version, slot)
                for slot in table
                if (record := slot.record) is not None and record.type == flow_type
            ]
        elif backlog := self._backlog[flow_type]:
            entries = [entry for entry in (*entries, *backlog) if _is_live(entry)]
        else:
            return entries
        entries.sort(key=_key)
        self._sorted[flow_type] = entries
        self._backlog[flow_type] = []
        self._gone.pop(flow_type, None)
        self.is_used = True
        return entries


def _key(entry: _Entry) -> Cursor:
    return entry[0]


def _is_live(entry: _Entry) -> bool:
    return entry[2].version == entry[1]
