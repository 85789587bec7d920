"""Going on from a checkpoint: what it holds, and what the log's tail has changed since it began.

A checkpoint is written while the shard serves (fuzzy, as in ARIES: Mohan et al., "ARIES: A
Transaction Recovery Method...", 1992). It begins with a frame, and holds

- the facts exactly as of that frame,
- each flow that there was then as of some later frame, or not at all if it was dropped meanwhile,
- each value as of a frame later still.

The frames from the first on are read again, and up to the one that was the newest when the
checkpoint was finished, what a flow has already is passed over. From there on all is exact.

A merged file may have taken the place of files that the checkpoint knows, never of frames after its
beginning (flow/engine/upkeep.py sees to that). So nothing in it is news, and nothing that it has
left out is needed to know that something is gone: it only says where things lie now.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..codec import decode_entry, decode_record
from ..cold.environment import ColdFull
from ..events import ValueStored
from ..host import Files
from ..index.cold import ColdSlot
from ..index.table import Slot
from ..log.dead import DeadBytes
from ..log.facts import TOMBSTONES, first_of, key_of
from ..log.keydir import rows_of
from ..log.parts import Part
from ..log.position import POSITION_BYTES, Position, pack, unpack
from ..log.shortcut import Facts, Flows, Places, Shortcut, content_of
from ..log.start import Recovery, UnusableError
from ..record import Record, value_numbers
from ..settings import Settings
from .replay import Replay


class Resume(Replay):
    """Fills a new state from a checkpoint and the log's tail."""

    def __init__(
        self, files: Files, settings: Settings, parts: Sequence[Part], checkpoint: Shortcut
    ) -> None:
        super().__init__(files, settings, parts)
        self._checkpoint = checkpoint
        self._start = checkpoint.start
        self._is_loaded = False
        self._cold_rows: list[tuple[int, bytes, bytes]] = []
        self._cold_values: list[tuple[int, bytes, bytes]] = []
        """Rows and values of cold flows that lie elsewhere: row or number, old place, new one."""
        self._copies = DeadBytes()
        """What merged files hold that was dead when they got their place, and of removals."""

    def take(
        self, raw: bytes, at: int, number: int, offset: int, lengths: Sequence[int], lsn: int
    ) -> None:
        """Take in a frame, as far as the checkpoint does not have it."""
        start = self._start
        if lsn > start.last_lsn:
            super().take(raw, at, number, offset, lengths, lsn)
            self._rest()
            return
        self.load()
        if lsn != start.lsn:
            for entry, place, length in self.entries(raw, at, number, offset, lengths):
                position = Position(number, place, length)
                if lsn < start.lsn:
                    self._repoint(entry, position)
                else:
                    self._take_again(entry, raw, at + place - offset, position)
            self.state.table.pack()
            self._move_cold()
        if lsn == start.last_lsn:
            self._reach()

    def load(self) -> None:
        """Take in the checkpoint, once."""
        if self._is_loaded:
            return
        self._is_loaded = True
        header = self._checkpoint.header
        self.state.next_value = header.next_value
        self.state.last_order = header.last_order
        try:
            for block in content_of(self._files, self._checkpoint, Facts, Flows, Places):
                if isinstance(block, Flows):
                    self._adopt(block)
                elif isinstance(block, Places):
                    self.values.keydir.load(tuple(msgspec.structs.astuple(block)))
                else:
                    self.take_facts(block)
        except msgspec.MsgspecError as error:
            raise UnusableError(f"{self._checkpoint.name} cannot be read: {error}") from error

    def _adopt(self, block: Flows) -> None:
        # The hot loop of a start with a checkpoint: once per flow.
        adopt = self.loading.adopt
        spent = block.spent_by_flow()
        for index, (packed, trail) in enumerate(zip(block.records, block.trails, strict=True)):
            adopt(packed, trail, spent.get(index))

    # ---- merged files ----

    def take_hint(self, hint: Shortcut) -> None:
        """Note where what a merged file holds lies now."""
        self.load()
        for block in content_of(self._files, hint, Facts, Flows, Places):
            if isinstance(block, Flows):
                for packed, trail, _, _ in block.each():
                    record = decode_record(packed)
                    oldest = record.version - len(trail) // POSITION_BYTES + 1
                    for version, position in enumerate(unpack(trail), oldest):
                        self._repoint_record(record, version, position)
            elif isinstance(block, Places):
                for number, *place in rows_of(msgspec.structs.astuple(block)):
                    self._repoint_value(number, Position(*place))
            else:
                for packed, at in block.each():
                    if at is not None:
                        self._repoint_fact(decode_entry(packed), at)
            self.state.table.pack()
            self._move_cold()
        counted = DeadBytes()
        counted.reset(hint.end.dead, hint.end.kept)
        self._copies.take(counted)

    def _repoint(self, entry: object, position: Position) -> None:
        if isinstance(entry, Record):
            self._repoint_record(entry, entry.version, position)
        elif isinstance(entry, ValueStored):
            self._repoint_value(entry.number, position)
        elif entry.__class__ in TOMBSTONES:
            self._copies.keep(position.segment, position.length, first_of(entry))
        else:
            self._repoint_fact(entry, position)

    def _repoint_record(self, record: Record, version: int, position: Position) -> None:
        """Note where one of a flow's records lies now, if the flow has it."""
        slot = self.state.lookup(record.partition_key, record.id)
        if isinstance(slot, ColdSlot):
            self._repoint_row(slot, record, version, position)
            return
        if slot is not None:
            # The versions in a trail follow each other, and the last one is the record's.
            at = len(slot.trail) - (slot.version - version + 1) * POSITION_BYTES
            if 0 <= at < len(slot.trail):
                (old,) = unpack(slot.trail[at : at + POSITION_BYTES])
                if self._is_covered(old, position):
                    before, after = slot.trail[:at], slot.trail[at + POSITION_BYTES :]
                    slot.trail = before + pack(*position) + after
                    return
        self._copies.add(position)

    def _repoint_value(self, number: int, position: Position) -> None:
        """Note where a value lies now, if it still counts."""
        old = self.values.keydir.get(number)
        if old is None and self.cold is not None and (place := self.cold.place(number)):
            if self._is_left(place, position):
                self._cold_values.append((number, place, pack(*position)))
        elif old is None or not self._is_covered(old, position):
            self._copies.add(position)
        else:
            self.values.move(number, old, position)

    def _repoint_fact(self, fact: object, position: Position) -> None:
        """Note where a fact lies now, if it still counts."""
        if fact.__class__ in TOMBSTONES:
            return  # Counted in another way.
        key = key_of(fact)
        old = self.values.facts.place(key)
        if old is None or not self._is_covered(old, position):
            self._copies.add(position)
        else:
            self.values.facts.move(key, old, position)

    def _repoint_row(
        self, slot: ColdSlot, record: Record, version: int, position: Position
    ) -> None:
        """Likewise of a cold flow, whose row merges have kept true; but not one brought back."""
        found: Record = slot.held
        at = len(slot.trail) - (found.version - version + 1) * POSITION_BYTES
        if 0 <= at < len(slot.trail) and found.created_at_ms == record.created_at_ms:
            place = slot.trail[at : at + POSITION_BYTES]
            if self._is_left(place, position):
                self._cold_rows.append((slot.row, place, pack(*position)))
        else:
            self._copies.add(position)

    def _is_left(self, place: bytes, new: Position) -> bool:
        """Whether a file that a packed position names has made place for another one."""
        (old,) = unpack(place)
        part = self._parts.get(old.segment)
        return part is None or self._parts[new.segment].covers(part)

    def _move_cold(self) -> None:
        if self.cold is not None and (self._cold_rows or self._cold_values):
            try:
                self.cold.move(self._cold_rows, self._cold_values)
            except ColdFull:
                # What a full disk has left may do for one after the other.
                for row in self._cold_rows:
                    self.cold.move([row], [])
                for value in self._cold_values:
                    self.cold.move([], [value])
        self._cold_rows, self._cold_values = [], []
        self._rest()

    def _rest(self) -> None:
        """Keep in memory neither the cold flows that were looked at, nor those let go of."""
        if self.cold is not None:
            self.cold.rest()

    def _is_covered(self, old: Position, new: Position) -> bool:
        span = self._start.spans.get(old.segment)
        return span is not None and self._parts[new.segment].covers(span.part)

    # ---- the tail, as far as the checkpoint may have it ----

    def _take_again(self, entry: object, raw: bytes, at: int, position: Position) -> None:
        if isinstance(entry, Record):
            slot = self.state.table.get(entry.partition_key, entry.id)
            if slot is not None and entry.version <= slot.held.version:
                self._pass_over(slot, entry)
                return
        number, offset, length = position
        super().take(raw, at, number, offset, [length], 0)

    def _pass_over(self, slot: Slot, record: Record) -> None:
        """Forget those values of a record that its flow no longer had when it was written down."""
        kept = {number for _, number in slot.spent or ()}
        kept.update(value_numbers(slot.held))
        self.values.drop(number for number in value_numbers(record) if number not in kept)

    def _reach(self) -> None:
        """All is as it was when the checkpoint was finished: make sure of it."""
        end = self._checkpoint.end
        found = len(self.state.table), len(self.values)
        if found != (end.flows, end.values):
            raise UnusableError(
                f"{self._checkpoint.name} leads to {found[0]} flows with {found[1]} values, and "
                f"there were {end.flows} with {end.values}"
            )
        self.state.buried.clear()
        self.values.dead.reset(end.dead, end.kept)
        self.values.dead.take(self._copies)

    def finish(self, recovered: Recovery) -> None:
        """Make all indexes true, and forget what was dead of files that are no more."""
        super().finish(recovered)
        dead = self.values.dead
        for trail in self.state.buried:
            self.values.bury(trail)
        self.state.buried.clear()
        there = {*recovered.spans, recovered.segment}
        known = [number for number, *_ in [*dead.all(), *dead.all_kept()]]
        dead.forget([number for number in known if number not in there])
