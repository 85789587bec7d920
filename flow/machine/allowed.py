"""What the types of a request leave open: refused here, before anything is staged.

The SDK sends none of it. Each would break an index, a frame or a later decision, and what fails
there ends the shard's process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from msgspec.msgpack import Encoder

from ..bounds import Attributes, is_long
from ..commands import Item, NewFlow
from ..errors import Refused
from ..family import Spawn
from ..limits import ATTRIBUTES_PACKED_BYTES_MAX, NAME_BYTES_MAX
from ..record import RUNNING, TERMINAL_STATES
from ..replies import Rejected

RESERVED_STATES: Final = TERMINAL_STATES | {RUNNING, ""}
"""No creation and no move leads here."""

_NAMES: Final = (
    "id",
    "partition_key",
    "type",
    "state",
    "correlation_id",
    "parent_flow_id",
    "root_flow_id",
)
_encode: Final = Encoder().encode


class Named(Protocol):
    """What says which flow it is about."""

    @property
    def id(self) -> str:
        """The flow's id."""
        ...

    @property
    def partition_key(self) -> str | None:
        """Its partition; None: it has none."""
        ...


def invalid(item: Named, argument: str, message: str) -> Refused:
    """Refuse an item for what it says, whatever the state of its flow."""
    fields: dict[str, object] = {"argument": argument}
    if unknowable(item) is None:
        fields |= {"flow_id": item.id, "partition_key": item.partition_key}
    return Refused("invalid_argument", message, fields)


def reserved(item: Named, argument: str) -> Refused:
    """Refuse an item that would put its flow where only other commands lead."""
    return invalid(
        item,
        argument,
        f"{argument} is a state that work waits in; {', '.join(sorted(TERMINAL_STATES))} and "
        f"{RUNNING} are reserved: flows get there by a claim, complete, fail or cancel",
    )


def named_twice(items: Sequence[Item]) -> Rejected | None:
    """Refuse a batch in which two items mean the same flow; None = all are distinct."""
    # Nearly always the ids alone tell: a look at the partitions would cost twice as much.
    if len({item.id for item in items}) == len(items):
        return None
    seen: set[tuple[str | None, str]] = set()
    for item in items:
        identity = (item.partition_key, item.id)
        if identity in seen:
            return Rejected(invalid(item, "items", "the batch names a flow twice"))
        seen.add(identity)
    return None


def fault_of_new(item: NewFlow, packed_bytes: int) -> Refused | None:
    """Refuse a flow that no decision could have made; `packed_bytes`: what the item takes."""
    if item.state in RESERVED_STATES:
        return reserved(item, "state")
    if item.values and (fault := fault_of_names(item, item.values)) is not None:
        return fault
    if item.payload is not None:
        packed_bytes -= len(item.payload)
    if packed_bytes <= NAME_BYTES_MAX:
        return None
    for argument in _NAMES:
        name = getattr(item, argument)
        if name is not None and is_long(name):
            return invalid(item, argument, long(argument))
    return fault_of_attributes(item, item.attributes) if item.attributes else None


def fault_of_spawn(spawn: Spawn, shards: int) -> Refused | None:
    """Refuse a fan-out that leads nowhere: to a reserved state, or to a shard that is not there."""
    for argument in ("group_id", "wait_state", "success", "failure"):
        name = getattr(spawn, argument)
        if name is not None and is_long(name):
            return invalid(spawn, argument, long(argument))
    if RUNNING in (spawn.success, spawn.failure):
        argument = "success" if spawn.success == RUNNING else "failure"
        return invalid(spawn, argument, f"flows get to {RUNNING} by a claim only")
    if spawn.wait != "none":
        if spawn.wait_state is None or spawn.success is None or spawn.failure is None:
            return invalid(spawn, "wait", "who waits needs wait_state, success and failure")
        if spawn.wait_state in RESERVED_STATES:
            return reserved(spawn, "wait_state")
    if spawn.shards != sorted({shard for shard in spawn.shards if shard < shards}):
        return invalid(spawn, "shards", f"they are some of 0 to {shards - 1}, ascending")
    return None


def fault_of_names(item: Named, names: Iterable[str]) -> Refused | None:
    """Refuse names of values that are empty or over their limit."""
    if any(not name or is_long(name) for name in names):
        return invalid(item, "values", long("the name of a value"))
    return None


def fault_of_attributes(item: Named, attributes: Attributes) -> Refused | None:
    """Refuse attributes that take more than any within their limits, one by one, could."""
    if len(_encode(attributes)) <= ATTRIBUTES_PACKED_BYTES_MAX:
        return None
    return invalid(
        item, "attributes", f"a flow's attributes take at most {ATTRIBUTES_PACKED_BYTES_MAX} bytes"
    )


def unknowable(item: Named) -> str | None:
    """Return which part of an item's identity is too long for any flow, and for an answer."""
    if is_long(item.id):
        return "id"
    if item.partition_key is not None and is_long(item.partition_key):
        return "partition_key"
    return None


def long(what: str) -> str:
    """Say what the limit of a name is."""
    return f"{what} takes 1 to {NAME_BYTES_MAX} bytes of UTF-8"
