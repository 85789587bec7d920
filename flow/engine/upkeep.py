"""What a shard does for itself between batches, a slice at a time.

Checkpoints, merges and their hints, scrubbing, projecting. At most one job at a time, but that a
merge and the projector take turns: a checkpoint is of a log whose entries stay where they are, and
of flows that do not become cold before they are written down. And once there is one, a merge leaves
alone what comes after the frame that it begins with. So the tail that is read on top of it has
every frame of its own, in the order in which they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..cold.verify import verify
from ..errors import OUT_OF_SPACE, REFUSALS
from ..host import Files
from ..limits import (
    CHECKPOINT_CLOSE_BYTES,
    CHECKPOINT_CLOSE_RATIO,
    CHECKPOINT_DEAD_RATIO,
    CHECKPOINT_FLOW_BYTES,
    CHECKPOINT_GROWTH_RATIO,
    CHECKPOINT_LOG_BYTES,
    MERGE_CLOSE_SLICES,
    MERGE_DEAD_RATIO,
    SEAL_BYTES_MIN,
)
from ..log.log import Log
from ..log.parts import Span
from .checkpoint import Checkpoint
from .choice import Choice, ratio
from .hints import Hint
from .merge import Merge
from .project import Projector
from .restore import Restored
from .scrub import Scrub


class Upkeep:
    """At most one job at a time. Nothing is lost if the process ends at any point of it."""

    def __init__(
        self, files: Files, log: Log, restored: Restored, settle: Callable[[], bool]
    ) -> None:
        """`settle`: writes to the log what memory alone has; False: there is no room for it."""
        self._files = files
        self._log = log
        self._state = restored.state
        self._values = restored.values
        self._settle = settle
        self._choice = Choice(log, restored.values.dead)
        self._cold = cold = restored.cold
        self._projector = (
            None if cold is None else Projector(log, restored.state, restored.values, cold)
        )
        self._verification: Iterator[bool] | None = None
        if cold is not None and cold.rows:
            self._verification = verify(cold)
        elif cold is not None:
            cold.verified()
        self._is_turn_of_job = False
        self._job: Merge | Hint | Checkpoint | None = None
        self._scrub = Scrub(log, restored.unread)
        self._looked_at: tuple[object, ...] = ()
        self._merge_bytes = 0
        """What the merge under way was expected to write."""
        last = restored.checkpoint
        self._begin = 0 if last is None else last.start.segment
        """The first segment that the last checkpoint does not have whole; 0 if there is none."""
        self._size = 0 if last is None else last.size
        """The size of the last checkpoint."""
        self._flows = 0 if last is None else last.end.flows
        self._tail_bytes = self._bytes_since(0 if last is None else last.start.offset)
        self._is_wanted = False
        self._next_bytes = 0
        """After a failure: how much has to be written until another one is tried."""
        self.merges = 0
        self.checkpoints = 0
        self.bytes_copied = 0

    @property
    def is_needed(self) -> bool:
        """Whether there may be something to do."""
        return self._job is not None or self._is_projecting or self._has_job

    @property
    def _has_job(self) -> bool:
        """Whether there may be a job to begin."""
        if not self._state.settings.upkeep:
            return False
        if not self._scrub.is_done or self._verification is not None or self._is_due:
            return True
        return (bool(self._log.spans) or self._may_seal) and self._looked_at != self._seen

    @property
    def haste(self) -> float:
        """How urgent it is, from 0 to 1."""
        behind = self._projector.haste if self._projector and self._is_projecting else 0.0
        return behind if self._job is None else max(behind, self._choice.haste())

    def has_caught_up(self) -> bool:
        """Whether many flows have left memory since this was asked last."""
        projector = self._projector
        if projector is None or not projector.has_caught_up:
            return False
        projector.has_caught_up = False
        return True

    @property
    def can_wait(self) -> bool:
        """Whether it is for a quiet moment: all but projecting is for the log's sake."""
        return self._job is None and self._is_projecting and not self._has_job

    @property
    def _may_seal(self) -> bool:
        """Whether the segment that is being written is half dead already."""
        segment, size = self._log.position
        if size < SEAL_BYTES_MIN:
            return False
        return ratio(self._values.dead.of(segment), self._log.written) >= MERGE_DEAD_RATIO

    @property
    def _is_projecting(self) -> bool:
        # What a full disk has left is for what ends flows; those in memory can wait.
        projector = None if self._log.space.is_full else self._projector
        return projector is not None and not projector.is_done

    @property
    def tail_bytes(self) -> int:
        """How much of the log the next start has to read on top of the last checkpoint."""
        return self._tail_bytes + self._log.bytes_written

    @property
    def _seen(self) -> tuple[object, ...]:
        """What has to change before there can be something to do again."""
        return self._log.next_number, self._values.dead.counted, self._log.space.level

    @property
    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint, by the growth of the log."""
        grown = self.tail_bytes
        has_grown = (
            grown >= CHECKPOINT_LOG_BYTES
            and grown >= CHECKPOINT_GROWTH_RATIO * self._size
            and self._log.bytes_written >= self._next_bytes
        )
        return not self._log.space.is_full and (self._is_wanted or has_grown)

    def step(self) -> bool:
        """Do a slice of what is to be done; return whether there was anything.

        Raises:
            CorruptLog: what was not read at the start, or is merged, is damaged.
        """
        # A job and projecting take turns: neither has to wait until the other is done.
        self._is_turn_of_job = not self._is_turn_of_job or not self._may_project
        if self._is_turn_of_job and self._job_on():
            return True
        if self._projector is None or not self._may_project:
            return False
        self._projector.step()
        return True

    @property
    def _may_project(self) -> bool:
        return self._is_projecting and not isinstance(self._job, Checkpoint)

    def _job_on(self) -> bool:
        """Do a slice of a job; return whether there was any."""
        if self._job is None and self._state.settings.upkeep:
            self._job = self._choose_job()
        if self._job is None:
            return self._state.settings.upkeep and self._verify_on()
        job = self._job
        if isinstance(job, Merge):
            return self._merge_on(job)
        self._step_shortcut(job)
        return not (isinstance(job, Checkpoint) and job.is_waiting)

    def _verify_on(self) -> bool:
        """Verify a little of what the start has not read; return whether anything was left."""
        if not self._scrub.is_done:
            self._scrub.step()
            return True
        if self._verification is None:
            return False
        if next(self._verification, None) is None:
            self._verification = None
        return True

    def want_checkpoint(self) -> None:
        """Let the next job be a checkpoint."""
        self._is_wanted = True

    def checkpoint(self) -> None:
        """Write a checkpoint now, in one go, once what is under way is finished.

        None is written while a merge waits for room on the disk.
        """
        while self._job is not None:
            if isinstance(self._job, Checkpoint):
                self._job.wait()
            elif not self.step():
                return
            else:
                continue
            self.step()
        # It takes the place of the last one.
        self._job = self._begin_checkpoint(makes_room=True)
        while isinstance(self._job, Checkpoint):
            self._job.wait()
            self._step_shortcut(self._job)

    def close(self) -> None:
        """End in order: with a checkpoint, if the next start is spared much by it."""
        if isinstance(self._job, Merge) and not self._end_merge(self._job):
            return
        tail = self.tail_bytes
        if tail >= CHECKPOINT_CLOSE_BYTES and tail * CHECKPOINT_CLOSE_RATIO >= self._expected_size:
            self.checkpoint()
        self.abandon()

    def _end_merge(self, job: Merge) -> bool:
        """Finish a merge that has got its place, or give it up; return whether that was in order.

        The next start finishes it, by an older checkpoint if there is one. A new one could not say
        where entries lie.
        """
        if not job.is_placed:
            self._give_up()
            return True
        for _ in range(MERGE_CLOSE_SLICES):
            if job is not self._job or not self._merge_on(job):
                break
        if job is not self._job:
            return True
        self._give_up()
        return False

    def abandon(self) -> None:
        """Give up what is under way."""
        if self._job is not None:
            self._give_up()

    def _give_up(self) -> None:
        assert self._job is not None
        self._job.abandon()
        self._job = None

    def _choose_job(self) -> Merge | Hint | Checkpoint | None:
        if self._is_due and (checkpoint := self._begin_checkpoint()) is not None:
            return checkpoint
        if self._looked_at == self._seen:
            return None
        if self._may_seal:
            self._log.rotate(makes_room=True)
        if self._log.tidy():
            sources = self._choose()
            if sources:
                return self._begin_merge(sources)
        return self._begin_checkpoint(makes_room=True) if self._must_free() else None

    # ---- checkpoints ----

    def _begin_checkpoint(self, *, makes_room: bool = False) -> Checkpoint | None:
        self._is_wanted = False
        has_room = self._log.space.has_room(self._expected_size, makes_room=makes_room)
        if not has_room or not self._settle() or not self._log.mark():
            self._put_off()
            return None
        try:
            return Checkpoint(self._files, self._log, self._state, self._values, self._cold)
        except OSError as error:
            self._do_without(error)
            return None

    def _step_shortcut(self, job: Checkpoint | Hint) -> None:
        try:
            job.step()
        except OSError as error:
            self._give_up()
            self._do_without(error)
            return
        if not job.is_done:
            return
        self._job = None
        if isinstance(job, Checkpoint):
            self.checkpoints += 1
            self._looked_at = ()
            self._begin = job.segment
            self._size = job.size
            self._flows = len(self._state.table)
            self._tail_bytes = -job.written_before

    def _do_without(self, error: OSError) -> None:
        """Go on without it, and for a while without another one: the disk may be full."""
        if self._log.is_broken:
            raise error
        if error.errno in OUT_OF_SPACE:
            self._log.space.give_up(self._expected_size)
        self._put_off()

    def _put_off(self) -> None:
        self._next_bytes = self._log.bytes_written + CHECKPOINT_LOG_BYTES

    def _begin_hint(self, merged: Span) -> Hint | None:
        try:
            return Hint(self._files, self._log, self._state, self._values, merged)
        except OSError as error:
            self._do_without(error)
            return None

    def _must_free(self) -> bool:
        """Whether files that no merge may touch before the next checkpoint are many, or dead."""
        is_full = self._log.space.is_full
        if not self._begin or (self._log.bytes_written < self._next_bytes and not is_full):
            return False
        end, _ = self._log.position
        if self._choice.are_many_between(self._begin, end):
            return True
        dead = self._choice.dead_bytes_between(self._begin, end)
        told = self.statistics()
        is_tight = is_full or told["dead_bytes"] >= told["log_bytes"] * MERGE_DEAD_RATIO
        is_much = dead >= CHECKPOINT_LOG_BYTES or (is_tight and dead >= SEAL_BYTES_MIN)
        size = self._expected_size if is_full else self._size
        return is_much and dead >= CHECKPOINT_DEAD_RATIO * size

    @property
    def _expected_size(self) -> int:
        """About how large the next checkpoint will be."""
        flows = len(self._state.table)
        return max(flows * CHECKPOINT_FLOW_BYTES, self._size * flows // max(1, flows, self._flows))

    def _bytes_since(self, offset: int) -> int:
        """Return the size of the log from an offset of the segment that is to be read first on."""
        sizes = (span.size for span in self._log.spans.values() if span.part.last >= self._begin)
        return sum(sizes) + self._log.position[1] - offset - self._log.bytes_written

    # ---- merges ----

    def _begin_merge(self, sources: list[Span]) -> Merge | None:
        if not self._settle():
            self._looked_at = ()
            return None
        try:
            return Merge(self._log, self._state, self._values, sources, self._cold)
        except OSError as error:
            self._refused(error)
            return None

    def _refused(self, error: OSError) -> None:
        """Do without a merge that the disk has refused, until something changes."""
        self._log.space.refused(error)
        self._log.space.give_up(self._merge_bytes)
        self._looked_at = self._seen

    def _merge_on(self, job: Merge) -> bool:
        """Do a slice of a merge; False: it has to wait, or was given up."""
        if not self._settle():
            # What it leaves out is dead in memory only.
            if job.discard():
                self._job = None
                self._looked_at = self._seen
            return False
        try:
            job.step()
        except OSError as error:
            if error.errno not in REFUSALS or self._log.is_broken or not job.discard():
                raise
            self._job = None
            self._refused(error)
            return True
        if job.is_done:
            self.merges += 1
            self.bytes_copied += job.bytes_copied
            self._job = None if self._log.space.is_full else self._begin_hint(job.span)
        return not job.is_waiting

    def statistics(self) -> dict[str, int]:
        """Return what the log takes, and what was done about it."""
        spans = self._log.spans.values()
        return {
            "files": len(spans) + 1,
            "log_bytes": sum(span.size for span in spans) + self._log.position[1],
            "dead_bytes": self._choice.dead_bytes(),
            "merges": self.merges,
            "merged_bytes": self.bytes_copied,
            "checkpoints": self.checkpoints,
        }

    def _choose(self) -> list[Span]:
        """Return files to merge that there is room for; on a full disk, what takes least."""
        self._looked_at = self._seen
        sources = self._choice.sources(self._begin)
        self._merge_bytes = self._choice.live_bytes(sources)
        if not sources or self._log.space.has_room(self._merge_bytes):
            return sources
        sources = self._choice.least(self._begin)
        self._merge_bytes = self._choice.live_bytes(sources)
        return sources if self._log.space.has_room(self._merge_bytes, makes_room=True) else []
