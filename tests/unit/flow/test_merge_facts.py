"""Merges and facts: what is left of fan-outs and posts reads back, whatever was left out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardflow.flow import commands, family
from shardflow.flow.engine.merge import Merge
from shardflow.flow.log import log as logs
from shardflow.flow.record import Record
from support.checkpoints import Shard, shortcuts_on, small_slices
from support.engines import TYPE
from support.merging import KIN, collect, post


@pytest.fixture(autouse=True)
def small() -> Iterator[pytest.MonkeyPatch]:
    with small_slices() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 100_000)
        yield patch


@pytest.fixture
def shard() -> Shard:
    return Shard()


def fan_out(shard: Shard, txn: str, *ids: str, payload: bytes = b"payload") -> None:
    """Prepare children, and commit them."""
    children = [commands.NewFlow(i, None, TYPE, "queued", payload=payload) for i in ids]
    shard.ask(family.Prepare(txn, 1, KIN, children), family.Commit(txn))


def move(shard: Shard, flow_id: str, payload: bytes | None) -> None:
    """Give a flow another version, and perhaps another payload."""
    record = shard.record(flow_id)
    to = commands.Move(flow_id, None, "queued", "queued", record.fencing_token, payload=payload)
    (done,) = shard.ask(commands.Transition([to]))
    assert isinstance(done.outcomes[0], Record), done


def merge(shard: Shard, *numbers: int) -> None:
    """Merge these files, and no others."""
    engine = shard.engine
    sources = [engine.log.spans[number] for number in numbers]
    job = Merge(engine.log, engine.state, engine.values, sources)
    while not job.is_done:
        job.step()


def seal(shard: Shard) -> int:
    """Seal the segment that is written; return its number."""
    number, _ = shard.engine.log.position
    assert shard.engine.log.rotate()
    return number


def test_an_outcome_may_outlive_what_was_prepared(shard: Shard) -> None:
    shard.create("living")
    seal(shard)
    fan_out(shard, "t1", "a", "b")
    for child in "ab":
        shard.drop(child)
    merge(shard, seal(shard))
    shard.restart()
    assert not shard.engine.state.families.prepared
    assert shard.record("living")


def test_posts_that_were_applied_leave_a_gap_behind_those_that_a_merge_has_not_met(
    shard: Shard,
) -> None:
    post(shard.engine, 1, 2, shard.now_ms)
    seal(shard)
    post(shard.engine, 1, 3, shard.now_ms)
    second = seal(shard)
    collect(shard.engine, 1, 4, shard.now_ms)
    shard.create("f")
    seal(shard)
    merge(shard, second)
    shard.restart()
    outbox = shard.engine.state.families.outbox
    assert [number for number, _ in outbox.lane(1)] == [5]
    assert outbox.last(1) == 5


def test_a_merge_keeps_posts_until_the_log_knows_that_they_are_applied(shard: Shard) -> None:
    post(shard.engine, 1, 3, shard.now_ms, "x" * 300)
    shard.create("f", payload=b"x" * 2_000)
    seal(shard)
    shard.drop("f")
    collect(shard.engine, 1, 2, shard.now_ms)
    shard.disk.capacity = shard.disk.used_bytes + 100_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard.engine.log, "has_room", lambda *_, **__: False)
        shard.run_upkeep()
    assert not shard.engine.upkeep.merges
    shard.run_upkeep()
    assert shard.engine.upkeep.merges
    shard.restart()
    assert [number for number, _ in shard.engine.state.families.outbox.lane(1)] == [3]


def test_a_value_that_a_history_has_lost_does_not_come_back(shard: Shard) -> None:
    shard.create("a", history_max_events=1)
    first = seal(shard)
    move(shard, "a", None)
    second = seal(shard)
    merge(shard, first)
    move(shard, "a", b"other")
    merge(shard, second)
    assert len(shard.engine.values) == 1
    shard.restart()
    assert len(shard.engine.values) == 1
    merge(shard, seal(shard))
    shard.restart()
    assert len(shard.engine.values) == 1
    shard.drop("a")
    shard.restart()
    assert len(shard.engine.values) == 0


def test_that_a_value_is_lost_is_forgotten_once_no_file_can_hold_it(shard: Shard) -> None:
    shard.create("a", "b", history_max_events=1)
    first = seal(shard)
    move(shard, "a", b"other")
    second = seal(shard)
    move(shard, "a", b"a third one")
    merge(shard, second)
    merge(shard, first)
    assert shard.engine.values.dead.all_kept()
    merge(shard, min(shard.engine.log.spans))
    assert not shard.engine.values.dead.all_kept()
    shard.restart()
    assert len(shard.engine.values) == 2


def test_no_checkpoint_is_written_of_what_the_log_does_not_have_yet(
    shard: Shard,
) -> None:
    post(shard.engine, 1, 3, shard.now_ms)
    collect(shard.engine, 1, 3, shard.now_ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard.engine.log, "has_room", lambda *_, **__: False)
        shard.engine.upkeep.checkpoint()
    assert shortcuts_on(shard.disk) == []
    shard.engine.upkeep.checkpoint()
    assert shortcuts_on(shard.disk)
    shard.restart()
    assert shard.engine.state.families.outbox.last(1) == 3
