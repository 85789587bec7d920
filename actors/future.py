"""The answer that is still to come: a Pykka future with one lock, and callbacks for asyncio."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pykka

from ..flow.errors import ShardUnavailable
from ..flow.limits import WAIT_SLICE_SECONDS
from .wire import read_reply

logger = logging.getLogger("shardflow.link")

T = TypeVar("T")

Read = Callable[[Any], T]
"""Turns a reply into the value that the caller asked for, or raises."""


class ReplyFuture(pykka.Future[T], Generic[T]):
    """A future that the answer of a shard resolves.

    The reply is decoded and read by the first `get`, in the caller's thread, and kept. `get`,
    `map`, `filter`, `join`, `reduce` and `set_get_hook` behave as Pykka's.
    """

    def __init__(self, read: Read[T]) -> None:
        super().__init__()
        self._gate = threading.Lock()
        self._gate.acquire()
        self._read = read
        self._body: bytes | None = None
        self._reply: Any = None
        self._value: Any = None
        self._error: BaseException | None = None
        self._is_read = False
        self._callbacks: list[Callable[[], None]] | None = []
        self.withdraw: Callable[[], bool] = _never
        """Take the request back; True if it certainly was and will never be applied."""
        self.lead: Callable[[ReplyFuture[T], float | None], None] | None = None
        """Reads answers in the waiting thread, if the future has one shard to wait for."""

    # ---- the side of the shard ----

    def arrive(self, body: bytes) -> None:
        """Resolve with the bytes of a reply; only the first answer counts."""
        if self._callbacks is not None:
            self._body = body
            self._open()

    def answer(self, reply: Any) -> None:
        """Resolve with a reply; only the first answer counts."""
        if self._callbacks is not None:
            self._reply = reply
            self._open()

    def _open(self) -> None:
        with _callbacks_lock:
            callbacks, self._callbacks = self._callbacks, None
            if callbacks is None:
                return
            self._gate.release()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                # It runs in the thread that reads everybody's answers.
                logger.exception("a callback of a future failed")

    # ---- the side of the caller ----

    @property
    def is_resolved(self) -> bool:
        """Whether `get` would return, or raise, at once."""
        return self._callbacks is None

    def get(self, *, timeout: float | None = None) -> T:
        """Return the value, or raise the error that the command ended with.

        Raises:
            pykka.Timeout: no answer within `timeout` seconds; the command goes on.
        """
        try:
            return super().get(timeout=timeout)
        except NotImplementedError:
            pass
        if not self._wait(timeout):
            raise pykka.Timeout(f"{timeout} seconds")
        try:
            if not self._is_read:
                self._settle()
        finally:
            self._gate.release()
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def _wait(self, timeout_s: float | None) -> bool:
        """Wait until resolved, and take the gate; False if time is up first."""
        if self._gate.acquire(blocking=False):
            return True
        if timeout_s is None:
            if self.lead is not None:
                self.lead(self, None)
            return self._take_gate(None)
        end_s = time.monotonic() + timeout_s
        if self.lead is not None and timeout_s > 0:
            self.lead(self, timeout_s)
        return self._take_gate(end_s)

    def _take_gate(self, end_s: float | None) -> bool:
        """Take the gate by then; False: it is later.

        A signal that comes right before a wait is handled after it, in the main thread. So none is
        long there: Ctrl-C ends a call that blocks.
        """
        hears_signals = threading.current_thread() is threading.main_thread()
        slice_s = WAIT_SLICE_SECONDS if hears_signals else threading.TIMEOUT_MAX
        while True:
            left_s = slice_s if end_s is None else max(0.0, end_s - time.monotonic())
            if self._gate.acquire(timeout=min(left_s, slice_s)):
                return True
            if not left_s:
                return False

    def _settle(self) -> None:
        try:
            reply = self._reply if self._body is None else read_reply(self._body)
            self._value = self._read(reply)
        except BaseException as error:
            self._error = error
        self._body = self._reply = None
        self._is_read = True

    def set(self, value: T | None = None) -> None:
        """Resolve with a value of your own; for Pykka's machinery."""
        self._value = value
        self._is_read = True
        self._open()

    def set_exception(self, exc_info: Any = None) -> None:
        """Resolve with an exception; for Pykka's machinery."""
        self._error = (exc_info or sys.exc_info())[1]
        self._is_read = True
        self._open()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once resolved: at once, or in the thread that brings the answer."""
        with _callbacks_lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return
        callback()


def answered(future: ReplyFuture[T], timeout_s: float) -> T:
    """Wait for an answer that is bound to come.

    Raises:
        ShardUnavailable: it has not come.
    """
    try:
        return future.get(timeout=timeout_s)
    except pykka.Timeout:
        raise ShardUnavailable(
            f"a shard has not answered for {timeout_s} seconds", reason="no answer"
        ) from None


_callbacks_lock = threading.Lock()
"""One for all futures: held for an append or a swap, and only asyncio's callers append."""


def _never() -> bool:
    return False
