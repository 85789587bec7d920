"""Renewing leases."""

from __future__ import annotations

from msgspec.structs import replace

from ..commands import ExtendLease, Extension
from ..limits import INTEGER_MAX
from ..replies import Outcome, Reply
from .guard import check_lease, decide_items, not_found
from .state import ShardState
from .turn import Turn


def extend_lease(state: ShardState, command: ExtendLease, turn: Turn) -> Reply:
    """Set each lease's deadline to now + lease_ms, even if that is sooner."""
    return decide_items(state, command.items, _extend, turn, independent=command.independent)


def _extend(state: ShardState, item: Extension, turn: Turn) -> Outcome:
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return not_found(item)
    record = slot.record
    assert record is not None
    verdict = check_lease(record, item.lease_token, item.fencing_token, "extend_lease")
    if verdict is not None:
        return verdict
    deadline_ms = min(turn.now_ms + item.lease_ms, INTEGER_MAX)
    if deadline_ms == record.lease_deadline_ms and record.event == "lease_extended":
        return record
    after = replace(
        record,
        version=record.version + 1,
        updated_at_ms=max(turn.now_ms, record.updated_at_ms),
        lease_deadline_ms=deadline_ms,
        event="lease_extended",
        event_from=record.run_state,
        event_worker=record.lease_owner,
        event_details=None,
    )
    return turn.put(slot, after)
