"""Sections 3, 7 and 13: what was there before a store was closed is there after it is opened."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, Name, assert_absent, facts, ids, item


def everything(flows: Flows, *types: str) -> dict[str, Any]:
    """Return all that can be read about the flows of some types."""
    told: dict[str, Any] = {}
    for flow_type in types or (flows.type,):
        records = [
            record
            for include_cold in (True,)
            for record in flows.store.flow_list(flow_type, count=1_000, include_cold=include_cold)
        ]
        told[flow_type] = {
            "records": [facts(record) for record in records],
            "values": [
                (read.payload, read.result, read.error, read.values)
                for read in map(flows.read, records)
            ],
            "histories": [flows.events(record, values=True) for record in records],
            "info": flows.store.flow_info(flow_type),
            "stuck": ids(flows.store.flow_stuck(flow_type)),
            "policy": flows.store.flow_policy_get(flow_type),
        }
    return told


def populated(flows: Flows) -> list[str]:
    """Make flows in every condition, on all shards; return their types."""
    name = flows.name
    keys = [*name.partitions(), None]
    for number, key in enumerate(keys):
        where: dict[str, Any] = {"partition_key": key}
        flows.create(f"ready-{number}", payload=number, values={"v": None}, **where)
        flows.create(f"later-{number}", state="later", run_at_ms=4_000_000_000_000, **where)
        flows.create(f"parked-{number}", state="parked", run_at_ms=sf.NEVER, **where)
        flows.leased(f"held-{number}", state="held", attributes={"n": number}, **where)
        flows.leased(f"late-{number}", state="late", lease_ms=1_000, priority=1, **where)
        job = flows.leased(f"retried-{number}", state="retried", **where)
        flows.retry(job, error="boom", run_at_ms=4_000_000_000_000)
        job = flows.leased(f"completed-{number}", state="end", payload="in", **where)
        flows.complete(job, result={"r": number})
        flows.fail(flows.leased(f"failed-{number}", state="end", **where), error=None)
        flows.cancel(flows.create(f"cancelled-{number}", **where), reason="r")
        job = flows.leased(f"stepped-{number}", state="s0", **where)
        flows.step(flows.step(job, "s1", payload="p"), "s2")
        flows.create(f"other-{number}", type=name("other-type"), correlation_id="c", **where)
    flows.store.flow_policy_set(flows.type, retry={"max_retries": 7}, retention_ttl_ms=10**9)
    flows.store.flow_policy_set(flows.type, states={"held": {"retry": {"max_retries": 0}}})
    flows.clock.advance(1_000)
    return [flows.type, name("other-type")]


def test_everything_reads_the_same_after_a_restart(durable: Any) -> None:
    types = populated(durable.flows)
    before = everything(durable.flows, *types)
    assert everything(durable.reopen(), *types) == before
    assert everything(durable.reopen(), *types) == before


def test_a_store_opens_as_often_as_it_is_closed(durable: Any) -> None:
    for number in range(5):
        durable.flows.create(number)
        flows = durable.reopen()
        assert len(flows.store.flow_list(flows.type)) == number + 1
        assert flows.store.flow_info(flows.type)["ready"] == number + 1


def test_a_lease_is_good_after_a_restart(durable: Any) -> None:
    job = durable.flows.leased()
    flows = durable.reopen()
    assert flows.claim(limit=10) == []
    assert flows.complete(flows.extend(job), result=1).state == "completed"


def test_a_lease_expires_after_a_restart(durable: Any) -> None:
    job = durable.flows.leased(lease_ms=5_000)
    durable.store.close()
    durable.clock.advance(5_000)
    flows = durable.reopen()
    (taken,) = flows.claim(worker="w2")
    assert (taken.id, taken.reclaims) == (job.id, 1)
    assert taken.fencing_token == job.fencing_token + 1
    with pytest.raises(sf.StaleLease):
        flows.complete(job)


def test_a_repeated_command_is_known_after_a_restart(durable: Any) -> None:
    done = durable.flows.leased("done")
    ended = durable.flows.complete(done, result=1)
    tried = durable.flows.leased("tried")
    retried = durable.flows.retry(tried, run_at_ms=4_000_000_000_000)
    flows = durable.reopen()
    with flows.unchanged(ended, retried):
        assert facts(flows.complete(done, result=1)) == facts(ended)
        assert facts(flows.retry(tried, run_at_ms=4_000_000_000_000)) == facts(retried)
        with pytest.raises(sf.StaleLease):
            flows.fail(done)


def test_an_idempotent_creation_is_known_after_a_restart(durable: Any) -> None:
    given: dict[str, Any] = {"payload": {"a": 1}, "attributes": {"b": 2}, "idempotent": True}
    flow = durable.flows.create(**given)
    flows = durable.reopen()
    with flows.unchanged(flow):
        assert facts(flows.create(**given)) == facts(flow)
        with pytest.raises(sf.IdempotencyConflict):
            flows.create(**{**given, "payload": {"a": 2}})


def test_the_order_of_claims_is_the_same_after_a_restart(durable: Any, name: Name) -> None:
    flows = durable.flows
    due_ms = durable.clock.now_ms()
    made = flows.create_in_order("d", "b", "c", "a", run_at_ms=due_ms, partition_key=name("p"))
    flows = durable.reopen()
    made += flows.create_in_order("f", "e", run_at_ms=due_ms, partition_key=name("p"))
    assert ids(flows.claim(limit=10)) == made


def test_time_that_passed_while_closed_makes_flows_due(durable: Any) -> None:
    flow = durable.flows.create(run_at_ms=durable.clock.now_ms() + 5_000)
    assert durable.flows.claim() == []
    durable.store.close()
    durable.clock.advance(5_000)
    assert ids(durable.reopen().claim()) == [flow.id]


def test_a_retention_that_passed_while_closed_removes_flows(durable: Any) -> None:
    ended = durable.flows.ended(retention_ttl_ms=5_000)
    durable.store.close()
    durable.clock.advance(5_000)
    flows = durable.reopen()
    assert_absent(flows, ended)
    assert flows.create().version == 1


def test_a_removed_flow_does_not_come_back(durable: Any) -> None:
    ended = durable.flows.ended(retention_ttl_ms=5_000, payload="old")
    durable.clock.advance(5_000)
    while durable.store.flow_retention_cleanup(limit=1_000):
        continue
    flows = durable.reopen()
    assert_absent(flows, ended)
    fresh = flows.create(payload="new")
    flows = durable.reopen()
    assert flows.read(fresh).payload == "new"
    assert flows.event_names(fresh) == ["created"]


def test_policies_hold_after_a_restart_on_every_shard(durable: Any, name: Name) -> None:
    store = durable.store
    store.flow_policy_set(name.type, retry={"max_retries": 0, "exhausted_to": "repair"})
    store.flow_policy_set(name.type, states={"a": {"retry": {"max_retries": 1}}})
    before = (
        store.flow_policy_get(name.type),
        store.flow_policy_get(name.type, state="a"),
    )
    flows = durable.reopen()
    assert flows.store.flow_policy_get(name.type) == before[0]
    assert flows.store.flow_policy_get(name.type, state="a") == before[1]
    for key in name.partitions():
        assert flows.retry(flows.leased(key, partition_key=key)).state == "repair"
    flows.store.flow_policy_set(name.type, expected_generation=before[0]["generation"])


def test_shared_values_are_there_after_a_restart(durable: Any) -> None:
    refs = [durable.flows.share(value) for value in ("shared", None, 0)]
    flows = durable.reopen()
    assert flows.values(*refs) == ["shared", None, 0]


def test_named_values_stay_what_they_were_after_a_restart(durable: Any) -> None:
    flow = durable.flows.put(durable.flows.create(), "v", {"a": 1})
    flows = durable.reopen()
    with flows.unchanged(flow):
        flows.put(flow, "v", {"a": 1})
        with pytest.raises(sf.ValueConflict):
            flows.put(flow, "v", {"a": 2})


def test_batches_are_there_whole_after_a_restart(durable: Any, name: Name) -> None:
    flows = durable.flows
    items = [{"id": name(f"{number:03}"), "payload": number} for number in range(200)]
    flows.store.flow_create_many(items, type=flows.type)
    jobs = flows.claim(limit=150)
    flows.store.flow_complete_many([item(job, result=job.payload) for job in jobs[:100]])
    before = everything(flows)
    flows = durable.reopen()
    assert everything(flows) == before
    info = flows.store.flow_info(flows.type)
    assert (info["completed"], info["leased"], info["ready"]) == (100, 50, 50)


def test_work_goes_on_after_a_restart(durable: Any) -> None:
    types = populated(durable.flows)
    flows = durable.reopen()
    seen = set()
    while jobs := flows.claim(limit=4, state="any"):
        for job in jobs:
            assert job.fencing_token >= 1
            seen.add((job.partition_key, job.id))
            flows.complete(job)
    assert len(seen) == 6
    info = flows.store.flow_info(types[0])
    assert (info["ready"], info["expired"], info["completed"]) == (0, 0, 9)
