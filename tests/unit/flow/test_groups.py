"""When a group of children resolves: every count of ends, under every rule."""

from __future__ import annotations

from itertools import product

import pytest
from msgspec.structs import replace

from shardflow.flow.family import Spawn
from shardflow.flow.machine.groups import new_group, noted, resolution
from shardflow.flow.record import CANCELLED, COMPLETED, FAILED, ChildGroup

TOTAL = 3
SPAWN = Spawn(
    id="p",
    partition_key=None,
    group_id="g",
    wait="all",
    wait_state="waiting",
    success="good",
    failure="bad",
    on_child_failed="fail_parent",
    on_parent_closed="cancel_children",
    from_state=None,
    lease_token=None,
    fencing_token=None,
    total=TOTAL,
    shards=[0],
    digest=b"d",
)


def after(wait: str, on_child_failed: str, ends: str) -> ChildGroup:
    """Return a group after its children have ended so: c(ompleted), f(ailed), x (cancelled)."""
    names = {"c": COMPLETED, "f": FAILED, "x": CANCELLED}
    spawn = replace(SPAWN, wait=wait, on_child_failed=on_child_failed)
    group = new_group(spawn, 1)
    for end in ends:
        group = noted(group, names[end])
    return group


ALL_FAIL = {"": None, "c": None, "cc": None, "ccc": "success", "f": "failure", "x": "failure"}
ALL_IGNORE = {"f": None, "fx": None, "cfx": "success", "fff": "success", "xxx": "success"}
ANY_FAIL = {"": None, "c": "success", "f": "failure", "x": None, "xx": None, "xxx": "failure"}
ANY_IGNORE = {"f": None, "ff": None, "fff": "failure", "fc": "success", "fxf": "failure"}


@pytest.mark.parametrize(
    ("wait", "on_child_failed", "table"),
    [
        ("all", "fail_parent", ALL_FAIL),
        ("all", "ignore", ALL_IGNORE),
        ("any", "fail_parent", ANY_FAIL),
        ("any", "ignore", ANY_IGNORE),
    ],
)
def test_a_group_resolves_at(wait: str, on_child_failed: str, table: dict[str, str | None]) -> None:
    for ends, outcome in table.items():
        assert resolution(after(wait, on_child_failed, ends)) == outcome, ends


@pytest.mark.parametrize("wait", ["all", "any"])
@pytest.mark.parametrize("on_child_failed", ["fail_parent", "ignore"])
def test_a_group_has_resolved_when_all_have_ended(wait: str, on_child_failed: str) -> None:
    for ends in product("cfx", repeat=TOTAL):
        group = after(wait, on_child_failed, "".join(ends))
        assert resolution(group) in ("success", "failure"), ends
        assert group.open_count == 0
        assert (group.completed, group.failed, group.cancelled) == tuple(map(ends.count, "cfx"))


def test_a_group_that_has_resolved_does_not_resolve_again() -> None:
    for status in ("success", "failure"):
        group = replace(after("all", "fail_parent", "c"), status=status)
        assert resolution(noted(group, FAILED)) is None


def test_nobody_waits_for_a_group_with_wait_none() -> None:
    group = after("none", "fail_parent", "cfx")
    assert group.status == "success"
    assert resolution(group) is None
    assert group.wait_state is None


def test_a_parent_that_ends_by_its_own_fan_out_leaves_the_children_alone() -> None:
    assert new_group(SPAWN, 1).on_parent_closed == "cancel_children"
    ends = replace(SPAWN, wait="none", success=COMPLETED)
    assert new_group(ends, 1).on_parent_closed == "abandon_children"


def test_a_child_ends_once() -> None:
    with pytest.raises(AssertionError):
        noted(after("all", "ignore", "ccc"), COMPLETED)
