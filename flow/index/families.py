"""What a shard keeps for fan-outs: prepared children, undecided transactions, posts both ways."""

from __future__ import annotations

from typing import NamedTuple

from ..events import Prepared, Received
from ..family import Kin
from ..limits import ASK_AGAIN_MS, SPAWN_MS_MAX
from .outbox import Outbox

Key = tuple[str | None, str]
"""(partition key, id)"""


class Undecided(NamedTuple):
    """A transaction that this shard coordinates. In memory only: what is forgotten is aborted."""

    txn: str
    parent: Key
    kin: Kin
    begun_ms: int

    def is_over(self, now_ms: int) -> bool:
        """Whether it has had its time: whoever drives it is gone, or hangs."""
        return now_ms - self.begun_ms >= SPAWN_MS_MAX


class Families:
    """Transactions of both roles, and the outbox. Written by evolve, recovery and the courier."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.seen: dict[int, int] = {}
        """Source shard → the number of its last post that is applied here."""
        self.prepared: dict[str, Prepared] = {}
        """Transaction → children of this shard that wait for its outcome."""
        self.reserved: dict[Key, str] = {}
        """The ids of those children → transaction."""
        self.undecided: dict[str, Undecided] = {}
        """Transactions whose parent is on this shard, by transaction."""
        self.spawning: dict[Key, str] = {}
        """Parents of those → transaction."""
        self._ask_at_ms: dict[str, int] = {}
        """Prepared transaction → when its outcome is to be asked for."""

    # ---- as a participant ----

    def prepare(self, fact: Prepared, ask_at_ms: int | None = None) -> None:
        """Reserve the ids of prepared children. Recovered ones are asked for at once."""
        assert fact.txn not in self.prepared, "a transaction is prepared once"
        self.prepared[fact.txn] = fact
        for child in fact.children:
            self.reserved[child.partition_key, child.id] = fact.txn
        self._ask_at_ms[fact.txn] = fact.at_ms + ASK_AGAIN_MS if ask_at_ms is None else ask_at_ms

    def received(self) -> list[Received]:
        """Return up to where the posts of each source are applied here."""
        return [Received(source, number) for source, number in self.seen.items()]

    def settle(self, txn: str) -> None:
        """Free the ids of prepared children: they exist from now on, or never will."""
        fact = self.prepared.pop(txn, None)
        if fact is None:
            # From the log: a merge leaves out what is settled before it leaves out that it is.
            return
        for child in fact.children:
            del self.reserved[child.partition_key, child.id]
        del self._ask_at_ms[txn]

    def to_ask(self, now_ms: int) -> list[tuple[str, int]]:
        """Return (transaction, coordinator) of those to be asked for now, and ask again later."""
        due = [txn for txn, at_ms in self._ask_at_ms.items() if at_ms <= now_ms]
        for txn in due:
            self._ask_at_ms[txn] = now_ms + ASK_AGAIN_MS
        return [(txn, self.prepared[txn].coordinator) for txn in due]

    def next_ask_ms(self) -> int | None:
        """Return when `to_ask` has something next."""
        return min(self._ask_at_ms.values(), default=None)

    # ---- as the coordinator ----

    def begin(self, undecided: Undecided) -> None:
        """Remember a transaction. One at a time per parent."""
        assert undecided.parent not in self.spawning, "one fan-out of a parent at a time"
        self.undecided[undecided.txn] = undecided
        self.spawning[undecided.parent] = undecided.txn

    def end(self, txn: str) -> None:
        """Forget a transaction: it was decided, or is aborted by being forgotten."""
        undecided = self.undecided.pop(txn, None)
        if undecided is not None:
            del self.spawning[undecided.parent]
