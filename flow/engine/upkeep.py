"""What a shard does for itself between batches: merging, and projecting, a slice at a time."""

from __future__ import annotations

from itertools import pairwise

from ..cold.store import Cold
from ..limits import MERGE_DEAD_RATIO, MERGE_FILES_MIN, SEAL_BYTES_MIN, SEGMENT_BYTES
from ..log.log import Log
from ..log.recover import Span
from ..log.values import Values
from ..machine.state import ShardState
from .merge import Merge
from .project import Projector


class Upkeep:
    """At most one merge at a time. Nothing is lost if the process ends at any point of it."""

    def __init__(
        self, log: Log, state: ShardState, values: Values, cold: Cold | None = None
    ) -> None:
        self._cold = cold
        self._projector = None if cold is None else Projector(log, state, values, cold)
        self._is_turn_of_merge = False
        self._log = log
        self._state = state
        self._values = values
        self._merge: Merge | None = None
        self._looked_at: tuple[int, int] = (-1, -1)
        self.merges = 0
        self.bytes_copied = 0

    @property
    def is_needed(self) -> bool:
        """Whether there may be something to do."""
        return self._merge is not None or self._is_projecting or self._may_merge

    @property
    def haste(self) -> float:
        """How urgent it is, from 0 to 1."""
        return 0.0 if self._projector is None else self._projector.haste

    @property
    def _may_merge(self) -> bool:
        if not self._state.settings.upkeep:
            return False
        return (bool(self._log.spans) or self._may_seal) and self._looked_at != self._seen

    @property
    def _may_seal(self) -> bool:
        """Whether the segment that is being written is half dead already."""
        segment, size = self._log.position
        return size >= SEAL_BYTES_MIN and self._values.dead.of(segment) >= size * MERGE_DEAD_RATIO

    @property
    def _is_projecting(self) -> bool:
        return self._projector is not None and not self._projector.is_done

    @property
    def _seen(self) -> tuple[int, int]:
        """What has to change before there can be something to do again."""
        return self._log.next_number, self._values.dead.counted

    def step(self) -> bool:
        """Do a slice of what is to be done; return whether there was anything."""
        # Merging and projecting take turns: neither has to wait until the other is done.
        self._is_turn_of_merge = not self._is_turn_of_merge or not self._is_projecting
        if self._is_turn_of_merge and self._merge_on():
            return True
        if self._projector is None or self._projector.is_done:
            return False
        self._projector.step()
        return True

    def _merge_on(self) -> bool:
        """Do a slice of a merge; return whether there was anything to merge."""
        if self._merge is None:
            if not self._may_merge:
                return False
            if self._may_seal:
                self._log.rotate()
            sources = self._choose()
            if not sources:
                return False
            self._merge = Merge(self._log, self._state, self._values, sources, self._cold)
        self._merge.step()
        if self._merge.is_done:
            self.merges += 1
            self.bytes_copied += self._merge.bytes_copied
            self._merge = None
        return True

    def close(self) -> None:
        """Give up what is under way."""
        if self._merge is not None:
            self._merge.abandon()
            self._merge = None

    def statistics(self) -> dict[str, int]:
        """Return what the log takes, and what was done about it."""
        spans = self._log.spans.values()
        return {
            "files": len(spans) + 1,
            "log_bytes": sum(span.size for span in spans) + self._log.position[1],
            "dead_bytes": sum(self._values.dead.of(span.part.number) for span in spans),
            "merges": self.merges,
            "merged_bytes": self.bytes_copied,
        }

    def dead_ratio(self, span: Span) -> float:
        """Return how much of a file nobody needs any more, 0 to 1."""
        return self._values.dead.of(span.part.number) / max(1, span.size)

    def _choose(self) -> list[Span]:
        """Return neighbours to merge: those with much that is dead, or many small files."""
        self._looked_at = self._seen
        spans = sorted(self._log.spans.values(), key=lambda span: span.part.first)
        worst = max(spans, key=self.dead_ratio, default=None)
        if worst is not None and self.dead_ratio(worst) >= MERGE_DEAD_RATIO:
            return self._around(spans, spans.index(worst))
        for run in self._runs(spans):
            if len(run) >= MERGE_FILES_MIN:
                return run
        return []

    def _live_bytes(self, span: Span) -> int:
        return max(0, span.size - self._values.dead.of(span.part.number))

    def _around(self, spans: list[Span], at: int) -> list[Span]:
        """Return a file with its neighbours that are half dead too, up to a segment's size."""
        first = last = at
        size = self._live_bytes(spans[at])
        for step in (1, -1):
            place = at + step
            while 0 <= place < len(spans) and self.dead_ratio(spans[place]) >= MERGE_DEAD_RATIO:
                size += self._live_bytes(spans[place])
                if size > SEGMENT_BYTES:
                    break
                first, last = min(first, place), max(last, place)
                place += step
        return spans[first : last + 1]

    def _runs(self, spans: list[Span]) -> list[list[Span]]:
        """Return the runs of neighbours that would fit into one segment together."""
        runs: list[list[Span]] = []
        for span in spans:
            run = runs[-1] if runs else []
            size = sum(map(self._live_bytes, run)) + self._live_bytes(span)
            if run and size <= SEGMENT_BYTES:
                run.append(span)
            else:
                runs.append([span])
        assert all(a.last_lsn + 1 == b.first_lsn for run in runs for a, b in pairwise(run))
        return runs
