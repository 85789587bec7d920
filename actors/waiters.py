"""Claims that wait: watches on what becomes due, answered without polling."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..flow.engine import Engine
from ..flow.limits import WAITERS_MAX
from ..flow.queries import Watch


class Waiter(NamedTuple):
    """Who waits, and until when."""

    caller: Any
    number: int
    watch: Watch
    until_ms: int


class Waiters:
    """The watches of one shard, oldest first.

    A watch is looked at again when a flow of its type was written, and when its own time comes.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], Waiter] = {}
        """By (caller identity, request number)."""
        self._wake_at_ms: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether one more would break the bound."""
        return len(self._waiting) >= WAITERS_MAX

    def add(self, waiter: Waiter, engine: Engine, now_ms: int) -> bool:
        """Let a watch wait; return False if there is something for it already."""
        at_ms = engine.next_due_ms(waiter.watch)
        if at_ms is not None and at_ms <= now_ms:
            return False
        key = (id(waiter.caller), waiter.number)
        self._waiting[key] = waiter
        self._wake_at_ms[key] = _earlier(at_ms, waiter.until_ms)
        return True

    def remove(self, caller: Any, number: int) -> Waiter | None:
        """Take a watch back."""
        key = (id(caller), number)
        self._wake_at_ms.pop(key, None)
        return self._waiting.pop(key, None)

    def clear(self) -> list[Waiter]:
        """Take back and return every watch."""
        ended = list(self._waiting.values())
        self._waiting.clear()
        self._wake_at_ms.clear()
        return ended

    def forget(self, caller: Any) -> None:
        """Take back every watch of a caller that has gone."""
        for key in [key for key, waiter in self._waiting.items() if waiter.caller is caller]:
            del self._waiting[key], self._wake_at_ms[key]

    def woken(
        self, engine: Engine, now_ms: int, touched: set[str] | None
    ) -> list[tuple[Waiter, bool]]:
        """Remove and return the watches that end now: (waiter, whether something is due).

        `touched`: the types that were written since the last look.
        """
        ended: list[tuple[Waiter, bool]] = []
        for key, waiter in list(self._waiting.items()):
            is_touched = bool(touched) and waiter.watch.type in (touched or ())
            if not is_touched and self._wake_at_ms[key] > now_ms:
                continue
            at_ms = engine.next_due_ms(waiter.watch)
            is_due = at_ms is not None and at_ms <= now_ms
            if is_due or waiter.until_ms <= now_ms:
                del self._waiting[key], self._wake_at_ms[key]
                ended.append((waiter, is_due))
            else:
                self._wake_at_ms[key] = _earlier(at_ms, waiter.until_ms)
        return ended

    def next_wake_ms(self) -> int | None:
        """Return when a watch has to be looked at again."""
        return min(self._wake_at_ms.values(), default=None)


def _earlier(at_ms: int | None, until_ms: int) -> int:
    return until_ms if at_ms is None else min(at_ms, until_ms)
