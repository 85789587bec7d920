"""Shards inside the caller's process: who is woken, by what, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors.local import LocalLink
from shardflow.actors.messages import Departure
from shardflow.actors.ports import LocalPort
from shardflow.actors.service import Service
from shardflow.flow.commands import Create, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.limits import LOCAL_LATE_MS, RELAXED_SYNC_MS, RESTARTS_MAX
from shardflow.flow.queries import Info
from shardflow.flow.settings import Settings
from shardflow.sdk.opening import make_store
from shardflow.testing import ManualClock, memory_store
from support.disks import Disk
from support.engines import Counting
from support.links import Answers, pending_in, service_of
from support.processes import eventually

BLOCK_MS = 60_000
SOON_S = 1.9
"""Far below how long the claims would wait by themselves."""


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(disk: Disk) -> Iterator[sf.Store]:
    """A store of one shard, on a disk that fails when told to."""
    clock = ManualClock(1_000)
    port = LocalPort([disk], Settings(), clock, sync=True, manual=True)
    with make_store(port, clock, None, 2**20, 5.0, None, lambda: None) as opened:
        yield opened


def wait_for(store: sf.Store, flow_type: str = "t", **options: Any) -> Any:
    """Start a claim that waits, and see that it does at every shard."""
    options.setdefault("block_ms", BLOCK_MS)
    before = waiters_in(store)
    future = store.submit.flow_claim_due(flow_type, worker="w", **options)
    assert not future.is_resolved
    assert waiters_in(store) == [count + 1 for count in before]
    return future


def waiters_in(store: sf.Store) -> list[int]:
    return [len(service_of(store, shard).waiters) for shard in range(store.shards)]


# By the wall clock: nobody sends a command when the time comes.


@pytest.mark.parametrize("shards", [1, 2])
def test_a_waiting_claim_is_woken_when_a_flow_created_meanwhile_becomes_due(shards: int) -> None:
    with memory_store(shards=shards) as store:
        waiting = wait_for(store)
        store.flow_create("a", type="t", run_at_ms=store.now_ms() + 50)
        assert [job.id for job in waiting.get(timeout=SOON_S)] == ["a"]


def test_a_waiting_claim_is_woken_when_a_lease_that_began_meanwhile_ends() -> None:
    with memory_store() as store:
        waiting = wait_for(store)
        store.flow_start_and_claim("a", type="t", worker="dead", lease_ms=50)
        assert not waiting.is_resolved
        (job,) = waiting.get(timeout=SOON_S)
        assert (job.id, job.lease_owner) == ("a", "w")


def test_a_waiting_claim_ends_by_itself_in_time() -> None:
    with memory_store(shards=2) as store:
        assert wait_for(store, block_ms=50).get(timeout=SOON_S) == []


def test_a_waiting_claim_that_began_first_does_not_hide_a_nearer_time() -> None:
    with memory_store() as store:
        store.flow_create("far", type="far", run_at_ms=store.now_ms() + BLOCK_MS)
        far, near = wait_for(store, "far"), wait_for(store, "near")
        store.flow_create("near", type="near", run_at_ms=store.now_ms() + 50)
        assert [job.id for job in near.get(timeout=SOON_S)] == ["near"]
        assert not far.is_resolved


def test_a_relaxed_store_without_processes_is_synced_within_the_window(tmp_path: Path) -> None:
    with sf.open(tmp_path / "s", shards=1, in_process=True, durability="relaxed") as store:
        for number in range(3):
            store.flow_create(f"f{number}", type="t")
            eventually(lambda: not service_of(store).engine.log.has_unsynced, "unsynced", SOON_S)


# What waits is taken back.


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_claim_that_was_served_leaves_no_watch_behind(shards: int) -> None:
    with memory_store(shards=shards) as store:
        for number in range(20):
            waiting = wait_for(store)
            store.flow_create(f"f{number}", type="t")
            assert len(waiting.get(timeout=SOON_S)) == 1
            assert waiters_in(store) == [0] * shards
        assert pending_in(store) == [0] * shards


# A shard that fails in a step is recovered from its log.


def test_a_shard_that_fails_lets_waiting_claims_look_again(store: sf.Store, disk: Disk) -> None:
    store.flow_create("kept", type="q")
    waiting = wait_for(store)
    disk.fail("write")
    with pytest.raises(sf.OutcomeUnknown):
        store.flow_create("z", type="q")
    assert waiters_in(store) == [1], "it waits at the recovered shard"
    store.flow_create("ok", type="t")
    assert [job.id for job in waiting.get(timeout=SOON_S)] == ["ok"]
    assert store.flow_get("kept") is not None


def test_a_shard_that_fails_in_the_write_that_was_waited_for_is_asked_again(
    store: sf.Store, disk: Disk
) -> None:
    waiting = wait_for(store)
    disk.fail("sync")
    with pytest.raises(sf.OutcomeUnknown):
        store.flow_create("a", type="t")
    if store.flow_get("a") is None:
        store.flow_create("a", type="t")
    assert [job.id for job in waiting.get(timeout=SOON_S)] == ["a"]


def test_a_shard_that_cannot_be_recovered_refuses_waiting_claims(
    store: sf.Store, disk: Disk
) -> None:
    store.flow_create("kept", type="q")
    waiting = wait_for(store)
    disk.fail("write")
    disk.fail("open")
    with pytest.raises(sf.OutcomeUnknown):
        store.flow_create("z", type="q")
    with pytest.raises(sf.ShardUnavailable):
        waiting.get(timeout=SOON_S)
    with pytest.raises(sf.ShardUnavailable):
        store.flow_get("kept")


def test_a_shard_whose_every_write_fails_is_given_up(store: sf.Store, disk: Disk) -> None:
    for number in range(RESTARTS_MAX):
        disk.fail("write")
        with pytest.raises(sf.OutcomeUnknown):
            store.flow_create(f"z{number}", type="q")
    with pytest.raises(sf.ShardUnavailable):
        store.flow_get("z0")


def test_callers_without_a_pause_do_what_the_ticker_has_no_time_for(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(1_000)
    engine = Engine(disk, Counting(), Settings(), sync=False)
    link = LocalLink(0, lambda: Service(engine, clock, relaxed=True))
    woken: list[int] = []
    service = link._service
    assert service is not None
    wake = service.wake

    def noted() -> list[Departure]:
        woken.append(clock.now_ms())
        return wake()

    monkeypatch.setattr(service, "wake", noted)
    link.submit(Create([NewFlow("a", None, "t", "queued")]), Answers())
    due_ms = 1_000 + RELAXED_SYNC_MS
    for at_ms in (due_ms, due_ms + LOCAL_LATE_MS - 1, due_ms + LOCAL_LATE_MS):
        assert woken == []
        clock.set(at_ms)
        link.submit(Info("t"), Answers())
    assert woken == [due_ms + LOCAL_LATE_MS]
    link.submit(Info("t"), Answers())
    assert len(woken) == 1
    link.close()
