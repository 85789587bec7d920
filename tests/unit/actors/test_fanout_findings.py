"""What the simulations of fan-out came across, each as small as it gets."""

from __future__ import annotations

import contextlib
import gc
import logging
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors.ports import LocalPort
from shardflow.flow.index.timequeue import TimeQueue
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import ASK_AGAIN_MS
from shardflow.flow.settings import Settings
from shardflow.sdk.opening import make_store
from shardflow.testing import ManualClock, memory_store
from support.disks import Disk

KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", 2) == shard) for shard in range(2)]
CHILDREN = [{"id": "c", "type": "kid", "partition_key": KEYS[1]}]
OPTIONS: dict[str, Any] = {"partition_key": KEYS[0], "success": "won", "failure": "lost"}


def test_a_fan_out_of_unknown_outcome_that_has_not_happened_may_be_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    clock = ManualClock(1_000)
    disks = [Disk(), Disk()]
    port = LocalPort(disks, Settings(), clock, sync=True, manual=True)
    with make_store(port, clock, None, 2**20, 5.0, None, lambda: None) as store:
        store.flow_create("p", type="parent", partition_key=KEYS[0])
        disks[0].fail("write")  # the decision
        with pytest.raises(sf.OutcomeUnknown):
            store.flow_spawn_children("p", CHILDREN, **OPTIONS)
        # Its caller reads, as it is told to: the parent has not moved and the child is not there.
        assert store.flow_get("c", partition_key=KEYS[1]) is None
        parent = store.flow_get("p", partition_key=KEYS[0])
        assert parent is not None and parent.version == 1
        # So no flow has the child's id. To try again later is all that it may be told.
        with contextlib.suppress(sf.Overloaded, sf.ShardUnavailable):
            store.flow_spawn_children("p", CHILDREN, **OPTIONS)
        clock.advance(ASK_AGAIN_MS)
        assert store.flow_spawn_children("p", CHILDREN, **OPTIONS).version == 2


def test_a_closed_store_gives_its_memory_back() -> None:
    def use() -> None:
        with memory_store() as store:
            store.flow_create("a", type="t")
            store.flow_claim_due("t", worker="w")
            store.flow_create("b", type="t")

    def queues() -> int:
        gc.collect()
        return sum(isinstance(found, TimeQueue) for found in gc.get_objects())

    use()
    before = queues()
    for _ in range(10):
        use()
    assert queues() == before
