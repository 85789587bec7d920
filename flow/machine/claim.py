"""Claims: due flows and expired leases become leased, in order."""

from __future__ import annotations

from msgspec.structs import replace

from ..commands import ClaimDue
from ..index.due import Filter
from ..index.table import Slot, unpacked
from ..index.timequeue import Entry
from ..limits import INTEGER_MAX
from ..queries import Probe, Watch
from ..record import RUNNING, Record
from ..replies import Done, Heads, Outcome, Reply, reject
from .expiry import refuse_overdue
from .retry import exhausted, told
from .state import ShardState
from .turn import Turn


def claim_due(state: ShardState, command: ClaimDue, turn: Turn) -> Reply:
    """Lease up to `limit` flows: some expired ones, then due ones, then expired ones again.

    Takes entries out of the index; each of their records is replaced in this same turn, which
    is what makes taking them safe.
    """
    if not 0 <= command.expired_first <= command.limit:
        return reject(
            "invalid_argument",
            f"expired_first is a part of the limit: 0 to {command.limit}",
            argument="expired_first",
        )
    wanted = Filter(command.type, command.states, command.partition_keys, command.priority)
    taken: list[tuple[Slot, bool]] = []
    if command.expired and command.expired_first:
        _take_expired(state, wanted, command.expired_first, taken, turn)
    if command.due and len(taken) < command.limit:
        _take_due(state, wanted, command.limit, taken, turn)
    if command.expired and command.expired_after and len(taken) < command.limit:
        _take_expired(state, wanted, command.limit, taken, turn)
    if not taken:
        return Done([])
    return Done(_grant(taken, command, turn))


def _grant(taken: list[tuple[Slot, bool]], command: ClaimDue, turn: Turn) -> list[Outcome]:
    granted: list[Outcome] = []
    now_ms = turn.now_ms
    worker = command.worker
    deadline_ms = min(now_ms + command.lease_ms, INTEGER_MAX)
    for (slot, is_expired), token in zip(taken, turn.tokens(len(taken)), strict=True):
        held = slot.held
        record = held if isinstance(held, Record) else unpacked(slot)
        logical = record.run_state or record.state
        after = replace(
            record,
            state=RUNNING,
            run_state=logical,
            version=record.version + 1,
            fencing_token=record.fencing_token + 1,
            updated_at_ms=now_ms if now_ms > record.updated_at_ms else record.updated_at_ms,
            lease_owner=worker,
            lease_token=token,
            lease_deadline_ms=deadline_ms,
            event="claimed",
            event_from=logical,
            event_worker=worker,
            event_details=None,
        )
        if is_expired:
            after = replace(
                after,
                reclaims=record.reclaims + 1,
                event_details={"reclaimed": True, "previous_worker": record.lease_owner},
            )
        turn.puts.append((slot, after))
        granted.append(after)
    return granted


def _take_due(
    state: ShardState, wanted: Filter, upto: int, taken: list[tuple[Slot, bool]], turn: Turn
) -> None:
    """Take due flows until `taken` has `upto`; those active for too long are ended instead."""
    while len(taken) < upto:
        entries = state.due.take_due(wanted, turn.now_ms, upto - len(taken))
        if not state.deadlines:
            taken += [(entry[3], False) for entry in entries]
            return
        if not entries:
            return
        for entry in entries:
            if refuse_overdue(state, entry[3], turn) is None:
                taken.append((entry[3], False))


def _take_expired(
    state: ShardState, wanted: Filter, upto: int, taken: list[tuple[Slot, bool]], turn: Turn
) -> None:
    """Take expired leases until `taken` has `upto`; flows past max_reclaims are ended instead."""
    while len(taken) < upto:
        entries = state.due.take_expired(wanted, turn.now_ms, upto - len(taken))
        if not entries:
            return
        for entry in entries:
            slot = entry[3]
            record = slot.record
            assert record is not None and record.run_state is not None
            if refuse_overdue(state, slot, turn) is not None:
                continue
            rule = state.policies.rule(record.type, record.run_state)
            if record.reclaims < rule.max_reclaims:
                taken.append((slot, True))
                continue
            details = {"reason": "max_reclaims", "reclaims": record.reclaims, **told(rule)}
            after = exhausted(state, record, rule, details, turn, {})
            if after.state == record.run_state:
                # Exhausted into its own state: a fresh round, or it could never be claimed again.
                after = replace(after, attempts=record.attempts, reclaims=0)
            turn.put(slot, after)


def probe(state: ShardState, query: Probe, now_ms: int) -> Heads:
    """Return the sort keys of what a claim would find, and when there may be more."""
    wanted = Filter(query.type, query.states, query.partition_keys, query.priority)
    due: list[Entry] = []
    expired: list[Entry] = []
    if query.due:
        due = state.due.peek_due(wanted, now_ms, query.limit)
    if query.expired:
        expired = state.due.peek_expired(wanted, now_ms, query.limit)
    return Heads(
        [_sort_key(entry) for entry in due],
        [entry[0] for entry in expired],
        next_at_ms(state, query),
    )


def _sort_key(entry: Entry) -> tuple[int, int, int]:
    record: Record | None = entry[3].record
    assert record is not None
    return -record.priority, entry[0], entry[1]


def count(state: ShardState, watch: Watch, upto: int, now_ms: int) -> int:
    """Return how many flows a claim would find, counted up to a bound."""
    wanted = Filter(watch.type, watch.states, watch.partition_keys, watch.priority)
    found = len(state.due.peek_due(wanted, now_ms, upto)) if watch.due else 0
    if watch.expired and found < upto:
        found += len(state.due.peek_expired(wanted, now_ms, upto - found))
    return found


def next_at_ms(state: ShardState, query: Probe | Watch) -> int | None:
    """Return when a claim with this filter first finds something; None = nothing in sight."""
    wanted = Filter(query.type, query.states, query.partition_keys, query.priority)
    return state.due.next_at_ms(wanted, due=query.due, expired=query.expired)
