"""Section 9: what a payload, result, error or named value may be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, facts

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    0.0,
    1.5,
    float("inf"),
    "",
    "text",
    "\u00e9\U0001f600\0",
    b"",
    b"\x00\xff",
    [],
    [[], [None, 0, ""]],
    {},
    {"": 0, "nested": {"list": [1, {"deep": b"x"}]}},
    {1: "one", 2: "two"},
    datetime(2024, 2, 29, 12, 30, 15, 999_999, tzinfo=UTC),
    datetime(1960, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    {"at": [datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=5, minutes=30)))]},
]
REFUSED: list[Any] = [
    object(),
    {1, 2},
    2**64,
    -(2**63) - 1,
    datetime(2024, 2, 29),
    [datetime(2024, 2, 29)],
    {"deep": [object()]},
    "\ud800",
    lambda: None,
]


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down: 0 is not False here."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_went_in_from_every_place(flows: Flows, value: Any) -> None:
    flow = flows.create(payload=value, values={"named": value})
    (job,) = flows.claim(values=True)
    assert same(job.payload, value)
    assert same(job.values["named"], value)
    read = flows.read(flows.complete(job, result=value))
    assert same(read.payload, value)
    assert same(read.result, value)
    assert same(read.values["named"], value)
    failed = flows.fail(flows.leased("b"), error=value)
    assert same(flows.read(failed).error, value)
    (got,) = flows.values(flow.payload_ref)
    assert same(got, value)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_packed_is_refused_before_anything_is_written(
    flows: Flows, value: Any
) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.create("new", payload=value)
    with pytest.raises(sf.InvalidArgument):
        flows.create("new", values={"named": value})
    assert flows.store.flow_get(flows.name("new")) is None
    job = flows.leased()
    with flows.unchanged(job):
        for refused in (
            lambda: flows.complete(job, result=value),
            lambda: flows.fail(job, error=value),
            lambda: flows.retry(job, error=value),
            lambda: flows.move(job, "next", payload=value),
            lambda: flows.put(job, "named", value),
        ):
            with pytest.raises(sf.InvalidArgument):
                refused()


def test_none_is_a_payload_and_no_payload_is_none_at_all(flows: Flows) -> None:
    given, missing = flows.create("given", payload=None), flows.create("missing")
    assert given.payload_ref is not None
    assert given.payload_size > 0
    assert missing.payload_ref is None
    assert missing.payload_size == 0
    assert flows.read(given).payload is None
    assert flows.read(missing).payload is None


def test_none_is_a_result_and_an_error(flows: Flows) -> None:
    assert flows.complete(flows.leased("a"), result=None).result_ref is not None
    assert flows.complete(flows.leased("b")).result_ref is None
    assert flows.fail(flows.leased("c"), error=None).error_ref is not None
    assert flows.fail(flows.leased("d")).error_ref is None


def test_an_empty_value_is_not_a_missing_one(flows: Flows) -> None:
    for number, value in enumerate([0, "", b"", [], {}, False]):
        flow = flows.create(number, payload=value)
        assert flow.payload_ref is not None
        assert same(flows.read(flow).payload, value)


def test_a_command_that_gives_no_payload_keeps_the_one_there(flows: Flows) -> None:
    job = flows.leased(payload="first")
    moved = flows.move(job, "next")
    assert flows.read(moved).payload == "first"
    retried = flows.retry(flows.take(moved), run_at_ms=0)
    assert flows.read(retried).payload == "first"
    stepped = flows.step(flows.take(retried), "third")
    assert flows.read(stepped).payload == "first"
    assert flows.read(flows.complete(stepped)).payload == "first"


@pytest.mark.parametrize("value", [None, 0, "", [], "new"], ids=repr)
def test_a_command_that_gives_a_payload_replaces_the_one_there(flows: Flows, value: Any) -> None:
    job = flows.leased(payload="first")
    moved = flows.move(job, "next", payload=value)
    assert same(flows.read(moved).payload, value)
    ended = flows.complete(flows.take(moved), payload={"last": value})
    assert same(flows.read(ended).payload, {"last": value})


def test_a_value_of_the_largest_size_is_kept_and_a_larger_one_refused(flows: Flows) -> None:
    limit = 16 * 2**20
    largest = b"x" * (limit - 16)
    flow = flows.create("largest", payload=largest)
    assert flow.payload_size <= limit
    (job,) = flows.claim(payload_max_bytes=limit)
    assert job.payload == largest
    with pytest.raises(sf.InvalidArgument):
        flows.create("over", payload=b"x" * (limit + 1))
    assert flows.store.flow_get(flows.name("over")) is None
    with flows.unchanged(job), pytest.raises(sf.InvalidArgument):
        flows.complete(job, result=b"x" * (limit + 1))


def test_a_change_of_the_callers_object_afterwards_changes_nothing(flows: Flows) -> None:
    payload = {"list": [1]}
    flow = flows.create(payload=payload, attributes={"a": 1})
    payload["list"].append(2)
    first = flows.read(flow)
    assert first.payload == {"list": [1]}
    first.payload["list"].append(3)
    assert flows.read(flow).payload == {"list": [1]}
    assert facts(flows.get(flow)) == facts(flow)
