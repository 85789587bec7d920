"""Which files of a log are worth a merge.

Those of which much is dead; many small ones; and those that keep tombstones alive. A tombstone says
that earlier entries are dead, and so is dead itself once no file before it can hold one of them: a
file can not if it comes before the flow was created, or was merged after the tombstone was written.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

from ..limits import (
    CHECKPOINT_FILES_MAX,
    MERGE_DEAD_RATIO,
    MERGE_FILES_MIN,
    MERGE_FRAME_BYTES,
    MERGE_HASTE_BYTES,
    MERGE_SLACK_BYTES,
    SEGMENT_BYTES,
)
from ..log.dead import DeadBytes
from ..log.frame import HEADER_BYTES, TABLE_ENTRY_BYTES
from ..log.log import Log
from ..log.parts import END, RANGE, Span

MARKS_BYTES = 2 * (HEADER_BYTES + TABLE_ENTRY_BYTES) + RANGE.size + END.size
"""The first and the last frame of a merged file."""


class Choice:
    """Looks at the files that are written no more."""

    def __init__(self, log: Log, dead: DeadBytes) -> None:
        self._log = log
        self._dead = dead
        self._needed: set[int] = set()
        """Files whose tombstones are needed."""

    def sources(self, begin: int) -> list[Span]:
        """Return neighbours to merge, all of them before segment `begin`, if that is not 0."""
        spans = self._look()
        if begin:
            spans = [span for span in spans if span.part.last < begin]
        worst = max(spans, key=self._ratio, default=None)
        if worst is not None and self._ratio(worst) >= MERGE_DEAD_RATIO:
            return self._around(spans, spans.index(worst))
        for run in self._runs(spans):
            if len(run) >= MERGE_FILES_MIN:
                return run
        return self._blockers(spans)

    def least(self, begin: int) -> list[Span]:
        """Return the file of those whose merge writes the least, if one is half dead."""
        spans = [span for span in self._look() if not begin or span.part.last < begin]
        dying = (span for span in spans if self._ratio(span) >= MERGE_DEAD_RATIO)
        found = min(dying, key=self._live_bytes, default=None)
        return [] if found is None else [found]

    def haste(self) -> float:
        """How far the log is beyond what it is to take at most, from 0 to 1."""
        size = sum(span.size for span in self._log.spans.values())
        wanted = (size - self.dead_bytes()) / (1 - MERGE_DEAD_RATIO) + MERGE_SLACK_BYTES
        return max(0.0, min(1.0, (size - wanted) / MERGE_HASTE_BYTES))

    def dead_bytes(self) -> int:
        """Return how much of these files nobody needs."""
        return sum(map(self._dead_bytes, self._look()))

    def dead_bytes_between(self, begin: int, end: int) -> int:
        """Return how much nobody needs of the files from segment `begin` on, up to `end`."""
        return sum(self._dead_bytes(span) for span in self._look() if begin <= span.part.last < end)

    def are_many_between(self, begin: int, end: int) -> bool:
        """Whether there are many small files of those."""
        spans = self._log.spans.values()
        sizes = [span.size for span in spans if begin <= span.part.last < end]
        left = max(1, sum(sizes) / SEGMENT_BYTES)
        return len(sizes) >= CHECKPOINT_FILES_MAX and len(sizes) >= left * MERGE_FILES_MIN

    def live_bytes(self, spans: Iterable[Span]) -> int:
        """Return what a merge of some files would copy, about."""
        return sum(map(self._live_bytes, spans))

    def _look(self) -> list[Span]:
        """Return the files in the log's order, and see which tombstones are needed."""
        spans = sorted(self._log.spans.values(), key=lambda span: span.part.first)
        self._needed.clear()
        lasts = [span.part.last for span in spans]
        # Of each run of files that ends before the one looked at, the least `merged_lsn`: places
        # and values of the files that are less than all that follow them.
        at: list[int] = []
        least: list[int] = []
        for index, span in enumerate(spans):
            kept = self._dead.kept(span.part.number)
            if kept is not None:
                start = bisect_left(at, bisect_left(lasts, kept.first, 0, index))
                if start < len(at) and least[start] < span.last_lsn:
                    self._needed.add(span.part.number)
            while least and least[-1] >= span.merged_lsn:
                at.pop()
                least.pop()
            at.append(index)
            least.append(span.merged_lsn)
        return spans

    def _ratio(self, span: Span) -> float:
        """Return how much of a file nobody needs any more, 0 to 1."""
        number = span.part.number
        count = self._dead.of(number)
        kept = self._dead.kept(number)
        if kept is not None and number not in self._needed:
            count += kept.bytes
        return ratio(count, span)

    def _dead_bytes(self, span: Span) -> int:
        return round(span.size * self._ratio(span))

    def _live_bytes(self, span: Span) -> int:
        return span.size - self._dead_bytes(span)

    def _around(self, spans: list[Span], at: int) -> list[Span]:
        """Return a file with its neighbours that are half dead too, up to a segment's size."""
        first = last = at
        size = self._live_bytes(spans[at])
        for step in (1, -1):
            place = at + step
            while 0 <= place < len(spans) and self._ratio(spans[place]) >= MERGE_DEAD_RATIO:
                size += self._live_bytes(spans[place])
                if size > SEGMENT_BYTES:
                    break
                first, last = min(first, place), max(last, place)
                place += step
        return spans[first : last + 1]

    def _runs(self, spans: list[Span]) -> list[list[Span]]:
        """Return the runs of neighbours that would fit into one segment together."""
        runs: list[list[Span]] = []
        size = 0
        for span in spans:
            more = self._live_bytes(span)
            size += more
            if runs and size <= SEGMENT_BYTES:
                runs[-1].append(span)
            else:
                runs.append([span])
                size = more
        assert all(a.last_lsn + 1 == b.first_lsn for run in runs for a, b in pairwise(run))
        return runs

    def _blockers(self, spans: list[Span]) -> list[Span]:
        """Return the oldest files that tombstones are kept for, if these have grown as large.

        Else a file that dies slowly would let all tombstones after it pile up. Once it is merged
        anew, it holds nothing that a tombstone so far is about.
        """
        blocked = size = 0
        first, lsn = None, 0
        blocking: list[int] = []
        for at in range(len(spans) - 1, -1, -1):
            span = spans[at]
            kept = self._dead.kept(span.part.number)
            if span.part.number not in self._needed:
                kept = None
            if first is not None and span.part.last >= first and span.merged_lsn < lsn:
                blocking.append(at)
                # Its own tombstones will go as well, or are kept for files before it.
                size += self._live_bytes(span) - (0 if kept is None else kept.bytes)
            if kept is not None:
                blocked += kept.bytes
                first = kept.first if first is None else min(first, kept.first)
                lsn = max(lsn, span.last_lsn)
        if not blocking or blocked < size:
            return []
        chosen = [spans[blocking.pop()]]
        size = self._live_bytes(chosen[0])
        while blocking and spans[blocking[-1]].first_lsn == chosen[-1].last_lsn + 1:
            size += self._live_bytes(spans[blocking[-1]])
            if size > SEGMENT_BYTES:
                break
            chosen.append(spans[blocking.pop()])
        return chosen


def ratio(dead_bytes: int, span: Span) -> float:
    """Return how much of a file is dead, 0 to 1, given what its dead entries come to.

    The headers of frames go with the entries: of a file that is all dead, all is.
    """
    if span.part.is_merged:
        frames = -(-(span.size - MARKS_BYTES) // MERGE_FRAME_BYTES)
        entries = span.size - MARKS_BYTES - frames * HEADER_BYTES
    else:
        entries = span.size - (span.last_lsn - span.first_lsn + 1) * HEADER_BYTES
    return min(1.0, dead_bytes / entries) if entries > 0 else 0.0
