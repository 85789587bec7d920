"""A store for workers to work on: claims wait, leases are counted, everything is written down.

And handlers that wait until a test lets them go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shardflow.flow.record import FlowRecord
from shardflow.sdk.dsl import state
from shardflow.sdk.job import Job
from shardflow.sdk.outcome import Complete, Ok
from shardflow.sdk.worker import Worker
from shardflow.sdk.workflow import Workflow
from support.recording import RecordingStore, a_leased_record

WAIT_S = 10.0
"""Longer than any wait of a test that passes."""
CLAIM_S = 0.02
"""How long a claim waits here: a stop waits for it."""
SETTLING = frozenset(
    ("flow_complete", "flow_fail", "flow_retry", "flow_transition", "flow_release")
)


class BillingFlow(Workflow, type="billing"):
    created = state(on_ok="charged")
    charged = state()
    brief = state(lease_ms=30)

    @created.handler
    @staticmethod
    def charge(job: Job) -> Any:
        return Ok()


class Gate:
    """A handler that waits inside until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.jobs: list[Job] = []

    def __call__(self, job: Job) -> Any:
        self.jobs.append(job)
        self.entered.release()
        assert self.opened.wait(WAIT_S)
        return Complete(job.id)

    def wait_entered(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=WAIT_S)


class WorkingStore(RecordingStore):
    """Hands out the records that were offered; `most_held` is the most that were out at once."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(**answers)
        self.changed = threading.Condition()
        self.offered: list[FlowRecord] = []
        self.held: set[str] = set()
        self.most_held = 0
        self.limits: list[int] = []

    def offer(self, *ids: str, state: str = "created") -> None:
        with self.changed:
            self.offered += [a_leased_record(id, state) for id in ids]
            self.changed.notify_all()

    def answer(self, command: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            if command == "flow_claim_due" and command not in self.answers:
                return self.claim(kwargs["limit"])
            return super().answer(command, args, kwargs)
        finally:
            with self.changed:
                if command in SETTLING:
                    self.held.discard(args[0])
                self.changed.notify_all()

    def claim(self, limit: int) -> list[FlowRecord]:
        with self.changed:
            self.changed.wait_for(lambda: self.offered, CLAIM_S)
            taken, self.offered = self.offered[:limit], self.offered[limit:]
            self.limits.append(limit)
            self.held.update(record.id for record in taken)
            self.most_held = max(self.most_held, len(self.held))
            return taken

    def sent(self, command: str, id: str | None = None) -> int:
        """Count the calls of a command so far, all or those about one flow."""
        return sum(
            1 for name, args, _ in list(self.calls) if name == command and id in (None, args[0])
        )

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds that a call of the store makes true."""
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S), self.commands


def worker_on(store: Any, **options: Any) -> Worker:
    """Make a worker for BillingFlow; everything completes, unless a handler is given."""
    options = {"interval_ms": 1, "handler": lambda job: Complete(), **options}
    return Worker(BillingFlow.using(store), **options)


def stop_in_thread(worker: Worker) -> threading.Thread:
    thread = threading.Thread(target=worker.stop)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> bool:
    thread.join(WAIT_S)
    return not thread.is_alive()
