"""Checkpoints of live stores: written on closing, used on opening; damage is met all the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import shardflow as sf
from shardflow.flow.host import DiskFiles
from shardflow.flow.limits import CHECKPOINT_CLOSE_BYTES, LEFTOVER_SECONDS_MAX, SEGMENT_GROW_BYTES
from support.clients import Clients
from support.processes import eventually, is_running

SHARDS = 2
FLOWS = 600
PAYLOAD = "x" * 10_000
"""Enough of them that closing writes a checkpoint."""


@pytest.fixture
def stored(path: Path) -> Path:
    """Return where a store was, with a checkpoint in it."""
    with sf.open(path, shards=1) as store:
        flows = [{"id": f"f{number}", "payload": PAYLOAD} for number in range(FLOWS)]
        store.flow_create_many(flows, type="t")
        store.flow_create("last", type="t")
    (_,) = checkpoints(path)
    return path


def checkpoints(path: Path) -> list[Path]:
    return list((path / "shard-0").glob("*.checkpoint"))


def test_a_store_opens_by_its_checkpoint_and_without_it(stored: Path) -> None:
    for _ in range(2):
        with sf.open(stored) as store:
            assert sum(shard["flows"] for shard in store.stats()) == FLOWS + 1
            record = store.flow_get("f7", payload=True)
            assert record is not None and record.payload == PAYLOAD
        for checkpoint in checkpoints(stored):
            checkpoint.unlink()


def test_a_shard_whose_host_dies_lets_go_at_once_and_writes_none(
    clients: Clients,
) -> None:
    host = clients.open(shards=SHARDS)
    flows = [{"id": f"f{n}", "payload": PAYLOAD, "partition_key": str(n)} for n in range(2 * FLOWS)]
    for at in range(0, len(flows), FLOWS):
        host.call("flow_create_many", flows[at : at + FLOWS], type="t")
    folders = [clients.path / f"shard-{shard}" for shard in range(SHARDS)]
    logs = [folder / "0000000001.log" for folder in folders]
    assert all(log.stat().st_size > CHECKPOINT_CLOSE_BYTES for log in logs)
    pids = host.shard_pids
    host.kill()
    died_s = time.monotonic()
    eventually(lambda: all(is_free(folder) for folder in folders), "a lock is not given back")
    assert time.monotonic() - died_s < LEFTOVER_SECONDS_MAX
    eventually(lambda: not any(is_running(pid) for pid in pids), "a shard does not end")
    assert not list(clients.path.rglob("*.checkpoint*"))
    assert all(log.stat().st_size % SEGMENT_GROW_BYTES for log in logs), "they ended in order"
    with sf.open(clients.path) as store:
        assert sum(shard["flows"] for shard in store.stats()) == 2 * FLOWS
        assert [shard["cut_bytes"] for shard in store.stats()] == [0] * SHARDS
    assert list(clients.path.rglob("*.checkpoint")), "a store that is closed writes them"


def is_free(folder: Path) -> bool:
    files = DiskFiles(folder)
    is_ours = files.lock()
    files.unlock()
    return is_ours


def test_damage_in_what_opening_has_skipped_is_as_final_as_any(stored: Path) -> None:
    with (stored / "shard-0" / "0000000001.log").open("r+b") as log:
        log.seek(2_000_000)
        log.write(b"y")
    with sf.open(stored) as store:

        def is_given_up() -> bool:
            try:
                store.flow_get("last")
            except sf.CorruptLog:
                return True
            except sf.FlowError:
                pass
            return False

        eventually(is_given_up, "the shard is given up")
    assert checkpoints(stored) == []
    with pytest.raises(sf.CorruptLog):
        sf.open(stored)
