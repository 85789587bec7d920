"""What a user may give as a duration or an instant, as integer milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..flow.errors import InvalidArgument
from ..flow.limits import INTEGER_MAX

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def duration_ms(value: Any, name: str) -> int:
    """Return a duration in whole milliseconds; a timedelta is rounded down.

    Raises:
        InvalidArgument: naming the argument, if it is negative, too large or of another type.
    """
    if isinstance(value, timedelta):
        value = value // _MILLISECOND
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise InvalidArgument(
            f"{name} is a duration: an int in ms from 0 to {INTEGER_MAX} or a timedelta; "
            f"got {value!r}",
            argument=name,
        )
    return value


def instant_ms(value: Any, name: str) -> int:
    """Return an instant in milliseconds since the epoch; a datetime is rounded down.

    Raises:
        InvalidArgument: naming the argument, if it is a naive datetime, before the epoch, too
            large or of another type.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise InvalidArgument(
                f"{name} is a naive datetime, which is no instant; give it a time zone, for "
                f"example value.replace(tzinfo=timezone.utc); got {value!r}",
                argument=name,
            )
        value = (value - _EPOCH) // _MILLISECOND
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise InvalidArgument(
            f"{name} is an instant: an int in ms since the epoch, from 0 to {INTEGER_MAX}, or an "
            f"aware datetime; got {value!r}",
            argument=name,
        )
    return value
