"""Recovery: whole frames come back, a torn tail is cut, damage is refused and left alone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.flow.errors import CorruptLog
from shardflow.flow.log import log as logs
from shardflow.flow.log.frame import HEADER_BYTES, seal
from shardflow.flow.log.parts import segment_name
from support.disks import EVERYTHING, KINDS, NOTHING, Disk, Loss
from support.logs import append, entries_in, open_log, read_log

FIRST = segment_name(1)


@pytest.fixture(autouse=True, scope="module")
def _small_reservations() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_GROW_BYTES", 100)
        yield


BATCHES = [[b"a", b"bb"], [b"ccc"], [], [b"d" * 30, b"", b"e"], [b"SFL1" * 4], [b"f"]]


def a_log(batches: list[list[bytes]] = BATCHES, *, reserved: int = 0) -> dict[str, bytes]:
    """Return the one segment of a log: the epoch's frame, then one frame per batch."""
    disk = Disk()
    log = open_log(disk).log
    for batch in batches:
        append(log, *batch)
    log.close()
    (content,) = disk.image().values()
    return {FIRST: content + bytes(reserved)}


def frame_ends(batches: list[list[bytes]] = BATCHES) -> list[int]:
    """Return where the frames of `a_log` end, the epoch's first."""
    sizes = [HEADER_BYTES]
    for batch in batches:
        sizes.append(HEADER_BYTES + sum(map(len, batch)) + 4 * len(batch))
    return list(accumulate(sizes))


def entries_before(end: int) -> list[bytes]:
    """Return the entries of the frames of `a_log` that end at or before a byte."""
    whole = sum(1 for at in frame_ends()[1:] if at <= end)
    return [entry for batch in BATCHES[:whole] for entry in batch]


def flipped(image: dict[str, bytes], name: str, at: int, bit: int) -> Disk:
    disk = Disk.of(image)
    disk.flip(name, at, bit)
    return disk


def assert_corrupt(disk: Disk, name: str, offset: int) -> CorruptLog:
    """Check that the log is refused, naming the place, and that the disk stays as it was."""
    image, operations = disk.image(), disk.operations
    with pytest.raises(CorruptLog) as caught:
        read_log(disk)
    assert (caught.value.path, caught.value.offset) == (disk.path_of(name), offset)
    assert disk.path_of(name) in str(caught.value)
    assert (disk.image(), disk.operations) == (image, operations)
    assert disk.open_handles == 0
    return caught.value


# What is whole comes back.


def test_an_empty_directory_is_an_empty_log() -> None:
    disk = Disk()
    entries, recovery = read_log(disk)
    assert entries == []
    assert (recovery.segment, recovery.offset, recovery.lsn, recovery.epoch) == (1, 0, 0, 0)
    assert disk.operations == 0


@given(batches=st.lists(st.lists(st.binary(max_size=30), max_size=5), max_size=8))
def test_every_entry_comes_back_in_order(batches: list[list[bytes]]) -> None:
    disk = Disk.of(a_log(batches))
    entries, recovery = read_log(disk)
    assert entries == [entry for batch in batches for entry in batch]
    assert (recovery.lsn, recovery.epoch) == (len(batches) + 1, 1)
    assert recovery.offset == frame_ends(batches)[-1]


def test_files_of_other_names_are_left_alone() -> None:
    others = {name: b"SFL1" for name in ("LOCK", "1.log", "0000000002.log.tmp", "00000000002.log")}
    disk = Disk.of(a_log() | others)
    assert read_log(disk)[0] == entries_before(10**6)
    assert disk.image() == a_log() | others


def test_recovering_twice_changes_nothing_more() -> None:
    disk = Disk.of({FIRST: a_log()[FIRST][:-6] + bytes(50)})
    first = read_log(disk)
    image = disk.image()
    second = read_log(disk)
    assert second[0] == first[0]
    assert disk.image() == image
    assert first[1].cut_bytes > 0
    assert second[1].cut_bytes == 0


def test_reserved_space_is_not_a_torn_tail() -> None:
    disk = Disk.of(a_log(reserved=5_000))
    entries, recovery = read_log(disk)
    assert entries == entries_before(10**6)
    assert recovery.cut_bytes == 0
    assert disk.image() == a_log()


# A torn tail is cut.


@pytest.mark.parametrize("reserved", [0, 100], ids=["bare", "with reserved space"])
def test_a_log_cut_at_any_byte_has_the_frames_before_it(reserved: int) -> None:
    image = a_log()
    size = len(image[FIRST])
    for at in range(size + 1):
        disk = Disk.of({FIRST: image[FIRST][:at] + bytes(reserved)})
        entries, recovery = read_log(disk)
        wanted = entries_before(at)
        if reserved and entries != wanted:
            # The bytes that are missing are zeros, which the reserved space stands in for.
            assert (
                image[FIRST][:at].ljust(recovery.offset, b"\0") == image[FIRST][: recovery.offset]
            )
            continue
        assert entries == wanted, at
        whole = max([0, *(end for end in frame_ends() if end <= at)])
        assert len(disk.image()[FIRST]) == recovery.offset == whole
        assert recovery.cut_bytes == len(image[FIRST][whole:at].rstrip(b"\0"))
        _goes_on(disk, wanted)


