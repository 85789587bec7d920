"""Reading a log back: every whole frame in order, a torn tail cut, damage refused.

How a torn tail is told from damage: each frame names the newest LSN that was on disk when it was
written. A bad frame that a later frame vouches for was whole once, so it is damage: `CorruptLog`.
A bad frame that nothing vouches for was never acknowledged: the log ends before it.
tests/unit/flow/test_recover.py cuts and flips a log at every byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..errors import CorruptLog
from ..host import File, Files
from .frame import (
    HEADER_BYTES,
    MAGIC,
    FrameHeader,
    body_bytes_of,
    entry_lengths,
    read_header,
)
from .parts import END, RANGE, Part, Span, parts_in, segment_name
from .start import Recovery, Start, UnusableError, begin_at, check_reached, is_known

Take = Callable[[bytes, int, int, int, Sequence[int], int], None]
"""take(bytes, at, file's number, offset, lengths, LSN), once per frame in the order of the log: its
entries have these lengths and follow one another from `at` in the bytes, `offset` in the file."""


def begin(files: Files) -> None:
    """Put an empty first segment where a log is to be."""
    if not parts_in(files):
        files.open(segment_name(1), create=True).close()
        files.sync_directory()


def refuse_missing(files: Files) -> None:
    """Refuse a directory that should hold a log: it would read as an empty one.

    Raises:
        CorruptLog: no segment is there.
    """
    if not parts_in(files):
        path = files.path_of(segment_name(1))
        raise CorruptLog(
            f"the log at {path} is missing, with all that it held; restore it from a backup",
            path=path,
            offset=0,
        )


def recover(
    files: Files,
    take: Take,
    start: Start | None = None,
    hinted: Callable[[Part], Span | None] = lambda _: None,
) -> Recovery:
    """Read every entry, cut a torn tail off the disk, and return where the log continues.

    `start`: read from there on. `hinted`: takes in a merged file in another way than by reading it,
    and returns what it covers; None if it cannot.

    Raises:
        CorruptLog: a frame that was on disk is damaged or missing; nothing was changed.
        UnusableError: the log is not the one that `start` is of; nothing was changed.
    """
    result = Recovery()
    try:
        _recover(files, take, result, start, hinted)
    except BaseException:
        for handle in result.handles.values():
            handle.close()
        raise
    return result


def _recover(
    files: Files,
    take: Take,
    result: Recovery,
    start: Start | None,
    hinted: Callable[[Part], Span | None],
) -> None:
    found = parts_in(files)
    parts, obsolete = _without_covered(files, found)
    bad: _Bad | None = None
    for part in parts:
        number = part.number
        if start is not None and is_known(files, part, start, result):
            continue
        if part.is_merged:
            _take_merged(files, part, result, take, hinted)
            bad = None
            continue
        is_first = start is not None and number == start.segment
        base = begin_at(start, result) if start is not None and is_first else 0
        handle = result.handles[number] = files.open(part.name)
        raw = handle.pread(max(0, handle.size() - base), base)
        data = memoryview(raw)
        if bad is not None and bad.is_followed_by(data):
            bad = None
        elif bad is not None:
            if not result.cut_bytes and bad.segment == result.segment:
                bad = bad.placed_before(number, data)
            _refuse_if_vouched(files, bad, data, 0)
        if bad is not None:
            continue
        first_lsn = start.first_lsn if start is not None and is_first else result.lsn + 1
        result.segment = number
        result.offset = _read_segment(files, number, raw, base, result, take)
        result.spans[number] = Span(
            part, first_lsn, result.lsn, result.lsn, result.epoch, result.offset
        )
        bad = _Bad(number, result.offset, result.lsn + 1)
        _refuse_if_vouched(files, bad, data, result.offset - base)
        result.cut_bytes = len(bytes(data[result.offset - base :]).rstrip(b"\0"))
        _keep_last(result)
        if result.lsn == 0 and result.cut_bytes > HEADER_BYTES:
            # The first frame is an epoch's, synced before the second: all of it cannot be torn.
            raise _corrupt(files, number, 0, "the log does not begin with a frame")
    result.next_number = max((part.number for part in found), default=0) + 1
    if start is not None:
        check_reached(start, result)
    _cut_tail(files, parts, obsolete, result)


def _without_covered(files: Files, found: list[Part]) -> tuple[list[Part], list[Part]]:
    """Return the files to read, and those that are to be removed.

    From its end on, a merged file counts: all before that is on disk then, and so is what made dead
    what it has left out. Sources that are still there may be named by nobody any more. The first of
    them is the first to go: as long as it is there, it stands for all of them.
    """
    kept: list[Part] = []
    for _, group in groupby(found, key=lambda part: part.first):
        part = _counted(files, list(group))
        if not kept or not kept[-1].covers(part):
            kept.append(part)
    return kept, [part for part in found if part not in kept]


def _counted(files: Files, parts: list[Part]) -> Part:
    """Return which of the files that begin with the same segment has its place."""
    parts.sort(key=lambda part: -part.number)
    for part in parts[:-1]:
        if _is_finished(files, part):
            return part
    return parts[-1]


_END_BYTES = HEADER_BYTES + END.size + 4


def _is_finished(files: Files, part: Part) -> bool:
    """Whether a merged file has its end, which tells how many frames come before it."""
    handle = files.open(part.name)
    try:
        end = handle.size() - _END_BYTES
        tail = memoryview(handle.pread(_END_BYTES, max(0, end)))
        if read_header(tail, 0) is None:
            return False
        # An entry of another kind may be as short.
        (count,) = END.unpack_from(tail, HEADER_BYTES)
        at = frames = 0
        while at < end and frames < count:
            at += HEADER_BYTES + body_bytes_of(handle.pread(HEADER_BYTES, at))
            frames += 1
    finally:
        handle.close()
    return (at, frames) == (end, count)


def is_merged_as(files: Files, span: Span) -> bool:
    """Whether a merged file is as long as it was and covers what it did; its middle is not read."""
    handle = files.open(span.part.name)
    try:
        head = memoryview(handle.pread(HEADER_BYTES + RANGE.size + 4, 0))
        end = memoryview(handle.pread(_END_BYTES, max(0, span.size - _END_BYTES)))
        if handle.size() != span.size:
            return False
    finally:
        handle.close()
    if read_header(head, 0) is None or read_header(end, 0) is None:
        return False
    covered = RANGE.unpack_from(head, HEADER_BYTES)
    return covered == (span.first_lsn, span.last_lsn, span.merged_lsn)


def _take_merged(
    files: Files,
    part: Part,
    result: Recovery,
    take: Take,
    hinted: Callable[[Part], Span | None],
) -> None:
    span = hinted(part)
    if span is None:
        span = _read_merged(files, part, take)
    if span.first_lsn != result.lsn + 1:
        why = f"it begins with frame {span.first_lsn}, and frame {result.lsn + 1} belongs there"
        raise _corrupt(files, part, 0, why)
    result.lsn = span.last_lsn
    result.epoch = max(result.epoch, span.epoch)
    result.spans[part.number] = span._replace(epoch=result.epoch)


def _read_merged(files: Files, part: Part, take: Take) -> Span:
    """Read a merged file. It was whole when it got its end, so anything else is damage."""
    handle = files.open(part.name)
    try:
        raw = handle.pread(handle.size(), 0)
    finally:
        handle.close()
    data = memoryview(raw)
    end = len(data) - _END_BYTES
    if end < HEADER_BYTES + RANGE.size or read_header(data, 0) is None:
        raise _corrupt(files, part, 0, "it does not begin with what it covers")
    if read_header(data, end) is None:
        raise _corrupt(files, part, end, "its end is missing")
    first_lsn, last_lsn, merged_lsn = RANGE.unpack_from(data, HEADER_BYTES)
    at = frames = epoch = 0
    while at < end:
        header = read_header(data, at)
        if header is None or header.lsn != last_lsn:
            raise _corrupt(files, part, at, "a frame is damaged")
        offset = at + HEADER_BYTES
        if at:
            take(raw, offset, part.number, offset, entry_lengths(data, at, header), last_lsn)
        at += HEADER_BYTES + header.body_bytes
        frames += 1
        epoch = max(epoch, header.epoch)
    (count,) = END.unpack_from(data, end + HEADER_BYTES)
    if at != end or count != frames:
        raise _corrupt(files, part, at, f"it has {frames} frames, and {count} belong there")
    return Span(part, first_lsn, last_lsn, merged_lsn, epoch, len(data))


def _keep_last(result: Recovery) -> None:
    """Close the segments before the last: a long log has more of them than a process has files."""
    for number in [number for number in result.handles if number != result.segment]:
        result.handles.pop(number).close()


@dataclass
class _Bad:
    """The first place where no whole frame stands, and the LSN that is missing there."""

    segment: int
    offset: int
    lsn: int

    def is_followed_by(self, data: memoryview) -> bool:
        """Whether the next segment simply goes on where this one ends."""
        header = read_header(data, 0)
        return header is not None and header.lsn == self.lsn

    def placed_before(self, number: int, data: memoryview) -> _Bad:
        """Return the place to name, given what follows a segment that ends with a whole frame."""
        if number == self.segment + 1 and read_header(data, 0) is not None:
            return self
        return _Bad(self.segment + 1, 0, self.lsn)


def _read_segment(
    files: Files, number: int, raw: bytes, base: int, result: Recovery, take: Take
) -> int:
    """Take in the frames of a segment whose bytes from `base` on these are; return its end."""
    data = memoryview(raw)
    at = 0
    doubtful: deque[tuple[int, int]] = deque()
    while (header := read_header(data, at)) is not None:
        if header.lsn != result.lsn + 1:
            why = f"frame {header.lsn} stands where frame {result.lsn + 1} belongs"
            raise _corrupt(files, number, base + at, why)
        if header.epoch < result.epoch:
            raise _corrupt(files, number, base + at, "an older epoch follows a newer one")
        if result.marks and result.marks.pop(header.lsn, header.epoch) != header.epoch:
            raise UnusableError(f"frame {header.lsn} is another one than it was")
        start = at + HEADER_BYTES
        take(raw, start, number, base + start, entry_lengths(data, at, header), header.lsn)
        result.lsn = header.lsn
        result.epoch = header.epoch
        doubtful.append((header.lsn, base + at))
        while doubtful and doubtful[0][0] <= header.synced_lsn:
            doubtful.popleft()
        at += HEADER_BYTES + header.body_bytes
    result.doubtful = doubtful[0][1] if doubtful else base + at
    return base + at


def _refuse_if_vouched(files: Files, bad: _Bad, data: memoryview, start: int) -> None:
    """Raise CorruptLog if a whole frame at or after `start` knows the bad one to be on disk."""
    for header in _later_frames(data, start):
        if header.synced_lsn >= bad.lsn:
            raise _corrupt(
                files,
                bad.segment,
                bad.offset,
                f"frame {bad.lsn} is damaged or missing, and frame {header.lsn} follows it",
            )


def _later_frames(data: memoryview, start: int) -> list[FrameHeader]:
    raw = bytes(data)
    found = []
    at = raw.find(MAGIC, start)
    while at >= 0:
        if (header := read_header(data, at)) is not None:
            found.append(header)
        at = raw.find(MAGIC, at + 1)
    return found


def _cut_tail(files: Files, parts: list[Part], obsolete: list[Part], result: Recovery) -> None:
    """Remove what follows the last whole frame, so that it can never be read as one."""
    _remove(files, parts, obsolete)
    if not parts or parts[-1].is_merged:
        result.segment = result.next_number
        result.next_number += 1
        result.offset = result.doubtful = 0
        return
    span = result.spans.pop(result.segment)
    last = span.part
    result.first_lsn = span.first_lsn
    for part in parts:
        if part.first > last.first:
            result.handles.pop(part.number).close()
            files.remove(part.name)
    handle = result.handles[result.segment]
    if handle.size() > result.offset:
        handle.truncate(result.offset)
    _rewrite(handle, result.doubtful)
    files.sync_directory()


def _remove(files: Files, parts: list[Part], obsolete: list[Part]) -> None:
    """Remove files that do not count, once those that have taken their place are on disk."""
    if not obsolete:
        return
    for part in parts:
        if any(part.covers(other) for other in obsolete):
            handle = files.open(part.name)
            try:
                _rewrite(handle, max(0, handle.size() - _END_BYTES))
            finally:
                handle.close()
    files.sync_directory()
    for part in obsolete:
        files.remove(part.name)
        # One after the other: see Log.
        files.sync_directory()


def _rewrite(handle: File, offset: int) -> None:
    """Put on disk what is read from an offset on.

    The process before may have ended at a failed sync: then these bytes read well, but are on no
    disk, and no further sync would put them there. Written again, the next one does.
    """
    handle.pwrite(handle.pread(handle.size() - offset, offset), offset)
    handle.sync()


def _corrupt(files: Files, where: int | Part, offset: int, why: str) -> CorruptLog:
    name = where.name if isinstance(where, Part) else segment_name(where)
    path = files.path_of(name)
    return CorruptLog(
        f"{path} is damaged at byte {offset}: {why}; restore it from a backup",
        path=path,
        offset=offset,
    )
