"""Several processes on one directory: who hosts, who attaches, and what each of them sees."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pykka
import pytest

import shardflow as sf
from shardflow.actors.link import ProcessLink
from shardflow.actors.wire import HELLO, PROTOCOL, Hello, pack_body, pack_frame
from shardflow.flow.keys import shard_of
from shardflow.testing import ManualClock
from support.clients import Clients
from support.processes import eventually, running

NOBODY = 65_534
SHARDS = 2
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
"""A partition key of each shard."""


def state_of(store: sf.Store, flow_id: str, key: str) -> str | None:
    """Return a flow's state."""
    record = store.flow_get(flow_id, partition_key=key)
    return None if record is None else record.state


# Who hosts, who attaches.


def test_the_first_process_hosts_and_the_second_attaches(path: Path, clients: Clients) -> None:
    with sf.open(path, shards=SHARDS) as store:
        assert store.role == "host"
        other = clients.open()
        assert other.role == "attached"
        assert other.call("shards") == SHARDS
        assert other.shard_pids == [told["pid"] for told in store.processes()]
        for key in KEYS:
            store.flow_create("a", type="t", partition_key=key, payload=[key])
            record = other.call("flow_get", "a", partition_key=key, payload=True)
            assert record.payload == [key]
            other.call("flow_create", "b", type="t", partition_key=key)
            assert store.flow_get("b", partition_key=key) is not None
        job = other.call("flow_claim_due", "t", worker="w")[0]
        with pytest.raises(sf.StaleLease):
            store.flow_complete(job.id, "0" * 32, fencing_token=1, partition_key=job.partition_key)
        done = store.flow_complete(
            job.id,
            job.lease_token,
            fencing_token=job.fencing_token,
            partition_key=job.partition_key,
        )
        assert done.state == "completed"
        # It is told what the shard refuses, as any caller is.
        with pytest.raises(sf.FlowAlreadyExists):
            other.call("flow_create", "a", type="t", partition_key=KEYS[0])


def test_a_claim_of_one_process_is_woken_by_another(path: Path, clients: Clients) -> None:
    with sf.open(path, shards=SHARDS) as store:
        other = clients.open()
        waiting = other.begin("flow_claim_due", "t", worker="w", block_ms=60_000)
        store.flow_create("a", type="t")
        assert [job.id for job in other.result(waiting)] == ["a"]
        waits = store.submit.flow_claim_due("t", worker="w", block_ms=60_000)
        other.call("flow_create", "b", type="t")
        assert [job.id for job in waits.get(timeout=20)] == ["b"]


def test_eight_attached_processes_complete_each_flow_exactly_once(
    path: Path, clients: Clients
) -> None:
    with sf.open(path, shards=SHARDS) as store:
        everyone = [clients.start() for _ in range(8)]
        made = [client.opened().begin("create", "t", 25) for client in everyone]
        created = [
            id for client, call in zip(everyone, made, strict=True) for id in client.result(call)
        ]
        drained = [client.begin("drain", "t") for client in everyone]
        done = [
            id for client, call in zip(everyone, drained, strict=True) for id in client.result(call)
        ]
        assert Counter(done) == Counter(created)
        assert len(done) == 200
        for id in created:
            names = [event.name for event in store.flow_history(id)]
            assert names == ["created", "claimed", "completed"]
        assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS
        assert {client.role for client in everyone} == {"attached"}


def test_a_fan_out_of_an_attached_process_reaches_all_shards(path: Path, clients: Clients) -> None:
    with sf.open(path, shards=SHARDS) as store:
        other = clients.open()
        for number, key in enumerate(KEYS):
            other.call("flow_create", "parent", type="p", partition_key=key)
            children = [{"id": f"c{number}{k}", "type": "c", "partition_key": k} for k in KEYS]
            parent = other.call(
                "flow_spawn_children", "parent", children, partition_key=key, success="won",
                failure="lost",
            )  # fmt: skip
            assert parent.child_groups["fanout"].total == SHARDS
        # The notices to the parents are carried by the host.
        while jobs := other.call("flow_claim_due", "c", worker="w", limit=10):
            for job in jobs:
                other.call(
                    "flow_complete", job.id, job.lease_token, fencing_token=job.fencing_token,
                    partition_key=job.partition_key,
                )  # fmt: skip
        for key in KEYS:
            eventually(
                lambda key=key: state_of(store, "parent", key) == "won",  # type: ignore[misc]
                "the parent is not told",
            )