def _goes_on(disk: Disk, wanted: list[bytes]) -> None:
    """Check that a cut log takes appends, and that they and it survive the next power loss."""
    opened = open_log(disk)
    assert opened.entries == wanted
    append(opened.log, b"after", b"the cut")
    found = [*wanted, b"after", b"the cut"]
    assert entries_in(disk) == found
    after = disk.after_crash(EVERYTHING)
    assert open_log(after).entries == found
    assert open_log(after).entries == found


def test_a_flip_in_the_last_frame_cuts_it() -> None:
    # Nothing tells such a flip from a write that the power cut short: this is the documented
    # limit of what the log can know.
    image = a_log()
    *_, start, end = frame_ends()
    for at in range(start, end):
        disk = flipped(image, FIRST, at, at % 8)
        entries, recovery = read_log(disk)
        assert entries == entries_before(start), at
        assert recovery.offset == start
        _goes_on(disk, entries_before(start))


def test_after_the_next_opening_no_flip_in_an_older_frame_is_taken_for_a_torn_tail() -> None:
    disk = Disk.of(a_log())
    open_log(disk).log.close()
    image = disk.image()
    *_, start, end = frame_ends()
    for at in range(start, end):
        assert_corrupt(flipped(image, FIRST, at, at % 8), FIRST, start)


def test_a_cut_is_on_disk_before_anything_is_appended() -> None:
    # Or what was cut could come back behind the new frames.
    image = {FIRST: a_log()[FIRST] + b"torn" * 20}
    disk = Disk.of(image)
    read_log(disk)
    assert disk.is_synced
    assert disk.after_crash(EVERYTHING).image() == a_log()


# Damage is refused.


def test_a_flip_of_any_byte_that_a_later_frame_vouches_for_is_refused() -> None:
    image = a_log()
    starts = [0, *frame_ends()]
    for start, end in pairwise(starts[:-1]):
        for at in range(start, end):
            assert_corrupt(flipped(image, FIRST, at, at % 8), FIRST, start)


@given(data=st.data())
def test_any_damage_before_the_last_frame_is_refused(data: st.DataObject) -> None:
    image = a_log()
    starts = [0, *frame_ends()]
    at = data.draw(st.integers(0, starts[-2] - 1))
    junk = data.draw(st.binary(min_size=1, max_size=min(60, starts[-2] - at)))
    damaged = image[FIRST][:at] + junk + image[FIRST][at + len(junk) :]
    if damaged == image[FIRST]:
        return
    first_damaged = next(n for n, byte in enumerate(damaged) if byte != image[FIRST][n])
    start = max(start for start in starts if start <= first_damaged)
    assert_corrupt(Disk.of({FIRST: damaged}), FIRST, start)


def test_a_frame_that_is_missing_in_the_middle_is_refused() -> None:
    content = a_log()[FIRST]
    starts = [0, *frame_ends()]
    for start, end in pairwise(starts[:-1]):
        assert_corrupt(Disk.of({FIRST: content[:start] + content[end:]}), FIRST, start)


def test_a_frame_that_stands_there_twice_is_refused() -> None:
    content = a_log()[FIRST]
    starts = [0, *frame_ends()]
    for start, end in pairwise(starts):
        twice = content[:end] + content[start:end] + content[end:]
        assert_corrupt(Disk.of({FIRST: twice}), FIRST, end)


def test_an_older_epoch_after_a_newer_one_is_refused() -> None:
    frame = bytearray(HEADER_BYTES)
    seal(frame, [], lsn=1, synced_lsn=0, epoch=2)
    older = bytearray(HEADER_BYTES)
    seal(older, [], lsn=2, synced_lsn=1, epoch=1)
    assert_corrupt(Disk.of({FIRST: bytes(frame + older)}), FIRST, HEADER_BYTES)


@pytest.mark.parametrize("content", [b"x" * 100, b"\0" * 50 + b"x", b"SFL1" + b"\2" * 400])
def test_a_log_in_which_no_frame_is_whole_is_refused(content: bytes) -> None:
    assert_corrupt(Disk.of({FIRST: content}), FIRST, 0)


def test_a_damaged_log_does_not_open() -> None:
    disk = flipped(a_log(), FIRST, 10, 0)
    with pytest.raises(CorruptLog):
        open_log(disk)
    with pytest.raises(CorruptLog):
        open_log(disk)


