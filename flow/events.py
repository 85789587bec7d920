"""The logged facts, beside the record itself: what recovery reads back, last writer wins."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from .record import Record


class ValueStored(Struct, array_like=True, frozen=True, tag_field="op", tag=2, gc=False):
    """A value's bytes, apart from any record."""

    number: int
    crc: int
    """CRC-32 of data: a value is read alone, without its frame's checksum."""
    data: bytes


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


Fact = PolicyStored | Dropped
Entry = Record | ValueStored | PolicyStored | Dropped
