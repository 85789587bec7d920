"""Moving: after a merge has copied an entry, whoever names it is told where it lies now.

Owners are a flow's slot, a fact's key, the number of a value, or, below zero, the row of a cold
flow. Between the copying and the moving a flow may have become cold, or hot again. Then what was
copied is read once more, to see whose it is.
"""

from __future__ import annotations

from ..codec import decode_record
from ..cold.store import Cold
from ..index.table import Slot, trail_index
from ..log.facts import Key
from ..log.log import Log
from ..log.position import POSITION_BYTES, Position, pack, unpack
from ..log.values import Values
from ..machine.state import ShardState


class Mover:
    """Moves entries one by one, those of cold flows together with the next `flush`."""

    def __init__(self, log: Log, state: ShardState, values: Values, cold: Cold | None) -> None:
        self._log = log
        self._state = state
        self._values = values
        self._cold = cold
        self._rows: list[tuple[int, bytes, bytes]] = []
        self._numbers: list[tuple[int, bytes, bytes]] = []
        self._placed: dict[bytes, Position] = {}
        """Packed old places of what the next transaction moves → new places."""
        self._strays: list[tuple[Position, Position]] = []
        """Old and new places of records whose flows have changed places since."""

    def move(self, owner: Slot | int | Key, old: Position, new: Position) -> None:
        """Tell an owner that an entry lies elsewhere; if nobody has it any more, it is dead."""
        if isinstance(owner, Slot):
            is_moved = move_in_trail(owner, old, new)
            if not is_moved and self._cold is not None and not owner.version:
                self._strays.append((old, new))
                return
        elif isinstance(owner, tuple):
            is_moved = self._values.facts.move(owner, old, new)
        elif owner < 0:
            self._note(self._rows, -owner, old, new)
            return
        else:
            is_moved = self._values.move(owner, old, new)
            if not is_moved and self._cold is not None:
                self._note(self._numbers, owner, old, new)
                return
        if not is_moved:
            self._values.dead.add(new)

    def flush(self) -> None:
        """Move what is cold, in one transaction.

        Raises:
            ColdFull: the disk is full; it may be tried again later.
        """
        if self._placed:
            self._move_cold()
        while self._strays:
            self._move_of(*self._strays[-1])
            self._strays.pop()

    def _move_cold(self) -> None:
        assert self._cold is not None
        moved = self._cold.move(self._rows, self._numbers)
        for _, old, _ in self._rows:
            if old not in moved:
                self._strays.append((next(unpack(old)), self._placed[old]))
        for number, old, _ in self._numbers:
            if old not in moved:
                self._move_value(number, next(unpack(old)), self._placed[old])
        self._rows, self._numbers, self._placed = [], [], {}

    def _move_value(self, number: int, old: Position, new: Position) -> None:
        """Move a value that is not cold any more: its flow has come back, or is gone."""
        if not self._values.move(number, old, new):
            self._values.dead.add(new)

    def _note(
        self, moves: list[tuple[int, bytes, bytes]], owner: int, old: Position, new: Position
    ) -> None:
        packed = pack(*old)
        moves.append((owner, packed, pack(*new)))
        self._placed[packed] = new

    def _move_of(self, old: Position, new: Position) -> None:
        """Move a record whose flow has changed places since it was copied."""
        record = decode_record(self._log.read(new))
        slot = self._state.table.get(record.partition_key, record.id)
        is_moved = slot is not None and move_in_trail(slot, old, new)
        if slot is None and self._cold is not None:
            places = pack(*old), pack(*new)
            row = self._cold.owner(record.partition_key, record.id, places[0])
            is_moved = bool(row) and bool(self._cold.move([(row, *places)], []))
        if not is_moved:
            self._values.dead.add(new)


def move_in_trail(slot: Slot, old: Position, new: Position) -> bool:
    """Change one position of a flow's history, if it still has it; return whether it has."""
    at = -1 if slot.held is None else trail_index(slot.trail, pack(*old))
    if at < 0:
        return False
    slot.trail = slot.trail[:at] + pack(*new) + slot.trail[at + POSITION_BYTES :]
    return True
