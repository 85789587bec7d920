"""How a flow ends: complete, fail, cancel."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..commands import Cancel, Complete, Ending, Fail
from ..errors import Refused
from ..record import CANCELLED, COMPLETED, FAILED, RUNNING, TERMINAL_STATES, Record
from ..replies import Outcome, Reply
from .guard import check_lease, decide_items, not_found, refuse, settle_mark, stale
from .state import ShardState
from .turn import Turn
from .values import with_values


def complete(state: ShardState, command: Complete, turn: Turn) -> Reply:
    """End each item's flow well."""
    return decide_items(state, command.items, _complete, turn, independent=command.independent)


def fail(state: ShardState, command: Fail, turn: Turn) -> Reply:
    """End each item's flow badly."""
    return decide_items(state, command.items, _fail, turn, independent=command.independent)


def cancel(state: ShardState, command: Cancel, turn: Turn) -> Reply:
    """End each item's flow from outside."""
    return decide_items(state, command.items, _cancel, turn, independent=command.independent)


def _complete(state: ShardState, item: Ending, turn: Turn) -> Outcome:
    return _end_leased(state, item, turn, COMPLETED, "complete")


def _fail(state: ShardState, item: Ending, turn: Turn) -> Outcome:
    return _end_leased(state, item, turn, FAILED, "fail")


def _end_leased(state: ShardState, item: Ending, turn: Turn, end: str, operation: str) -> Outcome:
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return not_found(item)
    record: Record = slot.held  # `find` has unpacked it.
    verdict = check_lease(record, item.lease_token, item.fencing_token, operation)
    if verdict is not None:
        return verdict
    after = ended(state, record, end, item, turn, operation)
    return after if isinstance(after, Refused) else turn.put(slot, after)


def _cancel(state: ShardState, item: Ending, turn: Turn) -> Outcome:
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return not_found(item)
    record = slot.record
    assert record is not None
    if record.state == CANCELLED:
        return record
    if record.state in TERMINAL_STATES:
        return refuse(
            "flow_terminal",
            record,
            f"flow {record.id!r} is {record.state} and cannot be cancelled",
            state=record.state,
        )
    if item.fencing_token is not None and item.fencing_token != record.fencing_token:
        return stale(record, f"the command names fencing token {item.fencing_token}")
    fencing_token = record.fencing_token
    if record.state == RUNNING and record.lease_token != item.lease_token:
        if not item.force:
            return stale(
                record,
                f"it is leased by {record.lease_owner!r}; pass its lease_token, or force=True to "
                "fence the holder off",
            )
        fencing_token += 1
    elif record.state != RUNNING and item.lease_token is not None:
        return stale(record, "it is not leased, and the command names a lease token")
    after = ended(state, record, CANCELLED, item, turn, "cancel")
    if isinstance(after, Refused):
        return after
    return turn.put(slot, replace(after, fencing_token=fencing_token))


def ended(
    state: ShardState, record: Record, end: str, item: Ending, turn: Turn, operation: str
) -> Record | Refused:
    """Return the record after its end, its values staged; or the refusal of a named value."""
    extras = record.extras
    if item.values or item.attributes:
        merged = with_values(record, item.values, item.attributes, turn)
        if isinstance(merged, Refused):
            return merged
        extras = merged
    now_ms = max(turn.now_ms, record.updated_at_ms)
    changes: dict[str, Any] = {}
    if item.payload is not None:
        changes["payload_number"] = turn.value(item.payload)
        changes["payload_size"] = len(item.payload)
    if item.value is not None:
        kind = "result" if end == COMPLETED else "error"
        changes[kind + "_number"] = turn.value(item.value)
        changes[kind + "_size"] = len(item.value)
    if record.lease_token is not None:
        changes["settled"] = settle_mark(operation, record.lease_token, record.fencing_token)
    return replace(
        record,
        state=end,
        run_state=None,
        version=record.version + 1,
        attempts=0,
        reclaims=0,
        updated_at_ms=now_ms,
        next_run_at_ms=None,
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        expires_at_ms=state.expires_at_ms(record, end, item.retention_ttl_ms, now_ms),
        event=end,
        event_from=record.run_state or record.state,
        event_worker=record.lease_owner,
        event_details=None,
        extras=extras,
        **changes,
    )
