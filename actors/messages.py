"""What passes between a shard's service and whoever carries its messages."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..flow.engine import Answer


class Arrival(NamedTuple):
    """A request, who asked, and under which number."""

    caller: Any
    number: int
    request: Any


class Departure(NamedTuple):
    """An answer on its way to who asked."""

    caller: Any
    number: int
    answer: Answer
