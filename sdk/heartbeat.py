"""Renew the leases of the jobs in hand, and end those that run too long, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from .asking import LEASE_LOST, ask_all
from .hands import Assignment, Hands, Phase, tell
from .settles import extend_lease
from .source import Source
from .tally import Tally

LOOKS_PER_INTERVAL: Final = 4
"""How finely renewals are timed: one comes at most this part of an interval early."""
LOOK_S_MIN: Final = 0.001
RENEWAL_BATCH: Final = 500
"""How many renewals are asked for at once."""


class Heartbeat:
    """Looks at the jobs in hand at equal intervals: nobody has to tell it of any of them.

    A lease is renewed once a third of it has passed, all that have come that far with one call.
    `lost` and `overrun` are called, here, for jobs whose lease is known to be gone, and for those
    that have run longer than their state allows.
    """

    def __init__(
        self,
        hands: Hands,
        sources: Sequence[Source],
        tally: Tally,
        *,
        renews: bool,
        name: str,
        lost: Callable[[Assignment], None],
        overrun: Callable[[Assignment], None],
    ) -> None:
        self._hands = hands
        self._tally = tally
        self._renews = renews
        self._lost = lost
        self._overrun = overrun
        self._ended = threading.Event()
        looks_s = [source.interval_s / LOOKS_PER_INTERVAL for source in sources] if renews else []
        self._run_s_min = min(
            (run_s for source in sources for run_s in source.max_run_s.values()), default=None
        )
        self._look_s: float | None = min(
            [*looks_s, *([] if self._run_s_min is None else [self._run_s_min])], default=None
        )
        self._thread = threading.Thread(target=self._run, name=f"{name}/heartbeat", daemon=True)

    def start(self) -> None:
        """Begin, unless there is nothing to do for it."""
        if self._look_s is not None:
            self._thread.start()

    def stop(self) -> None:
        """Renew nothing more; a renewal under way may finish."""
        self._ended.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = self._look_s or 0.0
        while not self._ended.wait(max(wait_s, LOOK_S_MIN)):
            looked_at_s = time.monotonic()
            try:
                wait_s = self._look(looked_at_s) - (time.monotonic() - looked_at_s)
            except Exception:
                # It must go on: all leases would run out.
                logging.getLogger("shardflow.worker").exception("the heartbeat failed")
                wait_s = self._look_s or 0.0

    def _look(self, now_s: float) -> float:
        """Do what is due; return after how many seconds to look again."""
        assert self._look_s is not None
        held = self._hands.held()
        wait_s = self._look_s
        for assignment in held:
            left_s = _run_s_left(assignment, now_s)
            if left_s is None:
                continue
            if left_s <= 0:
                self._overrun(assignment)
            else:
                wait_s = min(wait_s, left_s)
        if self._renews:
            self._renew([a for a in held if _is_due(a, now_s)], now_s)
        return wait_s

    def _renew(self, due: list[Assignment], now_s: float) -> None:
        by_source: dict[Source, list[Assignment]] = {}
        for assignment in due:
            by_source.setdefault(assignment.source, []).append(assignment)
        for source, group in by_source.items():
            store = source.store()
            for start in range(0, len(group), RENEWAL_BATCH):
                # Some may have been settled while the others were asked for.
                part = [a for a in group[start : start + RENEWAL_BATCH] if _is_held(a)]
                plans = [extend_lease(source.workflow, a.job, source.lease_ms) for a in part]
                answers = ask_all(store, plans, source.interval_s)
                for assignment, answer in zip(part, answers, strict=True):
                    self._renewed(assignment, answer, now_s)

    def _renewed(self, assignment: Assignment, answer: object, asked_at_s: float) -> None:
        if not isinstance(answer, Exception):
            assignment.renewed_at_s = asked_at_s
            self._tally.add("renewed")
        elif not _is_held(assignment):
            pass  # Its own settlement came first, and ended the lease.
        elif isinstance(answer, LEASE_LOST):
            self._lost(assignment)
        else:
            self._tally.add("renewal_errors")
            tell(logging.WARNING, "lease could not be renewed", assignment.job, exc_info=answer)


def _is_held(assignment: Assignment) -> bool:
    return assignment.phase in (Phase.WAITING, Phase.RUNNING)


def _is_due(assignment: Assignment, now_s: float) -> bool:
    interval_s = assignment.source.interval_s
    look_s = interval_s / LOOKS_PER_INTERVAL
    return _is_held(assignment) and now_s + look_s >= assignment.renewed_at_s + interval_s


def _run_s_left(assignment: Assignment, now_s: float) -> float | None:
    """Return how long its handler may still run; None = for ever, or it has not begun."""
    limits = assignment.source.max_run_s
    if not limits or assignment.started_at_s is None:
        return None
    run_s = limits.get(assignment.job.state)
    return None if run_s is None else assignment.started_at_s + run_s - now_s
