"""Merges that move cold flows, on a disk that has no room for it, or that are closed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardflow.flow import commands, queries
from shardflow.flow.beside import DiskFolder
from shardflow.flow.cold.environment import ColdFull
from shardflow.flow.cold.store import Cold
from shardflow.flow.engine import Engine, merge, upkeep
from shardflow.flow.engine.checkpoint import Checkpoint
from shardflow.flow.engine.merge import Merge
from shardflow.flow.log.parts import Span, parts_in
from shardflow.flow.replies import Done
from shardflow.flow.settings import Settings
from support.checkpoints import Shard, shortcuts_on
from support.disks import Disk
from support.engines import RETENTION_MS, Counting
from support.merging import mergeable, small_files


@pytest.fixture(autouse=True)
def small() -> Iterator[pytest.MonkeyPatch]:
    with small_files() as patch:
        patch.setattr(merge, "MERGE_SLICE_ENTRIES", 2)
        yield patch


def opened(disk: Disk, path: Path) -> Engine:
    told = Settings(retention_ms=RETENTION_MS, cold_flows_min=0)
    return Engine(disk, Counting(), told, folder=DiskFolder(path / "cold"))


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    """Return one whose flows are cold, but for those that fill the log; a merge moves them."""
    shard = Shard()
    shard.engine.abandon()
    shard.disk = Disk()
    shard.engine = opened(shard.disk, tmp_path)
    for number in range(6):
        shard.create(f"f{number}", f"other{number}", payload=b"x" * 100)
        shard.end(f"f{number}")
    merging(shard)
    yield shard
    shard.engine.abandon()


def merging(shard: Shard) -> None:
    """Go on until a merge has begun."""
    while not isinstance(shard.engine.upkeep._job, Merge):
        assert shard.engine.upkeep.step()


def placed(shard: Shard) -> Merge:
    """Go on until the merged file has its place in the log."""
    job = shard.engine.upkeep._job
    assert isinstance(job, Merge)
    while not job.is_placed:
        assert shard.engine.upkeep.step()
    return job


def merging_all_before_the_checkpoint(shard: Shard) -> list[Span]:
    """Begin a merge of what a checkpoint has; return its sources."""
    sources = mergeable(shard.engine)
    shard.engine.upkeep._job = shard.engine.upkeep._begin_merge(sources)
    return sources


def full(*given: Any) -> None:
    raise ColdFull(28, "full")


def payload_of(shard: Shard, flow_id: str) -> bytes | None:
    wanted = commands.Hydration(payload=True, max_bytes=100)
    (done,) = shard.ask(queries.Get(flow_id, None, False, wanted))
    assert isinstance(done, Done) and done.values is not None
    (found,) = done.values
    return None if found is None else found.payload


def check(engine: Engine) -> None:
    assert engine.statistics(check=True)["problems"] == []
    assert engine.cold is not None and engine.cold.rows == 6
    assert len(engine.state.table) == 6


def test_a_merge_waits_while_there_is_no_room_for_the_new_places_of_cold_flows(
    shard: Shard, tmp_path: Path
) -> None:
    cold = shard.engine.cold
    assert cold is not None
    tries = []

    def tried(*given: Any) -> None:
        tries.append(given)
        full()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold, "move", tried)
        shard.run_upkeep()
        assert len(tries) == 1, "it rests before it tries again"
        shard.run_upkeep()
        assert len(tries) == 2
        shard.engine.upkeep.checkpoint()
        assert not shard.engine.upkeep.checkpoints
        check(shard.engine)
    shard.run_upkeep()
    assert shard.engine.upkeep.merges
    check(shard.engine)
    shard.engine.abandon()
    shard.engine = opened(shard.disk, tmp_path)
    shard.run_upkeep()
    check(shard.engine)


def test_what_comes_back_while_a_merge_waits_is_moved_with_it(shard: Shard, tmp_path: Path) -> None:
    engine = shard.engine
    assert engine.cold is not None and engine.upkeep._projector is not None
    with pytest.MonkeyPatch.context() as patch:
        with pytest.MonkeyPatch.context() as room:
            room.setattr(engine.cold, "move", full)
            shard.run_upkeep()
            assert isinstance(job := engine.upkeep._job, Merge) and job.is_waiting
            # They stay for a while.
            patch.setattr(engine.upkeep._projector, "_keep", 100)
            for number in range(6):
                shard.put(f"f{number}", b"it comes back")
        shard.run_upkeep()
    assert engine.upkeep.merges
    assert engine.statistics(check=True)["problems"] == []
    for path in (tmp_path, tmp_path / "anew"):
        shard.engine.abandon()
        shard.engine = engine = opened(shard.disk, path)
        assert engine.statistics(check=True)["problems"] == []
        for number in range(6):
            assert payload_of(shard, f"f{number}") == b"x" * 100


@pytest.mark.parametrize("entries", [0, 1])
def test_a_start_on_a_full_disk_mends_cold_flows_one_by_one_or_reads_the_log(
    shard: Shard, tmp_path: Path, entries: int
) -> None:
    shard.run_upkeep()
    shard.put("other0", b"in a segment that the checkpoint begins with")
    told = shard.engine.upkeep
    told.checkpoint()
    merging_all_before_the_checkpoint(shard)
    placed(shard)
    shard.engine.abandon()
    move = Cold.move

    def narrow(cold: Cold, rows: Any, values: Any) -> set[bytes]:
        if len(rows) + len(values) > entries:
            full()
        return move(cold, rows, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cold, "move", narrow)
        shard.engine = opened(shard.disk, tmp_path)
    assert (shard.engine.restored.checkpoint is None) == (entries == 0)
    shard.run_upkeep()
    check(shard.engine)
    assert payload_of(shard, "f0") == b"x" * 100


@pytest.mark.parametrize("slices", range(6))
def test_a_start_finishes_a_merge_that_cold_flows_were_told_of(
    shard: Shard, tmp_path: Path, slices: int
) -> None:
    shard.run_upkeep()
    shard.create("more", payload=b"x" * 900, retention_ttl_ms=1)
    shard.put("other0", b"in the next segment")
    shard.engine.upkeep.checkpoint()
    shard.end("more")
    shard.now_ms += 1
    shard.ask(commands.RetentionCleanup(100))
    merging(shard)
    part = placed(shard).span.part
    for _ in range(slices):
        shard.engine.upkeep.step()
    shard.engine.abandon()
    shard.engine = opened(shard.disk, tmp_path)
    assert shard.engine.restored.checkpoint is not None
    parts = parts_in(shard.disk)
    assert part in parts
    assert not any(part.covers(other) for other in parts)
    check(shard.engine)
    shard.run_upkeep()
    check(shard.engine)


def test_a_value_that_came_back_during_a_checkpoint_is_found_where_a_merge_has_put_it(
    shard: Shard, tmp_path: Path
) -> None:
    shard.run_upkeep()
    told = shard.engine.upkeep
    shard.put("other0", b"in a segment that the checkpoint begins with")
    told.want_checkpoint()
    while not isinstance(told._job, Checkpoint):
        assert told.step()
    shard.put("f0", b"it comes back")
    while isinstance(job := told._job, Checkpoint):
        job.wait()
        told.step()
    sources = merging_all_before_the_checkpoint(shard)
    shard.run_upkeep()
    shard.engine.abandon()
    shard.engine = opened(shard.disk, tmp_path)
    assert shard.engine.restored.checkpoint is not None
    assert not {span.part for span in sources} & {*parts_in(shard.disk)}
    assert payload_of(shard, "f0") == b"x" * 100
    assert shard.engine.statistics(check=True)["problems"] == []


def test_closing_finishes_a_merge_that_cold_flows_were_told_of(
    shard: Shard, tmp_path: Path, small: pytest.MonkeyPatch
) -> None:
    small.setattr(upkeep, "CHECKPOINT_CLOSE_BYTES", 1)
    placed(shard)
    shard.engine.upkeep.step()
    shard.engine.close()
    assert shortcuts_on(shard.disk), "all is settled, so a checkpoint can be written"
    shard.engine = opened(shard.disk, tmp_path)
    assert shard.engine.restored.checkpoint is not None
    shard.run_upkeep()
    check(shard.engine)


def test_closing_gives_up_a_merge_that_waits(shard: Shard, tmp_path: Path) -> None:
    placed(shard)
    cold = shard.engine.cold
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold, "move", full)
        patch.setattr(upkeep, "CHECKPOINT_CLOSE_BYTES", 1)
        shard.engine.close()
    assert shortcuts_on(shard.disk) == [], "it would name places in a file that goes again"
    shard.engine = opened(shard.disk, tmp_path)
    shard.run_upkeep()
    check(shard.engine)
