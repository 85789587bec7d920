"""Structs to bytes and back: log entries, and the public form of a record."""

from __future__ import annotations

import msgspec

from .events import Entry, Outline
from .record import FlowRecord, Record

encoder = msgspec.msgpack.Encoder()
decode_entry = msgspec.msgpack.Decoder(Entry).decode
decode_outline = msgspec.msgpack.Decoder(Outline).decode
decode_record = msgspec.msgpack.Decoder(Record).decode


def public(record: Record) -> FlowRecord:
    """Return a record in the form that callers get, without values."""
    return FlowRecord(*msgspec.structs.astuple(record))
