"""The append-only log: what is on disk when, how segments follow each other, how it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shardflow.flow import host
from shardflow.flow.errors import CorruptLog
from shardflow.flow.host import DiskFile, DiskFiles
from shardflow.flow.limits import SEGMENT_GROW_BYTES
from shardflow.flow.log import log as logs
from shardflow.flow.log.frame import HEADER_BYTES
from shardflow.flow.log.parts import segment_name
from shardflow.flow.log.position import Position
from support.disks import EVERYTHING, KINDS, NOTHING, Disk, Loss, PowerLoss
from support.logs import append, entries_in, open_log

FIRST = segment_name(1)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let a segment be sealed at the first frame past this many bytes."""
    size = 300
    monkeypatch.setattr(logs, "SEGMENT_BYTES", size)
    monkeypatch.setattr(logs, "SEGMENT_GROW_BYTES", 100)
    return size


# What is on disk when.


def test_a_new_log_has_its_first_segment_and_epoch_on_disk(disk: Disk) -> None:
    log = open_log(disk).log
    assert log.epoch == 1
    assert open_log(disk.after_crash(EVERYTHING)).log.epoch == 2


def test_every_opening_is_a_new_epoch(disk: Disk) -> None:
    for epoch in range(1, 6):
        log = open_log(disk).log
        assert log.epoch == epoch
        (log.abandon if epoch % 2 else log.close)()


def test_every_opening_after_a_power_loss_is_a_new_epoch(disk: Disk) -> None:
    for epoch in range(1, 6):
        assert open_log(disk).log.epoch == epoch
        disk = disk.after_crash(EVERYTHING)


