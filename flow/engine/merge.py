"""Merging: what is live of some segments is copied into one file that takes their place.

Bitcask's merge (Sheehy, Smith, "Bitcask: A Log-Structured Hash Table for Fast Key/Value Data",
2010), with one difference: the merged file stands in the log where its sources stood, so that
reading the log back meets everything in the order in which it happened.

Copy, finish, move, remove; each in slices, so that the shard serves in between. Until the file has
its end, recovery throws it away; from then on, it throws the sources away. Entries die while they
are copied: what kills them is later in the log than they are, so a dead copy does no harm.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from zlib import crc32

from ..codec import decode_outline
from ..cold.environment import ColdFull
from ..cold.store import Cold
from ..index.table import Slot
from ..limits import (
    MERGE_FRAME_BYTES,
    MERGE_SLICE_ENTRIES,
    MERGE_SLICE_TRAIL_BYTES,
    MERGE_SYNC_BYTES,
)
from ..log.facts import TOMBSTONES, Key, first_of
from ..log.frame import HEADER_BYTES, body_bytes_of, entry_lengths, header_crc, read_header, seal
from ..log.log import Log
from ..log.parts import END, RANGE, Part, Span
from ..log.position import Position
from ..log.values import Values
from ..machine.state import ShardState
from .liveness import Liveness
from .moving import Mover


class Merge:
    """One merge under way. `step` until it is done; to give it up, drop it after `abandon`."""

    def __init__(
        self,
        log: Log,
        state: ShardState,
        values: Values,
        sources: Sequence[Span],
        cold: Cold | None = None,
    ) -> None:
        """`sources`: neighbours in the log, in its order, none of them the last segment."""
        assert sources and all(
            left.last_lsn + 1 == right.first_lsn for left, right in pairwise(sources)
        ), "only neighbours can be merged"
        self._log = log
        self._values = values
        self._live = Liveness(state, values, cold)
        self._mover = Mover(log, state, values, cold)
        self._sources = list(sources)
        first, last = sources[0], sources[-1]
        self._part = Part(first.part.first, last.part.last, log.take_number())
        self._span = Span(
            self._part,
            first.first_lsn,
            last.last_lsn,
            log.lsn,
            max(source.epoch for source in sources),
            0,
        )
        self._handle = log.create(self._part)
        self._offset = 0
        self._unsynced = 0
        self._frames = 0
        self._frame = bytearray(HEADER_BYTES)
        self._lengths: list[int] = []
        self._slice_entries = self._slice_trail_bytes = 0
        self._owners: list[Slot | int | Key] = []
        """Who names the copied entries, until they are moved: see moving.py."""
        self._from: array[int] = array("Q")
        """segment, offset and length of each, where it came from; then its new offset."""
        self._kept: list[tuple[int, int]] = []
        """Length and `first` of the tombstones in it."""
        self._steps = self._run()
        self.is_done = False
        self.is_waiting = False
        """Whether it can only go on once the disk has more room."""
        self.bytes_copied = 0

    @property
    def span(self) -> Span:
        """What the merged file covers."""
        return self._span

    @property
    def is_placed(self) -> bool:
        """Whether entries may lie in the merged file already: from then on it has to be finished
        before anything else is written down about where they lie.
        """
        return self._part.number in self._log.spans

    def step(self) -> None:
        """Do the next slice: some milliseconds."""
        if next(self._steps, None) is None:
            self.is_done = True

    def abandon(self) -> None:
        """Stop in the middle: recovery throws the file away."""
        self._steps.close()
        self._handle.close()

    def discard(self) -> bool:
        """Stop and throw the file away; False: too late, it has its place in the log."""
        if self.is_placed:
            return False
        self.abandon()
        self._log.discard(self._part)
        return True

    def _run(self) -> Generator[bool]:
        self._begin()
        for source in self._sources:
            yield from self._copy(source)
        self._flush()
        yield from self._finish()
        self._log.add_part(self._span)
        yield from self._move()
        yield from self._log.remove_parts([source.part for source in self._sources])
        yield True

    # ---- copying ----

    def _begin(self) -> None:
        span = self._span
        self._append(RANGE.pack(span.first_lsn, span.last_lsn, span.merged_lsn))
        self._flush()

    def _copy(self, source: Span) -> Iterator[bool]:
        number = source.part.number
        for frame in frames_of(self._log, source):
            if frame is None:
                yield True
                continue
            at, header_lsn, data, lengths = frame
            start = HEADER_BYTES
            for length in lengths:
                position = Position(number, at + start, length)
                self._take(bytes(data[start : start + length]), position, header_lsn)
                start += length
                is_over = self._is_over()
                if len(self._frame) >= MERGE_FRAME_BYTES:
                    is_over |= self._flush()
                if is_over:
                    yield True
            yield True

    def _is_over(self, trail_bytes: int = 0) -> bool:
        """Count an entry; return whether the slice has had enough of them."""
        self._slice_entries += 1
        self._slice_trail_bytes += trail_bytes
        is_over = (
            self._slice_entries >= MERGE_SLICE_ENTRIES
            or self._slice_trail_bytes >= MERGE_SLICE_TRAIL_BYTES
        )
        if is_over:
            self._slice_entries = self._slice_trail_bytes = 0
        return is_over

    def _take(self, data: bytes, position: Position, lsn: int) -> None:
        entry = decode_outline(data)
        if entry.__class__ in TOMBSTONES:
            first = first_of(entry)
            if self._is_needed(first, lsn):
                self._kept.append((len(data), first))
                self._append(data)
            return
        owner = self._live.owner_of(entry, position)
        if owner is False:
            return
        if owner is not True:
            self._owners.append(owner)
            new_offset = self._offset + len(self._frame)
            self._from.extend((position.segment, position.offset, position.length, new_offset))
            if isinstance(owner, Slot):
                self._slice_trail_bytes += len(owner.trail)
        self._append(data)

    def _is_needed(self, first: int, lsn: int) -> bool:
        """Whether a file before these may still hold what a tombstone has killed."""
        return any(
            span.part.first < self._part.first and span.part.last >= first and span.merged_lsn < lsn
            for span in self._log.spans.values()
        )

    def _append(self, data: bytes) -> None:
        self._frame += data
        self._lengths.append(len(data))

    def _flush(self) -> bool:
        """Write the frame that is being filled, and now and then sync, a little at a time.

        Return whether it has: then the slice has been long enough.
        """
        if not self._lengths:
            return False
        span = self._span
        seal(self._frame, self._lengths, span.last_lsn, span.last_lsn, span.epoch)
        self._handle.pwrite(self._frame, self._offset)
        self._offset += len(self._frame)
        self._unsynced += len(self._frame)
        self.bytes_copied += len(self._frame)
        self._frames += 1
        self._frame = bytearray(HEADER_BYTES)
        self._lengths = []
        if self._unsynced < MERGE_SYNC_BYTES:
            return False
        self._handle.sync()
        self._unsynced = 0
        return True

    def _finish(self) -> Iterator[bool]:
        """Give the file its end: it is on disk, whole, before it has one."""
        self._handle.sync()
        yield True
        # What was left out is dead because of what came later, which under relaxed durability need
        # not be on disk yet.
        self._log.sync()
        self._append(END.pack(self._frames))
        self._flush()
        self._handle.sync()
        self._span = self._span._replace(size=self._offset)
        self._handle.close()
        yield True

    # ---- moving ----

    def _move(self) -> Iterator[bool]:
        number = self._part.number
        places = self._from
        for index, owner in enumerate(self._owners):
            segment, offset, length, new_offset = places[4 * index : 4 * index + 4]
            old = Position(segment, offset, length)
            new = Position(number, new_offset, length)
            self._mover.move(owner, old, new)
            if self._is_over(len(owner.trail) if isinstance(owner, Slot) else 0):
                yield from self._flush_moves()
                yield True
        yield from self._flush_moves()
        self._owners.clear()
        for length, first in self._kept:
            self._values.dead.keep(number, length, first)
        self._values.dead.forget(source.part.number for source in self._sources)

    def _flush_moves(self) -> Iterator[bool]:
        """Move what is cold, once the disk has room for that."""
        while True:
            try:
                self._mover.flush()
            except ColdFull:
                self.is_waiting = True
                yield True
            else:
                self.is_waiting = False
                return


FrameRead = tuple[int, int, memoryview, Sequence[int]]
"""Offset, LSN, bytes, lengths of the entries."""


def frames_of(log: Log, source: Span) -> Iterator[FrameRead | None]:
    """Yield a file's frames, the marks left out; None in the middle of one that takes long."""
    at = 0
    number = source.part.number
    while at < source.size:
        head = log.read_bytes(number, at, HEADER_BYTES)
        size = HEADER_BYTES + body_bytes_of(head)
        if at + size > source.size:
            raise log.corrupt(Position(number, at, 0), "a frame is damaged")
        data = bytearray(size)
        data[:HEADER_BYTES] = head
        crc = header_crc(head)
        for start in range(HEADER_BYTES, size, MERGE_SYNC_BYTES):
            if start > HEADER_BYTES:
                yield None
            piece = log.read_bytes(number, at + start, min(MERGE_SYNC_BYTES, size - start))
            data[start : start + len(piece)] = piece
            crc = crc32(piece, crc)
        view = memoryview(data)
        header = read_header(view, 0, crc)
        if header is None:
            raise log.corrupt(Position(number, at, 0), "a frame is damaged")
        is_mark = source.part.is_merged and (at == 0 or at + size == source.size)
        if not is_mark:
            yield at, header.lsn, view, entry_lengths(view, 0, header)
        at += size
