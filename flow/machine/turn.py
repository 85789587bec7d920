"""One command's turn: the time it happens at, and the changes that it stages."""

from __future__ import annotations

from ..events import Dropped, Fact, Posted
from ..family import Post
from ..host import Entropy
from ..index.families import Undecided
from ..index.outbox import Outbox
from ..index.table import Slot
from ..record import Record

_TOKEN_BYTES = 12


class Turn:
    """Collects what a decision wants written. Nothing is changed until `evolve` takes it.

    Order in the log and in `evolve`: drops, values, puts, facts. A slot that is put more than
    once is at each version for a moment.
    """

    __slots__ = (
        "_entropy",
        "_order",
        "_posted",
        "_shard",
        "_value",
        "begins",
        "drops",
        "ends",
        "facts",
        "now_ms",
        "puts",
        "values",
    )

    def __init__(
        self, now_ms: int, entropy: Entropy, *, order: int, next_value: int, shard: int
    ) -> None:
        self.now_ms = now_ms
        self.drops: list[Dropped] = []
        self.values: list[tuple[int, bytes]] = []
        self.puts: list[tuple[Slot, Record]] = []
        self.facts: list[Fact] = []
        self.begins: list[Undecided] = []
        """Transactions to remember; not logged, likewise those to forget."""
        self.ends: list[str] = []
        self._posted: dict[int, int] = {}
        self._entropy = entropy
        self._order = order
        self._value = next_value
        self._shard = shard

    def put(self, slot: Slot, record: Record) -> Record:
        """Stage a slot's next record."""
        self.puts.append((slot, record))
        return record

    def value(self, data: bytes) -> int:
        """Stage a value and return its number; the low 8 bits name the shard."""
        number = self._value << 8 | self._shard
        self._value += 1
        self.values.append((number, data))
        return number

    def post(self, outbox: Outbox, dest: int, post: Post) -> None:
        """Stage a post to a shard."""
        number = self._posted[dest] = self._posted.get(dest, outbox.last(dest)) + 1
        self.facts.append(Posted(dest, number, post))

    def order(self) -> int:
        """Return the next number in the order in which flows enter states on this shard."""
        self._order += 1
        return self._order

    def tokens(self, count: int) -> list[str]:
        """Return unguessable lease tokens."""
        text = self._entropy.token_bytes(_TOKEN_BYTES * count).hex()
        width = 2 * _TOKEN_BYTES
        return [text[at : at + width] for at in range(0, width * count, width)]

    def mark(self) -> tuple[int, int, int, int]:
        """Return a point to go back to."""
        return len(self.drops), len(self.values), len(self.puts), len(self.facts)

    def back_to(self, mark: tuple[int, int, int, int]) -> None:
        """Unstage everything since the mark."""
        drops, values, puts, facts = mark
        del self.drops[drops:], self.values[values:], self.puts[puts:], self.facts[facts:]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written, or remembered."""
        return not (
            self.puts or self.drops or self.values or self.facts or self.begins or self.ends
        )

    @property
    def last_order(self) -> int:
        """The last number handed out by `order`."""
        return self._order

    @property
    def next_value(self) -> int:
        """The next number that `value` would use."""
        return self._value
