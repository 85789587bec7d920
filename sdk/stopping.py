"""The wish that a worker stop: from any thread, or as SIGTERM to the process."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Stop:
    """An event; within `or_sigterm()`, in the main thread, SIGTERM ends its wait as well."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._is_terminated = False
        self._waker: socket.socket | None = None
        self._woken: socket.socket | None = None

    def request(self) -> None:
        """Ask for it; again: no effect."""
        self._event.set()
        if (waker := self._waker) is not None:
            with suppress(OSError):  # Full: it wakes anyhow. Closed: nobody waits any more.
                waker.send(b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is asked for, but no longer than so many seconds; return whether it is."""
        return self._event.wait(timeout_s)

    def wait_or_sigterm(self) -> None:
        """Wait until it is asked for."""
        if self._woken is None:
            self._event.wait()
        else:
            while not self._event.is_set() and not self._is_terminated:
                self._woken.recv(4_096)

    @contextmanager
    def or_sigterm(self) -> Iterator[None]:
        """Let SIGTERM count as a request; outside the main thread, do nothing.

        Waiting is on a socket that the signal writes to: a signal that another thread of the
        process receives would not end the main thread's wait for an event.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        previous_fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        previous = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
            signal.set_wakeup_fd(previous_fd)
            self._woken.close()
            self._waker.close()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        # No event, no lock: the interrupted code may hold the very lock that it takes.
        self._is_terminated = True
