"""Where each fact lies that still counts: so that its bytes are known to be dead once it does not.

Read from the log alone, in its order: the same facts make the same others dead, whether they were
just written or are read back.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..events import (
    Delivered,
    Dropped,
    PolicyStored,
    Posted,
    Prepared,
    Received,
    Trimmed,
    Unprepared,
)
from .dead import DeadBytes
from .position import Position, pack

Key = tuple[str, str | int, int]
"""What a fact is about: of facts with the same key, the newest counts."""
TOMBSTONES = (Dropped, Trimmed, Unprepared)
"""Entries that say that earlier ones are dead."""
_NOWHERE = pack(0, 0, 0)


class FactPlaces:
    """key → position of policies, prepared children, posts, and how far posts were applied."""

    def __init__(self, dead: DeadBytes) -> None:
        self._dead = dead
        self._places: dict[Key, Position] = {}
        self._posts: dict[int, deque[int]] = {}
        """Per destination: the numbers of posts that are not known to be applied, ascending."""

    def note(self, fact: Any, position: Position) -> None:
        """Take in a fact that comes next in the log, and count what it makes dead."""
        if isinstance(fact, Unprepared):
            self._drop(_key_of_prepared(fact.txn))
        if isinstance(fact, TOMBSTONES):
            return
        key = key_of(fact)
        self._drop(key)
        self._places[key] = position
        if isinstance(fact, Posted):
            self._posts.setdefault(fact.dest, deque()).append(fact.number)
        elif isinstance(fact, Delivered):
            posts = self._posts.get(fact.dest)
            while posts and posts[0] <= fact.number:
                self._drop(_key_of_post(fact.dest, posts.popleft()))

    def place(self, key: Key) -> Position | None:
        """Return where the fact lies; None if none counts, or if that is not known."""
        return self._places.get(key)

    def packed_place(self, fact: object) -> bytes:
        """Return where a fact lies, packed; nowhere is 0, 0, 0."""
        position = self._places.get(key_of(fact))
        return _NOWHERE if position is None else pack(*position)

    def move(self, key: Key, old: Position, new: Position) -> bool:
        """Note that a fact lies elsewhere now; False if it no longer lay where it did."""
        if self._places.get(key) != old:
            return False
        self._places[key] = new
        return True

    def _drop(self, key: Key) -> None:
        position = self._places.pop(key, None)
        if position is not None:
            self._dead.add(position)


def key_of(fact: Any) -> Key:
    """Return what a fact is about; tombstones are about others."""
    if isinstance(fact, PolicyStored):
        return "policy", fact.type, 0
    if isinstance(fact, Prepared):
        return _key_of_prepared(fact.txn)
    if isinstance(fact, Posted):
        return _key_of_post(fact.dest, fact.number)
    if isinstance(fact, Received):
        return "received", fact.source, 0
    assert isinstance(fact, Delivered), f"{type(fact).__name__} has no key"
    return "delivered", fact.dest, 0


def _key_of_prepared(txn: str) -> Key:
    return "prepared", txn, 0


def _key_of_post(dest: int, number: int) -> Key:
    return "post", dest, number


def first_of(tombstone: Any) -> int:
    """Return the first segment that may hold what a tombstone has killed."""
    first: int = getattr(tombstone, "first", 0)
    return first
