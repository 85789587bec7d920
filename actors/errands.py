"""Errands: how a state machine without I/O gets its requests sent, and hears the replies."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from .gather import Part
from .port import Link


class Errand(NamedTuple):
    """One request to one shard."""

    shard: int
    request: Any
    asker: int = -1
    """For a request on another shard's behalf: that shard."""


Take = Callable[[Errand, Any], Iterable[Errand]]
"""Told one reply at a time; returns what to send next."""


class Errands:
    """Sends for one machine, and tells it the replies one after the other, in any thread.

    A loop, not a recursion: shards in this process answer before submit returns.
    """

    def __init__(self, links: Sequence[Link], take: Take) -> None:
        self._links = links
        self._take = take
        self._arrived: deque[tuple[Errand, Any]] = deque()
        self._driving = threading.Lock()

    def send(self, errands: Iterable[Errand]) -> None:
        """Send requests; the machine is told each reply once."""
        for errand in errands:
            self._links[errand.shard].submit(errand.request, Part(partial(self._arrive, errand)))

    def _arrive(self, errand: Errand, reply: Any) -> None:
        self._arrived.append((errand, reply))
        # Whoever drives already looks again after it has let go of the lock.
        while self._arrived and self._driving.acquire(blocking=False):
            try:
                while self._arrived:
                    self.send(self._take(*self._arrived.popleft()))
            finally:
                self._driving.release()
