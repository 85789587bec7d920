"""Renewing leases, and giving them back."""

from __future__ import annotations

from msgspec.structs import replace

from ..commands import ExtendLease, Extension, Release, Releasing
from ..limits import INTEGER_MAX
from ..replies import Outcome, Reply
from .guard import check_lease, decide_items, not_found, settle_mark
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


def release(state: ShardState, command: Release, turn: Turn) -> Reply:
    """Give each flow back to its logical state: nothing is charged, its turn comes first again."""
    return decide_items(state, command.items, _release, turn, independent=command.independent)


def _release(state: ShardState, item: Releasing, turn: Turn) -> Outcome:
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return not_found(item)
    record = slot.record
    assert record is not None
    verdict = check_lease(record, item.lease_token, item.fencing_token, "release")
    if verdict is not None:
        return verdict
    assert record.run_state is not None
    after = replace(
        record,
        state=record.run_state,
        run_state=None,
        version=record.version + 1,
        updated_at_ms=max(turn.now_ms, record.updated_at_ms),
        next_run_at_ms=record.next_run_at_ms if item.run_at_ms is None else item.run_at_ms,
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        settled=settle_mark("release", item.lease_token, item.fencing_token),
        event="released",
        event_from=record.run_state,
        event_worker=record.lease_owner,
        event_details=None,
    )
    return turn.put(slot, after)
