"""Section 3: creating flows."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.flow import limits
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts


def test_a_new_flow_has_the_defaults_of_the_contract(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create()
    assert flow.id == flows.name("a")
    assert flow.type == flows.type
    assert flow.state == "queued"
    assert flow.version == 1
    assert flow.priority == 0
    assert flow.attempts == 0
    assert flow.reclaims == 0
    assert flow.created_at_ms == clock.now_ms()
    assert flow.updated_at_ms == clock.now_ms()
    assert flow.next_run_at_ms == clock.now_ms()
    assert (flow.lease_owner, flow.lease_token, flow.lease_deadline_ms) == (None, None, None)
    assert flow.parent_flow_id is None
    assert flow.correlation_id is None
    assert flow.root_flow_id == flow.id
    assert flow.attributes == {}
    assert flow.value_refs == {}


def test_a_created_flow_reads_as_it_was_returned(flows: Flows) -> None:
    flow = flows.create(payload={"amount": 4200}, attributes={"tenant": "t1"}, values={"v": 1})
    assert facts(flows.get(flow)) == facts(flow)


def test_every_creation_argument_is_on_the_record(flows: Flows, name: Name) -> None:
    given: dict[str, Any] = {
        "state": "created",
        "partition_key": name("p"),
        "priority": 2,
        "parent_flow_id": name("parent"),
        "root_flow_id": name("root"),
        "correlation_id": name("order"),
        "attributes": {"tenant": "t1", "seats": 0, "rate": 0.5, "trial": False, "note": None},
        "max_active_ms": 5_000_000,
        "retention_ttl_ms": 60_000,
        "history_max_events": 50,
    }
    flow = flows.create(**given)
    for record in (flow, flows.get(flow)):
        assert {field: getattr(record, field) for field in given} == given


def test_attributes_keep_the_type_of_their_values(flows: Flows) -> None:
    flow = flows.create(attributes={"zero": 0, "no": False, "one": 1.0, "empty": "", "none": None})
    read = flows.get(flow).attributes
    assert {key: type(value) for key, value in read.items()} == {
        "zero": int,
        "no": bool,
        "one": float,
        "empty": str,
        "none": type(None),
    }


def test_a_flow_may_be_created_for_later(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create(run_at_ms=clock.now_ms() + 1_000)
    assert flow.next_run_at_ms == clock.now_ms() + 1_000
    assert flows.claim() == []
    clock.advance(999)
    assert flows.claim() == []
    clock.advance(1)
    assert [job.id for job in flows.claim()] == [flow.id]


@pytest.mark.parametrize("run_at_ms", [0, 1])
def test_a_due_time_in_the_past_is_kept_and_is_due(flows: Flows, run_at_ms: int) -> None:
    flow = flows.create(run_at_ms=run_at_ms)
    assert flow.next_run_at_ms == run_at_ms
    assert [job.id for job in flows.claim()] == [flow.id]


@pytest.mark.parametrize("state", ["running", "completed", "failed", "cancelled"])
def test_a_flow_cannot_start_in_a_reserved_state(flows: Flows, state: str) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.create(state=state)
    assert flows.store.flow_get(flows.name("a")) is None


@pytest.mark.parametrize("state", ["Running", "COMPLETED", "waiting_children", "any thing", "é"])
def test_every_other_string_is_a_state(flows: Flows, state: str) -> None:
    flow = flows.create(state=state)
    assert flow.state == state
    assert [job.run_state for job in flows.claim(state=state)] == [state]


def test_creating_a_flow_again_is_refused(flows: Flows, name: Name) -> None:
    flow = flows.create(payload=1, partition_key=name("p"))
    with flows.unchanged(flow), pytest.raises(sf.FlowAlreadyExists) as caught:
        flows.create(payload=1, partition_key=name("p"))
    assert caught.value.flow_id == flow.id
    assert caught.value.partition_key == name("p")
    assert caught.value.applied == "no"


def test_an_ended_flow_keeps_its_id_taken(flows: Flows) -> None:
    flow = flows.ended()
    with flows.unchanged(flow), pytest.raises(sf.FlowAlreadyExists):
        flows.create()


def test_another_type_does_not_free_an_id(flows: Flows, name: Name) -> None:
    flow = flows.create()
    with flows.unchanged(flow), pytest.raises(sf.FlowAlreadyExists):
        flows.create(type=name("other-type"))


def test_more_attributes_than_the_limit_are_refused(flows: Flows) -> None:
    most = {f"k{number}": number for number in range(limits.ATTRIBUTES_MAX)}
    assert flows.create("most", attributes=most).attributes == most
    with pytest.raises(sf.InvalidArgument):
        flows.create("over", attributes={**most, "over": 0})
    assert flows.store.flow_get(flows.name("over")) is None


def test_an_attribute_longer_than_the_limit_is_refused(flows: Flows) -> None:
    longest = "é" * (limits.ATTRIBUTE_BYTES_MAX // 2)
    assert flows.create("longest", attributes={"note": longest}).attributes == {"note": longest}
    with pytest.raises(sf.InvalidArgument):
        flows.create("over", attributes={"note": longest + "x"})


@pytest.mark.parametrize(
    "attributes", [{"a": []}, {"a": {}}, {"a": b"x"}, {1: "a"}, ["a"], "a", 1, {"a": object()}]
)
def test_attributes_are_a_flat_dict_of_plain_facts(flows: Flows, attributes: Any) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.create(attributes=attributes)
    assert flows.store.flow_get(flows.name("a")) is None


def test_only_the_newest_history_events_are_kept_when_a_bound_is_given(flows: Flows) -> None:
    flow = flows.create(history_max_events=3)
    for number in range(5):
        flow = flows.move(flow, f"s{number}")
    assert flow.version == 6
    assert [event.version for event in flows.events(flow)] == [4, 5, 6]
