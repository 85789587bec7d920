"""Checkpoints of live stores: written on closing, used on opening; damage is met all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardflow as sf
from support.processes import eventually

FLOWS = 600
PAYLOAD = "x" * 10_000
"""Enough of them that closing writes a checkpoint."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a store was, with a checkpoint in it."""
    path = tmp_path / "data"
    with sf.open(path, shards=1) as store:
        flows = [{"id": f"f{number}", "payload": PAYLOAD} for number in range(FLOWS)]
        store.flow_create_many(flows, type="t")
        store.flow_create("last", type="t")
    (_,) = checkpoints(path)
    return path


def checkpoints(path: Path) -> list[Path]:
    return list((path / "shard-0").glob("*.checkpoint"))


def test_a_store_opens_by_its_checkpoint_and_without_it(path: Path) -> None:
    for _ in range(2):
        with sf.open(path) as store:
            assert sum(shard["flows"] for shard in store.stats()) == FLOWS + 1
            record = store.flow_get("f7", payload=True)
            assert record is not None and record.payload == PAYLOAD
        for checkpoint in checkpoints(path):
            checkpoint.unlink()


def test_damage_in_what_opening_has_skipped_is_as_final_as_any(path: Path) -> None:
    with (path / "shard-0" / "0000000001.log").open("r+b") as log:
        log.seek(2_000_000)
        log.write(b"y")
    with sf.open(path) as store:

        def is_given_up() -> bool:
            try:
                store.flow_get("last")
            except sf.CorruptLog:
                return True
            except sf.FlowError:
                pass
            return False

        eventually(is_given_up, "the shard is given up")
    assert checkpoints(path) == []
    with pytest.raises(sf.CorruptLog):
        sf.open(path)
