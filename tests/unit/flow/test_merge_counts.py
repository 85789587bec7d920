"""When a merged file counts: from its end on, whatever is left of what it was made of."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import pytest

from shardflow.flow.engine import Engine
from shardflow.flow.engine.hints import Hint
from shardflow.flow.engine.merge import Merge
from shardflow.flow.errors import CorruptLog
from shardflow.flow.log.frame import HEADER_BYTES, seal
from shardflow.flow.log.parts import END, RANGE, Part, parts_in, segment_name
from shardflow.flow.log.position import Position
from shardflow.flow.log.shortcut import hint_name
from shardflow.flow.settings import Settings
from support.checkpoints import Shard, opened, small_slices
from support.disks import EVERYTHING, NOTHING, Disk, Loss, PowerLoss
from support.engines import RETENTION_MS, Counting
from support.logs import append, open_log, read_log


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_slices():
        yield


def wasteful() -> Shard:
    """Return a shard about to merge."""
    shard = Shard()
    for number in range(6):
        shard.create(f"f{number}", f"kept{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    while not isinstance(shard.engine.upkeep._job, Merge):
        assert shard.engine.upkeep.step()
    return shard


def flows_of(disk: Disk) -> set[str]:
    engine = opened(disk)
    found = {record.id for slot in engine.state.table if (record := slot.record) is not None}
    assert engine.statistics(check=True)["problems"] == []
    engine.abandon()
    return found


@pytest.mark.parametrize("loss", [EVERYTHING, *(Loss("holes", seed) for seed in range(4))])
@pytest.mark.parametrize("lasts", range(1, 10))
@pytest.mark.parametrize("operation", ["sync", "sync_directory", "remove"])
def test_the_disk_fails_in_a_merge_and_the_power_in_the_next_start(
    operation: str, lasts: int, loss: Loss
) -> None:
    for at in count(1):
        shard = wasteful()
        job = shard.engine.upkeep._job
        flows = {f"kept{number}" for number in range(6)}
        shard.disk.fail(operation, at=at, error=errno.EIO, loss=EVERYTHING)
        has_failed = False
        try:
            while shard.engine.upkeep._job is job:
                shard.engine.upkeep.step()
        except OSError:
            has_failed = True
        shard.engine.abandon()
        shard.disk.forget_faults()
        shard.disk.power_fails_at(lasts)
        with suppress(PowerLoss):
            # All that this start sees has to outlast it, for it removes what it does not need.
            assert flows_of(shard.disk) == flows
        assert flows_of(shard.disk.after_crash(loss)) == flows
        if not has_failed:
            assert at > 1
            return


def test_a_hint_outlasts_what_it_was_written_after() -> None:
    """Not synced, what removes a flow may be lost: the flow is there again, and has to be found."""
    shard = wasteful()
    shard.run_upkeep()
    (span,) = (span for span in shard.engine.log.spans.values() if span.part.is_merged)
    shard.disk.remove(hint_name(span.part))
    shard.engine.abandon()
    # From now on nothing is synced that need not be.
    shard.engine = Engine(shard.disk, Counting(), Settings(retention_ms=RETENTION_MS), sync=False)
    state, values = shard.engine.state, shard.engine.values
    shard.drop("kept0")
    hint = Hint(shard.disk, shard.engine.log, state, values, span)
    while not hint.is_done:
        hint.step()
    shard.disk = shard.disk.after_crash(EVERYTHING)
    image = shard.disk.image()
    assert hint_name(span.part) in image
    del image[hint_name(span.part)]
    assert flows_of(shard.disk) == flows_of(Disk.of(image))


@pytest.mark.parametrize("removed", [1, 2, 3])
def test_damage_is_refused_however_many_of_its_sources_are_left(removed: int) -> None:
    shard = wasteful()
    first = shard.engine.upkeep._job
    assert isinstance(first, Merge) and first.discard()
    shard.engine.upkeep._job = None
    # As after an early seal, on a shard that nobody uses: nothing follows the sources.
    shard.engine.log.rotate(makes_room=True)
    sources = list(shard.engine.log.spans.values())
    job = Merge(shard.engine.log, shard.engine.state, shard.engine.values, sources)
    names = set(shard.disk.names())
    while len(names - set(shard.disk.names())) < removed:
        job.step()
    shard.engine.abandon()
    image, name = shard.disk.image(), job.span.part.name
    assert flows_of(Disk.of(image)) == {f"kept{number}" for number in range(6)}
    size = len(image[name])
    end = size - len(frame_of([END.pack(0)], 0))
    for at in (8, *range(end, size)):
        disk = Disk.of(image)
        disk.flip(name, at)
        before = disk.image()
        with pytest.raises(CorruptLog, match=name):
            opened(disk)
        assert disk.image() == before


def merged_image(frames: list[list[bytes]], ends_with: int | None) -> dict[str, bytes]:
    """Return a log of two segments, and what a merge of them has left."""
    disk = Disk()
    log = open_log(disk).log
    append(log, b"old", b"dead")
    log.rotate()
    append(log, b"other")
    log.rotate()
    append(log, b"tail")
    log.close()
    content = b""
    last_lsn = 3
    for entries in [[RANGE.pack(1, last_lsn, last_lsn)], *frames]:
        content += frame_of(entries, last_lsn)
    if ends_with is not None:
        content += frame_of([END.pack(ends_with)], last_lsn)
    return {**disk.image(), Part(1, 2, 4).name: content}


def frame_of(entries: list[bytes], lsn: int) -> bytes:
    frame = bytearray(HEADER_BYTES) + b"".join(entries)
    seal(frame, [len(entry) for entry in entries], lsn, lsn, 1)
    return bytes(frame)


def test_a_merged_file_with_its_end_counts_beside_its_sources() -> None:
    image = merged_image([[b"old"], [b"other"]], 3)
    assert segment_name(1) in image
    disk = Disk.of(image)
    assert read_log(disk)[0] == [b"old", b"other", b"tail"]
    assert parts_in(disk)[:2] == [Part(1, 2, 4), Part(3, 3, 3)]


@pytest.mark.parametrize(
    ("frames", "ends_with"),
    [
        ([], None),
        ([[b"old"], [b"other"]], None),
        ([[b"old"], [b"8 bytes!"]], None),
        ([[b"old"], [END.pack(7)]], None),
        ([[b"old"], [END.pack(1)]], None),
        ([[b"old"]], 3),
    ],
    ids=["empty", "cut", "an entry as short", "one that counts more", "fewer", "a wrong end"],
)
def test_one_without_is_removed(frames: list[list[bytes]], ends_with: int | None) -> None:
    disk = Disk.of(merged_image(frames, ends_with))
    assert read_log(disk)[0] == [b"old", b"dead", b"other", b"tail"]
    assert not any(part.is_merged for part in parts_in(disk))


def test_of_two_the_one_that_was_made_of_the_other_counts() -> None:
    image = merged_image([[b"old"], [b"other"]], 3)
    merged = image[Part(1, 2, 4).name]
    newer = merged.replace(frame_of([b"old"], 3), frame_of([b"new"], 3))
    disk = Disk.of({**image, Part(1, 2, 5).name: newer})
    assert read_log(disk)[0] == [b"new", b"other", b"tail"]


def test_alone_it_needs_its_end() -> None:
    image = merged_image([[b"old"], [b"other"]], None)
    del image[segment_name(1)]
    del image[segment_name(2)]
    with pytest.raises(CorruptLog, match="its end is missing"):
        read_log(Disk.of(image))


def test_a_file_that_is_gone_is_damage() -> None:
    log = open_log(Disk()).log
    with pytest.raises(CorruptLog, match=segment_name(7)):
        log.read(Position(7, 0, 10))
    log.abandon()


def test_whole_files_are_not_written_to() -> None:
    shard = wasteful()
    shard.run_upkeep()
    shard.engine.abandon()
    image = shard.disk.image()
    merged = [part.name for part in parts_in(shard.disk) if part.is_merged]
    disk = shard.disk.after_crash(NOTHING)
    flows_of(disk)
    assert merged
    assert all(disk.image()[name] == image[name] for name in merged)
