"""The engine's machine with merges in it: some slices, whole ones, and ones that are cut short."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shardflow.flow.engine import merge, upkeep
from shardflow.flow.log import log as logs
from shardflow.flow.log import space
from support.disks import Loss, PowerLoss
from support.engines import RETENTION_MS, EngineMachine, keys, losses, picks, sizes

SLICES_MAX = 1_000
busy_ops = st.one_of(
    st.tuples(
        st.just("create"),
        st.lists(keys, min_size=3, max_size=6, unique=True),
        st.sampled_from([None, 10, 300]),
        st.just(True),
    ),
    st.tuples(st.just("claim"), st.integers(1, 8)),
    st.tuples(st.sampled_from(["complete", "fail"]), st.lists(picks, max_size=8), sizes),
    st.tuples(st.just("put"), picks, st.sampled_from(["x", "y"]), st.sampled_from([1, 300])),
    st.tuples(st.just("policy"), st.integers(0, 9)),
    st.tuples(st.just("cleanup")),
)


@contextmanager
def small_files() -> Iterator[pytest.MonkeyPatch]:
    """Let a log have many files, and merges many slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 600)
        patch.setattr(logs, "SEGMENT_GROW_BYTES", 1_000)
        patch.setattr(space, "DISK_RESERVE_BYTES", 1_000)
        patch.setattr(space, "DISK_FLOOR_BYTES", 500)
        patch.setattr(space, "DISK_JOB_BYTES", 100)
        patch.setattr(upkeep, "SEGMENT_BYTES", 4_000)
        patch.setattr(upkeep, "SEAL_BYTES_MIN", 300)
        patch.setattr(upkeep, "MERGE_FILES_MIN", 2)
        patch.setattr(upkeep, "MERGE_DEAD_RATIO", 0.2)
        patch.setattr(merge, "MERGE_FRAME_BYTES", 300)
        patch.setattr(merge, "MERGE_SYNC_BYTES", 600)
        patch.setattr(merge, "MERGE_SLICE_ENTRIES", 3)
        yield patch


class MergingMachine(EngineMachine):
    """The engine's machine, with merges: some slices, whole ones, and ones that are cut short."""

    is_hurt = False
    """Whether the disk has failed, so that a checkpoint may be left that is of no use."""

    @rule(rounds=st.integers(1, 6), picks=st.data())
    def much_is_written(self, rounds: int, picks: st.DataObject) -> None:
        for _ in range(rounds):
            batch = picks.draw(st.lists(busy_ops, min_size=1, max_size=4))
            self.step(batch)
            self.now_ms += picks.draw(st.sampled_from([0, 1_000, RETENTION_MS]))

    @rule(slices=st.integers(1, 20))
    def the_log_is_merged(self, slices: int) -> None:
        for _ in range(slices):
            self.engine.upkeep.step()

    @rule()
    def the_log_is_merged_until_nothing_is_left(self) -> None:
        for _ in range(SLICES_MAX):
            if not self.engine.upkeep.step():
                return
        raise AssertionError("it merges for ever")

    @rule(at=st.integers(1, 12), loss=losses)
    def the_power_fails_in_a_merge(self, at: int, loss: Loss) -> None:
        self.disk.power_fails_at(at)
        with pytest.MonkeyPatch.context():
            try:
                while self.engine.upkeep.step():
                    pass
            except PowerLoss:
                pass
        self.disk = self.disk.after_crash(loss)
        self.recovered(self.allowed)

    @rule(
        operation=st.sampled_from(["write", "sync", "create", "remove", "sync_directory"]),
        at=st.integers(1, 3),
        error=st.sampled_from([errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT]),
        after_bytes=st.sampled_from([0, 30, 100]),
        loss=losses,
    )
    def the_disk_fails_in_a_merge(self, operation: str, **fault: Any) -> None:
        self.disk.fail(operation, **fault)
        self.is_hurt = True
        try:
            while self.engine.upkeep.step():
                pass
        except OSError:
            self.engine.abandon()
            self.disk.forget_faults()
            self.recovered(self.allowed)
        self.disk.forget_faults()

    @rule(leave=st.integers(0, 3_000))
    def the_disk_is_full_in_a_merge(self, leave: int) -> None:
        self.disk.capacity = self.disk.used_bytes + leave
        self.is_hurt = True
        while self.engine.upkeep.step():
            pass
        self.everything_reads_back()
        self.disk.capacity = None
        self.engine.log.look()
