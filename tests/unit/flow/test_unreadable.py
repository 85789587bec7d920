"""A place of the log that the disk cannot read any more: told as damage, whoever meets it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardflow.flow import queries
from shardflow.flow.errors import CorruptLog
from shardflow.flow.host import DiskFiles
from shardflow.flow.log.parts import segment_name
from support.checkpoints import Shard, opened, shortcuts_on, small_slices

SIZE = 8_000
"""Of a value: too large to be kept in memory."""


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_slices():
        yield


@pytest.fixture
def shard() -> Shard:
    """Return a shard with a checkpoint that spares its start the first file."""
    shard = Shard()
    shard.create("a", "b", payload=b"x" * SIZE)
    shard.create("c")
    shard.engine.upkeep.checkpoint()
    assert shortcuts_on(shard.disk)
    return shard


def wear_out(shard: Shard) -> int:
    """Let the place of a value be unreadable, and return where it is."""
    number = shard.record("a").payload_number
    assert number is not None
    place = shard.engine.values.place(number)
    assert place is not None and place.segment == 1
    shard.disk.wear_out(segment_name(1), place.offset + SIZE // 2)
    return place.offset


def assert_given_up(shard: Shard, caught: pytest.ExceptionInfo[CorruptLog], at: range) -> None:
    assert "cannot be read" in str(caught.value)
    assert caught.value.path == f"disk:{segment_name(1)}"
    assert caught.value.offset in at
    # Else a start would pass over the place, and meet it again, and so on for ever.
    assert shortcuts_on(shard.disk) == []
    shard.engine.abandon()
    with pytest.raises(OSError) as unread:
        opened(shard.disk)
    assert unread.value.errno == errno.EIO


def test_a_value_that_cannot_be_read(shard: Shard) -> None:
    offset = wear_out(shard)
    number = shard.record("a").payload_number
    assert number is not None
    with pytest.raises(CorruptLog) as caught:
        shard.ask(queries.ValueGet([number], 10**6))
    assert_given_up(shard, caught, range(offset, offset + 1))


def test_a_file_that_is_verified_cannot_be_read(shard: Shard) -> None:
    offset = wear_out(shard)
    shard.engine.abandon()
    shard.engine = opened(shard.disk)
    assert shard.engine.restored.checkpoint is not None
    with pytest.raises(CorruptLog) as caught:
        shard.run_upkeep()
    assert_given_up(shard, caught, range(offset + SIZE))


def test_a_source_of_a_merge_cannot_be_read(shard: Shard) -> None:
    offset = wear_out(shard)
    shard.drop("b")
    with pytest.raises(CorruptLog) as caught:
        shard.run_upkeep()
    assert_given_up(shard, caught, range(offset + SIZE))


def test_an_error_of_reading_names_the_file(tmp_path: Path) -> None:
    file = DiskFiles(tmp_path).open("x", create=True)
    file.close()
    with pytest.raises(OSError) as caught:
        file.pread(1, 0)
    assert caught.value.filename == str(tmp_path / "x")
