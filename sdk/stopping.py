"""The wish that a worker stop: from any thread, or as SIGTERM or SIGINT to the process."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_WOKEN_BYTES: Final = 4_096


class Stop:
    """A wish, and how urgent it is; within `or_signals()`, in the main thread, signals express it.

    The first signal asks for a stop, the second for one without waiting.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._is_urgent = False
        self._signals = 0
        self._waker: socket.socket | None = None
        self._woken: socket.socket | None = None

    def request(self) -> None:
        """Ask for it; again: no effect."""
        self._event.set()
        self.wake()

    def insist(self) -> None:
        """Ask for it without waiting for anything."""
        self._is_urgent = True
        self.request()

    def wake(self) -> None:
        """Let `wait_until` look again."""
        if (waker := self._waker) is not None:
            with suppress(OSError):  # Full: it wakes anyhow. Closed: nobody waits any more.
                waker.send(b"\0")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a thread asks for it; return whether one does."""
        return self._event.wait(timeout_s)

    @property
    def is_requested(self) -> bool:
        """Whether to stop."""
        return self._event.is_set() or self._signals > 0

    @property
    def is_urgent(self) -> bool:
        """Whether to stop without waiting for anything."""
        return self._is_urgent or self._signals > 1

    @property
    def hears_signals(self) -> bool:
        """Whether the caller is within `or_signals()`, in the main thread."""
        return self._woken is not None and threading.current_thread() is threading.main_thread()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, looking after every signal and every `wake`."""
        assert self._woken is not None, "only within or_signals()"
        while not condition():
            self._woken.recv(_WOKEN_BYTES)

    @contextmanager
    def or_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT count as requests; outside the main thread, do nothing.

        Waiting is on a socket that the signal writes to: a signal that another thread of the
        process receives would not end the main thread's wait for an event.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        previous_fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(previous_fd)
            woken, waker = self._woken, self._waker
            self._woken = self._waker = None
            woken.close()
            waker.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # No event, no lock: the interrupted code may hold the very lock that it takes.
        self._signals += 1
