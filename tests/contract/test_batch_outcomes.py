"""Section 4: batches in which something is refused."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, Name, facts, ids, item


def spread(flows: Flows, count: int = 6) -> list[sf.FlowRecord]:
    """Return leased flows that lie on both shards in turn."""
    keys = flows.name.partitions()
    for number in range(count):
        flows.create(number, partition_key=keys[number % 2])
    return sorted(flows.claim(limit=count), key=lambda job: job.id)


def codes(results: list[Any]) -> list[str]:
    """Return for every result the code of its error, or the state of its record."""
    return [result.code if isinstance(result, sf.FlowError) else result.state for result in results]


def test_a_refused_item_refuses_its_shards_group_and_no_other(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    taken = flows.create(2, partition_key=keys[0])
    items = [{"id": name(n), "partition_key": keys[n % 2]} for n in range(6)]
    with flows.unchanged(taken), pytest.raises(sf.BatchError) as caught:
        flows.store.flow_create_many(items, type=flows.type)
    assert codes(caught.value.results) == [
        "batch_aborted",
        "queued",
        "flow_already_exists",
        "queued",
        "batch_aborted",
        "queued",
    ]
    for number, result in enumerate(caught.value.results):
        record = flows.store.flow_get(name(number), partition_key=keys[number % 2])
        if isinstance(result, sf.FlowRecord):
            assert record is not None
            assert facts(record) == facts(result)
        elif number != 2:
            assert record is None


def test_a_partition_shares_its_fate(flows: Flows, name: Name) -> None:
    taken = flows.create("taken", partition_key=name("p"))
    items = [{"id": name(n), "partition_key": name("p")} for n in range(3)] + [
        {"id": taken.id, "partition_key": name("p")}
    ]
    with pytest.raises(sf.BatchError) as caught:
        flows.store.flow_create_many(items, type=flows.type)
    assert codes(caught.value.results) == ["batch_aborted"] * 3 + ["flow_already_exists"]
    assert ids(flows.store.flow_list(flows.type)) == [taken.id]


def test_every_group_may_be_refused(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    for number in range(2):
        flows.create(number, partition_key=keys[number])
    items = [{"id": name(n), "partition_key": keys[n % 2]} for n in range(4)]
    with pytest.raises(sf.BatchError) as caught:
        flows.store.flow_create_many(items, type=flows.type)
    assert codes(caught.value.results) == ["flow_already_exists"] * 2 + ["batch_aborted"] * 2


def test_a_stale_item_settles_nothing_of_its_group(flows: Flows) -> None:
    jobs = spread(flows)
    flows.cancel(jobs[1], force=True)
    with flows.unchanged(*jobs[1::2]), pytest.raises(sf.BatchError) as caught:
        flows.store.flow_complete_many([item(job) for job in jobs])
    assert codes(caught.value.results) == [
        "completed",
        "stale_lease",
        "completed",
        "batch_aborted",
        "completed",
        "batch_aborted",
    ]
    assert [flows.get(job).state for job in jobs[::2]] == ["completed"] * 3
    # The sound ones are still theirs.
    rest = flows.store.flow_complete_many([item(job) for job in jobs[3::2]])
    assert codes(rest) == ["completed"] * 2


@pytest.mark.parametrize("independent", [False, True])
def test_errors_in_a_batch_name_their_flow(flows: Flows, independent: bool) -> None:
    jobs = spread(flows, 2)
    items = [item(job, lease_token="another") for job in jobs]
    results: list[Any]
    if independent:
        results = flows.store.flow_complete_many(items, independent=True)
    else:
        with pytest.raises(sf.BatchError) as caught:
            flows.store.flow_complete_many(items)
        results = caught.value.results
    assert [type(error) for error in results] == [sf.StaleLease] * 2
    assert [error.flow_id for error in results] == ids(jobs)
    assert [error.partition_key for error in results] == [job.partition_key for job in jobs]


def test_independent_items_are_judged_alone(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    taken = flows.create(2, partition_key=keys[0], payload="first")
    items = [{"id": name(n), "partition_key": keys[n % 2]} for n in range(6)]
    with flows.unchanged(taken):
        results = flows.store.flow_create_many(items, type=flows.type, independent=True)
    assert codes(results) == ["queued", "queued", "flow_already_exists"] + ["queued"] * 3
    for number, result in enumerate(results):
        if number != 2:
            record = flows.store.flow_get(name(number), partition_key=keys[number % 2])
            assert record is not None
            assert facts(record) == facts(result)


def test_independent_settlements_mix_all_outcomes(flows: Flows, name: Name) -> None:
    jobs = spread(flows, 8)
    repeated = flows.complete(jobs[0], result=1)
    flows.fail(jobs[1])
    flows.cancel(jobs[2], force=True)
    items = [
        item(jobs[0], result=1),
        item(jobs[1]),
        item(jobs[2]),
        item(jobs[3], lease_token="another"),
        item(jobs[4], fencing_token=0),
        item(jobs[5], id=name("nowhere")),
        item(jobs[6]),
        item(jobs[7], result="r"),
    ]
    with flows.unchanged(*jobs[:6]):
        results = flows.store.flow_complete_many(items, independent=True)
    assert codes(results) == [
        "completed",
        "stale_lease",
        "stale_lease",
        "stale_lease",
        "stale_lease",
        "flow_not_found",
        "completed",
        "completed",
    ]
    assert facts(results[0]) == facts(repeated)
    assert flows.read(jobs[7]).result == "r"


def test_independent_items_all_refused_raise_nothing(flows: Flows, name: Name) -> None:
    results = flows.store.flow_cancel_many([{"id": name(n)} for n in range(3)], independent=True)
    assert codes(results) == ["flow_not_found"] * 3


def test_moves_in_a_batch_are_guarded_one_by_one(flows: Flows) -> None:
    jobs = spread(flows, 4)
    states = ["queued", "queued", "elsewhere", "running"]
    items = [
        item(job, from_state=state, to_state="next")
        for job, state in zip(jobs, states, strict=True)
    ]
    results = flows.store.flow_transition_many(items, independent=True)
    assert codes(results) == ["next", "next", "wrong_state", "next"]
    assert flows.get(jobs[2]).state == "running"


def test_cancellations_in_a_batch_follow_the_rules_of_a_single_one(flows: Flows) -> None:
    waiting = flows.create("waiting", state="parked", run_at_ms=sf.NEVER)
    held, forced, done = (flows.leased(suffix) for suffix in ("held", "forced", "done"))
    gone = flows.cancel(flows.create("gone"))
    flows.complete(done)
    results = flows.store.flow_cancel_many(
        [
            {"id": waiting.id},
            {"id": held.id},
            {"id": forced.id, "force": True},
            {"id": done.id},
            {"id": gone.id},
        ],
        independent=True,
    )
    assert codes(results) == [
        "cancelled",
        "stale_lease",
        "cancelled",
        "flow_terminal",
        "cancelled",
    ]
    assert facts(results[4]) == facts(gone)


def test_a_refused_group_leaves_no_trace(flows: Flows, name: Name) -> None:
    jobs = spread(flows, 4)
    group = jobs[::2]
    items = [
        item(group[0], run_at_ms=0, payload="new", error="boom"),
        item(group[1], run_at_ms=0, lease_token="another"),
    ]
    with flows.unchanged(*group), pytest.raises(sf.BatchError):
        flows.store.flow_retry_many(items)
    assert flows.read(group[0]).payload is None
    assert flows.claim(limit=10) == []
    assert flows.store.flow_info(flows.type)["leased"] == 4


def test_a_refused_group_of_creations_is_not_claimable(flows: Flows, name: Name) -> None:
    flows.cancel(flows.create("taken", partition_key=name("p")))
    with pytest.raises(sf.BatchError):
        flows.store.flow_create_many(
            [{"id": name(s)} for s in ("a", "b", "taken")],
            type=flows.type,
            partition_key=name("p"),
        )
    assert flows.claim(limit=10) == []
    assert flows.store.flow_info(flows.type)["ready"] == 0
    for suffix in ("a", "b"):
        flows.create(suffix, partition_key=name("p"))
    assert len(flows.claim(limit=10)) == 2


def test_an_idempotency_conflict_is_an_error_of_its_item(flows: Flows, name: Name) -> None:
    flows.create(1, payload="first")
    results = flows.store.flow_create_many(
        [{"id": name(0)}, {"id": name(1), "payload": "second"}],
        type=flows.type,
        idempotent=True,
        independent=True,
    )
    assert codes(results) == ["queued", "idempotency_conflict"]


def test_a_batch_error_is_raised_from_a_future_and_from_an_awaitable(
    flows: Flows, name: Name
) -> None:
    flows.create("taken")
    future = flows.store.submit.flow_create_many([{"id": name("taken")}], type=flows.type)
    with pytest.raises(sf.BatchError) as caught:
        future.get(timeout=10)
    assert codes(caught.value.results) == ["flow_already_exists"]
