"""A store that holds more memory than it may: nothing new comes in, and what is there goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

import shardflow as sf
from shardflow.actors.budget import present_bytes
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import LINK_CREATIONS_MAX, RSS_SHARE_DEFAULT
from support.clients import Clients
from support.processes import eventually, paused, shard_of_pid

SHARDS = 2
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
"""A partition key of each shard."""
VERBS = ("complete", "fail", "retry", "transition", "release", "fan_out")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that has flows to work on, made while there was room."""
    path = tmp_path / "data"
    with sf.open(path, shards=SHARDS) as store:
        for key in KEYS:
            store.flow_create_many([{"id": verb} for verb in VERBS], type="t", partition_key=key)
    return path


def share_told(path: Path) -> int:
    told = json.loads((path / "run" / "host.json").read_text())
    return int(told["settings"]["max_rss_bytes"])


def assert_refused(store: sf.Store) -> None:
    """Every way to bring something new is refused, on each shard, and says when to come again."""
    for key in KEYS:
        for bring in (
            lambda key=key: store.flow_create("new", type="t", partition_key=key),
            lambda key=key: store.flow_create_many([{"id": "new"}], type="t", partition_key=key),
            lambda key=key: store.flow_start_and_claim(
                "new", type="t", worker="w", partition_key=key
            ),
        ):
            with pytest.raises(sf.Overloaded, match="max_rss_bytes") as refused:
                bring()
            assert refused.value.applied == "no"
            assert refused.value.retry_after_ms is not None and refused.value.retry_after_ms > 0
        assert store.flow_get("new", partition_key=key) is None


def settle(store: sf.Store, job: sf.FlowRecord) -> sf.FlowRecord | None:
    """Do with a job what its id says."""
    held: dict[str, Any] = {
        "partition_key": job.partition_key,
        "fencing_token": job.fencing_token,
    }
    match job.id:
        case "complete":
            return store.flow_complete(job.id, job.lease_token, **held)
        case "fail":
            return store.flow_fail(job.id, job.lease_token, error="no", **held)
        case "retry":
            return store.flow_retry(job.id, job.lease_token, error="again", **held)
        case "transition":
            return store.flow_transition(
                job.id, "running", "next", lease_token=job.lease_token, **held
            )
        case "release":
            return store.flow_release(job.id, job.lease_token, **held)
    with pytest.raises(sf.Overloaded):
        store.flow_spawn_children(
            job.id,
            [{"id": "child", "type": "t"}],
            lease_token=job.lease_token,
            from_state="running",
            success="completed",
            failure="failed",
            **held,
        )
    return None


def test_a_full_store_refuses_what_is_new_and_goes_on_with_the_rest(path: Path) -> None:
    with sf.open(path, max_rss_bytes=1) as store:
        assert_refused(store)
        for key in KEYS:
            jobs = store.flow_claim_due("t", worker="w", partition_key=key, limit=len(VERBS))
            assert sorted(job.id for job in jobs) == sorted(VERBS)
            settled = {job.id: settle(store, job) for job in jobs}
            states = {verb: record.state for verb, record in settled.items() if record}
            assert states == {
                "complete": "completed",
                "fail": "failed",
                "retry": "queued",
                "transition": "next",
                "release": "queued",
            }
        assert_refused(store)
    with sf.open(path) as store:
        for key in KEYS:
            assert store.flow_create("new", type="t", partition_key=key).state == "queued"


def test_the_hosts_limit_counts_for_all_and_outlives_it(path: Path, clients: Clients) -> None:
    host = clients.open(max_rss_bytes=2)
    with sf.open(path, max_rss_bytes=10**15) as store:
        assert store.role == "attached"
        assert_refused(store)
        host.kill()
        eventually(lambda: store.role == "host" and all(store.processes()), "no takeover")
        assert share_told(path) == 1
        assert_refused(store)


def test_a_shard_refuses_when_it_holds_its_share_and_takes_more_when_it_has_room(
    path: Path,
) -> None:
    with sf.open(path) as store:
        held = max(psutil.Process(told["pid"]).memory_info().rss for told in store.processes())
    room = 24 * 2**20
    with sf.open(path, max_rss_bytes=SHARDS * (held + room)) as store:
        key, created = KEYS[0], 0
        items = [{"payload": os.urandom(64)} for _ in range(1_000)]

        def is_full() -> bool:
            nonlocal created
            batch = [{"id": f"n{created + at}", **item} for at, item in enumerate(items)]
            try:
                store.flow_create_many(batch, type="bulk", partition_key=key)
            except sf.Overloaded:
                return True
            created += len(items)
            return False

        eventually(is_full, "it takes everything", 60)
        assert created > 0
        assert store.flow_get("n0", partition_key=key) is not None
        # The other shard has room of its own.
        assert store.flow_create("new", type="t", partition_key=KEYS[1]).state == "queued"


def test_the_default_is_a_share_of_the_memory_that_there_is(path: Path) -> None:
    with sf.open(path):
        assert share_told(path) == int(present_bytes() * RSS_SHARE_DEFAULT) // SHARDS
    with sf.open(path, max_rss_bytes=3_000_000_001):
        assert share_told(path) == 1_500_000_000


def test_shards_inside_a_process_are_not_limited(path: Path) -> None:
    with sf.open(path, max_rss_bytes=1, in_process=True) as store:
        assert store.flow_create("new", type="t").state == "queued"


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1G"])
def test_what_is_no_number_of_bytes_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(sf.InvalidArgument, match="max_rss_bytes") as refused:
        sf.open(tmp_path / "none", max_rss_bytes=wrong)
    assert refused.value.argument == "max_rss_bytes"
    assert not (tmp_path / "none").exists()


def test_too_many_creations_at_once_are_refused_before_anything_else_is(path: Path) -> None:
    """While a shard stands still, a process asks it for more than it may."""
    key, more = KEYS[0], 500
    with sf.open(path) as store:
        (job,) = store.flow_claim_due("t", worker="w", partition_key=key)
        (pid,) = (told["pid"] for told in store.processes() if shard_of_pid(told["pid"]) == 0)
        with paused(pid):
            futures = [
                store.submit.flow_create(f"n{number}", type="bulk", partition_key=key)
                for number in range(LINK_CREATIONS_MAX + more)
            ]
            done = store.submit.flow_complete(
                job.id, job.lease_token, fencing_token=job.fencing_token, partition_key=key
            )
            for future in futures[LINK_CREATIONS_MAX:]:
                assert is_refused(future)
            # The other shard has a queue of its own.
            store.flow_create("elsewhere", type="bulk", partition_key=KEYS[1])
        assert done.get(timeout=60).state == "completed"
        # What the store itself has asked the shard for counts as well.
        refused = sum(map(is_refused, futures))
        assert more <= refused <= more + 10
        assert store.flow_create("new", type="bulk", partition_key=key).state == "queued"
        assert store.flow_info("bulk")["total"] == len(futures) - refused + 2


def is_refused(future: Any) -> bool:
    try:
        future.get(timeout=60)
    except sf.Overloaded as error:
        assert error.retry_after_ms
        return True
    return False
