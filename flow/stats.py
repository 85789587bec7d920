"""What a shard tells about itself, and the check that its indexes are what a rebuild gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .codec import decode_record
from .index.due import DueIndex
from .log.position import unpack
from .machine.state import ShardState

if TYPE_CHECKING:
    from .engine import Engine


def statistics(engine: Engine, check: bool) -> dict[str, Any]:
    """Return counters of the shard; with `check`, also the problems found (normally none)."""
    log = engine.log
    told: dict[str, Any] = {
        "shard": engine.state.settings.shard,
        "flows": len(engine.state.table),
        "values": len(engine.values),
        "value_reads": engine.values.reads,
        "commands": engine.commands,
        "bytes_written": log.bytes_written,
        "frames_written": log.frames_written,
        "syncs": log.syncs,
        "epoch": log.epoch,
        "cut_bytes": engine.cut_bytes,
    }
    if check:
        told["problems"] = check_invariants(engine)
    return told


def check_invariants(engine: Engine) -> list[str]:
    """Compare the state with a rebuild from its records, and the records with the log."""
    state = engine.state
    problems: list[str] = []
    fresh = ShardState(state.settings)
    for slot in state.table:
        if slot.record is None:
            problems.append("a slot in the table has no record")
            continue
        fresh.load(None, slot.record)
        if decode_record(engine.entry(list(unpack(slot.trail))[-1])) != slot.record:
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
                    entries = [
                        (name, flow_type, state, priority, at_ms, order, slot.record.id)
                        for at_ms, order, _, slot in queue.entries()
                        if slot.record is not None
                    ]
                    if len(entries) != queue.live:
                        entries.append((name, flow_type, state, priority, "count", queue.live, ""))
                    found.update(entries)
    return found
