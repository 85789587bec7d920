"""Reads: one flow, its history, listings, counts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ...flow import queries
from ...flow.commands import Hydration
from ...flow.errors import InvalidArgument
from ...flow.limits import (
    HISTORY_COUNT_MAX,
    LIST_COUNT_DEFAULT,
    LIST_COUNT_MAX,
    PAYLOAD_BYTES_DEFAULT,
)
from ...flow.queries import Cursor, LineageKind
from ...flow.record import FlowRecord, HistoryEvent
from ..checks import (
    check_attributes,
    check_bool,
    check_int,
    check_name,
    check_name_or_none,
    check_states,
)
from ..times import duration_ms, instant_ms
from .ask import Ask, Requests, now_of, raise_refused, read_data
from .claiming import States, hydration_of
from .creating import Duration, Instant

NOTHING = Hydration()


class Page(list[FlowRecord]):
    """Part of a listing; `after` is what the next page's `after=` takes, None at the end."""

    def __init__(self, records: Iterable[FlowRecord] = (), after: str | None = None) -> None:
        super().__init__(records)
        self.after = after


class Reading(Requests):
    """get, history, list, by_parent, by_root, by_correlation, info, stuck."""

    def flow_get(
        self,
        id: str,
        *,
        partition_key: str | None = None,
        payload: bool = False,
        payload_max_bytes: int = PAYLOAD_BYTES_DEFAULT,
        values: bool | str | Sequence[str] = False,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord | None]:
        """Read a flow, None if there is none; `payload=True` brings payload, result and error.

        Without a partition the flow that was created without one is meant; failing that, any
        partition's.

        Raises:
            AmbiguousFlow: several partitions have this id.
        """
        query = queries.Get(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            partition_key is None,
            hydration_of(payload, payload_max_bytes, values, outcome=True),
            now_of(now_ms),
        )
        return Ask(query, self._one_or_none)

    def _one_or_none(self, reply: Any) -> FlowRecord | None:
        records = self._records(reply)
        return records[0] if records else None

    def flow_history(
        self,
        id: str,
        *,
        partition_key: str | None = None,
        count: int = HISTORY_COUNT_MAX,
        reverse: bool = False,
        event: str | None = None,
        worker: str | None = None,
        from_ms: Instant | None = None,
        to_ms: Instant | None = None,
        from_version: int | None = None,
        to_version: int | None = None,
        values: bool = False,
        include_cold: bool = True,
        now_ms: Instant | None = None,
    ) -> Ask[list[HistoryEvent]]:
        """Read the newest `count` matching events of a flow, oldest first unless reversed.

        All bounds are inclusive. `values=True` fills in payload, result and error as of each
        event. A flow that is absent has no history; with `include_cold=False`, nor has one that
        ended so long ago that it has left memory.

        Raises:
            AmbiguousFlow: several partitions have this id and none was given.
        """
        query = queries.History(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            partition_key is None,
            check_int(count, "count", 1, HISTORY_COUNT_MAX),
            check_bool(reverse, "reverse"),
            check_name_or_none(event, "event"),
            check_name_or_none(worker, "worker"),
            None if from_ms is None else instant_ms(from_ms, "from_ms"),
            None if to_ms is None else instant_ms(to_ms, "to_ms"),
            None if from_version is None else check_int(from_version, "from_version"),
            None if to_version is None else check_int(to_version, "to_version"),
            check_bool(values, "values"),
            check_bool(include_cold, "include_cold"),
            now_of(now_ms),
        )
        return Ask(query, self._events)

    def _events(self, reply: Any) -> list[HistoryEvent]:
        raise_refused(reply)
        events: list[HistoryEvent] = reply.events or []
        if reply.values is None:
            return list(events)
        return [
            msgspec.structs.replace(
                event,
                payload=self._unpack(values.payload),
                result=self._unpack(values.result),
                error=self._unpack(values.error),
            )
            for event, values in zip(events, reply.values, strict=True)
        ]

    def flow_list(
        self,
        type: str,
        *,
        state: States = "any",
        partition_key: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        count: int = LIST_COUNT_DEFAULT,
        after: str | None = None,
        reverse: bool = False,
        include_cold: bool = True,
        now_ms: Instant | None = None,
    ) -> Ask[Page]:
        """List a type's flows by (updated_at_ms, id).

        `state` filters the logical state; "running" selects the leased ones. `attributes` must be
        equal. A flow that changes while you page moves to the end, so it may be seen again.
        `include_cold=False` leaves out flows that ended so long ago that they have left memory.
        """
        query = queries.List(
            check_name(type, "type"),
            check_states(state),
            check_name_or_none(partition_key, "partition_key"),
            check_attributes(attributes),
            check_int(count, "count", 1, LIST_COUNT_MAX),
            _cursor(after),
            check_bool(reverse, "reverse"),
            check_bool(include_cold, "include_cold"),
            now_of(now_ms),
        )
        return Ask(query, self._page)

    def flow_by_parent(
        self,
        id: str,
        *,
        partition_key: str | None = None,
        count: int = LIST_COUNT_DEFAULT,
        state: States = "any",
        terminal: bool | None = None,
        include_cold: bool = True,
        after: str | None = None,
        now_ms: Instant | None = None,
        parent_partition_key: str | UnsetType | None = UNSET,
    ) -> Ask[Page]:
        """List the children of a flow by (updated_at_ms, id); `partition_key` is the children's.

        Parents in several partitions may have one id: `parent_partition_key`, which may be None,
        tells which one's spawned children are meant.
        """
        ask = self._lineage(
            "parent", id, partition_key, count, state, terminal, include_cold, after, now_ms
        )
        if parent_partition_key is not UNSET:
            ask.request = replace(
                ask.request,
                of_partition=True,
                parent_partition_key=check_name_or_none(
                    parent_partition_key, "parent_partition_key"
                ),
            )
        return ask

    def flow_by_root(
        self,
        id: str,
        *,
        partition_key: str | None = None,
        count: int = LIST_COUNT_DEFAULT,
        state: States = "any",
        terminal: bool | None = None,
        include_cold: bool = True,
        after: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[Page]:
        """List a flow and everything below it by (updated_at_ms, id)."""
        return self._lineage(
            "root", id, partition_key, count, state, terminal, include_cold, after, now_ms
        )

    def flow_by_correlation(
        self,
        id: str,
        *,
        partition_key: str | None = None,
        count: int = LIST_COUNT_DEFAULT,
        state: States = "any",
        terminal: bool | None = None,
        include_cold: bool = True,
        after: str | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[Page]:
        """List the flows of a correlation id by (updated_at_ms, id)."""
        return self._lineage(
            "correlation", id, partition_key, count, state, terminal, include_cold, after, now_ms
        )

    def _lineage(
        self,
        kind: LineageKind,
        id: str,
        partition_key: str | None,
        count: int,
        state: States,
        terminal: bool | None,
        include_cold: bool,
        after: str | None,
        now_ms: Instant | None,
    ) -> Ask[Page]:
        query = queries.Lineage(
            kind,
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_states(state),
            None if terminal is None else check_bool(terminal, "terminal"),
            check_int(count, "count", 1, LIST_COUNT_MAX),
            _cursor(after),
            check_bool(include_cold, "include_cold"),
            now_of(now_ms),
        )
        return Ask(query, self._page)

    def _page(self, reply: Any) -> Page:
        return Page(self._records(reply), None if reply.cursor is None else _text(reply.cursor))

    def flow_info(self, type: str, *, now_ms: Instant | None = None) -> Ask[dict[str, Any]]:
        """Count a type's flows.

        `states`: per logical state total, ready, scheduled, leased, expired, waiting; the same
        names at the top are sums over the states. completed, failed, cancelled: flows that ended.
        `oldest_ready_age_ms`: how long the first ready flow has been due; None if none is.
        """
        query = queries.Info(check_name(type, "type"), now_of(now_ms))

        def read(reply: Any) -> dict[str, Any]:
            return _told(type, read_data(reply), query.now_ms or self.now_ms())

        return Ask(query, read)

    def now_ms(self) -> int:
        """Return the store's time; the store says how."""
        raise NotImplementedError

    def flow_stuck(
        self,
        type: str,
        *,
        older_than_ms: Duration = 0,
        count: int = LIST_COUNT_DEFAULT,
        now_ms: Instant | None = None,
    ) -> Ask[list[FlowRecord]]:
        """List leased flows whose deadline passed at least `older_than_ms` ago, oldest first."""
        query = queries.Stuck(
            check_name(type, "type"),
            duration_ms(older_than_ms, "older_than_ms"),
            check_int(count, "count", 1, LIST_COUNT_MAX),
            now_of(now_ms),
        )
        return Ask(query, self._records)


def _told(type: str, data: dict[str, Any], now_ms: int) -> dict[str, Any]:
    told: dict[str, Any] = {"type": type, "states": data["states"], **data["ends"]}
    for name in ("total", "ready", "scheduled", "leased", "expired", "waiting"):
        told[name] = sum(counts[name] for counts in data["states"].values())
    oldest_ms = data["oldest_ready_at_ms"]
    told["oldest_ready_age_ms"] = None if oldest_ms is None else max(0, now_ms - oldest_ms)
    return told


def _text(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()


def _cursor(after: Any) -> Cursor | None:
    if after is None:
        return None
    try:
        cursor: Cursor = msgspec.msgpack.decode(base64.urlsafe_b64decode(after), type=Cursor)
    except (TypeError, ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidArgument(
            f"after is what a page's .after said, unchanged; got {after!r}", argument="after"
        ) from None
    return cursor
