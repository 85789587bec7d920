"""Stores of every make-up against the model, under any order of commands, repeats and restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import shardflow as sf
from shardflow.flow.keys import shard_of
from support.colds import open_cold
from support.machine import Machine
from support.model import Grip, Known

STEPS = 50


class MachineWithBatches(Machine):
    """Settles several flows in one command as well, some of them with tokens that are no good."""

    @precondition(lambda self: len(self.model.leased()) > 1)
    @rule(wrong=st.sets(st.integers(0, 3), max_size=2), independent=st.booleans())
    def complete_many(self, wrong: set[int], independent: bool) -> None:
        flows = self.model.leased()[:4]
        grips = [
            Grip("another", flow.fencing_token) if number in wrong else flow.grip
            for number, flow in enumerate(flows)
        ]
        items = [
            {
                "id": flow.key[1],
                "partition_key": flow.key[0],
                "lease_token": grip.lease_token,
                "fencing_token": grip.fencing_token,
            }
            for flow, grip in zip(flows, grips, strict=True)
        ]
        results: list[Any]
        try:
            results = list(self.store.flow_complete_many(items, independent=independent))
            assert independent or not any(number < len(flows) for number in wrong)
        except sf.BatchError as error:
            assert not independent
            results = error.results
        spoiled = {self._shard(flow) for n, flow in enumerate(flows) if n in wrong}
        for number, (flow, result) in enumerate(zip(flows, results, strict=True)):
            if number in wrong:
                assert isinstance(result, sf.StaleLease)
            elif not independent and self._shard(flow) in spoiled:
                assert isinstance(result, sf.BatchAborted)
            else:
                flow.settled = ("complete", flow.grip, {})
                flow.ends("completed")
                flow.wrote("completed", self.now_ms)
                flow.check(result)

    def _shard(self, flow: Known) -> int:
        return shard_of(*flow.key, self.shards)


class MachineOfTwoShards(MachineWithBatches):
    """The same over two shards."""

    shards = 2


class MachineOnDisk(MachineWithBatches):
    """The same on disk, with restarts."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="model-"))
        super().__init__()

    def open_store(self) -> sf.Store:
        path = self.directory / "data"
        return sf.open(path, shards=self.shards, in_process=True, clock=self.clock)

    @rule(by_ms=st.sampled_from([0, 0, 5_000]))
    def reopen(self, by_ms: int) -> None:
        self.store.close()
        self.clock.advance(by_ms)
        self.store = self.open_store()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


class MachineOfColdFlows(MachineOnDisk):
    """The same, and no ended flow stays in memory."""

    def open_store(self) -> sf.Store:
        return open_cold(self.directory / "data", {"shards": self.shards, "clock": self.clock})


TestOneShard = MachineWithBatches.TestCase
TestTwoShards = MachineOfTwoShards.TestCase
TestOnDisk = MachineOnDisk.TestCase
TestCold = MachineOfColdFlows.TestCase
TestOneShard.settings = settings(stateful_step_count=STEPS)
TestTwoShards.settings = settings(stateful_step_count=STEPS)
# Each example on disk opens, syncs and closes a store: fewer of them.
TestOnDisk.settings = TestCold.settings = settings(
    stateful_step_count=STEPS, max_examples=max(10, settings().max_examples // 4)
)
