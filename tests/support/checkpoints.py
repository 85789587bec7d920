"""The engine's machine with checkpoints in it; and whether a start without them finds the same.

After each start the disk is opened once more without any shortcut, and once with one of them
damaged. What is found has to be the same each time: not only the flows, but also where everything
lies in the log, and what of it is dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shardflow.flow import commands
from shardflow.flow.engine import checkpoint, hints, upkeep
from shardflow.flow.engine.engine import Engine
from shardflow.flow.index import table
from shardflow.flow.log import shortcut
from shardflow.flow.log.position import unpack
from shardflow.flow.record import Record
from shardflow.flow.settings import Settings
from support.disks import Disk, Loss, PowerLoss
from support.engines import RETENTION_MS, SHARDS, TYPE, Counting, losses
from support.merging import SLICES_MAX, MergingMachine, busy_ops, small_files

SHORTCUT = re.compile(r".*\.(checkpoint|hint)(\.new)?")


@contextmanager
def small_slices() -> Iterator[pytest.MonkeyPatch]:
    """Let a checkpoint take many slices, blocks and syncs."""
    with small_files() as patch:
        patch.setattr(table, "TABLE_WALK_FLOWS", 3)
        patch.setattr(checkpoint, "SHORTCUT_SLICE_ITEMS", 2)
        patch.setattr(hints, "SHORTCUT_SLICE_ITEMS", 3)
        patch.setattr(hints, "MERGE_SLICE_ENTRIES", 3)
        patch.setattr(checkpoint, "_PAGES_PER_SLICE", 1)
        patch.setattr(shortcut, "SHORTCUT_SYNC_BYTES", 500)
        patch.setattr(upkeep, "CHECKPOINT_LOG_BYTES", 4_000)
        patch.setattr(upkeep, "CHECKPOINT_CLOSE_BYTES", 1_000)
        yield patch


def shortcuts_on(disk: Disk) -> list[str]:
    """Return the names of the checkpoints and hints on a disk."""
    return [name for name in disk.image() if SHORTCUT.fullmatch(name)]


def opened(disk: Disk) -> Engine:
    """Open what is on a disk."""
    wanted = Settings(shards=SHARDS, retention_ms=RETENTION_MS, failed_retention_ms=RETENTION_MS)
    return Engine(disk, Counting(), wanted)


class Shard:
    """An engine on a virtual disk, driven by hand."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.now_ms = 1_000_000
        self.engine = opened(self.disk)

    def ask(self, *requests: Any) -> list[Any]:
        """Return the replies to one batch."""
        self.now_ms += 1
        answers = self.engine.step(list(requests), self.now_ms, self.now_ms * 1_000)
        return [answer.reply for answer in answers]

    def create(self, *ids: str, payload: bytes | None = b"payload", **fields: Any) -> None:
        """Create flows."""
        items = [commands.NewFlow(i, None, TYPE, "queued", payload=payload, **fields) for i in ids]
        (done,) = self.ask(commands.Create(items))
        assert all(isinstance(outcome, Record) for outcome in done.outcomes), done

    def record(self, flow_id: str) -> Record:
        """Return a flow."""
        slot = self.engine.state.table.get(None, flow_id)
        assert slot is not None and slot.record is not None
        return slot.record

    def put(self, flow_id: str, data: bytes, name: str = "x") -> None:
        """Give a flow another version, with a named value."""
        self.ask(commands.ValuePut(flow_id, None, name, data, True))

    def end(self, flow_id: str) -> None:
        """Cancel a flow."""
        self.ask(commands.Cancel([commands.Ending(flow_id, None, None, None, force=True)]))

    def drop(self, flow_id: str) -> None:
        """End a flow and remove it."""
        self.end(flow_id)
        self.now_ms += RETENTION_MS
        self.ask(commands.RetentionCleanup(100))
        assert self.engine.state.table.get(None, flow_id) is None

    def run_upkeep(self) -> None:
        """Do all that is to be done."""
        for _ in range(SLICES_MAX):
            if not self.engine.upkeep.step():
                return
        raise AssertionError("it does not end")

    def restart(self) -> Engine:
        """Kill it and open it again; what it finds is what it finds without shortcuts."""
        self.engine.abandon()
        image = self.disk.image()
        self.engine = opened(self.disk)
        found = found_in(self.engine)
        assert found["problems"] == []
        plain = {name: data for name, data in image.items() if not SHORTCUT.fullmatch(name)}
        other = opened(Disk.of(plain))
        assert_same(found, found_in(other))
        other.abandon()
        return self.engine


def found_in(engine: Engine) -> dict[str, Any]:
    """Return all that a start makes of the disk, the numbers that are to come left out."""
    state, values = engine.state, engine.values
    families = state.families
    keydir = values.keydir
    columns = zip(*_integers(keydir.columns(keydir.pages(), keydir.loose())), strict=True)
    return {
        "flows": {
            (slot.record.partition_key, slot.record.id): (
                slot.record,
                slot.trail,
                sorted(slot.spent or ()),
            )
            for slot in state.slots()
            if slot.record is not None
        },
        "values": {**{number: place for number, *place in columns}, **cold_values_of(engine)},
        "policies": {p.type: (p.policy, p.generation) for p in state.policies.all()},
        "prepared": families.prepared,
        "reserved": families.reserved,
        "seen": families.seen,
        "posts": {dest: families.outbox.lane(dest) for dest, _, _ in families.outbox.lanes()},
        "lanes": families.outbox.lanes(),
        "dead": sorted((file, count) for file, count in values.dead.all() if count),
        "kept": sorted(values.dead.all_kept()),
        # One that is sealed as the first act of an epoch is told as that epoch's.
        "spans": [span._replace(epoch=0) for span in engine.log.spans.values()],
        "problems": engine.statistics(check=True)["problems"],
    }


