"""Creation, idempotent or not, and creation that is claimed in the same write."""

from __future__ import annotations

from hashlib import blake2b

from msgspec.msgpack import Encoder
from msgspec.structs import replace

from ..commands import Create, NewFlow, StartAndClaim
from ..errors import Refused
from ..index.table import Slot
from ..limits import INTEGER_MAX, NAME_BYTES_MAX, RESERVED_RETRY_MS
from ..record import RUNNING, Extras, Record
from ..replies import Done, Outcome, Reply
from .allowed import RESERVED_STATES, fault_of_new, invalid
from .guard import decide_items, refuse
from .state import ShardState, drop_of
from .turn import Turn
from .values import name_values

_DIGEST_BYTES = 8
_ARRAY16 = 0xDC
_NIL = b"\xc0"
_encode = Encoder(order="deterministic").encode
# Equal attributes in another order are equal arguments.


def create(state: ShardState, command: Create, turn: Turn) -> Reply:
    """Create each item's flow."""
    return decide_items(
        state,
        command.items,
        create_item,
        turn,
        independent=command.independent,
        ends_overdue=False,
    )


def create_item(state: ShardState, item: NewFlow, turn: Turn, txn: str | None = None) -> Outcome:
    """Create one flow, or find its equal. `txn`: the transaction that may have reserved its id."""
    packed = _encode(replace(item, idempotent=False) if item.idempotent else item)
    # Nearly all are too small to have anything over its limit: they are not looked at closely.
    if len(packed) > NAME_BYTES_MAX or item.values or item.state in RESERVED_STATES:
        fault = fault_of_new(item, len(packed))
        if fault is not None:
            return fault
    digest = _digest(packed)
    if state.families.reserved and (reserved := refuse_reserved(state, item, txn)) is not None:
        return reserved
    slot = state.table.get(item.partition_key, item.id)
    if slot is None and state.cold.rows:
        slot = state.cold.find(item.partition_key, item.id)
    if slot is not None:
        if txn is not None:
            # Its retention was over when the id was reserved, whatever this command's time is.
            turn.drops.append(drop_of(slot))
        elif (taken := _taken(state, slot, item, digest, turn)) is not None:
            return taken
    return turn.put(Slot(), new_record(item, digest, _max_active_ms(state, item), turn))


def refuse_reserved(state: ShardState, item: NewFlow, txn: str | None = None) -> Refused | None:
    """Refuse an id that a fan-out has reserved whose outcome is not known yet."""
    holder = state.families.reserved.get((item.partition_key, item.id))
    if holder is None or holder == txn:
        return None
    # Whether a flow will have this id is not known yet; in a moment it is.
    return Refused(
        "overloaded",
        f"{item.id!r} is reserved by a fan-out that is under way; try again in a moment",
        {
            "flow_id": item.id,
            "partition_key": item.partition_key,
            "reason": "reserved",
            "retry_after_ms": RESERVED_RETRY_MS,
        },
    )


def _taken(
    state: ShardState, slot: Slot, item: NewFlow, digest: bytes, turn: Turn
) -> Outcome | None:
    """Return what an existing flow means for its creation; None = its retention is over."""
    if state.find(item.partition_key, item.id, turn.now_ms) is None:
        turn.drops.append(drop_of(slot))
        return None
    record = slot.record
    assert record is not None
    if not item.idempotent:
        return refuse(
            "flow_already_exists",
            record,
            f"flow {record.id!r} exists ({record.logical_state}); pass idempotent=True to accept "
            "an equal creation",
        )
    if record.digest != digest:
        return refuse(
            "idempotency_conflict",
            record,
            f"flow {record.id!r} was created with other arguments; use another id",
        )
    return record


def _max_active_ms(state: ShardState, item: NewFlow) -> int | None:
    """Return how long the flow may be active: its own word, else its type's policy."""
    if item.max_active_ms is not None:
        return item.max_active_ms
    stored = state.policies.get(item.type)
    return None if stored is None else stored.policy.get("max_active_ms")


def new_record(item: NewFlow, digest: bytes, max_active_ms: int | None, turn: Turn) -> Record:
    """Return the first record of a flow."""
    now_ms = turn.now_ms
    payload = item.payload
    return Record(
        item.id,
        item.partition_key,
        item.type,
        item.state,
        None,
        1,
        0,
        0,
        0,
        item.priority,
        now_ms,
        now_ms,
        now_ms if item.run_at_ms is None else item.run_at_ms,
        turn.order(),
        payload_number=None if payload is None else turn.value(payload),
        payload_size=0 if payload is None else len(payload),
        digest=digest,
        event="created",
        extras=_extras(item, max_active_ms, turn),
    )


def _extras(item: NewFlow, max_active_ms: int | None, turn: Turn) -> Extras | None:
    if (
        item.correlation_id is None
        and item.parent_flow_id is None
        and item.root_flow_id is None
        and not item.attributes
        and not item.values
        and item.retention_ttl_ms is None
        and max_active_ms is None
        and item.history_max_events is None
    ):
        return None
    named = name_values({}, item.values, turn) if item.values else None
    assert not isinstance(named, str), "a new flow has no values to conflict with"
    return Extras(
        parent_flow_id=item.parent_flow_id,
        root_flow_id=item.root_flow_id,
        correlation_id=item.correlation_id,
        attributes=item.attributes or None,
        values=named,
        retention_ttl_ms=item.retention_ttl_ms,
        max_active_ms=max_active_ms,
        history_max_events=item.history_max_events,
    )


def _digest(packed: bytes) -> bytes:
    """Return the digest of packed creation arguments (BLAKE2b, RFC 7693), `idempotent` left out.

    Of the array without its header and the nils at its end: so a field that a later version adds,
    None where it is not given, leaves the digests of old creations as they are.
    """
    assert packed[0] == _ARRAY16, "an array of 16 fields or more"
    return blake2b(packed[3:].rstrip(_NIL), digest_size=_DIGEST_BYTES).digest()


def start_and_claim(state: ShardState, command: StartAndClaim, turn: Turn) -> Reply:
    """Create a flow and lease it to its creator, in one write and one version."""
    if command.item.idempotent or command.item.run_at_ms is not None:
        fault = invalid(
            command.item,
            "idempotent" if command.item.idempotent else "run_at_ms",
            "a flow that is leased from its first moment is new, and not due later",
        )
        return Done([fault], applied=False)
    outcome = create_item(state, command.item, turn)
    if isinstance(outcome, Refused):
        return Done([outcome], applied=False)
    slot, record = turn.puts.pop()
    started = replace(
        record,
        state=RUNNING,
        run_state=record.state,
        fencing_token=1,
        lease_owner=command.worker,
        lease_token=turn.tokens(1)[0],
        lease_deadline_ms=min(turn.now_ms + command.lease_ms, INTEGER_MAX),
        event_worker=command.worker,
    )
    return Done([turn.put(slot, started)])
