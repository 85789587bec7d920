"""A pool of workers: one actor that starts them, starts them again when they fail, stops them."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import pykka
from msgspec import Struct

from ..flow.errors import InvalidArgument
from .worker import Worker

WORKERS_MAX: Final = 100
RESTART_BASE_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
STEADY_S: Final = 60.0
"""A worker that has worked for so long before it failed is started again without much delay."""

State = Literal["running", "restarting", "stopped"]
logger = logging.getLogger("shardflow.worker")


class WorkerStatus(Struct, frozen=True):
    """One worker of a pool, as of now."""

    name: str
    state: State
    """`restarting`: it has failed and waits for its next start. `stopped`: it will not work again,
    because the pool stops, or because one of its handlers stopped it."""
    restarts: int
    error: str | None
    """What ended it last; None if nothing has."""
    stats: dict[str, float]
    """See `Worker.stats`; they begin anew with each start."""


class _Ended(NamedTuple):
    place: int
    error: BaseException | None


class _Restart(NamedTuple):
    place: int


class _Member:
    """One worker, through all its starts."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.make = make
        self.worker = make()
        self.state: State = "running"
        self.restarts = 0
        self.failures = 0
        self.error: BaseException | None = None
        self.started_s = 0.0
        self.timer: threading.Timer | None = None
        self.thread: threading.Thread | None = None


class WorkerPool(pykka.ThreadingActor):
    """Supervises several workers: makes each with a function, and again when it ends by an error.

        pool = sf.WorkerPool.start(
            lambda: sf.Worker(BillingFlow),
            lambda: sf.Worker(ReportFlow, executor="process", concurrency=2),
        )
        print(pool.proxy().status().get())
        pool.stop()

    Between the starts of a worker that keeps failing lies a growing time with some chance in it.
    `stop()` drains all workers at the same time and returns when the last one has; as for any
    Pykka actor, `stop(block=False)` does not wait. Signals are the program's: a pool hears none.

    Raises:
        InvalidArgument: there is no worker, or one cannot be made; from `start`.
    """

    use_daemon_thread = True

    def __init__(self, *makers: Callable[[], Worker]) -> None:
        super().__init__()
        if not 1 <= len(makers) <= WORKERS_MAX or not all(map(callable, makers)):
            raise InvalidArgument(
                f"a pool takes 1 to {WORKERS_MAX} functions that each make a worker; got "
                f"{makers!r}",
                argument="makers",
            )
        self._members = [_Member(make) for make in makers]

    def status(self) -> list[WorkerStatus]:
        """Return what each worker does now, in the order in which they were given."""
        return [
            WorkerStatus(
                name=member.worker.name,
                state=member.state,
                restarts=member.restarts,
                error=None if member.error is None else repr(member.error),
                stats=member.worker.stats(),
            )
            for member in self._members
        ]

    def on_start(self) -> None:
        """Start every worker."""
        for place in range(len(self._members)):
            self._run(place)

    def on_receive(self, message: Any) -> Any:
        """Take note of a worker's end, or of the time for its next start."""
        match message:
            case _Ended(place, error):
                self._ended(place, error)
            case _Restart(place):
                self._restart(place)
            case _:
                return super().on_receive(message)
        return None

    def on_stop(self) -> None:
        """Drain all workers at the same time."""
        threads = []
        for member in self._members:
            if member.timer is not None:
                member.timer.cancel()
            if member.state == "running":
                thread = threading.Thread(target=_stop, args=[member], daemon=True)
                thread.start()
                threads.append(thread)
            member.state = "stopped"
        for thread in threads:
            thread.join()

    def _run(self, place: int) -> None:
        member = self._members[place]
        member.state = "running"
        member.started_s = time.monotonic()
        worker, ref = member.worker, self.actor_ref

        def run() -> None:
            error: BaseException | None = None
            try:
                worker.run()
            except BaseException as raised:
                error = raised
            if ref.is_alive():
                ref.tell(_Ended(place, error))

        member.thread = threading.Thread(target=run, name=f"{worker.name}/run", daemon=True)
        member.thread.start()

    def _ended(self, place: int, error: BaseException | None) -> None:
        member = self._members[place]
        if error is None:
            member.state = "stopped"
            return
        member.error = error
        if time.monotonic() - member.started_s >= STEADY_S:
            member.failures = 0
        member.failures += 1
        longest_s = min(RESTART_BASE_S * 2.0 ** min(member.failures - 1, 16), RESTART_MAX_S)
        wait_s = longest_s * random.uniform(0.5, 1.0)
        logger.error(
            "worker %s has failed, next start in %.1f s: %r", member.worker.name, wait_s, error
        )
        member.state = "restarting"
        member.timer = threading.Timer(wait_s, self._tell, [_Restart(place)])
        member.timer.daemon = True
        member.timer.start()

    def _restart(self, place: int) -> None:
        member = self._members[place]
        member.restarts += 1
        try:
            member.worker = member.make()
        except Exception as error:
            self._ended(place, error)
        else:
            self._run(place)

    def _tell(self, message: Any) -> None:
        if self.actor_ref.is_alive():
            self.actor_ref.tell(message)


def _stop(member: _Member) -> None:
    name = member.worker.name
    try:
        member.worker.stop()
    except BaseException as error:
        logger.error("worker %s ended with %r while its pool stopped", name, error)
    if member.thread is not None:
        member.thread.join()