def cold_values_of(engine: Engine) -> dict[int, list[int]]:
    """Return where the values of cold flows lie."""
    cold = engine.cold
    if cold is None:
        return {}
    keys = [int.from_bytes(key, "big") for key, _ in cold.environment.scan("values").iternext()]
    places = [(number, cold.place(number)) for number in keys]
    found = {number: next(unpack(place)) for number, place in places if place is not None}
    return {number: [segment << 32 | at, size] for number, (segment, at, size) in found.items()}


def assert_same(found: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare what two starts have found, and tell where they differ."""
    for what, want in found.items():
        have = other[what]
        if have != want and isinstance(want, dict):
            keys = {key for key in {*want, *have} if want.get(key) != have.get(key)}
            want = {key: want.get(key) for key in keys}
            have = {key: have.get(key) for key in keys}
        assert have == want, f"{what} differ: {have} and not {want}"


def _integers(columns: tuple[bytes, bytes, bytes]) -> list[list[int]]:
    return [
        [int.from_bytes(column[at : at + size], "little") for at in range(0, len(column), size)]
        for column, size in zip(columns, (8, 8, 4), strict=True)
    ]


class CheckpointingMachine(MergingMachine):
    """Checkpoints between all that the other machines do, whole ones and ones in slices."""

    @rule()
    def a_checkpoint_is_written(self) -> None:
        self.engine.upkeep.checkpoint()

    @rule(slices=st.integers(1, 12), batches=st.lists(st.lists(busy_ops, max_size=3), max_size=3))
    def a_checkpoint_is_written_in_slices(
        self, slices: int, batches: list[list[tuple[Any, ...]]]
    ) -> None:
        self.engine.upkeep.want_checkpoint()
        for batch in batches:
            for _ in range(slices):
                self.engine.upkeep.step()
            self.step(batch)

    @rule(at=st.integers(1, 30), loss=losses)
    def the_power_fails_in_a_checkpoint(self, at: int, loss: Loss) -> None:
        self.disk.power_fails_at(at)
        with suppress(PowerLoss):
            self.engine.upkeep.checkpoint()
        self.disk = self.disk.after_crash(loss)
        self.recovered(self.allowed)


class CheckpointMachine(CheckpointingMachine):
    """Opens each disk in several ways, and compares what they find."""

    def recovered(self, allowed: list[Any]) -> None:
        image = self.disk.image()
        super().recovered(allowed)
        if not self.is_hurt:
            assert self.engine.restored.notes == []
        self.is_hurt = False
        plain = {name: data for name, data in image.items() if not SHORTCUT.fullmatch(name)}
        # The start has removed what was of no use: only what it left can have been used.
        left = [name for name in shortcuts_on(self.disk) if not name.endswith(".hint")]
        used = self.engine.restored.checkpoint
        assert left == ([] if used is None else [used.name])
        if len(plain) == len(image):
            return
        found = found_in(self.engine)
        assert found["problems"] == []
        if self.disk.capacity is not None:
            # A full disk has no room for the segment that a start on another one begins.
            del found["spans"]
        other = opened(Disk.of(plain))
        assert_same(found, found_in(other))
        other.abandon()
        self.without_checkpoint(image, found)
        self.damage(image, found)

    def without_checkpoint(self, image: dict[str, bytes], found: dict[str, Any]) -> None:
        """Open once more, by hints alone."""
        hinted = {name: data for name, data in image.items() if ".checkpoint" not in name}
        if len(hinted) < len(image):
            other = opened(Disk.of(hinted))
            assert_same(found, found_in(other))
            other.abandon()

    def damage(self, image: dict[str, bytes], found: dict[str, Any]) -> None:
        """Open once more, with something flipped in one of the shortcuts."""
        names = [name for name in image if SHORTCUT.fullmatch(name) and image[name]]
        if not names:
            return
        name = names[self.now_ms % len(names)]
        disk = Disk.of(image)
        disk.flip(name, self.entropy.token_bytes(4)[3] * 7919 % len(image[name]))
        other = opened(disk)
        assert_same(found, found_in(other))
        other.abandon()

    @rule(
        operation=st.sampled_from(
            ["write", "sync", "create", "remove", "replace", "sync_directory"]
        ),
        at=st.integers(1, 8),
        after_bytes=st.sampled_from([0, 5, 100]),
        loss=losses,
    )
    def the_disk_fails_in_a_checkpoint(self, operation: str, **fault: Any) -> None:
        self.disk.fail(operation, **fault)
        self.is_hurt = True
        try:
            self.engine.upkeep.checkpoint()
        except OSError:
            # Not the checkpoint's: the log's, or that of a merge that had to be finished first.
            self.engine.abandon()
            self.disk.forget_faults()
            self.recovered(self.allowed)
        self.disk.forget_faults()
