"""The order of listings: by last change, then by id and partition."""

from __future__ import annotations

from .queries import Cursor
from .record import Record


def cursor_of(record: Record) -> Cursor:
    """Return a record's place in a listing."""
    return record.updated_at_ms, record.id, record.partition_key or ""


def is_beyond(record: Record, place: Cursor | None, *, reverse: bool = False) -> bool:
    """Whether a record is listed after a place; if there is none, every one is."""
    if place is None:
        return True
    return cursor_of(record) < place if reverse else cursor_of(record) > place
