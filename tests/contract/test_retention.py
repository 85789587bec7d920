"""Section 9: how long ended flows are kept, and flows that are never due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import DAY_MS, START_MS, Flows, Name, assert_absent, ids

ENDS: dict[str, Callable[[Flows, sf.FlowRecord], Any]] = {
    "completed": lambda flows, job: flows.complete(job),
    "failed": lambda flows, job: flows.fail(job),
    "cancelled": lambda flows, job: flows.cancel(job, force=True),
}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_an_ended_flow_is_there_until_its_retention_is_over(
    flows: Flows, clock: ManualClock, end: str
) -> None:
    flow = ENDS[end](flows, flows.leased(retention_ttl_ms=10_000))
    clock.advance(9_999)
    assert flows.get(flow).state == end
    assert len(flows.events(flow)) == flow.version
    clock.advance(1)
    assert_absent(flows, flow)


@pytest.mark.parametrize(("end", "days"), [("completed", 7), ("cancelled", 7), ("failed", 30)])
def test_flows_are_kept_for_a_week_and_failed_ones_for_a_month(
    flows: Flows, clock: ManualClock, end: str, days: int
) -> None:
    flow = ENDS[end](flows, flows.leased())
    clock.advance(days * DAY_MS - 1)
    assert flows.get(flow).state == end
    clock.advance(1)
    assert_absent(flows, flow)


def test_the_store_may_keep_them_for_another_time(open_store: Any, name: Name) -> None:
    clock = ManualClock(START_MS)
    store = open_store(clock=clock, retention_ms=1_000, failed_retention_ms=2_000)
    flows = Flows(store, clock, name)
    completed = flows.ended("completed")
    failed = flows.fail(flows.leased("failed"))
    clock.advance(1_000)
    assert_absent(flows, completed)
    assert flows.get(failed).state == "failed"
    clock.advance(1_000)
    assert_absent(flows, failed)


def test_the_retention_may_be_a_timedelta(flows: Flows, clock: ManualClock) -> None:
    flow = flows.ended(retention_ttl_ms=timedelta(minutes=1))
    assert flow.retention_ttl_ms == 60_000
    clock.advance(60_000)
    assert_absent(flows, flow)


def test_a_retention_of_zero_removes_a_flow_at_its_end(flows: Flows) -> None:
    flow = flows.create(retention_ttl_ms=0)
    assert flows.get(flow).state == "queued"
    ended = flows.complete(flows.take(flow))
    assert ended.state == "completed"
    assert_absent(flows, ended)


def test_a_flow_that_has_not_ended_is_kept_for_ever(flows: Flows, clock: ManualClock) -> None:
    waiting = flows.create("waiting", retention_ttl_ms=1_000)
    held = flows.leased("held", state="other", retention_ttl_ms=1_000)
    clock.advance(400 * DAY_MS)
    flows.store.flow_retention_cleanup(limit=1_000)
    assert flows.get(waiting).state == "queued"
    assert flows.get(held).state == "running"
    assert flows.complete(held).state == "completed"


def test_retention_counts_from_the_end(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create(retention_ttl_ms=1_000)
    clock.advance(5_000)
    ended = flows.complete(flows.take(flow))
    clock.advance(999)
    assert flows.get(ended).state == "completed"


def test_a_flow_is_absent_for_every_command_after_its_retention(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    job = flows.leased(
        retention_ttl_ms=1_000, parent_flow_id=name("parent"), correlation_id=name("c")
    )
    ended = flows.complete(job, result="r")
    clock.advance(1_000)
    assert_absent(flows, ended)
    commands: list[Callable[[], Any]] = [
        lambda: flows.complete(job, result="r"),
        lambda: flows.fail(job),
        lambda: flows.retry(job),
        lambda: flows.extend(job),
        lambda: flows.step(job, "next"),
        lambda: flows.move(ended, "next", from_state="queued"),
        lambda: flows.cancel(ended),
        lambda: flows.cancel(ended, force=True),
        lambda: flows.put(ended, "v", 1),
    ]
    for command in commands:
        with pytest.raises(sf.FlowNotFound):
            command()
    assert flows.claim(limit=10) == []
    assert flows.store.flow_list(flows.type) == []
    assert flows.store.flow_by_parent(name("parent")) == []
    assert flows.store.flow_by_correlation(name("c")) == []
    assert flows.store.flow_info(flows.type)["completed"] == 0


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("idempotent", [False, True])
def test_the_id_is_free_again_after_the_retention(
    flows: Flows, clock: ManualClock, swept: bool, idempotent: bool
) -> None:
    ended = flows.ended(payload="old", values={"v": "old"}, retention_ttl_ms=1_000)
    clock.advance(1_000)
    if swept:
        flows.store.flow_retention_cleanup(limit=1_000)
    flow = flows.create(payload="new", idempotent=idempotent)
    assert flow.id == ended.id
    assert flow.version == 1
    assert flow.state == "queued"
    read = flows.read(flow)
    assert read.payload == "new"
    assert read.values == {}
    assert flows.event_names(flow) == ["created"]
    assert flows.complete(flows.take(flow)).state == "completed"


@pytest.mark.parametrize("idempotent", [False, True])
def test_the_id_is_free_at_once_for_a_command_of_a_later_time(
    flows: Flows, clock: ManualClock, idempotent: bool
) -> None:
    # The clock stands still, so that no sweep has come by.
    ended = flows.ended(payload="old", values={"v": "old"}, retention_ttl_ms=1_000)
    later_ms = clock.now_ms() + 1_000
    with pytest.raises((sf.FlowAlreadyExists, sf.IdempotencyConflict)):
        flows.create(payload="new", idempotent=idempotent, now_ms=later_ms - 1)
    assert_absent(flows, ended, now_ms=later_ms)
    flow = flows.create(payload="new", idempotent=idempotent, now_ms=later_ms)
    assert (flow.version, flow.created_at_ms) == (1, later_ms)
    read = flows.read(flow)
    assert (read.payload, read.values) == ("new", {})
    assert flows.event_names(flow) == ["created"]
    assert [record.version for record in flows.store.flow_list(flows.type)] == [1]


def test_cleanup_removes_no_more_than_its_limit(flows: Flows, clock: ManualClock) -> None:
    ended = [flows.ended(number, retention_ttl_ms=1_000) for number in range(5)]
    kept = flows.ended("kept")
    clock.advance(1_000)
    removed = flows.store.flow_retention_cleanup(limit=3)
    assert 0 <= removed <= 3
    assert flows.get(kept).state == "completed"
    for flow in ended:
        assert_absent(flows, flow)
    while flows.store.flow_retention_cleanup(limit=1_000):
        continue
    assert flows.get(kept).state == "completed"


def test_a_longer_retention_at_the_end_keeps_a_flow_longer(
    flows: Flows, clock: ManualClock
) -> None:
    ended = flows.complete(flows.leased(retention_ttl_ms=1_000), retention_ttl_ms=5_000)
    clock.advance(4_999)
    assert flows.get(ended).state == "completed"
    clock.advance(1)
    assert_absent(flows, ended)


def test_a_parked_flow_is_never_due(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create(run_at_ms=sf.NEVER)
    assert flow.next_run_at_ms == sf.NEVER == 2**53 - 1
    clock.advance(400 * DAY_MS)
    assert flows.claim(limit=10) == []
    assert flows.get(flow).state == "queued"


def test_a_parked_flow_is_not_due_even_at_the_end_of_time(open_store: Any, name: Name) -> None:
    clock = ManualClock(START_MS)
    flows = Flows(open_store(clock=clock), clock, name)
    flows.create(run_at_ms=sf.NEVER)
    assert flows.claim(now_ms=sf.NEVER, limit=10) == []


def test_a_transition_frees_a_parked_flow(flows: Flows) -> None:
    flow = flows.create(run_at_ms=sf.NEVER)
    moved = flows.move(flow, "next")
    assert moved.next_run_at_ms == flows.clock.now_ms()
    assert ids(flows.claim()) == [flow.id]


def test_a_flow_may_be_parked_by_a_transition_and_by_a_retry(
    flows: Flows, clock: ManualClock
) -> None:
    moved = flows.move(flows.leased("moved"), "parked", run_at_ms=sf.NEVER)
    retried = flows.retry(flows.leased("retried"), run_at_ms=sf.NEVER)
    clock.advance(400 * DAY_MS)
    assert flows.claim(limit=10) == []
    for flow in (moved, retried):
        assert flows.get(flow).next_run_at_ms == sf.NEVER
        flows.move(flow, "free")
    assert len(flows.claim(limit=10)) == 2


def test_a_parked_flow_may_be_cancelled(flows: Flows) -> None:
    assert flows.cancel(flows.create(run_at_ms=sf.NEVER)).state == "cancelled"
