"""Handlers in threads of this process.

A thread that takes a job wakes one other for the next, and no more than one is being woken at a
time: handlers that are over before the woken one gets the interpreter cost no thread switch each,
and handlers that wait have all threads running one switch after the other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from ..hands import Assignment
from ..outcome import outcome_of
from .executor import Crashed, Watcher


class Threads:
    """At most `size` threads, each made when it is needed first."""

    def __init__(self, watcher: Watcher, size: int, name: str, crashed: Crashed) -> None:
        self._watcher = watcher
        self._size = size
        self._name = name
        self._crashed = crashed
        self._lock = threading.Lock()
        self._inbox: deque[Assignment] = deque()
        self._idle: list[threading.Lock] = []
        """The gates of the threads that wait, the last one first: it is the warmest."""
        self._threads: list[threading.Thread] = []
        self._working: set[threading.Thread] = set()
        self._is_waking = False
        self._is_ended = False

    def start(self) -> None:
        """Begin."""
        self._watcher.resize(self._size)

    def run(self, assignments: Sequence[Assignment]) -> None:
        """Run the handlers of jobs."""
        with self._lock:
            self._inbox.extend(assignments)
            self._wake_one()

    def end(self, assignment: Assignment) -> None:
        """A thread cannot be ended."""

    def tell_cancelled(self, assignment: Assignment) -> None:
        """The job shows it already."""

    def stop(self) -> None:
        """Run nothing more; the threads end when their handlers return."""
        with self._lock:
            self._is_ended = True
            self._inbox.clear()
            idle, self._idle = self._idle, []
        for gate in idle:
            gate.release()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads whose handlers have returned."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread not in self._working:
                thread.join(max(0.0, deadline_s - time.monotonic()))

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is a handler."""
        return threading.current_thread() in self._threads

    def _wake_one(self) -> None:
        """See to it that another thread comes for the next job. Under the lock."""
        if self._is_waking or self._is_ended:
            return
        if self._idle:
            self._is_waking = True
            self._idle.pop().release()
        elif len(self._threads) < self._size:
            self._is_waking = True
            # A daemon: a handler that does not return must not keep the process from ending.
            thread = threading.Thread(
                target=self._serve, name=f"{self._name}/{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        is_woken = True
        try:
            while not self._is_ended:
                with self._lock:
                    if is_woken:
                        self._is_waking = is_woken = False
                    assignment = self._inbox.popleft() if self._inbox else None
                    if assignment is None:
                        if self._is_ended:
                            return
                        self._idle.append(gate)
                    elif self._inbox:
                        self._wake_one()
                if assignment is not None:
                    self._work(assignment)
                else:
                    gate.acquire()
                    is_woken = True
        except BaseException as error:
            self._crashed(error)

    def _work(self, assignment: Assignment) -> None:
        if not self._watcher.begin(assignment):
            return
        call = assignment.source.call_of(assignment.job)
        assert call is not None
        thread = threading.current_thread()
        self._working.add(thread)
        began_s = time.perf_counter()
        try:
            outcome = outcome_of(call, assignment.job)
        except BaseException:
            self._watcher.put_down([assignment])
            raise
        finally:
            self._working.discard(thread)
        self._watcher.finish(assignment, outcome, time.perf_counter() - began_s)
