"""Records that are kept packed: nobody can tell, but for the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors.ports import LocalPort
from shardflow.flow import limits
from shardflow.flow.index import timequeue
from shardflow.flow.index.table import Slot
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.record import RUNNING
from shardflow.flow.settings import Settings
from shardflow.sdk.opening import make_store
from shardflow.testing import ManualClock
from support.links import service_of

LONG = 3


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


def open_on(files: MemoryFiles, clock: ManualClock) -> sf.Store:
    port = LocalPort([files], Settings(), clock, sync=True, manual=True)
    return make_store(port, clock, None, 2**20, 5.0, None, lambda: None)


@pytest.fixture
def store(
    files: MemoryFiles, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sf.Store]:
    monkeypatch.setattr(limits, "LONG_QUEUE_MIN", LONG)
    monkeypatch.setattr(timequeue, "LONG_QUEUE_MIN", LONG)
    with open_on(files, clock) as store:
        yield store


def create(store: sf.Store, count: int, **fields: Any) -> None:
    for number in range(count):
        store.flow_create(f"f{number}", type="t", payload=number, **fields)


def slots_of(store: sf.Store) -> dict[str, Slot]:
    slots = list(service_of(store).engine.state.table)
    return {slot.record.id: slot for slot in slots if slot.record is not None}


def packed_in(store: sf.Store) -> list[str]:
    return [flow_id for flow_id, slot in slots_of(store).items() if isinstance(slot.held, bytes)]


def problems_of(store: sf.Store) -> list[str]:
    return [problem for shard in store.stats(check=True) for problem in shard["problems"]]


def test_those_behind_many_others_are_packed(store: sf.Store) -> None:
    create(store, 6)
    assert packed_in(store) == ["f3", "f4", "f5"]
    assert problems_of(store) == []


def test_they_are_claimed_in_their_turn_and_then_like_any_other(store: sf.Store) -> None:
    create(store, 6)
    for number in range(6):
        (job,) = store.flow_claim_due("t", worker="w")
        assert (job.id, job.payload, job.version) == (f"f{number}", number, 2)
        assert job.id not in packed_in(store)
        assert store.flow_complete(job.id, job.lease_token, fencing_token=job.fencing_token)
    # Ended flows are hardly asked for.
    assert packed_in(store) == [f"f{number}" for number in range(6)]
    assert problems_of(store) == []


def test_one_that_was_read_is_packed_again(store: sf.Store) -> None:
    create(store, 6)
    before = slots_of(store)["f5"].held
    assert (record := store.flow_get("f5", payload=True)) and record.payload == 5
    assert [event.name for event in store.flow_history("f5") or []] == ["created"]
    assert len(store.flow_list("t")) == 6
    assert slots_of(store)["f5"].held is before
    with pytest.raises(sf.StaleLease):
        store.flow_cancel("f5", fencing_token=7)
    assert slots_of(store)["f5"].held is before


def test_one_that_is_changed_has_its_new_record(store: sf.Store) -> None:
    create(store, 6)
    assert store.flow_cancel("f5").version == 2
    assert (record := store.flow_get("f5")) and record.state == "cancelled"
    store.flow_create("f5", type="t", idempotent=True, partition_key="p")
    store.flow_value_put(1, id="f4", name="n")
    assert packed_in(store) == ["f3", "f4", "f5"]
    assert problems_of(store) == []


def test_those_that_wait_for_no_time_are_packed_as_well(store: sf.Store) -> None:
    create(store, 6, run_at_ms=sf.NEVER)
    assert packed_in(store) == ["f3", "f4", "f5"]
    record = store.flow_get("f5")
    assert record is not None
    store.flow_transition("f5", "queued", "next", fencing_token=record.fencing_token)
    assert packed_in(store) == ["f3", "f4"]
    assert problems_of(store) == []


def test_ids_that_several_partitions_share_are_told_apart(store: sf.Store) -> None:
    create(store, 6)
    create(store, 6, partition_key="p")
    create(store, 6, partition_key="q")
    keys = (None, "p", "q")
    for partition_key in keys:
        found = store.flow_get("f5", partition_key=partition_key)
        assert found is not None and found.partition_key == partition_key
    store.flow_cancel("f5", partition_key="p")
    states = [store.flow_get("f5", partition_key=key) for key in keys]
    assert [record and record.state for record in states] == ["queued", "cancelled", "queued"]
    assert problems_of(store) == []


def test_recovery_packs_all_of_them(
    files: MemoryFiles, clock: ManualClock, store: sf.Store
) -> None:
    create(store, 4, max_active_ms=10_000, correlation_id="c")
    store.flow_create("child", type="t", parent_flow_id="f1")
    job = store.flow_claim_due("t", worker="w")[0]
    store.close()
    with open_on(files, clock) as store:
        assert set(packed_in(store)) == {"f0", "f1", "f2", "f3", "child"}
        assert (leased := store.flow_get(job.id)) and leased.state == RUNNING
        assert [record.id for record in store.flow_by_parent("f1")] == ["child"]
        assert len(store.flow_by_correlation("c")) == 4
        assert store.flow_complete(job.id, job.lease_token, fencing_token=job.fencing_token)
        assert problems_of(store) == []
        clock.advance(10_000)
        assert (overdue := store.flow_get("f3")) and overdue.state == "failed"


def test_a_flow_that_recovery_meets_long_after_is_in_the_indexes_once(
    files: MemoryFiles, clock: ManualClock, store: sf.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.flow.machine.loading._FRESH_MAX", 2)
    create(store, 4, values={"n": 1})
    for job in store.flow_claim_due("t", worker="w", limit=2):
        store.flow_retry(job.id, job.lease_token, fencing_token=job.fencing_token, payload="new")
    store.flow_cancel("f3", retention_ttl_ms=1)
    store.flow_cancel("f2")
    clock.advance(10)
    store.flow_retention_cleanup()
    history = [event.name for event in store.flow_history("f0") or []]
    values = store.stats()[0]["values"]
    store.close()
    with open_on(files, clock) as store:
        assert problems_of(store) == []
        assert [event.name for event in store.flow_history("f0") or []] == history
        assert store.stats()[0]["values"] == values
        info = store.flow_info("t")
        assert (info["total"], info["cancelled"]) == (2, 1)
