"""Merges and sweeps work in slices: none of them takes long, however large things are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from shardflow.flow import commands
from shardflow.flow.engine import merge
from shardflow.flow.engine.merge import Merge
from shardflow.flow.log import log as logs
from shardflow.flow.machine import expiry
from support.checkpoints import Shard, small_slices
from support.disks import Disk, DiskHandle, _Fault
from support.engines import RETENTION_MS

SYNC = 2_000


@pytest.fixture(autouse=True)
def small() -> Iterator[pytest.MonkeyPatch]:
    with small_slices() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 1_000_000)
        patch.setattr(merge, "MERGE_FRAME_BYTES", 500)
        patch.setattr(merge, "MERGE_SYNC_BYTES", SYNC)
        patch.setattr(merge, "MERGE_SLICE_ENTRIES", 1_000)
        yield patch


@pytest.fixture
def shard() -> Shard:
    return Shard()


@pytest.fixture
def done(small: pytest.MonkeyPatch) -> Counter[str]:
    """Return what a disk does, counted: operations by name, and bytes read and written."""
    done: Counter[str] = Counter()
    begin, pread, pwrite = Disk.begin, DiskHandle.pread, DiskHandle.pwrite

    def counted(disk: Disk, operation: str) -> _Fault | None:
        done[operation] += 1
        return begin(disk, operation)

    def reading(handle: DiskHandle, size: int, offset: int) -> bytes:
        done["bytes"] += size
        return pread(handle, size, offset)

    def writing(handle: DiskHandle, data: bytes, offset: int) -> None:
        done["bytes"] += len(data)
        pwrite(handle, data, offset)

    small.setattr(Disk, "begin", counted)
    small.setattr(DiskHandle, "pread", reading)
    small.setattr(DiskHandle, "pwrite", writing)
    return done


def seal(shard: Shard) -> int:
    """Seal the segment that is written; return its number."""
    number, _ = shard.engine.log.position
    assert shard.engine.log.rotate()
    return number


def begun(shard: Shard, *numbers: int) -> Merge:
    """Begin to merge files."""
    engine = shard.engine
    return Merge(
        engine.log, engine.state, engine.values, [engine.log.spans[number] for number in numbers]
    )


def test_a_slice_ends_in_the_middle_of_a_frame(shard: Shard, done: Counter[str]) -> None:
    shard.create(*(f"f{number}" for number in range(300)), payload=b"x" * 300)
    job = begun(shard, seal(shard))
    steps = []
    while not job.is_done:
        done.clear()
        job.step()
        steps.append(done.copy())
    assert len(steps) > 300 * 400 / SYNC
    # One reads as much as one piece of a frame, or writes as much as is synced at once.
    assert max(step["bytes"] for step in steps) < 2 * SYNC
    assert max(step["sync"] for step in steps[:-5]) == 1
    shard.restart()


def test_files_are_removed_one_at_a_time(shard: Shard, done: Counter[str]) -> None:
    sealed = []
    for number in range(6):
        shard.create(f"f{number}")
        sealed.append(seal(shard))
    job = begun(shard, *sealed)
    total = 0
    while not job.is_done:
        done.clear()
        job.step()
        total += done["remove"]
        assert done["remove"] <= 1
        image = shard.disk.image()
        assert len([name for name in image if name.endswith(".log")]) >= 2
    assert total == 6
    shard.restart()


def test_long_trails_make_short_slices(shard: Shard, small: pytest.MonkeyPatch) -> None:
    small.setattr(merge, "MERGE_FRAME_BYTES", 10**6)
    shard.create("a")
    for number in range(100):
        shard.put("a", b"%d" % number)
    number = seal(shard)
    counts = []
    # The first merge puts what were many frames into one.
    for limit in (10**6, 10**6, 10_000):
        small.setattr(merge, "MERGE_SLICE_TRAIL_BYTES", limit)
        job = begun(shard, number)
        number = job.span.part.number
        counts.append(0)
        while not job.is_done:
            job.step()
            counts[-1] += 1
    assert counts[2] >= counts[1] + 2 * 10
    shard.restart()


def test_a_sweep_takes_no_further_flow_past_so_long_a_history(
    shard: Shard, small: pytest.MonkeyPatch
) -> None:
    small.setattr(expiry, "SWEEP_TRAIL_BYTES_MAX", 12 * 25)
    ids = [f"f{number}" for number in range(9)]
    shard.create(*ids)
    for flow_id in ids:
        for number in range(8):
            shard.put(flow_id, b"%d" % number)
        shard.end(flow_id)
    shard.now_ms += RETENTION_MS
    left = []
    while (sweep := shard.engine.sweep(shard.now_ms)) is not None:
        assert isinstance(sweep, commands.Sweep)
        shard.ask(sweep)
        left.append(len(shard.engine.state.table))
    assert left == [6, 3, 0]
