"""Flows whose time is over: active for too long, or kept past their retention."""

from __future__ import annotations

from typing import Any

from msgspec.msgpack import Encoder
from msgspec.structs import replace

from ..commands import RetentionCleanup, Sweep
from ..errors import Refused
from ..index.deadlines import is_overdue
from ..index.table import Slot
from ..index.timequeue import take
from ..limits import INTEGER_MAX, SWEEP_TRAIL_BYTES_MAX
from ..record import FAILED, NO_EXTRAS, Record
from ..replies import Data, Reply
from .state import ShardState, drop_of
from .turn import Turn

REASON = "max_active_ms"
_encode = Encoder().encode


def sweep(state: ShardState, command: Sweep, turn: Turn) -> Reply:
    """Fail flows that were active too long, and remove ended ones past their retention."""
    for slot in state.deadlines.take(turn.now_ms, command.limit):
        fail_overdue(state, slot, turn)
    return _remove(state, command.limit, SWEEP_TRAIL_BYTES_MAX, turn)


def retention_cleanup(state: ShardState, command: RetentionCleanup, turn: Turn) -> Reply:
    """Remove up to `limit` flows that are past their retention; return how many."""
    return _remove(state, command.limit, None, turn)


def _remove(state: ShardState, limit: int, trail_bytes_max: int | None, turn: Turn) -> Reply:
    slots: list[Slot] = []
    left = INTEGER_MAX if trail_bytes_max is None else trail_bytes_max
    while len(slots) < limit and left > 0:
        entries = take([(state.expiry, None)], turn.now_ms, 1)
        if not entries:
            break
        slots.append(entries[0][3])
        left -= len(slots[-1].trail)
    if len(slots) < limit and left > 0 and state.cold.rows:
        for slot in state.cold.expired(turn.now_ms, limit - len(slots)):
            slots.append(slot)
            left -= len(slot.trail)
            if left <= 0:
                break
    turn.drops.extend(map(drop_of, slots))
    return Data(len(slots))


def fail_overdue(state: ShardState, slot: Slot, turn: Turn) -> Record:
    """Stage the end of a flow that was active too long; a lease is taken from its holder."""
    record = slot.record
    assert record is not None and not record.is_terminal
    reason: dict[str, Any] = {
        "reason": REASON,
        "max_active_ms": (record.extras or NO_EXTRAS).max_active_ms,
    }
    error = _encode(reason)
    now_ms = max(turn.now_ms, record.updated_at_ms)
    after = replace(
        record,
        state=FAILED,
        run_state=None,
        version=record.version + 1,
        fencing_token=record.fencing_token + (1 if record.is_leased else 0),
        attempts=0,
        reclaims=0,
        updated_at_ms=now_ms,
        next_run_at_ms=None,
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        error_number=turn.value(error),
        error_size=len(error),
        expires_at_ms=state.expires_at_ms(record, FAILED, None, now_ms),
        event="failed",
        event_from=record.logical_state,
        event_worker=record.lease_owner,
        event_details=reason,
    )
    return turn.put(slot, after)


def refuse_overdue(state: ShardState, slot: Slot | None, turn: Turn) -> Refused | None:
    """End a flow that a command meets after its time, and return what the command hears."""
    if slot is None or slot.record is None or not is_overdue(slot.record, turn.now_ms):
        return None
    record = fail_overdue(state, slot, turn)
    return Refused(
        "max_active_exceeded",
        f"flow {record.id!r} was active for more than its max_active_ms and has been failed",
        {"flow_id": record.id, "partition_key": record.partition_key},
    )
