"""Section 3.2: claims that wait."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pykka
import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import (
    SHARDS,
    Flows,
    Name,
    assert_waiting,
    get_while_advancing,
    ids,
)

NO_DELAY = sf.Retry(max_retries=5, backoff=sf.Backoff.none())


def answer(future: Any) -> list[str]:
    return ids(future.get(timeout=10))


def first_answered(futures: list[Any]) -> Any:
    for future in futures * 100:
        with contextlib.suppress(pykka.Timeout):
            future.get(timeout=0.02)
            return future
    raise AssertionError("no waiter was answered")


def test_a_claim_that_finds_something_does_not_wait(flows: Flows) -> None:
    flow = flows.create()
    assert ids(flows.claim(block_ms=10_000, limit=10)) == [flow.id]


def test_a_claim_that_may_not_wait_answers_at_once(flows: Flows) -> None:
    assert flows.claim(block_ms=0) == []
    assert flows.claim(block_ms=None) == []


def test_a_waiting_claim_ends_empty_when_its_time_is_over(flows: Flows, clock: ManualClock) -> None:
    future = flows.wait(block_ms=60_000)
    assert get_while_advancing(future, clock, 60_000) == []


def test_a_waiting_claim_takes_a_timedelta(flows: Flows, clock: ManualClock) -> None:
    future = flows.wait(block_ms=timedelta(minutes=1))
    assert get_while_advancing(future, clock, 60_000) == []


def test_a_creation_wakes_a_waiting_claim(flows: Flows) -> None:
    future = flows.wait()
    flow = flows.create(payload="p")
    (job,) = future.get(timeout=10)
    assert (job.id, job.payload, job.state) == (flow.id, "p", "running")
    assert flows.complete(job).state == "completed"


def test_a_batch_of_creations_wakes_a_waiting_claim(flows: Flows, name: Name) -> None:
    future = flows.wait(limit=10)
    flows.store.flow_create_many(
        [{"id": name(number)} for number in range(3)], type=flows.type, partition_key=name("p")
    )
    assert answer(future) == [name(0), name(1), name(2)]


def test_a_transition_wakes_a_waiting_claim(flows: Flows) -> None:
    job = flows.leased(state="created")
    future = flows.wait(state="charged")
    flows.move(job, "charged")
    assert answer(future) == [job.id]


def test_a_transition_out_of_never_wakes_a_waiting_claim(flows: Flows) -> None:
    parked = flows.create(state="parked", run_at_ms=sf.NEVER)
    future = flows.wait()
    flows.move(parked, "queued")
    assert answer(future) == [parked.id]


def test_a_retry_wakes_a_waiting_claim(flows: Flows) -> None:
    job = flows.leased()
    future = flows.wait()
    flows.retry(job, retry=NO_DELAY)
    assert answer(future) == [job.id]


def test_an_exhausted_retry_wakes_a_claim_of_the_state_it_moves_to(flows: Flows) -> None:
    job = flows.leased()
    future = flows.wait(state="repair")
    flows.retry(job, retry=sf.Retry(max_retries=0, exhausted_to="repair"))
    assert answer(future) == [job.id]


def test_time_passing_wakes_a_waiting_claim(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create(run_at_ms=clock.now_ms() + 5_000)
    future = flows.wait(block_ms=60_000)
    clock.advance(5_000)
    assert answer(future) == [flow.id]


def test_time_passing_in_small_steps_wakes_a_waiting_claim_when_it_is_due(
    flows: Flows, clock: ManualClock
) -> None:
    flow = flows.create(run_at_ms=clock.now_ms() + 3)
    future = flows.wait(block_ms=60_000)
    clock.advance(1)
    clock.advance(1)
    assert_waiting(future)
    clock.advance(1)
    assert answer(future) == [flow.id]


def test_the_end_of_a_backoff_wakes_a_waiting_claim(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased()
    future = flows.wait(block_ms=60_000)
    flows.retry(job, run_at_ms=clock.now_ms() + 2_000)
    assert_waiting(future)
    clock.advance(2_000)
    assert answer(future) == [job.id]


def test_an_expiring_lease_wakes_a_waiting_claim(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(lease_ms=5_000)
    future = flows.wait(block_ms=60_000, worker="w2")
    clock.advance(5_000)
    (taken,) = future.get(timeout=10)
    assert taken.id == job.id
    assert taken.lease_owner == "w2"
    assert taken.reclaims == 1


def test_an_extended_lease_does_not_wake_a_waiting_claim_early(
    flows: Flows, clock: ManualClock
) -> None:
    job = flows.leased(lease_ms=5_000)
    future = flows.wait(block_ms=600_000)
    flows.extend(job, lease_ms=20_000)
    clock.advance(5_000)
    assert_waiting(future)
    clock.advance(15_000)
    assert answer(future) == [job.id]


def test_an_expiring_lease_does_not_wake_a_claim_that_leaves_them_alone(
    flows: Flows, clock: ManualClock
) -> None:
    flows.leased("a", lease_ms=5_000)
    future = flows.wait(block_ms=600_000, reclaim_expired=False)
    clock.advance(5_000)
    assert_waiting(future)
    flow = flows.create("b")
    assert answer(future) == [flow.id]


@pytest.mark.parametrize(
    "other",
    [{"state": "charged"}, {"priority": 1}, {"type": "another-type"}, {"run_at_ms": sf.NEVER}],
    ids=["state", "priority", "type", "never"],
)
def test_what_does_not_match_does_not_wake_a_waiting_claim(
    flows: Flows, other: dict[str, Any]
) -> None:
    future = flows.wait(state="queued", priority=0)
    flows.create("other", **other)
    assert_waiting(future)
    flow = flows.create("match")
    assert answer(future) == [flow.id]


def test_a_waiting_claim_of_one_partition_is_not_woken_by_another(flows: Flows, name: Name) -> None:
    for index, keys in enumerate((name.partitions(), name.neighbours(2))):
        future = flows.wait(partition_key=keys[0])
        flows.create(f"other-{index}", partition_key=keys[1])
        assert_waiting(future)
        flow = flows.create(f"match-{index}", partition_key=keys[0])
        assert answer(future) == [flow.id]


def test_a_waiting_claim_of_every_partition_is_woken_by_any_shard(flows: Flows, name: Name) -> None:
    for key in name.partitions():
        future = flows.wait()
        flow = flows.create(key, partition_key=key)
        assert answer(future) == [flow.id]


def test_a_waiting_claim_of_several_states_is_woken_by_each(flows: Flows) -> None:
    for state in ("a", "b"):
        future = flows.wait(state=["a", "b"])
        flow = flows.create(state, state=state)
        assert answer(future) == [flow.id]


def test_a_waiter_that_loses_the_race_waits_on(flows: Flows) -> None:
    futures = [flows.wait(worker=f"w{number}") for number in range(5)]
    made = flows.create_in_order(*range(5))
    taken = [answer(future) for future in futures]
    assert sorted(flow_ids[0] for flow_ids in taken) == made
    assert [len(flow_ids) for flow_ids in taken] == [1] * 5


def test_one_creation_serves_one_of_many_waiters(flows: Flows, clock: ManualClock) -> None:
    futures = [
        flows.wait(worker=f"w{number}", block_ms=60_000, reclaim_expired=False)
        for number in range(3)
    ]
    flow = flows.create()
    winner = first_answered(futures)
    assert answer(winner) == [flow.id]
    losers = [future for future in futures if future is not winner]
    for loser in losers:
        assert_waiting(loser)
    for loser in losers:
        assert get_while_advancing(loser, clock, 60_000) == []


def test_every_waiter_gets_its_own_flow(flows: Flows, name: Name) -> None:
    futures = [flows.wait(worker=f"w{number}") for number in range(8)]
    items = [{"id": name(number)} for number in range(8)]
    flows.store.flow_create_many(items, type=flows.type)
    taken = [flow_id for future in futures for flow_id in answer(future)]
    assert sorted(taken) == [name(number) for number in range(8)]


def test_an_answered_waiter_takes_nothing_more(flows: Flows) -> None:
    future = flows.wait(limit=10)
    first = flows.create("first")
    assert answer(future) == [first.id]
    second = flows.create("second")
    assert flows.get(second).state == "queued"
    assert ids(flows.claim(limit=10)) == [second.id]


def test_a_waiter_whose_time_is_over_takes_nothing_more(flows: Flows, clock: ManualClock) -> None:
    future = flows.wait(block_ms=10)
    assert get_while_advancing(future, clock, 10) == []
    flow = flows.create()
    assert flows.get(flow).state == "queued"


def test_an_async_claim_waits_without_blocking_the_loop(flows: Flows) -> None:
    async def create_while_waiting() -> list[sf.FlowRecord]:
        aio = flows.store.aio
        waiting = asyncio.ensure_future(
            aio.flow_claim_due(flows.type, worker="w1", block_ms=10_000)
        )
        await asyncio.sleep(0)
        await aio.flow_create(flows.name("a"), type=flows.type)
        return list(await asyncio.wait_for(waiting, timeout=10))

    assert ids(asyncio.run(create_while_waiting())) == [flows.name("a")]


def test_a_waiting_claim_is_answered_when_its_store_is_closed(open_store: Any) -> None:
    store = open_store()
    future = store.submit.flow_claim_due("email", worker="w1", block_ms=10_000)
    assert_waiting(future)
    store.close()
    try:
        assert future.get(timeout=5) == []
    except sf.FlowError as error:
        assert error.code in ("store_closed", "outcome_unknown")


def test_the_claim_that_has_waited_longest_is_served_first(flows: Flows, name: Name) -> None:
    waiting = [flows.wait(worker=f"w{number}", limit=1, block_ms=60_000) for number in range(5)]
    for number, future in enumerate(waiting):
        key = name.partitions(SHARDS)[number % SHARDS]
        flows.create(number, partition_key=key)
        (record,) = future.get(timeout=10)
        assert record.lease_owner == f"w{number}"
        for later in waiting[number + 1 :]:
            assert_waiting(later)


def test_many_flows_at_once_serve_as_many_waiting_claims(flows: Flows, name: Name) -> None:
    waiting = [flows.wait(worker=f"w{number}", limit=1, block_ms=60_000) for number in range(20)]
    items = [{"id": name(n), "partition_key": name.partitions(SHARDS)[n % 2]} for n in range(20)]
    flows.store.flow_create_many(items, type=flows.type)
    got = [future.get(timeout=10)[0].id for future in waiting]
    assert sorted(got) == sorted(name(n) for n in range(20))
