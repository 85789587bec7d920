"""Named values and attributes: what a write carries beside its main effect."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from msgspec.structs import replace

from ..bounds import Attributes, PackedValues
from ..commands import SharedValuePut, ValuePut
from ..errors import Refused
from ..limits import ATTRIBUTES_MAX, NAMED_VALUES_MAX
from ..record import NO_EXTRAS, Extras, NamedValue, Record, value_ref
from ..replies import Data, Done, Reply
from .allowed import fault_of_attributes, fault_of_names
from .expiry import refuse_overdue
from .guard import not_found, refuse
from .state import ShardState
from .turn import Turn

_DIGEST_BYTES = 16


def with_values(
    record: Record, values: PackedValues | None, attributes: Attributes | None, turn: Turn
) -> Extras | Refused | None:
    """Return the record's extras after a write brought named values and attributes.

    First write wins: equal bytes change nothing, other bytes are a `value_conflict`. Attributes
    are merged by name.
    """
    extras = record.extras
    if not values and not attributes:
        return extras
    before = extras or NO_EXTRAS
    named = before.values
    if values:
        if (fault := fault_of_names(record, values)) is not None:
            return fault
        fresh = name_values(named or {}, values, turn)
        if isinstance(fresh, str):
            return refuse(
                "value_conflict",
                record,
                f"flow {record.id!r} has a value named {fresh!r} with other bytes; "
                "flow_value_put(..., override=True) replaces it",
                name=fresh,
            )
        if len(fresh) > NAMED_VALUES_MAX:
            return refuse(
                "invalid_argument",
                record,
                f"flow {record.id!r} would have {len(fresh)} named values; "
                f"{NAMED_VALUES_MAX} is the most",
            )
        named = fresh
    facts = before.attributes
    if attributes:
        facts = {**(facts or {}), **attributes}
        if len(facts) > ATTRIBUTES_MAX:
            return refuse(
                "invalid_argument",
                record,
                f"flow {record.id!r} would have {len(facts)} attributes; "
                f"{ATTRIBUTES_MAX} is the most",
            )
        if (fault := fault_of_attributes(record, facts)) is not None:
            return fault
    if named is before.values and facts == before.attributes:
        return extras
    return replace(before, values=named, attributes=facts)


def name_values(
    named: Mapping[str, NamedValue], values: PackedValues, turn: Turn, *, override: bool = False
) -> dict[str, NamedValue] | str:
    """Return the named values after adding some, or the name that has other bytes already."""
    fresh: list[tuple[str, bytes, bytes]] = []
    for name, data in values.items():
        digest = digest_of(data)
        have = named.get(name)
        if have is not None and have.digest == digest:
            continue
        if have is not None and not override:
            return name
        fresh.append((name, data, digest))
    merged = dict(named)
    for name, data, digest in fresh:
        merged[name] = NamedValue(turn.value(data), len(data), digest)
    return merged


def digest_of(data: bytes) -> bytes:
    """Return a digest that tells values apart (BLAKE2b, RFC 7693)."""
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def value_put(state: ShardState, command: ValuePut, turn: Turn) -> Reply:
    """Set one named value; equal bytes write nothing."""
    if (fault := fault_of_names(command, (command.name,))) is not None:
        return Done([fault], applied=False)
    slot = state.find(command.partition_key, command.id, turn.now_ms)
    if slot is None:
        return Done([not_found_named(command)], applied=False)
    if (overdue := refuse_overdue(state, slot, turn)) is not None:
        return Done([overdue], applied=False)
    record = slot.record
    assert record is not None
    extras = record.extras or NO_EXTRAS
    named = extras.values or {}
    fresh = name_values(named, {command.name: command.value}, turn, override=command.override)
    if isinstance(fresh, str):
        conflict = refuse(
            "value_conflict",
            record,
            f"flow {record.id!r} has a value named {fresh!r} with other bytes; "
            "pass override=True to replace it",
            name=fresh,
        )
        return Done([conflict], applied=False)
    if fresh == named:
        return Done([record])
    if len(fresh) > NAMED_VALUES_MAX:
        full = refuse(
            "invalid_argument",
            record,
            f"flow {record.id!r} has {len(named)} named values; {NAMED_VALUES_MAX} is the most",
        )
        turn.values.clear()
        return Done([full], applied=False)
    after = replace(
        record,
        version=record.version + 1,
        updated_at_ms=max(turn.now_ms, record.updated_at_ms),
        event="value_put",
        event_from=record.logical_state,
        event_worker=record.lease_owner,
        event_details={"name": command.name},
        extras=replace(extras, values=fresh),
    )
    return Done([turn.put(slot, after)])


def not_found_named(command: ValuePut) -> Refused:
    """Refuse a named value of a flow that is absent."""
    return not_found(command)  # type: ignore[arg-type]  # it has the two fields that are read


def shared_value_put(state: ShardState, command: SharedValuePut, turn: Turn) -> Reply:
    """Store a value that belongs to no flow and return its reference."""
    return Data(value_ref(turn.value(command.value)))
