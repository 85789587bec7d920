"""Sections 3 and 3.1: complete and fail, and what every write does to the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, facts

ENDS: dict[str, Callable[..., Any]] = {
    "completed": lambda flows, job, **o: flows.complete(job, **o),
    "failed": lambda flows, job, **o: flows.fail(job, **o),
}


@pytest.mark.parametrize("state", sorted(ENDS))
def test_an_end_is_final_and_clears_the_lease(flows: Flows, clock: ManualClock, state: str) -> None:
    job = flows.leased(state="charging")
    clock.advance(100)
    ended = ENDS[state](flows, job)
    assert ended.state == state
    assert ended.logical_state == state
    assert ended.run_state is None
    assert (ended.lease_owner, ended.lease_token, ended.lease_deadline_ms) == (None, None, None)
    assert ended.next_run_at_ms is None
    assert ended.version == job.version + 1
    assert ended.fencing_token == job.fencing_token
    assert ended.updated_at_ms == clock.now_ms()
    assert ended.created_at_ms == job.created_at_ms
    assert facts(flows.get(job)) == facts(ended)


def test_a_result_is_kept_beside_the_payload(flows: Flows) -> None:
    ended = flows.complete(flows.leased(payload="in"), result={"receipt": 0})
    read = flows.read(ended)
    assert (read.payload, read.result, read.error) == ("in", {"receipt": 0}, None)
    assert ended.result_ref is not None
    assert ended.error_ref is None
    assert flows.values(ended.result_ref) == [{"receipt": 0}]


def test_an_error_is_kept_beside_the_payload(flows: Flows) -> None:
    ended = flows.fail(flows.leased(payload="in"), error={"why": "card"})
    read = flows.read(ended)
    assert (read.payload, read.result, read.error) == ("in", None, {"why": "card"})
    assert ended.result_ref is None
    assert ended.error_ref is not None


def test_completing_may_change_payload_values_and_attributes(flows: Flows) -> None:
    job = flows.leased(payload="in", values={"a": 1}, attributes={"step": 1})
    ended = flows.complete(job, result="r", payload="out", values={"b": 2}, attributes={"step": 2})
    read = flows.read(ended)
    assert (read.payload, read.result) == ("out", "r")
    assert read.values == {"a": 1, "b": 2}
    assert read.attributes["step"] == 2


def test_completing_may_set_how_long_the_flow_is_kept(flows: Flows, clock: ManualClock) -> None:
    ended = flows.complete(flows.leased(retention_ttl_ms=1_000_000), retention_ttl_ms=1_000)
    clock.advance(999)
    assert flows.get(ended).state == "completed"
    clock.advance(1)
    assert flows.store.flow_get(ended.id) is None


def test_a_value_that_contradicts_one_already_there_refuses_the_whole_command(
    flows: Flows,
) -> None:
    job = flows.leased(values={"a": 1})
    with flows.unchanged(job), pytest.raises(sf.ValueConflict):
        flows.complete(job, result="r", values={"a": 2})
    assert flows.complete(job, values={"a": 1}).state == "completed"


@pytest.mark.parametrize("state", sorted(ENDS))
def test_an_absent_flow_cannot_end(flows: Flows, state: str) -> None:
    job = flows.leased(retention_ttl_ms=0)
    flows.complete(job)
    with pytest.raises(sf.FlowNotFound) as caught:
        ENDS[state](flows, job)
    assert caught.value.flow_id == job.id


def test_each_applied_write_adds_one_to_the_version_and_one_event(flows: Flows) -> None:
    flow = flows.create(state="a")
    steps: list[Callable[[sf.FlowRecord], Any]] = [
        flows.take,
        flows.extend,
        lambda job: flows.step(job, "b"),
        lambda job: flows.retry(job, run_at_ms=0),
        flows.take,
        lambda job: flows.move(job, "c"),
        lambda moved: flows.put(moved, "v", 1),
        flows.take,
        flows.complete,
    ]
    for number, step in enumerate(steps, start=2):
        flow = step(flow)
        assert flow.version == number
        assert facts(flows.get(flow)) == facts(flow)
        events = flows.events(flow)
        assert [event.version for event in events] == list(range(1, number + 1))
        assert events[-1].fencing_token == flow.fencing_token
        assert events[-1].attempts == flow.attempts
        assert events[-1].at_ms == flow.updated_at_ms


def test_only_taking_a_lease_away_or_giving_one_raises_the_fencing_token(flows: Flows) -> None:
    flow = flows.create(state="a")
    start = flow.fencing_token
    seen: list[int] = []
    steps: list[Callable[[sf.FlowRecord], Any]] = [
        flows.take,
        flows.extend,
        lambda job: flows.retry(job, run_at_ms=0),
        flows.take,
        lambda job: flows.step(job, "b"),
        lambda job: flows.move(job, "c"),
        lambda moved: flows.put(moved, "v", 1),
        flows.take,
        flows.complete,
    ]
    for step in steps:
        flow = step(flow)
        seen.append(flow.fencing_token - start)
    assert seen == [1, 1, 1, 2, 3, 3, 3, 4, 4]


def test_attempts_are_counted_by_retries_alone(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(lease_ms=1_000)
    assert job.attempts == 0
    assert flows.extend(job, lease_ms=1_000).attempts == 0
    clock.advance(1_000)
    (job,) = flows.claim()
    assert (job.attempts, job.reclaims) == (0, 1)
    for attempts in (1, 2, 3):
        flow = flows.retry(job, run_at_ms=0)
        assert flow.attempts == attempts
        job = flows.take(flow)
        assert job.attempts == attempts


def test_attempts_and_reclaims_start_again_in_another_state(flows: Flows) -> None:
    (old,) = flows.expired("a", state="a")
    (job,) = flows.reclaim()
    job = flows.take(flows.retry(job, run_at_ms=0))
    assert (job.attempts, job.reclaims) == (1, 1)
    stepped = flows.step(job, "b")
    assert (stepped.attempts, stepped.reclaims) == (0, 0)
    job = flows.take(flows.retry(stepped, run_at_ms=0))
    moved = flows.move(job, "a")
    assert old.id == moved.id
    assert (moved.attempts, moved.reclaims) == (0, 0)


def test_attempts_and_reclaims_start_again_at_the_end(flows: Flows) -> None:
    for suffix, end in (("a", flows.complete), ("b", flows.fail)):
        flows.expired(suffix)
        (job,) = flows.reclaim()
        job = flows.take(flows.retry(job, run_at_ms=0))
        assert (job.attempts, job.reclaims) == (1, 1)
        ended = end(job)
        assert (ended.attempts, ended.reclaims) == (0, 0)


def test_attempts_go_on_when_the_logical_state_stays(flows: Flows) -> None:
    job = flows.take(flows.retry(flows.leased(), run_at_ms=0))
    moved = flows.move(job, "queued")
    assert moved.attempts == 1
    assert moved.version == job.version + 1


def test_a_write_never_sets_updated_at_back(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create()
    for back_ms in (1, 5_000, 0):
        moved = flows.move(flow, "queued", now_ms=clock.now_ms() - back_ms)
        assert moved.updated_at_ms >= flow.updated_at_ms
        flow = moved
    event_ids = [event.event_id for event in flows.events(flow)]
    assert event_ids == sorted(set(event_ids))
