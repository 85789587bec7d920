"""The arithmetic of a group of children: counters, and when it resolves. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from ..family import Spawn
from ..record import CANCELLED, COMPLETED, FAILED, TERMINAL_STATES, ChildGroup

OPEN = "open"
SUCCESS = "success"
FAILURE = "failure"
FAIL_PARENT = "fail_parent"
CANCEL_CHILDREN = "cancel_children"
ABANDON_CHILDREN = "abandon_children"


def new_group(spawn: Spawn, seq: int) -> ChildGroup:
    """Return the group that a fan-out begins.

    Nobody waits for a group with wait `none`: it has resolved well from its first moment. If its
    parent ends in the very same act, its children are meant to outlive it.
    """
    on_parent_closed: str = spawn.on_parent_closed
    if spawn.wait == "none" and spawn.success in TERMINAL_STATES:
        on_parent_closed = ABANDON_CHILDREN
    return ChildGroup(
        wait=spawn.wait,
        status=SUCCESS if spawn.wait == "none" else OPEN,
        total=spawn.total,
        completed=0,
        failed=0,
        cancelled=0,
        wait_state=None if spawn.wait == "none" else spawn.wait_state,
        success=spawn.success,
        failure=spawn.failure,
        on_child_failed=spawn.on_child_failed,
        on_parent_closed=on_parent_closed,
        shards=spawn.shards,
        digest=spawn.digest,
        seq=seq,
    )


def noted(group: ChildGroup, end: str) -> ChildGroup:
    """Return the group after one more child has ended."""
    assert group.open_count > 0, "a child ends once"
    assert end in TERMINAL_STATES
    if end == COMPLETED:
        return replace(group, completed=group.completed + 1)
    if end == FAILED:
        return replace(group, failed=group.failed + 1)
    assert end == CANCELLED
    return replace(group, cancelled=group.cancelled + 1)


def resolution(group: ChildGroup) -> str | None:
    """Return what an open group's counters resolve it to; None = nothing yet, or it has."""
    if group.status != OPEN:
        return None
    fails_parent = group.on_child_failed == FAIL_PARENT
    is_over = group.open_count == 0
    if group.wait == "all":
        if fails_parent and group.failed + group.cancelled:
            return FAILURE
        return SUCCESS if is_over else None
    assert group.wait == "any"
    if group.completed:
        return SUCCESS
    if is_over or (fails_parent and group.failed):
        return FAILURE
    return None
