"""Reading a log back: every whole frame in order, a torn tail cut, damage refused.

How a torn tail is told from damage: each frame names the newest LSN that was on disk when it was
written. A bad frame that a later frame vouches for was whole once, so it is damage: `CorruptLog`.
A bad frame that nothing vouches for was never acknowledged: the log ends before it.
tests/unit/flow/test_recover.py cuts and flips a log at every byte.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import CorruptLog
from ..host import File, Files
from .frame import HEADER_BYTES, MAGIC, FrameHeader, entry_lengths, read_header

_SEGMENT_NAME = re.compile(r"(\d{10})\.log")

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


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:010d}.log"


def segment_numbers(files: Files) -> list[int]:
    """Return the numbers of the segments that exist, ascending."""
    found = (_SEGMENT_NAME.fullmatch(name) for name in files.names())
    return sorted(int(match[1]) for match in found if match)


def begin(files: Files) -> None:
    """Put an empty first segment where a log is to be."""
    if not segment_numbers(files):
        files.open(segment_name(1), create=True).close()
        files.sync_directory()


def refuse_missing(files: Files) -> None:
    """Refuse a directory that should hold a log: it would read as an empty one.

    Raises:
        CorruptLog: no segment is there.
    """
    if not segment_numbers(files):
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
    numbers = segment_numbers(files)
    bad: _Bad | None = None
    for number in numbers:
        handle = result.handles[number] = files.open(segment_name(number))
        raw = handle.pread(handle.size(), 0)
        data = memoryview(raw)
        if bad is not None and bad.is_followed_by(data):
            bad = None
        elif bad is not None:
            if not result.cut_bytes and bad.segment == result.segment:
                bad = bad.placed_before(number, data)
            _refuse_if_vouched(files, bad, data, 0)
        if bad is not None:
            continue
        result.segment = number
        result.offset = _read_segment(files, number, raw, result, take)
        bad = _Bad(number, result.offset, result.lsn + 1)
        _refuse_if_vouched(files, bad, data, result.offset)
        result.cut_bytes = len(bytes(data[result.offset :]).rstrip(b"\0"))
        _keep_last(result)
        if result.lsn == 0 and result.cut_bytes > HEADER_BYTES:
            # The first frame is an epoch's, synced before the second: all of it cannot be torn.
            raise _corrupt(files, number, 0, "the log does not begin with a frame")
    _cut_tail(files, numbers, result)


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


def _cut_tail(files: Files, numbers: list[int], result: Recovery) -> None:
    """Remove what follows the last whole frame, so that it can never be read as one."""
    if not numbers:
        return
    for number in numbers:
        if number > result.segment:
            result.handles.pop(number).close()
            files.remove(segment_name(number))
    handle = result.handles[result.segment]
    if handle.size() > result.offset:
        handle.truncate(result.offset)
    # The process before may have ended at a failed sync: then these bytes read well, but are on no
    # disk, and no further sync would put them there. Written again, the next one does.
    handle.pwrite(handle.pread(result.offset - result.doubtful, result.doubtful), result.doubtful)
    handle.sync()
    files.sync_directory()


def _corrupt(files: Files, segment: int, offset: int, why: str) -> CorruptLog:
    path = files.path_of(segment_name(segment))
    return CorruptLog(
        f"{path} is damaged at byte {offset}: {why}; restore it from a backup",
        path=path,
        offset=offset,
    )