def test_a_frame_that_was_synced_survives_a_power_loss(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one", b"two")
    append(log, b"three")
    assert disk.is_synced
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one", b"two", b"three"]


def test_a_frame_that_was_not_synced_may_be_lost_until_it_is(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one")
    append(log, b"two", sync=False)
    assert log.has_unsynced
    assert not disk.is_synced
    assert entries_in(disk) == [b"one", b"two"]
    log.sync()
    assert not log.has_unsynced
    assert disk.is_synced


def test_a_frame_that_was_not_synced_is_lost_with_the_power(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one")
    append(log, b"two", sync=False)
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one"]


def test_a_synced_frame_takes_those_before_it_along(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one", sync=False)
    append(log, b"two", sync=False)
    append(log, b"three")
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one", b"two", b"three"]


def test_a_sync_of_nothing_new_costs_nothing(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one")
    before = disk.operations, log.syncs
    log.sync()
    assert (disk.operations, log.syncs) == before


def test_closing_puts_everything_on_disk_and_gives_reserved_space_back(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one", sync=False)
    assert len(disk.image()[FIRST]) == SEGMENT_GROW_BYTES
    log.close()
    assert len(disk.image()[FIRST]) == log.position[1]
    assert disk.open_handles == 0
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one"]


def test_abandoning_touches_no_bytes(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one", sync=False)
    before = disk.operations
    log.abandon()
    assert disk.operations == before
    assert disk.open_handles == 0


def test_a_batch_is_one_write_and_one_sync(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one")
    before = disk.operations
    append(log, *[b"entry"] * 1_000)
    assert disk.operations - before == 2


# Reading.


def test_entries_are_read_where_they_were_written(disk: Disk, small_segments: int) -> None:
    log = open_log(disk).log
    wanted: dict[Position, bytes] = {}
    for number in range(40):
        entries = [f"{number}-{part}".encode() * part for part in range(4)]
        wanted |= dict(zip(append(log, *entries), entries, strict=True))
    assert {position: log.read(position) for position in wanted} == wanted
    log.close()
    log = open_log(disk).log
    assert {position: log.read(position) for position in wanted} == wanted


def test_an_entry_past_the_end_of_its_segment_is_damage(disk: Disk) -> None:
    log = open_log(disk).log
    (position,) = append(log, b"one")
    log.close()
    log = open_log(disk).log
    with pytest.raises(CorruptLog) as caught:
        log.read(position._replace(length=10**7, offset=10))
    assert (caught.value.path, caught.value.offset) == (disk.path_of(FIRST), 10)


# Segments.


def test_a_full_segment_is_sealed_at_the_next_frame(disk: Disk, small_segments: int) -> None:
    log = open_log(disk).log
    for number in range(30):
        append(log, f"{number:>20}".encode())
    image = disk.image()
    sizes = [len(content) for content in image.values()]
    assert list(image) == [segment_name(number + 1) for number in range(len(image))]
    assert len(image) > 3
    frame_bytes = HEADER_BYTES + 20 + 4
    assert all(small_segments <= size < small_segments + frame_bytes for size in sizes[:-1])
    assert entries_in(disk.after_crash(EVERYTHING)) == [
        f"{number:>20}".encode() for number in range(30)
    ]


def test_a_frame_larger_than_a_segment_stands_in_one_piece(disk: Disk, small_segments: int) -> None:
    log = open_log(disk).log
    (position,) = append(log, bytes(10 * small_segments))
    append(log, b"next")
    assert log.position[0] == position.segment + 1
    assert entries_in(disk) == [bytes(10 * small_segments), b"next"]


def test_a_sealed_segment_needs_no_further_sync(disk: Disk, small_segments: int) -> None:
    log = open_log(disk).log
    while log.position[0] == 1:
        append(log, b"not synced", sync=False)
    left = entries_in(disk.after_crash(EVERYTHING))
    assert len(left) * (HEADER_BYTES + 14) + HEADER_BYTES >= small_segments


def test_a_full_segment_is_not_sealed_by_a_reopening(disk: Disk, small_segments: int) -> None:
    for _ in range(20):
        open_log(disk).log.close()
    image = disk.image()
    assert len(image) == 20 * HEADER_BYTES // small_segments + 1
    assert open_log(disk).log.epoch == 21


def test_space_is_reserved_in_steps(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SEGMENT_GROW_BYTES", 1_000)
    log = open_log(disk).log
    sizes = set()
    for _ in range(30):
        append(log, bytes(100))
        sizes.add(len(disk.image()[FIRST]))
    assert sizes == {1_000, 2_000, 3_000, 4_000, 5_000}


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_loss_at_any_moment_of_a_sealing_loses_nothing_synced(
    kind: Any, small_segments: int
) -> None:
    operation = 0
    while True:
        operation += 1
        disk = Disk()
        log = open_log(disk).log
        done: list[bytes] = []
        while log.position[1] < small_segments:
            done.append(b"entry %d" % len(done))
            append(log, done[-1])
        disk.power_fails_at(operation)
        try:
            append(log, b"in flight")
        except PowerLoss:
            for seed in range(10):
                after = disk.after_crash(Loss(kind, seed))
                found = entries_in(after)
                assert found in (done, [*done, b"in flight"])
                _goes_on(after, found)
        else:
            break
    assert operation > 6, "a sealing is several operations"


def _goes_on(disk: Disk, found: list[bytes]) -> None:
    log = open_log(disk).log
    append(log, b"after")
    assert entries_in(disk.after_crash(EVERYTHING)) == [*found, b"after"]


# Failures.

FAILING = ["write", "sync", "reserve"]
FAILING_AT_A_SEALING = ["truncate", "create", "sync_directory"]


def _assert_unusable(log: logs.Log, disk: Disk) -> None:
    image, operations = disk.image(), disk.operations
    for sync in (True, False):
        with pytest.raises(OSError, match="failed before"):
            append(log, b"later", sync=sync)
        with pytest.raises(OSError, match="failed before"):
            log.sync()
    log.close()
    assert (disk.image(), disk.operations) == (image, operations)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", FAILING)
def test_a_failed_operation_makes_the_log_unusable(
    disk: Disk, operation: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SEGMENT_GROW_BYTES", 100)
    log = open_log(disk).log
    append(log, b"one")
    disk.fail(operation, error=error)
    # What a full disk has refused is tried once more.
    disk.fail(operation, at=2, error=error)
    with pytest.raises(OSError) as caught:
        append(log, bytes(200))
    assert caught.value.errno == error
    _assert_unusable(log, disk)
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one"]


@pytest.mark.parametrize("operation", FAILING + FAILING_AT_A_SEALING)
def test_a_failed_operation_of_a_sealing_makes_the_log_unusable(
    disk: Disk, operation: str, small_segments: int
) -> None:
    log = open_log(disk).log
    done: list[bytes] = []
    while log.position[1] < small_segments:
        done.append(b"entry %d" % len(done))
        append(log, done[-1])
    disk.fail(operation)
    with pytest.raises(OSError, match=r"Input/output error"):
        append(log, b"in flight")
    _assert_unusable(log, disk)
    for seed in range(10):
        _goes_on(Disk.of(disk.image()), entries_in(disk))
        found = entries_in(disk.after_crash(Loss("holes", seed)))
        assert found in (done, [*done, b"in flight"])


def test_a_failed_sync_of_earlier_frames_makes_the_log_unusable(disk: Disk) -> None:
    log = open_log(disk).log
    append(log, b"one", sync=False)
    disk.fail("sync")
    with pytest.raises(OSError, match=r"Input/output error"):
        log.sync()
    _assert_unusable(log, disk)


@pytest.mark.parametrize("operation", ["create", "write", "sync", "sync_directory"])
def test_a_log_that_cannot_begin_its_epoch_does_not_open(disk: Disk, operation: str) -> None:
    disk.fail(operation)
    with pytest.raises(OSError, match=r"Input/output error"):
        open_log(disk)
    again = Disk.of(disk.image())
    assert open_log(again).entries == []


@pytest.mark.parametrize("after_bytes", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 5])
def test_a_short_write_leaves_no_part_of_its_frame(disk: Disk, after_bytes: int) -> None:
    log = open_log(disk).log
    append(log, b"one")
    for at in (1, 2):
        disk.fail("write", at=at, error=errno.ENOSPC, after_bytes=after_bytes)
    with pytest.raises(OSError, match=r"No space left"):
        append(log, b"in flight")
    log.abandon()
    opened = open_log(disk)
    assert opened.entries == [b"one"]
    assert opened.recovery.cut_bytes == after_bytes
    append(opened.log, b"two")
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one", b"two"]


@pytest.mark.parametrize("left", [EVERYTHING, NOTHING, Loss("prefix", 3), Loss("zeros", 1)])
def test_bytes_that_a_failed_sync_forgot_are_not_taken_for_synced(left: Loss) -> None:
    # The process ends at the failed sync, the next one finds the frame in the page cache, whole,
    # and goes on after it. A power loss then takes what the sync forgot, if nobody wrote it again.
    disk = Disk()
    log = open_log(disk).log
    append(log, b"one")
    disk.fail("sync", loss=left)
    with pytest.raises(OSError, match=r"Input/output error"):
        append(log, b"two")
    log.abandon()
    opened = open_log(disk)
    assert opened.entries == [b"one", b"two"]
    append(opened.log, b"three")
    assert entries_in(disk.after_crash(EVERYTHING)) == [b"one", b"two", b"three"]


# The local disk.


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def short(fd: int, data: bytes, offset: int) -> int:
        return write(fd, bytes(data)[:3], offset)

    monkeypatch.setattr(os, "pwrite", short)
    file = DiskFile(tmp_path / "file", create=True)
    file.pwrite(b"0123456789", 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"
    file.close()


def test_a_write_that_makes_no_progress_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = iter([4, 0])
    monkeypatch.setattr(os, "pwrite", lambda *_: next(results))
    file = DiskFile(tmp_path / "file", create=True)
    with pytest.raises(OSError, match="no progress"):
        file.pwrite(b"0123456789", 0)
    file.close()


def test_a_short_read_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, min(size, 3), at))
    file = DiskFile(tmp_path / "file", create=False)
    assert file.pread(8, 1) == b"12345678"
    assert file.pread(100, 5) == b"56789"
    assert file.pread(100, 10) == b""
    file.close()


def test_a_new_directory_is_entered_in_its_parent_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(host, "sync_directory", synced.append)
    files = DiskFiles(tmp_path / "shard-0")
    for _ in range(2):
        assert files.lock()
        files.unlock()
        assert synced == [tmp_path]


def test_a_directory_is_for_one_at_a_time(tmp_path: Path) -> None:
    first, second = DiskFiles(tmp_path / "d"), DiskFiles(tmp_path / "d")
    assert first.lock()
    assert not second.lock()
    first.unlock()
    first.unlock()
    assert second.lock()
    second.unlock()
