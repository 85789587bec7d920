"""The program of a handler process: load the handlers, run them one by one, tell what they return.

It holds no lease and knows no store. The end of its channel is its end: at once if a handler runs,
for its worker is dead then and others will take the job over.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from ..job import Job
from ..middleware import around
from ..outcome import outcome_of
from ..source import Source
from .frames import (
    Cancel,
    Ready,
    Start,
    Stream,
    Unready,
    Work,
    finished_of,
    frame_of,
    job_of,
    read_by_child,
)
from .naming import find, load_main, loading

READ_BYTES: Final = 1 << 20
EXIT_UNREADY: Final = 64


def main() -> None:
    """Serve until the channel or the worker ends: `sys.argv` ends with its pid and descriptor."""
    worker_pid, fd = map(int, sys.argv[-2:])
    os.set_inheritable(fd, False)
    # Signals for everybody concern the worker, which decides. Not ignored: that would be passed on
    # to the programs that a handler starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it)
    with contextlib.closing(socket.socket(fileno=fd)) as channel:
        Child(channel, worker_pid).serve()


class Child:
    """One handler process from the inside."""

    def __init__(self, channel: socket.socket, worker_pid: int) -> None:
        self._channel = channel
        self._worker_pid = worker_pid
        self._stream = Stream()
        self._inbox: queue.SimpleQueue[Work | Start | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._cancelled: set[int] = set()
        self._is_busy = False
        self._is_over = False
        self._sources: list[tuple[Source, Any]] = []
        """With the codec of each."""

    def serve(self) -> None:
        """Load, then work, until the channel ends."""
        threading.Thread(target=self._read, name="shardflow-channel", daemon=True).start()
        start = self._inbox.get()
        if not isinstance(start, Start):
            return
        try:
            with loading():
                self._load(start)
        except BaseException:
            self._send(frame_of(Unready(traceback.format_exc())))
            sys.exit(EXIT_UNREADY)
        self._send(frame_of(Ready()))
        while (work := self._inbox.get()) is not None and not self._is_over:
            assert isinstance(work, Work)
            self._work(work)

    def _load(self, start: Start) -> None:
        sys.argv[:] = start.argv
        if start.main is not None:
            load_main(start.main)
        for module in start.modules:
            if module not in sys.modules:
                importlib.import_module(module)
        handler = None if start.handler is None else find(start.handler)
        middleware = [find(name) for name in start.middleware]
        for frame in start.sources:
            source = Source(find(frame.workflow), frame.states, handler, start.worker)
            source.prepare(lambda each: around(each, middleware))
            self._sources.append((source, None if frame.codec is None else find(frame.codec)))

    def _work(self, work: Work) -> None:
        source, codec = self._sources[work.source]
        began_s = time.perf_counter()
        job = job_of(work, source.workflow, codec)
        with self._lock:
            self._jobs[work.number] = job
            job._cancellation.is_set = work.number in self._cancelled
            self._cancelled.clear()  # What else is in it came too late for its job.
        self._is_busy = True
        call = source.call_of(job)
        assert call is not None
        outcome = outcome_of(call, job)
        frame = frame_of(finished_of(work.number, time.perf_counter() - began_s, outcome, codec))
        with self._lock:
            self._jobs.pop(work.number, None)
        self._send(frame)
        self._is_busy = False

    def _send(self, frame: bytes) -> None:
        try:
            self._channel.sendall(frame)
        except OSError:
            os._exit(0)  # The worker is gone, and nobody wants the outcome.

    def _read(self) -> None:
        """In a thread: a handler may be running while a job is given up, or the worker dies."""
        for data in self._arrivals():
            for body in self._stream.feed(data):
                message = read_by_child(body)
                if isinstance(message, Cancel):
                    self._cancel(message.number)
                else:
                    self._inbox.put(message)
        self._is_over = True
        if self._is_busy:
            os._exit(0)
        self._inbox.put(None)

    def _arrivals(self) -> Iterator[bytes]:
        """Yield what arrives, until the channel or the worker ends.

        The channel outlives the worker if that has forked a child, which then has a copy of it.
        """
        death = _death_of_worker(self._worker_pid)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if death is not None:
            poll.register(death, select.POLLIN)
        while all(fd != death for fd, _ in poll.poll()):
            try:
                data = self._channel.recv(READ_BYTES)
            except OSError:
                return
            if not data:
                return
            yield data

    def _cancel(self, number: int) -> None:
        with self._lock:
            job = self._jobs.get(number)
            if job is None:
                self._cancelled.add(number)
            else:
                job._cancellation.is_set = True


def _death_of_worker(pid: int) -> int | None:
    """Return what can be read once the worker has ended; None where there is no such thing."""
    open_pidfd: Any = getattr(os, "pidfd_open", None)
    fd: int | None = None
    if open_pidfd is not None:
        with contextlib.suppress(OSError):
            fd = open_pidfd(pid)
    if os.getppid() != pid:
        os._exit(0)  # It has died already, and the number may be another process's.
    return fd


def _leave_it(number: int, frame: FrameType | None) -> None:
    pass
