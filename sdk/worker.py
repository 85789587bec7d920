"""The worker: claims for its free slots, has the jobs handled and settled, drains when stopped."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ..flow.errors import InvalidArgument
from ..flow.limits import CLAIM_LIMIT_MAX
from .asking import LEASE_LOST, ask_all, send_all
from .claimer import Claimer
from .claims import States
from .definition import ANY
from .dsl import Handler
from .executors.choice import ExecutorKind, check_executor, make_executor
from .executors.naming import check_not_loading
from .hands import Assignment, Hands, tell
from .heartbeat import Heartbeat
from .job import Job
from .middleware import Middleware
from .settler import Settler
from .settles import release
from .source import Source, sources_of
from .stopping import Stop
from .tally import Tally
from .times import duration_ms

if TYPE_CHECKING:
    from .workflow import Workflow

CONCURRENCY_MAX: Final = 1_000
PREFETCH_MAX: Final = 1_000
RELEASE_S: Final = 5.0
"""How long a stop waits for the store to take flows back."""
END_S: Final = 10.0
"""How long a stop waits for what ends by itself: claims, settlements, threads, processes."""
URGENT_END_S: Final = 1.0
"""Likewise if it was asked for twice."""
UNKNOWN_DELAY_MS: Final = 60_000
"""For how long a flow that this worker knows nothing of is put aside."""

logger = logging.getLogger("shardflow.worker")
_numbers = itertools.count(1)


class Worker:
    """Works for one workflow, or several, until stopped: `run()` here, or `start()` beside you.

        with sf.Worker(BillingFlow, concurrency=4):
            ...

    It claims only what it has free slots for, and renews the leases of what it has in hand. When
    the store is away it waits and comes back. A lease that was lost is logged and counted
    (`stats`), as is any error of the store while settling: the flow is delivered again when its
    lease expires, for handlers run at least once.

    `stop()`, leaving `with`, and SIGTERM or SIGINT during `run()` drain: nothing more is claimed,
    running handlers get `drain_timeout_ms`, and what is unfinished then goes back to its state
    with no attempt charged. A second signal, or a second `stop()` meanwhile, drains at once. A
    handler that runs on regardless has lost its lease, and its outcome is dropped.

    `executor` is where handlers run. "thread": in `concurrency` threads. "process": one at a time
    in `concurrency` processes, which find the handlers by the name of their module and class, and
    which hold no lease: one that is killed costs one delivery of its job. "async": as coroutines
    of one event loop, `concurrency` at a time; plain handlers run in threads there.

    `states` are the states to claim, for several workflows a dict from workflow to its states;
    without `handler`, "any" means those that have a handler. `limit` is the most that one claim
    takes, `interval_ms` the least time between two claims that find nothing, which matters for
    several workflows, and for a store that cannot wait for work. `prefetch` jobs more than there
    are slots may be claimed, to wait here for one. `middleware` are functions `(job, call_next)`
    around every handler, outermost first. `kill_lost` ends the handler of a job that was lost: a
    process is killed, a coroutine cancelled. A worker is used once.

    Raises:
        InvalidArgument: if an option is not allowed, a handler is missing, or one cannot run in
            the executor.
    """

    def __init__(
        self,
        workflow: type[Workflow] | Sequence[type[Workflow]],
        *,
        states: States | Mapping[type[Workflow], States] = ANY,
        worker: str | None = None,
        concurrency: int = 8,
        executor: ExecutorKind = "thread",
        limit: int = 100,
        interval_ms: int | timedelta = 250,
        handler: Handler | None = None,
        heartbeat: bool = True,
        drain_timeout_ms: int | timedelta = 30_000,
        prefetch: int = 0,
        middleware: Iterable[Middleware] = (),
        kill_lost: bool = False,
    ) -> None:
        check_executor(executor, kill_lost)
        _check_count("concurrency", concurrency, 1, CONCURRENCY_MAX)
        _check_count("limit", limit, 1, CLAIM_LIMIT_MAX)
        _check_count("prefetch", prefetch, 0, PREFETCH_MAX)
        self.name = worker or f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
        """The owner of its leases: host, process and a number, unless given."""
        self._drain_s = duration_ms(drain_timeout_ms, "drain_timeout_ms") / 1_000
        self._kills_lost = kill_lost
        self._sources = sources_of(workflow, states, handler, self.name)
        self._tally = Tally()
        self._hands = Hands(self._tally, prefetch=prefetch)
        self._executor = make_executor(
            executor,
            self._hands,
            concurrency,
            self.name,
            self._crash,
            sources=self._sources,
            handler=handler,
            middleware=middleware,
            died=self._died,
        )
        self._settler = Settler(self._hands, self._tally, name=self.name, crashed=self._crash)
        self._hands.settle = self._settler.add
        self._heartbeat = Heartbeat(
            self._hands,
            self._sources,
            self._tally,
            renews=heartbeat,
            name=self.name,
            lost=self._lost,
            overrun=self._overrun,
        )
        self._claimer = Claimer(
            self._hands,
            self._sources,
            self._tally,
            limit=limit,
            interval_s=duration_ms(interval_ms, "interval_ms") / 1_000,
            name=self.name,
            take=self._take,
            give_back=self._give_back_claimed,
            give_back_later=self._give_back_later,
            crashed=self._crash,
        )
        self._stopping = Stop()
        self._drain_turn = threading.Lock()
        self._is_started = False
        self._is_drained = False
        self._stops = 0
        self._error: BaseException | None = None

    def run(self) -> None:
        """Work until stopped by another thread, by SIGTERM or by SIGINT (Ctrl-C), and drain.

        In the main thread; elsewhere signals are left alone. Raises what ended the worker, if it
        was not a stop: an error of the store that does not pass by itself, or a handler's
        SystemExit.
        """
        stopping = self._stopping
        with stopping.or_signals():
            self.start()
            try:
                if stopping.hears_signals:
                    stopping.wait_until(lambda: stopping.is_requested)
                else:
                    stopping.wait()
            finally:
                self._finish()

    def start(self) -> Self:
        """Work in threads of its own; `stop()` ends it."""
        check_not_loading()
        if self._is_started:
            raise InvalidArgument("a worker is started once; make another", argument="worker")
        self._executor.start()
        self._is_started = True
        self._settler.start()
        self._heartbeat.start()
        self._claimer.start()
        return self

    def stop(self) -> None:
        """Drain and return; called again meanwhile, at once. From inside a handler: only ask.

        Raises what had ended the worker before, if it was not a stop.
        """
        if self._executor.is_own_thread:
            self._request_stop()
            return
        self._stops += 1
        if self._stops > 1:
            self._stopping.insist()
        self._finish()

    def stats(self) -> dict[str, float]:
        """Return what was counted since the start.

        claimed; ok, errors, noreply (jobs settled, by outcome); exceptions (the errors that were
        raised); stale (leases lost), overrun (given up after max_run_ms), crashed (whose process
        died), unknown (of a type or state without a handler here), released (given back at a
        stop); settle_errors, claim_errors, renewal_errors (errors of the store); renewed; in_hand
        (now). handled, and handler_sum_ms, _p50_ms, _p99_ms, _max_ms: the handlers that have
        ended, and how long they took, quantiles to 25 %.
        """
        return {**self._tally.figures(), "in_hand": len(self._hands)}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish()

    # ---- what happens to jobs, told by the claimer, the heartbeat and the executor ----

    def _take(self, source: Source, jobs: list[Job]) -> None:
        taken = self._hands.take(source, jobs)
        if taken is None:
            self._give_back(source, jobs)
            return
        strangers = [each for each in taken if source.call_of(each.job) is None]
        if strangers:
            self._put_aside(source, strangers)
        self._executor.run(taken)

    def _give_back(self, source: Source, jobs: list[Job]) -> None:
        plans = [release(source.workflow, job) for job in jobs]
        wait_s = URGENT_END_S if self._stopping.is_urgent else RELEASE_S
        try:
            answers = ask_all(source.store(), plans, wait_s)
        except Exception as error:
            answers = [error] * len(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, LEASE_LOST):
                tell(logging.DEBUG, "not given back: it is somebody else's already", job)
            elif isinstance(answer, Exception):
                text = "not given back; its lease will run out"
                tell(logging.WARNING, text, job, exc_info=answer)
            else:
                self._tally.add("released")

    def _give_back_claimed(self, source: Source, jobs: list[Job]) -> None:
        self._tally.add("claimed", len(jobs))
        self._give_back(source, jobs)

    def _give_back_later(self, source: Source, jobs: list[Job]) -> None:
        """In the thread that brings a late answer, which must not wait for another one."""
        self._tally.add_all({"claimed": len(jobs), "released": len(jobs)})
        send_all(source.store(), [release(source.workflow, job) for job in jobs])

    def _put_aside(self, source: Source, strangers: list[Assignment]) -> None:
        """Leave jobs alone for a while that this worker has no handler for."""
        self._tally.add("unknown", len(strangers))
        store = source.store()
        now_ms = getattr(store, "now_ms", None)
        options = {} if now_ms is None else {"run_at_ms": now_ms() + UNKNOWN_DELAY_MS}
        for each in strangers:
            self._hands.give_up(each)
            tell(logging.WARNING, "is of a kind without a handler here; left alone", each.job)
        plans = [release(source.workflow, each.job, **options) for each in strangers]
        ask_all(store, plans, RELEASE_S)

    def _lost(self, assignment: Assignment) -> None:
        if self._hands.give_up(assignment):
            self._tally.add("stale")
            tell(logging.WARNING, "lease lost while its handler runs", assignment.job)
            self._executor.tell_cancelled(assignment)
            if self._kills_lost:
                self._executor.end(assignment)

    def _overrun(self, assignment: Assignment) -> None:
        if self._hands.give_up(assignment):
            self._tally.add("overrun")
            tell(logging.ERROR, "has run longer than max_run_ms; given up", assignment.job)
            self._executor.tell_cancelled(assignment)
            self._executor.end(assignment)

    def _died(self, assignment: Assignment) -> None:
        if self._hands.give_up(assignment):
            self._tally.add("crashed")
            tell(logging.ERROR, "its handler process died; left to its lease", assignment.job)

    # ---- stopping ----

    def _crash(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        logger.critical("worker %s ends: %r", self.name, error, exc_info=error)
        self._request_stop()

    def _request_stop(self) -> None:
        self._stopping.request()
        self._hands.close()
        self._claimer.stop()

    def _finish(self) -> None:
        """Stop and drain once, whoever asks first; whoever else asks waits for it."""
        self._request_stop()
        if not self._is_started:
            return
        if self._stopping.hears_signals:
            self._finish_hearing()
        else:
            self._drain_once()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _finish_hearing(self) -> None:
        """Drain in another thread: this one hears the second signal."""
        stopping, over = self._stopping, threading.Event()

        def drain() -> None:
            try:
                self._drain_once()
            finally:
                over.set()
                stopping.wake()

        threading.Thread(target=drain, name=f"{self.name}/drain", daemon=True).start()
        stopping.wait_until(lambda: over.is_set() or stopping.is_urgent)
        self._hands.close()  # Again: who waits for handlers looks whether it has become urgent.
        stopping.wait_until(over.is_set)

    def _drain_once(self) -> None:
        with self._drain_turn:
            if not self._is_drained:
                self._is_drained = True
                self._drain()

    def _drain(self) -> None:
        stopping, hands = self._stopping, self._hands
        self._give_up(hands.waiting())
        try:
            hands.wait_settled(self._drain_s, is_urgent=lambda: stopping.is_urgent)
        finally:
            # Also when Ctrl-C raises here: then nothing is waited for either.
            self._give_up(hands.held())
            self._heartbeat.stop()
            end_s = URGENT_END_S if stopping.is_urgent else END_S
            self._claimer.join(end_s)
            hands.wait_settling(end_s)
            self._settler.stop()
            self._settler.join(end_s)
            self._executor.stop()
            self._executor.join(end_s)
            self._heartbeat.join(end_s)

    def _give_up(self, assignments: list[Assignment]) -> None:
        """Give jobs back whose handlers have not returned."""
        jobs: dict[Source, list[Job]] = {}
        for assignment in assignments:
            if self._hands.give_up(assignment):
                self._executor.tell_cancelled(assignment)
                self._executor.end(assignment)
                jobs.setdefault(assignment.source, []).append(assignment.job)
        for source, given_up in jobs.items():
            self._give_back(source, given_up)


def _check_count(name: str, value: object, least: int, largest: int) -> None:
    if type(value) is not int or not least <= value <= largest:
        raise InvalidArgument(f"{name} is from {least} to {largest}; got {value!r}", argument=name)