# Segments.


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A log of several segments."""
    monkeypatch.setattr(logs, "SEGMENT_BYTES", 300)
    disk = Disk()
    log = open_log(disk).log
    for number in range(40):
        append(log, b"entry %d" % number)
    log.close()
    image = disk.image()
    assert len(image) > 4
    return image


def without(image: dict[str, bytes], *names: str) -> Disk:
    return Disk.of({name: content for name, content in image.items() if name not in names})


def test_a_missing_segment_is_refused(segments: dict[str, bytes]) -> None:
    names = list(segments)
    for name in names[1:-1]:
        assert_corrupt(without(segments, name), name, 0)
    assert_corrupt(without(segments, *names[1:3]), names[1], 0)


def test_a_missing_first_segment_is_refused(segments: dict[str, bytes]) -> None:
    names = list(segments)
    for count in range(1, len(names)):
        assert_corrupt(without(segments, *names[:count]), names[count], 0)


def test_an_empty_segment_between_others_is_refused(segments: dict[str, bytes]) -> None:
    names = list(segments)
    for name in names[:-1]:
        assert_corrupt(Disk.of(segments | {name: b""}), name, 0)
        assert_corrupt(Disk.of(segments | {name: bytes(500)}), name, 0)


def test_a_sealed_segment_cut_at_any_byte_is_refused(segments: dict[str, bytes]) -> None:
    name = list(segments)[1]
    content = segments[name]
    ends = [end for end in range(len(content)) if content[end : end + 4] == b"SFL1"]
    for at in range(1, len(content)):
        disk = Disk.of(segments | {name: content[:at]})
        assert_corrupt(disk, name, max(end for end in ends if end <= at))


def test_a_flip_of_any_byte_of_a_sealed_segment_is_refused(segments: dict[str, bytes]) -> None:
    for name in list(segments)[:-1:2]:
        for at in range(0, len(segments[name]), 3):
            starts = [n for n in range(at + 1) if segments[name][n : n + 4] == b"SFL1"]
            assert_corrupt(flipped(segments, name, at, at % 8), name, starts[-1])


def test_swapped_segments_are_refused(segments: dict[str, bytes]) -> None:
    names = list(segments)
    swapped = segments | {names[1]: segments[names[2]], names[2]: segments[names[1]]}
    with pytest.raises(CorruptLog):
        read_log(Disk.of(swapped))


def test_a_new_segment_without_a_whole_frame_goes_with_the_torn_tail(
    segments: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_name = segment_name(len(segments) + 1)
    wanted = [b"entry %d" % number for number in range(40)]
    for content in (b"", bytes(100), b"SFL1 and not much of a frame"):
        disk = Disk.of(segments | {next_name: content})
        assert read_log(disk)[0] == wanted
        assert disk.image() == segments
        assert disk.is_synced
        _goes_on(disk, wanted)


# Several frames may be torn when they were not synced one by one.


def relaxed(count: int = 8) -> tuple[Disk, list[bytes]]:
    """Return a disk with `count` synced frames and as many that are not."""
    disk = Disk()
    log = open_log(disk).log
    entries = [b"entry %d" % number for number in range(2 * count)]
    for number, entry in enumerate(entries):
        append(log, entry, sync=number < count)
    return disk, entries


def test_unsynced_frames_with_a_hole_are_cut_at_the_hole() -> None:
    disk, entries = relaxed()
    image = disk.image()
    starts = [n for n in range(len(image[FIRST])) if image[FIRST][n : n + 4] == b"SFL1"]
    for number in range(8, 16):
        hole = starts[number + 1] + 5  # the first frame is the epoch's
        damaged = image[FIRST][:hole] + bytes(20) + image[FIRST][hole + 20 :]
        after = Disk.of({FIRST: damaged})
        assert read_log(after)[0] == entries[:number]
        _goes_on(after, entries[:number])


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_unsynced_frames_are_lost_from_some_point_on_and_synced_ones_never(
    kind: str, seed: int
) -> None:
    disk, entries = relaxed()
    after = disk.after_crash(Loss(kind, seed))  # type: ignore[arg-type]  # one of KINDS
    found = entries_in(after)
    assert 8 <= len(found) <= 16
    assert found == entries[: len(found)]
    _goes_on(after, found)


def test_a_frame_that_was_lost_is_not_vouched_for_by_those_lost_with_it() -> None:
    disk, entries = relaxed()
    content = disk.image()[FIRST]
    start = content.index(b"entry 9")
    after = Disk.of({FIRST: content[:start] + bytes(7) + content[start + 7 :]})
    assert entries_in(after) == entries[:9]


# A recovery that fails.


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda disk: disk.fail("truncate"), id="truncate"),
        pytest.param(lambda disk: disk.fail("sync"), id="sync"),
        pytest.param(lambda disk: disk.fail("open"), id="open"),
        pytest.param(lambda disk: disk.fail("sync_directory"), id="sync_directory"),
        pytest.param(lambda disk: disk.fail("write", error=errno.ENOSPC), id="write"),
    ],
)
def test_a_recovery_that_fails_may_be_repeated(break_it: Callable[[Disk], None]) -> None:
    disk = Disk.of({FIRST: a_log()[FIRST] + b"torn"})
    break_it(disk)
    with pytest.raises(OSError):
        read_log(disk)
    assert disk.open_handles == 0
    for loss in (NOTHING, EVERYTHING):
        assert entries_in(Disk.of(disk.image()).after_crash(loss)) == entries_before(10**6)
    _goes_on(disk, entries_before(10**6))
