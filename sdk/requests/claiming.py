"""Claims of due flows and expired leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...flow.commands import ClaimDue, Hydration
from ...flow.errors import InvalidArgument
from ...flow.limits import (
    CLAIM_LIMIT_MAX,
    INTEGER_MAX,
    LEASE_MS_DEFAULT,
    PAYLOAD_BYTES_DEFAULT,
    PRIORITY_MAX,
    RATIO_PCT_MAX,
    RECLAIM_RATIO_DEFAULT,
)
from ...flow.record import RUNNING, FlowRecord
from ..checks import (
    check_bool,
    check_int,
    check_name,
    check_partitions,
    check_states,
    check_wanted,
)
from ..times import duration_ms
from .ask import Ask, Requests, now_of
from .creating import Duration, Instant, check_lease

States = str | Sequence[str]


class Claiming(Requests):
    """claim_due and reclaim."""

    def flow_claim_due(
        self,
        type: str,
        *,
        worker: str,
        state: States = "any",
        partition_key: str | None = None,
        partition_keys: Sequence[str] | None = None,
        limit: int = 1,
        lease_ms: Duration = LEASE_MS_DEFAULT,
        priority: int | None = None,
        payload: bool = True,
        payload_max_bytes: int = PAYLOAD_BYTES_DEFAULT,
        values: bool | str | Sequence[str] = False,
        reclaim_expired: bool = True,
        reclaim_ratio: int = RECLAIM_RATIO_DEFAULT,
        block_ms: Duration | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[list[FlowRecord]]:
        """Lease up to `limit` due flows: by priority (2 first), due time, order of entry.

        Without a partition, every partition is looked at. Expired leases are taken over too: with
        limit > 1 up to ceil(limit x reclaim_ratio / 100) of them first, with limit 1 only when no
        flow is due. `block_ms` waits, without polling, until something can be claimed. A payload
        over `payload_max_bytes` is left out: `payload_omitted` is set, size and ref are there.
        """
        check_int(limit, "limit", 1, CLAIM_LIMIT_MAX)
        ratio = check_int(reclaim_ratio, "reclaim_ratio", 0, RATIO_PCT_MAX)
        expired = check_bool(reclaim_expired, "reclaim_expired")
        command = ClaimDue(
            check_name(type, "type"),
            check_name(worker, "worker"),
            _logical(check_states(state)),
            check_partitions(partition_key, partition_keys),
            limit,
            check_lease(lease_ms),
            None if priority is None else check_int(priority, "priority", 0, PRIORITY_MAX),
            True,
            expired,
            -(-limit * ratio // 100) if expired and limit > 1 else 0,
            hydration_of(payload, payload_max_bytes, values),
            now_ms=now_of(now_ms),
        )
        wait_ms = None if block_ms is None else duration_ms(block_ms, "block_ms")
        return Ask(command, self._records, wait_ms)

    def flow_reclaim(
        self,
        type: str,
        *,
        worker: str,
        state: States = "any",
        partition_key: str | None = None,
        partition_keys: Sequence[str] | None = None,
        limit: int = 1,
        lease_ms: Duration = LEASE_MS_DEFAULT,
        priority: int | None = None,
        payload: bool = True,
        payload_max_bytes: int = PAYLOAD_BYTES_DEFAULT,
        values: bool | str | Sequence[str] = False,
        block_ms: Duration | None = None,
        now_ms: Instant | None = None,
    ) -> Ask[list[FlowRecord]]:
        """Take over expired leases only, the oldest deadline first within a priority.

        `state` filters the logical state; "running" means any, as "any" does.
        """
        check_int(limit, "limit", 1, CLAIM_LIMIT_MAX)
        states = check_states(state)
        if states is not None and RUNNING in states:
            states = None
        command = ClaimDue(
            check_name(type, "type"),
            check_name(worker, "worker"),
            states,
            check_partitions(partition_key, partition_keys),
            limit,
            check_lease(lease_ms),
            None if priority is None else check_int(priority, "priority", 0, PRIORITY_MAX),
            False,
            True,
            limit,
            hydration_of(payload, payload_max_bytes, values),
            now_ms=now_of(now_ms),
        )
        wait_ms = None if block_ms is None else duration_ms(block_ms, "block_ms")
        return Ask(command, self._records, wait_ms)


def hydration_of(
    payload: Any, payload_max_bytes: Any, values: Any, *, outcome: bool = False
) -> Hydration:
    """Return which values an answer is to bring along."""
    wants = check_bool(payload, "payload")
    names = check_wanted(values)
    max_bytes = check_int(payload_max_bytes, "payload_max_bytes", 0, INTEGER_MAX)
    return Hydration(wants, wants and outcome, max_bytes, names)


def _logical(states: list[str] | None) -> list[str] | None:
    if states is not None and RUNNING in states:
        raise InvalidArgument(
            "state names logical states; a leased flow is not due: use flow_reclaim for expired "
            'leases, or state="any"',
            argument="state",
        )
    return states
