"""Section 3: what is refused before anything is written."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.limits import FILTER_NAMES_MAX
from support import calls
from support.contract import Flows, Name

BAD_NAMES: list[Any] = ["", "x" * 513, "\u00e9" * 257, "\ud800", 7, None, b"x", ["x"]]
BAD_INTEGERS: list[Any] = [-1, 2**53, 1.5, 1.0, "1", True, [1]]


@pytest.mark.parametrize("command", sorted(calls.ALL))
def test_an_unknown_keyword_is_a_type_error(flows: Flows, name: Name, command: str) -> None:
    with pytest.raises(TypeError):
        calls.ALL[command](flows.store, name("a"), flows.type, colour="red")
    assert flows.store.flow_get(name("a")) is None


@pytest.mark.parametrize("command", sorted(calls.ALL))
def test_a_time_that_is_no_time_is_refused(flows: Flows, name: Name, command: str) -> None:
    for now_ms in (-1, 2**53, 1.5, "now"):
        with pytest.raises(sf.InvalidArgument):
            calls.ALL[command](flows.store, name("a"), flows.type, now_ms=now_ms)
    assert flows.store.flow_get(name("a")) is None


@pytest.mark.parametrize("command", sorted(calls.ALL))
def test_a_naive_datetime_is_refused_as_the_time(flows: Flows, name: Name, command: str) -> None:
    with pytest.raises(ValueError):
        calls.ALL[command](flows.store, name("a"), flows.type, now_ms=datetime(2024, 1, 1))
    assert flows.store.flow_get(name("a")) is None


@pytest.mark.parametrize("command", sorted(calls.NEEDS_FLOW_ID))
def test_an_id_out_of_bounds_is_refused(flows: Flows, command: str) -> None:
    for flow_id in BAD_NAMES:
        with pytest.raises(sf.InvalidArgument):
            calls.ALL[command](flows.store, flow_id, flows.type)
    assert flows.store.flow_list(flows.type) == []


@pytest.mark.parametrize("command", sorted(calls.NEEDS_FLOW_ID))
def test_a_partition_key_out_of_bounds_is_refused(flows: Flows, name: Name, command: str) -> None:
    for key in BAD_NAMES:
        if key is not None:
            with pytest.raises(sf.InvalidArgument):
                calls.ALL[command](flows.store, name("a"), flows.type, partition_key=key)
    assert flows.store.flow_list(flows.type) == []


@pytest.mark.parametrize("command", sorted(calls.ON_A_TYPE | calls.ON_NEW_FLOWS))
def test_a_type_out_of_bounds_is_refused(flows: Flows, name: Name, command: str) -> None:
    for flow_type in BAD_NAMES:
        with pytest.raises(sf.InvalidArgument):
            calls.ALL[command](flows.store, name("a"), flow_type)
    assert flows.store.flow_get(name("a")) is None


@pytest.mark.parametrize("command", sorted(calls.ON_ONE_FLOW))
def test_a_write_to_an_absent_flow_is_refused(flows: Flows, name: Name, command: str) -> None:
    with pytest.raises(sf.FlowNotFound) as caught:
        calls.ALL[command](flows.store, name("a"), flows.type)
    assert caught.value.flow_id == name("a")
    assert caught.value.applied == "no"


@pytest.mark.parametrize("command", sorted(calls.ON_MANY_FLOWS))
def test_a_batch_on_an_absent_flow_is_refused(flows: Flows, name: Name, command: str) -> None:
    with pytest.raises(sf.BatchError) as caught:
        calls.ALL[command](flows.store, name("a"), flows.type)
    assert [type(error) for error in caught.value.results] == [sf.FlowNotFound]


@pytest.mark.parametrize(
    "field", ["state", "parent_flow_id", "root_flow_id", "correlation_id", "partition_key"]
)
def test_a_name_out_of_bounds_is_refused_at_creation(flows: Flows, field: str) -> None:
    for bad in BAD_NAMES:
        if bad is None and field != "state":
            continue
        with pytest.raises(sf.InvalidArgument):
            flows.create(**{field: bad})
    assert flows.store.flow_get(flows.name("a")) is None


@pytest.mark.parametrize(
    "field", ["priority", "run_at_ms", "retention_ttl_ms", "history_max_events"]
)
def test_an_integer_out_of_bounds_is_refused_at_creation(flows: Flows, field: str) -> None:
    for bad in BAD_INTEGERS:
        with pytest.raises(sf.InvalidArgument):
            flows.create(**{field: bad})
    assert flows.store.flow_get(flows.name("a")) is None


@pytest.mark.parametrize("priority", [3, -1, 2**53 - 1])
def test_a_priority_is_zero_to_two(flows: Flows, priority: int) -> None:
    flow = flows.create("there")
    with flows.unchanged(flow):
        with pytest.raises(sf.InvalidArgument):
            flows.create("a", priority=priority)
        with pytest.raises(sf.InvalidArgument):
            flows.move(flow, "next", priority=priority)
        with pytest.raises(sf.InvalidArgument):
            flows.claim(priority=priority)


@pytest.mark.parametrize(
    "options",
    [{"limit": bad} for bad in (0, -1, 1_001, 1.0, "1", True, None)]
    + [{"lease_ms": bad} for bad in (*BAD_INTEGERS, None)]
    + [{"payload_max_bytes": bad} for bad in (-1, 2**53, 1.5, "1")]
    + [{"reclaim_ratio": bad} for bad in (-1, 101, 0.25, "25")]
    + [{"block_ms": bad} for bad in (-1, 2**53, 1.5, "1")]
    + [{"worker": bad} for bad in BAD_NAMES]
    + [{"state": bad} for bad in ("", "x" * 513, 7, [""], [7], ["a", "x" * 513])]
    + [{"partition_key": bad} for bad in ("", "x" * 513, 7)]
    + [{"partition_keys": bad} for bad in ([""], [7], ["a", "x" * 513])],
    ids=lambda options: "-".join(f"{key}={str(value)[:20]}" for key, value in options.items()),
)
def test_a_claim_out_of_bounds_takes_nothing(flows: Flows, options: dict[str, Any]) -> None:
    flow = flows.create()
    with flows.unchanged(flow), pytest.raises(sf.InvalidArgument):
        flows.claim(**options)


@pytest.mark.parametrize("limit", [0, 1_001])
def test_a_reclaim_has_the_same_limits(flows: Flows, limit: int) -> None:
    (job,) = flows.expired("a")
    with flows.unchanged(job), pytest.raises(sf.InvalidArgument):
        flows.reclaim(limit=limit)


def test_a_lease_out_of_bounds_is_not_given(flows: Flows) -> None:
    job = flows.leased()
    with flows.unchanged(job):
        for lease_ms in BAD_INTEGERS:
            with pytest.raises(sf.InvalidArgument):
                flows.extend(job, lease_ms=lease_ms)
            with pytest.raises(sf.InvalidArgument):
                flows.step(job, "next", lease_ms=lease_ms)


@pytest.mark.parametrize("command", ["flow_list", "flow_stuck", "flow_by_root", "flow_history"])
def test_a_count_out_of_bounds_is_refused(flows: Flows, name: Name, command: str) -> None:
    flows.create()
    for count in (0, -1, 10_001, 1.5, "1", True):
        with pytest.raises(sf.InvalidArgument):
            calls.ALL[command](flows.store, name("a"), flows.type, count=count)


@pytest.mark.parametrize(
    "command", ["flow_list", "flow_stuck", "flow_by_root", "flow_by_parent", "flow_by_correlation"]
)
def test_a_list_has_a_thousand_flows_at_most(flows: Flows, name: Name, command: str) -> None:
    assert list(calls.ALL[command](flows.store, name("a"), flows.type, count=1_000)) == []
    with pytest.raises(sf.InvalidArgument):
        calls.ALL[command](flows.store, name("a"), flows.type, count=1_001)


def test_a_target_state_out_of_bounds_is_refused(flows: Flows) -> None:
    job = flows.leased()
    with flows.unchanged(job):
        for to_state in BAD_NAMES:
            with pytest.raises(sf.InvalidArgument):
                flows.move(job, to_state)
            with pytest.raises(sf.InvalidArgument):
                flows.step(job, to_state)


def test_a_fencing_token_out_of_bounds_is_refused(flows: Flows) -> None:
    job = flows.leased()
    with flows.unchanged(job):
        for fencing_token in BAD_INTEGERS:
            with pytest.raises(sf.InvalidArgument):
                flows.complete(job, fencing_token=fencing_token)


def test_at_most_a_thousand_references_are_read_at_once(flows: Flows) -> None:
    ref = flows.create(payload=0).payload_ref
    assert flows.values(*[ref] * 1_000) == [0] * 1_000
    with pytest.raises(sf.InvalidArgument):
        flows.values(*[ref] * 1_001)


def test_an_invalid_argument_is_a_value_error_that_names_what_is_wrong(flows: Flows) -> None:
    with pytest.raises(ValueError) as caught:
        flows.create(priority=3)
    error = caught.value
    assert isinstance(error, sf.InvalidArgument)
    assert error.code == "invalid_argument"
    assert error.argument == "priority"
    assert "priority" in str(error)
    assert "3" in str(error)
    assert error.applied == "no"


def test_an_invalid_argument_is_refused_even_when_the_flow_exists(flows: Flows) -> None:
    flow = flows.create()
    with flows.unchanged(flow), pytest.raises(sf.InvalidArgument):
        flows.create(priority=3, idempotent=True)


def test_names_up_to_512_bytes_are_names(flows: Flows, name: Name) -> None:
    for letter in ("x", "\u00e9", "\U0001f600"):
        longest = name.padded(512, letter)
        assert len(longest.encode()) == 512
        flow = flows.store.flow_create(
            longest,
            type=longest,
            state=longest,
            partition_key=longest,
            correlation_id=longest,
            parent_flow_id=longest,
        )
        (job,) = flows.claim(type=longest, worker=longest, partition_key=longest, state=longest)
        assert job.id == flow.id == longest
        assert job.lease_owner == longest
        assert flows.complete(job).state == "completed"
        assert len(flows.store.flow_by_correlation(longest)) == 1
        assert flows.event_names(flow) == ["created", "claimed", "completed"]


def test_the_largest_integers_are_integers(flows: Flows) -> None:
    largest = 2**53 - 1
    flow = flows.create(retention_ttl_ms=largest, run_at_ms=largest - 1)
    assert flow.retention_ttl_ms == largest
    assert flow.next_run_at_ms == largest - 1
    moved = flows.move(flow, "next")
    (job,) = flows.claim()
    assert flows.complete(job).state == "completed"
    assert flows.get(moved).state == "completed"


def test_the_longest_lease_is_a_lease(flows: Flows) -> None:
    job = flows.leased(lease_ms=2**53 - 1)
    assert flows.claim(limit=10) == []
    assert flows.complete(flows.extend(job, lease_ms=2**53 - 1)).state == "completed"


@pytest.mark.parametrize(
    "wrong",
    [1, None, {"a": 1}, b"a", [""], ["a", 7], [f"v{n}" for n in range(FILTER_NAMES_MAX + 1)]],
    ids=["int", "none", "dict", "bytes", "empty name", "no name", "too many"],
)
@pytest.mark.parametrize("command", ["flow_get", "flow_claim_due", "flow_reclaim"])
def test_values_to_bring_along_are_named_or_refused(
    flows: Flows, name: Name, command: str, wrong: Any
) -> None:
    target = [name("a")] if command == "flow_get" else [flows.type]
    options = {} if command == "flow_get" else {"worker": "w"}
    with pytest.raises(sf.InvalidArgument, match="values") as caught:
        getattr(flows.store, command)(*target, values=wrong, **options)
    assert caught.value.argument == "values"


def test_as_many_values_as_may_be_named_can_be(flows: Flows) -> None:
    flow = flows.create(values={"a": 1, "b": 2})
    names = [f"v{number}" for number in range(FILTER_NAMES_MAX - 1)]
    for wanted, found in (
        (["a", *names], {"a": 1}),
        ([], {}),
        ("b", {"b": 2}),
        (("a", "a"), {"a": 1}),
    ):
        record = flows.store.flow_get(flow.id, partition_key=flow.partition_key, values=wanted)
        assert record is not None and dict(record.values) == found
