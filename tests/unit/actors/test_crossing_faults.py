"""A fan-out whose shards fail in any write or sync: it happens everywhere or nowhere, and joins."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors.ports import LocalPort
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import ASK_AGAIN_MS, LEASE_MS_DEFAULT, SPAWN_MS_MAX
from shardflow.flow.settings import Settings
from shardflow.sdk.opening import make_store
from shardflow.testing import ManualClock
from support.disks import Disk

SHARDS = 3
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
CHILDREN = [{"id": f"c{n}", "type": "kid", "partition_key": key} for n, key in enumerate(KEYS)]
HOME = KEYS[0]

each_fault = pytest.mark.parametrize("operation", ["write", "sync"])
each_shard = pytest.mark.parametrize("shard", range(SHARDS))
each_time = pytest.mark.parametrize("at", range(1, 5))


class Place:
    """A store over three disks, the parent on the first."""

    def __init__(self) -> None:
        self.disks = [Disk() for _ in range(SHARDS)]
        self.clock = ManualClock(1_000)
        self.store = self.open()
        self.store.flow_create("p", type="parent", partition_key=HOME)

    def open(self) -> sf.Store:
        port = LocalPort(self.disks, Settings(), self.clock, sync=True, manual=True)
        return make_store(port, self.clock, None, 2**20, 5.0, None, lambda: None)

    def reopen(self) -> None:
        self.store.close()
        self.store = self.open()

    def fan_out(self) -> sf.FlowRecord:
        options: dict[str, Any] = {"success": "won", "failure": "lost"}
        return self.store.flow_spawn_children("p", CHILDREN, partition_key=HOME, **options)

    def parent(self) -> sf.FlowRecord:
        found = self.store.flow_get("p", partition_key=HOME)
        assert found is not None
        return found

    def has_happened(self) -> bool:
        """Return whether the fan-out has happened: everywhere, or nowhere."""
        parent = self.parent()
        found = [self.store.flow_get(f"c{n}", partition_key=key) for n, key in enumerate(KEYS)]
        happened = bool(parent.child_groups)
        assert [child is not None for child in found] == [happened] * SHARDS
        return happened

    def check(self) -> None:
        """Check that nothing is left half done."""
        for told in self.store.stats(check=True):
            assert told["problems"] == []

    def wait(self) -> None:
        """Let everything that was left lying have its time."""
        self.clock.advance(SPAWN_MS_MAX)
        self.clock.advance(ASK_AGAIN_MS)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@each_fault
@each_shard
@each_time
def test_a_fan_out_is_whole_whatever_fails(operation: str, shard: int, at: int) -> None:
    place = Place()
    place.disks[shard].fail(operation, at=at)
    refused: sf.FlowError | None = None
    try:
        place.fan_out()
    except sf.FlowError as error:
        refused = error
    place.disks[shard].forget_faults()
    if refused is None:
        assert place.has_happened()
    elif refused.applied == "no":
        assert not place.has_happened()
        place.fan_out()
    place.wait()
    if not place.has_happened():
        place.fan_out()
    assert place.has_happened()
    place.check()
    place.reopen()
    assert place.has_happened()
    place.check()
    place.store.close()


@each_fault
@each_shard
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_join_closes_whatever_fails(operation: str, shard: int, at: int) -> None:
    place = Place()
    place.fan_out()
    place.disks[shard].fail(operation, at=at)
    for _ in range(2 * SHARDS):
        with contextlib.suppress(sf.OutcomeUnknown):
            for job in place.store.flow_claim_due("kid", worker="w", limit=9):
                place.store.flow_complete(
                    job.id,
                    partition_key=job.partition_key,
                    lease_token=job.lease_token,
                    fencing_token=job.fencing_token,
                )
        # Leases that nobody heard of end.
        place.clock.advance(LEASE_MS_DEFAULT)
    place.disks[shard].forget_faults()
    place.wait()
    group = place.parent().child_groups["fanout"]
    assert (group.completed, group.status, place.parent().state) == (SHARDS, "success", "won")
    place.reopen()
    assert place.parent().child_groups["fanout"] == group
    place.check()
    place.store.close()
