"""Section 6: what the end of a flow means for its family: cancels go down, notices go up."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import DAY_MS
from support.fanouts import ACTIVE_MS, ENDS, PLACES, Family, Stage, await_state
from support.processes import eventually

each_place = pytest.mark.parametrize("place", PLACES)
each_end = pytest.mark.parametrize("how", list(ENDS))


def as_spec(record: sf.FlowRecord) -> dict[str, Any]:
    """Return what `Family.end` needs to know of a flow."""
    return {"id": record.id, "type": record.type, "partition_key": record.partition_key}


def wait_none(family: Family, specs: list[dict[str, Any]], **options: Any) -> None:
    """Spawn children of the parent that stays claimable: due, in its old state."""
    family.spawn(specs, family.parent, wait="none", **options)


class Tree:
    """Three generations: a parent, two children, and two children of each of those."""

    def __init__(self, stage: Stage, place: str, **options: Any) -> None:
        self.family = Family(stage, place)
        self.children = self.family.specs(2)
        self.family.spawn(self.children, **options)
        self.grandchildren = []
        for number, child in enumerate(self.children):
            specs = self.family.specs(2, f"g{number}-")
            self.family.spawn(specs, self.family.get(child), **options)
            self.grandchildren.append(specs)

    @property
    def all_grandchildren(self) -> list[dict[str, Any]]:
        return [spec for specs in self.grandchildren for spec in specs]


@each_place
@each_end
def test_the_end_of_a_parent_cancels_its_open_children(stage: Stage, how: str, place: str) -> None:
    limits: dict[str, Any] = {"max_active_ms": ACTIVE_MS} if how == "time out" else {}
    family = Family(stage, place, **limits)
    family.flows.release(family.job)
    stage.step()
    specs = family.specs(4)
    wait_none(family, specs)
    others = family.specs(2, "o")
    wait_none(family, others, group_id="second")
    kept = family.specs(2, "k")
    wait_none(family, kept, group_id="third", on_parent_closed="abandon_children")
    family.end(specs[0], "complete")
    family.end(specs[1], "fail")
    family.await_counters(1, 1, 0)
    family.end(as_spec(family.parent), how)
    assert family.parent.state == ENDS[how]
    family.await_states(specs, "completed", "failed", "cancelled", "cancelled")
    family.await_states(others, "cancelled", "cancelled")
    family.await_counters(1, 1, 2)
    family.await_counters(0, 0, 2, group_id="second")
    assert family.states(kept) == ["queued", "queued"]
    for spec in kept:
        family.end(spec, "complete")
    family.await_counters(2, 0, 0, group_id="third")
    assert family.parent.state == ENDS[how]


@each_place
@pytest.mark.parametrize("how", ["cancel", "time out"])
def test_a_parent_that_ends_while_it_waits_takes_its_children_along(
    stage: Stage, how: str, place: str
) -> None:
    limits: dict[str, Any] = {"max_active_ms": ACTIVE_MS} if how == "time out" else {}
    family = Family(stage, place, **limits)
    specs = family.specs(3)
    family.spawn(specs)
    family.end(specs[0], "complete")
    family.await_counters(1, 0, 0)
    family.end(as_spec(family.parent), how)
    family.await_states(specs, "completed", "cancelled", "cancelled")
    parent = family.await_counters(1, 0, 2)
    # It has closed: how the group came out is told, and it stays where it is.
    assert (parent.state, family.group().status) == (ENDS[how], "failure")
    assert family.flows.event_names(parent).count("children_cancelled") == 1
    assert family.flows.claim(type=parent.type) == []


@each_place
def test_abandoned_children_go_on_after_their_parent_was_cancelled(
    stage: Stage, place: str
) -> None:
    family = Family(stage, place)
    specs = family.specs(3)
    family.spawn(specs, on_parent_closed="abandon_children", on_child_failed="ignore")
    family.end(as_spec(family.parent), "cancel")
    assert family.states(specs) == ["queued"] * 3
    for spec, how in zip(specs, ("complete", "fail", "complete"), strict=True):
        family.end(spec, how)
    parent = family.await_counters(2, 1, 0)
    assert (parent.state, family.group().status) == ("cancelled", "success")
    assert "children_cancelled" not in family.flows.event_names(parent)


@each_place
@pytest.mark.parametrize("by", ["parent", "group"])
def test_the_holder_of_a_child_that_its_family_cancels_is_fenced_off(
    stage: Stage, by: str, place: str
) -> None:
    family = Family(stage, place)
    held, sister = family.specs(2)
    family.spawn([held, sister])
    job = family.claim(held)
    stage.step()
    family.end(as_spec(family.parent) if by == "parent" else sister, "cancel")
    family.await_states([held], "cancelled")
    child = family.get(held)
    assert (child.lease_token, child.lease_owner, child.next_run_at_ms) == (None, None, None)
    assert child.fencing_token == job.fencing_token + 1
    flows = family.flows
    with flows.unchanged(child):
        for command in (flows.complete, flows.fail, flows.retry, flows.extend, flows.release):
            with pytest.raises(sf.StaleLease):
                command(job)
        with pytest.raises(sf.StaleLease):
            flows.step(job, "next")
    event = flows.events(child)[-1]
    assert (event.name, event.from_state, event.to_state) == ("cancelled", "queued", "cancelled")
    assert event.worker == "w1"
    family.await_counters(0, 0, 2)


@each_place
def test_a_child_in_any_condition_is_cancelled_with_its_family(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(4)
    specs[1]["run_at_ms"] = sf.NEVER
    specs[2]["run_at_ms"] = stage.flows.clock.now_ms() + DAY_MS
    family.spawn(specs)
    (late,) = family.flows.claim(type=specs[3]["type"], lease_ms=1)
    family.flows.clock.advance(1)
    stage.step()
    family.end(as_spec(family.parent), "cancel")
    family.await_states(specs, *["cancelled"] * 4)
    assert family.get(specs[3]).fencing_token == late.fencing_token + 1
    for spec in specs:
        assert family.flows.claim(type=spec["type"]) == []
        assert family.flows.reclaim(type=spec["type"]) == []


# Three generations


@each_place
def test_cancels_go_down_to_the_last_generation(stage: Stage, place: str) -> None:
    tree = Tree(stage, place)
    family = tree.family
    family.end(tree.grandchildren[0][0], "complete")
    eventually(lambda: counters(family, tree.children[0]) == (1, 0, 0), "its parent hears of it")
    family.end(as_spec(family.parent), "cancel")
    family.await_states(tree.children, "cancelled", "cancelled")
    family.await_states(tree.all_grandchildren, "completed", *["cancelled"] * 3)
    family.await_counters(0, 0, 2)
    eventually(lambda: counters(family, tree.children[0]) == (1, 0, 1), "the elder's children")
    eventually(lambda: counters(family, tree.children[1]) == (0, 0, 2), "the younger's children")
    for child in tree.children:
        assert family.get(child).child_groups["fanout"].status == "failure"
    assert family.parent.state == "cancelled"


@each_place
@pytest.mark.parametrize("how", ["fail", "exhaust", "time out"])
def test_a_failure_goes_up_to_the_root_and_down_again(stage: Stage, how: str, place: str) -> None:
    family = Family(stage, place)
    children = family.specs(2)
    options: dict[str, Any] = {"success": "completed", "failure": "failed"}
    family.spawn(children, **options)
    ours, theirs = family.specs(2, "a"), family.specs(2, "b")
    if how == "time out":
        ours[0]["max_active_ms"] = ACTIVE_MS
    family.spawn(ours, family.get(children[0]), **options)
    family.spawn(theirs, family.get(children[1]), **options)
    family.end(ours[0], how)
    await_state(family.flows, family.job, "failed")
    family.await_states(children, "failed", "cancelled")
    family.await_states([*ours, *theirs], "failed", *["cancelled"] * 3)
    family.await_counters(0, 1, 1)
    eventually(lambda: counters(family, children[0]) == (0, 1, 1), "the elder's children")
    eventually(lambda: counters(family, children[1]) == (0, 0, 2), "the younger's children")


@each_place
def test_notices_go_up_to_the_root(stage: Stage, place: str) -> None:
    tree = Tree(stage, place, success="completed", failure="failed")
    family = tree.family
    for child, specs in zip(tree.children, tree.grandchildren, strict=True):
        for spec in specs:
            assert family.get(child).state == "waiting_children"
            family.end(spec, "complete")
        family.await_states([child], "completed")
    parent = await_state(family.flows, family.job, "completed")
    group = parent.child_groups["fanout"]
    assert (group.status, group.completed) == ("success", 2)
    for child in tree.children:
        group = family.get(child).child_groups["fanout"]
        assert (group.status, group.completed) == ("success", 2)


@each_place
def test_whom_a_cancelled_child_has_abandoned_goes_on(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    (child,) = family.specs(1)
    family.spawn([child])
    specs = family.specs(2, "g")
    family.spawn(specs, family.get(child), on_parent_closed="abandon_children")
    family.end(as_spec(family.parent), "cancel")
    family.await_states([child], "cancelled")
    assert family.states(specs) == ["queued", "queued"]
    for spec in specs:
        family.end(spec, "complete")
    eventually(lambda: counters(family, child) == (2, 0, 0), "its parent hears of it")
    assert family.get(child).state == "cancelled"
    assert family.counters() == (0, 0, 1)


@each_place
def test_whom_a_cancelled_parent_has_abandoned_keeps_its_own_children(
    stage: Stage, place: str
) -> None:
    tree = Tree(stage, place, on_parent_closed="abandon_children")
    family = tree.family
    family.end(as_spec(family.parent), "cancel")
    assert family.states(tree.children) == ["waiting_children"] * 2
    for specs in tree.grandchildren:
        for spec in specs:
            family.end(spec, "complete")
    family.await_states(tree.children, "won", "won")
    for child in tree.children:
        family.end(child, "complete")
    assert family.await_counters(2, 0, 0).state == "cancelled"


@each_place
def test_a_child_that_goes_on_by_itself_still_tells_its_parent_of_its_end(
    stage: Stage, place: str
) -> None:
    family = Family(stage, place)
    (spec,) = family.specs(1)
    family.spawn([spec])
    child = family.get(spec)
    for state in ("second", "third"):
        child = family.flows.move(child, state)
        stage.step()
        assert family.parent.state == "waiting_children"
    job = family.claim(spec)
    stage.step()
    stepped = family.flows.step(job, "fourth")
    stage.step()
    family.flows.retry(stepped, run_at_ms=0)
    stage.step()
    assert family.counters() == (0, 0, 0)
    family.end(spec, "complete")
    await_state(family.flows, family.job, "won")
    assert family.counters() == (1, 0, 0)


def counters(family: Family, spec: dict[str, Any]) -> tuple[int, int, int]:
    """Return what the group of a child that is a parent has counted."""
    group = family.get(spec).child_groups["fanout"]
    return group.completed, group.failed, group.cancelled
