"""Section 12: the exceptions, their codes and their fields."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, Name, item

FIELDS: dict[str, dict[str, Any]] = {
    "InvalidArgument": {"argument": "priority"},
    "FlowNotFound": {"flow_id": "a", "partition_key": None},
    "FlowAlreadyExists": {"flow_id": "a", "partition_key": "p"},
    "IdempotencyConflict": {"flow_id": "a"},
    "WrongState": {"flow_id": "a", "state": "b", "expected": ["c", "d"]},
    "StaleLease": {"flow_id": "a", "fencing_token": 0},
    "FlowTerminal": {"flow_id": "a", "state": "completed"},
    "AmbiguousFlow": {"flow_id": "a", "partition_keys": ["p", "q"]},
    "ChildGroupConflict": {"flow_id": "a"},
    "ValueConflict": {"flow_id": "a", "name": "v"},
    "StalePolicyGeneration": {"generation": 3},
    "MaxActiveExceeded": {"flow_id": "a"},
    "BatchError": {"results": [1, 2]},
    "Overloaded": {"retry_after_ms": 7, "reason": "full"},
    "OutcomeUnknown": {"flow_id": "a"},
    "StoreClosed": {},
    "StoreLocked": {"pid": 7},
    "StoreNotRunning": {},
    "StoreConfigError": {},
    "ShardUnavailable": {"shard": 0},
    "CorruptLog": {"path": "x.log", "offset": 0},
}
ROUNDS: dict[str, Any] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "old pickle": lambda error: pickle.loads(pickle.dumps(error, protocol=2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_error_is_a_flow_error_with_a_code(name: str) -> None:
    kind = getattr(sf, name)
    assert issubclass(kind, sf.FlowError)
    assert isinstance(kind.code, str)
    assert kind.code


def test_codes_are_all_different() -> None:
    codes = {getattr(sf, name).code for name in FIELDS}
    assert len(codes | {sf.FlowError.code}) == len(FIELDS) + 1


def test_an_invalid_argument_is_a_value_error() -> None:
    assert issubclass(sf.InvalidArgument, ValueError)
    assert not any(
        issubclass(getattr(sf, name), ValueError) for name in FIELDS if name != "InvalidArgument"
    )


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("way", sorted(ROUNDS))
def test_every_error_survives_being_pickled_and_copied(name: str, way: str) -> None:
    error = getattr(sf, name)("what happened", **FIELDS[name])
    back = ROUNDS[way](error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert "what happened" in str(back)
    assert back.code == error.code
    assert back.applied == error.applied
    assert {field: getattr(back, field) for field in FIELDS[name]} == FIELDS[name]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_error_says_something_without_a_message(name: str) -> None:
    assert str(getattr(sf, name)(**FIELDS[name]))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_an_error_tells_whether_the_command_was_applied(name: str) -> None:
    error = getattr(sf, name)(**FIELDS[name])
    assert error.applied == ("unknown" if name == "OutcomeUnknown" else "no")


def test_an_overload_says_when_to_come_back() -> None:
    assert (sf.Overloaded().retry_after_ms or 0) > 0


def raised(flows: Flows) -> dict[str, sf.FlowError]:
    """Provoke the refusals that a store gives in everyday use."""
    store, name = flows.store, flows.name
    flow = flows.create("flow")
    job = flows.leased("job", state="other")
    ended = flows.ended("ended", state="third")
    for key in name.partitions():
        flows.create("twice", partition_key=key)
    flows.put(flow, "v", 1)
    flows.create("same", payload=1)
    store.flow_policy_set(flows.type, retry={"max_retries": 1})
    provoked: list[Any] = [
        lambda: flows.create("x", priority=3),
        lambda: store.flow_cancel(name("nowhere")),
        lambda: flows.create("flow"),
        lambda: flows.create("same", payload=2, idempotent=True),
        lambda: flows.move(flow, "next", from_state="elsewhere"),
        lambda: flows.complete(job, lease_token="another"),
        lambda: flows.cancel(ended),
        lambda: store.flow_get(name("twice")),
        lambda: flows.put(flow, "v", 2),
        lambda: store.flow_policy_set(flows.type, expected_generation=0),
        lambda: store.flow_complete_many([item(job, lease_token="another")]),
    ]
    errors: dict[str, sf.FlowError] = {}
    for provoke in provoked:
        with pytest.raises(sf.FlowError) as caught:
            provoke()
        errors[type(caught.value).__name__] = caught.value
    return errors


def test_refusals_of_a_store_survive_pickling_with_all_they_say(flows: Flows) -> None:
    errors = raised(flows)
    assert sorted(errors) == [
        "AmbiguousFlow",
        "BatchError",
        "FlowAlreadyExists",
        "FlowNotFound",
        "FlowTerminal",
        "IdempotencyConflict",
        "InvalidArgument",
        "StaleLease",
        "StalePolicyGeneration",
        "ValueConflict",
        "WrongState",
    ]
    for name, error in errors.items():
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
        for field in {"flow_id", "partition_key", "applied", *FIELDS[name]} - {"results"}:
            assert getattr(back, field) == getattr(error, field)
    batch = errors["BatchError"]
    assert isinstance(batch, sf.BatchError)
    assert [result.code for result in batch.results] == ["stale_lease"]


def test_refusals_of_a_store_name_the_flow(flows: Flows, name: Name) -> None:
    errors = raised(flows)
    assert {
        kind: errors[kind].flow_id
        for kind in ("FlowNotFound", "FlowAlreadyExists", "WrongState", "StaleLease")
    } == {
        "FlowNotFound": name("nowhere"),
        "FlowAlreadyExists": name("flow"),
        "WrongState": name("flow"),
        "StaleLease": name("job"),
    }
    for kind in ("FlowNotFound", "FlowAlreadyExists", "IdempotencyConflict", "FlowTerminal"):
        assert str(errors[kind].flow_id) in str(errors[kind])


def test_a_batch_error_keeps_records_and_errors_when_pickled(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    flows.create("taken", partition_key=keys[0])
    items = [
        {"id": name("taken"), "partition_key": keys[0]},
        {"id": name("fresh"), "partition_key": keys[1]},
    ]
    with pytest.raises(sf.BatchError) as caught:
        flows.store.flow_create_many(items, type=flows.type)
    error, record = pickle.loads(pickle.dumps(caught.value)).results
    assert isinstance(error, sf.FlowAlreadyExists)
    assert error.flow_id == name("taken")
    assert isinstance(record, sf.FlowRecord)
    assert (record.id, record.partition_key, record.version) == (name("fresh"), keys[1], 1)


def test_the_same_error_comes_from_all_three_ways_to_call(flows: Flows) -> None:
    job = flows.leased()
    tokens: dict[str, Any] = {"fencing_token": job.fencing_token}
    future = flows.store.submit.flow_complete(job.id, "another", **tokens)
    with pytest.raises(sf.StaleLease) as caught:
        future.get(timeout=10)
    assert caught.value.flow_id == job.id
    with pytest.raises(sf.StaleLease):
        flows.store.flow_complete(job.id, "another", **tokens)
