"""A plain model of families, from section 6 of the contract: dicts, lists, and no counters.

What a group has counted is what its children are. Every end has all its consequences at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import shardflow as sf

Key = tuple[str | None, str]
"""Partition key and id."""

TERMINAL = ("completed", "failed", "cancelled")
OPEN = "on"
DEPTH_MAX = 3
"""Four levels, roots included."""


@dataclass(eq=False)
class Group:
    """Children that were spawned together."""

    parent: Known
    wait: str
    wait_state: str | None
    success: str | None
    failure: str | None
    on_child_failed: str
    on_parent_closed: str
    arguments: tuple[list[dict[str, Any]], dict[str, Any]]
    """The children and the options of the call, tokens included: for repeats."""
    children: list[Known] = field(default_factory=list)
    status: str = "open"

    def count(self, state: str) -> int:
        return sum(child.state == state for child in self.children)

    def outcome(self) -> str | None:
        """Return what the children's states resolve an open group to."""
        is_over = not any(child.is_open for child in self.children)
        if self.wait == "all":
            bad = self.count("failed") + self.count("cancelled")
            if bad and self.on_child_failed == "fail_parent":
                return "failure"
            return "success" if is_over else None
        if self.count("completed"):
            return "success"
        if is_over or (self.count("failed") and self.on_child_failed == "fail_parent"):
            return "failure"
        return None


@dataclass(eq=False)
class Known:
    """One flow, as it has to be."""

    key: Key
    type: str
    root_id: str
    correlation_id: str | None
    group: Group | None = None
    deadline_ms: int | None = None
    state: str = OPEN
    """The logical one."""
    is_due: bool = True
    lease: sf.FlowRecord | None = None
    lost: list[sf.FlowRecord] = field(default_factory=list)
    """Leases that were taken from their holders."""
    groups: dict[str, Group] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=lambda: Counter(["created"]))

    @property
    def is_open(self) -> bool:
        return self.state not in TERMINAL

    @property
    def depth(self) -> int:
        return 0 if self.group is None else self.group.parent.depth + 1

    def moves(self, state: str, *, is_due: bool) -> None:
        """Come into another state, unleased."""
        assert self.is_open
        self.state, self.is_due, self.lease = state, is_due, None

    def ends(self, how: str, event: str, *, by_holder: bool = False) -> None:
        """End, with everything that follows for the family."""
        if self.lease is not None and not by_holder:
            self.lost.append(self.lease)
        self.moves(how, is_due=False)
        if event:
            self.events[event] += 1
        for group in self.groups.values():
            if group.on_parent_closed == "cancel_children":
                _cancel(group)
        if self.group is not None:
            self.group.parent.events[f"child_{how}"] += 1
            _look(self.group)


def spawned(group: Group, group_id: str) -> None:
    """Let a group begin, its children made: its parent moves, or nobody waits."""
    parent = group.parent
    parent.groups[group_id] = group
    parent.events["children_spawned"] += 1
    if group.wait != "none":
        assert group.wait_state is not None
        parent.moves(group.wait_state, is_due=False)
        return
    group.status = "success"
    if group.success is not None:
        parent.moves(group.success, is_due=True)


def _look(group: Group) -> None:
    """Resolve a group, if its children's states do."""
    outcome = group.outcome() if group.status == "open" else None
    if outcome is None:
        return
    group.status = outcome
    parent = group.parent
    parent.events["group_resolved"] += 1
    if parent.is_open and parent.state == group.wait_state and not parent.is_due:
        target = group.success if outcome == "success" else group.failure
        assert target is not None
        if target in TERMINAL:
            parent.ends(target, "")
        else:
            parent.moves(target, is_due=True)
    if group.on_parent_closed == "cancel_children":
        _cancel(group)


def _cancel(group: Group) -> None:
    for child in group.children:
        if child.is_open:
            child.ends("cancelled", "cancelled")


class Families:
    """All flows, by key."""

    def __init__(self) -> None:
        self.flows: dict[Key, Known] = {}

    def open(self) -> list[Known]:
        return [flow for flow in self.flows.values() if flow.is_open]

    def claimable(self) -> list[Known]:
        return [flow for flow in self.open() if flow.is_due and flow.lease is None]

    def leased(self) -> list[Known]:
        return [flow for flow in self.flows.values() if flow.lease is not None]

    def waiting(self) -> list[Known]:
        """Return the open flows that wait for a group."""
        return [flow for flow in self.open() if flow.lease is None and not flow.is_due]

    def robbed(self) -> list[Known]:
        return [flow for flow in self.flows.values() if flow.lost]

    def parents(self) -> list[Known]:
        return [flow for flow in self.open() if flow.depth < DEPTH_MAX]

    def groups(self) -> list[tuple[str, Group]]:
        return [pair for flow in self.flows.values() for pair in flow.groups.items()]

    def first_overdue(self) -> Known | None:
        """Return the open flow whose time is over first; no two are over together."""
        timed = [flow for flow in self.open() if flow.deadline_ms is not None]
        return min(timed, key=lambda flow: flow.deadline_ms or 0, default=None)
