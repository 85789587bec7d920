"""Which flows can be claimed, and which leases run out: by type, state, priority and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..limits import PRIORITY_MAX
from .timequeue import Entry, Source, TimeQueue, head, peek, take

PRIORITIES = tuple(range(PRIORITY_MAX, -1, -1))
"""Claimed in this order."""


class Filter:
    """What a claim asks for: type, logical states (None = any), partitions (None = every)."""

    __slots__ = ("partition_keys", "priorities", "states", "type")

    def __init__(
        self,
        flow_type: str,
        states: Sequence[str] | None,
        partition_keys: Sequence[str] | None,
        priority: int | None = None,
    ) -> None:
        self.type = flow_type
        self.states = _distinct(states)
        self.partition_keys = _distinct(partition_keys)
        self.priorities = PRIORITIES if priority is None else (priority,)


class DueIndex:
    """Due flows per (type, state, priority); leases per (type, logical state, priority)."""

    def __init__(self) -> None:
        self._due: dict[str, dict[str, list[TimeQueue]]] = {}
        self._leases: dict[str, dict[str, list[TimeQueue]]] = {}

    def due_queue(self, flow_type: str, state: str, priority: int) -> TimeQueue:
        """Return the queue of flows waiting for their time, made on first use."""
        try:
            return self._due[flow_type][state][priority]
        except KeyError:
            return _queue(self._due, flow_type, state)[priority]

    def lease_queue(self, flow_type: str, state: str, priority: int) -> TimeQueue:
        """Return the queue of leases by deadline, made on first use; `state` is the logical one."""
        try:
            return self._leases[flow_type][state][priority]
        except KeyError:
            return _queue(self._leases, flow_type, state)[priority]

    def take_due(self, wanted: Filter, now_ms: int, limit: int) -> list[Entry]:
        """Remove up to `limit` due flows: by priority, due time, order of entry."""
        taken: list[Entry] = []
        for priority in wanted.priorities:
            if len(taken) < limit:
                sources = self._sources(self._due, wanted, priority)
                taken += take(sources, now_ms, limit - len(taken))
        return taken

    def take_expired(self, wanted: Filter, now_ms: int, limit: int) -> list[Entry]:
        """Remove up to `limit` leases whose deadline has passed: by priority, then deadline."""
        taken: list[Entry] = []
        for priority in wanted.priorities:
            if len(taken) < limit:
                sources = self._sources(self._leases, wanted, priority)
                taken += take(sources, now_ms, limit - len(taken))
        return taken

    def peek_due(self, wanted: Filter, now_ms: int, limit: int) -> list[Entry]:
        """Return what `take_due` would, removing nothing."""
        found: list[Entry] = []
        for priority in wanted.priorities:
            if len(found) < limit:
                sources = self._sources(self._due, wanted, priority)
                found += peek(sources, now_ms, limit - len(found))
        return found

    def peek_expired(self, wanted: Filter, now_ms: int, limit: int) -> list[Entry]:
        """Return what `take_expired` would, removing nothing."""
        found: list[Entry] = []
        for priority in wanted.priorities:
            if len(found) < limit:
                sources = self._sources(self._leases, wanted, priority)
                found += peek(sources, now_ms, limit - len(found))
        return found

    def next_at_ms(self, wanted: Filter, *, due: bool, expired: bool) -> int | None:
        """Return when a claim with this filter first finds something; None = nothing in sight."""
        books = ([self._due] if due else []) + ([self._leases] if expired else [])
        earliest: int | None = None
        for book in books:
            for priority in wanted.priorities:
                for source in self._sources(book, wanted, priority):
                    entry = head(source)
                    if entry is not None and (earliest is None or entry[0] < earliest):
                        earliest = entry[0]
        return earliest

    def books(self) -> dict[str, dict[str, dict[str, list[TimeQueue]]]]:
        """Return everything, for checks."""
        return {"due": self._due, "leases": self._leases}

    def states_due(self, flow_type: str) -> dict[str, list[TimeQueue]]:
        """Return the due queues of a type by state."""
        return self._due.get(flow_type, {})

    def states_leased(self, flow_type: str) -> dict[str, list[TimeQueue]]:
        """Return the lease queues of a type by logical state."""
        return self._leases.get(flow_type, {})

    def _sources(
        self, book: dict[str, dict[str, list[TimeQueue]]], wanted: Filter, priority: int
    ) -> Iterator[Source]:
        states = book.get(wanted.type)
        if not states:
            return
        for state in states if wanted.states is None else wanted.states:
            queues = states.get(state)
            if queues is None or not queues[priority].live:
                continue
            if wanted.partition_keys is None:
                yield queues[priority], None
            else:
                for partition_key in wanted.partition_keys:
                    yield queues[priority], partition_key


def _distinct(names: Sequence[str] | None) -> Sequence[str] | None:
    """Return names once each: a queue that is looked at twice would give the same flow twice."""
    return names if names is None or len(names) == 1 else list(dict.fromkeys(names))


def _queue(
    book: dict[str, dict[str, list[TimeQueue]]], flow_type: str, state: str
) -> list[TimeQueue]:
    states = book.get(flow_type)
    if states is None:
        states = book[flow_type] = {}
    queues = states.get(state)
    if queues is None:
        queues = states[state] = [TimeQueue() for _ in range(PRIORITY_MAX + 1)]
    return queues
