"""Which files are merged, however many there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardflow.flow import queries
from shardflow.flow.engine import choice
from shardflow.flow.engine.choice import Choice
from shardflow.flow.limits import (
    CHECKPOINT_FILES_MAX,
    CHECKPOINT_LOG_BYTES,
    MERGE_HASTE_BYTES,
    MERGE_SLACK_BYTES,
    SEGMENT_BYTES,
)
from shardflow.flow.log.dead import DeadBytes
from shardflow.flow.log.log import Log
from shardflow.flow.log.parts import Part, Span, segment_name
from shardflow.flow.log.start import Recovery
from shardflow.flow.memory import MemoryFiles
from support.checkpoints import Shard
from support.merging import small_files


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log(MemoryFiles(), Recovery())
    yield made
    made.abandon()


def add(log: Log, number: int, size: int) -> None:
    """Add a file of one frame to a log."""
    log.spans[number] = Span(Part(number, number, number), number, number, number, 1, size)


def test_small_files_are_merged_as_many_as_fit_into_one(log: Log) -> None:
    for number in range(1, 30):
        add(log, number, SEGMENT_BYTES // 10)
    chosen = Choice(log, DeadBytes()).sources(0)
    assert [span.part.number for span in chosen] == list(range(1, 11))


def test_merges_hurry_as_the_log_outgrows_what_it_holds(log: Log) -> None:
    dead = DeadBytes()
    looked = Choice(log, dead)
    assert looked.haste() == 0.0
    # Half dead, which is as it should be; then ever more of it.
    for number in range(1, 9):
        add(log, number, SEGMENT_BYTES)
        if number % 2:
            dead.add_bytes(number, SEGMENT_BYTES)
    assert looked.haste() == 0.0
    found = []
    for number in range(9, 9 + (MERGE_SLACK_BYTES + MERGE_HASTE_BYTES) // SEGMENT_BYTES):
        add(log, number, SEGMENT_BYTES)
        dead.add_bytes(number, SEGMENT_BYTES)
        found.append(looked.haste())
    assert found == sorted(found)
    assert found[0] < 0.01 and found[-1] > 0.99


def test_looking_at_many_files_takes_no_longer_for_each(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    ratio = choice.ratio

    def counted(dead_bytes: int, span: Span) -> float:
        nonlocal count
        count += 1
        return ratio(dead_bytes, span)

    monkeypatch.setattr(choice, "ratio", counted)
    monkeypatch.setattr(choice, "MERGE_FILES_MIN", 10**6)
    for number in range(1, 1_000):
        add(log, number, SEGMENT_BYTES // 2_000)
    assert Choice(log, DeadBytes()).sources(0) == []
    assert count < 5 * 1_000


def test_a_backup_seals_no_empty_segment() -> None:
    """A later start would have no place for it in the log, and pass over its checkpoint."""
    with small_files():
        shard = Shard()
        shard.create("a", payload=b"x" * 700)
        shard.ask(queries.Stats(check=False))
        assert shard.engine.log.position == (2, 0)
        names = shard.engine.seal()
        assert names == [segment_name(1)]
        for number in range(2):
            shard.create(f"b{number}")
            shard.engine.upkeep.checkpoint()
            shard.restart()
            assert shard.engine.restored.notes == []
            assert shard.engine.restored.checkpoint is not None


def test_frequent_backups_of_a_quiet_store_leave_few_files() -> None:
    shard = Shard()
    shard.engine.upkeep.checkpoint()
    for number in range(2 * CHECKPOINT_FILES_MAX):
        shard.create(str(number))
        assert shard.engine.seal()
        shard.run_upkeep()
    assert shard.engine.log.bytes_written < CHECKPOINT_LOG_BYTES
    told = shard.engine.statistics(check=False)
    assert told["files"] <= CHECKPOINT_FILES_MAX + 2
    assert told["checkpoints"] <= 4
    shard.restart()
