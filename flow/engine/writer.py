"""The next frame: packs what turns stage, and knows where each piece will lie."""

from __future__ import annotations

from zlib import crc32

from ..codec import encoder
from ..events import Delivered, Dropped, Fact, Trimmed, Unprepared, ValueStored
from ..index.table import Slot
from ..limits import HISTORY_EVENTS_DEFAULT
from ..log.frame import TABLE_ENTRY_BYTES
from ..log.log import Log
from ..log.position import POSITION_BYTES, Position, pack
from ..log.values import Values
from ..machine.state import forget_spent
from ..machine.turn import Turn
from ..record import Record

_encode = encoder.encode
_encode_into = encoder.encode_into


class Writer:
    """Collects the turns of one batch into one frame. Every record is packed exactly once."""

    def __init__(self, log: Log, values: Values) -> None:
        self._log = log
        self._values = values
        self.frame = log.begin()
        self._segment, self._base = log.position
        self._lengths: list[int] = []
        self._trimmed: list[int] = []
        """Values that the turn's records have made histories forget."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not self._lengths

    @property
    def size(self) -> int:
        """How long the frame is going to be."""
        return len(self.frame) + TABLE_ENTRY_BYTES * len(self._lengths)

    def add(self, turn: Turn, *, packs: bool = False) -> tuple[int, int]:
        """Pack a turn; return where in the frame its records stand, one after the other.

        `packs`: the slots keep their records packed as well.
        """
        for drop in turn.drops:
            self._add_tombstone(drop)
            self._values.drop(drop.values)
        if turn.values:
            self._add_values(turn)
        start = len(self.frame)
        self._add_records(turn, packs)
        end = len(self.frame)
        if self._trimmed:
            self._note_trimmed()
        for fact in turn.facts:
            self.add_fact(fact)
        return start, end

    def add_fact(self, fact: Fact | Delivered) -> None:
        """Pack a fact, and count what it makes dead."""
        if isinstance(fact, Unprepared):
            at, length = self._add_tombstone(fact)
        else:
            at, length = self._entry(fact)
        self._values.facts.note(fact, Position(self._segment, self._base + at, length))

    def _add_values(self, turn: Turn) -> None:
        frame, lengths, segment, base = self.frame, self._lengths, self._segment, self._base
        add, keep = self._values.add, self._values.keep
        at = len(frame)
        for number, data in turn.values:
            _encode_into(ValueStored(number, crc32(data), data), frame, at)
            end = len(frame)
            lengths.append(end - at)
            add(number, segment, base + at, end - at)
            keep(number, data)
            at = end

    def _add_records(self, turn: Turn, packs: bool) -> None:
        # The hot loop of a shard: once per record written.
        frame, lengths, segment, base = self.frame, self._lengths, self._segment, self._base
        at = len(frame)
        for slot, record in turn.puts:
            if packs:
                packed = _encode(record)
                frame += packed
                slot.held = packed
            else:
                _encode_into(record, frame, at)
            end = len(frame)
            lengths.append(end - at)
            slot.trail += pack(segment, base + at, end - at)
            if len(slot.trail) > TRAIL_BYTES_MAX or record.extras is not None:
                self._trimmed += trim(slot, record, self._values)
            at = end

    def _note_trimmed(self) -> None:
        """Log which values histories no longer name, where a merge might forget it.

        While the log has an event that named a value, reading it back comes to the same. But merges
        leave such events out, and the value may lie in another file, which none has met since.
        """
        place, order_of = self._values.keydir.get, self._log.order_of
        found = [(number, place(number)) for number in self._trimmed]
        orders = [
            (number, order_of(position.segment))
            for number, position in found
            if position is not None and position.segment != self._segment
        ]
        if orders:
            numbers, firsts = zip(*orders, strict=True)
            self._add_tombstone(Trimmed(list(numbers), min(firsts)))
        self._values.drop(self._trimmed)
        self._trimmed = []

    def _add_tombstone(self, entry: Dropped | Trimmed | Unprepared) -> tuple[int, int]:
        at, length = self._entry(entry)
        # Most are not needed once a merge has looked; those that are, it keeps and counts anew.
        self._values.dead.add_entry(self._segment, length)
        return at, length

    def _entry(self, entry: object) -> tuple[int, int]:
        at = len(self.frame)
        _encode_into(entry, self.frame, at)
        length = len(self.frame) - at
        self._lengths.append(length)
        return at, length

    def read(self, position: Position) -> bytes | None:
        """Return an entry of this very frame, before it is on disk."""
        at = position.offset - self._base
        if position.segment != self._segment or at < 0:
            return None
        return bytes(self.frame[at : at + position.length])

    def commit(self, *, sync: bool) -> None:
        """Write the frame; with `sync`, return only once it is on disk."""
        self._log.append(self.frame, self._lengths, sync=sync)


TRAIL_BYTES_MAX = HISTORY_EVENTS_DEFAULT * POSITION_BYTES


def trim(slot: Slot, record: Record, values: Values) -> list[int]:
    """Forget a flow's oldest events over its limit; return the values that only they name.

    The log keeps them until their segment goes; recovery comes to the same end by calling this.
    """
    events = record.history_max_events or HISTORY_EVENTS_DEFAULT
    if len(slot.trail) <= events * POSITION_BYTES:
        return []
    values.bury(slot.trail[: -events * POSITION_BYTES])
    slot.trail = slot.trail[-events * POSITION_BYTES :]
    return forget_spent(slot, record.version - events + 1)
