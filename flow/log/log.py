"""The append-only log of one shard: segments, one write and one sync per batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ..errors import CorruptLog
from ..host import File, Files
from ..limits import OPEN_SEGMENTS_MAX, SEGMENT_BYTES, SEGMENT_GROW_BYTES
from .frame import HEADER_BYTES, seal
from .parts import Part, Span, segment_name
from .position import Position
from .shortcut import remove_shortcuts
from .start import Recovery

_ROOM = bytes(HEADER_BYTES)


class Log:
    """Appends frames; reads entries back. Any error of the disk escapes and ends the shard.

    After a failed write or sync nothing is known about what the disk holds, so the object is
    unusable from then on: the process ends, and recovery reads what is really there.
    """

    def __init__(self, files: Files, recovered: Recovery) -> None:
        self._files = files
        self._handles: dict[int, File] = recovered.handles
        self.spans: dict[int, Span] = recovered.spans
        """The files that are written no more, by number, in the log's order."""
        self.next_number = recovered.next_number
        """The number of the next file."""
        self._first_lsn = recovered.first_lsn
        self._segment = recovered.segment
        self._offset = recovered.offset
        self._lsn = recovered.lsn
        self._synced_lsn = recovered.lsn
        self.last_frame = (self._segment, self._offset)
        """Segment and offset of the newest frame."""
        self._reserved = 0
        self.epoch = recovered.epoch + 1
        self.bytes_written = 0
        self.frames_written = 0
        self.syncs = 0
        self._broken = False
        try:
            if self._segment not in self._handles:
                self._start_segment(self._segment)
            # The new epoch is on disk before anything is done under it.
            self.append(self.begin(), [], sync=True)
        except BaseException:
            self.abandon()
            raise

    @property
    def position(self) -> tuple[int, int]:
        """Segment and offset of the next frame."""
        return self._segment, self._offset

    @property
    def is_broken(self) -> bool:
        """Whether a write or a sync has failed: only recovery knows what the disk holds."""
        return self._broken

    @property
    def has_unsynced(self) -> bool:
        """Whether frames were written that no sync has covered."""
        return self._synced_lsn != self._lsn

    def begin(self) -> bytearray:
        """Return the buffer of the next frame: entries are appended to it.

        An entry that starts at `n` in the buffer will lie at `position` offset + n.
        """
        if self._offset >= SEGMENT_BYTES:
            self._rotate()
        return bytearray(_ROOM)

    def append(self, frame: bytearray, lengths: list[int], *, sync: bool) -> None:
        """Write a frame; with `sync`, return only once it is on disk."""
        self._refuse_if_broken()
        self._broken = True
        seal(frame, lengths, self._lsn + 1, self._synced_lsn, self.epoch)
        handle = self._handles[self._segment]
        end = self._offset + len(frame)
        if end > self._reserved:
            self._reserved = -(-end // SEGMENT_GROW_BYTES) * SEGMENT_GROW_BYTES
            handle.reserve(self._reserved)
        handle.pwrite(frame, self._offset)
        self._lsn += 1
        self.last_frame = (self._segment, self._offset)
        self._offset = end
        self.bytes_written += len(frame)
        self.frames_written += 1
        self._broken = False
        if sync:
            self.sync()

    def sync(self) -> None:
        """Return once everything that was appended is on disk."""
        # A second sync after a failed one would succeed, and write nothing of what the first lost.
        self._refuse_if_broken()
        if not self.has_unsynced:
            return
        self._broken = True
        self._handles[self._segment].sync()
        self.syncs += 1
        self._synced_lsn = self._lsn
        self._broken = False

    @property
    def lsn(self) -> int:
        """The newest frame."""
        return self._lsn

    def read_bytes(self, number: int, offset: int, size: int) -> bytes:
        """Return so many bytes of a file."""
        data = self._handle(number).pread(size, offset)
        if len(data) != size:
            raise self.corrupt(Position(number, offset, size), "the file ends too early")
        return data

    def read(self, position: Position) -> bytes:
        """Return the bytes of one entry."""
        data = self._handle(position.segment).pread(position.length, position.offset)
        if len(data) != position.length:
            raise self.corrupt(position, "the segment ends inside an entry")
        return data

    def corrupt(self, position: Position, why: str) -> CorruptLog:
        """Return the error for damage met at a position; the next start reads the whole log."""
        # It meets the damage as well then, and refuses. By a shortcut, which spares it the file, it
        # would serve until the damage is met again, and so on for ever.
        with contextlib.suppress(OSError):
            remove_shortcuts(self._files)
        path = self._files.path_of(self._name(position.segment))
        return CorruptLog(
            f"{path} is damaged at byte {position.offset}: {why}; restore it from a backup",
            path=path,
            offset=position.offset,
        )

    def close(self) -> None:
        """Sync and close all files, giving back reserved space."""
        if not self._broken:
            self.sync()
            self._handles[self._segment].truncate(self._offset)
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def abandon(self) -> None:
        """Close all files without touching their bytes."""
        self._broken = True
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise OSError("this log failed before; the shard has to recover from disk")

    def _handle(self, segment: int) -> File:
        handle = self._handles.get(segment)
        if handle is None:
            if len(self._handles) >= OPEN_SEGMENTS_MAX:
                oldest = next(number for number in self._handles if number != self._segment)
                self._handles.pop(oldest).close()
            handle = self._handles[segment] = self._files.open(self._name(segment))
        return handle

    def _rotate(self) -> None:
        """Seal the current segment and start the next. Everything sealed is on disk."""
        self.sync()
        self._broken = True
        handle = self._handles[self._segment]
        handle.truncate(self._offset)
        handle.sync()
        number = self._segment
        self.spans[number] = Span(
            Part(number, number, number),
            self._first_lsn,
            self._lsn,
            self._lsn,
            self.epoch,
            self._offset,
        )
        self._start_segment(self.take_number())
        self._broken = False

    def first_lsn_of(self, segment: int) -> int:
        """Return the first frame of a segment."""
        span = self.spans.get(segment)
        return self._first_lsn if span is None else span.first_lsn

    def take_number(self) -> int:
        """Return a number that no file has had."""
        self.next_number += 1
        return self.next_number - 1

    def order_of(self, number: int) -> int:
        """Return the first segment whose place a file has taken; of a segment, its own number."""
        span = self.spans.get(number)
        return number if span is None else span.part.first

    def create(self, part: Part) -> File:
        """Make a merged file, empty, for whoever fills it."""
        return self._files.open(part.name, create=True)

    def add_part(self, span: Span) -> None:
        """Take in a merged file that is whole; it is on disk when this returns."""
        self._files.sync_directory()
        self.spans[span.part.number] = span

    def remove_parts(self, parts: Iterable[Part]) -> None:
        """Remove files that a merged one covers, and that nothing names any more."""
        for place, part in enumerate(parts):
            del self.spans[part.number]
            handle = self._handles.pop(part.number, None)
            if handle is not None:
                handle.close()
            self._files.remove(part.name)
            if place == 0:
                # While the first is there, recovery takes the sources and not the merged file.
                self._files.sync_directory()
        self._files.sync_directory()

    def _name(self, number: int) -> str:
        span = self.spans.get(number)
        return segment_name(number) if span is None else span.part.name

    def _start_segment(self, number: int) -> None:
        self._handles[number] = self._files.open(segment_name(number), create=True)
        self._files.sync_directory()
        self._segment = number
        self._first_lsn = self._lsn + 1
        self._offset = 0
        self._reserved = 0
