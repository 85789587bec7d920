"""Posts that a full disk has no room for: they wait at the shard, as its courier does not.

To the courier the shard is only slow. So nothing is lost, and nobody polls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..flow.family import Deliver
from ..flow.limits import DISK_RETRY_MS
from ..flow.replies import Rejected
from .messages import Arrival, Departure


class Held:
    """Deliveries to be tried again: at most one of each courier and source."""

    def __init__(self) -> None:
        self._arrivals: list[Arrival] = []
        self._retry_at_ms = 0

    def __bool__(self) -> bool:
        return bool(self._arrivals)

    def keep(
        self, arrivals: Sequence[Arrival], departures: Sequence[Departure], now_ms: int
    ) -> list[Departure]:
        """Hold the deliveries that were refused for want of room; return the other answers."""
        posts = {
            (id(arrival.caller), arrival.number): arrival
            for arrival in arrivals
            if isinstance(arrival.request, Deliver)
        }
        told = []
        for departure in departures:
            arrival = posts.get((id(departure.caller), departure.number))
            if arrival is None or not _is_for_room(departure.answer.reply):
                told.append(departure)
            else:
                self._arrivals.append(arrival)
                self._retry_at_ms = now_ms + DISK_RETRY_MS
        return told

    def take(self, now_ms: int, *, is_full: bool) -> list[Arrival]:
        """Return what is to be tried again now: there is room, or it was not looked for long."""
        if is_full and now_ms < self._retry_at_ms:
            return []
        return self.clear()

    def clear(self) -> list[Arrival]:
        """Take back and return all."""
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def forget(self, caller: Any) -> None:
        """Drop what a caller that has gone has sent."""
        self._arrivals = [arrival for arrival in self._arrivals if arrival.caller is not caller]

    def next_wake_ms(self) -> int | None:
        """Return when to try again, if anything waits."""
        return self._retry_at_ms if self._arrivals else None


def _is_for_room(reply: Any) -> bool:
    return isinstance(reply, Rejected) and reply.refused.code == "overloaded"
