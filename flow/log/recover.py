"""Reading a log back: every whole frame in order, a torn tail cut, damage refused.

How a torn tail is told from damage: each frame names the newest LSN that was on disk when it was
written. A bad frame that a later frame vouches for was whole once, so it is damage: `CorruptLog`.
A bad frame that nothing vouches for was never acknowledged: the log ends before it.
tests/unit/flow/test_recover.py cuts and flips a log at every byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import CorruptLog
from ..host import File, Files
from .frame import HEADER_BYTES, MAGIC, FrameHeader, entry_lengths, read_header
from .parts import END, RANGE, Part, parts_in, segment_name

Take = Callable[[bytes, int, int, Sequence[int]], None]
"""take(segment's bytes, segment, offset, lengths), once per frame in the order of the log: its
entries have these lengths and follow one another from this offset on."""


@dataclass
class Recovery:
    """Where a log continues."""

    handles: dict[int, File] = field(default_factory=dict)
    segment: int = 1
    offset: int = 0
    lsn: int = 0
    epoch: int = 0
    cut_bytes: int = 0
    """Length of the torn tail that was removed; reserved zeros do not count."""
    doubtful: int = 0
    """Where in the last segment the frames begin that no later one knows to be on disk."""
    spans: dict[int, Span] = field(default_factory=dict)
    """The files before the last, by number, in the log's order."""
    first_lsn: int = 1
    """The first frame of the last segment."""
    next_number: int = 2
    """The number of the next file: above that of any file that there ever was."""


class Span(NamedTuple):
    """A file that is written no more, and what it covers."""

    part: Part
    first_lsn: int
    last_lsn: int
    merged_lsn: int
    """What is dead since a frame up to this one is not in it any more."""
    epoch: int
    size: int


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


def recover(files: Files, take: Take) -> Recovery:
    """Read every entry, cut a torn tail off the disk, and return where the log continues.

    Raises:
        CorruptLog: a frame that was on disk is damaged or missing; nothing was changed.
    """
    result = Recovery()
    try:
        _recover(files, take, result)
    except BaseException:
        for handle in result.handles.values():
            handle.close()
        raise
    return result


def _recover(files: Files, take: Take, result: Recovery) -> None:
    found = parts_in(files)
    parts, obsolete = _without_covered(found)
    bad: _Bad | None = None
    for part in parts:
        number = part.number
        handle = result.handles[number] = files.open(part.name)
        raw = handle.pread(handle.size(), 0)
        data = memoryview(raw)
        if part.is_merged:
            _read_merged(files, part, raw, result, take)
            bad = None
            continue
        if bad is not None and bad.is_followed_by(data):
            bad = None
        elif bad is not None:
            if not result.cut_bytes and bad.segment == result.segment:
                bad = bad.placed_before(number, data)
            _refuse_if_vouched(files, bad, data, 0)
        if bad is not None:
            continue
        first_lsn = result.lsn + 1
        result.segment = number
        result.offset = _read_segment(files, number, raw, result, take)
        result.spans[number] = Span(
            part, first_lsn, result.lsn, result.lsn, result.epoch, result.offset
        )
        bad = _Bad(number, result.offset, result.lsn + 1)
        _refuse_if_vouched(files, bad, data, result.offset)
        result.cut_bytes = len(bytes(data[result.offset :]).rstrip(b"\0"))
        _keep_last(result)
        if result.lsn == 0 and result.cut_bytes > HEADER_BYTES:
            # The first frame is an epoch's, synced before the second: all of it cannot be torn.
            raise _corrupt(files, number, 0, "the log does not begin with a frame")
    result.next_number = max((part.number for part in found), default=0) + 1
    _cut_tail(files, parts, obsolete, result)


def _without_covered(found: list[Part]) -> tuple[list[Part], list[Part]]:
    """Return the files to read, and those that are to be removed.

    A merge removes the first of its sources before the others. So while that is there, all of
    them are, and the merged file need not be whole; once it is gone, the merged file is on disk.
    """
    oldest: dict[int, Part] = {}
    for part in found:
        other = oldest.setdefault(part.first, part)
        if part.number < other.number:
            oldest[part.first] = part
    kept: list[Part] = []
    for part in sorted(oldest.values()):
        if not kept or not kept[-1].covers(part):
            kept.append(part)
    return kept, [part for part in found if part not in kept]


_END_BYTES = HEADER_BYTES + END.size + 4


def _read_merged(files: Files, part: Part, raw: bytes, result: Recovery, take: Take) -> None:
    """Read a merged file. It was whole when it got its end, so anything else is damage."""
    data = memoryview(raw)
    end = len(data) - _END_BYTES
    if end < HEADER_BYTES + RANGE.size or read_header(data, 0) is None:
        raise _corrupt(files, part, 0, "it does not begin with what it covers")
    if read_header(data, end) is None:
        raise _corrupt(files, part, end, "its end is missing")
    first_lsn, last_lsn, merged_lsn = RANGE.unpack_from(data, HEADER_BYTES)
    if first_lsn != result.lsn + 1:
        why = f"it begins with frame {first_lsn}, and frame {result.lsn + 1} belongs there"
        raise _corrupt(files, part, 0, why)
    at = frames = 0
    while at < end:
        header = read_header(data, at)
        if header is None or header.lsn != last_lsn:
            raise _corrupt(files, part, at, "a frame is damaged")
        offset = at + HEADER_BYTES
        if at:
            take(raw, part.number, offset, entry_lengths(data, at, header))
        at += HEADER_BYTES + header.body_bytes
        frames += 1
        result.epoch = max(result.epoch, header.epoch)
    (count,) = END.unpack_from(data, end + HEADER_BYTES)
    if at != end or count != frames:
        raise _corrupt(files, part, at, f"it has {frames} frames, and {count} belong there")
    result.lsn = last_lsn
    result.handles.pop(part.number).close()
    result.spans[part.number] = Span(part, first_lsn, last_lsn, merged_lsn, result.epoch, len(data))


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


def _read_segment(files: Files, number: int, raw: bytes, result: Recovery, take: Take) -> int:
    data = memoryview(raw)
    at = 0
    doubtful: deque[tuple[int, int]] = deque()
    while (header := read_header(data, at)) is not None:
        if header.lsn != result.lsn + 1:
            why = f"frame {header.lsn} stands where frame {result.lsn + 1} belongs"
            raise _corrupt(files, number, at, why)
        if header.epoch < result.epoch:
            raise _corrupt(files, number, at, "an older epoch follows a newer one")
        take(raw, number, at + HEADER_BYTES, entry_lengths(data, at, header))
        result.lsn = header.lsn
        result.epoch = header.epoch
        doubtful.append((header.lsn, at))
        while doubtful and doubtful[0][0] <= header.synced_lsn:
            doubtful.popleft()
        at += HEADER_BYTES + header.body_bytes
    result.doubtful = doubtful[0][1] if doubtful else at
    return at


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
    for part in obsolete:
        files.remove(part.name)
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
    # The process before may have ended at a failed sync: then these bytes read well, but are on no
    # disk, and no further sync would put them there. Written again, the next one does.
    handle.pwrite(handle.pread(result.offset - result.doubtful, result.doubtful), result.doubtful)
    handle.sync()
    files.sync_directory()


def _corrupt(files: Files, where: int | Part, offset: int, why: str) -> CorruptLog:
    name = where.name if isinstance(where, Part) else segment_name(where)
    path = files.path_of(name)
    return CorruptLog(
        f"{path} is damaged at byte {offset}: {why}; restore it from a backup",
        path=path,
        offset=offset,
    )
