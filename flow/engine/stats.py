"""The check that a shard's indexes are what a rebuild gives, and lead to where entries lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..codec import decode_record
from ..cold.layout import Row
from ..index.due import DueIndex
from ..log.position import Position, unpack
from ..machine.loading import Loading
from ..machine.state import ShardState
from ..record import NO_EXTRAS, Record, numbers_of
from .project import may_leave


class Entries(NamedTuple):
    """How what the flows name is found."""

    read: Callable[[Position], bytes]
    holds: Callable[[Position], bool]
    """Whether an entry can lie there."""
    place: Callable[[int], Position | None]
    """Where a value lies, by its number."""

    def missing(
        self, record: Record, trail: bytes, spent: Sequence[tuple[int, int]] | None
    ) -> list[str]:
        """Return what a flow names that lies nowhere."""
        problems: list[str] = []
        for place in unpack(trail):
            if not self.holds(place):
                problems.append(f"the history of {record.id!r} leads to {place}, in no file")
        for number in numbers_of(record, spent):
            where = self.place(number)
            if where is None or not self.holds(where):
                problems.append(f"value {number} of {record.id!r} lies at {where}, in no file")
        return problems


def check_invariants(state: ShardState, entries: Entries) -> list[str]:
    """Compare the state with a rebuild from its records, and the records with the log."""
    problems: list[str] = []
    fresh = ShardState(state.settings)
    loading = Loading(fresh)
    for slot in state.table:
        record = slot.record
        if record is None:
            problems.append("a slot in the table has no record")
            continue
        missing = entries.missing(record, slot.trail, slot.spent)
        if missing:
            problems += missing
            continue
        packed = entries.read(list(unpack(slot.trail))[-1])
        loading.load(record, packed)
        if decode_record(packed) != record or slot.version != record.version:
            problems.append(f"the log has another record of {record.id!r}")
    loading.finish()
    for name in ("waiting", "ended"):
        have, want = +getattr(state, name), +getattr(fresh, name)
        if have != want:
            problems.append(f"{name} is {have}, a rebuild gives {want}")
    if _outline(state.due) != _outline(fresh.due):
        problems.append("the due index differs from a rebuild")
    if state.expiry.live != fresh.expiry.live:
        problems.append("the expiry queue differs from a rebuild")
    fresh.let_go()
    return problems + _family_problems(state)


def compare(state: ShardState, entries: Entries, row: Row) -> list[str]:
    """Compare a cold flow with the log, and make sure that it is not in memory as well."""
    record = row.record
    problems = entries.missing(record, row.trail, row.spent)
    if problems:
        return problems
    if state.table.get(record.partition_key, record.id) is not None:
        problems.append(f"{record.id!r} is hot and cold")
    if entries.read(list(unpack(row.trail))[-1]) != row.packed:
        problems.append(f"the log has another record of cold {record.id!r}")
    if not may_leave(record):
        problems.append(f"{record.id!r} is cold too early")
    return problems


def _family_problems(state: ShardState) -> list[str]:
    """Compare groups with those of their children that are on this shard."""
    problems: list[str] = []
    families = state.families
    for (partition_key, flow_id), txn in families.reserved.items():
        if txn not in families.prepared:
            problems.append(f"{flow_id!r} in {partition_key!r} is reserved by nobody")
    here = [state.settings.shard]
    own_posts = any(dest == here[0] and waiting for dest, waiting, _ in families.outbox.lanes())
    for slot in state.table:
        record = slot.record
        if record is None or record.extras is None or record.extras.groups is None:
            continue
        for group_id, group in record.extras.groups.items():
            if not 0 <= group.open_count <= group.total:
                problems.append(f"group {group_id!r} of {record.id!r} counts wrongly: {group}")
            # Elsewhere children may have ended, and their posts be on the way.
            elif group.shards == here and not own_posts:
                found = _open_children(state, record, group.seq)
                if found != group.open_count:
                    problems.append(
                        f"group {group_id!r} of {record.id!r} has {found} open children and "
                        f"counts {group.open_count}"
                    )
    return problems


def _open_children(state: ShardState, parent: Record, seq: int) -> int:
    members = (slot.record for slot in state.lineage.members("parent", parent.id))
    return sum(
        child is not None
        and not child.is_terminal
        and (child.extras or NO_EXTRAS).group_seq == seq
        and child.parent_partition_key == parent.partition_key
        for child in members
    )


def _outline(index: DueIndex) -> set[tuple[Any, ...]]:
    """Return every live entry as plain values, and assert that the counts agree."""
    found: set[tuple[Any, ...]] = set()
    for name, book in index.books().items():
        for flow_type, states in book.items():
            for state, queues in states.items():
                for priority, queue in enumerate(queues):
                    entries: list[tuple[Any, ...]] = [
                        (name, flow_type, state, priority, at_ms, order, record.id)
                        for at_ms, order, _, slot in queue.entries()
                        if (record := slot.record) is not None
                    ]
                    if len(entries) != queue.live:
                        entries.append((name, flow_type, state, priority, "count", queue.live, ""))
                    found.update(entries)
    return found
