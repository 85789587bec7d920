"""SIGKILL at random moments: every acknowledged write is there afterwards, and no half batch.

The host, one shard, or everything at once is killed; then this process opens the directory,
without any cleaning, and compares it with what the killed one had been told. The seed is printed;
SHARDFLOW_CRASH_SEED repeats its choices (the moments depend on the machine as well).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from support.hasty import hasty_shards
from support.processes import Program, eventually, is_running, running, shard_of_pid, shard_pids

SCRIPT = Path(__file__).with_name("busy_host.py")
TYPE = "crash"
PARTITIONS = [f"p{number}" for number in range(8)]
SHARDS = 2
UNSURE = {"outcome_unknown", "shard_unavailable"}
"""What a call may end with while its shard is away."""
ENDS = {"complete": "completed", "fail": "failed"}

Flows = dict[tuple[str, str], sf.FlowRecord]


class Ledger:
    """What the killed hosts had tried and had been told."""

    def __init__(self) -> None:
        self.acknowledged: dict[tuple[str, str], tuple[int, str]] = {}
        """Flow → the newest version and state that some caller was told."""
        self.batches: list[dict[str, Any]] = []
        """Commands whose outcome no caller was told; claims name no flows."""
        self.refused: list[dict[str, Any]] = []
        """Commands that were certainly not applied."""
        self.created: set[tuple[str, str]] = set()

    def read(self, lines: list[str]) -> None:
        open_batches: dict[int, dict[str, Any]] = {}
        for line in map(json.loads, lines):
            if line["op"] == "try":
                open_batches[line["batch"]] = line
                if line["verb"] == "create":
                    self.created |= {(line["partition"], flow_id) for flow_id in line["flows"]}
                continue
            if line["op"] == "open":
                continue
            tried = open_batches.pop(line["batch"])
            if line["op"] == "ok":
                self._acknowledge(tried, line)
                continue
            assert line["code"] in UNSURE, line
            (self.refused if line["op"] == "no" else self.batches).append(tried)
        self.batches += open_batches.values()

    def _acknowledge(self, tried: dict[str, Any], line: dict[str, Any]) -> None:
        if tried["verb"] != "claim":
            assert line["flows"].keys() == tried["flows"].keys()
        for flow_id, (version, state) in line["flows"].items():
            key = (tried["partition"], flow_id)
            have, _ = self.acknowledged.get(key, (0, ""))
            # The lines of two threads may change places: a claim may be told before its creation.
            if version > have:
                self.acknowledged[key] = (version, state)

    def check(self, found: Flows) -> None:
        """Compare what the callers were told with what is there."""
        assert found.keys() <= self.created, "a flow that nobody created"
        tried = {
            (batch["partition"], flow_id): batch
            for batch in self.batches
            for flow_id in batch["flows"]
        }
        for key, (version, state) in self.acknowledged.items():
            assert key in found, f"{key} was acknowledged and is gone"
            record = found[key]
            # It may have gone further: by a batch whose answer never came, and then by such a
            # claim. Nobody is told that he holds it then, so it goes no further.
            batch = tried.get(key)
            if batch is not None and batch["flows"][key[1]] == version < record.version:
                version += 1
                state = ENDS.get(batch["verb"], "")
            if record.version > version and state not in ("running", *ENDS.values()):
                version += 1
                state = "running"
            assert record.version == version, (record, version, batch)
            assert state in ("", record.state), (record, state, batch)
        for batch in self.batches:
            applied = [self._is_applied(batch, flow_id, found) for flow_id in batch["flows"]]
            assert all(applied) or not any(applied), f"half a batch: {batch} {applied}"
        for batch in self.refused:
            assert not any(self._is_applied(batch, flow_id, found) for flow_id in batch["flows"])

    @staticmethod
    def _is_applied(batch: dict[str, Any], flow_id: str, found: Flows) -> bool:
        record = found.get((batch["partition"], flow_id))
        return record is not None and record.version > batch["flows"][flow_id]


def count_of_acknowledged(lines: list[str], since: int = 0, shard: int | None = None) -> int:
    """Count the acknowledgements after a line, of all commands or of those of one shard."""
    tried = {}
    count = 0
    for number, line in enumerate(lines):
        told = json.loads(line)
        if told["op"] == "try":
            tried[told["batch"]] = (number, shard_of(told["partition"], "", SHARDS))
        elif told["op"] == "ok" and tried[told["batch"]][0] >= since:
            count += shard in (None, tried[told["batch"]][1])
    return count


def everything(store: sf.Store) -> Flows:
    found: Flows = {}
    for partition in PARTITIONS:
        after = None
        while True:
            page = store.flow_list(TYPE, partition_key=partition, count=1_000, after=after)
            found |= {(partition, record.id): record for record in page}
            if (after := page.after) is None:
                break
    return found


def kill(mode: str, host: Program, chance: random.Random) -> list[int]:
    """Kill what the mode says, and return the processes that have to end."""
    shards = shard_pids(host.pid)
    if mode == "one shard":
        kill_one_shard(host, chance)
        shards = shard_pids(host.pid)
    if mode == "all":
        for pid in chance.sample([*shards, host.pid], len(shards) + 1):
            os.kill(pid, signal.SIGKILL)
    host.kill()
    return shards


def kill_one_shard(host: Program, chance: random.Random) -> None:
    """Kill a shard, and see that the host goes on by itself, on that shard and on the others."""
    pid = chance.choice(shard_pids(host.pid))
    shard = shard_of_pid(pid)
    since = len(host.lines())
    os.kill(pid, signal.SIGKILL)
    # Commands that were tried after the kill are acknowledged: by the others, and by this one.
    for number in range(SHARDS):
        host.wait_for(
            partial(_has_acknowledged, since=since, shard=number, count=3),
            f"shard {number} does not go on after shard {shard} was killed",
        )
    assert pid not in shard_pids(host.pid)


@pytest.mark.parametrize(
    ("durability", "modes", "is_hasty"),
    [
        ("sync", ["host", "one shard", "all"] * 5, False),
        ("relaxed", ["host", "all", "one shard"] * 2, False),
        ("sync", ["host", "one shard", "all"] * 3, True),
        ("relaxed", ["host", "all", "one shard"], True),
    ],
    ids=["sync", "relaxed", "sync and upkeep", "relaxed and upkeep"],
)
def test_nothing_acknowledged_is_lost_to_sigkill_and_no_batch_is_halved(
    tmp_path: Path,
    durability: str,
    modes: list[str],
    is_hasty: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_hasty:
        hasty_shards(monkeypatch)
    seed = int(os.environ.get("SHARDFLOW_CRASH_SEED") or random.randrange(2**32))
    print(f"SHARDFLOW_CRASH_SEED={seed} repeats this")
    chance = random.Random(seed)
    path = tmp_path / "data"
    ledger = Ledger()
    told: list[dict[str, Any]] = []
    for number, mode in enumerate(modes):
        arguments = (SCRIPT, path, str(chance.randrange(2**32)), durability)
        with running(*arguments, stderr=tmp_path / "stderr") as host:
            wanted = chance.randint(1, 120)
            host.wait_for(partial(_has_acknowledged, count=wanted), "the host does not work")
            shards = kill(mode, host, chance)
            killed_s = time.monotonic()
            host.wait()
            ledger.read(host.lines())
        # Half of the time the next host does not wait until the old one's shards are gone.
        if number % 2:
            eventually(partial(_are_gone, shards), "the shards outlive their host", 10)
        with sf.open(path) as store:
            told = store.stats(check=True)
            found = everything(store)
            ledger.check(found)
            assert [shard["problems"] for shard in told] == [[]] * SHARDS
            for (partition, flow_id), _ in chance.sample(
                sorted(found.items()), min(20, len(found))
            ):
                record = store.flow_get(
                    flow_id, partition_key=partition, payload=True, payload_max_bytes=10**6
                )
                assert record is not None
                assert record.payload == flow_id * (1_000 if flow_id.endswith("-0") else 1)
        eventually(partial(_are_gone, shards), "the shards outlive their host", 10)
        print(
            f"{mode}: {len(found)} flows, {len(ledger.batches)} unsure, "
            f"{len(ledger.refused)} refused, {time.monotonic() - killed_s:.1f} s to verify"
        )
    if is_hasty:
        assert list(path.glob("shard-*/*.checkpoint")), "no checkpoint was written"
        assert list(path.glob("shard-*/*-*-*.log")), "nothing was merged"
        assert any(shard["cold_flows"] for shard in told), "no flow became cold"
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said, said


def _has_acknowledged(
    lines: list[str], *, count: int, since: int = 0, shard: int | None = None
) -> bool:
    return count_of_acknowledged(lines, since, shard) >= count


def _are_gone(pids: list[int]) -> bool:
    return not any(map(is_running, pids))
