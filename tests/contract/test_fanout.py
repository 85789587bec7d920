"""Section 6: what a fan-out makes of a flow and of its children."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import START_MS, facts, ids
from support.fanouts import ACTIVE_MS, PLACES, Family, Stage, await_state

each_place = pytest.mark.parametrize("place", PLACES)
WAITS = ["all", "any", "none"]


@each_place
@pytest.mark.parametrize("wait", WAITS)
def test_children_are_what_their_specifications_say(stage: Stage, wait: str, place: str) -> None:
    family = Family(stage, place, correlation_id="order 7")
    now_ms = stage.flows.clock.now_ms()
    given: dict[str, Any] = {
        "state": "first",
        "payload": {"n": [1, None]},
        "priority": 2,
        "run_at_ms": now_ms + ACTIVE_MS,
        "attributes": {"colour": "red"},
        "values": {"v": "named"},
        "max_active_ms": 10**9,
        "retention_ttl_ms": 10**8,
        "history_max_events": 7,
    }
    specs = family.specs(4, **given)
    family.spawn(specs, wait=wait)
    for spec in specs:
        child = family.flows.read(family.get(spec))
        assert (child.id, child.type) == (spec["id"], spec["type"])
        assert child.partition_key == spec["partition_key"]
        assert (child.state, child.version, child.fencing_token) == ("first", 1, 0)
        assert (child.payload, child.values) == ({"n": [1, None]}, {"v": "named"})
        assert (child.priority, child.attributes) == (2, {"colour": "red"})
        assert child.next_run_at_ms == now_ms + ACTIVE_MS
        assert (child.max_active_ms, child.retention_ttl_ms) == (10**9, 10**8)
        assert child.history_max_events == 7
        assert child.created_at_ms == now_ms
        assert child.child_groups == {}
        assert family.flows.event_names(child) == ["created"]


@each_place
def test_children_inherit_from_their_parent(stage: Stage, place: str) -> None:
    family = Family(stage, place, correlation_id="order 7", root_flow_id="the root")
    specs = family.specs(4)
    specs[2]["correlation_id"] = specs[3]["correlation_id"] = "its own"
    family.spawn(specs)
    for number, spec in enumerate(specs):
        child = family.get(spec)
        assert child.parent_flow_id == family.job.id
        assert child.parent_partition_key == family.home
        assert child.root_flow_id == "the root"
        assert child.correlation_id == ("its own" if number > 1 else "order 7")
        assert child.attributes == {}


def test_a_child_without_a_partition_lives_in_its_parents(stage: Stage) -> None:
    family = Family(stage)
    (spec,) = family.specs(1)
    family.spawn([{**spec, "partition_key": None}])
    assert family.get({**spec, "partition_key": family.home}).parent_flow_id == family.job.id


def test_without_any_partition_parent_and_children_live_in_automatic_ones(stage: Stage) -> None:
    parent = stage.flows.leased("parent")
    names = [stage.flows.name(number) for number in range(9)]
    children = [{"id": name, "type": stage.flows.name("child")} for name in names]
    family = Family(stage, name="other")
    family.spawn(children, parent)
    found = [stage.store.flow_get(name) for name in names]
    assert [child and child.partition_key for child in found] == [None] * 9
    assert [child and child.parent_partition_key for child in found] == [None] * 9
    for name in names:
        (job,) = stage.flows.claim(type=stage.flows.name("child"))
        stage.flows.complete(job)
        stage.step()
        assert job.id in names, name
    assert await_state(stage.flows, parent, "won").child_groups["fanout"].completed == 9


@each_place
@pytest.mark.parametrize("wait", ["all", "any"])
def test_the_parent_waits_without_a_lease(stage: Stage, wait: str, place: str) -> None:
    family = Family(stage, place)
    before = family.parent
    record = family.spawn(
        wait=wait,
        wait_state="for mail",
        group_id="mail",
        on_child_failed="ignore",
        on_parent_closed="abandon_children",
    )
    assert facts(record) == facts(family.parent)
    assert (record.state, record.run_state, record.version) == ("for mail", None, 3)
    assert (record.lease_token, record.lease_owner, record.lease_deadline_ms) == (None, None, None)
    assert (record.fencing_token, record.next_run_at_ms) == (before.fencing_token, None)
    (group,) = record.child_groups.values()
    assert list(record.child_groups) == ["mail"]
    assert (group.wait, group.status, group.total) == (wait, "open", 3)
    assert (group.completed, group.failed, group.cancelled) == (0, 0, 0)
    assert family.flows.claim(type=record.type) == []
    assert family.flows.claim(type=record.type, state="for mail") == []
    with pytest.raises(sf.StaleLease):
        family.flows.complete(family.job)
    with pytest.raises(sf.StaleLease):
        family.flows.extend(family.job)
    event = family.flows.events(record)[-1]
    assert (event.name, event.worker) == ("children_spawned", "w1")
    assert (event.from_state, event.to_state) == ("queued", "for mail")
    assert event.details == {"group_id": "mail", "total": 3}
    info = stage.store.flow_info(record.type)
    assert info["states"]["for mail"]["waiting"] == 1


def test_a_flow_that_nobody_holds_may_fan_out(stage: Stage) -> None:
    family = Family(stage)
    parent = stage.flows.create("free", partition_key=family.away, run_at_ms=sf.NEVER)
    waiting = family.spawn(parent=parent, from_state="queued", fencing_token=0)
    assert (waiting.state, waiting.fencing_token, waiting.version) == ("waiting_children", 0, 2)
    for spec in family.specs():
        family.end(spec, "complete")
    assert await_state(stage.flows, waiting, "won").next_run_at_ms is not None


@each_place
def test_with_wait_none_the_holder_goes_on(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(3)
    record = family.spawn(specs, wait="none", on_parent_closed="abandon_children")
    assert (record.state, record.run_state) == ("running", "queued")
    assert record.lease_token == family.job.lease_token
    assert record.fencing_token == family.job.fencing_token
    family.end(specs[0], "fail")
    family.await_counters(0, 1, 0)
    assert family.parent.state == "running"
    assert family.flows.complete(family.job).state == "completed"
    stage.step()
    for spec in specs[1:]:
        family.end(spec, "complete")
    family.await_counters(2, 1, 0)
    assert family.parent.state == "completed"
    assert "group_resolved" not in family.flows.event_names(family.job)


@each_place
def test_with_wait_none_the_parent_may_move_at_once(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    record = family.spawn(wait="none", success="next")
    assert (record.state, record.lease_token) == ("next", None)
    assert record.next_run_at_ms == record.updated_at_ms
    (again,) = family.flows.claim(type=record.type)
    assert (again.run_state, again.fencing_token) == ("next", 2)


@each_place
def test_with_wait_none_the_parent_may_end_at_once_and_its_children_live(
    stage: Stage, place: str
) -> None:
    family = Family(stage, place)
    specs = family.specs(2)
    record = family.spawn(specs, wait="none", success="completed")
    assert (record.state, record.next_run_at_ms) == ("completed", None)
    assert family.states(specs) == ["queued"] * 2
    for spec in specs:
        family.end(spec, "complete")
    assert family.await_counters(2, 0, 0).state == "completed"


@each_place
@pytest.mark.parametrize("wait", WAITS)
def test_children_can_be_claimed_at_once(stage: Stage, wait: str, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(4, type=stage.flows.name("child"))
    future = family.flows.wait(type=stage.flows.name("child"), limit=10)
    stage.store.flow_spawn_children(
        family.job.id,
        specs,
        partition_key=family.home,
        lease_token=family.job.lease_token,
        fencing_token=family.job.fencing_token,
        wait=wait,  # type: ignore[arg-type]
        success="won",
        failure="lost",
    )
    jobs = future.get(timeout=30)
    assert jobs
    jobs += family.flows.claim(type=stage.flows.name("child"), limit=10)
    assert sorted(ids(jobs)) == [spec["id"] for spec in specs]


@each_place
def test_children_are_found_by_parent_root_and_correlation(stage: Stage, place: str) -> None:
    family = Family(stage, place, correlation_id=stage.flows.name("order"))
    specs = family.specs(3)
    family.spawn(specs)
    grandchildren = family.specs(2, "g")
    family.spawn(grandchildren, family.get(specs[0]))
    store = stage.store
    mine = [spec["id"] for spec in specs]
    theirs = [spec["id"] for spec in grandchildren]
    assert sorted(ids(store.flow_by_parent(family.job.id))) == mine
    assert (
        sorted(ids(store.flow_by_parent(family.job.id, parent_partition_key=family.home))) == mine
    )
    assert store.flow_by_parent(family.job.id, parent_partition_key=None) == []
    assert sorted(ids(store.flow_by_parent(specs[0]["id"]))) == theirs
    assert sorted(set(ids(store.flow_by_root(family.job.id))) - {family.job.id}) == mine + theirs
    assert sorted(ids(store.flow_by_correlation(stage.flows.name("order")))) == sorted(
        [family.job.id, *mine, *theirs]
    )
    assert {family.get(spec).root_flow_id for spec in grandchildren} == {family.job.id}


@each_place
def test_parents_with_one_id_in_two_partitions_do_not_mix(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    mine, theirs = family.specs(2, "m"), family.specs(2, "t")
    twin = stage.flows.leased("parent", partition_key=family.away, type=stage.flows.name("twin"))
    stage.step()
    family.spawn(mine, group_id="same")
    family.spawn(theirs, twin, group_id="same")
    family.end(mine[0], "fail")
    family.await_counters(0, 1, 1, group_id="same")
    other = stage.flows.get(twin)
    group = other.child_groups["same"]
    assert (other.state, group.status, group.total) == ("waiting_children", "open", 2)
    assert (group.completed, group.failed, group.cancelled) == (0, 0, 0)
    assert family.states(theirs) == ["queued", "queued"]
    assert family.parent.state == "lost"
    stage.flows.cancel(other)
    stage.step()
    family.await_states(theirs, "cancelled", "cancelled")
    assert family.counters("same") == (0, 1, 1)


@each_place
def test_a_child_may_have_its_parents_id_in_another_partition(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    (spec,) = family.specs(1)
    namesake = {**spec, "id": family.job.id, "partition_key": family.away}
    family.spawn([namesake])
    child = family.get(namesake)
    assert (child.parent_flow_id, child.parent_partition_key) == (child.id, family.home)
    family.end(namesake, "complete")
    assert await_state(stage.flows, family.job, "won").partition_key == family.home


@each_place
def test_a_flow_that_only_names_a_parent_belongs_to_no_group(stage: Stage, place: str) -> None:
    family = Family(stage, place)
    specs = family.specs(1)
    other = stage.flows.create("named", parent_flow_id=family.job.id, partition_key=family.keys[0])
    waiting = family.spawn(specs)
    stage.flows.cancel(other)
    stage.step()
    stage.flows.cancel(waiting)
    stage.step()
    family.await_states(specs, "cancelled")
    family.await_counters(0, 0, 1)
    assert stage.flows.get(other).version == 2


def test_children_of_many_groups_are_counted_apart(stage: Stage) -> None:
    family = Family(stage)
    groups = [family.specs(2, f"g{number}-") for number in range(8)]
    for number, specs in enumerate(groups):
        family.spawn(specs, family.parent, group_id=str(number), wait="none")
    hows = ["complete", "fail", "cancel", "exhaust"]
    for number, specs in enumerate(groups):
        family.end(specs[number % 2], hows[number % 4])
    for number in range(8):
        counters = {0: (1, 0, 0), 1: (0, 1, 0), 2: (0, 0, 1), 3: (0, 1, 0)}[number % 4]
        family.await_counters(*counters, group_id=str(number))
    assert {group.status for group in family.parent.child_groups.values()} == {"success"}


def test_the_callers_time_is_that_of_parent_and_children(stage: Stage) -> None:
    family = Family(stage)
    now_ms = max(stage.flows.clock.now_ms(), START_MS) + 1_000
    specs = family.specs(4)
    record = family.spawn(specs, now_ms=now_ms)
    assert record.updated_at_ms == now_ms
    for spec in specs:
        child = family.get(spec)
        assert (child.created_at_ms, child.next_run_at_ms) == (now_ms, now_ms)
