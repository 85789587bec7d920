"""Section 6: when a group resolves, what its counters say, and where its parent goes then."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import shardflow as sf
from support.contract import ids
from support.fanouts import ACTIVE_MS, ENDS, PLACES, TERMINAL, Family, Stage, await_state

MATRIX: list[tuple[str, str, list[str], int, str]] = [
    ("all", "fail_parent", ["complete", "complete", "complete"], 3, "success"),
    ("all", "fail_parent", ["fail"], 1, "failure"),
    ("all", "fail_parent", ["complete", "fail"], 2, "failure"),
    ("all", "fail_parent", ["cancel"], 1, "failure"),
    ("all", "fail_parent", ["exhaust"], 1, "failure"),
    ("all", "fail_parent", ["complete", "complete", "time out"], 3, "failure"),
    ("all", "ignore", ["complete", "complete", "complete"], 3, "success"),
    ("all", "ignore", ["fail", "complete", "cancel"], 3, "success"),
    ("all", "ignore", ["cancel", "exhaust", "time out"], 3, "success"),
    ("any", "fail_parent", ["complete"], 1, "success"),
    ("any", "fail_parent", ["cancel", "complete"], 2, "success"),
    ("any", "fail_parent", ["fail"], 1, "failure"),
    ("any", "fail_parent", ["exhaust"], 1, "failure"),
    ("any", "fail_parent", ["cancel", "time out"], 2, "failure"),
    ("any", "fail_parent", ["cancel", "cancel", "cancel"], 3, "failure"),
    ("any", "ignore", ["complete"], 1, "success"),
    ("any", "ignore", ["fail", "complete"], 2, "success"),
    ("any", "ignore", ["exhaust", "cancel", "complete"], 3, "success"),
    ("any", "ignore", ["fail", "time out", "cancel"], 3, "failure"),
]
"""wait, on_child_failed, how the first children end, after how many it resolves, and to what."""

each_row = pytest.mark.parametrize(
    ("wait", "on_child_failed", "hows", "at", "status"),
    MATRIX,
    ids=[f"{row[0]}-{row[1]}-{'+'.join(row[2])}" for row in MATRIX],
)
each_place = pytest.mark.parametrize("place", PLACES)
each_policy = pytest.mark.parametrize(
    ("place", "on_parent_closed"),
    [*((place, "cancel_children") for place in PLACES), ("both", "abandon_children")],
)


def counted(hows: list[str]) -> list[int]:
    """Return how many children have completed, failed and been cancelled."""
    ends = Counter(ENDS[how] for how in hows)
    return [ends[end] for end in TERMINAL]


@each_row
@each_policy
def test_a_group_resolves_as_its_children_end(
    stage: Stage,
    wait: str,
    on_child_failed: str,
    hows: list[str],
    at: int,
    status: str,
    place: str,
    on_parent_closed: str,
) -> None:
    family = Family(stage, place)
    specs = family.specs(3)
    for spec, how in zip(specs, hows, strict=False):
        if how == "time out":
            spec["max_active_ms"] = ACTIVE_MS
    waiting = family.spawn(
        specs, wait=wait, on_child_failed=on_child_failed, on_parent_closed=on_parent_closed
    )
    assert (waiting.state, family.group().status) == ("waiting_children", "open")
    for number, how in enumerate(hows[: at - 1], 1):
        family.end(specs[number - 1], how)
        parent = family.await_counters(*counted(hows[:number]))
        assert (parent.state, family.group().status) == ("waiting_children", "open")
    family.end(specs[at - 1], hows[at - 1])
    parent = await_state(family.flows, waiting, "won" if status == "success" else "lost")
    assert (parent.next_run_at_ms, parent.lease_token) == (parent.updated_at_ms, None)
    assert family.group().status == status
    check_the_rest(family, specs, hows, on_parent_closed)
    names = family.flows.event_names(parent)
    assert names.count("group_resolved") == 1


def check_the_rest(
    family: Family, specs: list[dict[str, Any]], hows: list[str], on_parent_closed: str
) -> None:
    """Check what becomes of the children that a resolved group does not need any more."""
    rest = specs[len(hows) :]
    if on_parent_closed == "cancel_children":
        family.await_states(rest, *["cancelled"] * len(rest))
        family.await_counters(*counted([*hows, *["cancel"] * len(rest)]))
        assert all(family.flows.claim(type=child["type"]) == [] for child in rest)
        return
    assert family.states(rest) == ["queued"] * len(rest)
    before = family.group().status, family.parent.state
    for child in rest:
        family.end(child, "complete")
    family.await_counters(*counted([*hows, *["complete"] * len(rest)]))
    assert (family.group().status, family.parent.state) == before


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_a_resolved_parent_may_end_by_that(stage: Stage, outcome: str, end: str) -> None:
    family = Family(stage)
    specs = family.specs(2)
    targets: dict[str, Any] = {outcome: end}
    family.spawn(specs, **targets)
    others = family.specs(2, "o")
    waiting = family.spawn(others, family.parent, group_id="second")
    assert waiting.state == "waiting_children"
    if outcome == "failure":
        family.end(specs[0], "fail")
    else:
        for spec in specs:
            family.end(spec, "complete")
    parent = await_state(family.flows, waiting, end)
    assert (parent.next_run_at_ms, parent.child_groups["fanout"].status) == (None, outcome)
    # It has closed: the children of its other groups go as well.
    family.await_states(others, "cancelled", "cancelled")
    family.await_counters(0, 0, 2, group_id="second")
    assert family.flows.claim(type=parent.type) == []


@each_place
@pytest.mark.parametrize("status", ["success", "failure"])
def test_a_parent_that_has_gone_elsewhere_stays_there(
    stage: Stage, status: str, place: str
) -> None:
    family = Family(stage, place)
    specs = family.specs(2)
    waiting = family.spawn(specs)
    moved = family.flows.move(waiting, "elsewhere", run_at_ms=sf.NEVER)
    stage.step()
    for spec in specs[: 1 if status == "failure" else 2]:
        family.end(spec, "fail" if status == "failure" else "complete")
    family.await_counters(*((0, 1, 1) if status == "failure" else (2, 0, 0)))
    parent = family.parent
    assert (parent.state, parent.next_run_at_ms) == (moved.state, moved.next_run_at_ms)
    assert parent.child_groups["fanout"].status == status
    (event,) = family.flows.events(parent, event="group_resolved")
    assert event.details["status"] == status
    assert event.from_state == event.to_state == "elsewhere"


@each_place
def test_a_parent_that_is_at_work_again_keeps_its_lease(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    (spec,) = family.specs(1)
    waiting = family.spawn([spec])
    moved = family.flows.move(waiting, "elsewhere")
    stage.step()
    job = family.flows.take(moved)
    stage.step()
    family.end(spec, "fail")
    family.await_counters(0, 1, 0)
    parent = family.parent
    assert (parent.lease_token, parent.fencing_token) == (job.lease_token, job.fencing_token)
    assert family.flows.complete(job).child_groups["fanout"].status == "failure"


@each_place
@pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
def test_a_parent_that_has_ended_is_not_revived(stage: Stage, end: str, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(2)
    family.spawn(specs, on_parent_closed="abandon_children")
    moved = family.flows.move(family.parent, "elsewhere")
    stage.step()
    family.end({"id": moved.id, "type": moved.type, "partition_key": moved.partition_key}, end)
    for spec in specs:
        family.end(spec, "complete")
    family.await_counters(2, 0, 0)
    parent = family.parent
    assert (parent.state, parent.next_run_at_ms) == (ENDS[end], None)
    assert parent.child_groups["fanout"].status == "success"
    assert family.flows.claim(type=parent.type) == []


@each_place
def test_a_resolved_parent_is_due_now_and_goes_on_from_there(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    (spec,) = family.specs(1)
    family.spawn([spec], success="charged")
    assert family.flows.claim(type=family.job.type) == []
    family.end(spec, "complete")
    parent = await_state(family.flows, family.job, "charged")
    job = family.flows.take(parent)
    assert (job.attempts, job.reclaims, job.fencing_token) == (0, 0, family.job.fencing_token + 1)
    assert family.flows.complete(job).state == "completed"


@pytest.mark.parametrize("filters", [{}, {"state": "charged"}, {"state": ["other", "charged"]}])
@pytest.mark.parametrize("in_partition", [False, True])
def test_a_claim_that_waits_for_the_parent_is_woken(
    stage: Stage, filters: dict[str, Any], in_partition: bool
) -> None:
    family = Family(stage)
    first, second = family.specs(2)
    family.spawn([first, second], success="charged")
    family.end(first, "complete")
    where = {"partition_key": family.home} if in_partition else {}
    future = family.flows.wait(type=family.job.type, **filters, **where)
    family.flows.complete(family.claim(second))
    (parent,) = future.get(timeout=30)
    assert (parent.id, parent.run_state) == (family.job.id, "charged")


@each_place
def test_several_groups_of_a_parent_resolve_each_by_itself(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    groups = {group_id: family.specs(2, group_id) for group_id in ("x", "y", "z")}
    family.spawn(groups["x"], group_id="x", wait_state="for-x", success="after-x")
    for group_id in ("y", "z"):
        state = f"for-{group_id}"
        options = {"wait_state": state, "success": f"after-{group_id}"}
        waiting = family.spawn(groups[group_id], family.parent, group_id=group_id, **options)
        assert waiting.state == state
    # It waits for z by now: the others only leave their outcome.
    for spec in groups["x"]:
        family.end(spec, "complete")
    family.await_counters(2, 0, 0, group_id="x")
    family.end(groups["y"][0], "fail")
    family.await_counters(0, 1, 1, group_id="y")
    parent = family.parent
    assert parent.state == "for-z"
    statuses = {group_id: group.status for group_id, group in parent.child_groups.items()}
    assert statuses == {"x": "success", "y": "failure", "z": "open"}
    for spec in groups["z"]:
        family.end(spec, "complete")
    assert await_state(family.flows, parent, "after-z").child_groups["z"].status == "success"
    resolved = family.flows.events(parent, event="group_resolved")
    assert [event.details["group_id"] for event in resolved] == ["x", "y", "z"]


@each_place
def test_of_groups_with_one_wait_state_the_first_moves_the_parent(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    (first,), (second,) = family.specs(1, "x"), family.specs(1, "y")
    family.spawn([first], group_id="x", success="after-x")
    family.spawn([second], family.parent, group_id="y", success="after-y")
    family.end(second, "complete")
    await_state(family.flows, family.job, "after-y")
    family.end(first, "complete")
    family.await_counters(1, 0, 0, group_id="x")
    assert family.parent.state == "after-y"


def test_the_history_tells_of_each_child_and_of_the_resolution(stage: Stage) -> None:
    family = Family(stage)
    specs = family.specs(4)
    family.spawn(specs, on_child_failed="ignore", wait="any")
    # One after the other, so that their order is certain; the last one is cancelled for it.
    for spec, how, counters in (
        (specs[0], "fail", (0, 1, 0)),
        (specs[1], "cancel", (0, 1, 1)),
        (specs[2], "complete", (1, 1, 2)),
    ):
        family.end(spec, how)
        family.await_counters(*counters)
    events = family.flows.events(family.job)
    assert sorted(event.name for event in events[2:]) == sorted(
        [
            "children_spawned",
            "child_failed",
            "child_cancelled",
            "child_completed",
            "group_resolved",
            "children_cancelled",
            "child_cancelled",
        ]
    )
    told = [event.details for event in events if event.name.startswith("child_")]
    assert [details["child_id"] for details in told] == [spec["id"] for spec in specs]
    assert [details["child_partition_key"] for details in told] == [
        spec["partition_key"] for spec in specs
    ]
    by_name = {event.name: event for event in events}
    assert by_name["children_spawned"].details == {"group_id": "fanout", "total": 4}
    resolved = by_name["group_resolved"]
    assert (resolved.from_state, resolved.to_state) == ("waiting_children", "won")
    assert resolved.details == {"group_id": "fanout", "status": "success", "moved_to": "won"}
    assert {event.details["group_id"] for event in events[2:]} == {"fanout"}
    versions = [event.version for event in events]
    assert versions == list(range(1, len(events) + 1))
    found = family.flows.store.flow_by_parent(family.job.id, state="completed")
    assert ids(found) == [specs[2]["id"]]
