"""Moves between states that are not ends: transition, and step_continue, which keeps the lease."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..commands import Move, StepContinue, Transition
from ..errors import Refused
from ..limits import INTEGER_MAX
from ..record import RUNNING, TERMINAL_STATES, Record
from ..replies import Done, Outcome, Reply
from .allowed import RESERVED_STATES, invalid, reserved
from .expiry import refuse_overdue
from .guard import check_lease, decide_items, not_found, refuse, settle_mark, stale
from .state import ShardState
from .turn import Turn
from .values import with_values


def transition(state: ShardState, command: Transition, turn: Turn) -> Reply:
    """Move each item's flow."""
    return decide_items(state, command.items, _transition, turn, independent=command.independent)


def _transition(state: ShardState, item: Move, turn: Turn) -> Outcome:
    if item.to_state in RESERVED_STATES:
        return reserved(item, "to_state")
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return not_found(item)
    record = slot.record
    assert record is not None
    verdict = _may_move(record, item, f"transition:{item.from_state}:{item.to_state}")
    if verdict is not None:
        return verdict
    changes = _brought(record, item, turn)
    if isinstance(changes, Refused):
        return changes
    if record.lease_token is not None:
        changes["settled"] = settle_mark(
            f"transition:{item.from_state}:{item.to_state}",
            record.lease_token,
            record.fencing_token,
        )
    if item.priority is not None:
        changes["priority"] = item.priority
    now_ms = max(turn.now_ms, record.updated_at_ms)
    after = replace(
        record,
        state=item.to_state,
        run_state=None,
        version=record.version + 1,
        updated_at_ms=now_ms,
        next_run_at_ms=now_ms if item.run_at_ms is None else item.run_at_ms,
        state_seq=turn.order(),
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        event="transitioned",
        event_from=record.logical_state,
        event_worker=record.lease_owner,
        event_details=None,
        **changes,
    )
    return turn.put(slot, after)


def _may_move(record: Record, item: Move, operation: str) -> Record | Refused | None:
    """Return None if the move is allowed, the record for a repeat, else a refusal."""
    if item.lease_token is not None:
        verdict = check_lease(record, item.lease_token, item.fencing_token, operation)
        if verdict is not None:
            return verdict
    elif record.state in TERMINAL_STATES:
        return refuse(
            "flow_terminal",
            record,
            f"flow {record.id!r} is {record.state} and moves no more",
            state=record.state,
        )
    elif record.state == RUNNING:
        return stale(record, f"it is leased by {record.lease_owner!r}; pass its lease_token")
    elif record.fencing_token != item.fencing_token:
        return stale(record, f"the command names fencing token {item.fencing_token}")
    logical = record.logical_state
    if item.from_state != logical and not (item.from_state == RUNNING == record.state):
        return refuse(
            "wrong_state",
            record,
            f"flow {record.id!r} is in state {logical!r}, not {item.from_state!r}",
            state=logical,
            expected=item.from_state,
        )
    return None


def _brought(record: Record, item: Move, turn: Turn) -> dict[str, Any] | Refused:
    """Stage what a move brings along, and return the fields that follow from it."""
    extras = with_values(record, item.values, item.attributes, turn)
    if isinstance(extras, Refused):
        return extras
    changes: dict[str, Any] = {"extras": extras}
    if item.payload is not None:
        changes["payload_number"] = turn.value(item.payload)
        changes["payload_size"] = len(item.payload)
    if item.to_state != record.logical_state:
        changes["attempts"] = 0
        changes["reclaims"] = 0
    return changes


def step_continue(state: ShardState, command: StepContinue, turn: Turn) -> Reply:
    """Move a leased flow and keep it leased, under new tokens."""
    item = command.item
    if (fault := _fault_of_step(item)) is not None:
        return Done([fault], applied=False)
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return Done([not_found(item)], applied=False)
    if (overdue := refuse_overdue(state, slot, turn)) is not None:
        return Done([overdue], applied=False)
    record = slot.record
    assert record is not None
    operation = f"step_continue:{item.from_state}:{item.to_state}"
    verdict = _may_move(record, item, operation)
    if verdict is not None:
        return Done([verdict], applied=not isinstance(verdict, Refused))
    mark = turn.mark()
    changes = _brought(record, item, turn)
    if isinstance(changes, Refused):
        turn.back_to(mark)
        return Done([changes], applied=False)
    assert record.lease_token is not None
    now_ms = max(turn.now_ms, record.updated_at_ms)
    after = replace(
        record,
        run_state=item.to_state,
        version=record.version + 1,
        fencing_token=record.fencing_token + 1,
        updated_at_ms=now_ms,
        state_seq=turn.order(),
        lease_token=turn.tokens(1)[0],
        lease_deadline_ms=min(turn.now_ms + command.lease_ms, INTEGER_MAX),
        settled=settle_mark(operation, record.lease_token, record.fencing_token),
        event="step_continued",
        event_from=record.run_state,
        event_worker=record.lease_owner,
        event_details=None,
        **changes,
    )
    return Done([turn.put(slot, after)])


def _fault_of_step(item: Move) -> Refused | None:
    """Refuse what a transition may say and a step that keeps its lease may not."""
    if item.to_state in RESERVED_STATES:
        return reserved(item, "to_state")
    if item.lease_token is None:
        return invalid(item, "lease_token", "only the holder of a lease can keep it")
    if item.run_at_ms is not None or item.priority is not None:
        argument = "priority" if item.run_at_ms is None else "run_at_ms"
        return invalid(item, argument, "it has no effect while the lease is kept; leave it out")
    return None
