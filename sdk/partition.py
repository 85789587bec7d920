"""Partition keys from attributes: ("t1", "i9") is "t1:i9"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..flow.errors import InvalidArgument
from ..flow.limits import NAME_BYTES_MAX


def partition_key_of(names: Sequence[str], attributes: Mapping[str, Any], owner: str) -> str:
    r"""Return the key made of the named attributes, in their order.

    A ":" or "\" inside a part is escaped with "\", so that no two lists of parts give one key. An
    int is written in decimal, a bool as `true` or `false`, a float as `repr` has it (1.0, not 1),
    negative zero as zero. Parts are compared as written: the int 7 and the str "7" are the same
    tenant, 1, 1.0 and True are three.

    Raises:
        InvalidArgument: naming the part that is missing or of another type, or if the key is
            empty or too long.
    """
    key = ":".join([_part(name, attributes, owner) for name in names])
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{owner}: the partition key {key!r} has no UTF-8 form: {error}",
            argument="partition_key",
        ) from None
    if not 1 <= size <= NAME_BYTES_MAX:
        raise InvalidArgument(
            f"{owner}: the partition key of {', '.join(names)} has 1 to {NAME_BYTES_MAX} bytes; "
            f"this one has {size}",
            argument="partition_key",
        )
    return key


def _part(name: str, attributes: Mapping[str, Any], owner: str) -> str:
    value = attributes.get(name)
    if isinstance(value, str):
        # str.__str__: a str that is also an enum would else give its member's name.
        return str.__str__(value).replace("\\", "\\\\").replace(":", "\\:")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value + 0.0)
    if value is None:
        raise InvalidArgument(
            f"{owner}: {name} is missing; the partition key is made of it", argument=name
        )
    raise InvalidArgument(
        f"{owner}: {name} is part of the partition key, so it is a str, int, finite float or "
        f"bool; got {value!r}",
        argument=name,
    )
