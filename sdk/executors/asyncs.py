"""Handlers as coroutines of one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..hands import Assignment, Phase
from ..outcome import Raised, described, outcome_of_async
from .executor import Crashed, Watcher


class Coroutines:
    """`size` coroutines at most. Plain handlers run in threads, off the loop, as many at most."""

    def __init__(self, watcher: Watcher, size: int, name: str, crashed: Crashed) -> None:
        self._watcher = watcher
        self._size = size
        self._name = name
        self._crashed = crashed
        self._loop: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ended = False
        self._thread = threading.Thread(target=self._run, name=f"{name}/loop", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        self._watcher.resize(self._size)

    def run(self, assignments: Sequence[Assignment]) -> None:
        """Run the handlers of jobs."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: they were given back.
            self._loop.call_soon_threadsafe(self._begin, assignments)

    def end(self, assignment: Assignment) -> None:
        """Cancel the handler: it meets a CancelledError where it awaits."""
        task: asyncio.Task[None] | None = assignment.seat
        if task is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)

    def tell_cancelled(self, assignment: Assignment) -> None:
        """The job shows it already."""

    def stop(self) -> None:
        """Run nothing more; handlers that still run are cancelled."""
        self._is_ended = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the loop."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is a handler, or one of the loop's threads."""
        current = threading.current_thread()
        return current is self._thread or current.name.startswith(f"{self._name}/plain")

    # ---- the loop's thread ----

    def _run(self) -> None:
        loop = self._loop
        threads = ThreadPoolExecutor(self._size, thread_name_prefix=f"{self._name}/plain")
        loop.set_default_executor(threads)
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            self._cancel_all()
        except BaseException as error:
            self._crashed(error)
        finally:
            # Not waited for: a plain handler that does not return must not keep it from ending.
            threads.shutdown(wait=False, cancel_futures=True)
            asyncio.set_event_loop(None)
            loop.close()

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _begin(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            task = self._loop.create_task(self._work(assignment))
            assignment.seat = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, assignment: Assignment) -> None:
        if self._is_ended or not self._watcher.begin(assignment):
            return
        call = assignment.source.call_of(assignment.job)
        assert call is not None
        began_s = time.perf_counter()
        try:
            outcome = await outcome_of_async(call, assignment.job)
        except asyncio.CancelledError as error:
            if assignment.phase is Phase.GIVEN_UP or self._is_ended:
                self._watcher.put_down([assignment])
                return
            # Not ours: the handler awaited something that somebody else cancelled.
            outcome = Raised(described(error))
        except BaseException as error:
            self._watcher.put_down([assignment])
            self._crashed(error)
            return
        self._watcher.finish(assignment, outcome, time.perf_counter() - began_s)
