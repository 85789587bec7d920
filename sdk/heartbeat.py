"""Renew the leases of running handlers from a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .job import Job


class Heartbeat:
    """Calls `renew` for each held job at equal intervals, until it is dropped or renew says no.

    `renew` returns whether to go on with the job, and must not raise. Jobs are held in the order
    of their next renewal, which is the order of holding them, because the interval is one.
    """

    def __init__(self, renew: Callable[[Job], bool], interval_s: float) -> None:
        self._renew = renew
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._due_at_s: dict[Job, float] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="shardflow-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def hold(self, job: Job) -> None:
        """Renew the job's lease from one interval from now on."""
        with self._changed:
            self._due_at_s[job] = time.monotonic() + self._interval_s
            if len(self._due_at_s) == 1:
                self._changed.notify()

    def drop(self, job: Job) -> bool:
        """Renew it no more; return whether it was still held. A renewal under way may finish."""
        with self._changed:
            return self._due_at_s.pop(job, None) is not None

    def stop(self) -> None:
        """Renew nothing more."""
        with self._changed:
            self._stopped = True
            self._due_at_s.clear()
            self._changed.notify()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            goes_on = self._renew(job)
            with self._changed:
                if self._due_at_s.pop(job, None) is not None and goes_on:
                    self._due_at_s[job] = time.monotonic() + self._interval_s

    def _next(self) -> Job | None:
        """Wait for the next job to renew; None = stopped."""
        with self._changed:
            while not self._stopped:
                job, due_at_s = next(iter(self._due_at_s.items()), (None, 0.0))
                if job is None:
                    self._changed.wait()
                    continue
                wait_s = due_at_s - time.monotonic()
                if wait_s <= 0:
                    return job
                self._changed.wait(wait_s)
            return None
