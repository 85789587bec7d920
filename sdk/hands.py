"""What a worker has in hand: each job from its claim to its settlement, and the slots they fill."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

from .job import Job
from .logs import fields_of
from .source import Source
from .tally import Tally

logger = logging.getLogger("shardflow.worker")


class Phase(Enum):
    """How far a job is. Only one that is `WAITING` or `RUNNING` can still be given up."""

    WAITING = "waiting"
    """Claimed; its handler has not begun."""
    RUNNING = "running"
    SETTLING = "settling"
    GIVEN_UP = "given_up"
    """Lost, overrun, crashed or given back: whatever its handler returns is dropped."""


HELD: Final = (Phase.WAITING, Phase.RUNNING)


class Assignment:
    """One job in hand."""

    __slots__ = ("job", "phase", "renewed_at_s", "seat", "source", "started_at_s")

    def __init__(self, source: Source, job: Job, now_s: float) -> None:
        self.source = source
        self.job = job
        self.phase = Phase.WAITING
        self.renewed_at_s = now_s
        """Monotonic; when its lease was granted or renewed last, or a little later."""
        self.started_at_s: float | None = None
        self.seat: Any = None
        """The executor's own: what runs it."""


class Hands:
    """The jobs in hand, from any thread. Never calls the store, nor waits with its lock held.

    A job fills a slot from its claim until it is settled, or, once it was given up, until its
    handler has ended. `settle` takes over what handlers return, in the thread that ran them.
    """

    def __init__(self, tally: Tally, *, prefetch: int) -> None:
        self.settle: Callable[[Assignment, Any], None] = _nobody
        self.changed = threading.Condition(threading.Lock())
        """Notified when a slot is freed, and by whoever else has news for who waits on it."""
        self._tally = tally
        self._prefetch = prefetch
        self._capacity = 0
        self._in_hand: set[Assignment] = set()
        self._is_open = True

    # ---- slots ----

    def resize(self, capacity: int) -> None:
        """Set how many jobs can run at once."""
        with self.changed:
            self._capacity = capacity
            self.changed.notify_all()

    @property
    def room(self) -> int:
        """How many more jobs may be claimed. May be below 0, after the capacity has shrunk."""
        return self._capacity + self._prefetch - len(self._in_hand) if self._is_open else 0

    def __len__(self) -> int:
        return len(self._in_hand)

    # ---- the life of a job ----

    def take(self, source: Source, jobs: Iterable[Job]) -> list[Assignment] | None:
        """Take jobs in hand; None if closed: they are to be given back."""
        now_s = time.monotonic()
        taken = [Assignment(source, job, now_s) for job in jobs]
        self._tally.add("claimed", len(taken))
        with self.changed:
            if not self._is_open:
                return None
            self._in_hand.update(taken)
        return taken

    def begin(self, assignment: Assignment) -> bool:
        """Note that its handler begins; False if it must not, as the job was given up."""
        with self.changed:
            if assignment.phase is not Phase.WAITING:
                return False
            assignment.phase = Phase.RUNNING
            assignment.started_at_s = time.monotonic()
            return True

    def finish(self, assignment: Assignment, outcome: Any, seconds: float) -> None:
        """Take over the outcome of a handler; dropped if the job was given up meanwhile."""
        self._tally.handled(seconds)
        with self.changed:
            is_held = assignment.phase is Phase.RUNNING
            if is_held:
                assignment.phase = Phase.SETTLING
        if is_held:
            self.settle(assignment, outcome)
        else:
            tell(logging.WARNING, "finished after it was given up; outcome dropped", assignment.job)
            self.put_down([assignment])

    def give_up(self, assignment: Assignment) -> bool:
        """Drop whatever the handler will return, and let it know; False if it is too late."""
        with self.changed:
            if assignment.phase not in HELD:
                return False
            was_waiting = assignment.phase is Phase.WAITING
            assignment.phase = Phase.GIVEN_UP
            assignment.job._cancellation.is_set = True
            if was_waiting:
                self._in_hand.discard(assignment)
            self.changed.notify_all()
        return True

    def put_down(self, assignments: Iterable[Assignment]) -> None:
        """Free the slots of jobs that are settled, or whose handler has ended; again: no effect."""
        with self.changed:
            self._in_hand.difference_update(assignments)
            self.changed.notify_all()

    # ---- all of them ----

    def held(self) -> list[Assignment]:
        """Return the jobs whose leases are needed."""
        with self.changed:
            return [each for each in self._in_hand if each.phase in HELD]

    def waiting(self) -> list[Assignment]:
        """Return the jobs whose handlers have not begun."""
        with self.changed:
            return [each for each in self._in_hand if each.phase is Phase.WAITING]

    def close(self) -> None:
        """Take no more jobs; those in hand go on."""
        with self.changed:
            self._is_open = False
            self.changed.notify_all()

    def wait_settled(self, timeout_s: float, *, is_urgent: Callable[[], bool]) -> None:
        """Wait until no job is held or being settled, time is up, or it has become urgent."""
        with self.changed:
            self.changed.wait_for(lambda: is_urgent() or not self._is_busy(), timeout_s)

    def wait_settling(self, timeout_s: float) -> None:
        """Wait for the settlements that are under way."""
        with self.changed:
            self.changed.wait_for(
                lambda: all(each.phase is not Phase.SETTLING for each in self._in_hand), timeout_s
            )

    def _is_busy(self) -> bool:
        return any(each.phase is not Phase.GIVEN_UP for each in self._in_hand)


def tell(level: int, text: str, job: Job, **options: Any) -> None:
    """Log a line about a job, with the fields that name it."""
    logger.log(level, "flow %s: %s", job.id, text, extra=fields_of(job), **options)


def _nobody(assignment: Assignment, outcome: Any) -> None:
    raise AssertionError("nobody settles")
