"""Section 5: flows that have used up their attempts or their leases."""

from __future__ import annotations

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import DAY_MS, Flows, facts, ids


def test_max_retries_counts_the_attempts_after_the_first(flows: Flows) -> None:
    retry = sf.Retry(max_retries=2, backoff=sf.Backoff.none())
    flow = flows.create()
    states = []
    for _ in range(3):
        flow = flows.retry(flows.take(flow), retry=retry)
        states.append(flow.state)
    assert states == ["queued", "queued", "failed"]


def test_zero_retries_means_that_the_first_failure_exhausts(flows: Flows) -> None:
    flow = flows.retry(flows.leased(payload="in"), retry=sf.Retry(0), error="boom")
    assert flow.state == "failed"
    read = flows.read(flow)
    assert (read.payload, read.error) == ("in", "boom")


@pytest.mark.parametrize("end", ["failed", "completed", "cancelled"])
def test_an_exhausted_flow_ends_with_everything_that_an_end_entails(
    flows: Flows, clock: ManualClock, end: str
) -> None:
    job = flows.leased(retention_ttl_ms=1_000)
    flow = flows.retry(job, retry=sf.Retry(0, exhausted_to=end))
    assert flow.state == end
    assert flow.run_state is None
    assert flow.next_run_at_ms is None
    assert (flow.lease_owner, flow.lease_token, flow.lease_deadline_ms) == (None, None, None)
    assert flow.version == job.version + 1
    assert facts(flows.get(job)) == facts(flow)
    assert flows.store.flow_info(flows.type)[end] == 1
    assert flows.claim(limit=10) == []
    clock.advance(1_000)
    assert flows.store.flow_get(job.id) is None


def test_an_exhausted_flow_may_move_to_an_active_state_and_is_due_there_now(
    flows: Flows, clock: ManualClock
) -> None:
    job = flows.leased(state="charging", priority=1)
    flow = flows.retry(job, retry=sf.Retry(0, exhausted_to="repair"))
    assert (flow.state, flow.run_state) == ("repair", None)
    assert flow.attempts == 0
    assert flow.next_run_at_ms == clock.now_ms()
    assert flow.lease_token is None
    assert flow.priority == 1
    assert flow.version == job.version + 1
    (again,) = flows.claim(state="repair")
    assert again.id == job.id


def test_the_next_state_has_attempts_of_its_own(flows: Flows) -> None:
    retry = sf.Retry(1, sf.Backoff.none(), exhausted_to="repair")
    flow = flows.retry(flows.leased(), retry=retry)
    flow = flows.retry(flows.take(flow), retry=retry)
    assert (flow.state, flow.attempts) == ("repair", 0)
    flow = flows.retry(flows.take(flow), retry=retry)
    assert (flow.state, flow.attempts) == ("repair", 1)


def test_an_end_by_exhaustion_is_final(flows: Flows) -> None:
    job = flows.leased()
    flow = flows.retry(job, retry=sf.Retry(0))
    with flows.unchanged(flow):
        with pytest.raises(sf.StaleLease):
            flows.complete(job)
        with pytest.raises(sf.FlowTerminal):
            flows.cancel(flow)


def test_a_lease_may_expire_max_reclaims_times(flows: Flows, clock: ManualClock) -> None:
    flows.store.flow_policy_set(flows.type, retry={"max_reclaims": 2})
    flow = flows.create()
    for reclaims in (0, 1, 2):
        (job,) = flows.claim(lease_ms=1_000)
        assert job.reclaims == reclaims
        clock.advance(1_000)
    assert flows.claim() == []
    ended = flows.get(flow)
    assert ended.state == "failed"
    assert ended.lease_token is None
    assert ended.next_run_at_ms is None


@pytest.mark.parametrize("how", ["claim", "reclaim"])
def test_the_first_expired_lease_exhausts_when_none_is_allowed(
    flows: Flows, clock: ManualClock, how: str
) -> None:
    flows.store.flow_policy_set(flows.type, retry={"max_reclaims": 0})
    job = flows.leased(lease_ms=1_000)
    clock.advance(1_000)
    assert (flows.claim() if how == "claim" else flows.reclaim()) == []
    assert flows.get(job).state == "failed"
    with pytest.raises(sf.StaleLease):
        flows.complete(job)


def test_sixteen_takeovers_are_allowed_unless_told_otherwise(
    flows: Flows, clock: ManualClock
) -> None:
    flow = flows.create()
    for _ in range(17):
        assert len(flows.claim(lease_ms=1_000)) == 1
        clock.advance(1_000)
    assert flows.claim() == []
    assert flows.get(flow).state == "failed"


def test_a_flow_of_too_many_expired_leases_may_move_to_an_active_state(
    flows: Flows, clock: ManualClock
) -> None:
    flows.store.flow_policy_set(flows.type, retry={"max_reclaims": 0, "exhausted_to": "poison"})
    job = flows.leased(lease_ms=1_000)
    clock.advance(1_000)
    assert flows.claim(state="queued") == []
    assert flows.get(job).state == "poison"
    (taken,) = flows.claim(state="poison")
    assert taken.id == job.id
    assert (taken.attempts, taken.reclaims) == (0, 0)


def test_takeovers_are_counted_in_each_state_anew(flows: Flows, clock: ManualClock) -> None:
    flows.store.flow_policy_set(flows.type, retry={"max_reclaims": 1})
    flows.create(state="a")
    flows.claim(lease_ms=1_000)
    clock.advance(1_000)
    (job,) = flows.claim(lease_ms=1_000)
    assert job.reclaims == 1
    moved = flows.move(job, "b")
    assert len(flows.claim(lease_ms=1_000)) == 1
    clock.advance(1_000)
    (again,) = flows.claim(lease_ms=1_000)
    assert (again.id, again.reclaims) == (moved.id, 1)


def test_a_poisoned_flow_does_not_hurt_the_claim_of_the_others(
    flows: Flows, clock: ManualClock
) -> None:
    flows.store.flow_policy_set(flows.type, retry={"max_reclaims": 0})
    poisoned = flows.leased("poisoned", lease_ms=1_000)
    clock.advance(1_000)
    flow = flows.create("sound")
    assert ids(flows.claim(limit=10, reclaim_ratio=100)) == [flow.id]
    assert flows.get(poisoned).state == "failed"


def test_an_expired_lease_costs_no_attempt(flows: Flows, clock: ManualClock) -> None:
    flows.create()
    (job,) = flows.claim(lease_ms=1_000)
    for _ in range(2):
        clock.advance(1_000)
        (job,) = flows.claim(lease_ms=1_000)
    clock.advance(1_000)
    assert job.attempts == 0
    assert flows.retry(job, retry=sf.Retry(1, sf.Backoff.none())).state == "queued"


def test_failed_flows_are_kept_longer_than_completed_ones(flows: Flows, clock: ManualClock) -> None:
    completed = flows.ended("completed")
    failed = flows.fail(flows.leased("failed"))
    exhausted = flows.retry(flows.leased("exhausted"), retry=sf.Retry(0))
    clock.advance(7 * DAY_MS - 1)
    assert flows.get(completed).state == "completed"
    clock.advance(1)
    assert flows.store.flow_get(completed.id) is None
    assert flows.get(failed).state == "failed"
    assert flows.get(exhausted).state == "failed"
    clock.advance(23 * DAY_MS)
    assert flows.store.flow_get(failed.id) is None
    assert flows.store.flow_get(exhausted.id) is None
