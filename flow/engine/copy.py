"""Making the copied files of a log one that can be opened."""

from __future__ import annotations

from ..host import Files
from ..log.log import Log
from ..log.parts import Part, Span
from ..log.recover import recover


def adopt(files: Files) -> None:
    """Check every frame of a copy, and begin a segment of its own for it to go on in.

    The copied files may be links to those of a store: nothing may ever be written to them. So the
    new segment has a frame, or opening would go on in the one before.

    Raises:
        CorruptLog: a file is damaged or missing.
    """
    found = recover(files, lambda *_: None)
    last = Part(found.segment, found.segment, found.segment)
    found.spans[last.number] = Span(
        last, found.first_lsn, found.lsn, found.lsn, found.epoch, found.offset
    )
    found.segment, found.offset, found.doubtful = found.next_number, 0, 0
    found.next_number += 1
    Log(files, found).close()
