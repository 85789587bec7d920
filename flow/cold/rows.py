"""Cold flows as they are read: found, listed, by the end of their retention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import groupby, islice

import lmdb

from ..index.cold import ColdSlot, ListKind
from ..limits import COLD_REMAP_ROWS
from ..order import cursor_of, is_beyond
from ..queries import Cursor
from ..record import TERMINAL_STATES, Record
from .changes import Counts
from .environment import Environment
from .layout import (
    BadRow,
    Row,
    group_of,
    hash_of,
    identity_prefix,
    is_member,
    knot_of,
    pack_number,
    read_row,
    row_of,
    seek_key,
)

_EVERY_STATE = tuple(sorted(TERMINAL_STATES))
_KEYS_MIN = 8
"""Keys that a walk reads first; then four times as many each time."""


class Rows:
    """The rows that are not hidden. Whatever is wrong with one ends the shard's process."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._gone: dict[int, ColdSlot] = {}
        """Rows that are hidden, and wait for the next transaction."""
        self._gone_values: set[int] = set()
        self._slots: dict[int, ColdSlot] = {}
        """What this step has looked at, by row..."""
        self._identified: dict[tuple[str | None, str], ColdSlot] = {}
        """...and by partition and id: what is removed is looked up several times."""
        self._expiry: int | None = None
        self._is_expiry_known = False
        self._touched = 0
        try:
            self.counts = Counts.load(env)
        except (BadRow, lmdb.Error) as error:
            raise env.damaged(f"the counts cannot be read: {error!r}") from error
        self.rows = self.counts.total
        size = env.size("rows")
        if size != self.rows:
            raise env.damaged(f"{self.rows} rows are counted, and there are {size}")

    # ---- finding ----

    def find(self, partition_key: str | None, flow_id: str) -> ColdSlot | None:
        """Return a flow; the same object until the step ends."""
        slot = self._identified.get((partition_key, flow_id))
        if slot is not None:
            return slot
        prefix = identity_prefix(partition_key, flow_id)
        self._touch(1)
        try:
            cursor = self._env.cursor("ids")
            if not cursor.set_range(prefix):
                return None
            key = cursor.key()
            if not key.startswith(prefix):
                return None
            keys = [key]
            while cursor.next() and (key := cursor.key()).startswith(prefix):
                keys.append(key)
        except lmdb.Error as error:
            raise self._env.damaged(str(error)) from error
        for key in keys:
            slot = self._slot(row_of(key))
            if slot is not None:
                record: Record = slot.held
                if record.id == flow_id and record.partition_key == partition_key:
                    return slot
        return None

    def of_id(self, flow_id: str) -> list[ColdSlot]:
        """Return the flows of every partition that have this id."""
        if not self.rows:
            return []
        prefix = hash_of(flow_id)
        found = (self._slot(row_of(key)) for key in self._keys("ids", prefix, prefix))
        return [slot for slot in found if slot is not None and slot.held.id == flow_id]

    def _slot(self, row: int) -> ColdSlot | None:
        """Return what a row holds; None if it is hidden."""
        if row in self._gone:
            return None
        slot = self._slots.get(row)
        if slot is None:
            found = self.read(row)
            version = found.record.version
            slot = ColdSlot(found.record, version, found.trail, found.spent or None, None, row)
            self._slots[row] = self._identified[found.record.partition_key, found.record.id] = slot
        return slot

    def _forget(self) -> None:
        """Look at rows anew."""
        self._slots.clear()
        self._identified.clear()

    def _forget_one(self, row: int, record: Record) -> None:
        if self._slots.pop(row, None) is not None:
            del self._identified[record.partition_key, record.id]

    def _record(self, row: int) -> Record | None:
        """Return a flow that nobody looks at again; None if its row is hidden."""
        return None if row in self._gone else self.read(row).record

    def read(self, row: int) -> Row:
        """Return what a row holds that an index names."""
        self._touch(1)
        data = self._env.get("rows", pack_number(row))
        if data is None:
            raise self._env.damaged(f"row {row} is missing")
        try:
            return read_row(row, data)
        except BadRow:
            raise self._env.damaged(f"row {row} is damaged") from None

    def _keys(
        self, name: str, start: bytes, prefix: bytes, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Return the keys of an index with a prefix, from `start` on; in reverse, those before.

        Some are read at a time, so that whoever goes through all of them can unmap pages.
        """
        size = _KEYS_MIN
        while True:
            keys = self._keys_from(name, start, size, reverse)
            for key in keys:
                if not key.startswith(prefix):
                    return
                yield key
            if len(keys) < size:
                return
            start = keys[-1] if reverse else keys[-1] + b"\0"
            size = min(4 * size, COLD_REMAP_ROWS)

    def _keys_from(self, name: str, start: bytes, size: int, reverse: bool) -> list[bytes]:
        try:
            cursor = self._env.scan(name)
            is_found = cursor.set_range(start)
            if reverse:
                is_found = cursor.prev() if is_found else cursor.last()
            steps = cursor.iterprev if reverse else cursor.iternext
            return list(islice(steps(keys=True, values=False), size)) if is_found else []
        except lmdb.Error as error:
            raise self._env.damaged(str(error)) from error

    # ---- listing ----

    def walk(
        self,
        kind: ListKind,
        name: str,
        states: Iterable[str] | None,
        after: Cursor | None,
        *,
        reverse: bool = False,
    ) -> Iterator[Record]:
        """Return flows in (updated_at_ms, id, partition) order, beyond `after`."""
        wanted = _EVERY_STATE if states is None else [s for s in _EVERY_STATE if s in states]
        walks = [self._walk(kind, name, state, after, reverse) for state in wanted if self.rows]
        return walks[0] if len(walks) == 1 else merge(*walks, key=cursor_of, reverse=reverse)

    def _walk(
        self, kind: ListKind, name: str, state: str, after: Cursor | None, reverse: bool
    ) -> Iterator[Record]:
        group = group_of(kind, state, name)
        keys = self._keys("lists", seek_key(group, after, reverse=reverse), group, reverse=reverse)
        for _, knot in groupby(keys, key=knot_of):
            records = [
                record
                for key in knot
                if (record := self._record(row_of(key))) is not None
                and record.state == state
                and is_member(record, kind, name)
            ]
            if len(records) > 1:
                records.sort(key=cursor_of, reverse=reverse)
            for record in records:
                if is_beyond(record, after, reverse=reverse):
                    yield record

    def count(self, flow_type: str, state: str) -> int:
        """Return how many flows of a type have ended so."""
        return self.counts.of[flow_type, state]

    # ---- retention ----

    def next_expiry_ms(self) -> int | None:
        """Return when the first flow is past its retention."""
        if not self._is_expiry_known:
            first = next(self._by_expiry(), None) if self.rows else None
            self._expiry = None if first is None else int.from_bytes(first[:8], "big")
            self._is_expiry_known = True
        return self._expiry

    def expired(self, now_ms: int, limit: int) -> list[ColdSlot]:
        """Return flows that are past their retention, those first that have been so for longest."""
        found: list[ColdSlot] = []
        for key in self._by_expiry():
            at_ms = int.from_bytes(key[:8], "big")
            if len(found) == limit or at_ms > now_ms:
                break
            slot = self._slot(row_of(key))
            assert slot is not None
            if slot.held.expires_at_ms != at_ms:
                raise self._env.damaged(f"row {slot.row} is named with another time than its own")
            found.append(slot)
        return found

    def _by_expiry(self) -> Iterator[bytes]:
        return (key for key in self._keys("expiry", b"", b"") if row_of(key) not in self._gone)

    # ---- checks ----

    def is_hidden(self, row: int) -> bool:
        """Whether a row has been let go of, and waits for the next transaction."""
        return row in self._gone

    def slots(self) -> Iterator[ColdSlot]:
        """Return every flow, for checks."""
        for key in self._keys("rows", b"", b""):
            slot = self._slot(row_of(key))
            if slot is not None:
                yield slot

    def _touch(self, count: int) -> None:
        """Count look-ups; after so many, the pages that they touched are given back."""
        self._touched += count
        if self._touched >= COLD_REMAP_ROWS:
            self._touched = 0
            self._env.remap()
