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
from shardflow.flow.limits import CHECKPOINT_LOG_BYTES
from shardflow.flow.log.parts import segment_name
from shardflow.flow.settings import Settings
from support.checkpoints import Shard, small_slices
from support.disks import EVERYTHING, Disk
from support.engines import Counting


@pytest.fixture(autouse=True)
def _merges_only() -> Iterator[None]:
    with small_slices() as patch:
        patch.setattr(upkeep, "CHECKPOINT_LOG_BYTES", CHECKPOINT_LOG_BYTES)
        yield


def test_a_merge_keeps_the_count_of_posts_that_have_just_been_applied_elsewhere() -> None:
    shard = Shard()
    engine = shard.engine
    turn = engine.state.turn(shard.now_ms, Counting(), 0)
    turn.facts += [Posted(1, number, Committed("x")) for number in (1, 2, 3)]
    engine.state.evolve(turn)
    writer = Writer(engine.log, engine.values)
    writer.add(turn)
    writer.commit(sync=True)
    for number in range(6):
        shard.create(f"f{number}", payload=b"x" * 400)
        shard.drop(f"f{number}")
    # No batch that writes comes after this one, and the log does not hear of it.
    assert engine.collect(family.Collect([0, 3], [0, 3]), shard.now_ms) is None
    while engine.upkeep.step():
        pass
    assert engine.upkeep.merges
    assert segment_name(1) not in shard.disk.names()
    shard.restart()
    assert shard.engine.state.families.outbox.last(1) == 3, "else number 1 would be given again"


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
