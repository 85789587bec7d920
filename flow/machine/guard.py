"""Who may change a flow: lease and fencing checks, used by everything that settles or moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..commands import Item
from ..errors import Refused
from ..record import RUNNING, Record
from ..replies import Done, Outcome, Rejected
from .allowed import invalid, long, named_twice, unknowable
from .expiry import refuse_overdue
from .state import ShardState
from .turn import Turn

ItemT = TypeVar("ItemT", bound=Item)
DecideItem = Callable[[ShardState, ItemT, Turn], Outcome]


def decide_items(
    state: ShardState,
    items: Sequence[ItemT],
    decide_item: DecideItem[ItemT],
    turn: Turn,
    *,
    independent: bool,
    ends_overdue: bool = True,
) -> Done | Rejected:
    """Decide each item; unless independent, one refusal takes back the whole group."""
    if len(items) > 1 and (twice := named_twice(items)) is not None:
        return twice
    overdue = _overdue(state, items, turn) if ends_overdue and state.deadlines else {}
    mark = turn.mark()
    outcomes: list[Outcome] = []
    refused = False
    for item in items:
        item_mark = turn.mark() if independent else mark
        if overdue and (item.partition_key, item.id) in overdue:
            outcome: Outcome = overdue[item.partition_key, item.id]
        else:
            outcome = decide_item(state, item, turn)
        if outcome.__class__ is Refused:
            refused = True
            if independent:
                turn.back_to(item_mark)
        outcomes.append(outcome)
    if not refused or independent:
        return Done(outcomes)
    turn.back_to(mark)
    return Done([_aborted(outcome) for outcome in outcomes], applied=False)


def _overdue(
    state: ShardState, items: Sequence[Item], turn: Turn
) -> dict[tuple[str | None, str], Refused]:
    """End the flows that have been active too long: they stay ended if the group is taken back."""
    refused: dict[tuple[str | None, str], Refused] = {}
    for item in items:
        slot = state.find(item.partition_key, item.id, turn.now_ms)
        refusal = refuse_overdue(state, slot, turn)
        if refusal is not None:
            refused[item.partition_key, item.id] = refusal
    return refused


def _aborted(outcome: Outcome) -> Refused:
    if isinstance(outcome, Refused):
        return outcome
    return Refused(
        "batch_aborted",
        f"{outcome.id!r} was not written: another item of its group was refused",
        {"flow_id": outcome.id, "partition_key": outcome.partition_key},
    )


def refuse(code: str, record: Record, message: str, **fields: object) -> Refused:
    """Refuse an item on account of its record."""
    return Refused(
        code, message, {"flow_id": record.id, "partition_key": record.partition_key, **fields}
    )


def not_found(item: Item) -> Refused:
    """Refuse an item whose flow is absent."""
    if (argument := unknowable(item)) is not None:
        return invalid(item, argument, long(argument))
    where = "" if item.partition_key is None else f" in partition {item.partition_key!r}"
    return Refused(
        "flow_not_found",
        f"no flow {item.id!r}{where}; a flow with a partition key is found only with that key",
        {"flow_id": item.id, "partition_key": item.partition_key},
    )


def stale(record: Record, why: str) -> Refused:
    """Refuse a holder whose lease is not the current one."""
    return refuse(
        "stale_lease",
        record,
        f"flow {record.id!r}: {why} (its fencing token is {record.fencing_token}); "
        "stop working on it",
        fencing_token=record.fencing_token,
    )


def settle_mark(operation: str, lease_token: str, fencing_token: int) -> str:
    """Return what a record remembers of the command that used up its lease."""
    return f"{operation} {fencing_token} {lease_token}"


def check_lease(
    record: Record, lease_token: str | None, fencing_token: int | None, operation: str
) -> Record | Refused | None:
    """Return None for the current holder, the record for its repeat, else a refusal.

    The deadline is not looked at: an expired lease that nobody took over is still good, because
    the fencing token decides, not the clock.
    """
    if (
        lease_token is not None
        and record.lease_token == lease_token
        and record.fencing_token == fencing_token
    ):
        assert record.state == RUNNING, "only a leased record has a lease token"
        return None
    if (
        record.settled is not None
        and lease_token is not None
        and fencing_token is not None
        and record.settled == settle_mark(operation, lease_token, fencing_token)
    ):
        return record
    if record.state != RUNNING:
        return stale(record, f"it is {record.state} and not leased")
    return stale(record, f"the lease is held by {record.lease_owner!r} under other tokens")
