"""The record: a flow's latest state, and the event that led to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct

RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
TERMINAL_STATES: Final = frozenset((COMPLETED, FAILED, CANCELLED))

AttributeValue = str | int | float | bool | None


class NamedValue(Struct, array_like=True, frozen=True, gc=False):
    """Where a named value lies, and a digest of its bytes, so that a repeat is seen unread."""

    number: int
    size: int
    digest: bytes


class ChildGroup(Struct, array_like=True, frozen=True, gc=False):
    """Children that were spawned together, and what became of them: true to the end."""

    wait: str
    """all, any or none."""
    status: str
    """open, success or failure: a group resolves once."""
    total: int
    completed: int
    failed: int
    cancelled: int
    wait_state: str | None
    """Where the parent waits for it."""
    success: str | None
    """Where a waiting parent goes when it resolves well; likewise `failure`."""
    failure: str | None
    on_child_failed: str
    on_parent_closed: str
    shards: list[int]
    """The shards that the children are on."""
    digest: bytes
    """Of the children as the caller gave them."""
    seq: int
    """Tells it from a group of the same name of an earlier flow with the parent's id."""
    cancels: bool = False
    """Whether its open children are being cancelled."""

    @property
    def open_count(self) -> int:
        """How many children have not ended yet."""
        return self.total - self.completed - self.failed - self.cancelled


class Extras(Struct, array_like=True, frozen=True, gc=False):
    """What most flows do not have: kept apart, so that those that lack it pay one pointer."""

    parent_flow_id: str | None = None
    parent_partition_key: str | None = None
    root_flow_id: str | None = None
    correlation_id: str | None = None
    attributes: dict[str, AttributeValue] | None = None
    values: dict[str, NamedValue] | None = None
    retention_ttl_ms: int | None = None
    max_active_ms: int | None = None
    history_max_events: int | None = None
    group_id: str | None = None
    """The group of its parent that it was spawned in; None for a flow that merely names one."""
    group_seq: int = 0
    """Tells that group from one of the same name, of a later flow with the parent's id."""
    depth: int = 0
    """How many ancestors it has, by groups."""
    groups: dict[str, ChildGroup] | None = None
    """Its own children's groups."""


NO_EXTRAS: Final = Extras()


class Record(Struct, array_like=True, frozen=True, gc=False, tag_field="op", tag=1):
    """A flow after one change. These are the bytes of the log and of every answer.

    New fields go last and have a default: then a log written before them still reads.
    """

    id: str
    partition_key: str | None
    """None when the user gave none: the shard then follows from the id."""
    type: str
    state: str
    """`running` while leased; else the logical state."""
    run_state: str | None
    """The logical state of a leased flow; None otherwise."""
    version: int
    """1 at creation, + 1 with each applied write."""
    fencing_token: int
    """Grows when a lease is granted or taken away; a stale holder's token is lower."""
    attempts: int
    """Retries charged in this logical state."""
    reclaims: int
    """Expired leases taken over in this logical state."""
    priority: int
    created_at_ms: int
    updated_at_ms: int
    next_run_at_ms: int | None
    """When it becomes, or became, claimable; NEVER when parked; None when ended or waiting."""
    state_seq: int
    """Order of entering the logical state; settles ties between equal due times."""
    lease_owner: str | None = None
    lease_token: str | None = None
    lease_deadline_ms: int | None = None
    payload_number: int | None = None
    payload_size: int = 0
    result_number: int | None = None
    result_size: int = 0
    error_number: int | None = None
    error_size: int = 0
    expires_at_ms: int | None = None
    """Set when ended: from then on the flow is absent."""
    settled: str | None = None
    """The last command that used up a lease, with its tokens: how a repeat is recognised."""
    digest: bytes = b""
    """Of the creation arguments, for idempotent creation."""
    event: str = ""
    event_from: str | None = None
    """The logical state before."""
    event_worker: str | None = None
    event_details: dict[str, Any] | None = None
    extras: Extras | None = None

    @property
    def logical_state(self) -> str:
        """The state that the flow is in, leased or not."""
        return self.run_state or self.state

    @property
    def is_terminal(self) -> bool:
        """Whether the flow has ended."""
        return self.state in TERMINAL_STATES

    @property
    def is_leased(self) -> bool:
        """Whether a worker holds it (the lease may have expired)."""
        return self.state == RUNNING

    @property
    def payload_ref(self) -> str | None:
        """What `flow_value_mget` takes to read the payload."""
        return value_ref(self.payload_number)

    @property
    def result_ref(self) -> str | None:
        """What `flow_value_mget` takes to read the result."""
        return value_ref(self.result_number)

    @property
    def error_ref(self) -> str | None:
        """What `flow_value_mget` takes to read the error."""
        return value_ref(self.error_number)

    @property
    def value_refs(self) -> dict[str, str]:
        """Named values: name to reference."""
        named = (self.extras or NO_EXTRAS).values or {}
        return {name: f"v{value.number:x}" for name, value in named.items()}

    @property
    def parent_flow_id(self) -> str | None:
        """The flow that spawned this one."""
        return (self.extras or NO_EXTRAS).parent_flow_id

    @property
    def parent_partition_key(self) -> str | None:
        """The parent's partition key."""
        return (self.extras or NO_EXTRAS).parent_partition_key

    @property
    def root_flow_id(self) -> str:
        """The top of its tree; its own id when it has no parent."""
        return (self.extras or NO_EXTRAS).root_flow_id or self.id

    @property
    def correlation_id(self) -> str | None:
        """The application's own key that ties flows together."""
        return (self.extras or NO_EXTRAS).correlation_id

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """Small queryable facts."""
        return (self.extras or NO_EXTRAS).attributes or {}

    @property
    def retention_ttl_ms(self) -> int | None:
        """How long it is kept after its end; None = the policy's or the store's default."""
        return (self.extras or NO_EXTRAS).retention_ttl_ms

    @property
    def max_active_ms(self) -> int | None:
        """How long after creation it may stay active."""
        return (self.extras or NO_EXTRAS).max_active_ms

    @property
    def child_groups(self) -> dict[str, ChildGroup]:
        """The groups of children that it has spawned: group_id to its state and counters."""
        return (self.extras or NO_EXTRAS).groups or {}

    @property
    def history_max_events(self) -> int | None:
        """How many of its newest events are kept; None = the default."""
        return (self.extras or NO_EXTRAS).history_max_events


