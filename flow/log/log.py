"""The append-only log of one shard: segments, one write and one sync per batch."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence

from ..errors import DELETED, REFUSALS, CorruptLog
from ..host import File, Files
from ..limits import OPEN_SEGMENTS_MAX, SEGMENT_BYTES, SEGMENT_GROW_BYTES
from .frame import HEADER_BYTES, seal
from .parts import Part, Span, segment_name
from .position import OFFSET_MAX, Position
from .shortcut import remove_shortcuts
from .space import Space
from .start import Recovery

_ROOM = bytes(HEADER_BYTES)


def _never() -> bool:
    return False


class Log:
    """Appends frames; reads entries back. Any error of the disk escapes and ends the shard.

    After a failed write or sync nothing is known about what the disk holds, so the object is
    unusable from then on: the process ends, and recovery reads what is really there.
    """

    def __init__(self, files: Files, recovered: Recovery, space: Space | None = None) -> None:
        self._files = files
        self.space = space or Space(files)
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
        self.keeps_files: Callable[[], bool] = _never
        """Whether somebody else reads the files that are written no more: none is removed then."""
        self._obsolete: list[str] = []
        """Files that are to be removed, in this order, before anything is merged again."""
        self.epoch = recovered.epoch + 1
        self.bytes_written = 0
        self.frames_written = 0
        self.syncs = 0
        self._broken = False
        self._has_begun = False
        """Whether the new epoch is on disk: before that, nothing is written under it."""
        try:
            if self._segment not in self._handles:
                first = files.open(segment_name(self._segment), create=True)
                self._start_segment(self._segment, first)
            self.begin()
            self._begin_epoch()
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
            self.rotate()
        return bytearray(_ROOM)

    def has_room(self, size: int, *, spare: bool = False) -> bool:
        """Whether a frame of this size fits on the disk for certain: its space is reserved here.

        `spare`: what is kept back for a full disk is not meant for it.
        """
        self._refuse_if_broken()
        end = self._offset + size
        if not self._has_begun or self.space.is_read_only or end > OFFSET_MAX:
            return False
        if end <= self._reserved:
            return True
        self._broken = True
        fits = self._reserve(end, spare=spare)
        self._broken = False
        return fits

    def look(self) -> None:
        """See how much room the disk has, and whether the log is still there.

        Raises:
            CorruptLog: it was deleted.
        """
        if not self._handles[self._segment].is_linked():
            path = self._files.path_of(segment_name(self._segment))
            raise CorruptLog(
                f"{path} was deleted while its shard used it, and what it held is lost: restore "
                "the directory from a backup, and open the store again",
                path=path,
                offset=0,
                reason=DELETED,
            )
        # The space that a small log has reserved for itself is its reserve.
        is_large = self._segment > 1 or self._offset > SEGMENT_GROW_BYTES
        self.space.look(wants_reserve=is_large)
        if not self._has_begun:
            self._begin_epoch()

    def append(self, frame: bytearray, lengths: list[int], *, sync: bool) -> None:
        """Write a frame; with `sync`, return only once it is on disk."""
        self._refuse_if_broken()
        assert self._has_begun, "nothing is written before its epoch"
        self._broken = True
        seal(frame, lengths, self._lsn + 1, self._synced_lsn, self.epoch)
        handle = self._handles[self._segment]
        end = self._offset + len(frame)
        if end > self._reserved and not self._reserve(end):
            raise OSError(self.space.cause, "the disk has no room for the frame")
        try:
            handle.pwrite(frame, self._offset)
        except OSError as error:
            # Where a file system copies on write, reserved space is no promise. The write, unlike
            # a sync, may be repeated: it fails before it has promised anything.
            self.space.refused(error)
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
        return self._read(Position(number, offset, size), "the file ends too early")

    def holds(self, position: Position) -> bool:
        """Whether an entry can lie there: in a file of the log, or in the frame to come."""
        segment, offset, length = position
        span = self.spans.get(segment)
        return segment == self._segment if span is None else offset + length <= span.size

    def read(self, position: Position) -> bytes:
        """Return the bytes of one entry."""
        return self._read(position, "the segment ends inside an entry")

    def _read(self, position: Position, if_short: str) -> bytes:
        try:
            data = self._handle(position.segment).pread(position.length, position.offset)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT):
                raise
            raise self.corrupt(position, f"it cannot be read ({error.strerror})") from error
        if len(data) != position.length:
            raise self.corrupt(position, if_short)
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

    def _reserve(self, end: int, *, spare: bool = False) -> bool:
        handle = self._handles[self._segment]
        reserved = self.space.grow(handle, end, SEGMENT_GROW_BYTES, spare=spare)
        if reserved is None:
            return False
        self._reserved = reserved
        return True

    def _begin_epoch(self) -> None:
        """Put the new epoch on disk, if there is room: without, the log can be read."""
        self._has_begun = True
        if self.has_room(HEADER_BYTES):
            self.append(bytearray(_ROOM), [], sync=True)
        else:
            self._has_begun = False

    def rotate(self, *, makes_room: bool = False) -> bool:
        """Seal the current segment and start the next; return whether that was possible.

        Everything sealed is on disk. A full disk may have no room for a further file: then this
        segment grows on. `makes_room`: it is sealed in order to be merged.
        """
        if not self._offset:
            return True  # No start would know what an empty one is for.
        if self.space.is_full and not (makes_room and self.space.has_room(0, makes_room=True)):
            return False
        self.sync()
        self._broken = True
        sealed, end = self._handles[self._segment], self._offset
        number = self.next_number
        try:
            file = self._files.open(segment_name(number), create=True)
        except OSError as error:
            self.space.refused(error)
            self._broken = False
            return False
        self.spans[self._segment] = self.written
        self._start_segment(self.take_number(), file)
        sealed.truncate(end)
        sealed.sync()
        self._broken = False
        return True

    @property
    def written(self) -> Span:
        """The segment that is written, as it would be if it were sealed now."""
        part = Part(self._segment, self._segment, self._segment)
        return Span(part, self._first_lsn, self._lsn, self._lsn, self.epoch, self._offset)

    def seal(self) -> list[str] | None:
        """Begin a new segment; return the names of all others: together they are the log.

        None: the disk is too full for a further file.
        """
        if not self.rotate():
            return None
        # With a frame in the new one, recovery never goes on writing in one that was named here.
        self.append(self.begin(), [], sync=True)
        return [span.part.name for span in self.spans.values()]

    def mark(self) -> bool:
        """Let the newest frame stand in the segment that is written; False: there is no room.

        Where it stands a checkpoint begins, and no merge may take what comes after it. One that has
        been sealed may even have been merged already.
        """
        if self.last_frame[0] != self._segment:
            if not self.has_room(HEADER_BYTES):
                return False
            self.append(self.begin(), [], sync=True)
        return True

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
        # Beside one that was discarded, which may have its end, both might seem to count.
        while self._obsolete:
            self._remove_next()
        return self._files.open(part.name, create=True)

    def discard(self, part: Part) -> None:
        """Remove a merged file that got no place in the log."""
        self._obsolete = [part.name]
        self.tidy()

    def tidy(self) -> bool:
        """Remove files that count no more; False: none, or not all, can be removed now.

        Until they are, nothing is merged: one that was discarded may have its end, and recovery
        would take it for a part of the log.
        """
        while self._obsolete:
            if not self._tidy_once():
                return False
        return not self.keeps_files()

    def _tidy_once(self) -> bool:
        if self.keeps_files():
            return False
        try:
            self._remove_next()
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return False
        return True

    def _remove_next(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(self._obsolete[0])
        # While the first source is there, all are: then a merged file that is damaged at its end,
        # and so looks unfinished, is taken for one only if they can stand in for it.
        self._files.sync_directory()
        self._obsolete.pop(0)

    def add_part(self, span: Span) -> None:
        """Take in a merged file that is whole; it is on disk when this returns."""
        self._files.sync_directory()
        self.spans[span.part.number] = span

    def remove_parts(self, parts: Sequence[Part]) -> Iterator[bool]:
        """Remove files that a merged one covers, and that nothing names any more, one at a time.

        What cannot be removed now is left to `tidy`, or to recovery.
        """
        for part in parts:
            del self.spans[part.number]
            handle = self._handles.pop(part.number, None)
            if handle is not None:
                handle.close()
            self._obsolete.append(part.name)
        while self._obsolete and self._tidy_once():
            yield True

    def _name(self, number: int) -> str:
        span = self.spans.get(number)
        return segment_name(number) if span is None else span.part.name

    def _start_segment(self, number: int, file: File) -> None:
        self._handles[number] = file
        self._files.sync_directory()
        self._segment = number
        self._first_lsn = self._lsn + 1
        self._offset = 0
        self._reserved = 0
