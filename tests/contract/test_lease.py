"""Sections 3.1 and 4: holding a lease, renewing it, losing it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, facts, ids

HELD: dict[str, Callable[..., Any]] = {
    "complete": lambda flows, job, **o: flows.complete(job, **o),
    "fail": lambda flows, job, **o: flows.fail(job, **o),
    "retry": lambda flows, job, **o: flows.retry(job, **o),
    "extend": lambda flows, job, **o: flows.extend(job, **o),
    "release": lambda flows, job, **o: flows.release(job, **o),
    "step": lambda flows, job, **o: flows.step(job, "next", **o),
    "move": lambda flows, job, **o: flows.move(job, "next", **o),
}
"""Every command that only the holder of a lease may give to a leased flow."""


@pytest.fixture(params=sorted(HELD))
def command(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return HELD[request.param]


def test_an_extended_lease_ends_the_given_time_from_now(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(lease_ms=10_000)
    clock.advance(4_000)
    extended = flows.extend(job, lease_ms=20_000)
    assert extended.lease_deadline_ms == clock.now_ms() + 20_000
    assert extended.lease_token == job.lease_token
    assert extended.lease_owner == job.lease_owner
    assert extended.fencing_token == job.fencing_token
    assert extended.version == job.version + 1
    assert (extended.state, extended.run_state) == ("running", "queued")
    assert facts(flows.get(job)) == facts(extended)


def test_a_lease_is_extended_by_30_seconds_unless_told_otherwise(
    flows: Flows, clock: ManualClock
) -> None:
    job = flows.leased(lease_ms=1_000)
    assert flows.extend(job).lease_deadline_ms == clock.now_ms() + 30_000


def test_an_extension_may_shorten_a_lease(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(lease_ms=60_000)
    assert flows.extend(job, lease_ms=1_000).lease_deadline_ms == clock.now_ms() + 1_000
    clock.advance(1_000)
    assert ids(flows.claim()) == [job.id]


def test_a_lease_is_extended_by_a_timedelta(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased()
    extended = flows.extend(job, lease_ms=timedelta(minutes=5))
    assert extended.lease_deadline_ms == clock.now_ms() + 300_000


def test_a_heartbeat_with_the_same_tokens_moves_the_deadline_each_time(
    flows: Flows, clock: ManualClock
) -> None:
    job = flows.leased(lease_ms=1_000)
    for _ in range(4):
        clock.advance(900)
        assert flows.extend(job, lease_ms=1_000).lease_deadline_ms == clock.now_ms() + 1_000
    assert flows.claim() == []
    assert flows.complete(job).state == "completed"


def test_the_tokens_of_the_claim_stay_good_after_an_extension(flows: Flows) -> None:
    job = flows.leased()
    flows.extend(job)
    assert flows.complete(job).state == "completed"


def test_another_lease_token_is_stale(flows: Flows, command: Callable[..., Any]) -> None:
    job = flows.leased()
    with flows.unchanged(job), pytest.raises(sf.StaleLease) as caught:
        command(flows, job, lease_token="not-the-token")
    assert caught.value.flow_id == job.id
    assert caught.value.fencing_token == job.fencing_token


@pytest.mark.parametrize("off_by", [-1, 1])
def test_another_fencing_token_is_stale(
    flows: Flows, command: Callable[..., Any], off_by: int
) -> None:
    job = flows.leased()
    with flows.unchanged(job), pytest.raises(sf.StaleLease):
        command(flows, job, fencing_token=job.fencing_token + off_by)


def test_a_token_of_another_flow_is_stale(flows: Flows, command: Callable[..., Any]) -> None:
    other = flows.leased("other")
    job = flows.leased()
    with flows.unchanged(job, other), pytest.raises(sf.StaleLease):
        command(flows, job, lease_token=other.lease_token)


def test_fencing_token_zero_is_not_a_pass(flows: Flows, command: Callable[..., Any]) -> None:
    job = flows.leased()
    with flows.unchanged(job), pytest.raises(sf.StaleLease):
        command(flows, job, fencing_token=0)


@pytest.mark.parametrize("verb", sorted(set(HELD) - {"move"}))
def test_a_flow_that_was_never_claimed_has_no_lease_to_use(flows: Flows, verb: str) -> None:
    flow = flows.create()
    for fencing_token in (0, flow.fencing_token, 1):
        with flows.unchanged(flow), pytest.raises(sf.StaleLease):
            HELD[verb](flows, flow, lease_token="t", fencing_token=fencing_token)


def test_an_expired_lease_that_nobody_has_taken_is_still_good(
    flows: Flows, clock: ManualClock, command: Callable[..., Any]
) -> None:
    job = flows.leased(lease_ms=1_000)
    clock.advance(3_600_000)
    assert command(flows, job).version == job.version + 1


def test_an_expired_lease_that_was_taken_over_is_stale(
    flows: Flows, command: Callable[..., Any]
) -> None:
    (job,) = flows.expired("a")
    (taken,) = flows.reclaim()
    with flows.unchanged(taken), pytest.raises(sf.StaleLease):
        command(flows, job)


def test_the_same_worker_is_stale_too_after_it_took_its_own_lease_over(
    flows: Flows, command: Callable[..., Any]
) -> None:
    (job,) = flows.expired("a")
    (again,) = flows.claim(worker=job.lease_owner)
    with flows.unchanged(again), pytest.raises(sf.StaleLease):
        command(flows, job)
    assert flows.complete(again).state == "completed"


def test_old_tokens_with_the_new_fencing_number_are_stale(
    flows: Flows, command: Callable[..., Any]
) -> None:
    (job,) = flows.expired("a")
    (taken,) = flows.reclaim()
    with flows.unchanged(taken), pytest.raises(sf.StaleLease):
        command(flows, job, fencing_token=taken.fencing_token)


def test_a_lease_is_gone_once_the_flow_moved_or_ended(
    flows: Flows, command: Callable[..., Any]
) -> None:
    job = flows.leased()
    after = command(flows, job)
    if after.state == "running":
        assert after.lease_token is not None
        return
    assert (after.lease_owner, after.lease_token, after.lease_deadline_ms) == (None, None, None)
    assert after.run_state is None


def test_an_extension_of_an_ended_flow_is_stale(flows: Flows) -> None:
    job = flows.leased()
    flows.complete(job)
    with flows.unchanged(job), pytest.raises(sf.StaleLease):
        flows.extend(job)


def test_the_tokens_of_a_flow_before_it_was_removed_are_no_good_for_its_successor(
    flows: Flows, clock: ManualClock, command: Callable[..., Any]
) -> None:
    job = flows.leased(retention_ttl_ms=1_000)
    flows.complete(job)
    clock.advance(1_000)
    successor = flows.leased()
    with flows.unchanged(successor), pytest.raises(sf.StaleLease):
        command(flows, job)
