"""A call of a store that somebody else waits for: as its future, or in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from .flowstore import FlowStore
from .plan import Plan

ANSWER_S: Final = 1.0
"""An answered call may be a moment from giving its answer out."""


class Call(Protocol):
    """One call under way."""

    @property
    def is_answered(self) -> bool:
        """Whether `answer` would return, or raise, at once."""
        ...

    def when_answered(self, callback: Callable[[], None]) -> None:
        """Call back once it is answered: at once, or in the thread that brings the answer."""
        ...

    def answer(self) -> Any:
        """Return the store's answer, or raise its error. For an answered call."""
        ...

    def withdraw(self) -> bool:
        """Take the call back; True if it certainly has done nothing, and never will."""
        ...


class FutureCall:
    """A call as one of the store's own futures."""

    def __init__(self, store: Any, plan: Plan[Any]) -> None:
        self._future = getattr(store.submit, plan.command)(*plan.positional, **plan.options)

    @property
    def is_answered(self) -> bool:
        """Whether `answer` would return, or raise, at once."""
        return bool(self._future.is_resolved)

    def when_answered(self, callback: Callable[[], None]) -> None:
        """Call back once it is answered."""
        self._future.add_done_callback(callback)

    def answer(self) -> Any:
        """Return the store's answer, or raise its error."""
        return self._future.get(timeout=ANSWER_S)

    def withdraw(self) -> bool:
        """Take the call back."""
        return bool(self._future.withdraw())


class ThreadCall:
    """A call that a thread makes. It cannot be taken back."""

    def __init__(self, store: FlowStore, plan: Plan[Any]) -> None:
        self._store = store
        self._plan = plan
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._answer: Any = None
        self._error: Exception | None = None
        self.is_answered = False

    def run(self) -> None:
        """Make the call; in the thread."""
        plan = self._plan
        try:
            self._answer = getattr(self._store, plan.command)(*plan.positional, **plan.options)
        except Exception as error:
            self._error = error
        with self._lock:
            self.is_answered = True
        for callback in self._callbacks:
            callback()

    def when_answered(self, callback: Callable[[], None]) -> None:
        """Call back once it is answered."""
        with self._lock:
            if not self.is_answered:
                self._callbacks.append(callback)
                return
        callback()

    def answer(self) -> Any:
        """Return the store's answer, or raise its error."""
        if self._error is not None:
            raise self._error
        return self._answer

    def withdraw(self) -> bool:
        """It cannot be known how far it has come."""
        return False


class Caller:
    """A thread that makes one call after the other."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[ThreadCall | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, store: FlowStore, plan: Plan[Any]) -> ThreadCall:
        """Begin a call, once those before it are over."""
        made = ThreadCall(store, plan)
        self._calls.put(made)
        return made

    def stop(self) -> None:
        """End after the call under way."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
