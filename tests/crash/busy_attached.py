"""The program that test_takeover.py kills: opens the store as whatever it can, and works on it.

Each line is JSON. `try` comes before a batch is sent, `ok` once it was acknowledged, `unsure` if
its outcome is unknown, `no` if it was certainly not applied. A batch is of one partition.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import shardflow as sf

KIND = "crash"
PARTITIONS = ("p0", "p1", "p2", "p3")
BATCH = 5
LEASE_MS = 3_000
"""So that what a killed process held comes back before the test is over."""


def tell(**line: Any) -> None:
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def told(verb: str, partition: str, ids: list[str], send: Callable[[], Any]) -> bool:
    """Send a batch, telling before and after; return whether it was acknowledged."""
    tell(op="try", verb=verb, partition=partition, ids=ids)
    try:
        send()
    except sf.FlowError as error:
        tell(op="no" if error.applied == "no" else "unsure", code=error.code)
        return False
    tell(op="ok")
    return True


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s[%(process)d] %(message)s")
    me = str(os.getpid())
    store = sf.open(sys.argv[1], shards=2)
    tell(op="open", role=store.role)
    for number in itertools.count():
        partition = PARTITIONS[number % len(PARTITIONS)]
        ids = [f"{me}-{number}-{part}" for part in range(BATCH)]
        items = [{"id": id, "payload": id} for id in ids]
        told(
            "create",
            partition,
            ids,
            lambda items=items, partition=partition: store.flow_create_many(  # type: ignore[misc]
                items, type=KIND, partition_key=partition
            ),
        )
        jobs: list[sf.FlowRecord] = []
        try:
            jobs = store.flow_claim_due(
                KIND, worker=me, partition_key=partition, limit=BATCH, lease_ms=LEASE_MS
            )
        except sf.FlowError as error:
            assert error.code in ("outcome_unknown", "shard_unavailable"), error
        if jobs:
            settled = [
                {"id": j.id, "lease_token": j.lease_token, "fencing_token": j.fencing_token}
                for j in jobs
            ]
            told(
                "complete",
                partition,
                [job.id for job in jobs],
                lambda items=settled, partition=partition: store.flow_complete_many(  # type: ignore[misc]
                    items, partition_key=partition
                ),
            )


if __name__ == "__main__":
    main()
