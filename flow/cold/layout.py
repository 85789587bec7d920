"""Keys and rows as they lie in LMDB. Pure; docs/cold.md has the tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from struct import Struct as Layout
from typing import NamedTuple
from zlib import crc32

from ..codec import decode_record
from ..index.cold import ListKind
from ..limits import COLD_ID_BYTES
from ..queries import Cursor
from ..record import Record

PLACE_BYTES = 12
"""A position, as flow/log/position.py packs it; nothing here looks into it."""
Spent = Sequence[tuple[int, int]]

_HASH_BYTES = 8
_NO_PARTITION = bytes(_HASH_BYTES)
_HEAD = Layout("<III")
_PLACE = Layout(f"<{PLACE_BYTES}sI")
_SPENT = Layout("<QQ")
_NUMBER = Layout(">Q")
_COUNT = Layout("<Q")
pack_number = _NUMBER.pack
"""pack_number(n) → 8 bytes that sort as the numbers do: keys of rows and of values."""


class Row(NamedTuple):
    """What is kept of a cold flow."""

    record: Record
    packed: bytes
    trail: bytes
    spent: list[tuple[int, int]]


class BadRow(Exception):
    """A row is not what was written."""


def pack_row(row: int, packed: bytes, trail: bytes, spent: Spent | None) -> bytes:
    """Return a row's bytes: CRC, lengths, trail, spent values, record."""
    size, count = len(trail), 0
    body = trail + packed
    if spent:
        count = len(spent)
        body = b"".join((trail, *(_SPENT.pack(*entry) for entry in spent), packed))
    return _HEAD.pack(crc32(body, _seed(row, size, count)), size, count) + body


def read_row(row: int, data: bytes) -> Row:
    """Return what a row holds.

    Raises:
        BadRow: it is damaged, or another one's.
    """
    if len(data) < _HEAD.size:
        raise BadRow
    crc, trail_bytes, count = _HEAD.unpack_from(data)
    if crc32(memoryview(data)[_HEAD.size :], _seed(row, trail_bytes, count)) != crc:
        raise BadRow
    at = _HEAD.size + trail_bytes
    end = at + count * _SPENT.size
    packed = data[end:]
    spent = list(_SPENT.iter_unpack(data[at:end])) if count else []
    return Row(decode_record(packed), packed, data[_HEAD.size : at], spent)


def _seed(row: int, trail_bytes: int, count: int) -> int:
    """A row in another one's place, or cut elsewhere, is damage as well."""
    return row * 0x9E3779B1 + trail_bytes * 0x85EBCA77 + count & 0xFFFFFFFF


# ---- values ----


def pack_place(number: int, place: bytes) -> bytes:
    """Return what is kept of a value: where it lies, and a CRC."""
    return _PLACE.pack(place, crc32(place, number & 0xFFFFFFFF))


def read_place(number: int, data: bytes) -> bytes:
    """Return where a value lies.

    Raises:
        BadRow: it is damaged.
    """
    place = data[:PLACE_BYTES]
    if data != pack_place(number, place):
        raise BadRow
    return place


# ---- by identity ----


def hash_of(text: str) -> bytes:
    """Return 8 bytes of a name, whatever its length (BLAKE2b, RFC 7693)."""
    return blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


def identity_prefix(partition_key: str | None, flow_id: str) -> bytes:
    """Return how the keys of a flow begin; others may begin so too, so the row decides."""
    name = blake2b(flow_id.encode(), digest_size=_HASH_BYTES).digest()
    return name + (_NO_PARTITION if partition_key is None else partition_hash(partition_key))


@lru_cache(1_024)
def partition_hash(partition_key: str) -> bytes:
    """Return 8 bytes of a partition key: the same few keys come over and over."""
    return hash_of(partition_key)


def row_of(key: bytes) -> int:
    """Return the row that a key of an index ends with."""
    return int.from_bytes(key[-8:], "big")


def former_key(tag: int, row_key: bytes) -> bytes:
    """Return the key of a row that was deleted while `tag` was the highest number of a state."""
    return pack_number(tag) + row_key


def tag_of(key: bytes) -> int:
    """Return the tag that such a key begins with."""
    return int.from_bytes(key[:8], "big")