def test_a_policy_of_an_attached_process_holds_on_all_shards(path: Path, clients: Clients) -> None:
    with sf.open(path, shards=SHARDS) as store:
        clients.open().call("flow_policy_set", "t", retry={"max_retries": 0})
        for key in KEYS:
            job = store.flow_start_and_claim("a", type="t", worker="w", partition_key=key)
            ended = store.flow_retry(
                job.id, job.lease_token, fencing_token=job.fencing_token, partition_key=key
            )
            assert ended.state == "failed"


def test_all_who_open_a_new_directory_at_once_share_one_store(clients: Clients) -> None:
    everyone = [clients.start(shards=SHARDS) for _ in range(6)]
    for number, client in enumerate(everyone):
        client.opened().call("flow_create", f"f{number}", type="t")
    assert clients.host in everyone
    for client in everyone:
        assert len(client.call("flow_list", "t")) == 6


# Roles that were asked for.


def test_a_role_is_had_or_refused(path: Path, clients: Clients) -> None:
    with pytest.raises(sf.StoreNotRunning) as caught:
        sf.open(path, role="attach")
    assert caught.value.path == str(path)
    assert not path.exists(), "looking for a host leaves no trace"
    host = clients.open(role="host", shards=SHARDS)
    with pytest.raises(sf.StoreLocked) as locked:
        sf.open(path, role="host")
    assert locked.value.pid == host.pid
    with sf.open(path, role="attach") as store:
        assert store.role == "attached"
    host.call("close")
    with pytest.raises(sf.StoreNotRunning):
        sf.open(path, role="attach")
    with sf.open(path) as store:
        assert store.role == "host"


def test_a_process_opens_a_store_once_also_attached(
    path: Path, tmp_path: Path, clients: Clients
) -> None:
    clients.open(shards=SHARDS)
    (tmp_path / "link").symlink_to(path)
    with sf.open(path) as store:
        for name in (path, tmp_path / "link"):
            for role in ("auto", "attach"):
                with pytest.raises(sf.StoreLocked) as caught:
                    sf.open(name, role=role)
                assert caught.value.pid == os.getpid()
        assert store.flow_create("a", type="t").version == 1
    sf.open(path).close()


def test_in_process_and_attach_do_not_go_together(path: Path) -> None:
    with pytest.raises(sf.InvalidArgument):
        sf.open(path, role="attach", in_process=True)


def test_shards_inside_a_process_cannot_be_attached_to(path: Path, clients: Clients) -> None:
    host = clients.open(in_process=True, shards=SHARDS)
    for role in ("auto", "attach"):
        with pytest.raises(sf.StoreLocked, match="in_process") as caught:
            sf.open(path, role=role)
        assert caught.value.pid == host.pid
    with pytest.raises(sf.StoreLocked):
        sf.open(path, in_process=True)


# Options that are the host's.


def test_a_weaker_durability_than_was_asked_for_is_refused_naming_both(
    path: Path, clients: Clients
) -> None:
    clients.open(durability="relaxed", shards=SHARDS)
    with pytest.raises(sf.StoreConfigError) as caught:
        sf.open(path)
    assert "relaxed" in str(caught.value) and "sync" in str(caught.value)
    with sf.open(path, durability="relaxed") as store:
        assert store.role == "attached"


def test_a_stronger_durability_than_was_asked_for_is_taken(path: Path, clients: Clients) -> None:
    clients.open(shards=SHARDS)
    with sf.open(path, durability="relaxed") as store:
        assert store.role == "attached"
        before = sum(told["syncs"] for told in store.stats())
        store.flow_create("a", type="t")
        assert sum(told["syncs"] for told in store.stats()) == before + 1


def test_another_number_of_shards_is_refused_to_attach(path: Path, clients: Clients) -> None:
    clients.open(shards=SHARDS)
    with pytest.raises(sf.StoreConfigError, match="with 2 shards and cannot be opened with 3"):
        sf.open(path, shards=3)


def test_time_is_of_one_kind_for_all(path: Path, clients: Clients) -> None:
    clients.open(shards=SHARDS)
    with pytest.raises(sf.StoreConfigError, match="no manual clock"):
        sf.open(path, clock=ManualClock(1_000))


def test_who_attaches_to_a_manual_clock_brings_one(path: Path, clients: Clients) -> None:
    host_clock = ManualClock(1_000)
    with sf.open(path, shards=SHARDS, clock=host_clock) as store:
        client = clients.start()
        with pytest.raises(sf.StoreConfigError, match="a manual clock"):
            client.opened()
        assert store.flow_create("a", type="t").created_at_ms == 1_000


