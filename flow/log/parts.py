"""The files of a log and their order: segments as they were written, and merged ones.

    0000000007.log                         segment 7
    0000000002-0000000005-0000000008.log   what was live of segments 2 to 5, as file 8

A file's number is what positions name, and is never used again. A merged file stands in the log
where the segments stood whose place it takes, so that the log reads in the same order as before.
It begins with a frame that says which LSNs it covers, and is whole only if it ends with its end.
"""

from __future__ import annotations

import re
from struct import Struct as Layout
from typing import NamedTuple

from ..host import Files

_NAME = re.compile(r"(\d{10})\.log|(\d{10})-(\d{10})-(\d{10})\.log")
RANGE = Layout("<QQQ")
"""The entry of a merged file's first frame: first and last LSN that it covers, newest LSN then."""
END = Layout("<Q")
"""The entry of its last frame: how many frames came before it."""


class Part(NamedTuple):
    """One file of a log."""

    first: int
    """The segments whose place it takes: from this one to `last`."""
    last: int
    number: int
    """The file's own number."""

    @property
    def is_merged(self) -> bool:
        """Whether it was made by a merge."""
        return self.number != self.first

    @property
    def name(self) -> str:
        """The file's name."""
        if self.is_merged:
            return f"{self.first:010d}-{self.last:010d}-{self.number:010d}.log"
        return segment_name(self.number)

    def covers(self, other: Part) -> bool:
        """Whether this file holds what was live of the other one."""
        return self.number > other.number and self.first <= other.first and other.last <= self.last


class Span(NamedTuple):
    """A file that is written no more, and what it covers."""

    part: Part
    first_lsn: int
    last_lsn: int
    merged_lsn: int
    """What is dead since a frame up to this one is not in it any more."""
    epoch: int
    size: int


def segment_name(number: int) -> str:
    """Return the file name of a segment that was written."""
    return f"{number:010d}.log"


def parts_in(files: Files) -> list[Part]:
    """Return every file of a log, in the log's order; merged ones before what they cover."""
    found = []
    for name in files.names():
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        if match[1]:
            number = int(match[1])
            found.append(Part(number, number, number))
        else:
            found.append(Part(int(match[2]), int(match[3]), int(match[4])))
    return sorted(found, key=lambda part: (part.first, -part.last, -part.number))
