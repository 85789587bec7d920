"""The program that test_sigkill.py kills: hosts a store, works on it, and tells what it was told.

Each line is JSON. `try` comes before a command is sent, `ok` once it was acknowledged, `no` if it
was certainly not applied, `unknown` if that cannot be told. A command is one batch of flows of one
partition, so it is one shard's group.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf

TYPE = "crash"
PARTITIONS = tuple(f"p{number}" for number in range(8))
LEASE_MS = 3_600_000
"""No lease runs out: only its holder, or nobody, touches a claimed flow again."""
BATCH_MAX = 20

_numbers = itertools.count(1)
_out_lock = threading.Lock()


def payload_of(flow_id: str) -> str:
    """Return the payload that a flow was created with; some too large for a shard's cache."""
    return flow_id * (1_000 if flow_id.endswith("-0") else 1)


def tell(**line: Any) -> None:
    data = json.dumps(line).encode() + b"\n"
    with _out_lock:
        while data:
            data = data[os.write(1, data) :]


class Hand(threading.Thread):
    """One thread of work."""

    def __init__(self, store: sf.Store, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._chance = chance

    def run(self) -> None:
        try:
            while True:
                partition = self._chance.choice(PARTITIONS)
                if self._chance.random() < 0.4:
                    self._create(partition)
                else:
                    self._settle(partition, self._claim(partition))
        except BaseException as error:
            tell(op="broken", error=repr(error))
            raise

    def _create(self, partition: str) -> None:
        batch = f"{os.getpid()}-{next(_numbers)}"
        flows = {f"{batch}-{n}": 0 for n in range(self._chance.randint(1, BATCH_MAX))}
        items = [{"id": id, "payload": payload_of(id)} for id in flows]
        self._told(
            ("create", partition, flows),
            lambda: self._store.flow_create_many(items, type=TYPE, partition_key=partition),
        )

    def _claim(self, partition: str) -> list[sf.FlowRecord]:
        limit = self._chance.randint(1, BATCH_MAX)
        return self._told(
            ("claim", partition, {}),
            lambda: self._store.flow_claim_due(
                TYPE, worker="w", partition_key=partition, limit=limit, lease_ms=LEASE_MS
            ),
        )

    def _settle(self, partition: str, jobs: list[sf.FlowRecord]) -> None:
        if not jobs:
            return
        verb = self._chance.choice(["complete", "fail", "retry", "transition", "transition"])
        items: list[dict[str, Any]] = [
            {"id": j.id, "lease_token": j.lease_token, "fencing_token": j.fencing_token}
            for j in jobs
        ]
        given: dict[str, Any] = {"partition_key": partition}
        if verb == "complete":
            given["result"] = {"by": self.name}
        elif verb == "retry":
            given["run_at_ms"] = 0
        elif verb == "transition":
            given["to_state"] = self._chance.choice(["second", "third"])
            items = [{**i, "from_state": j.logical_state} for i, j in zip(items, jobs, strict=True)]
        command = getattr(self._store, f"flow_{verb}_many")
        flows = {job.id: job.version for job in jobs}
        self._told((verb, partition, flows), lambda: command(items, **given))

    def _told(
        self, what: tuple[str, str, dict[str, int]], send: Callable[[], list[Any]]
    ) -> list[sf.FlowRecord]:
        """Send a command, telling before and after; what is not acknowledged is let go."""
        batch = next(_numbers)
        verb, partition, flows = what
        tell(op="try", batch=batch, verb=verb, partition=partition, flows=flows)
        try:
            records = send()
        except sf.FlowError as error:
            op = "no" if error.applied == "no" else "unknown"
            tell(op=op, batch=batch, code=error.code, error=str(error))
            return []
        tell(op="ok", batch=batch, flows={r.id: [r.version, r.state] for r in records})
        return records


def main() -> None:
    path, seed, durability = sys.argv[1:]
    if "HASTY_UPKEEP" in os.environ:
        sys.path.append(str(Path(__file__).parents[1]))
        importlib.import_module("support.hasty").hasty_shards(pytest.MonkeyPatch())
    chance = random.Random(int(seed))
    with sf.open(path, shards=2, durability=durability) as store:  # type: ignore[arg-type]
        tell(op="open", shards=[told["pid"] for told in store.processes()])
        hands = [Hand(store, random.Random(chance.random())) for _ in range(3)]
        for hand in hands:
            hand.start()
        while True:
            time.sleep(3_600)


if __name__ == "__main__":
    main()
