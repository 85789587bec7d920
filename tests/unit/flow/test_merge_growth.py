"""The log stays in proportion to what it holds, whatever comes and goes, and in whatever order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardflow.flow import commands, family
from shardflow.flow.engine import choice, merge, upkeep
from shardflow.flow.log import log as logs
from support.checkpoints import Shard
from support.engines import TYPE
from support.merging import KIN, collect, post

SEGMENT = 20_000


@pytest.fixture(autouse=True)
def small() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", SEGMENT)
        patch.setattr(logs, "SEGMENT_GROW_BYTES", SEGMENT)
        patch.setattr(choice, "SEGMENT_BYTES", SEGMENT)
        patch.setattr(upkeep, "SEAL_BYTES_MIN", SEGMENT // 8)
        patch.setattr(merge, "MERGE_FRAME_BYTES", 2_000)
        yield patch


@pytest.fixture
def shard() -> Shard:
    return Shard()


def log_bytes(shard: Shard) -> int:
    """Do what is to be done, and return what the log takes then."""
    shard.run_upkeep()
    told: int = shard.engine.statistics(check=False)["log_bytes"]
    return told


def create(shard: Shard, name: str, count: int, size: int, **fields: int) -> list[str]:
    """Create flows with long names, so that what says that they are gone weighs something."""
    ids = [f"{name}-{number}".ljust(200, "-") for number in range(count)]
    shard.create(*ids, payload=b"x" * size, **fields)
    return ids


def drop(shard: Shard, ids: list[str]) -> None:
    """End flows, and remove them."""
    for flow_id in ids:
        shard.put(flow_id, b"y")
        shard.end(flow_id)
    shard.now_ms += 100_000
    shard.ask(commands.RetentionCleanup(1_000))


def test_removals_go_when_what_they_were_kept_for_has_gone(shard: Shard) -> None:
    sizes = []
    for cycle in range(20):
        # Those that live longer keep the file that both were created in.
        long = create(shard, f"long-{cycle}", 8, 2_000)
        short = create(shard, f"short-{cycle}", 30, 10)
        drop(shard, short)
        log_bytes(shard)
        drop(shard, long)
        sizes.append(log_bytes(shard))
    assert max(sizes) < 3 * SEGMENT, sizes
    shard.restart()
    assert len(shard.engine.state.table) == 0


def test_a_file_that_stays_alive_does_not_keep_removals_for_ever(shard: Shard) -> None:
    shard.create(*(f"old-{number}" for number in range(40)), payload=b"x" * 300)
    sizes = []
    for cycle in range(60):
        # Of a flow whose history was cut it is not known where it began.
        drop(shard, create(shard, str(cycle), 20, 10, history_max_events=2))
        sizes.append(log_bytes(shard))
    assert max(sizes) < 4 * SEGMENT, sizes
    shard.restart()
    assert len(shard.engine.state.table) == 40


def test_prepared_children_are_dead_once_they_exist(shard: Shard) -> None:
    data = b"x" * 1_000
    ids = [f"c{number}" for number in range(100)]
    children = [commands.NewFlow(i, None, TYPE, "queued", payload=data) for i in ids]
    shard.ask(family.Prepare("t1", 1, KIN, children), family.Commit("t1"))
    for flow_id in ids[:95]:
        shard.end(flow_id)
    shard.now_ms += 100_000
    shard.ask(commands.RetentionCleanup(1_000))
    assert log_bytes(shard) < 2 * SEGMENT
    shard.restart()
    assert len(shard.engine.state.table) == 5


def test_what_other_shards_were_told_is_dead_once_they_know(shard: Shard) -> None:
    engine = shard.engine
    for number in range(1, 400):
        post(engine, 1, 1, shard.now_ms, "x" * 200)
        told = family.Deliver(2, number, [family.Committed("nothing")])
        shard.ask(told, commands.PolicySet(TYPE, {"retention_ttl_ms": number}, False, None))
        collect(engine, 1, number - 1, shard.now_ms)
        if not number % 50:
            assert log_bytes(shard) < 2 * SEGMENT
    found = shard.restart()
    assert found.state.families.outbox.last(1) == 399
    assert found.state.families.seen == {2: 399}
    found.upkeep.checkpoint()
    post(found, 1, 1, shard.now_ms)
    found = shard.restart()
    assert found.restored.checkpoint is not None
    collect(found, 1, 400, shard.now_ms)
    shard.create("later")
    shard.restart()


def test_what_a_start_believes_of_removals_is_the_same_by_any_way(shard: Shard) -> None:
    shard.create(*(f"old-{number}" for number in range(60)), payload=b"x" * 300)
    for cycle in range(8):
        drop(shard, create(shard, str(cycle), 20, 10, history_max_events=2))
        log_bytes(shard)
    assert shard.engine.values.dead.all_kept()
    shard.restart()
    assert shard.engine.values.dead.all_kept()
    shard.engine.upkeep.checkpoint()
    shard.restart()
    drop(shard, create(shard, "more", 20, 10))
    log_bytes(shard)
    shard.restart()
    assert shard.engine.restored.checkpoint is not None
    assert shard.engine.values.dead.all_kept()


def test_of_what_is_dead_altogether_all_is_counted(shard: Shard, small: pytest.MonkeyPatch) -> None:
    small.setattr(logs, "SEGMENT_BYTES", 10**6)
    for number in range(50):
        # The shortest records that there are, each in a frame of its own.
        shard.create(str(number), payload=None)
        shard.end(str(number))
    shard.now_ms += 100_000
    shard.ask(commands.RetentionCleanup(1_000))
    shard.engine.log.rotate()
    (span,) = shard.engine.log.spans.values()
    assert 0.99 * span.size <= shard.engine.statistics(check=False)["dead_bytes"] <= span.size
    assert log_bytes(shard) < 300
    told = shard.engine.statistics(check=False)
    assert told["dead_bytes"] == 0, "an empty file is not worth a merge"
    assert told["merges"] == 1
