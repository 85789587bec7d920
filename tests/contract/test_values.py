"""Section 9: named values, shared values and reading values by reference."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, Name, facts


def test_a_named_value_is_put_on_its_flow(flows: Flows) -> None:
    flow = flows.create(state="a")
    after = flows.put(flow, "receipt", {"amount": 0})
    assert after.version == flow.version + 1
    assert after.fencing_token == flow.fencing_token
    assert after.state == "a"
    assert set(after.value_refs) == {"receipt"}
    assert facts(flows.get(flow)) == facts(after)
    assert flows.read(flow).values == {"receipt": {"amount": 0}}
    assert flows.event_names(flow) == ["created", "value_put"]


def test_the_same_bytes_again_write_nothing(flows: Flows) -> None:
    after = flows.put(flows.create(), "v", {"a": 1})
    with flows.unchanged(after):
        assert facts(flows.put(after, "v", {"a": 1})) == facts(after)
        assert facts(flows.put(after, "v", {"a": 1}, override=True)) == facts(after)


@pytest.mark.parametrize("other", [None, 0, "", False, {"a": 2}], ids=repr)
def test_the_first_write_wins(flows: Flows, other: Any) -> None:
    after = flows.put(flows.create(), "v", {"a": 1})
    with flows.unchanged(after), pytest.raises(sf.ValueConflict) as caught:
        flows.put(after, "v", other)
    assert caught.value.flow_id == after.id
    assert caught.value.name == "v"
    assert flows.read(after).values == {"v": {"a": 1}}


def test_a_value_of_none_is_a_first_write_too(flows: Flows) -> None:
    after = flows.put(flows.create(), "v", None)
    assert set(after.value_refs) == {"v"}
    with flows.unchanged(after), pytest.raises(sf.ValueConflict):
        flows.put(after, "v", 1)


@pytest.mark.parametrize("value", [2, None, "", 0], ids=repr)
def test_an_override_replaces_a_value(flows: Flows, value: Any) -> None:
    first = flows.put(flows.create(), "v", 1)
    second = flows.put(first, "v", value, override=True)
    assert second.version == first.version + 1
    assert second.value_refs["v"] != first.value_refs["v"]
    assert flows.read(second).values == {"v": value}


def test_values_given_at_creation_are_first_writes(flows: Flows) -> None:
    flow = flows.create(values={"a": 1, "b": None})
    assert set(flow.value_refs) == {"a", "b"}
    with flows.unchanged(flow):
        flows.put(flow, "a", 1)
        with pytest.raises(sf.ValueConflict):
            flows.put(flow, "b", 1)


def test_values_have_names_of_their_own(flows: Flows) -> None:
    flow = flows.create()
    for number, value_name in enumerate(["a", "A", "ä", "a b", "x" * 512]):
        flow = flows.put(flow, value_name, number)
    assert flows.read(flow).values == {"a": 0, "A": 1, "ä": 2, "a b": 3, "x" * 512: 4}


def test_values_survive_moves_retries_and_ends(flows: Flows) -> None:
    flow = flows.put(flows.create(values={"a": 1}), "b", 2)
    flow = flows.retry(flows.take(flow), run_at_ms=0)
    flow = flows.move(flows.take(flow), "next")
    flow = flows.complete(flows.step(flows.take(flow), "last"))
    assert flows.read(flow).values == {"a": 1, "b": 2}


def test_a_value_may_be_put_on_a_leased_flow_without_hurting_the_lease(flows: Flows) -> None:
    job = flows.leased()
    after = flows.put(job, "v", 1)
    assert after.lease_token == job.lease_token
    assert after.lease_deadline_ms == job.lease_deadline_ms
    assert after.fencing_token == job.fencing_token
    assert flows.complete(job).state == "completed"


def test_a_value_cannot_be_put_on_an_absent_flow(flows: Flows, name: Name) -> None:
    with pytest.raises(sf.FlowNotFound):
        flows.store.flow_value_put(1, id=name("nowhere"), name="v")


def test_two_partitions_have_values_of_their_own(flows: Flows, name: Name) -> None:
    one, two = (flows.create(partition_key=key) for key in name.partitions())
    flows.put(one, "v", 1)
    flows.put(two, "v", 2)
    assert flows.read(one).values == {"v": 1}
    assert flows.read(two).values == {"v": 2}


def test_only_the_values_asked_for_are_read(flows: Flows) -> None:
    flow = flows.create(values={"a": 1, "b": 2, "c": 3})
    assert flows.get(flow, values=["a", "c"]).values == {"a": 1, "c": 3}
    assert flows.get(flow, values=False).values == {}


def test_a_value_that_belongs_to_no_flow_has_a_reference(flows: Flows) -> None:
    ref = flows.store.flow_value_put({"shared": True})
    assert isinstance(ref, str)
    assert flows.values(ref) == [{"shared": True}]


def test_a_value_has_both_a_flow_and_a_name_or_neither(flows: Flows) -> None:
    flow = flows.create()
    loose: Any = flows.store
    with flows.unchanged(flow):
        with pytest.raises((sf.InvalidArgument, TypeError)):
            loose.flow_value_put(1, id=flow.id)
        with pytest.raises((sf.InvalidArgument, TypeError)):
            loose.flow_value_put(1, name="v")


def test_values_are_read_by_reference_in_the_order_asked_for(flows: Flows, name: Name) -> None:
    refs: list[str | None] = []
    for number, key in enumerate([*name.partitions(), None, None]):
        flow = flows.create(number, partition_key=key, payload=number)
        refs.append(flow.payload_ref)
    refs.append(flows.share("shared"))
    order = [4, 0, 3, 1, 2, 0]
    found = flows.values(*(refs[i] for i in order))
    assert found == ["shared", 0, 3, 1, 2, 0]


def test_payload_result_error_and_named_values_are_read_by_reference(flows: Flows) -> None:
    done = flows.complete(flows.leased("done", payload="p", values={"v": "n"}), result="r")
    failed = flows.fail(flows.leased("failed"), error="e")
    refs = [done.payload_ref, done.result_ref, done.value_refs["v"], failed.error_ref]
    assert flows.values(*refs, max_bytes=10) == ["p", "r", "n", "e"]


def test_no_references_read_no_values(flows: Flows) -> None:
    assert flows.store.flow_value_mget([], max_bytes=10) == []


def test_an_unknown_reference_reads_none(flows: Flows) -> None:
    ref = flows.create(payload="known").payload_ref
    found = flows.values("vfffffffffff00", ref, "vfffffffffff01")
    assert found == [None, "known", None]


@pytest.mark.parametrize("value", [None, 0, "", [], False], ids=repr)
def test_an_empty_value_is_read_as_it_is(flows: Flows, value: Any) -> None:
    (found,) = flows.values(flows.share(value))
    assert found == value
    assert type(found) is type(value)


def test_a_value_over_the_cap_is_left_out_and_the_others_are_read(flows: Flows) -> None:
    small, large = flows.create("small", payload="x"), flows.create("large", payload=b"x" * 500)
    refs = [small.payload_ref, large.payload_ref, small.payload_ref]
    first, omitted, last = flows.values(*refs, max_bytes=large.payload_size - 1)
    assert (first, last) == ("x", "x")
    assert isinstance(omitted, sf.OmittedValue)
    assert (omitted.ref, omitted.size) == (large.payload_ref, large.payload_size)


def test_a_value_of_exactly_the_cap_is_read(flows: Flows) -> None:
    flow = flows.create(payload=b"x" * 500)
    found = flows.values(flow.payload_ref, max_bytes=flow.payload_size)
    assert found == [b"x" * 500]


def test_an_old_payload_is_not_what_the_new_reference_reads(flows: Flows) -> None:
    flow = flows.create(payload="old")
    moved = flows.move(flow, "next", payload="new")
    assert moved.payload_ref != flow.payload_ref
    assert flows.values(moved.payload_ref) == ["new"]
