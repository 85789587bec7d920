"""Fan-outs under way at their coordinator: who drives each, and which requests wait for its end.

The engine knows transactions and not callers, and waits for nothing; this is the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..flow.family import AskOutcome, Begun, Busy, SpawnBegin, SpawnDecide, SpawnEnd
from ..flow.limits import SPAWN_MS_MAX, WAITERS_MAX
from ..flow.replies import Done, Rejected, Reply, reject
from .messages import Arrival

NOTED = frozenset((SpawnBegin, SpawnDecide, SpawnEnd, AskOutcome))
"""The requests that `Fanouts.note` has to see, with their replies."""


class _Driver(NamedTuple):
    caller: Any
    until_ms: int


class Fanouts:
    """Transactions that have begun here, oldest first, and requests that found another one busy."""

    def __init__(self) -> None:
        self._drivers: dict[str, _Driver] = {}
        """By transaction."""
        self._waiting: list[Arrival] = []
        self._orphans: list[SpawnEnd] = []
        """Transactions to be ended because their driver has gone."""
        self._has_ended = False
        """Whether some transaction has ended since the waiting requests were put last."""

    def note(self, arrival: Arrival, reply: Reply, now_ms: int) -> Reply | None:
        """Take note of a reply; return what to answer, or None if the request waits now."""
        request = arrival.request
        if isinstance(reply, Begun):
            self._drivers[reply.txn] = _Driver(arrival.caller, now_ms + SPAWN_MS_MAX)
        elif isinstance(reply, Busy):
            return self._keep(arrival)
        elif isinstance(request, SpawnEnd):
            self._ended(request.txn)
        elif isinstance(request, SpawnDecide):
            # After a refusal the engine keeps the transaction, until its driver ends it.
            if request.txn is not None and isinstance(reply, Done) and reply.applied:
                self._ended(request.txn)
        elif isinstance(request, AskOutcome):
            # It ends a transaction that has had its time.
            self._has_ended = True
        return reply

    def forget(self, caller: Any) -> None:
        """Drop what a caller that has gone waits for, and abort what it drove."""
        self._waiting = [arrival for arrival in self._waiting if arrival.caller is not caller]
        for txn, driver in list(self._drivers.items()):
            if driver.caller is caller:
                self._orphan(txn)

    def take_ends(self, now_ms: int) -> list[SpawnEnd]:
        """Return the commands that abort what nobody drives, or for too long; nobody hears them."""
        for txn, driver in list(self._drivers.items()):
            if driver.until_ms > now_ms:
                break
            self._orphan(txn)
        ends, self._orphans = self._orphans, []
        self._has_ended = self._has_ended or bool(ends)
        return ends

    def take_waiting(self) -> list[Arrival]:
        """Return the requests that wait, oldest first, if some may now succeed."""
        if not self._has_ended:
            return []
        self._has_ended = False
        waiting, self._waiting = self._waiting, []
        return waiting

    def clear(self) -> list[Arrival]:
        """Take back and return every request that waits."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def next_wake_ms(self) -> int | None:
        """Return when `take_ends` has something next."""
        if self._orphans:
            return 0
        for driver in self._drivers.values():
            return driver.until_ms
        return None

    def _keep(self, arrival: Arrival) -> Rejected | None:
        if len(self._waiting) >= WAITERS_MAX:
            return reject(
                "overloaded",
                f"{WAITERS_MAX} fan-outs wait at this shard already; use fewer at a time",
                retry_after_ms=1_000,
                reason="waiters",
            )
        self._waiting.append(arrival)
        return None

    def _orphan(self, txn: str) -> None:
        del self._drivers[txn]
        self._orphans.append(SpawnEnd(txn))

    def _ended(self, txn: str) -> None:
        self._drivers.pop(txn, None)
        self._has_ended = True
