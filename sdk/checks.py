"""Checks of what users give, before anything is sent. The messages say what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import UNSET

from ..flow import limits
from ..flow.errors import InvalidArgument
from ..flow.record import RUNNING, TERMINAL_STATES

_ASCII_SURE: Final = limits.NAME_BYTES_MAX
NOT_GIVEN: Final[Any] = UNSET
"""The default of arguments for which None is a value."""


def check_name(value: Any, argument: str) -> str:
    """Return an id, type, state, partition key or worker: 1 to 512 bytes of UTF-8."""
    # Ids are checked by the hundred thousand: the common case is three cheap looks.
    if type(value) is str and 0 < len(value) <= _ASCII_SURE and value.isascii():
        return value
    if not isinstance(value, str):
        raise InvalidArgument(
            f"{argument} is a str of 1 to {limits.NAME_BYTES_MAX} bytes of UTF-8; got {value!r}",
            argument=argument,
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"{argument} has a lone surrogate and is no text; got {value!r}", argument=argument
        ) from None
    if not 1 <= size <= limits.NAME_BYTES_MAX:
        raise InvalidArgument(
            f"{argument} has {size} bytes of UTF-8; 1 to {limits.NAME_BYTES_MAX} are allowed",
            argument=argument,
        )
    return str(value)


def check_name_or_none(value: Any, argument: str) -> str | None:
    """Return a name, or None."""
    return None if value is None else check_name(value, argument)


def check_int(value: Any, argument: str, low: int = 0, high: int = limits.INTEGER_MAX) -> int:
    """Return an integer within bounds; a bool is none."""
    if type(value) is int and low <= value <= high:
        return value
    raise InvalidArgument(
        f"{argument} is an integer from {low} to {high}; got {value!r}", argument=argument
    )


def check_bool(value: Any, argument: str) -> bool:
    """Return a bool; 0 and 1 are none."""
    if value is True or value is False:
        return bool(value)
    raise InvalidArgument(f"{argument} is True or False; got {value!r}", argument=argument)


def check_word(value: Any, argument: str, words: tuple[Any, ...]) -> Any:
    """Return one of the words that are allowed."""
    if isinstance(value, str) and value in words:
        return words[words.index(value)]
    raise InvalidArgument(
        f"{argument} is one of {', '.join(map(repr, words))}; got {value!r}", argument=argument
    )


def check_open_state(value: Any, argument: str) -> str:
    """Return a state that a flow can be put into: neither `running` nor terminal."""
    state = check_name(value, argument)
    if state == RUNNING or state in TERMINAL_STATES:
        raise InvalidArgument(
            f"{argument} is a state that work waits in; {state!r} is reserved: flows get there by "
            "a claim, complete, fail or cancel",
            argument=argument,
        )
    return state


def check_states(value: Any, argument: str = "state") -> list[str] | None:
    """Return logical states: "any" → None, a name → a list of one, or several names."""
    if value == "any":
        return None
    if isinstance(value, str):
        return [check_name(value, argument)]
    return _names(value, argument)


def check_partitions(partition_key: Any, partition_keys: Any) -> list[str] | None:
    """Return the partitions of a filter; None = every one."""
    if partition_keys is None:
        return None if partition_key is None else [check_name(partition_key, "partition_key")]
    if partition_key is not None:
        raise InvalidArgument("give partition_key or partition_keys, not both")
    return _names(partition_keys, "partition_keys")


def check_wanted(value: Any, argument: str = "values") -> bool | list[str]:
    """Return which named values an answer is to bring along: all, none, or those listed."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return [check_name(value, argument)]
    return _names(value, argument, least=0)


def _names(value: Any, argument: str, least: int = 1) -> list[str]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidArgument(
            f"{argument} is a name or a list of names; got {value!r}", argument=argument
        )
    names = list(dict.fromkeys(check_name(name, argument) for name in value))
    if not least <= len(names) <= limits.FILTER_NAMES_MAX:
        raise InvalidArgument(
            f"{argument} lists {least} to {limits.FILTER_NAMES_MAX} names; got {len(names)}",
            argument=argument,
        )
    return names


def check_attributes(value: Any, argument: str = "attributes") -> dict[str, Any] | None:
    """Return attributes: names to str, int, finite float, bool or None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument(
            f"{argument} is a dict of names to plain values; got {value!r}", argument=argument
        )
    if len(value) > limits.ATTRIBUTES_MAX:
        raise InvalidArgument(
            f"{argument} has {len(value)} entries; {limits.ATTRIBUTES_MAX} is the most",
            argument=argument,
        )
    size = 0
    for name, fact in value.items():
        check_name(name, argument)
        _check_attribute(name, fact, argument)
        size += len(name) + (len(fact) if isinstance(fact, str) else 8)
    if size > limits.ATTRIBUTES_BYTES_MAX:
        raise InvalidArgument(
            f"{argument} take {size} characters; {limits.ATTRIBUTES_BYTES_MAX} is the most: "
            "attributes are for queries, put data into the payload or a named value",
            argument=argument,
        )
    return dict(value)


def _check_attribute(name: str, fact: Any, argument: str) -> None:
    if fact is None or isinstance(fact, bool):
        return
    if type(fact) is int and abs(fact) <= limits.INTEGER_MAX:
        return
    if type(fact) is float and math.isfinite(fact):
        return
    if type(fact) is str:
        try:
            if len(fact.encode()) <= limits.ATTRIBUTE_BYTES_MAX:
                return
        except UnicodeEncodeError:
            pass
    raise InvalidArgument(
        f"{argument}[{name!r}] is a str up to {limits.ATTRIBUTE_BYTES_MAX} bytes, an int within "
        f"±{limits.INTEGER_MAX}, a finite float, a bool or None; got {fact!r}",
        argument=argument,
    )


def check_batch(items: Any, argument: str = "items") -> list[Mapping[str, Any]]:
    """Return a batch's items: 1 to 1,000 mappings."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise InvalidArgument(f"{argument} is a list of dicts; got {items!r}", argument=argument)
    found = items if isinstance(items, list) else list(items)
    if not 1 <= len(found) <= limits.BATCH_ITEMS_MAX:
        raise InvalidArgument(
            f"{argument} has {len(found)} items; 1 to {limits.BATCH_ITEMS_MAX} are allowed",
            argument=argument,
        )
    for place, item in enumerate(found):
        if not isinstance(item, Mapping):
            raise InvalidArgument(f"{argument}[{place}] is a dict; got {item!r}", argument=argument)
    return found


def check_distinct(items: list[Any], argument: str = "items") -> None:
    """Refuse two items that mean the same flow."""
    if len({(item.partition_key, item.id) for item in items}) == len(items):
        return
    seen = set()
    for item in items:
        identity = (item.partition_key, item.id)
        if identity in seen:
            raise InvalidArgument(
                f"{argument} name flow {item.id!r} in partition {item.partition_key!r} twice",
                argument=argument,
            )
        seen.add(identity)


def not_yet(argument: str) -> InvalidArgument:
    """Return the error for an argument whose effect this version does not have."""
    return InvalidArgument(
        f"{argument} has no effect in this version of shardflow yet, so it is refused rather than "
        "ignored; leave it out",
        argument=argument,
    )
