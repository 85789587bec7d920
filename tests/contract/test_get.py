"""Section 3: reading one flow."""

from __future__ import annotations

import pytest

import shardflow as sf
from support.contract import Flows, Name, facts


def test_an_absent_flow_reads_none(flows: Flows, name: Name) -> None:
    assert flows.store.flow_get(name("nowhere")) is None
    assert flows.store.flow_get(name("nowhere"), partition_key=name("p")) is None


def test_a_flow_without_a_partition_is_not_in_any_named_partition(flows: Flows, name: Name) -> None:
    flow = flows.create()
    for key in name.partitions():
        assert flows.store.flow_get(flow.id, partition_key=key) is None


def test_without_a_partition_key_every_shard_is_searched(flows: Flows, name: Name) -> None:
    for key in name.partitions():
        flow = flows.create(key, partition_key=key)
        found = flows.store.flow_get(flow.id)
        assert found is not None
        assert facts(found) == facts(flow)


def test_without_a_partition_key_the_automatic_bucket_comes_first(flows: Flows, name: Name) -> None:
    for key in name.partitions():
        flows.create(partition_key=key)
    flows.create()
    found = flows.store.flow_get(name("a"))
    assert found is not None
    assert found.partition_key is None


def test_an_id_in_two_partitions_is_ambiguous(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    for key in keys:
        flows.create(partition_key=key)
    with pytest.raises(sf.AmbiguousFlow) as caught:
        flows.store.flow_get(name("a"))
    assert caught.value.flow_id == name("a")
    assert set(caught.value.partition_keys) == set(keys)


def test_an_id_twice_on_one_shard_is_ambiguous_as_well(flows: Flows, name: Name) -> None:
    keys = name.neighbours(2)
    for key in keys:
        flows.create(partition_key=key)
    with pytest.raises(sf.AmbiguousFlow):
        flows.store.flow_get(name("a"))
    assert flows.store.flow_get(name("a"), partition_key=keys[1]) is not None


def test_values_are_read_only_on_request(flows: Flows) -> None:
    job = flows.leased(payload="in", values={"note": "kept"})
    ended = flows.complete(job, result="out")
    plain = flows.get(ended)
    assert (plain.payload, plain.result, plain.error) == (None, None, None)
    assert plain.values == {}
    assert plain.payload_size > 0
    assert plain.payload_ref is not None
    assert not plain.payload_omitted


def test_payload_hydrates_payload_and_result(flows: Flows) -> None:
    ended = flows.complete(flows.leased(payload="in"), result="out")
    read = flows.get(ended, payload=True)
    assert (read.payload, read.result, read.error) == ("in", "out", None)


def test_payload_hydrates_payload_and_error(flows: Flows) -> None:
    ended = flows.fail(flows.leased(payload="in"), error={"why": 0})
    read = flows.get(ended, payload=True)
    assert (read.payload, read.result, read.error) == ("in", None, {"why": 0})


def test_named_values_are_hydrated_by_their_own_option(flows: Flows) -> None:
    flow = flows.create(payload="in", values={"zero": 0, "none": None})
    read = flows.get(flow, values=True)
    assert read.values == {"zero": 0, "none": None}
    assert read.payload is None


def test_a_payload_up_to_the_cap_is_hydrated(flows: Flows) -> None:
    flow = flows.create(payload=b"x" * 5_000)
    read = flows.get(flow, payload=True, payload_max_bytes=flow.payload_size)
    assert read.payload == b"x" * 5_000
    assert not read.payload_omitted


def test_a_payload_over_the_cap_is_omitted_and_said_so(flows: Flows) -> None:
    flow = flows.create(payload=b"x" * 5_000)
    read = flows.get(flow, payload=True, payload_max_bytes=flow.payload_size - 1)
    assert read.payload is None
    assert read.payload_omitted
    assert read.payload_size == flow.payload_size >= 5_000
    assert read.payload_ref == flow.payload_ref
    assert flows.values(read.payload_ref) == [b"x" * 5_000]


def test_the_default_cap_is_64_kib(flows: Flows) -> None:
    large = flows.create("large", payload=b"x" * 65_537)
    small = flows.create("small", payload=b"x" * 60_000)
    assert flows.get(large, payload=True).payload_omitted
    assert flows.get(small, payload=True).payload == b"x" * 60_000


def test_a_cap_of_zero_omits_even_the_smallest_value(flows: Flows) -> None:
    flow = flows.create(payload=None)
    read = flows.get(flow, payload=True, payload_max_bytes=0)
    assert read.payload is None
    assert read.payload_omitted


def test_the_cap_counts_for_each_value_alone(flows: Flows) -> None:
    ended = flows.complete(flows.leased(payload=b"x" * 2_000), result=b"y" * 10)
    read = flows.get(ended, payload=True, payload_max_bytes=1_000)
    assert read.payload_omitted
    assert read.result == b"y" * 10
    assert not read.result_omitted


def test_a_read_changes_nothing(flows: Flows) -> None:
    flow = flows.create(payload=1, values={"v": 1})
    with flows.unchanged(flow):
        flows.read(flow)
        flows.store.flow_get(flow.id)
