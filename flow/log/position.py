"""Where an entry lies: segment, offset, length, packed small, because there is one per version."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout
from typing import NamedTuple

_POSITION = Layout("<III")
POSITION_BYTES = _POSITION.size
OFFSET_MAX = 2**32 - 1

pack = _POSITION.pack
"""pack(segment, offset, length) → 12 bytes; trails are these, one after the other."""


class Position(NamedTuple):
    """An entry in the log."""

    segment: int
    offset: int
    length: int


def count_bytes(trail: bytes) -> dict[int, tuple[int, int]]:
    """Return, by segment, how many entries a trail has there, and their bytes."""
    found: dict[int, tuple[int, int]] = {}
    for segment, _, length in _POSITION.iter_unpack(trail):
        count, size = found.get(segment, (0, 0))
        found[segment] = count + 1, size + length
    return found


def unpack(trail: bytes) -> Iterator[Position]:
    """Return the positions of a trail, oldest first."""
    return (Position(*parts) for parts in _POSITION.iter_unpack(trail))
