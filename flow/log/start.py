"""Where a log continues, and where reading it may begin: not before what a checkpoint has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..host import File, Files
from .parts import Part, Span


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
    marks: dict[int, int] = field(default_factory=dict)
    """LSN → epoch of frames that a checkpoint knows, as long as they were not met."""


class Start(NamedTuple):
    """Where reading may begin, because a checkpoint has what came before."""

    spans: dict[int, Span]
    """The files that need not be read, by number."""
    segment: int
    offset: int
    """Of the frame to begin with."""
    lsn: int
    epoch: int
    """That frame's."""
    first_lsn: int
    """The first frame of that segment."""
    last_lsn: int
    last_epoch: int
    """Of a frame that was on disk when the checkpoint was finished."""
    next_number: int


class UnusableError(Exception):
    """A checkpoint or hint that is not whole, or not of this log: the log itself has to be read."""


def is_known(files: Files, part: Part, start: Start, result: Recovery) -> bool:
    """Whether a file need not be read; if so, note what it covers."""
    if part.is_merged and part.last >= start.segment:
        raise UnusableError(f"{part.name} has taken the place of what is to be read")
    if part.first >= start.segment:
        return False
    span = start.spans.get(part.number)
    if span is None:
        if not part.is_merged:
            raise UnusableError(f"{part.name} is unknown")
        return False
    handle = files.open(part.name)
    try:
        size = handle.size()
    finally:
        handle.close()
    if span.part != part or size != span.size or span.first_lsn != result.lsn + 1:
        raise UnusableError(f"{part.name} is not what it was")
    result.spans[part.number] = span
    result.lsn = span.last_lsn
    result.epoch = max(result.epoch, span.epoch)
    return True


def begin_at(start: Start, result: Recovery) -> int:
    """Return the offset to begin with in a checkpoint's segment, which the log must lead up to."""
    if result.lsn + 1 != start.first_lsn:
        raise UnusableError(f"frame {result.lsn + 1} is missing before segment {start.segment}")
    result.lsn = start.lsn - 1
    result.epoch = max(result.epoch, start.epoch)
    result.marks = {start.lsn: start.epoch, start.last_lsn: start.last_epoch}
    return start.offset


def check_reached(start: Start, result: Recovery) -> None:
    """Refuse a log that ends before what the checkpoint already has, or has other frames there."""
    if result.lsn < start.last_lsn or result.marks:
        raise UnusableError(f"the log ends with frame {result.lsn}, and {start.last_lsn} was there")
    result.next_number = max(result.next_number, start.next_number)
