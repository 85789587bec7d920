"""Stores of every make-up against the model, under any order of commands, repeats and restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

import shardflow as sf
from support.machine import Machine


class MachineOfTwoShards(Machine):
    """The same over two shards."""

    shards = 2


class MachineOnDisk(Machine):
    """The same on disk, with restarts."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="model-"))
        super().__init__()

    def open_store(self) -> sf.Store:
        path = self.directory / "data"
        return sf.open(path, shards=self.shards, in_process=True, clock=self.clock)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.open_store()

    @rule(by_ms=st.sampled_from([1, 5_000]))
    def reopen_later(self, by_ms: int) -> None:
        self.store.close()
        self.clock.advance(by_ms)
        self.store = self.open_store()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


TestOneShard = Machine.TestCase
TestTwoShards = MachineOfTwoShards.TestCase
TestOnDisk = MachineOnDisk.TestCase
# Each example on disk opens, syncs and closes a store: fewer of them.
TestOnDisk.settings = settings(max_examples=max(10, settings().max_examples // 4))
