"""What a shard answers. A refusal is a value; it becomes an exception at the SDK's edge only."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct

from .errors import Refused
from .family import Begun, Busy, Outbound
from .queries import Cursor
from .record import HistoryEvent, Record


class Values(Struct, array_like=True, frozen=True, gc=False):
    """The values read for one record, packed; an omitted one is None and named in `omitted`."""

    payload: bytes | None = None
    result: bytes | None = None
    error: bytes | None = None
    named: dict[str, bytes] | None = None
    omitted: list[str] | None = None


class Done(Struct, array_like=True, frozen=True, tag_field="op", tag=1, gc=False):
    """The records of a write, a claim or a listing, in the order of the request's items.

    An outcome is a Record or a Refused.
    """

    outcomes: list[Any]
    values: list[Values | None] | None = None
    """As long as outcomes, or None when no values were asked for."""
    cursor: Cursor | None = None
    applied: bool = True
    """False: the group was refused whole, nothing was written."""


class Packed(Struct, array_like=True, frozen=True, tag_field="op", tag=1, gc=False):
    """`Done`, as a shard process sends it: the records are the very bytes of the log."""

    outcomes: Raw
    values: list[Values | None] | None = None
    cursor: Cursor | None = None
    applied: bool = True


class Rejected(Struct, array_like=True, frozen=True, tag_field="op", tag=2, gc=False):
    """The whole request was refused."""

    refused: Refused


class Events(Struct, array_like=True, frozen=True, tag_field="op", tag=3, gc=False):
    """A history, in the order asked for. None = no such flow here."""

    events: list[HistoryEvent] | None
    values: list[Values | None] | None = None
    partition_key: str | None = None
    """Where the flow was found."""


class Data(Struct, array_like=True, frozen=True, tag_field="op", tag=4, gc=False):
    """Plain data: counts, policies, values, statistics."""

    data: Any


class Heads(Struct, array_like=True, frozen=True, tag_field="op", tag=5, gc=False):
    """What a claim would find: sort keys of due flows and deadlines of expired leases."""

    due: list[tuple[int, int, int]]
    """(-priority, next_run_at_ms, state_seq), best first."""
    expired: list[int]
    """Deadlines, oldest first."""
    next_at_ms: int | None
    """When something may become due next; None = nothing in sight."""


Reply = Done | Rejected | Events | Data | Heads | Begun | Busy | Outbound


def reject(code: str, message: str, **fields: Any) -> Rejected:
    """Build the refusal of a whole request."""
    return Rejected(Refused(code, message, fields))


Outcome = Record | Refused
