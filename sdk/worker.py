"""The worker: claims for its free hands, waits while the store is away, drains when stopped."""

from __future__ import annotations

import itertools
import logging
import os
import random
import socket
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from ..flow.errors import (
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    StoreNotRunning,
)
from ..flow.limits import CLAIM_LIMIT_MAX, LEASE_MS_DEFAULT
from .claims import States, claim_defaults, claim_due
from .definition import ANY
from .dsl import Handler
from .hands import Hands
from .job import Job
from .running import handled_states, require_plain
from .stopping import Stop
from .times import duration_ms

if TYPE_CHECKING:
    from .workflow import Workflow

CONCURRENCY_MAX: Final = 1_000
CLAIM_BLOCK_MS: Final = 500
"""How long one claim waits for work: a stop is noticed after that at the latest."""
BACKOFF_BASE_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
STORE_AWAY: Final = (Overloaded, ShardUnavailable, OutcomeUnknown, StoreNotRunning, OSError)
"""What passes by itself: claiming waits and tries again. Everything else ends the worker."""

logger = logging.getLogger("shardflow.worker")
_numbers = itertools.count(1)


class Worker:
    """Works for a workflow until stopped: `run()` in this thread, or `start()` beside it.

        with sf.Worker(BillingFlow, concurrency=4):
            ...

    It claims only what it has free slots for and renews the leases of running handlers. When the
    store is away it waits and comes back. A lease that was lost is logged and counted (`stats`),
    as is any error of the store while settling: the flow is delivered again when its lease
    expires, for handlers run at least once. `stop()`, leaving `with`, and SIGTERM during `run()`
    drain: nothing more is claimed, running handlers get `drain_timeout_ms`, and what is unfinished
    then goes back to its state with no attempt charged. A handler that runs on regardless has lost
    its lease, and its outcome is dropped.

    `states` are the states to claim; without `handler`, "any" means those that have a handler.
    `limit` is the most that one claim takes, `interval_ms` the least time between two claims that
    find nothing: the store is asked to wait for work by itself, so it matters only for one that
    cannot. A worker is used once.

    Raises:
        InvalidArgument: if an option is not allowed, or a handler is missing or a coroutine.
    """

    def __init__(
        self,
        workflow: type[Workflow],
        *,
        states: States = ANY,
        worker: str | None = None,
        concurrency: int = 8,
        executor: Literal["thread", "process", "async"] = "thread",
        limit: int = 100,
        interval_ms: int | timedelta = 250,
        handler: Handler | None = None,
        heartbeat: bool = True,
        drain_timeout_ms: int | timedelta = 30_000,
    ) -> None:
        _check_executor(executor)
        _check_count("concurrency", concurrency, CONCURRENCY_MAX)
        _check_count("limit", limit, CLAIM_LIMIT_MAX)
        definition = workflow.definition
        self.name = worker or f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
        """The owner of its leases: host, process and a number, unless given."""
        self._workflow = workflow
        self._states = handled_states(definition, states, handler)
        require_plain(definition, self._states, handler)
        self._limit = limit
        self._interval_s = duration_ms(interval_ms, "interval_ms") / 1_000
        self._drain_s = duration_ms(drain_timeout_ms, "drain_timeout_ms") / 1_000
        self._hands = Hands(
            workflow,
            handler,
            size=concurrency,
            lease_ms=claim_defaults(definition, self._states).get("lease_ms", LEASE_MS_DEFAULT),
            heartbeat=heartbeat,
            name=self.name,
            crashed=self._crash,
        )
        self._claimer = threading.Thread(
            target=self._claim_loop, name=f"{self.name}/claim", daemon=True
        )
        self._stopping = Stop()
        self._drain_turn = threading.Lock()
        self._is_started = False
        self._is_drained = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Work until stopped by another thread, by SIGTERM or by Ctrl-C, and drain.

        Raises what ended the worker, if it was not a stop: an error of the store that does not
        pass by itself, or a handler's SystemExit.
        """
        with self._stopping.or_sigterm():
            self.start()
            try:
                self._stopping.wait_or_sigterm()
            finally:
                self.stop()

    def start(self) -> Self:
        """Work in threads of its own; `stop()` ends it."""
        if self._is_started:
            raise InvalidArgument("a worker is started once; make another", argument="worker")
        self._is_started = True
        self._hands.start()
        self._claimer.start()
        return self

    def stop(self) -> None:
        """Drain and return. From inside a handler it only asks for it. Again: no effect.

        Raises what had ended the worker before, if it was not a stop.
        """
        self._request_stop()
        if not self._is_started or self._hands.is_own_thread:
            return
        with self._drain_turn:
            if not self._is_drained:
                self._drain()
                self._is_drained = True
            error, self._error = self._error, None
        if error is not None:
            raise error

    def stats(self) -> dict[str, int]:
        """Return what was counted since the start.

        claimed; ok, errors, noreply (jobs settled, by outcome); stale (leases lost); settle_errors,
        claim_errors, renewal_errors (errors of the store); renewed; released (given back at a
        stop); in_hand (now).
        """
        return self._hands.stats()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _claim_loop(self) -> None:
        failures = 0
        try:
            while free := self._hands.wait_free():
                asked_at_s = time.monotonic()
                try:
                    jobs = self._claim(min(free, self._limit))
                except STORE_AWAY as error:
                    failures += 1
                    self._back_off(error, failures)
                    continue
                if failures:
                    logger.info("worker %s: the store is back", self.name)
                    failures = 0
                if jobs:
                    self._hands.take(jobs)
                else:
                    self._stopping.wait(asked_at_s + self._interval_s - time.monotonic())
        except BaseException as error:
            self._crash(error)

    def _claim(self, limit: int) -> list[Job]:
        claim = claim_due(
            self._workflow,
            self._states,
            worker=self.name,
            limit=limit,
            block_ms=CLAIM_BLOCK_MS,
        )
        return claim.run(self._workflow.bound_store())

    def _back_off(self, error: Exception, failures: int) -> None:
        """Wait longer with each failure, by chance as well: not all workers come back at once."""
        self._hands.count("claim_errors")
        longest_s = min(BACKOFF_BASE_S * 2 ** min(failures - 1, 16), BACKOFF_MAX_S)
        asked_s = (getattr(error, "retry_after_ms", None) or 0) / 1_000
        delay_s = max(asked_s, longest_s * random.uniform(0.5, 1.0))
        logger.warning(
            "worker %s: claiming failed, next try in %.1f s: %s", self.name, delay_s, error
        )
        self._stopping.wait(delay_s)

    def _crash(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        logger.critical("worker %s ends: %r", self.name, error, exc_info=error)
        self._request_stop()

    def _request_stop(self) -> None:
        self._hands.close()
        self._stopping.request()

    def _drain(self) -> None:
        self._hands.drain(self._drain_s)
        # A claim under way gives its jobs back, for which it should find the store still open.
        # It is waited for twice its time and no longer: the store's clock may stand still.
        self._claimer.join(2 * CLAIM_BLOCK_MS / 1_000)


def _check_executor(executor: str) -> None:
    if executor in ("process", "async"):
        raise InvalidArgument(
            f"executor={executor!r} is not available yet; use executor='thread'",
            argument="executor",
        )
    if executor != "thread":
        raise InvalidArgument(
            f"executor is 'thread', 'process' or 'async'; got {executor!r}", argument="executor"
        )


def _check_count(name: str, value: object, largest: int) -> None:
    if type(value) is not int or not 1 <= value <= largest:
        raise InvalidArgument(f"{name} is from 1 to {largest}; got {value!r}", argument=name)
