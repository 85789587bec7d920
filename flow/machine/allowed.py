"""What the types of a request leave open: refused here, before anything is staged.

The SDK sends none of it. Each of these would break an index or a frame later, where a failure
ends the shard's process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from msgspec.msgpack import Encoder

from ..commands import Item, NewFlow
from ..errors import Refused
from ..limits import ATTRIBUTES_PACKED_BYTES_MAX, NAME_BYTES_MAX
from ..record import RUNNING, TERMINAL_STATES
from ..replies import Rejected

RESERVED_STATES: Final = TERMINAL_STATES | {RUNNING, ""}
"""No creation and no move leads here. (The decoder lets an empty state of a new flow pass.)"""

_encode = Encoder().encode
_id_of = attrgetter("id")


def invalid(item: Item, argument: str, message: str) -> Refused:
    """Refuse an item for what it says itself, whatever the state of its flow."""
    fields = {"flow_id": item.id, "partition_key": item.partition_key, "argument": argument}
    if is_too_long(item.id) or (item.partition_key and is_too_long(item.partition_key)):
        del fields["flow_id"], fields["partition_key"]
    return Refused("invalid_argument", message, fields)


def reserved(item: Item, argument: str, state: str) -> Refused:
    """Refuse an item that would put its flow into a state that only other commands lead to."""
    return invalid(
        item,
        argument,
        f"{argument} is a state that work waits in; {state!r} is reserved: flows get there by a "
        "claim, complete, fail or cancel",
    )


def named_twice(items: Sequence[Item]) -> Rejected | None:
    """Refuse a batch in which two items mean the same flow: one of them would be lost."""
    if len(set(map(_id_of, items))) == len(items):
        return None
    seen: set[tuple[str | None, str]] = set()
    for item in items:
        identity = (item.partition_key, item.id)
        if identity in seen:
            return Rejected(invalid(item, "items", "two items of the batch name the same flow"))
        seen.add(identity)
    return None


def oversized(item: NewFlow) -> Refused | None:
    """Refuse a creation whose names, attributes or names of values are over their limits."""
    for argument in _NAMES:
        name = getattr(item, argument)
        if name is not None and is_too_long(name):
            return invalid(item, argument, _too_long(argument))
    if item.attributes and are_too_large(item.attributes):
        return invalid(item, "attributes", TOO_LARGE)
    if item.values and (fault := fault_of_names(item.values)) is not None:
        return invalid(item, "values", fault)
    return None


_NAMES = (
    "id",
    "partition_key",
    "type",
    "state",
    "correlation_id",
    "parent_flow_id",
    "root_flow_id",
)


def unknown(item: Any) -> Refused | None:
    """Refuse an identity that no flow can have; it is too long to be repeated in an answer."""
    for argument, name in (("id", item.id), ("partition_key", item.partition_key)):
        if name is not None and is_too_long(name):
            return invalid(item, argument, _too_long(argument))
    return None


def fault_of_names(names: Iterable[str]) -> str | None:
    """Return what is wrong with names of values; None = nothing."""
    for name in names:
        if not name or is_too_long(name):
            return f"a value has a name of 1 to {NAME_BYTES_MAX} bytes of UTF-8"
    return None


def is_too_long(name: str) -> bool:
    """Whether a name takes more than its limit in bytes."""
    # No character takes more than four bytes.
    return len(name) > NAME_BYTES_MAX // 4 and len(name.encode()) > NAME_BYTES_MAX


def are_too_large(attributes: Mapping[str, object]) -> bool:
    """Whether attributes take more than any that are within their limits one by one."""
    return len(_encode(attributes)) > ATTRIBUTES_PACKED_BYTES_MAX


TOO_LARGE = f"attributes take {ATTRIBUTES_PACKED_BYTES_MAX} bytes at most"


def _too_long(argument: str) -> str:
    return f"{argument} takes more than {NAME_BYTES_MAX} bytes of UTF-8"
