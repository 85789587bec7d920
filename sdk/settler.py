"""Settle jobs in batches: what was finished while the last settlement was under way goes together.

No timer: a job that is finished while nothing is under way is settled at once, alone.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from ..flow.errors import InvalidArgument
from ..flow.limits import BATCH_ITEMS_MAX
from ..flow.record import FlowRecord
from .asking import LEASE_LOST, STORE_AWAY, has_futures
from .flowstore import FlowStore
from .hands import Assignment, Hands, tell
from .outcome import Err, Outcome, Raised
from .plan import Plan
from .settles import command_of
from .settles import error as error_plan
from .source import Source
from .tally import Tally

SETTLE_TRIES_MAX: Final = 7
"""How often one settlement is sent to a store that is away: for about six seconds."""
SETTLE_BACKOFF_BASE_S: Final = 0.1
_ARGUMENTS: Final = {"flow_transition": ("id", "from_state", "to_state"), "flow_cancel": ("id",)}
"""The names of a command's positional arguments, where they are not id and lease_token."""


class Settlement:
    """One job's outcome, and the command that it became."""

    __slots__ = ("assignment", "is_refused", "outcome", "plan", "tries")

    def __init__(self, assignment: Assignment, outcome: Outcome) -> None:
        self.assignment = assignment
        self.outcome = outcome
        self.plan: Plan[FlowRecord] | None = None
        self.tries = 0
        self.is_refused = False
        """Whether the store would not take its first command, for what is in it."""


class Settler:
    """One thread that settles what handlers finish. Each job is settled by one command.

    The command is sent again while the store is away: with the same tokens it is the same command,
    and is applied once. What cannot be settled is logged, counted, and left to its lease.
    """

    def __init__(
        self, hands: Hands, tally: Tally, *, name: str, crashed: Callable[[BaseException], None]
    ) -> None:
        self._hands = hands
        self._tally = tally
        self._crashed = crashed
        self._changed = threading.Condition(threading.Lock())
        self._finished: list[Settlement] = []
        self._later: list[tuple[float, int, Settlement]] = []
        self._numbers = itertools.count()
        self._is_idle = False
        self._is_ended = False
        self._thread = threading.Thread(target=self._run, name=f"{name}/settle", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, assignment: Assignment, outcome: Outcome) -> None:
        """Settle a job, by and by. From any thread."""
        with self._changed:
            self._finished.append(Settlement(assignment, outcome))
            if self._is_idle:
                self._is_idle = False
                self._changed.notify()

    def stop(self) -> None:
        """End once what was added is settled; what waits for the store to come back is left."""
        with self._changed:
            self._is_ended = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while batch := self._next():
                self._settle(batch)
        except BaseException as error:
            self._crashed(error)

    def _next(self) -> list[Settlement]:
        """Wait for something to settle; [] = ended."""
        with self._changed:
            while True:
                batch, self._finished = self._finished, []
                now_s = time.monotonic()
                while self._later and self._later[0][0] <= now_s:
                    batch.append(heapq.heappop(self._later)[2])
                if batch or self._is_ended:
                    return batch
                self._is_idle = True
                self._changed.wait(self._later[0][0] - now_s if self._later else None)
                self._is_idle = False

    def _settle(self, batch: list[Settlement]) -> None:
        by_source: dict[Source, list[Settlement]] = {}
        for settlement in batch:
            by_source.setdefault(settlement.assignment.source, []).append(settlement)
        done: list[Settlement] = []
        for source, group in by_source.items():
            try:
                store = source.store()
            except Exception as error:
                done += [each for each in group if self._failed(each, error)]
            else:
                done += self._settle_at(store, source, group)
        self._hands.put_down([settlement.assignment for settlement in done])

    def _settle_at(
        self, store: FlowStore, source: Source, group: list[Settlement]
    ) -> list[Settlement]:
        """Settle jobs of one workflow; return those that are over."""
        done: list[Settlement] = []
        counts: Counter[str] = Counter()
        commands: dict[str, list[Settlement]] = {}
        for settlement in group:
            if settlement.plan is None:
                _plan(settlement)
            if settlement.plan is None:
                done.append(settlement)
                counts["noreply"] += 1
            else:
                commands.setdefault(settlement.plan.command, []).append(settlement)
        for command, settlements in commands.items():
            for chunk in _chunks(settlements):
                answers = _ask(store, command, chunk)
                for settlement, answer in zip(chunk, answers, strict=True):
                    if not isinstance(answer, Exception):
                        done.append(settlement)
                        counts["errors" if isinstance(settlement.outcome, Err) else "ok"] += 1
                        counts["exceptions"] += isinstance(settlement.outcome, Raised)
                    elif self._failed(settlement, answer):
                        done.append(settlement)
        self._tally.add_all(counts)
        return done

    def _failed(self, settlement: Settlement, error: Exception) -> bool:
        """Take note of an error of the store; return whether the settlement is over."""
        job = settlement.assignment.job
        if isinstance(error, LEASE_LOST):
            self._tally.add("stale")
            tell(logging.WARNING, "lease lost before it was settled", job)
            return True
        if isinstance(error, InvalidArgument) and not settlement.is_refused:
            # What the handler returned cannot be stored: that is the handler's error.
            settlement.is_refused = True
            _turn_to_error(settlement, error)
            self._again(settlement, 0.0)
            return False
        if isinstance(error, STORE_AWAY) and settlement.tries + 1 < SETTLE_TRIES_MAX:
            settlement.tries += 1
            longest_s = SETTLE_BACKOFF_BASE_S * 2.0 ** (settlement.tries - 1)
            self._again(settlement, longest_s * random.uniform(0.5, 1.0))
            return False
        # The store's error, whatever it is: the lease runs out, the flow is delivered again.
        self._tally.add("settle_errors")
        tell(logging.ERROR, "could not be settled", job, exc_info=error)
        return True

    def _again(self, settlement: Settlement, wait_s: float) -> None:
        with self._changed:
            at_s = time.monotonic() + wait_s
            heapq.heappush(self._later, (at_s, next(self._numbers), settlement))


