"""The file format of checkpoints and hints: what is not whole, or not ours, is of no use."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shardflow.flow.log import shortcut
from shardflow.flow.log.parts import Part, parts_in
from shardflow.flow.log.shortcut import (
    End,
    Facts,
    FileSpan,
    Flows,
    Header,
    Places,
    ShortcutWriter,
    check,
    checkpoint_name,
    checkpoints_in,
    content_of,
    hint_name,
    remove_shortcuts,
)
from shardflow.flow.log.start import UnusableError
from support.disks import EVERYTHING, Disk

NAME = checkpoint_name(7)
HEADER = Header("checkpoint", 3, [FileSpan(1, 1, 1, 1, 5, 5, 1, 600)], 2, 44, 7, 1, 6)
BLOCKS: list[Facts | Flows | Places] = [
    Facts([b"one", b"two"]),
    Flows([b"record"], [b"trail"], [(0, 1, 256)]),
    Places(bytes(8), bytes(8), bytes(4)),
    Flows([b"another"], [b""], []),
]


def written(disk: Disk, name: str = NAME, header: Header = HEADER) -> None:
    writer = ShortcutWriter(disk, name)
    writer.add(header)
    for block in BLOCKS:
        writer.add(block)
    writer.finish(End(0, 2, 1, 9, 1, [(1, 100)]))


@pytest.fixture
def disk() -> Disk:
    disk = Disk()
    written(disk)
    return disk


def test_it_reads_back_as_it_was_written(disk: Disk) -> None:
    found = check(disk, NAME, 3, "checkpoint")
    assert found.header == HEADER
    assert found.end == End(5, 2, 1, 9, 1, [(1, 100)])
    assert found.size == len(disk.image()[NAME])
    assert list(content_of(disk, found, Facts, Flows, Places)) == BLOCKS
    assert list(content_of(disk, found, Flows)) == BLOCKS[1::2]
    assert found.start.spans[1].part == Part(1, 1, 1)
    assert disk.open_handles == 0


def test_a_flip_of_any_bit_is_noticed(disk: Disk) -> None:
    image = disk.image()
    for at in range(len(image[NAME])):
        for bit in range(8):
            flipped = Disk.of(image)
            flipped.flip(NAME, at, bit)
            with pytest.raises(UnusableError):
                check(flipped, NAME, 3, "checkpoint")
            assert flipped.open_handles == 0


def test_a_missing_end_is_noticed_wherever_it_is_cut(disk: Disk) -> None:
    content = disk.image()[NAME]
    for size in range(len(content)):
        with pytest.raises(UnusableError):
            check(Disk.of({NAME: content[:size]}), NAME, 3, "checkpoint")


def test_a_block_that_is_missing_or_at_another_place_is_noticed(disk: Disk) -> None:
    content = disk.image()[NAME]
    ends = [8]
    while ends[-1] < len(content):
        at = ends[-1]
        ends.append(at + 8 + int.from_bytes(content[at : at + 4], "little"))
    blocks = [content[a:b] for a, b in pairwise(ends)]
    assert len(blocks) == 6
    for n in range(len(blocks)):
        fewer = blocks[:n] + blocks[n + 1 :]
        swapped = [*blocks[:n], *reversed(blocks[n : n + 2]), *blocks[n + 2 :]]
        for changed in (fewer, swapped) if n < 5 else (fewer,):
            with pytest.raises(UnusableError):
                check(Disk.of({NAME: content[:8] + b"".join(changed)}), NAME, 3, "checkpoint")


def test_one_of_another_shard_or_kind_or_version_is_of_no_use(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard, kind in ((2, "checkpoint"), (3, "hint")):
        with pytest.raises(UnusableError):
            check(disk, NAME, shard, kind)
    monkeypatch.setattr(shortcut, "VERSION", 2)
    with pytest.raises(UnusableError, match="format"):
        check(disk, NAME, 3, "checkpoint")


def test_one_that_cannot_be_opened_is_of_no_use(disk: Disk) -> None:
    disk.fail("open")
    with pytest.raises(UnusableError, match="cannot be read"):
        check(disk, NAME, 3, "checkpoint")


def test_it_has_its_name_only_once_it_is_on_disk() -> None:
    operations = Disk()
    written(operations)
    for at in range(1, operations.operations + 1):
        disk = Disk()
        disk.power_fails_at(at)
        with pytest.raises(BaseException):  # noqa: B017  # the power is off, at any point
            written(disk)
            disk.check_power()
        left = disk.after_crash(EVERYTHING)
        if NAME in left.names():
            check(left, NAME, 3, "checkpoint")


def test_syncs_come_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "SHORTCUT_SYNC_BYTES", 100)
    disk = Disk()
    writer = ShortcutWriter(disk, NAME)
    synced = 0
    for _ in range(50):
        writer.add(Facts([bytes(30)]))
        node = disk._nodes[NAME + ".new"]
        assert len(node.content) - len(node.durable) < 150
        synced += not node.pending
    assert synced > 10


def test_giving_one_up_leaves_nothing(disk: Disk) -> None:
    writer = ShortcutWriter(disk, checkpoint_name(8))
    writer.add(HEADER)
    writer.abandon()
    assert disk.names() == [NAME]
    assert disk.open_handles == 0


def test_shortcuts_are_told_from_other_files() -> None:
    part = Part(2, 5, 8)
    assert hint_name(part) == "0000000002-0000000005-0000000008.hint"
    others = {"LOCK": b"", part.name: b"", "7.checkpoint": b"", "notes.hint": b""}
    mine = {name: b"" for name in (NAME, checkpoint_name(12), hint_name(part), NAME + ".new")}
    disk = Disk.of(others | mine)
    assert checkpoints_in(disk) == [checkpoint_name(12), NAME]
    assert parts_in(disk) == [part]
    assert remove_shortcuts(disk, {NAME}) == 3
    assert set(disk.names()) == {*others, NAME}
    assert disk.is_synced
