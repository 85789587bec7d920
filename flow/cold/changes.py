"""Rows with all that belongs to them, put and deleted; and the counts of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..record import Record, numbers_of
from .environment import Environment, Writing
from .layout import (
    PLACE_BYTES,
    Spent,
    count_key,
    expiry_key,
    former_key,
    group_of,
    groups_of,
    identity_prefix,
    pack_count,
    pack_number,
    pack_place,
    pack_row,
    place_in_list,
    read_count,
)

_EMPTY = b""
_NO_PLACE = bytes(PLACE_BYTES)


class Leaving(NamedTuple):
    """A flow that is to become cold."""

    record: Record
    packed: bytes
    trail: bytes
    spent: list[tuple[int, int]] | None
    values: list[tuple[int, bytes]]
    """number, packed position: all that the flow owns."""


def put_rows(leaving: Sequence[Leaving], first: int) -> Callable[[Writing], None]:
    """Return what puts rows into a transaction, numbered from `first` on."""
    # The hot loop of projecting: once per flow that has ended.
    rows: list[tuple[bytes, bytes]] = []
    ids: list[tuple[bytes, bytes]] = []
    lists: list[tuple[bytes, bytes]] = []
    expiry: list[tuple[bytes, bytes]] = []
    values: list[tuple[bytes, bytes]] = []
    for row, (record, packed, trail, spent, places) in enumerate(leaving, first):
        key = pack_number(row)
        rows.append((key, pack_row(row, packed, trail, spent)))
        ids.append((identity_prefix(record.partition_key, record.id) + key, _EMPTY))
        place_in = place_in_list(record.updated_at_ms, record.id) + key
        lists.append((group_of("type", record.state, record.type) + place_in, _EMPTY))
        if record.extras is not None:
            lists += [(group + place_in, _EMPTY) for group in groups_of(record)]
        expiry.append((pack_number(record.expires_at_ms) + key, _EMPTY))
        for number, place in places:
            values.append((pack_number(number), pack_place(number, place)))
    ids.sort()
    lists.sort()
    expiry.sort()
    values.sort()

    def put(writing: Writing) -> None:
        writing.put_all("rows", rows)
        writing.put_all("ids", ids)
        writing.put_all("lists", lists)
        writing.put_all("expiry", expiry)
        writing.put_all("values", values)

    return put


def list_keys(record: Record, row_key: bytes) -> list[bytes]:
    """Return the keys of a row in all listings."""
    place = place_in_list(record.updated_at_ms, record.id) + row_key
    keys = [group_of("type", record.state, record.type) + place]
    if record.extras is not None:
        keys += [group + place for group in groups_of(record)]
    return keys


def delete_row(
    writing: Writing, row: int, record: Record, spent: Spent | None, *, tag: int | None
) -> bool:
    """Delete a row with all that belongs to it; return whether all of that was there.

    `tag`: what it takes to bring it back is kept, under this number; None = it is not.
    """
    key = pack_number(row)
    numbers = numbers_of(record, spent)
    if tag is not None:
        places = [writing.get("values", pack_number(number)) for number in numbers]
        found = b"".join(p[:PLACE_BYTES] if p else _NO_PLACE for p in places)
        data = writing.get("rows", key) or b""
        kept = former_key(tag, key)
        writing.put("former", kept, len(found).to_bytes(4, "little") + found + data)
    is_whole = writing.delete("rows", key)
    is_whole &= writing.delete(
        "ids", identity_prefix(record.partition_key, record.id) + key
    ) and writing.delete("expiry", expiry_key(record, key))
    for list_key in list_keys(record, key):
        is_whole &= writing.delete("lists", list_key)
    for number in numbers:
        writing.delete("values", pack_number(number))
    return is_whole


def read_former(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return the bytes of a row that was deleted, and the places of its values."""
    size = int.from_bytes(data[:4], "little")
    found = data[4 : 4 + size]
    return data[4 + size :], [found[at : at + PLACE_BYTES] for at in range(0, size, PLACE_BYTES)]


class Counts:
    """How many flows of each type have ended how, and which counts a transaction has to note."""

    def __init__(self) -> None:
        self.of: Counter[tuple[str, str]] = Counter()
        self._changed: set[tuple[str, str]] = set()

    @staticmethod
    def load(env: Environment) -> Counts:
        """Read the counts back.

        Raises:
            BadRow: one is damaged.
        """
        counts = Counts()
        for data in env.scan("counts").iternext(keys=False, values=True):
            flow_type, state, count = read_count(data)
            counts.of[flow_type, state] = count
        return counts

    @property
    def total(self) -> int:
        """All flows."""
        return self.of.total()

    def add(self, flow_type: str, state: str, count: int) -> None:
        """Count flows that came or went."""
        self.of[flow_type, state] += count
        self._changed.add((flow_type, state))

    def write(self, writing: Writing) -> None:
        """Note what has changed."""
        for flow_type, state in self._changed:
            key, count = count_key(flow_type, state), self.of[flow_type, state]
            if count:
                writing.put("counts", key, pack_count(count, flow_type, state))
            else:
                writing.delete("counts", key)

    def settle(self) -> None:
        """What has changed is noted; a type that is gone costs nothing."""
        for key in self._changed:
            if not self.of[key]:
                del self.of[key]
        self._changed.clear()
