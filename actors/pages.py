"""Listings: the pages of all shards as one, asked for until it is full.

A shard that has looked at many flows ends its page early, with a cursor behind the last of them.
What the others have beyond that cursor is not listed before it has gone on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ..flow.order import cursor_of, is_beyond
from ..flow.queries import Cursor, Lineage, List
from ..flow.record import Record
from ..flow.replies import Done, Rejected
from .gather import Everywhere, Part
from .port import Link, Receiver


class Pages:
    """One page of flows, from all shards that it concerns."""

    def __init__(self, links: Sequence[Link], query: List | Lineage, receiver: Receiver) -> None:
        self._links = links
        self._query = query
        self._receiver = receiver
        self._is_reversed = isinstance(query, List) and query.reverse
        self._found: list[Record] = []
        self._left = query.count
        self._lock = threading.Lock()
        self._is_asking = False
        self._must_ask = False
        self._is_given_up = False

    def ask(self) -> None:
        """Ask all shards for what is still missing; the receiver is called once."""
        self._is_asking = True
        while True:
            self._send(replace(self._query, count=self._left))
            with self._lock:
                if not self._must_ask:
                    self._is_asking = False
                    return
                self._must_ask = False

    def give_up(self) -> bool:
        """Ask for no more; what is under way goes on."""
        self._is_given_up = True
        return False

    def _send(self, query: List | Lineage) -> None:
        if len(self._links) == 1:
            self._links[0].submit(query, Part(lambda reply: self._take([reply])))
        else:
            Everywhere(self._links, self._take).send(query)

    def _take(self, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Rejected):
                self._receiver.answer(reply)
                return
        page, cursor = merged(replies, self._left, reverse=self._is_reversed)
        self._found += page
        self._left -= len(page)
        if cursor is None or not self._left or self._is_given_up:
            self._receiver.answer(Done(self._found, cursor=cursor))
            return
        self._query = replace(self._query, after=cursor)
        with self._lock:
            if self._is_asking:
                # A link may answer at once: asked from here, a long listing would go ever deeper.
                self._must_ask = True
                return
        self.ask()


def merged(
    replies: Sequence[Done], count: int, *, reverse: bool
) -> tuple[list[Record], Cursor | None]:
    """Return the first flows of several pages, and where to go on; None: there are no more."""
    records = [record for reply in replies for record in reply.outcomes]
    records.sort(key=cursor_of, reverse=reverse)
    ends = [reply.cursor for reply in replies if reply.cursor is not None]
    end = (max(ends) if reverse else min(ends)) if ends else None
    if end is not None:
        records = [record for record in records if not is_beyond(record, end, reverse=reverse)]
    if len(records) > count:
        return records[:count], cursor_of(records[count - 1])
    return records, end
