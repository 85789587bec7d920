"""Creation of flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ...flow import commands
from ...flow.commands import NewFlow
from ...flow.limits import HISTORY_EVENTS_MAX, LEASE_MS_DEFAULT, PRIORITY_MAX, STATE_DEFAULT
from ...flow.record import FlowRecord
from ..checks import (
    NOT_GIVEN,
    check_attributes,
    check_bool,
    check_int,
    check_name,
    check_name_or_none,
    check_open_state,
)
from ..times import duration_ms, instant_ms
from .ask import Ask, Draft, Requests, batch, now_of, read_one, single

Duration = int | timedelta
Instant = int | datetime


class Creating(Requests):
    """create, create_many, start_and_claim."""

    def _create(
        self,
        id: str,
        *,
        type: str,
        state: str = STATE_DEFAULT,
        payload: Any = NOT_GIVEN,
        partition_key: str | None = None,
        priority: int = 0,
        run_at_ms: Instant | None = None,
        parent_flow_id: str | None = None,
        root_flow_id: str | None = None,
        correlation_id: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
        idempotent: bool = False,
        max_active_ms: Duration | None = None,
        retention_ttl_ms: Duration | None = None,
        history_max_events: int | None = None,
        now_ms: Instant | None = None,
    ) -> Draft[NewFlow]:
        """Create a flow; it is due now, or at `run_at_ms`.

        Raises:
            FlowAlreadyExists: the id is taken in this partition.
            IdempotencyConflict: with idempotent=True: it was created with other arguments.
            Overloaded: the shard takes no new flows at the moment.
        """
        if retention_ttl_ms is not None:
            retention_ttl_ms = duration_ms(retention_ttl_ms, "retention_ttl_ms")
        if history_max_events is not None:
            check_int(history_max_events, "history_max_events", 1, HISTORY_EVENTS_MAX)
        item = NewFlow(
            check_name(id, "id"),
            check_name_or_none(partition_key, "partition_key"),
            check_name(type, "type"),
            check_open_state(state, "state"),
            check_int(priority, "priority", 0, PRIORITY_MAX),
            None if run_at_ms is None else instant_ms(run_at_ms, "run_at_ms"),
            self._pack(payload, "payload"),
            check_name_or_none(correlation_id, "correlation_id"),
            check_name_or_none(parent_flow_id, "parent_flow_id"),
            check_name_or_none(root_flow_id, "root_flow_id"),
            check_attributes(attributes),
            self._pack_named(values),
            retention_ttl_ms,
            active_ms_of(max_active_ms),
            history_max_events,
            check_bool(idempotent, "idempotent"),
        )
        return item, now_ms

    flow_create = single(_create, commands.Create)

    def flow_create_many(
        self,
        /,
        items: Iterable[Mapping[str, Any]],
        *,
        partition_key: str | None = None,
        independent: bool = False,
        now_ms: Instant | None = None,
        **defaults: Any,
    ) -> Ask[list[Any]]:
        """Create up to 1,000 flows; items are dicts of `flow_create`'s arguments.

        An item's value beats the default. Each shard's group is all or nothing, unless
        `independent`; the result is in the order of the items.

        Raises:
            BatchError: some group was refused; `results` has a record or an error for each item.
        """
        if partition_key is not None:
            defaults["partition_key"] = partition_key
        return batch(self._create, items, defaults, commands.Create, independent, now_ms)

    def flow_start_and_claim(
        self,
        id: str,
        *,
        type: str,
        worker: str,
        state: str = STATE_DEFAULT,
        lease_ms: Duration = LEASE_MS_DEFAULT,
        payload: Any = NOT_GIVEN,
        partition_key: str | None = None,
        priority: int = 0,
        parent_flow_id: str | None = None,
        root_flow_id: str | None = None,
        correlation_id: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
        max_active_ms: Duration | None = None,
        retention_ttl_ms: Duration | None = None,
        history_max_events: int | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[FlowRecord]:
        """Create a flow that its creator holds from the start, in one write.

        Raises:
            FlowAlreadyExists: the id is taken in this partition.
        """
        item, _ = self._create(
            id,
            type=type,
            state=state,
            payload=payload,
            partition_key=partition_key,
            priority=priority,
            parent_flow_id=parent_flow_id,
            root_flow_id=root_flow_id,
            correlation_id=correlation_id,
            attributes=attributes,
            values=values,
            max_active_ms=max_active_ms,
            retention_ttl_ms=retention_ttl_ms,
            history_max_events=history_max_events,
        )
        command = commands.StartAndClaim(
            item,
            check_name(worker, "worker"),
            check_lease(lease_ms),
            now_of(now_ms),
        )
        return Ask(command, read_one)


def active_ms_of(max_active_ms: Any) -> int | None:
    """Return how long a flow may stay active, in ms, at least 1; None = for ever."""
    if max_active_ms is None:
        return None
    return check_int(duration_ms(max_active_ms, "max_active_ms"), "max_active_ms", 1)


def check_lease(lease_ms: Any) -> int:
    """Return a lease's length in ms, at least 1."""
    return check_int(duration_ms(lease_ms, "lease_ms"), "lease_ms", 1)
