"""Section 1: what a flow is, where it lives, and how its state reads."""

from __future__ import annotations

import pytest

import shardflow as sf
from support.contract import Flows, Name


def test_the_same_id_in_two_partitions_is_two_flows(flows: Flows, name: Name) -> None:
    first, second = name.partitions()
    one = flows.create(partition_key=first, payload=1)
    two = flows.create(partition_key=second, payload=2)
    flows.complete(flows.take(one, partition_key=first))
    assert one.id == two.id
    assert flows.get(one).state == "completed"
    assert flows.get(two).state == "queued"
    assert flows.read(two).payload == 2


def test_the_same_id_with_and_without_a_partition_is_two_flows(flows: Flows, name: Name) -> None:
    hidden = flows.create(payload="hidden")
    explicit = flows.create(partition_key=name("p"), payload="explicit")
    assert hidden.partition_key is None
    assert explicit.partition_key == name("p")
    assert flows.read(hidden).payload == "hidden"
    assert flows.read(explicit).payload == "explicit"


def test_a_flow_without_a_partition_key_reads_none_wherever_it_is_returned(flows: Flows) -> None:
    made = flows.create()
    assert made.partition_key is None
    assert flows.get(made).partition_key is None
    (job,) = flows.claim()
    assert job.partition_key is None
    assert flows.complete(job).partition_key is None
    (listed,) = flows.store.flow_list(flows.type)
    assert listed.partition_key is None


def test_separators_in_keys_and_ids_never_make_two_flows_one(flows: Flows, name: Name) -> None:
    pairs = [
        (name("a"), "b:c"),
        (name("a:b"), "c"),
        (name("a"), "b/c"),
        (name("a/b"), "c"),
        (name("a\0b"), "c"),
        (name("a"), "b\0c"),
        (name("a\nb"), "c"),
        (name("a"), "b\nc"),
    ]
    for number, (key, flow_id) in enumerate(pairs):
        flows.store.flow_create(flow_id, type=flows.type, partition_key=key, payload=number)
    for number, (key, flow_id) in enumerate(pairs):
        record = flows.store.flow_get(flow_id, partition_key=key, payload=True)
        assert record is not None
        assert (record.id, record.partition_key, record.payload) == (flow_id, key, number)


def test_ids_that_look_alike_but_differ_in_bytes_are_two_flows(flows: Flows) -> None:
    composed, decomposed = flows.create("\u00e9"), flows.create("e\u0301")
    flows.cancel(composed)
    assert flows.get(decomposed).state == "queued"


def test_a_command_without_a_partition_key_does_not_touch_a_flow_that_has_one(
    flows: Flows, name: Name
) -> None:
    flow = flows.create(partition_key=name("p"))
    with flows.unchanged(flow), pytest.raises(sf.FlowNotFound):
        flows.store.flow_cancel(flow.id)


def test_a_command_in_another_partition_does_not_find_the_flow(flows: Flows, name: Name) -> None:
    flow = flows.create(partition_key=name("p"))
    other = flows.create("other")
    with flows.unchanged(flow, other):
        for flow_id in (flow.id, other.id):
            with pytest.raises(sf.FlowNotFound):
                flows.store.flow_cancel(flow_id, partition_key=name("q"))


def test_a_partition_keeps_the_order_in_which_its_flows_were_created(
    flows: Flows, name: Name
) -> None:
    made = flows.create_in_order("d", "b", "c", "a", partition_key=name("p"))
    assert [job.id for job in flows.claim(partition_key=name("p"), limit=4)] == made


def test_a_leased_flow_is_running_and_keeps_its_logical_state_beside_it(flows: Flows) -> None:
    job = flows.leased(state="charging")
    for record in (job, flows.get(job)):
        assert record.state == "running"
        assert record.run_state == "charging"
        assert record.logical_state == "charging"


def test_a_flow_that_is_not_leased_has_no_run_state(flows: Flows) -> None:
    made = flows.create(state="charging")
    moved = flows.move(flows.take(made), "charged")
    ended = flows.complete(flows.take(moved))
    assert [(r.state, r.run_state, r.logical_state) for r in (made, moved, ended)] == [
        ("charging", None, "charging"),
        ("charged", None, "charged"),
        ("completed", None, "completed"),
    ]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_the_three_ends_are_states_of_their_own(flows: Flows, end: str) -> None:
    if end == "cancelled":
        ended = flows.cancel(flows.create())
    else:
        job = flows.leased()
        ended = flows.complete(job) if end == "completed" else flows.fail(job)
    assert ended.state == end
    assert flows.get(ended).state == end
    assert flows.claim(reclaim_expired=True) == []


def test_a_guard_compares_the_logical_state_of_a_leased_flow(flows: Flows) -> None:
    job = flows.leased(state="charging")
    assert flows.move(job, "charged", from_state="charging").state == "charged"


def test_a_guard_accepts_running_for_a_leased_flow(flows: Flows) -> None:
    job = flows.leased(state="charging")
    stepped = flows.step(job, "charged", from_state="running")
    assert stepped.run_state == "charged"
    assert flows.move(stepped, "shipped", from_state="running").state == "shipped"


def test_a_guard_does_not_accept_running_for_a_flow_that_is_not_leased(flows: Flows) -> None:
    flow = flows.create(state="charging")
    with flows.unchanged(flow), pytest.raises(sf.WrongState):
        flows.move(flow, "charged", from_state="running")


def test_at_most_one_commit_of_a_lease_is_accepted(flows: Flows) -> None:
    job = flows.leased()
    flows.complete(job, result="first")
    for command in (flows.fail, flows.retry, flows.extend):
        with pytest.raises(sf.StaleLease):
            command(job)
    with pytest.raises(sf.FlowError):
        flows.move(job, "elsewhere")
    assert flows.event_names(job) == ["created", "claimed", "completed"]
    assert flows.read(job).result == "first"
