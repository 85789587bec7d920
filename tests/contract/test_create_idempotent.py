"""Section 4: creating a flow twice on purpose."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts

GIVEN: dict[str, Any] = {
    "state": "created",
    "payload": {"amount": 0},
    "priority": 1,
    "run_at_ms": 1_600_000_000_000,
    "correlation_id": "order",
    "parent_flow_id": "parent",
    "root_flow_id": "root",
    "attributes": {"tenant": "t1", "seats": 0},
    "values": {"limit": 0},
    "retention_ttl_ms": 1_000_000,
    "max_active_ms": 1_000_000,
    "history_max_events": 100,
}
CHANGED: dict[str, Any] = {
    "state": "other",
    "payload": {"amount": False},
    "priority": 0,
    "run_at_ms": 1_600_000_000_001,
    "correlation_id": "other",
    "parent_flow_id": "other",
    "root_flow_id": "other",
    "attributes": {"tenant": "t1", "seats": 1},
    "values": {"limit": ""},
    "retention_ttl_ms": 1_000_001,
    "max_active_ms": 1_000_001,
    "history_max_events": 101,
}


def test_an_equal_creation_returns_the_existing_record_and_writes_nothing(flows: Flows) -> None:
    flow = flows.create(idempotent=True, **GIVEN)
    with flows.unchanged(flow):
        again = flows.create(idempotent=True, **GIVEN)
    assert facts(again) == facts(flow)


def test_an_equal_creation_returns_the_record_however_far_it_has_moved(flows: Flows) -> None:
    flow = flows.create(idempotent=True, **GIVEN)
    job = flows.take(flow)
    assert facts(flows.create(idempotent=True, **GIVEN)) == facts(job)
    moved = flows.move(job, "moved", priority=2, payload="new", attributes={"tenant": "t2"})
    assert facts(flows.create(idempotent=True, **GIVEN)) == facts(moved)
    ended = flows.complete(flows.take(moved))
    with flows.unchanged(ended):
        assert facts(flows.create(idempotent=True, **GIVEN)) == facts(ended)


@pytest.mark.parametrize("field", sorted(GIVEN))
def test_one_other_argument_is_a_conflict(flows: Flows, field: str) -> None:
    flow = flows.create(idempotent=True, **GIVEN)
    with flows.unchanged(flow), pytest.raises(sf.IdempotencyConflict) as caught:
        flows.create(idempotent=True, **{**GIVEN, field: CHANGED[field]})
    assert caught.value.flow_id == flow.id


@pytest.mark.parametrize("field", sorted(set(GIVEN) - {"priority"}))
def test_an_argument_left_out_the_second_time_is_a_conflict(flows: Flows, field: str) -> None:
    flow = flows.create(idempotent=True, **GIVEN)
    rest = {key: value for key, value in GIVEN.items() if key != field}
    with flows.unchanged(flow), pytest.raises(sf.IdempotencyConflict):
        flows.create(idempotent=True, **rest)


def test_another_type_is_a_conflict(flows: Flows, name: Name) -> None:
    flow = flows.create(idempotent=True)
    with flows.unchanged(flow), pytest.raises(sf.IdempotencyConflict):
        flows.create(idempotent=True, type=name("other-type"))


def test_a_payload_of_none_is_not_the_same_as_no_payload(flows: Flows) -> None:
    flow = flows.create(idempotent=True, payload=None)
    with flows.unchanged(flow), pytest.raises(sf.IdempotencyConflict):
        flows.create(idempotent=True)


@pytest.mark.parametrize(("first", "second"), [(1, True), (0, False), ("", b""), (1, 1.0)])
def test_payloads_of_different_types_are_different_payloads(
    flows: Flows, first: object, second: object
) -> None:
    flow = flows.create(idempotent=True, payload=first)
    with flows.unchanged(flow), pytest.raises(sf.IdempotencyConflict):
        flows.create(idempotent=True, payload=second)


def test_a_default_spelled_out_is_the_same_argument(flows: Flows) -> None:
    flow = flows.create(idempotent=True)
    with flows.unchanged(flow):
        flows.create(idempotent=True, state="queued", priority=0, partition_key=None)


def test_the_order_of_attributes_and_values_does_not_matter(flows: Flows) -> None:
    flow = flows.create(idempotent=True, attributes={"a": 1, "b": 2}, values={"c": 3, "d": 4})
    with flows.unchanged(flow):
        flows.create(idempotent=True, attributes={"b": 2, "a": 1}, values={"d": 4, "c": 3})


def test_the_time_of_the_repeat_does_not_matter(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create(idempotent=True)
    clock.advance(5_000)
    with flows.unchanged(flow):
        flows.create(idempotent=True)


def test_the_first_creation_need_not_have_been_idempotent(flows: Flows) -> None:
    flow = flows.create(payload=1)
    with flows.unchanged(flow):
        assert facts(flows.create(payload=1, idempotent=True)) == facts(flow)


def test_a_repeat_that_does_not_say_idempotent_is_refused(flows: Flows) -> None:
    flow = flows.create(payload=1, idempotent=True)
    with flows.unchanged(flow), pytest.raises(sf.FlowAlreadyExists):
        flows.create(payload=1)


def test_idempotent_creation_judges_each_partition_by_itself(flows: Flows, name: Name) -> None:
    flow = flows.create(idempotent=True, payload=1, partition_key=name("p"))
    with flows.unchanged(flow):
        other = flows.create(idempotent=True, payload=2, partition_key=name("q"))
    assert other.version == 1


def test_a_batch_of_creations_may_be_repeated(flows: Flows, name: Name) -> None:
    items = [{"id": name(number), "payload": number} for number in range(6)]
    first = flows.store.flow_create_many(items, type=flows.type, idempotent=True)
    with flows.unchanged(*first):
        again = flows.store.flow_create_many(items, type=flows.type, idempotent=True)
    assert [facts(record) for record in again] == [facts(record) for record in first]
