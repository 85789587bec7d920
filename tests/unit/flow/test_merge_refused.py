"""Merges that the disk refuses: the shard serves on, and what is left over does no harm."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from shardflow.flow.engine import upkeep
from shardflow.flow.limits import CHECKPOINT_LOG_BYTES
from shardflow.flow.log.parts import parts_in
from support.checkpoints import Shard, found_in, opened, small_slices
from support.disks import EVERYTHING, NOTHING, Disk, Loss


@pytest.fixture(autouse=True)
def _merges_only() -> Iterator[None]:
    with small_slices() as patch:
        patch.setattr(upkeep, "CHECKPOINT_LOG_BYTES", CHECKPOINT_LOG_BYTES)
        yield


@pytest.fixture
def shard() -> Shard:
    """Return a shard with several files, much of them dead."""
    shard = Shard()
    for number in range(6):
        shard.create(f"f{number}", f"kept{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    return shard


def waste(shard: Shard, names: str) -> None:
    """Let more die in files of their own."""
    for name in names:
        shard.create(name, payload=b"x" * 700)
    for name in names:
        shard.drop(name)


def merged_files(shard: Shard) -> set[str]:
    return {part.name for part in parts_in(shard.disk) if part.is_merged}


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_merged_file_that_cannot_be_made_does_not_end_the_shard(shard: Shard, error: int) -> None:
    created = shard.disk.operations
    shard.disk.fail_always("create", error)
    shard.run_upkeep()
    assert shard.disk.operations - created < 5, "it is not tried over and over"
    shard.put("kept0", b"y" * 50)
    shard.run_upkeep()
    assert shard.engine.upkeep.merges == 0
    shard.disk.forget_faults()
    shard.engine.log.look()
    waste(shard, "z")
    shard.run_upkeep()
    assert shard.engine.upkeep.merges
    shard.restart()


@pytest.mark.parametrize("loss", [NOTHING, EVERYTHING], ids=["end", "power"])
def test_a_merged_file_that_cannot_be_removed_is_before_the_next_is_made(
    shard: Shard, loss: Loss
) -> None:
    shard.disk.fail("write", at=2, error=errno.EROFS)
    shard.disk.fail_always("remove", errno.EROFS)
    shard.run_upkeep()
    (left,) = merged_files(shard)
    shard.engine.log.look()
    # A further merge of these would have a higher number, and recovery would take the lower.
    waste(shard, "z")
    shard.run_upkeep()
    assert merged_files(shard) == {left}
    assert shard.engine.upkeep.merges == 0
    shard.disk.forget_faults()
    shard.run_upkeep()
    assert left not in shard.disk.names()
    assert shard.engine.upkeep.merges
    shard.disk = shard.disk.after_crash(loss)
    shard.restart()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_sources_that_cannot_be_removed_are_removed_later(shard: Shard, at: int) -> None:
    for names in ("abcd", "efgh"):
        shard.disk.fail("remove", at=at, error=errno.EACCES)
        flows = found_in(shard.engine)["flows"].keys()
        # Whenever it ends, what is read back is the same.
        while shard.engine.upkeep.step():
            found = opened(Disk.of(shard.disk.image()))
            assert found_in(found)["flows"].keys() == flows
            assert found_in(found)["problems"] == []
            found.abandon()
        shard.run_upkeep()
        assert shard.engine.upkeep.merges
        parts = {part.number for part in parts_in(shard.disk)}
        assert parts == {*shard.engine.log.spans, shard.engine.log.position[0]}
        waste(shard, names)
    shard.restart()
