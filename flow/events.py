"""The logged facts, beside the record itself: what recovery reads back, last writer wins."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from .commands import NewFlow
from .family import Kin, Post
from .record import Record


class ValueStored(Struct, array_like=True, frozen=True, tag_field="op", tag=2, gc=False):
    """A value's bytes, apart from any record."""

    number: int
    crc: int
    """CRC-32 of data: a value is read alone, without its frame's checksum."""
    data: bytes


class RecordKey(Struct, array_like=True, frozen=True, tag_field="op", tag=1, gc=False):
    """Whose record an entry is: what a merge reads of it."""

    id: str
    partition_key: str | None


class ValueKey(Struct, array_like=True, frozen=True, tag_field="op", tag=2, gc=False):
    """Which value an entry is, without its bytes."""

    number: int


class PolicyStored(Struct, array_like=True, frozen=True, tag_field="op", tag=3, gc=False):
    """A type's whole policy after a change."""

    type: str
    policy: dict[str, Any]
    generation: int


class Dropped(Struct, array_like=True, frozen=True, tag_field="op", tag=4, gc=False):
    """A flow is gone, with its history and the values listed."""

    id: str
    partition_key: str | None
    values: list[int]
    first: int = 0
    """The segment that the flow's first record was written to; 0 = not known any more."""


class Trimmed(Struct, array_like=True, frozen=True, tag_field="op", tag=10, gc=False):
    """Values are gone that only events named which no history has any more."""

    values: list[int]
    first: int = 0
    """The first segment that one of them may lie in, or in what has taken its place."""


class Prepared(Struct, array_like=True, frozen=True, tag_field="op", tag=5, gc=False):
    """Children of a fan-out that are kept until its outcome is known."""

    txn: str
    coordinator: int
    kin: Kin
    children: list[NewFlow]
    at_ms: int
    created_ms: int | None = None


class Unprepared(Struct, array_like=True, frozen=True, tag_field="op", tag=6, gc=False):
    """The outcome of prepared children is known: their records stand beside, or they are gone."""

    txn: str


class Posted(Struct, array_like=True, frozen=True, tag_field="op", tag=7, gc=False):
    """A post to another shard (or, for what one command cannot hold, to this one)."""

    dest: int
    number: int
    post: Post


class Received(Struct, array_like=True, frozen=True, tag_field="op", tag=8, gc=False):
    """All posts of a source up to this number are applied here."""

    source: int
    number: int


class Delivered(Struct, array_like=True, frozen=True, tag_field="op", tag=9, gc=False):
    """All posts to a destination up to this number are applied there, and forgotten here."""

    dest: int
    number: int


Fact = PolicyStored | Prepared | Unprepared | Posted | Received
"""What a decision stages beside records, values and drops."""
FAMILY_FACTS = Prepared | Unprepared | Posted | Received
"""Facts that other shards rely on: their frame is synced, under relaxed durability as well."""
Entry = (
    Record
    | ValueStored
    | PolicyStored
    | Dropped
    | Trimmed
    | Prepared
    | Unprepared
    | Posted
    | Received
    | Delivered
)
Outline = (
    RecordKey
    | ValueKey
    | PolicyStored
    | Dropped
    | Trimmed
    | Prepared
    | Unprepared
    | Posted
    | Received
    | Delivered
)
"""An entry, of which only as much is read as tells who names it."""