# ---- listings ----


@lru_cache(4_096)
def group_of(kind: ListKind, state: str, name: str) -> bytes:
    """Return how the keys of one listing begin: a type's or a family's flows that ended so."""
    return hash_of(f"{kind} {state} {name}")


def groups_of(record: Record) -> Iterator[bytes]:
    """Return the listings that a flow is in, other than its type's."""
    extras, state = record.extras, record.state
    if extras is None:
        return
    if extras.parent_flow_id is not None:
        yield group_of("parent", state, extras.parent_flow_id)
    if extras.root_flow_id is not None and extras.root_flow_id != record.id:
        yield group_of("root", state, extras.root_flow_id)
    if extras.correlation_id is not None:
        yield group_of("correlation", state, extras.correlation_id)


def is_member(record: Record, kind: ListKind, name: str) -> bool:
    """Whether a flow is in a listing: another one's keys may begin alike."""
    if kind == "type":
        return record.type == name
    extras = record.extras
    if extras is None:
        return False
    if kind == "root":
        return extras.root_flow_id == name and record.id != name
    return name == (extras.parent_flow_id if kind == "parent" else extras.correlation_id)


def place_in_list(updated_at_ms: int, flow_id: str) -> bytes:
    """Return how a key goes on behind its group: time, and the beginning of the id.

    Flows with equal ones are a knot: which of them comes first, only their rows tell. A zero ends
    the beginning of the id, so that "a" comes before "ab"; an id that has a zero is cut there.
    """
    name = flow_id.encode()
    if len(name) > COLD_ID_BYTES or b"\0" in name:
        name = name[:COLD_ID_BYTES].partition(b"\0")[0]
    return _NUMBER.pack(updated_at_ms) + name + b"\0"


def knot_of(key: bytes) -> bytes:
    """Return the part of a key of a listing that its knot has in common."""
    return key[:-8]


def seek_key(group: bytes, after: Cursor | None, *, reverse: bool) -> bytes:
    """Return where a walk begins: at the knot of `after`, or in reverse, behind it."""
    if after is None:
        return _next(group) if reverse else group
    place = group + place_in_list(after[0], after[1])
    return _next(place) if reverse else place


def _next(prefix: bytes) -> bytes:
    """Return the first key behind all that begin so."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\xff" * 32


def expiry_key(record: Record, row_key: bytes) -> bytes:
    """Return the key of a row in the order in which retentions end."""
    assert record.expires_at_ms is not None, "only ended flows are cold"
    return _NUMBER.pack(record.expires_at_ms) + row_key


# ---- counts ----


def count_key(flow_type: str, state: str) -> bytes:
    """Return the key of a count: too long a hash for two types to share one."""
    return blake2b(f"{state} {flow_type}".encode(), digest_size=24).digest()


def pack_count(count: int, flow_type: str, state: str) -> bytes:
    """Return a count with what it counts, and a CRC."""
    body = _COUNT.pack(count) + f"{state} {flow_type}".encode()
    return crc32(body).to_bytes(4, "little") + body


def read_count(data: bytes) -> tuple[str, str, int]:
    """Return type, state and count.

    Raises:
        BadRow: it is damaged.
    """
    if len(data) < 4 + _COUNT.size or crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise BadRow
    (count,) = _COUNT.unpack_from(data, 4)
    state, _, flow_type = data[4 + _COUNT.size :].decode().partition(" ")
    return flow_type, state, count


def repointed(
    row: int, data: bytes, moves: Iterable[tuple[bytes, bytes]]
) -> tuple[bytes, set[bytes]]:
    """Return a row's bytes with places of its trail changed, and the old places that it had.

    Raises:
        BadRow: it is damaged.
    """
    found = read_row(row, data)
    places = [found.trail[at : at + PLACE_BYTES] for at in range(0, len(found.trail), PLACE_BYTES)]
    have = {place: index for index, place in enumerate(places)}
    moved: set[bytes] = set()
    for old, new in moves:
        index = have.get(old)
        if index is not None:
            places[index] = new
            moved.add(old)
    return pack_row(row, found.packed, b"".join(places), found.spent), moved
