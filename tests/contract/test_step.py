"""Section 3: flow_step_continue and flow_start_and_claim."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts, ids


def start(flows: Flows, **options: Any) -> sf.FlowRecord:
    given: dict[str, Any] = {
        "type": flows.type,
        "state": "charging",
        "worker": "w1",
        "lease_ms": 9_000,
    }
    return flows.store.flow_start_and_claim(flows.name("a"), **{**given, **options})


def test_a_step_keeps_the_lease_under_new_tokens(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(state="a", worker="w7")
    clock.advance(100)
    stepped = flows.step(job, "b", lease_ms=5_000)
    assert (stepped.state, stepped.run_state, stepped.logical_state) == ("running", "b", "b")
    assert stepped.lease_token not in (None, job.lease_token)
    assert stepped.fencing_token == job.fencing_token + 1
    assert stepped.lease_owner == "w7"
    assert stepped.lease_deadline_ms == clock.now_ms() + 5_000
    assert stepped.version == job.version + 1
    assert facts(flows.get(job)) == facts(stepped)
    assert flows.claim(limit=10) == []


def test_only_the_new_tokens_settle_after_a_step(flows: Flows) -> None:
    job = flows.leased(state="a")
    stepped = flows.step(job, "b")
    with flows.unchanged(stepped):
        for command in (flows.complete, flows.fail, flows.retry, flows.extend):
            with pytest.raises(sf.StaleLease):
                command(job)
    assert flows.complete(stepped).state == "completed"


def test_several_steps_may_follow_each_other(flows: Flows) -> None:
    job = flows.leased(state="s0")
    first = job.fencing_token
    for number in range(1, 5):
        job = flows.step(job, f"s{number}")
    assert job.fencing_token == first + 4
    assert job.run_state == "s4"
    assert flows.event_names(job) == ["created", "claimed"] + ["step_continued"] * 4


def test_a_step_expects_the_state_it_names(flows: Flows) -> None:
    job = flows.leased(state="a")
    with flows.unchanged(job), pytest.raises(sf.WrongState) as caught:
        flows.step(job, "c", from_state="b")
    assert caught.value.state == "a"
    assert flows.complete(job).state == "completed"


@pytest.mark.parametrize("to_state", ["running", "completed", "failed", "cancelled"])
def test_a_step_never_goes_to_a_reserved_state(flows: Flows, to_state: str) -> None:
    job = flows.leased()
    with flows.unchanged(job), pytest.raises(sf.InvalidArgument):
        flows.step(job, to_state)


def test_a_step_may_set_the_payload(flows: Flows) -> None:
    stepped = flows.step(flows.leased(payload="in"), "next", payload=None)
    assert flows.read(stepped).payload is None
    stepped = flows.step(stepped, "third", payload="new")
    assert flows.read(stepped).payload == "new"


def test_a_stepped_flow_that_expires_is_claimed_in_its_new_state(
    flows: Flows, clock: ManualClock
) -> None:
    stepped = flows.step(flows.leased(state="a"), "b", lease_ms=1_000)
    clock.advance(1_000)
    assert flows.claim(state="a") == []
    (job,) = flows.claim(state="b")
    assert (job.id, job.run_state, job.reclaims) == (stepped.id, "b", 1)


def test_a_stepped_flow_is_retried_in_its_new_state(flows: Flows) -> None:
    stepped = flows.step(flows.leased(state="a"), "b")
    flow = flows.retry(stepped, run_at_ms=0)
    assert (flow.state, flow.attempts) == ("b", 1)


def test_a_step_is_told_in_the_history(flows: Flows) -> None:
    stepped = flows.step(flows.leased(state="a"), "b")
    event = flows.events(stepped)[-1]
    assert (event.name, event.from_state, event.to_state) == ("step_continued", "a", "b")


def test_start_and_claim_makes_a_leased_flow_in_one_write(flows: Flows, clock: ManualClock) -> None:
    job = start(flows, payload="in", priority=1, correlation_id="c", attributes={"a": 0})
    assert (job.state, job.run_state) == ("running", "charging")
    assert job.version == 1
    assert job.lease_owner == "w1"
    assert job.lease_token
    assert job.lease_deadline_ms == clock.now_ms() + 9_000
    assert (job.attempts, job.reclaims, job.priority) == (0, 0, 1)
    assert job.created_at_ms == clock.now_ms()
    assert job.correlation_id == "c"
    assert job.attributes == {"a": 0}
    assert flows.read(job).payload == "in"
    assert len(flows.events(job)) == 1
    assert facts(flows.get(job)) == facts(job)


def test_nobody_else_gets_a_flow_that_was_started_and_claimed(
    flows: Flows, clock: ManualClock
) -> None:
    job = start(flows)
    assert flows.claim(limit=10) == []
    clock.advance(9_000)
    (taken,) = flows.claim()
    assert taken.id == job.id
    assert taken.fencing_token == job.fencing_token + 1
    with pytest.raises(sf.StaleLease):
        flows.complete(job)


def test_the_tokens_of_a_started_flow_settle_it(flows: Flows) -> None:
    assert flows.complete(start(flows), result=1).state == "completed"


def test_a_flow_is_started_in_its_partition(flows: Flows, name: Name) -> None:
    for key in name.partitions():
        assert start(flows, partition_key=key).partition_key == key
    assert flows.store.flow_info(flows.type)["leased"] == 2


def test_an_existing_flow_cannot_be_started(flows: Flows) -> None:
    flow = flows.create()
    with flows.unchanged(flow), pytest.raises(sf.FlowAlreadyExists):
        start(flows)


@pytest.mark.parametrize("state", ["running", "completed", "failed", "cancelled"])
def test_a_flow_cannot_be_started_in_a_reserved_state(flows: Flows, state: str) -> None:
    with pytest.raises(sf.InvalidArgument):
        start(flows, state=state)
    assert flows.store.flow_get(flows.name("a")) is None


def test_a_started_flow_is_retried_like_any_other(flows: Flows) -> None:
    flow = flows.retry(start(flows), run_at_ms=0)
    assert (flow.state, flow.attempts) == ("charging", 1)
    assert ids(flows.claim(state="charging")) == [flow.id]
