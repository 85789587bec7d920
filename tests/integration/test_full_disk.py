"""Live stores on a disk that fills up, turns read-only or loses the directory."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import DISK_FLOOR_BYTES, DISK_RESERVE_BYTES, MIB, SEGMENT_BYTES
from support.processes import eventually
from support.small_disk import SmallDisk, small_disk

SHARDS = 2
CAPACITY = 200 * MIB
FILLED_BYTES = 130 * MIB
"""A disk that a store fills by itself, in a moment."""
_names = itertools.count()
KEYS = [
    next(key for key in map(str, range(100)) if shard_of(key, "", SHARDS) == shard)
    for shard in range(SHARDS)
]


@pytest.fixture
def disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    return small_disk(path, tmp_path / "size", CAPACITY, monkeypatch)


def create(store: sf.Store, key: str, size: int = 10) -> sf.FlowRecord:
    name = f"f{next(_names)}"
    return store.flow_create(name, type="t", partition_key=key, payload=b"x" * size)


def is_refusing(store: sf.Store, key: str, size: int = 10) -> bool:
    try:
        create(store, key, size)
    except sf.Overloaded as error:
        assert error.reason == "disk" and error.applied == "no"
        assert error.retry_after_ms and "free space" in str(error)
        return True
    return False


def await_refusals(store: sf.Store, are_wanted: bool = True) -> None:
    told = "creations go on" if are_wanted else "creations are not taken again"
    # All of them each time: a look at the disk of one shard may be later than another's.
    eventually(lambda: {is_refusing(store, key) for key in KEYS} == {are_wanted}, told)


def reserves(path: Path) -> list[int]:
    sizes = []
    for shard in range(SHARDS):
        file = path / f"shard-{shard}" / "reserve"
        sizes.append(file.stat().st_size if file.exists() else 0)
    return sizes


def fill_up(store: sf.Store, disk: SmallDisk) -> list[sf.FlowRecord]:
    """Let the disk become full under a store at work; return flows that are leased."""
    for key in KEYS:
        for number in range(6):
            store.flow_create(f"l{number}", type="large", partition_key=key, payload=b"x" * MIB)
        for _ in range(4):
            create(store, key)
    jobs = [
        job
        for key in KEYS
        for job in store.flow_claim_due("t", worker="w", partition_key=key, limit=4)
    ]
    wanted = [DISK_RESERVE_BYTES] * SHARDS
    eventually(lambda: store.stats() and reserves(disk.root) == wanted, "no reserve is set aside")
    disk.fill()
    await_refusals(store)
    assert reserves(disk.root) == [0, 0]
    return jobs


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_a_full_disk_refuses_creations_and_ends_flows(
    path: Path, disk: SmallDisk, in_process: bool
) -> None:
    with sf.open(path, shards=SHARDS, in_process=in_process) as store:
        jobs = fill_up(store, disk)
        epochs = [told["epoch"] for told in store.stats()]
        for job in jobs[::2]:
            done = store.flow_complete(
                job.id,
                job.lease_token,
                fencing_token=job.fencing_token,
                partition_key=job.partition_key,
                result="done",
            )
            assert done.state == "completed"
        disk.resize(disk.used_bytes + DISK_FLOOR_BYTES + SHARDS * DISK_RESERVE_BYTES + 9 * MIB)
        await_refusals(store, False)
        assert [told["epoch"] for told in store.stats()] == epochs, "no shard was started again"
        assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
def test_a_disk_that_the_store_has_filled_by_itself_gets_room_again(
    path: Path, disk: SmallDisk, in_process: bool
) -> None:
    disk.resize(FILLED_BYTES)
    with sf.open(
        path, shards=1, in_process=in_process, retention_ms=50, failed_retention_ms=50
    ) as store:
        while not is_refusing(store, KEYS[0], MIB):
            pass
        (before,) = store.stats()
        assert before["is_disk_full"] and before["log_bytes"] > SEGMENT_BYTES
        for record in store.flow_list("t", count=1_000):
            store.flow_cancel(record.id, partition_key=KEYS[0], force=True)

        def is_small() -> bool:
            taken: int = store.stats()[0]["log_bytes"]
            return not is_refusing(store, KEYS[0]) and taken < before["log_bytes"] // 2

        eventually(is_small, "creations are not taken again")
        (after,) = store.stats(check=True)
        assert after["problems"] == []
        assert after["epoch"] == before["epoch"], "it was not started again"
    with sf.open(path, in_process=True) as store:
        assert store.stats(check=True)[0]["problems"] == []


def test_a_store_opens_on_a_disk_without_a_free_byte(path: Path, disk: SmallDisk) -> None:
    with sf.open(path, shards=SHARDS) as store:
        jobs = fill_up(store, disk)
        disk.fill()
        for shard in range(SHARDS):
            os.kill(store.processes()[shard]["pid"], signal.SIGKILL)
        _assert_reads(store)
    disk.fill()
    for in_process in (False, True, False):
        with sf.open(path, in_process=in_process) as store:
            _assert_reads(store)
            _assert_refuses(store, jobs)
        # A byte for each shard said that it was open.
        assert disk.free_bytes <= SHARDS
    with sf.open(path) as store:
        disk.resize(CAPACITY)
        await_refusals(store, False)
        for job in jobs:
            store.flow_complete(
                job.id,
                job.lease_token,
                fencing_token=job.fencing_token,
                partition_key=job.partition_key,
            )


def _assert_reads(store: sf.Store) -> None:
    for key in KEYS:
        record = store.flow_get("l1", partition_key=key, payload=True)
        assert record is not None and record.payload_size > MIB
    await_refusals(store)
    assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS


def _assert_refuses(store: sf.Store, jobs: list[Any]) -> None:
    for job in jobs:
        with pytest.raises(sf.Overloaded) as caught:
            store.flow_complete(
                job.id,
                job.lease_token,
                fencing_token=job.fencing_token,
                partition_key=job.partition_key,
            )
        assert caught.value.reason == "disk"
    assert store.flow_info("t")["leased"] == len(jobs)


def test_others_attach_to_a_store_on_a_full_disk(path: Path, disk: SmallDisk) -> None:
    with sf.open(path, shards=SHARDS) as store:
        fill_up(store, disk)
        old = store.path
    disk.fill()
    tokens = (path / "run" / "token").read_text(), (path / "OWNER").read_text()
    with sf.open(path) as store:
        assert store.path == old
        now = (path / "run" / "token").read_text(), (path / "OWNER").read_text()
        assert now[0] != tokens[0], "the token is this host's own"
        assert now[1].strip() == str(os.getpid())
        assert disk.free_bytes == 0


@pytest.mark.parametrize("in_process", [False, True], ids=["processes", "in-process"])
@pytest.mark.parametrize("how", ["directory", "segment"])
def test_a_log_that_is_deleted_gives_its_shard_up(
    path: Path, in_process: bool, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with sf.open(path, shards=SHARDS, in_process=in_process) as store:
        for key in KEYS:
            create(store, key)
        if how == "directory":
            shutil.rmtree(path / "shard-1")
        else:
            (path / "shard-1" / "0000000001.log").unlink()

        def lose() -> bool:
            try:
                store.flow_create("lost", type="x", partition_key=KEYS[1], idempotent=True)
            except sf.OutcomeUnknown:
                return False
            except sf.CorruptLog as error:
                assert "was deleted" in str(error) and error.reason == "deleted"
                return True
            return False

        eventually(lose, "writes go to a file that is gone")
        with pytest.raises(sf.CorruptLog):
            store.flow_get("f0", partition_key=KEYS[1])
        assert store.flow_create("g", type="t", partition_key=KEYS[0]).version == 1
        if not in_process:
            eventually(lambda: "shard 1 is given up" in caplog.text, "it is not logged")
    with sf.open(path) as store, pytest.raises(sf.CorruptLog, match="missing"):
        store.flow_get("f0", partition_key=KEYS[1])


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.EROFS, "mount the file system writable"),
        (errno.EACCES, "give this user the right"),
        (errno.ENOSPC, "free space"),
    ],
)
def test_an_error_at_the_opening_names_what_mends_it(
    path: Path, error: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sf.open(path, shards=1).close()
    opened = os.open

    def refused(name: Any, flags: int, *args: Any, **options: Any) -> int:
        if str(name).startswith(str(path)) and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(error, os.strerror(error), str(name))
        return opened(name, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(sf.StoreConfigError, match=remedy):
            sf.open(path)
    sf.open(path).close()
