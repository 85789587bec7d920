"""Hint files: what is in a merged file, without what a start does not need of it.

Bitcask's (see flow/engine/merge.py), for a log of flows: a hint has the newest record of each flow
in the file, where the others and the values lie, and all that is neither. It is written from the
merged file once that has its place, and leaves out what has died since: as with the file itself,
what killed it is later in the log.
"""

from __future__ import annotations

from collections.abc import Generator

from ..codec import decode_entry
from ..events import ValueStored
from ..host import Files
from ..index.table import trail_index
from ..limits import MERGE_SLICE_ENTRIES, SHORTCUT_BLOCK_BYTES, SHORTCUT_SLICE_ITEMS
from ..log.dead import DeadBytes
from ..log.facts import TOMBSTONES, first_of
from ..log.frame import HEADER_BYTES, TABLE_ENTRY_BYTES
from ..log.keydir import columns_of
from ..log.log import Log
from ..log.parts import Part, Span
from ..log.position import POSITION_BYTES, Position, pack, unpack
from ..log.recover import is_merged_as
from ..log.shortcut import (
    End,
    Facts,
    Flows,
    Header,
    Places,
    Shortcut,
    ShortcutWriter,
    check,
    checkpoints_in,
    file_span,
    hint_name,
    hints_of,
    remove_shortcuts,
)
from ..log.start import UnusableError
from ..log.values import Values
from ..machine.state import ShardState
from ..record import Record, value_numbers
from .merge import frames_of

_NUMBER_BYTES = 4


class _Run:
    """A flow's records in the file, as far as they were met."""

    __slots__ = ("entered", "named", "size", "spent")

    def __init__(self, named: set[int]) -> None:
        self.entered = named
        """The values that the first of them names."""
        self.named = named
        """Likewise the last one."""
        self.spent: list[tuple[int, int]] = []
        self.size = 0
        """In bytes."""


class Hint:
    """One hint under way. `step` until it is done; to give it up, drop it after `abandon`."""

    def __init__(
        self, files: Files, log: Log, state: ShardState, values: Values, merged: Span
    ) -> None:
        self._files = files
        self._log = log
        self._state = state
        self._values = values
        self._span = merged
        self._number = pack(merged.part.number, 0, 0)[:_NUMBER_BYTES]
        self._runs: dict[tuple[str | None, str], _Run] = {}
        self._facts: list[bytes] = []
        self._fact_places = b""
        self._flows = Flows([], [], [], [])
        self._places: list[tuple[int, int, int, int]] = []
        self._size = 0
        self._count = 0
        self._counted = DeadBytes()
        """What is left out of records and values, and the tombstones."""
        self._writer = ShortcutWriter(files, hint_name(merged.part))
        self._steps = self._run()
        self.is_done = False

    def step(self) -> None:
        """Do the next slice: a millisecond or two."""
        if next(self._steps, None) is None:
            self.is_done = True

    def abandon(self) -> None:
        """Stop in the middle, as if it had never begun."""
        self._steps.close()
        self._writer.abandon()

    def _run(self) -> Generator[bool]:
        number = self._span.part.number
        self._writer.add(Header("hint", self._state.settings.shard, [file_span(self._span)]))
        for frame in frames_of(self._log, self._span):
            if frame is None:
                yield True
                continue
            at, _, data, lengths = frame
            start = HEADER_BYTES
            for count, length in enumerate(lengths, 1):
                entry = bytes(data[start : start + length])
                self._take(entry, Position(number, at + start, length))
                start += length
                if count % MERGE_SLICE_ENTRIES == 0:
                    yield True
            yield True
        self._flush()
        self._writer.sync()
        yield True
        # As with the file itself: what was left out stays dead.
        self._log.sync()
        counted = self._counted
        counted.add_bytes(number, sum(run.size for run in self._runs.values()))
        self._writer.finish(End(0, self._count, dead=counted.all(), kept=counted.all_kept()))
        yield True
        kept = {*checkpoints_in(self._files), *hints_of(self._log.spans.values())}
        remove_shortcuts(self._files, kept)

    def _take(self, data: bytes, position: Position) -> None:
        entry = decode_entry(data)
        if isinstance(entry, Record):
            self._take_record(entry, data, position)
        elif not isinstance(entry, ValueStored):
            self._facts.append(data)
            self._fact_places += pack(*position)
            self._size += len(data)
            if entry.__class__ in TOMBSTONES:
                self._counted.keep(position.segment, len(data), first_of(entry))
        elif self._values.place(entry.number) == position:
            number, offset, length = position
            self._places.append((entry.number, number, offset, length))
        else:
            self._counted.add(position)
        items = len(self._facts) + len(self._flows.records) + len(self._places)
        if self._size >= SHORTCUT_BLOCK_BYTES or items >= SHORTCUT_SLICE_ITEMS:
            self._flush()

    def _take_record(self, record: Record, data: bytes, position: Position) -> None:
        # Of cold flows as well: without a checkpoint, all flows come back into memory.
        slot = self._state.lookup(record.partition_key, record.id)
        at = -1 if slot is None else trail_index(slot.trail, pack(*position))
        if slot is None or at < 0:
            self._counted.add(position)
            return
        key = record.partition_key, record.id
        named = set(value_numbers(record))
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(named)
        left = run.named - named
        run.spent += [(record.version - 1, number) for number in sorted(left)]
        run.named = named
        run.size += position.length + TABLE_ENTRY_BYTES
        end = at + POSITION_BYTES
        if self._is_here(slot.trail, end):
            return
        del self._runs[key]
        while at and self._is_here(slot.trail, at - POSITION_BYTES):
            at -= POSITION_BYTES
        self._add(record, data, slot.trail[at:end], run)

    def _is_here(self, trail: bytes, at: int) -> bool:
        """Whether the position at this place of a trail is in the file."""
        return trail[at : at + _NUMBER_BYTES] == self._number

    def _add(self, record: Record, data: bytes, trail: bytes, run: _Run) -> None:
        block = self._flows
        index = len(block.records)
        oldest = record.version - len(trail) // POSITION_BYTES + 1
        block.records.append(data)
        block.trails.append(trail)
        block.spent.extend((index, *spent) for spent in run.spent if spent[0] >= oldest)
        if run.entered != run.named:
            block.entered.append((index, sorted(run.entered)))
        self._size += len(data) + len(trail)
        self._count += 1
        # Some that were met may have gone since.
        left = sum(position.length + TABLE_ENTRY_BYTES for position in unpack(trail))
        self._counted.add_bytes(self._span.part.number, run.size - left)

    def _flush(self) -> None:
        if self._facts:
            self._writer.add(Facts(self._facts, self._fact_places))
        if self._flows.records:
            self._writer.add(self._flows)
        if self._places:
            self._writer.add(Places(*columns_of(self._places)))
        self._facts, self._flows, self._places = [], Flows([], [], [], []), []
        self._fact_places = b""
        self._size = 0


def hint_for(files: Files, part: Part, shard: int) -> Shortcut | None:
    """Return a merged file's hint, if there is one.

    Raises:
        UnusableError: it is not whole, or not of this file.
    """
    name = hint_name(part)
    if name not in files.names():
        return None
    hint = check(files, name, shard, "hint")
    (file,) = hint.header.files
    if file.span.part != part or not is_merged_as(files, file.span):
        raise UnusableError(f"{name} is not of the file beside it")
    return hint
