"""What a decision took out of an index, put back: for a turn that is not to be.

Nothing is changed before `evolve`, but for this: claims and sweeps take entries out of queues while
they decide, because that spares a second search for them.
"""

from __future__ import annotations

from typing import Any

from ..commands import ClaimDue, RetentionCleanup, Sweep
from ..index.table import Slot
from ..record import RUNNING, TERMINAL_STATES, Record
from .state import ShardState
from .turn import Turn


def take_back(state: ShardState, command: Any, turn: Turn, decided: int) -> None:
    """Undo a decision. `decided`: how many of the turn's puts were there before its cascade."""
    if isinstance(command, ClaimDue):
        # Entries of each partition are kept apart, and were taken from where the filter looked.
        by_partition = command.partition_keys is not None
        for slot, _ in turn.puts[:decided]:
            _requeue(slot, by_partition=by_partition)
    elif isinstance(command, Sweep | RetentionCleanup):
        for slot, _ in turn.puts[:decided]:
            state.deadlines.enter(slot, _record_of(slot))
        for drop in turn.drops:
            ended = state.table.get(drop.partition_key, drop.id)
            if ended is not None:  # Cold flows were only looked up.
                _requeue(ended, by_partition=False)


def _requeue(slot: Slot, *, by_partition: bool) -> None:
    record = _record_of(slot)
    if record.state == RUNNING:
        at_ms = record.lease_deadline_ms
    elif record.state in TERMINAL_STATES:
        at_ms = record.expires_at_ms
    else:
        at_ms = record.next_run_at_ms
    assert at_ms is not None, "it was in a queue"
    lane = record.partition_key if by_partition else None
    slot.queue.put_back(at_ms, record.state_seq, record.version, slot, lane)


def _record_of(slot: Slot) -> Record:
    record = slot.record
    assert record is not None, "only what is there is taken"
    return record
