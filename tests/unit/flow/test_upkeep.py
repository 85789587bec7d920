"""What a merge must not forget, though memory no longer has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardflow.flow import commands, family
from shardflow.flow.engine import upkeep
from shardflow.flow.engine.engine import Engine
from shardflow.flow.engine.writer import Writer
from shardflow.flow.events import Posted
from shardflow.flow.family import Committed
from shardflow.flow.index.families import Families
from shardflow.flow.limits import CHECKPOINT_LOG_BYTES
from shardflow.flow.log.parts import segment_name
from shardflow.flow.settings import Settings
from support.checkpoints import Shard, opened, small_slices
from support.disks import EVERYTHING, Disk
from support.engines import Counting


@pytest.fixture(autouse=True)
def _merges_only() -> Iterator[None]:
    with small_slices() as patch:
        patch.setattr(upkeep, "CHECKPOINT_LOG_BYTES", CHECKPOINT_LOG_BYTES)
        yield


def post(shard: Shard, count: int) -> None:
    """Let a shard have posts for another one."""
    engine = shard.engine
    turn = engine.state.turn(shard.now_ms, Counting(), 0)
    turn.facts += [Posted(1, number + 1, Committed("x")) for number in range(count)]
    engine.state.evolve(turn)
    writer = Writer(engine.log, engine.values)
    writer.add(turn)
    writer.commit(sync=True)


def waste(shard: Shard) -> None:
    for number in range(6):
        shard.create(f"f{number}", payload=b"x" * 400)
        shard.drop(f"f{number}")


def test_a_merge_keeps_the_count_of_posts_that_have_just_been_applied_elsewhere() -> None:
    shard = Shard()
    engine = shard.engine
    post(shard, 3)
    waste(shard)
    # No batch that writes comes after this one, and the log does not hear of it.
    assert engine.collect(family.Collect([0, 3], [0, 3]), shard.now_ms) is None
    while engine.upkeep.step():
        pass
    assert engine.upkeep.merges
    assert segment_name(1) not in shard.disk.names()
    shard.restart()
    assert shard.engine.state.families.outbox.last(1) == 3, "else number 1 would be given again"


@pytest.mark.parametrize("slices", [0, 1, 2, 3])
def test_what_a_full_disk_has_no_room_to_log_is_not_forgotten(slices: int) -> None:
    shard = Shard()
    engine = shard.engine
    post(shard, 3)
    waste(shard)
    for _ in range(slices):
        engine.upkeep.step()
    assert engine.collect(family.Collect([0, 3], [0, 3]), shard.now_ms) is None
    # Not a byte is left for it; merges would have room.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.log, "has_room", lambda size: False)
        shard.run_upkeep()
    assert found_after_a_crash(shard).outbox.last(1) == 3
    waste(shard)
    shard.run_upkeep()
    assert engine.upkeep.merges
    assert segment_name(1) not in shard.disk.names()
    shard.restart()
    assert shard.engine.state.families.outbox.last(1) == 3


def found_after_a_crash(shard: Shard) -> Families:
    found = opened(shard.disk.of(shard.disk.image()))
    found.abandon()
    return found.state.families


def test_a_merge_forgets_nothing_for_what_no_sync_has_covered() -> None:
    disk = Disk()
    engine = Engine(disk, Counting(), Settings(), sync=False)
    for number in range(8):
        engine.step([commands.PolicySet("t", {"retention_ttl_ms": number}, False, None)], 1, 1)
        flow = commands.NewFlow(f"f{number}", None, "t", "queued", payload=b"x" * 500)
        engine.step([commands.Create([flow])], 1, 1)
    engine.sync()
    engine.step([commands.PolicySet("t", {"retention_ttl_ms": 9}, False, None)], 1, 1)
    while engine.upkeep.step():
        pass
    assert engine.upkeep.merges
    found = Engine(disk.after_crash(EVERYTHING), Counting(), Settings())
    stored = found.state.policies.get("t")
    assert stored is not None and stored.policy["retention_ttl_ms"] >= 7
