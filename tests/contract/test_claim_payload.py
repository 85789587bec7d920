"""Section 3.2: which values a claim brings along."""

from __future__ import annotations

from typing import Any

import pytest

from support.contract import Flows, Name


def test_a_claim_brings_the_payload(flows: Flows) -> None:
    flows.create(payload={"amount": 4200})
    (job,) = flows.claim()
    assert job.payload == {"amount": 4200}
    assert not job.payload_omitted


def test_a_payload_of_exactly_the_cap_is_brought(flows: Flows) -> None:
    flow = flows.create(payload=b"x" * 2_000)
    (job,) = flows.claim(payload_max_bytes=flow.payload_size)
    assert job.payload == b"x" * 2_000


def test_a_payload_over_the_cap_is_omitted_and_can_be_read_later(flows: Flows) -> None:
    flow = flows.create(payload=b"x" * 2_000)
    (job,) = flows.claim(payload_max_bytes=flow.payload_size - 1)
    assert job.payload is None
    assert job.payload_omitted
    assert job.payload_size == flow.payload_size
    assert job.payload_ref == flow.payload_ref
    assert flows.values(job.payload_ref) == [b"x" * 2_000]
    assert flows.complete(job).state == "completed"


def test_the_default_cap_is_64_kib(flows: Flows) -> None:
    flows.create("large", payload=b"x" * 65_537)
    flows.create("small", payload=b"x" * 60_000)
    jobs = {job.id: job for job in flows.claim(limit=2)}
    assert jobs[flows.name("large")].payload_omitted
    assert jobs[flows.name("small")].payload == b"x" * 60_000


def test_a_large_payload_does_not_hurt_the_claim_of_the_others(flows: Flows, name: Name) -> None:
    sizes = [10, 100_000, 20, 200_000, 30]
    for number, size in enumerate(sizes):
        flows.create(number, payload=b"x" * size, partition_key=name("p"))
    jobs = flows.claim(limit=5)
    assert [None if job.payload is None else len(job.payload) for job in jobs] == [
        10,
        None,
        20,
        None,
        30,
    ]
    assert [job.payload_omitted for job in jobs] == [False, True, False, True, False]


def test_without_payload_no_value_is_brought(flows: Flows) -> None:
    flow = flows.create(payload="in", values={"v": 1})
    (job,) = flows.claim(payload=False)
    assert job.payload is None
    assert not job.payload_omitted
    assert job.values == {}
    assert job.payload_size == flow.payload_size
    assert job.payload_ref == flow.payload_ref


def test_a_cap_of_zero_brings_nothing(flows: Flows) -> None:
    flows.create(payload="")
    (job,) = flows.claim(payload_max_bytes=0)
    assert job.payload is None
    assert job.payload_omitted


def test_a_flow_without_a_payload_is_not_called_omitted(flows: Flows) -> None:
    flows.create()
    (job,) = flows.claim(payload_max_bytes=0)
    assert job.payload is None
    assert not job.payload_omitted
    assert job.payload_ref is None


@pytest.mark.parametrize("value", [None, 0, "", False, []], ids=repr)
def test_an_empty_payload_is_brought_as_it_is(flows: Flows, value: Any) -> None:
    flows.create(payload=value)
    (job,) = flows.claim()
    assert job.payload == value
    assert type(job.payload) is type(value)
    assert not job.payload_omitted


def test_named_values_are_brought_on_request(flows: Flows) -> None:
    flows.create(values={"a": 1, "b": None})
    (job,) = flows.claim(values=True)
    assert job.values == {"a": 1, "b": None}


def test_named_values_are_not_brought_unasked(flows: Flows) -> None:
    flows.create(values={"a": 1})
    (job,) = flows.claim()
    assert job.values == {}
    assert set(job.value_refs) == {"a"}


def test_a_takeover_brings_the_payload_too(flows: Flows) -> None:
    flows.expired("a", payload="in", values={"v": 1})
    (job,) = flows.reclaim(payload=True, values=True)
    assert job.payload == "in"
    assert job.values == {"v": 1}


def test_a_takeover_obeys_the_cap(flows: Flows) -> None:
    flows.expired("a", payload=b"x" * 5_000)
    (job,) = flows.claim(payload_max_bytes=1_000)
    assert job.payload_omitted
    assert job.payload is None


def test_a_claim_brings_the_payload_that_a_move_has_set(flows: Flows) -> None:
    flows.move(flows.create(payload="old"), "next", payload="new")
    (job,) = flows.claim()
    assert job.payload == "new"


def test_a_blocked_claim_obeys_the_same_options(flows: Flows) -> None:
    future = flows.wait(payload_max_bytes=1_000, values=True)
    flows.create(payload=b"x" * 5_000, values={"v": 0})
    (job,) = future.get(timeout=10)
    assert job.payload_omitted
    assert job.values == {"v": 0}
