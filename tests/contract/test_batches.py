"""Section 4: several flows in one call, when all goes well or nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts, ids, item

MANY: dict[str, tuple[str, dict[str, Any]]] = {
    "complete": ("completed", {}),
    "fail": ("failed", {}),
    "retry": ("queued", {"run_at_ms": 0}),
    "transition": ("next", {"from_state": "queued", "to_state": "next"}),
    "cancel": ("cancelled", {}),
}


@pytest.fixture(params=sorted(MANY))
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def many(flows: Flows, verb: str, items: list[dict[str, Any]], **options: Any) -> Any:
    command: Callable[..., Any] = getattr(flows.store, f"flow_{verb}_many")
    return command([MANY[verb][1] | fields for fields in items], **options)


def leased_on_all_shards(flows: Flows, count: int = 6) -> list[sf.FlowRecord]:
    keys = flows.name.partitions()
    for number in range(count):
        flows.create(number, partition_key=keys[number % len(keys)])
    return sorted(flows.claim(limit=count), key=lambda job: job.id)


@pytest.mark.parametrize("independent", [False, True])
def test_created_flows_come_back_in_the_order_of_the_items(
    flows: Flows, name: Name, independent: bool
) -> None:
    keys = [*name.partitions(), None]
    items = [{"id": name(n), "partition_key": keys[n % 3], "payload": n} for n in range(12)]
    made = flows.store.flow_create_many(items, type=flows.type, independent=independent)
    assert ids(made) == [fields["id"] for fields in items]
    assert [record.partition_key for record in made] == [keys[n % 3] for n in range(12)]
    assert [flows.read(record).payload for record in made] == list(range(12))
    assert [facts(flows.get(record)) for record in made] == [facts(record) for record in made]


def test_defaults_hold_for_items_that_say_nothing(flows: Flows, name: Name) -> None:
    made = flows.store.flow_create_many(
        [{"id": name(0)}, {"id": name(1), "state": "own", "priority": 0, "payload": None}],
        type=flows.type,
        partition_key=name("p"),
        state="shared",
        priority=2,
        payload="shared",
        correlation_id=name("c"),
        attributes={"a": 1},
    )
    assert [(r.state, r.priority, flows.read(r).payload) for r in made] == [
        ("shared", 2, "shared"),
        ("own", 0, None),
    ]
    assert {record.partition_key for record in made} == {name("p")}
    assert {record.correlation_id for record in made} == {name("c")}
    assert [record.attributes for record in made] == [{"a": 1}, {"a": 1}]


def test_an_item_may_leave_the_default_partition(flows: Flows, name: Name) -> None:
    made = flows.store.flow_create_many(
        [{"id": name(0)}, {"id": name(1), "partition_key": name("q")}],
        type=flows.type,
        partition_key=name("p"),
    )
    assert [record.partition_key for record in made] == [name("p"), name("q")]


def test_the_type_may_be_given_by_each_item(flows: Flows, name: Name) -> None:
    made = flows.store.flow_create_many(
        [{"id": name(0), "type": name("x")}, {"id": name(1), "type": name("y")}]
    )
    assert [record.type for record in made] == [name("x"), name("y")]


def test_a_batch_settles_flows_on_all_shards(flows: Flows, verb: str) -> None:
    jobs = leased_on_all_shards(flows)
    results = many(flows, verb, [item(job) for job in jobs])
    assert ids(results) == ids(jobs)
    for job, record in zip(jobs, results, strict=True):
        assert record.state == MANY[verb][0]
        assert record.lease_token is None
        assert record.version == job.version + 1
        assert facts(flows.get(job)) == facts(record)
        assert len(flows.events(job)) == record.version


def test_results_and_errors_are_given_by_each_item(flows: Flows) -> None:
    jobs = leased_on_all_shards(flows)
    flows.store.flow_complete_many([item(job, result=job.id) for job in jobs[:3]])
    flows.store.flow_fail_many([item(job, error=job.id) for job in jobs[3:]])
    assert [flows.read(job).result for job in jobs[:3]] == ids(jobs[:3])
    assert [flows.read(job).error for job in jobs[3:]] == ids(jobs[3:])


def test_each_item_of_a_retry_has_its_own_policy(flows: Flows, clock: ManualClock) -> None:
    jobs = leased_on_all_shards(flows, 3)
    fixed = {"kind": "fixed", "max_ms": 9_000, "jitter_pct": 0}
    results = flows.store.flow_retry_many(
        [
            item(jobs[0], retry={"max_retries": 0}),
            item(jobs[1], retry={"backoff": {**fixed, "base_ms": 10}}),
            item(jobs[2], run_at_ms=clock.now_ms() + 7),
        ]
    )
    assert [record.state for record in results] == ["failed", "queued", "queued"]
    assert results[1].next_run_at_ms == clock.now_ms() + 10
    assert results[2].next_run_at_ms == clock.now_ms() + 7


def test_each_item_of_a_move_has_its_own_target(flows: Flows) -> None:
    jobs = leased_on_all_shards(flows, 2)
    results = flows.store.flow_transition_many(
        [item(job, from_state="queued", to_state=f"s{n}") for n, job in enumerate(jobs)]
    )
    assert [record.state for record in results] == ["s0", "s1"]


def test_waiting_flows_are_cancelled_in_one_batch(flows: Flows, name: Name) -> None:
    made = flows.create_in_order(*range(4))
    results = flows.store.flow_cancel_many([{"id": flow_id} for flow_id in made])
    assert [record.state for record in results] == ["cancelled"] * 4


def test_a_thousand_items_are_a_batch_and_one_more_is_not(flows: Flows, name: Name) -> None:
    items = [{"id": name(number)} for number in range(1_001)]
    with pytest.raises(sf.InvalidArgument):
        flows.store.flow_create_many(items, type=flows.type)
    assert flows.store.flow_get(name(0)) is None
    made = flows.store.flow_create_many(items[:1_000], type=flows.type)
    assert ids(made) == [name(number) for number in range(1_000)]
    jobs = flows.claim(limit=1_000)
    with flows.unchanged(jobs[0]), pytest.raises(sf.InvalidArgument):
        flows.store.flow_complete_many([item(job) for job in [*jobs, jobs[0]]])
    done = flows.store.flow_complete_many([item(job) for job in jobs])
    assert {record.state for record in done} == {"completed"}


@pytest.mark.parametrize("independent", [False, True])
def test_the_same_flow_twice_is_refused_before_anything_is_written(
    flows: Flows, name: Name, independent: bool
) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.store.flow_create_many(
            [{"id": name(0)}, {"id": name(1)}, {"id": name(0)}],
            type=flows.type,
            independent=independent,
        )
    assert flows.store.flow_get(name(0)) is None
    assert flows.store.flow_get(name(1)) is None


@pytest.mark.parametrize("independent", [False, True])
def test_the_same_flow_twice_settles_nothing(flows: Flows, verb: str, independent: bool) -> None:
    jobs = leased_on_all_shards(flows, 2)
    items = [item(job) for job in (jobs[0], jobs[1], jobs[0])]
    with flows.unchanged(*jobs), pytest.raises(sf.InvalidArgument):
        many(flows, verb, items, independent=independent)


def test_the_same_id_in_two_partitions_may_stand_in_one_batch(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    made = flows.store.flow_create_many(
        [{"id": name("a"), "partition_key": key} for key in (*keys, None)], type=flows.type
    )
    assert [record.partition_key for record in made] == [*keys, None]
    jobs = flows.claim(limit=3)
    done = flows.store.flow_complete_many([item(job) for job in jobs])
    assert [record.state for record in done] == ["completed"] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": None},
        {"id": 7},
        {"id": "x" * 513},
        {"id": "ok", "priority": 3},
        {"id": "ok", "state": "running"},
        {"id": "ok", "payload": object()},
        {"id": "ok", "run_at_ms": -1},
        {"id": "ok", "partition_key": ""},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_one_invalid_item_refuses_the_batch_before_anything_is_written(
    flows: Flows, name: Name, wrong: dict[str, Any]
) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.store.flow_create_many([{"id": name(0)}, wrong], type=flows.type)
    assert flows.store.flow_get(name(0)) is None


def test_an_item_field_that_does_not_exist_is_refused(flows: Flows, name: Name) -> None:
    with pytest.raises((TypeError, sf.InvalidArgument)):
        flows.store.flow_create_many([{"id": name(0), "colour": "red"}], type=flows.type)
    assert flows.store.flow_get(name(0)) is None
    job = flows.leased()
    with flows.unchanged(job), pytest.raises((TypeError, sf.InvalidArgument)):
        flows.store.flow_complete_many([item(job, colour="red")])


def test_an_item_without_an_id_is_refused(flows: Flows) -> None:
    with pytest.raises((TypeError, sf.InvalidArgument)):
        flows.store.flow_create_many([{"payload": 1}], type=flows.type)


def test_the_callers_items_are_left_as_they_were(flows: Flows, name: Name) -> None:
    items = [{"id": name(0), "attributes": {"a": 1}}]
    flows.store.flow_create_many(items, type=flows.type, state="s")
    assert items == [{"id": name(0), "attributes": {"a": 1}}]
