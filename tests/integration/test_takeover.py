"""The host of a store ends, hangs or closes it: an attached process hosts it, the others follow."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from shardflow.testing import ManualClock
from support.clients import Client, Clients
from support.processes import eventually, is_running, paused, running

SHARDS = 2
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
"""A partition key of each shard."""
SOON_S = 5.0
"""How long anybody has to do without a host."""


def assert_whole(store: sf.Store | Client, *flow_ids: str) -> None:
    """Find these flows, and nothing wrong."""
    ask = store.call if isinstance(store, Client) else lambda n, *a, **k: getattr(store, n)(*a, **k)
    for flow_id in flow_ids:
        assert ask("flow_get", flow_id) is not None
    assert [told["problems"] for told in ask("stats", check=True)] == [[]] * SHARDS


def surely(call: Callable[[], object]) -> float:
    """Repeat a call for as long as its outcome is unknown; return how long that took."""
    started_s = time.monotonic()

    def works() -> bool:
        with contextlib.suppress(sf.OutcomeUnknown):
            call()
            return True
        return False

    eventually(works, "it does not go on")
    return time.monotonic() - started_s


def await_takeover(store: sf.Store) -> None:
    """Wait until this process hosts the store, and all its shards serve."""
    eventually(lambda: store.role == "host" and all(store.processes()), "no takeover", SOON_S)
    # A command may still be sent to a shard of the old host, which is on its way out.
    for key in KEYS:
        surely(lambda key=key: store.flow_get("any", partition_key=key))  # type: ignore[misc]


# Ends.


def killed(host: Client) -> None:
    host.kill()


def closed(host: Client) -> None:
    host.call("close")


def left(host: Client) -> None:
    assert host.leave() == 0


def terminated(host: Client) -> None:
    host.process.terminate()
    host.process.wait(20)


@pytest.mark.parametrize("end", [killed, closed, left, terminated])
def test_one_of_the_attached_hosts_and_the_others_follow(
    clients: Clients, end: Callable[[Client], None]
) -> None:
    host = clients.open(shards=SHARDS)
    others = [clients.open() for _ in range(3)]
    shards = host.shard_pids
    host.call("create", "t", 5)
    end(host)
    if host in clients.alive:
        clients.all.remove(host)
    for number, other in enumerate(others):
        took_s = surely(
            lambda other=other, number=number: other.call(  # type: ignore[misc]
                "flow_create", f"after-{number}", type="t", idempotent=True
            )
        )
        assert took_s < SOON_S
    heir = clients.host
    assert heir in others
    assert clients.count("takes over") == 1
    assert not any(map(is_running, shards))
    for other in others:
        assert len(other.call("flow_list", "t")) == 8
        assert other.shard_pids == heir.shard_pids
    assert_whole(heir)
    if end is closed:
        host.clean_up()


def test_the_store_goes_from_hand_to_hand(path: Path, clients: Clients) -> None:
    for number in range(4):
        clients.open(shards=SHARDS).call("flow_create", f"f{number}", type="t")
    for number in range(3):
        clients.host.kill()
        eventually(
            lambda number=number: clients.count("takes over") == number + 1,  # type: ignore[misc]
            "nobody takes over",
        )
        assert clients.host in clients.alive
    last = clients.host
    assert clients.alive == [last]
    assert len(last.call("flow_list", "t")) == 4
    last.kill()
    with sf.open(path) as store:
        assert_whole(store, *(f"f{number}" for number in range(4)))


def test_an_idle_process_takes_over_without_being_asked(path: Path, clients: Clients) -> None:
    host = clients.open(shards=SHARDS)
    with sf.open(path) as store:
        assert store.role == "attached"
        host.kill()
        await_takeover(store)
        assert store.flow_create("a", type="t").version == 1
        assert set(store.processes()[0]) == {"pid", "flows", "cut_bytes", "recovery_ms"}
    with pytest.raises(sf.StoreNotRunning):
        sf.open(path, role="attach")


def test_a_process_that_only_wanted_to_attach_takes_over_as_well(
    path: Path, clients: Clients
) -> None:
    host = clients.open(shards=SHARDS)
    with sf.open(path, role="attach") as store:
        host.kill()
        await_takeover(store)


def test_the_new_host_does_as_the_old_one_did(path: Path, clients: Clients) -> None:
    host = clients.open(shards=SHARDS, durability="relaxed", retention_ms=1_234_000)
    with sf.open(path, durability="relaxed") as store:
        told = (path / "run" / "host.json").read_text()
        host.kill()
        await_takeover(store)
        store.flow_create("a", type="t")
        job = store.flow_claim_due("t", worker="w")[0]
        done = store.flow_complete(job.id, job.lease_token, fencing_token=job.fencing_token)
        assert done.retention_ttl_ms in (None, 1_234_000)
        mine = (path / "run" / "host.json").read_text()
        assert mine == told.replace(str(host.pid), str(os.getpid()))
        assert "1234000" in mine


def test_a_process_that_closed_its_store_takes_nothing_over(path: Path, clients: Clients) -> None:
    host = clients.open(shards=SHARDS)
    sf.open(path).close()
    idle = clients.open()
    idle.call("close")
    shards = host.shard_pids
    host.kill()
    eventually(lambda: not any(map(is_running, shards)), "the shards stay", SOON_S)
    time.sleep(0.3)
    assert clients.count("takes over") == 0
    with sf.open(path) as store:
        assert store.role == "host"


# What was under way.


def test_what_was_sent_is_unknown_and_what_only_reads_is_answered(
    path: Path, clients: Clients
) -> None:
    host = clients.open(shards=SHARDS)
    with sf.open(path, timeout=20) as store:
        for key in KEYS:
            store.flow_create("a", type="t", partition_key=key, payload=1)
        with contextlib.ExitStack() as stack:
            for pid in host.shard_pids:
                stack.enter_context(paused(pid))
            created = [store.submit.flow_create("new", type="t", partition_key=key) for key in KEYS]
            claimed = store.submit.flow_claim_due("t", worker="w", partition_key=KEYS[0])
            reads: list[Any] = [
                store.submit.flow_get("a", partition_key=key, payload=True) for key in KEYS
            ]
            everywhere = store.submit.flow_list("t")
            waiting = store.submit.flow_claim_due("late", worker="w", block_ms=60_000)
            host.kill()
            started_s = time.monotonic()
            sent: list[Any] = [*created, claimed]
            for future in sent:
                with pytest.raises(sf.OutcomeUnknown):
                    future.get(timeout=20)
            # A stopped shard answers nobody and keeps its lock: it is killed by the new host's.
            for read in reads:
                record = read.get(timeout=20)
                assert record is not None and record.payload == 1
            assert time.monotonic() - started_s < SOON_S
        assert len(everywhere.get(timeout=20)) == 2
        assert store.role == "host"
        for key in KEYS:
            assert store.flow_create("new", type="t", partition_key=key).version == 1
        late = store.flow_create("late", type="late")
        assert [job.id for job in waiting.get(timeout=20)] == [late.id]


def test_calls_wait_for_the_new_host_and_no_longer_than_they_may(
    path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = clients.open(shards=SHARDS)
    with sf.open(path, timeout=1) as store:
        # A program without an interpreter for shards: it can attach, and cannot host.
        monkeypatch.setattr("sys.frozen", True, raising=False)
        host.kill()
        eventually(lambda: not any(store.processes()), "the shards stay")
        started_s = time.monotonic()
        with pytest.raises(sf.ShardUnavailable) as caught:
            store.flow_create("a", type="t")
        assert caught.value.applied == "no"
        assert 1 <= time.monotonic() - started_s < SOON_S
        waits = store.submit.flow_create("b", type="t")
        assert store.role == "attached"
        heir = clients.open()
        assert waits.get(timeout=20).version == 1
        assert (heir.role, store.role) == ("host", "attached")


def test_closing_does_not_wait_for_a_host_that_is_gone(
    path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = clients.open(shards=SHARDS)
    store = sf.open(path)
    monkeypatch.setattr("sys.frozen", True, raising=False)
    host.kill()
    eventually(lambda: not any(store.processes()), "the shards stay")
    waits = store.submit.flow_create("a", type="t")
    started_s = time.monotonic()
    store.close()
    assert time.monotonic() - started_s < SOON_S
    with pytest.raises(sf.StoreClosed):
        waits.get(timeout=1)


def test_a_host_with_other_rules_is_not_followed_in_silence(
    path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = clients.open(shards=SHARDS)
    with sf.open(path, timeout=20) as store:
        monkeypatch.setattr("sys.frozen", True, raising=False)
        host.kill()
        weaker = clients.open(durability="relaxed")

        def is_refused() -> bool:
            try:
                store.flow_get("a")
            except sf.StoreConfigError as error:
                return "relaxed" in str(error)
            except sf.ShardUnavailable:
                return False
            return False

        eventually(is_refused, "it is followed")
        weaker.kill()
        clients.open()

        def goes_on() -> bool:
            # The refusal holds until the next look for the host.
            with contextlib.suppress(sf.StoreConfigError, sf.OutcomeUnknown):
                return store.flow_create("a", type="t", idempotent=True).version == 1
            return False

        eventually(goes_on, "it stays refused")
        assert store.role == "attached"


def test_time_goes_on_where_a_manual_clock_stood(path: Path, tmp_path: Path) -> None:
    from support.hosts import Host

    clock = ManualClock(1_000)
    host = Host()
    host.open(path, {"clock": clock, "shards": SHARDS})
    with sf.open(path, clock=clock, role="attach") as store:
        store.flow_create("a", type="t", run_at_ms=5_000)
        clock.advance(1_000)
        assert store.flow_claim_due("t", worker="w") == []
        os.kill(host.pid, signal.SIGKILL)
        await_takeover(store)
        assert store.flow_create("b", type="u").created_at_ms == 2_000
        clock.advance(3_000)
        assert [job.id for job in store.flow_claim_due("t", worker="w")] == ["a"]
    with contextlib.suppress(BrokenPipeError):
        host.end()


# Who is stopped is not dead.


def test_a_stopped_host_holds_nobody_up(clients: Clients) -> None:
    host = clients.open(shards=SHARDS)
    other = clients.open()
    with paused(host.pid):
        for number in range(20):
            other.call("flow_create", f"f{number}", type="t")
        assert len(other.call("drain", "t")) == 20
        late = clients.open()
        assert (late.role, other.role) == ("attached", "attached")
    assert clients.host is host
    assert clients.count("takes over") == 0


def test_a_stopped_shard_does_not_keep_the_next_host_from_starting(
    path: Path, clients: Clients
) -> None:
    host = clients.open(shards=SHARDS)
    host.call("create", "t", 10)
    (stopped, _) = host.shard_pids
    with paused(stopped):
        host.kill()
        started_s = time.monotonic()
        heir = clients.open()
        assert heir.role == "host"
        assert time.monotonic() - started_s < SOON_S
        assert not is_running(stopped)
        assert f"killed process {stopped}" in clients.said
    assert len(heir.call("drain", "t")) == 10
    assert_whole(heir)


def test_a_stopped_shard_is_killed_for_shards_inside_a_process_as_well(
    path: Path, clients: Clients
) -> None:
    host = clients.open(shards=SHARDS)
    host.call("create", "t", 4)
    (stopped, _) = host.shard_pids
    with paused(stopped):
        host.kill()
        with sf.open(path, in_process=True) as store:
            assert not is_running(stopped)
            assert len(store.flow_list("t")) == 4
            assert (path / "shard-0" / "LOCK").read_text().strip() == ""


def test_what_is_no_leftover_shard_is_not_killed(path: Path, tmp_path: Path) -> None:
    # Another program has the lock, and an old pid in it is that of a third one.
    sf.open(path, shards=SHARDS).close()
    lock = path / "shard-0" / "LOCK"
    holds = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('has', flush=True); sys.stdin.read()"  # noqa: E501
    waits = "import sys; print('is', flush=True); sys.stdin.read()"
    with (
        running("-c", holds, lock, stderr=tmp_path / "holds") as holder,
        running("-c", waits, stderr=tmp_path / "waits") as named,
    ):
        holder.wait_for_line("has")
        named.wait_for_line("is")
        lock.write_text(f"{named.pid}\n")
        started_s = time.monotonic()
        with sf.open(path, in_process=True) as store:
            with pytest.raises(sf.ShardUnavailable):
                store.flow_create("a", type="t", partition_key=KEYS[0])
            assert store.flow_create("a", type="t", partition_key=KEYS[1]).version == 1
        assert time.monotonic() - started_s > 5
        assert is_running(holder.pid) and is_running(named.pid)


def test_a_client_that_does_not_read_holds_up_nobody(path: Path, clients: Clients) -> None:
    with sf.open(path, shards=SHARDS) as store:
        for key in KEYS:
            store.flow_create("large", type="t", partition_key=key, payload=b"x" * 2**20)
        slow = clients.open()
        slow.call("flow_get", "large", partition_key=KEYS[0])
        with paused(slow.pid):
            pass
        asked = slow.begin("read_often", "large", KEYS, 60)
        eventually(lambda: clients.count("asked") == 1, "it does not ask")
        with paused(slow.pid):
            for number in range(100):
                for key in KEYS:
                    started_s = time.monotonic()
                    store.flow_create(f"f{number}", type="u", partition_key=key)
                    assert time.monotonic() - started_s < SOON_S
            assert len(clients.open().call("flow_list", "u", count=1_000)) == 200
        assert slow.result(asked) == 60 * SHARDS


# Who cannot host leaves it to others.


def test_a_process_whose_shards_do_not_start_leaves_hosting_to_others(
    path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = clients.open(shards=SHARDS)
    with sf.open(path, timeout=20) as store:
        monkeypatch.setattr("sys.executable", "/bin/false")
        host.kill()

        def is_refused() -> bool:
            try:
                store.flow_get("a")
            except sf.ShardUnavailable as error:
                return "exit code 1" in str(error)
            return False

        eventually(is_refused, "nobody says that it does not work")
        eventually(lambda: store.role == "attached", "it stays the host")
        monkeypatch.undo()
        heir = clients.open()
        assert heir.role == "host"
        eventually(lambda: all(store.processes()), "it does not attach again")
        surely(lambda: store.flow_create("a", type="t", idempotent=True))
        assert store.role == "attached"
        assert heir.call("flow_get", "a") is not None


def test_a_shard_that_hangs_keeps_nobody_from_attaching(path: Path, clients: Clients) -> None:
    host = clients.open(shards=SHARDS)
    with paused(host.shard_pids[1]):
        started_s = time.monotonic()
        with sf.open(path, timeout=1) as store:
            assert time.monotonic() - started_s < SOON_S
            assert store.flow_create("a", type="t", partition_key=KEYS[0]).version == 1
            with pytest.raises(sf.FlowError):
                store.flow_create("a", type="t", partition_key=KEYS[1])
