"""Flows that have left memory: what the machine asks of wherever they are. Knows no database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, Protocol

from ..queries import Cursor
from ..record import Record
from .table import Slot

ListKind = Literal["type", "parent", "root", "correlation"]
"""What a cold flow is listed by."""


class ColdSlot(Slot, gc=False):
    """A cold flow for as long as a step looks at it: in no index, forgotten at the step's end.

    Its record is unpacked. Once evolve has adopted it, it is a slot like any other.
    """

    row: int = 0
    """Which row it was read from; 0 once it is hot, or gone."""


class Cold(Protocol):
    """Ended flows outside memory, each of them there or in the table, never in both."""

    rows: int
    """How many flows; while there are none, nobody need ask for one."""

    def find(self, partition_key: str | None, flow_id: str) -> ColdSlot | None:
        """Return a flow; the same object until the step ends."""
        ...

    def of_id(self, flow_id: str) -> list[ColdSlot]:
        """Return the flows of every partition that have this id."""
        ...

    def walk(
        self,
        kind: ListKind,
        name: str,
        states: Iterable[str] | None,
        after: Cursor | None,
        *,
        reverse: bool = False,
    ) -> Iterator[Record]:
        """Return flows in (updated_at_ms, id, partition) order, beyond `after`; states None = any.

        To be used up within the step.
        """
        ...

    def expired(self, now_ms: int, limit: int) -> list[ColdSlot]:
        """Return flows that are past their retention, those first that have been so for longest."""
        ...

    def next_expiry_ms(self) -> int | None:
        """Return when the first flow is past its retention."""
        ...

    def count(self, flow_type: str, state: str) -> int:
        """Return how many flows of a type have ended so."""
        ...

    def adopt(self, slot: ColdSlot) -> list[tuple[int, bytes]]:
        """Let go of a flow that becomes hot; return its values: number and packed position."""
        ...

    def remove(self, slot: ColdSlot) -> bytes:
        """Let go of a flow that is dropped; return the positions of its values, packed."""
        ...

    def slots(self) -> Iterator[ColdSlot]:
        """Return every flow, for checks."""
        ...


class NoCold:
    """Of a shard that keeps everything in memory."""

    rows = 0

    def find(self, partition_key: str | None, flow_id: str) -> ColdSlot | None:
        """There is none."""
        return None

    def of_id(self, flow_id: str) -> list[ColdSlot]:
        """There are none; likewise below."""
        return []

    def walk(
        self,
        kind: ListKind,
        name: str,
        states: Iterable[str] | None,
        after: Cursor | None,
        *,
        reverse: bool = False,
    ) -> Iterator[Record]:
        """Return nothing."""
        return iter(())

    def expired(self, now_ms: int, limit: int) -> list[ColdSlot]:
        """Return nothing."""
        return []

    def next_expiry_ms(self) -> int | None:
        """Return nothing."""
        return None

    def count(self, flow_type: str, state: str) -> int:
        """Return zero."""
        return 0

    def adopt(self, slot: ColdSlot) -> list[tuple[int, bytes]]:
        """Nobody can have such a slot."""
        raise AssertionError("there are no cold flows here")

    def remove(self, slot: ColdSlot) -> bytes:
        """Nobody can have such a slot."""
        raise AssertionError("there are no cold flows here")

    def slots(self) -> Iterator[ColdSlot]:
        """Return nothing."""
        return iter(())


NO_COLD: Final = NoCold()
