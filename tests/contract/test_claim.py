"""Sections 3 and 3.2: what a claim takes, and what it does to the record."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, ids


def test_a_claim_leases_the_flow(flows: Flows, clock: ManualClock) -> None:
    made = flows.create(payload="p")
    clock.advance(500)
    (job,) = flows.claim(worker="worker-7", lease_ms=12_000)
    assert job.id == made.id
    assert job.state == "running"
    assert job.run_state == "queued"
    assert job.lease_owner == "worker-7"
    assert job.lease_token
    assert job.lease_deadline_ms == clock.now_ms() + 12_000
    assert job.fencing_token == made.fencing_token + 1
    assert job.version == made.version + 1
    assert job.attempts == 0
    assert job.reclaims == 0
    assert job.updated_at_ms == clock.now_ms()
    assert job.created_at_ms == made.created_at_ms
    assert flows.get(job).lease_token == job.lease_token


def test_a_lease_is_30_seconds_long_unless_told_otherwise(flows: Flows, clock: ManualClock) -> None:
    flows.create()
    (job,) = flows.claim()
    assert job.lease_deadline_ms == clock.now_ms() + 30_000


def test_each_lease_has_a_token_of_its_own(flows: Flows) -> None:
    flows.create_in_order(*range(20))
    jobs = flows.claim(limit=20)
    assert len({job.lease_token for job in jobs}) == 20


def test_a_leased_flow_is_not_claimed_again(flows: Flows) -> None:
    job = flows.leased()
    with flows.unchanged(job):
        assert flows.claim() == []
        assert flows.claim(worker="w1", reclaim_expired=True, reclaim_ratio=100) == []


def test_one_flow_is_claimed_unless_a_limit_is_given(flows: Flows) -> None:
    flows.create_in_order(*range(3))
    assert len(flows.claim()) == 1


def test_a_claim_takes_up_to_its_limit(flows: Flows) -> None:
    made = flows.create_in_order(*range(7))
    first = ids(flows.claim(limit=5))
    second = ids(flows.claim(limit=5))
    assert (len(first), len(second)) == (5, 2)
    assert sorted(first + second) == sorted(made)
    assert flows.claim(limit=5) == []


def test_a_thousand_flows_are_claimed_at_once(flows: Flows, name: Name) -> None:
    items = [{"id": name(number)} for number in range(1_000)]
    flows.store.flow_create_many(items, type=flows.type)
    assert len(set(ids(flows.claim(limit=1_000)))) == 1_000
    assert flows.claim() == []


def test_a_claim_takes_only_its_type(flows: Flows, name: Name) -> None:
    flows.create("other", type=name("other-type"))
    assert flows.claim(limit=10) == []
    assert ids(flows.claim(type=name("other-type"), limit=10)) == [name("other")]


def test_a_type_that_nobody_has_heard_of_has_nothing_to_claim(flows: Flows, name: Name) -> None:
    assert flows.claim(type=name("unheard-of")) == []


def test_a_claim_of_one_state_takes_only_that_state(flows: Flows) -> None:
    flows.create("a", state="created")
    flows.create("b", state="charged")
    assert ids(flows.claim(state="charged", limit=10)) == [flows.name("b")]
    assert flows.claim(state="charged", limit=10) == []
    assert flows.claim(state="shipped", limit=10) == []


def test_a_claim_of_several_states_takes_all_of_them(flows: Flows) -> None:
    for state in ("created", "charged", "shipped"):
        flows.create(state, state=state)
    jobs = flows.claim(state=["created", "shipped"], limit=10)
    assert sorted(job.run_state or "" for job in jobs) == ["created", "shipped"]


def test_a_claim_of_any_state_takes_every_state(flows: Flows) -> None:
    for state in ("created", "charged", "shipped"):
        flows.create(state, state=state)
    assert len(flows.claim(state="any", limit=10)) == 3


def test_a_state_named_twice_counts_once(flows: Flows) -> None:
    flows.create()
    assert len(flows.claim(state=["queued", "queued"], limit=10)) == 1


def test_without_a_partition_key_every_partition_is_claimed(flows: Flows, name: Name) -> None:
    made = [flows.create(key, partition_key=key).id for key in name.partitions()]
    made.append(flows.create("hidden").id)
    assert sorted(ids(flows.claim(limit=10))) == sorted(made)


def test_a_partition_key_restricts_a_claim(flows: Flows, name: Name) -> None:
    first, second = name.neighbours(2)
    flows.create("one", partition_key=first)
    flows.create("two", partition_key=second)
    flows.create("hidden")
    assert ids(flows.claim(partition_key=second, limit=10)) == [name("two")]
    assert flows.claim(partition_key=second, limit=10) == []
    assert flows.claim(partition_key=name("unheard-of"), limit=10) == []


def test_several_partition_keys_restrict_a_claim(flows: Flows, name: Name) -> None:
    keys = [*name.partitions(), *name.neighbours(3)[1:]]
    for number, key in enumerate(keys):
        flows.create(number, partition_key=key)
    flows.create("hidden")
    jobs = flows.claim(partition_keys=keys[1:], limit=10)
    assert sorted(ids(jobs)) == [name(number) for number in range(1, len(keys))]


def test_a_priority_restricts_a_claim(flows: Flows) -> None:
    for priority in (0, 1, 2):
        flows.create(priority, priority=priority)
    assert ids(flows.claim(priority=1, limit=10)) == [flows.name(1)]
    assert ids(flows.claim(priority=0, limit=10)) == [flows.name(0)]
    assert flows.claim(priority=0, limit=10) == []
    assert ids(flows.claim(limit=10)) == [flows.name(2)]


def test_a_flow_is_due_from_the_very_millisecond_on(flows: Flows, clock: ManualClock) -> None:
    due_ms = clock.now_ms() + 10
    flow = flows.create(run_at_ms=due_ms)
    assert flows.claim(now_ms=due_ms - 1) == []
    assert ids(flows.claim(now_ms=due_ms)) == [flow.id]


def test_an_ended_flow_is_never_claimed(flows: Flows, clock: ManualClock) -> None:
    flows.ended("a")
    flows.fail(flows.leased("b"))
    flows.cancel(flows.create("c"))
    clock.advance(60_000)
    assert flows.claim(limit=10, reclaim_ratio=100) == []
    assert flows.reclaim(limit=10) == []


def test_an_empty_claim_writes_nothing(flows: Flows, clock: ManualClock) -> None:
    later = flows.create("later", run_at_ms=clock.now_ms() + 1_000_000)
    job = flows.leased("leased")
    ended = flows.ended("ended")
    with flows.unchanged(later, job, ended):
        assert flows.claim(limit=10) == []
        assert flows.reclaim(limit=10) == []


def test_two_claimers_never_get_the_same_flow(flows: Flows) -> None:
    flows.create_in_order(*range(40))
    futures = [
        flows.store.submit.flow_claim_due(flows.type, worker=f"w{number}", limit=4)
        for number in range(15)
    ]
    taken = [job.id for future in futures for job in future.get(timeout=10)]
    taken += ids(flows.claim(limit=40))
    assert len(taken) == len(set(taken)) == 40


def test_a_worker_may_hold_several_leases(flows: Flows) -> None:
    first, second = flows.leased("a", worker="w"), flows.leased("b", worker="w")
    assert flows.complete(second).state == "completed"
    assert flows.complete(first).state == "completed"


def test_a_flow_that_moved_is_claimed_in_its_new_state(flows: Flows) -> None:
    moved = flows.move(flows.leased(state="created"), "charged")
    assert flows.claim(state="created") == []
    (job,) = flows.claim(state="charged")
    assert job.id == moved.id
    assert job.fencing_token == moved.fencing_token + 1


def test_a_claim_needs_a_worker(flows: Flows) -> None:
    loose: Any = flows.store
    with pytest.raises(TypeError):
        loose.flow_claim_due(flows.type)
    for worker in ("", None, 7, "x" * 513):
        with pytest.raises(sf.InvalidArgument):
            flows.claim(worker=worker)