def test_a_host_of_another_version_is_not_misunderstood(path: Path, clients: Clients) -> None:
    clients.open(shards=SHARDS)
    told = json.loads((path / "run" / "host.json").read_bytes())
    for change, says in (({"protocol": 99}, "protocol 99"), ({"settings": 1}, "not understood")):
        (path / "run" / "host.json").write_text(json.dumps(told | change))
        with pytest.raises(sf.StoreConfigError, match=says):
            sf.open(path)


# Hosts that are only starting.

STARTING = """
import os, sys
from pathlib import Path
from shardflow.actors.owner import Owner
import shardflow as sf
owner = Owner(Path(sys.argv[1]))
owner.lock()
print("locked", flush=True)
if sys.stdin.readline() == "host\\n":
    owner.unlock()
    store = sf.open(sys.argv[1], role="host")
    print("hosts", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["host", "die"])
def test_attaching_waits_for_a_host_that_starts_and_takes_its_place_if_it_dies(
    path: Path, tmp_path: Path, clients: Clients, end: str
) -> None:
    sf.open(path, shards=SHARDS).close()
    with running("-c", STARTING, path, stderr=tmp_path / "stderr") as starting:
        starting.wait_for_line("locked")
        client = clients.start(role="attach" if end == "host" else "auto")
        time.sleep(0.5)
        assert not client.is_answered(client.opening), "there is nothing to attach to yet"
        if end == "die":
            starting.kill()
            assert client.opened().role == "host"
            return
        # For a moment nobody owns the directory: who may host has a chance then as well.
        starting.say("host")
        starting.wait_for_line("hosts")
        try:
            assert client.opened().role == "attached"
        except sf.StoreNotRunning:
            assert clients.open().role == "attached"


# Shards that the host has given up.


def test_an_attached_process_is_told_why_a_shard_does_not_serve(
    path: Path, clients: Clients
) -> None:
    with sf.open(path, shards=SHARDS) as store:
        for key in KEYS:
            for number in range(5):
                store.flow_create(f"f{number}", type="t", partition_key=key)
    log = path / "shard-1" / "0000000001.log"
    whole = log.read_bytes()
    at = whole.index(b"SFL1", 1)
    log.write_bytes(whole[: at + 50] + b"?" + whole[at + 51 :])
    host = clients.open()
    with sf.open(path, timeout=20) as store:
        started_s = time.monotonic()
        for _ in range(2):
            with pytest.raises(sf.CorruptLog) as caught:
                store.flow_get("f1", partition_key=KEYS[1])
            assert (caught.value.path, caught.value.offset) == (str(log), at)
        assert time.monotonic() - started_s < 5
        assert store.flow_get("f1", partition_key=KEYS[0]) is not None
        assert (path / "run" / "shard-1.down").stat().st_mode & 0o777 == 0o600
        # Mended and hosted anew, it serves those who stayed attached as well.
        log.write_bytes(whole)
        host.call("close")

        def is_back() -> bool:
            try:
                return store.flow_get("f1", partition_key=KEYS[1]) is not None
            except sf.FlowError:
                return False

        eventually(is_back, "the shard does not come back")
        assert store.role == "host"
        assert not (path / "run" / "shard-1.down").exists()


def test_a_store_without_any_shard_refuses_those_who_attach(path: Path, clients: Clients) -> None:
    host = clients.open(shards=1)
    path_of_log = next((path / "shard-0").glob("*.log"))
    for number in range(3):
        host.call("flow_create", f"f{number}", type="t")
    whole = path_of_log.read_bytes()
    path_of_log.write_bytes(whole[:20] + b"damage" + whole[26:])
    os.kill(host.shard_pids[0], 9)
    eventually((path / "run" / "shard-0.down").exists, "the shard is not given up")
    with pytest.raises(sf.CorruptLog):
        sf.open(path)


# Traces.


def test_a_host_that_copies_its_own_directory_stays_the_host(
    path: Path, tmp_path: Path, clients: Clients
) -> None:
    with sf.open(path, shards=SHARDS) as store:
        other = clients.open()
        # Reading OWNER gives up the kernel's lock on it, of which the host notices nothing.
        for name in ("OWNER", "store.json"):
            shutil.copy(path / name, tmp_path / name)
        pids = [told["pid"] for told in store.processes()]
        os.kill(pids[0], signal.SIGKILL)
        eventually(lambda: store.processes()[0]["pid"] != pids[0], "it is not started again")
        late = clients.open()
        with pytest.raises(sf.StoreLocked) as caught:
            clients.open(role="host")
        assert caught.value.pid == os.getpid()
        for client in (other, late):
            for key in KEYS:
                client.call("flow_get", "a", partition_key=key)
            assert client.role == "attached"
        assert store.role == "host"
        assert clients.count("takes over") == 0


def test_attaching_leaves_nothing_behind(path: Path, clients: Clients) -> None:
    def left() -> tuple[int, int, int]:
        gc.collect()
        return (
            psutil.Process().num_fds(),
            threading.active_count(),
            len(pykka.ActorRegistry.get_all()),
        )

    host = clients.open(shards=SHARDS)
    sf.open(path).close()
    before = left()
    for number in range(20):
        with sf.open(path) as store:
            store.flow_create(f"f{number}", type="t")
    eventually(lambda: left() == before, f"{before} became {left()}")
    assert len(host.call("flow_list", "t")) == 20
    assert psutil.Process().children() != []


def test_long_paths_can_be_attached_to(tmp_path: Path, clients: Clients) -> None:
    path = tmp_path / ("long é" * 20) / ("longer" * 20)
    assert len(os.fsencode(path)) > 200
    with sf.open(path, shards=SHARDS) as store:
        other = clients.start(path=path).opened()
        assert other.role == "attached"
        other.call("flow_create", "a", type="t")
        assert store.flow_get("a") is not None


def test_what_a_host_tells_is_for_its_owner_only(path: Path, clients: Clients) -> None:
    os_umask = os.umask(0)
    try:
        with sf.open(path, shards=SHARDS):
            assert path.stat().st_mode & 0o777 == 0o700
            assert (path / "run").stat().st_mode & 0o777 == 0o700
            files = {file.name: file.stat().st_mode & 0o777 for file in (path / "run").iterdir()}
            assert set(files) == {"host.json", "token", "shard-0.sock", "shard-1.sock"}
            assert set(files.values()) == {0o600}
            for name in ("OWNER", "store.json", "shard-0/LOCK"):
                assert (path / name).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(os_umask)


def test_a_folder_that_others_could_read_is_closed_to_them(path: Path) -> None:
    sf.open(path, shards=1).close()
    (path / "run").chmod(0o777)
    with sf.open(path):
        assert (path / "run").stat().st_mode & 0o777 == 0o700


def test_a_wrong_token_is_shown_out_without_haste_and_the_right_one_let_in(
    path: Path, tmp_path: Path, clients: Clients
) -> None:
    host = clients.open(shards=1)
    token = (path / "run" / "token").read_text()
    (path / "run" / "token").write_text("0" * 32)
    late, started_s = clients.start(), time.monotonic()
    eventually(lambda: clients.count("the token is not that") >= 8, "it gives up")
    # Each wait is twice the one before, less up to 30 %.
    assert time.monotonic() - started_s > 0.7 * 0.005 * (2**7 - 1), "it tries in a loop"
    host.call("flow_create", "a", type="t")
    (path / "run" / "token").write_text(token)
    assert late.opened().call("flow_get", "a") is not None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_another_user_is_shown_out_even_with_the_token() -> None:
    # Not below tmp_path: nobody else may enter that.
    with tempfile.TemporaryDirectory() as folder, sf.open(Path(folder) / "data", shards=1):
        path = Path(folder) / "data"
        hello = pack_frame(
            HELLO, pack_body(Hello(PROTOCOL, (path / "run" / "token").read_text(), 1))
        )
        for place in (Path(folder), path, path / "run"):
            place.chmod(0o755)
        (path / "run" / "shard-0.sock").chmod(0o666)
        for user, is_let_in in ((0, True), (NOBODY, False)):
            with socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(20)
                os.seteuid(user)
                try:
                    channel.connect(str(path / "run" / "shard-0.sock"))
                finally:
                    os.seteuid(0)
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    channel.sendall(hello)
                    assert bool(channel.recv(1)) == is_let_in


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_a_socket_of_another_user_is_not_spoken_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        os.seteuid(NOBODY)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        router: Any = None
        link = ProcessLink(0, tmp_path / "sock", "the token", router)
        with pytest.raises(PermissionError, match="another user"):
            link.connect()
        stranger, _ = listener.accept()
        with stranger:
            assert stranger.recv(4_096) == b""
