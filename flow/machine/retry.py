"""Another attempt, or the end of them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..commands import Retry, Retrying
from ..errors import Refused
from ..limits import INTEGER_MAX
from ..policy import RetryRule
from ..record import RUNNING, TERMINAL_STATES, Record
from ..replies import Outcome, Reply
from .allowed import invalid
from .guard import check_lease, decide_items, not_found, settle_mark
from .state import ShardState
from .turn import Turn
from .values import with_values


def retry(state: ShardState, command: Retry, turn: Turn) -> Reply:
    """Schedule each item's next attempt, or find it exhausted."""
    return decide_items(state, command.items, _retry, turn, independent=command.independent)


def _retry(state: ShardState, item: Retrying, turn: Turn) -> Outcome:
    if item.retry is not None and item.retry.exhausted_to == RUNNING:
        return invalid(item, "retry", f"exhausted_to is a state other than {RUNNING!r}")
    slot = state.find(item.partition_key, item.id, turn.now_ms)
    if slot is None:
        return not_found(item)
    record = slot.record
    assert record is not None
    verdict = check_lease(record, item.lease_token, item.fencing_token, "retry")
    if verdict is not None:
        return verdict
    assert record.run_state is not None
    extras = with_values(record, item.values, item.attributes, turn)
    if isinstance(extras, Refused):
        return extras
    changes: dict[str, Any] = {"extras": extras}
    if item.payload is not None:
        changes["payload_number"] = turn.value(item.payload)
        changes["payload_size"] = len(item.payload)
    if item.error is not None:
        changes["error_number"] = turn.value(item.error)
        changes["error_size"] = len(item.error)
    changes["settled"] = settle_mark("retry", item.lease_token, item.fencing_token)
    rule = state.policies.rule(record.type, record.run_state, item.retry)
    attempt = record.attempts + 1
    now_ms = max(turn.now_ms, record.updated_at_ms)
    if attempt > rule.max_retries:
        details = {"attempt": attempt, **told(rule)}
        return turn.put(slot, exhausted(state, record, rule, details, turn, changes))
    run_at_ms = item.run_at_ms
    if run_at_ms is None:
        run_at_ms = min(now_ms + rule.delay_ms(record.id, attempt), INTEGER_MAX - 1)
    after = replace(
        record,
        state=record.run_state,
        run_state=None,
        version=record.version + 1,
        attempts=attempt,
        updated_at_ms=now_ms,
        next_run_at_ms=run_at_ms,
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        event="retry",
        event_from=record.run_state,
        event_worker=record.lease_owner,
        event_details={
            "decision": "scheduled",
            "attempt": attempt,
            "run_at_ms": run_at_ms,
            **told(rule),
        },
        **changes,
    )
    return turn.put(slot, after)


def exhausted(
    state: ShardState,
    record: Record,
    rule: RetryRule,
    details: dict[str, Any],
    turn: Turn,
    changes: dict[str, Any],
) -> Record:
    """Return the record of a flow that has used up its attempts or reclaims."""
    end = rule.exhausted_to
    now_ms = max(turn.now_ms, record.updated_at_ms)
    is_end = end in TERMINAL_STATES
    same_state = end == record.run_state
    return replace(
        record,
        state=end,
        run_state=None,
        version=record.version + 1,
        attempts=record.attempts + 1 if same_state else 0,
        reclaims=record.reclaims if same_state else 0,
        updated_at_ms=now_ms,
        next_run_at_ms=None if is_end else now_ms,
        state_seq=turn.order(),
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        expires_at_ms=state.expires_at_ms(record, end, None, now_ms) if is_end else None,
        event="retry",
        event_from=record.run_state,
        event_worker=record.lease_owner,
        event_details={"decision": "exhausted", **details},
        **changes,
    )


def told(rule: RetryRule) -> dict[str, Any]:
    """Return the effective numbers of a rule, as a history event tells them."""
    return {
        "max_retries": rule.max_retries,
        "exhausted_to": rule.exhausted_to,
        "max_reclaims": rule.max_reclaims,
        "backoff": {
            "kind": rule.kind,
            "base_ms": rule.base_ms,
            "max_ms": rule.max_ms,
            "jitter_pct": rule.jitter_pct,
        },
    }
