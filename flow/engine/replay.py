"""Reading a log's frames back into a shard's state: last writer wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..codec import decode_entry, decode_record
from ..cold.store import Cold
from ..errors import CorruptLog
from ..events import Delivered, Dropped, Trimmed, ValueStored
from ..host import Files
from ..log.dead import DeadBytes
from ..log.facts import TOMBSTONES, first_of
from ..log.keydir import rows_of
from ..log.parts import Part, segment_name
from ..log.position import Position, pack, unpack
from ..log.shortcut import Facts, Flow, Flows, Places, Shortcut, content_of
from ..log.start import Recovery
from ..log.values import Values
from ..machine.loading import Loading
from ..machine.state import ShardState
from ..record import Record
from ..settings import Settings
from .writer import TRAIL_BYTES_MAX, trim


class Replay:
    """Fills a new state."""

    def __init__(self, files: Files, settings: Settings, parts: Sequence[Part]) -> None:
        self.state = ShardState(settings)
        self.values = Values()
        self.cold: Cold | None = None
        self.loading = Loading(self.state, self._place)
        self._files = files
        self._parts = {part.number: part for part in parts}

    def take(
        self, raw: bytes, at: int, number: int, offset: int, lengths: Sequence[int], lsn: int
    ) -> None:
        """Take in a frame: entries of these lengths, from `at` on in the bytes."""
        # The hot loop of recovery: once per entry of the log.
        load, values = self.loading.load, self.values
        for length in lengths:
            data = raw[at : at + length]
            try:
                entry = decode_entry(data)
            except msgspec.MsgspecError as error:
                raise self._unreadable(number, offset, error) from error
            kind = entry.__class__
            if kind is Record:
                slot = load(entry, data)
                slot.trail += pack(number, offset, length)
                if len(slot.trail) > TRAIL_BYTES_MAX or entry.extras is not None:
                    values.drop(trim(slot, entry, values))
            elif kind is ValueStored:
                self.take_value(entry.number, number, offset, length)
            else:
                self.take_fact(entry)
                self._note(entry, Position(number, offset, length))
            at += length
            offset += length

    def _note(self, fact: Any, position: Position) -> None:
        """Count a fact, or what it makes dead, as when it was written."""
        if fact.__class__ in TOMBSTONES:
            number, _, length = position
            if self._parts[number].is_merged:
                self.values.dead.keep(number, length, first_of(fact))
            else:
                self.values.dead.add_entry(number, length)
        self.values.facts.note(fact, position)

    def _place(self, value: int, place: bytes) -> None:
        # If its flow came back while the checkpoint was written, that has the value as well, and
        # what merges have moved since is known of that place only.
        if self.values.keydir.get(value) is None:
            self.values.add(value, *next(unpack(place)))

    def take_hint(self, hint: Shortcut) -> None:
        """Take in a merged file by its hint."""
        # In a merged file, no flow's records come before what removed an earlier flow of its name.
        for block in content_of(self._files, hint, Facts):
            assert isinstance(block, Facts)
            self.take_facts(block)
        for block in content_of(self._files, hint, Flows, Places):
            if isinstance(block, Flows):
                for flow in block.each():
                    self._take_run(flow)
            elif isinstance(block, Places):
                for row in rows_of(msgspec.structs.astuple(block)):
                    self.take_value(*row)
        counted = DeadBytes()
        counted.reset(hint.end.dead, hint.end.kept)
        self.values.dead.take(counted)

    def _take_run(self, flow: Flow) -> None:
        record = decode_record(flow.packed)
        slot = self.loading.load(record, flow.packed, flow.entered)
        if flow.spent:
            slot.spent = (slot.spent or []) + flow.spent
        slot.trail += flow.trail
        if len(slot.trail) > TRAIL_BYTES_MAX or record.extras is not None:
            self.values.drop(trim(slot, record, self.values))

    def take_value(self, value: int, number: int, offset: int, length: int) -> None:
        """Take in where a value lies."""
        self.values.add(value, number, offset, length)
        count = value >> 8
        if count >= self.state.next_value:
            self.state.next_value = count + 1

    def take_facts(self, block: Facts) -> None:
        """Take in facts of a shortcut, and where they lie."""
        for packed, position in block.each():
            fact = decode_entry(packed)
            self.take_fact(fact)
            if position is not None:
                self.values.facts.note(fact, position)

    def take_fact(self, fact: Any) -> None:
        """Take in an entry that is neither a record nor a value."""
        if isinstance(fact, Dropped):
            self.loading.unload(fact)
            self.values.drop(fact.values)
        elif isinstance(fact, Trimmed):
            self.values.drop(fact.values)
        elif isinstance(fact, Delivered):
            self.state.families.outbox.clear(fact.dest, fact.number)
        else:
            self.state.note(fact, ask_at_ms=0)

    def entries(
        self, raw: bytes, at: int, number: int, offset: int, lengths: Sequence[int]
    ) -> list[tuple[Any, int, int]]:
        """Return what is in a frame: entries, with offset and length of each."""
        found = []
        for length in lengths:
            try:
                found.append((decode_entry(raw[at : at + length]), offset, length))
            except msgspec.MsgspecError as error:
                raise self._unreadable(number, offset, error) from error
            at += length
            offset += length
        return found

    def finish(self, recovered: Recovery) -> None:
        """Make all indexes true, once the whole log was taken in."""
        self.loading.finish()

    def _unreadable(self, number: int, offset: int, error: Exception) -> CorruptLog:
        part = self._parts.get(number)
        path = self._files.path_of(segment_name(number) if part is None else part.name)
        return CorruptLog(
            f"{path} holds at byte {offset} what this version cannot read ({error}); use the "
            "version that wrote it, or restore it from a backup",
            path=path,
            offset=offset,
        )
