"""Giving a claimed flow back: as if it had not been claimed."""

from __future__ import annotations

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import SHARDS, Flows, Name, ids, item


def test_a_released_flow_is_due_again_and_nothing_is_charged(flows: Flows) -> None:
    job = flows.leased()
    record = flows.release(job)
    assert (record.state, record.run_state, record.lease_owner) == ("queued", None, None)
    assert (record.attempts, record.reclaims) == (0, 0)
    assert (record.version, record.fencing_token) == (job.version + 1, job.fencing_token)
    (again,) = flows.claim()
    assert (again.id, again.fencing_token, again.reclaims) == (job.id, job.fencing_token + 1, 0)
    assert flows.event_names(job) == ["created", "claimed", "released", "claimed"]


def test_attempts_that_were_charged_before_stay_charged(flows: Flows, clock: ManualClock) -> None:
    flows.retry(flows.leased(), retry=sf.Retry(backoff=sf.Backoff(kind="none")))
    (job,) = flows.claim()
    assert flows.release(job).attempts == 1
    (job,) = flows.claim()
    clock.advance(60_000)
    (job,) = flows.claim()
    record = flows.release(job)
    assert (record.attempts, record.reclaims) == (1, 1)


def test_a_released_flow_has_the_first_turn_again(flows: Flows) -> None:
    first, *_ = flows.create_in_order("a", "b", "c")
    (job,) = flows.claim(limit=1)
    assert job.id == first
    flows.release(job)
    assert ids(flows.claim(limit=1)) == [first]


def test_a_flow_may_be_released_for_later(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased()
    assert flows.release(job, run_at_ms=clock.now_ms() + 5_000).next_run_at_ms is not None
    assert flows.claim() == []
    clock.advance(5_000)
    assert ids(flows.claim()) == [job.id]


def test_a_release_may_be_repeated(flows: Flows) -> None:
    job = flows.leased()
    record = flows.release(job)
    assert flows.release(job).version == record.version
    with pytest.raises(sf.StaleLease):
        flows.complete(job)


def test_a_waiting_claim_is_woken_by_a_release(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased()
    waiting = flows.wait(block_ms=60_000)
    flows.release(job)
    assert ids(waiting.get(timeout=10)) == [job.id]


def test_many_are_released_at_once(flows: Flows, name: Name) -> None:
    for number, key in enumerate(name.partitions(SHARDS)):
        flows.create(number, partition_key=key)
    jobs = flows.claim(limit=SHARDS)
    flows.complete(jobs[0])
    with pytest.raises(sf.BatchError) as caught:
        flows.store.flow_release_many([item(job) for job in jobs])
    states = [getattr(result, "state", type(result).__name__) for result in caught.value.results]
    assert sorted(states) == ["StaleLease", "queued"]