def _plan(settlement: Settlement) -> None:
    assignment = settlement.assignment
    try:
        settlement.plan = command_of(assignment.source.workflow, assignment.job, settlement.outcome)
    except (InvalidArgument, TypeError) as cause:
        _turn_to_error(settlement, cause)


def _turn_to_error(settlement: Settlement, cause: Exception) -> None:
    assignment = settlement.assignment
    settlement.outcome = Err(cause)
    settlement.plan = error_plan(assignment.source.workflow, assignment.job, cause)


def _chunks(settlements: list[Settlement]) -> Iterable[list[Settlement]]:
    """Divide into batches that the store takes: not too large, no flow twice."""
    chunk: list[Settlement] = []
    seen: set[tuple[str | None, str]] = set()
    for settlement in settlements:
        job = settlement.assignment.job
        flow = (job.partition_key, job.id)
        if flow in seen or len(chunk) == BATCH_ITEMS_MAX:
            yield chunk
            chunk, seen = [], set()
        chunk.append(settlement)
        seen.add(flow)
    if chunk:
        yield chunk


def _ask(store: FlowStore, command: str, chunk: list[Settlement]) -> list[Any]:
    """Return the store's answer for each, or the error that it met."""
    if len(chunk) > 1 and has_futures(store):
        items = [_item(settlement.plan) for settlement in chunk if settlement.plan is not None]
        try:
            answers: list[Any] = getattr(store, f"{command}_many")(items, independent=True)
        except InvalidArgument:
            pass  # One of them, or all together: alone, each is judged for itself.
        except Exception as error:
            return [error] * len(chunk)
        else:
            return [
                _alone(store, each) if isinstance(answer, InvalidArgument) else answer
                for each, answer in zip(chunk, answers, strict=True)
            ]
    return [_alone(store, settlement) for settlement in chunk]


def _alone(store: FlowStore, settlement: Settlement) -> Any:
    assert settlement.plan is not None
    try:
        return settlement.plan.run(store)
    except Exception as error:
        return error


def _item(plan: Plan[Any]) -> dict[str, Any]:
    names = _ARGUMENTS.get(plan.command, ("id", "lease_token"))
    return {**dict(zip(names, plan.positional, strict=True)), **plan.options}
