"""A worker's hands: threads that take a claimed job, call its handler, and settle it."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from ..flow.errors import StaleLease
from .dsl import Handler
from .heartbeat import Heartbeat
from .job import Job
from .outcome import Err, NoReply, Outcome, outcome_of
from .running import handler_of
from .settles import extend_lease, release, settle

if TYPE_CHECKING:
    from .workflow import Workflow

COUNTERS: Final = (
    "claimed",
    "claim_errors",
    "ok",
    "errors",
    "noreply",
    "stale",
    "settle_errors",
    "renewed",
    "renewal_errors",
    "released",
)
logger = logging.getLogger("shardflow.worker")


class Phase(Enum):
    """How far a job is. Only one that is `HELD` can be given back."""

    HELD = "held"
    SETTLING = "settling"
    GIVEN_BACK = "given_back"


class Assignment:
    """One job in hand, from claim to settlement."""

    __slots__ = ("job", "phase")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.phase = Phase.HELD


class Hands:
    """`size` threads; never more jobs in hand than were asked of the store for free ones.

    `crashed` is called, in the hand's thread, with what a handler raised that is no Exception.
    """

    def __init__(
        self,
        workflow: type[Workflow],
        handler: Handler | None,
        *,
        size: int,
        lease_ms: int,
        heartbeat: bool,
        name: str,
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._workflow = workflow
        self._handler = handler
        self._size = size
        self._lease_ms = lease_ms
        self._crashed = crashed
        self._heartbeat = Heartbeat(self._renew, lease_ms / 3_000) if heartbeat else None
        self._changed = threading.Condition()
        self._in_hand: set[Assignment] = set()
        self._counts: Counter[str] = Counter()
        self._open = True
        self._inbox: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        # Daemons: a handler that does not return must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}/{number}", daemon=True)
            for number in range(size)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()
        if self._heartbeat is not None:
            self._heartbeat.start()

    def wait_free(self) -> int:
        """Wait for a free hand and return how many there are; 0 = closed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open or len(self._in_hand) < self._size)
            return self._size - len(self._in_hand) if self._open else 0

    def take(self, jobs: Iterable[Job]) -> None:
        """Work on claimed jobs; give them back if the hands were closed in the meantime."""
        assignments = [Assignment(job) for job in jobs]
        with self._changed:
            self._counts["claimed"] += len(assignments)
            is_open = self._open
            if is_open:
                self._in_hand.update(assignments)
        for assignment in assignments:
            if not is_open:
                self._give_back(assignment.job)
                continue
            if self._heartbeat is not None:
                self._heartbeat.hold(assignment.job)
            self._inbox.put(assignment)

    def close(self) -> None:
        """Take no more jobs; those in hand go on."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Wait for the jobs in hand, then give back those whose handler has not returned."""
        with self._changed:
            self._changed.wait_for(lambda: not self._in_hand, timeout_s)
            unfinished = [held for held in self._in_hand if held.phase is Phase.HELD]
            for assignment in unfinished:
                assignment.phase = Phase.GIVEN_BACK
        for assignment in unfinished:
            self._drop(assignment.job)
            self._give_back(assignment.job)
        if self._heartbeat is not None:
            self._heartbeat.stop()
        for _ in self._threads:
            self._inbox.put(None)

    def count(self, counter: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self._changed:
            self._counts[counter] += amount

    def stats(self) -> dict[str, int]:
        """Return the counters, and how many jobs are in hand now."""
        with self._changed:
            counts = {counter: self._counts[counter] for counter in COUNTERS}
            return {**counts, "in_hand": len(self._in_hand)}

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is a handler."""
        return threading.current_thread() in self._threads

    def _serve(self) -> None:
        try:
            while (assignment := self._inbox.get()) is not None:
                try:
                    if assignment.phase is Phase.HELD:
                        self._work(assignment)
                finally:
                    self._put_down(assignment)
        except BaseException as error:
            self._crashed(error)

    def _work(self, assignment: Assignment) -> None:
        job = assignment.job
        handler = self._handler or handler_of(self._workflow.definition, job.state)
        outcome = outcome_of(handler, job)
        with self._changed:
            if assignment.phase is Phase.GIVEN_BACK:
                self._tell(
                    logging.WARNING, "finished after it was given back; outcome dropped", job
                )
                return
            assignment.phase = Phase.SETTLING
        # Before settling: a renewal that comes after it would find the lease gone.
        self._drop(job)
        self._settle(job, outcome)

    def _settle(self, job: Job, outcome: Outcome) -> None:
        try:
            plan = settle(self._workflow, job, outcome)
            if plan is not None:
                plan.run(self._workflow.bound_store())
        except StaleLease:
            self.count("stale")
            self._tell(logging.WARNING, "lease lost before it was settled", job)
        except Exception:
            # The store's error, whatever it is: the lease runs out, the flow is delivered again.
            self.count("settle_errors")
            self._tell(logging.ERROR, "could not be settled", job, exc_info=True)
        else:
            self.count(_counter_of(outcome))

    def _put_down(self, assignment: Assignment) -> None:
        self._drop(assignment.job)
        with self._changed:
            self._in_hand.discard(assignment)
            self._changed.notify_all()

    def _drop(self, job: Job) -> None:
        if self._heartbeat is not None:
            self._heartbeat.drop(job)

    def _give_back(self, job: Job) -> None:
        try:
            release(self._workflow, job).run(self._workflow.bound_store())
        except Exception:
            self._tell(
                logging.WARNING, "not given back; its lease will run out", job, exc_info=True
            )
        else:
            self.count("released")

    def _renew(self, job: Job) -> bool:
        try:
            extend_lease(self._workflow, job, self._lease_ms).run(self._workflow.bound_store())
        except StaleLease:
            # If it was dropped meanwhile, its own settlement ended the lease.
            if self._heartbeat is not None and self._heartbeat.drop(job):
                self.count("stale")
                self._tell(logging.WARNING, "lease lost while its handler runs", job)
            return False
        except Exception:
            self.count("renewal_errors")
            self._tell(logging.WARNING, "lease could not be renewed", job, exc_info=True)
        else:
            self.count("renewed")
        return True

    def _tell(self, level: int, text: str, job: Job, **options: Any) -> None:
        told = {"flow_id": job.id, "type": job.type, "state": job.state}
        logger.log(level, "flow %s: %s", job.id, text, extra=told, **options)


def _counter_of(outcome: Outcome) -> str:
    if isinstance(outcome, NoReply):
        return "noreply"
    return "errors" if isinstance(outcome, Err) else "ok"
