"""What must hold of families once all has been told: read from the engines' states and logs.

Written from section 6 of the contract. Nothing here asks how an engine came to its state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from shardflow.flow.codec import decode_record
from shardflow.flow.engine import Engine
from shardflow.flow.index.table import Slot
from shardflow.flow.log.position import unpack
from shardflow.flow.record import NO_EXTRAS, TERMINAL_STATES, ChildGroup, Record

Key = tuple[str | None, str]
"""Partition key and id."""
Kin = tuple[Key, str, int]
"""What a child names: its parent, the group, and which group of that name."""


def problems_of(engines: Sequence[Engine]) -> list[str]:
    """Return what is wrong with the families of a store, all of whose posts have been applied."""
    return [*unfinished(engines), *Census(engines).problems()]


def unfinished(engines: Sequence[Engine]) -> list[str]:
    """Return what some shard still has to be told."""
    found = []
    for shard, engine in enumerate(engines):
        families = engine.state.families
        left = {
            "prepared": list(families.prepared),
            "reserved": list(families.reserved),
            "undecided": list(families.undecided),
            "spawning": list(families.spawning),
            "posts": families.outbox.after({}, 10),
        }
        found += [f"shard {shard} has {name}: {what}" for name, what in left.items() if what]
        found += [f"shard {shard}: {why}" for why in engine.statistics(check=True)["problems"]]
    return found


class Census:
    """All flows of a store, and who is whose child."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.records: dict[Key, Record] = {}
        self.histories: dict[Key, list[Record]] = {}
        self.children: dict[Kin, list[Record]] = {}
        self.shard_of: dict[Key, int] = {}
        for shard, engine in enumerate(engines):
            for slot in engine.state.table:
                self._count(shard, engine, slot)

    def _count(self, shard: int, engine: Engine, slot: Slot) -> None:
        record = slot.record
        assert record is not None
        key = record.partition_key, record.id
        self.records[key] = record
        self.shard_of[key] = shard
        self.histories[key] = [decode_record(engine.entry(at)) for at in unpack(slot.trail)]
        kin = kin_of(record)
        if kin is not None:
            self.children.setdefault(kin, []).append(record)

    def problems(self) -> list[str]:
        """Return everything that is not as the contract says."""
        found = []
        for key, record in self.records.items():
            for why in self._flow_problems(key, record):
                found.append(f"{key}: {why}")
            for group_id, group in record.child_groups.items():
                members = self.children.get((key, group_id, group.seq), [])
                for why in self._group_problems(record, group_id, group, members):
                    found.append(f"{key} {group_id!r} {_outline(group)}: {why}")
        for kin, members in self.children.items():
            parent = self.records.get(kin[0])
            own = None if parent is None else parent.child_groups.get(kin[1])
            if own is None or own.seq != kin[2]:
                found.append(f"orphans of {kin}: {[child.id for child in members]}")
        return found

    def _flow_problems(self, key: Key, record: Record) -> Iterator[str]:
        history = self.histories[key]
        if [version.version for version in history] != list(range(1, record.version + 1)):
            yield "its history has gaps"
        for before, after in pairwise(history):
            if before.state in TERMINAL_STATES and after.state != before.state:
                yield f"was {before.state} and then {after.state} by {after.event}"
            if after.event == "group_resolved":
                yield from _move_problems(before, after)

    def _group_problems(
        self, parent: Record, group_id: str, group: ChildGroup, members: list[Record]
    ) -> Iterator[str]:
        if len(members) != group.total:
            yield f"it has {len(members)} children"
        ends = Counter(child.state for child in members if child.state in TERMINAL_STATES)
        counted = {
            "completed": group.completed,
            "failed": group.failed,
            "cancelled": group.cancelled,
        }
        if {name: ends[name] for name in counted} != counted:
            yield f"its children are {dict(ends)}"
        yield from self._event_problems(parent, group_id, group, counted)
        if group.status not in possible_statuses(group):
            yield f"it may only be {possible_statuses(group)}"
        if {self.shard_of[child.partition_key, child.id] for child in members} != set(group.shards):
            yield "its children are on other shards"
        is_over = group.wait != "none" and group.status != "open"
        if group.on_parent_closed == "cancel_children" and (
            is_over or parent.state in TERMINAL_STATES
        ):
            left = [child.id for child in members if child.state not in TERMINAL_STATES]
            if left:
                yield f"open although it is over: {left}"

    def _event_problems(
        self, parent: Record, group_id: str, group: ChildGroup, counted: dict[str, int]
    ) -> Iterator[str]:
        told: Counter[str] = Counter()
        for version in self.histories[parent.partition_key, parent.id]:
            if (version.event_details or {}).get("group_id") == group_id and (
                version.event.startswith("child") or version.event == "group_resolved"
            ):
                told[version.event] += 1
        if told["children_spawned"] != 1:
            yield f"spawned {told['children_spawned']} times"
        is_resolved = group.wait != "none" and group.status != "open"
        if told["group_resolved"] != is_resolved:
            yield f"{group.status} and resolved {told['group_resolved']} times"
        if {name: told[f"child_{name}"] for name in counted} != counted:
            yield f"its history tells {dict(told)}"


def kin_of(record: Record) -> Kin | None:
    """Return what a spawned child names as its own; None for other flows."""
    extras = record.extras or NO_EXTRAS
    if extras.group_id is None:
        return None
    assert extras.parent_flow_id is not None
    parent = extras.parent_partition_key, extras.parent_flow_id
    return parent, extras.group_id, extras.group_seq


def possible_statuses(group: Any) -> set[str]:
    """Return what a group's counters can have resolved it to, in whatever order they grew."""
    bad = group.failed + group.cancelled
    is_over = group.completed + bad == group.total
    if group.wait == "none":
        return {"success"}
    if group.wait == "all":
        if group.on_child_failed == "fail_parent" and bad:
            return {"failure"}
        return {"success"} if is_over else {"open"}
    found = set()
    if group.completed:
        found.add("success")
    if group.on_child_failed == "fail_parent" and group.failed:
        found.add("failure")
    if not found:
        found.add("failure" if is_over else "open")
    return found


def _move_problems(before: Record, after: Record) -> Iterator[str]:
    """Check that a resolution moves exactly the parent that waits for it."""
    details = after.event_details or {}
    group = after.child_groups[details["group_id"]]
    waits = before.state == group.wait_state and before.next_run_at_ms is None
    target = getattr(group, details["status"]) if waits else None
    if details["moved_to"] != target:
        yield f"it was {before.state} and was told to move to {details['moved_to']}"
    if after.state != (target or before.state):
        yield f"resolved {details['status']}, it went from {before.state} to {after.state}"
    if target not in (None, *TERMINAL_STATES) and after.next_run_at_ms != after.updated_at_ms:
        yield "a resolved parent is due now"


def _outline(group: ChildGroup) -> str:
    counters = f"{group.completed}/{group.failed}/{group.cancelled} of {group.total}"
    return (
        f"({group.wait}, {group.on_child_failed}, {group.on_parent_closed}) "
        f"{group.status} {counters}"
    )
