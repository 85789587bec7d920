"""Section 3: flow_transition."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts, ids


def test_a_leased_flow_moves_and_gives_its_lease_up(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(state="created")
    clock.advance(40)
    moved = flows.move(job, "charged")
    assert (moved.state, moved.run_state, moved.logical_state) == ("charged", None, "charged")
    assert (moved.lease_owner, moved.lease_token, moved.lease_deadline_ms) == (None, None, None)
    assert moved.version == job.version + 1
    assert moved.fencing_token == job.fencing_token
    assert moved.next_run_at_ms == clock.now_ms()
    assert facts(flows.get(job)) == facts(moved)
    assert ids(flows.claim(state="charged")) == [job.id]


def test_a_waiting_flow_moves_with_its_fencing_token_alone(
    flows: Flows, clock: ManualClock
) -> None:
    flow = flows.create(state="created", run_at_ms=clock.now_ms() + 1_000_000)
    moved = flows.move(flow, "charged")
    assert moved.state == "charged"
    assert moved.next_run_at_ms == clock.now_ms()
    assert ids(flows.claim(state="charged")) == [flow.id]


def test_a_move_expects_the_state_it_names(flows: Flows) -> None:
    for flow in (flows.leased("a", state="created"), flows.create("b", state="created")):
        with flows.unchanged(flow), pytest.raises(sf.WrongState) as caught:
            flows.move(flow, "shipped", from_state="charged")
        assert caught.value.flow_id == flow.id
        assert caught.value.state == "created"
        assert caught.value.expected == "charged"


@pytest.mark.parametrize("to_state", ["running", "completed", "failed", "cancelled"])
def test_a_move_never_goes_to_a_reserved_state(flows: Flows, to_state: str) -> None:
    flow, job = flows.create("a"), flows.leased("b", state="other")
    with flows.unchanged(flow, job):
        for moving in (flow, job):
            with pytest.raises(sf.InvalidArgument):
                flows.move(moving, to_state)


def test_a_waiting_flow_does_not_move_with_another_fencing_token(flows: Flows) -> None:
    flow = flows.retry(flows.leased(), run_at_ms=0)
    for fencing_token in (0, flow.fencing_token - 1, flow.fencing_token + 1):
        with flows.unchanged(flow), pytest.raises(sf.StaleLease):
            flows.move(flow, "next", fencing_token=fencing_token)


def test_a_leased_flow_does_not_move_without_its_lease_token(flows: Flows) -> None:
    job = flows.leased()
    for token in (None, "another"):
        with flows.unchanged(job), pytest.raises(sf.StaleLease):
            flows.move(job, "next", lease_token=token)


def test_a_move_needs_a_fencing_token(flows: Flows) -> None:
    flow = flows.create()
    loose: Any = flows.store
    with flows.unchanged(flow), pytest.raises(TypeError):
        loose.flow_transition(flow.id, "queued", "next")


@pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
def test_an_ended_flow_does_not_move(flows: Flows, end: str) -> None:
    job = flows.leased()
    ended = flows.cancel(job, force=True) if end == "cancel" else getattr(flows, end)(job)
    with flows.unchanged(ended):
        for from_state in ("queued", ended.state, "running"):
            with pytest.raises((sf.FlowTerminal, sf.WrongState, sf.InvalidArgument)):
                flows.move(ended, "next", from_state=from_state, lease_token=None)


def test_an_absent_flow_does_not_move(flows: Flows, name: Name) -> None:
    with pytest.raises(sf.FlowNotFound):
        flows.store.flow_transition(name("nowhere"), "a", "b", fencing_token=1)


def test_a_move_may_set_the_due_time(flows: Flows, clock: ManualClock) -> None:
    moved = flows.move(flows.create(), "next", run_at_ms=clock.now_ms() + 500)
    assert moved.next_run_at_ms == clock.now_ms() + 500
    assert flows.claim() == []
    clock.advance(500)
    assert ids(flows.claim()) == [moved.id]


def test_a_due_time_of_zero_is_a_time(flows: Flows) -> None:
    moved = flows.move(flows.create(), "next", run_at_ms=0)
    assert moved.next_run_at_ms == 0
    assert ids(flows.claim()) == [moved.id]


def test_a_due_time_may_be_an_aware_datetime(flows: Flows) -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    moved = flows.move(flows.create(), "next", run_at_ms=at)
    assert moved.next_run_at_ms == 1_893_553_445_678


@pytest.mark.parametrize("priority", [0, 1, 2])
def test_a_move_may_set_the_priority(flows: Flows, priority: int) -> None:
    assert flows.move(flows.create(priority=1), "next", priority=priority).priority == priority


def test_a_move_keeps_what_it_does_not_name(flows: Flows) -> None:
    flow = flows.create(
        priority=2, payload="in", attributes={"a": 1}, values={"v": 1}, correlation_id="c"
    )
    moved = flows.read(flows.move(flow, "next"))
    assert moved.priority == 2
    assert moved.payload == "in"
    assert moved.attributes == {"a": 1}
    assert moved.values == {"v": 1}
    assert moved.correlation_id == "c"


@pytest.mark.parametrize("payload", [None, 0, "", "new"], ids=repr)
def test_a_move_may_set_the_payload(flows: Flows, payload: Any) -> None:
    moved = flows.move(flows.create(payload="old"), "next", payload=payload)
    assert flows.read(moved).payload == payload
    assert moved.payload_ref is not None


def test_a_move_may_set_values_and_attributes(flows: Flows) -> None:
    flow = flows.create(values={"a": 1}, attributes={"step": 1})
    moved = flows.read(flows.move(flow, "next", values={"b": 0}, attributes={"step": 2}))
    assert moved.values == {"a": 1, "b": 0}
    assert moved.attributes["step"] == 2


def test_a_move_to_the_same_state_is_a_move(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased()
    moved = flows.move(job, "queued", run_at_ms=clock.now_ms() + 10)
    assert moved.state == "queued"
    assert moved.version == job.version + 1
    assert moved.lease_token is None


def test_a_flow_may_go_round_in_circles(flows: Flows) -> None:
    flow = flows.create(state="a")
    for number in range(6):
        flow = flows.move(flows.take(flow), "b" if flow.state == "a" else "a")
        assert flow.version == 3 + 2 * number
    assert flow.state == "a"
    assert flow.fencing_token > 5


def test_a_move_is_told_in_the_history(flows: Flows) -> None:
    moved = flows.move(flows.leased(state="created"), "charged")
    event = flows.events(moved)[-1]
    assert (event.name, event.from_state, event.to_state) == (
        "transitioned",
        "created",
        "charged",
    )
