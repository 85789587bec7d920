"""The check that its indexes are what a rebuild gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..codec import decode_record
from ..index.due import DueIndex
from ..log.position import Position, unpack
from ..machine.state import ShardState


def check_invariants(state: ShardState, read: Callable[[Position], bytes]) -> list[str]:
    """Compare the state with a rebuild from its records, and the records with the log."""
    problems: list[str] = []
    fresh = ShardState(state.settings)
    for slot in state.table:
        if slot.record is None:
            problems.append("a slot in the table has no record")
            continue
        fresh.load(None, slot.record)
        if decode_record(read(list(unpack(slot.trail))[-1])) != slot.record:
            problems.append(f"the log has another record of {slot.record.id!r}")
    fresh.rebuild()
    for name in ("waiting", "ended"):
        have, want = +getattr(state, name), +getattr(fresh, name)
        if have != want:
            problems.append(f"{name} is {have}, a rebuild gives {want}")
    if _outline(state.due) != _outline(fresh.due):
        problems.append("the due index differs from a rebuild")
    if state.expiry.live != fresh.expiry.live:
        problems.append("the expiry queue differs from a rebuild")
    return problems


def _outline(index: DueIndex) -> set[tuple[Any, ...]]:
    """Return every live entry as plain values, and assert that the counts agree."""
    found: set[tuple[Any, ...]] = set()
    for name, book in index.books().items():
        for flow_type, states in book.items():
            for state, queues in states.items():
                for priority, queue in enumerate(queues):
                    entries: list[tuple[Any, ...]] = [
                        (name, flow_type, state, priority, at_ms, order, slot.record.id)
                        for at_ms, order, _, slot in queue.entries()
                        if slot.record is not None
                    ]
                    if len(entries) != queue.live:
                        entries.append((name, flow_type, state, priority, "count", queue.live, ""))
                    found.update(entries)
    return found
