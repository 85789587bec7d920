"""The read requests: answered from a shard's state and log, never written down."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .bounds import (
    Attributes,
    BackupName,
    ClaimLimit,
    HistoryCount,
    ListCount,
    Name,
    Names,
    Natural,
    Priority,
    RequestNumber,
    Short,
    Until,
    ValueNumbers,
)
from .commands import Hydration


class Get(Struct, array_like=True, frozen=True, tag_field="op", tag=101, gc=False):
    """Read one flow. `anywhere` looks in every partition of the shard (partition_key is None)."""

    id: Name
    partition_key: Name | None
    anywhere: bool
    hydration: Hydration
    now_ms: Natural | None = None


class History(Struct, array_like=True, frozen=True, tag_field="op", tag=102, gc=False):
    """Read the newest `count` matching events of a flow."""

    id: Name
    partition_key: Name | None
    anywhere: bool
    count: HistoryCount
    reverse: bool
    event: Name | None
    worker: Name | None
    from_ms: Natural | None
    to_ms: Natural | None
    from_version: Natural | None
    to_version: Natural | None
    values: bool
    include_cold: bool
    now_ms: Natural | None = None


Cursor = tuple[Natural, Name, Short]
"""updated_at_ms, id, partition key or "": where the next page begins, exclusive."""


class List(Struct, array_like=True, frozen=True, tag_field="op", tag=103, gc=False):
    """List flows of a type by (updated_at_ms, id)."""

    type: Name
    states: Names | None
    partition_key: Name | None
    attributes: Attributes | None
    count: ListCount
    after: Cursor | None
    reverse: bool
    include_cold: bool
    now_ms: Natural | None = None


LineageKind = Literal["parent", "root", "correlation"]


class Lineage(Struct, array_like=True, frozen=True, tag_field="op", tag=104, gc=False):
    """List flows by parent, root or correlation id."""

    kind: LineageKind
    id: Name
    partition_key: Name | None
    states: Names | None
    terminal: bool | None
    count: ListCount
    after: Cursor | None
    include_cold: bool
    now_ms: Natural | None = None
    of_partition: bool = False
    """Leave out spawned children of a parent in another partition than the following."""
    parent_partition_key: Name | None = None


class Info(Struct, array_like=True, frozen=True, tag_field="op", tag=105, gc=False):
    """Count the flows of a type."""

    type: Name
    now_ms: Natural | None = None


class Stuck(Struct, array_like=True, frozen=True, tag_field="op", tag=106, gc=False):
    """List leased flows whose deadline passed at least `older_than_ms` ago."""

    type: Name
    older_than_ms: Natural
    count: ListCount
    now_ms: Natural | None = None


class ValueGet(Struct, array_like=True, frozen=True, tag_field="op", tag=107, gc=False):
    """Read values by number; larger ones than max_bytes are refused one by one."""

    numbers: ValueNumbers
    max_bytes: Natural
    now_ms: Natural | None = None


class PolicyGet(Struct, array_like=True, frozen=True, tag_field="op", tag=108, gc=False):
    """Read the stored policy of a type; None = of every type."""

    type: Name | None
    now_ms: Natural | None = None


class Probe(Struct, array_like=True, frozen=True, tag_field="op", tag=109, gc=False):
    """Ask what a claim with this filter would find; nothing is claimed."""

    type: Name
    states: Names | None
    partition_keys: Names | None
    limit: ClaimLimit
    priority: Priority | None
    due: bool
    expired: bool
    now_ms: Natural | None = None


class Watch(Struct, array_like=True, frozen=True, tag_field="op", tag=110, gc=False):
    """Answer as soon as a claim with this filter would find something, or at the time-out."""

    type: Name
    states: Names | None
    partition_keys: Names | None
    priority: Priority | None
    due: bool
    expired: bool
    until_ms: Until
    """On the shard's clock."""
    now_ms: Natural | None = None
    since_us: Natural = 0
    """When its claim began to wait: the oldest is woken first. In microseconds, of real time."""


class Unwatch(Struct, array_like=True, frozen=True, tag_field="op", tag=111, gc=False):
    """Take back the watch of this connection's request number."""

    request: RequestNumber
    now_ms: Natural | None = None


class Tick(Struct, array_like=True, frozen=True, tag_field="op", tag=112, gc=False):
    """Nothing but the time: for a clock that stands still between commands."""

    now_ms: Natural | None = None


class Stats(Struct, array_like=True, frozen=True, tag_field="op", tag=113, gc=False):
    """Read the shard's own counters."""

    check: bool = False
    """Also compare the indexes with a rebuild: slow, for tests and doctors."""
    now_ms: Natural | None = None


class Backup(Struct, array_like=True, frozen=True, tag_field="op", tag=115, gc=False):
    """One step of a backup; repeating it does no harm.

    hold: what crosses shards waits from now on, for a second at most. link: close what is written
    and link all files; answered with their names, None if the hold is over. release: go on;
    answered with whether all was held until now. discard: remove the links.
    """

    step: Literal["hold", "link", "release", "discard"]
    name: BackupName
    now_ms: Natural | None = None


AnyQuery = (
    Get
    | History
    | List
    | Lineage
    | Info
    | Stuck
    | ValueGet
    | PolicyGet
    | Probe
    | Watch
    | Unwatch
    | Tick
    | Stats
    | Backup
)


_QUERY_TAG_MIN = 100


def is_query(request: Struct) -> bool:
    """Whether a request writes nothing, so that it can be repeated."""
    tag = request.__struct_config__.tag
    return isinstance(tag, int) and tag >= _QUERY_TAG_MIN