class FlowRecord(Record, frozen=True, array_like=True, gc=False, tag_field="op", tag=1):
    """What callers get: the record, and the values that the command asked to be read.

    `payload`, `result`, `error` and `values` are filled in only on request. A value larger than
    the cap of the request reads None, with its `*_omitted` flag set and its size and ref kept.

    The garbage collector does not walk it (a tenth of a batch client's time): a cycle through a
    record, possible only for who puts a record into its own payload, would not be collected.
    """

    payload: Any = None
    payload_omitted: bool = False
    result: Any = None
    result_omitted: bool = False
    error: Any = None
    error_omitted: bool = False
    values: dict[str, Any] = {}


def value_ref(number: int | None) -> str | None:
    """Return the public name of a value."""
    return None if number is None else f"v{number:x}"


def value_numbers(record: Record) -> Iterator[int]:
    """Return the numbers of the values that a record names."""
    for number in (record.payload_number, record.result_number, record.error_number):
        if number is not None:
            yield number
    if record.extras is not None and record.extras.values:
        for value in record.extras.values.values():
            yield value.number


def numbers_of(record: Record, spent: Sequence[tuple[int, int]] | None) -> list[int]:
    """Return the numbers of all values that a flow owns, those that only its history names too."""
    numbers = list(value_numbers(record))
    if spent:
        numbers += [number for _, number in spent]
    return numbers


class HistoryEvent(Struct, array_like=True, frozen=True, gc=False):
    """One applied write, as `flow_history` tells it."""

    event_id: str
    """Grows strictly along a flow's history; sorts as text."""
    name: str
    version: int
    at_ms: int
    from_state: str | None
    """Logical state before; None for the creation."""
    to_state: str
    """Logical state after."""
    worker: str | None
    attempts: int
    fencing_token: int
    details: dict[str, Any] = {}
    payload: Any = None
    """With `values=True`: the payload as of this event; likewise `result` and `error`."""
    result: Any = None
    error: Any = None


def event_of(record: Record) -> HistoryEvent:
    """Return the event that led to this record."""
    return HistoryEvent(
        event_id=f"{record.updated_at_ms:016d}-{record.version:010d}",
        name=record.event,
        version=record.version,
        at_ms=record.updated_at_ms,
        from_state=record.event_from,
        to_state=record.run_state or record.state,
        worker=record.event_worker,
        attempts=record.attempts,
        fencing_token=record.fencing_token,
        details=record.event_details or {},
    )
