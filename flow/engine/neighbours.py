"""Which neighbours of a file go into one merge with it: only neighbours can be merged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from ..log.parts import Span

Measure = Callable[[Span], int]


def around(
    spans: list[Span], at: int, live_bytes: Measure, is_alike: Callable[[Span], bool], size_max: int
) -> list[Span]:
    """Return a file with its neighbours that are like it, up to a size."""
    first = last = at
    size = live_bytes(spans[at])
    for step in (1, -1):
        place = at + step
        while 0 <= place < len(spans) and is_alike(spans[place]):
            size += live_bytes(spans[place])
            if size > size_max:
                break
            first, last = min(first, place), max(last, place)
            place += step
    return spans[first : last + 1]


def runs(spans: list[Span], live_bytes: Measure, size_max: int) -> list[list[Span]]:
    """Return the runs of neighbours that fit into a size together."""
    found: list[list[Span]] = []
    for span in spans:
        run = found[-1] if found else []
        size = sum(map(live_bytes, run)) + live_bytes(span)
        if run and size <= size_max:
            run.append(span)
        else:
            found.append([span])
    assert all(a.last_lsn + 1 == b.first_lsn for run in found for a, b in pairwise(run))
    return found
