"""The values of a shard: found in the log by number, and the newest small ones in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol
from zlib import crc32

import msgspec

from ..errors import CorruptLog
from ..events import ValueStored
from ..limits import VALUE_CACHE_BYTES, VALUE_CACHE_ITEM_BYTES_MAX
from .dead import DeadBytes
from .facts import FactPlaces
from .keydir import Keydir
from .position import Position, count_bytes

_decode = msgspec.msgpack.Decoder(ValueStored).decode


_RECENT_OVERHEAD_BYTES = 150
"""What an entry costs beside its bytes: the object, its number, and its place in two tables."""


_ORDER_SLACK = 1_024


class Source(Protocol):
    """Where entries are read: the log, or a frame that is being made."""

    def entry(self, position: Position) -> bytes:
        """Return the bytes of one entry."""
        ...

    def corrupt(self, position: Position, why: str) -> CorruptLog:
        """Return the error for damage met at a position."""
        ...


class Values:
    """Reads values by number, with one positioned read each, checksum verified."""

    def __init__(self) -> None:
        self.keydir = Keydir()
        self.add = self.keydir.set
        """add(number, segment, offset, length): note where a value lies."""
        self._recent: dict[int, bytes] = {}
        self._recent_order: deque[int] = deque()
        """Numbers by age; some are dropped already. A dict's own front is slow to find."""
        self._recent_bytes = 0
        self.reads = 0
        self.dead = DeadBytes()
        self.facts = FactPlaces(self.dead)
        self.elsewhere: Callable[[int], Position | None] = _nowhere
        """Where a value lies whose flow is not in memory, by its number."""
        self.take = self.keydir.take
        """take(number): where a value lies, packed, that is not to be known here any more."""
        self.move = self.keydir.move
        """move(number, old, new): note that a value lies elsewhere now; False if it no longer lay
        where it did."""

    def place(self, number: int) -> Position | None:
        """Return where a value lies; None if there is none of that number."""
        position = self.keydir.get(number)
        return self.elsewhere(number) if position is None else position

    def bury(self, trail: bytes) -> None:
        """Count records that no history has any more."""
        for segment, (count, size) in count_bytes(trail).items():
            self.dead.add_entries(segment, count, size)

    def keep(self, number: int, data: bytes) -> None:
        """Keep a value that was just written in memory for a while, if it is small."""
        size = len(data)
        if size > VALUE_CACHE_ITEM_BYTES_MAX:
            return
        self._recent[number] = data
        self._recent_order.append(number)
        self._recent_bytes += size + _RECENT_OVERHEAD_BYTES
        while self._recent_bytes > VALUE_CACHE_BYTES:
            self._forget(self._recent_order.popleft())

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget values whose flow is gone."""
        for number in numbers:
            position = self.keydir.pop(number)
            if position is not None:
                self.dead.add(position)
            self._forget(number)
        if len(self._recent_order) > 2 * len(self._recent) + _ORDER_SLACK:
            self._recent_order = deque(self._recent)

    def _forget(self, number: int) -> None:
        data = self._recent.pop(number, None)
        if data is not None:
            self._recent_bytes -= len(data) + _RECENT_OVERHEAD_BYTES

    def read(self, source: Source, number: int) -> bytes | None:
        """Return a value's bytes; None if there is none of that number.

        Raises:
            CorruptLog: the bytes are not those that were written.
        """
        data = self._recent.get(number)
        if data is not None:
            return data
        position = self.place(number)
        if position is None:
            return None
        self.reads += 1
        try:
            stored = _decode(source.entry(position))
        except msgspec.MsgspecError as error:
            raise source.corrupt(position, f"not a value ({error})") from error
        if stored.number != number or crc32(stored.data) != stored.crc:
            raise source.corrupt(position, f"not the bytes of value {number}")
        return stored.data

    def __len__(self) -> int:
        return len(self.keydir)


def _nowhere(number: int) -> Position | None:
    return None
