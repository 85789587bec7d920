"""The engine's machine with merges in it: some slices, whole ones, and ones that are cut short."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shardflow.flow import commands, family
from shardflow.flow.engine import choice, merge, upkeep
from shardflow.flow.engine.engine import Engine
from shardflow.flow.engine.writer import Writer
from shardflow.flow.log import log as logs
from shardflow.flow.log import space
from shardflow.flow.log.parts import Span
from support.disks import Loss, PowerLoss
from support.engines import (
    HISTORY,
    RETENTION_MS,
    SHARDS,
    TYPE,
    EngineMachine,
    keys,
    losses,
    picks,
    sizes,
    value_of,
)

SLICES_MAX = 1_000
AFAR = "far"
"""A parent on another shard."""
KIN = family.Kin(AFAR, None, AFAR, None, "g", 1, 1)
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

shards = st.integers(1, SHARDS - 1)
family_ops = st.one_of(
    st.tuples(
        st.just("prepare"), st.lists(keys, min_size=1, max_size=3, unique=True), sizes, shards
    ),
    st.tuples(st.sampled_from(["commit", "abort"]), picks),
    st.tuples(st.just("deliver"), shards, st.integers(1, 3), st.booleans()),
    st.tuples(st.just("post"), shards, st.integers(1, 3)),
    st.tuples(st.just("collect"), shards, st.integers(0, 3)),
)


def post(engine: Engine, dest: int, count: int, now_ms: int, text: str = "x") -> None:
    """Post something to another shard."""
    turn = engine.state.turn(now_ms, engine._entropy, 0)
    for _ in range(count):
        turn.post(engine.state.families.outbox, dest, family.Committed(text))
    engine.state.evolve(turn)
    writer = Writer(engine.log, engine.values)
    writer.add(turn)
    writer.commit(sync=True)


def collect(engine: Engine, dest: int, number: int, now_ms: int) -> None:
    """Say that posts to a shard are applied there, up to this number."""
    acked = [number if shard == dest else 0 for shard in range(SHARDS)]
    engine.collect(family.Collect([0] * SHARDS, acked), now_ms)


def family_command(engine: Engine, op: tuple[Any, ...], txn: str) -> Any:
    """Return the command that an operation of families is, if there is something for it."""
    verb, *args = op
    families = engine.state.families
    waiting = sorted(families.prepared)
    if verb == "prepare":
        children = [
            commands.NewFlow(
                flow_id,
                key,
                TYPE,
                "queued",
                payload=value_of(flow_id, args[1]),
                history_max_events=HISTORY.get(flow_id),
            )
            for key, flow_id in args[0]
        ]
        return family.Prepare(txn, args[2], KIN, children)
    if verb == "deliver":
        source, count, is_commit = args
        told = waiting[0] if waiting and is_commit else "nothing"
        first = families.seen.get(source, 0) + 1
        return family.Deliver(source, first, [family.Committed(told)] * count)
    if not waiting:
        return None
    kind = family.Commit if verb == "commit" else family.Abort
    return kind(waiting[args[0] % len(waiting)])


def mergeable(engine: Engine) -> list[Span]:
    """Return all files that a merge may touch, in the log's order."""
    begin = engine.upkeep._begin
    spans = sorted(engine.log.spans.values(), key=lambda span: span.first_lsn)
    return [span for span in spans if not begin or span.part.last < begin]


@contextmanager
def small_files() -> Iterator[pytest.MonkeyPatch]:
    """Let a log have many files, and merges many slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 600)
        patch.setattr(logs, "SEGMENT_GROW_BYTES", 1_000)
        patch.setattr(space, "DISK_RESERVE_BYTES", 1_000)
        patch.setattr(space, "DISK_FLOOR_BYTES", 500)
        patch.setattr(space, "DISK_JOB_BYTES", 100)
        patch.setattr(choice, "SEGMENT_BYTES", 4_000)
        patch.setattr(upkeep, "SEAL_BYTES_MIN", 300)
        patch.setattr(choice, "MERGE_FILES_MIN", 2)
        patch.setattr(choice, "MERGE_DEAD_RATIO", 0.2)
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

    @rule(ops=st.lists(family_ops, min_size=1, max_size=6))
    def families_go_on(self, ops: list[tuple[Any, ...]]) -> None:
        for op in ops:
            verb, *args = op
            engine = self.engine
            if verb == "collect":
                dest, count = args
                number = engine.state.families.outbox.cleared(dest) + count
                collect(engine, dest, number, self.now_ms)
            elif verb == "post":
                self._act(partial(post, engine, args[0], args[1], self.now_ms))
            else:
                txn = self.entropy.token_bytes(12).hex()
                command = family_command(engine, op, txn)
                if command is not None:
                    self._act(partial(self.ask, command))

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
