"""Cold flows that a checkpoint brings back: verified afterwards, made anew if they are damaged."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import pytest

from shardflow.flow import commands, queries
from shardflow.flow.beside import DiskFolder
from shardflow.flow.cold import environment, rollback, store
from shardflow.flow.cold.environment import ColdDamaged, Environment
from shardflow.flow.cold.verify import verify
from shardflow.flow.engine.engine import Engine
from shardflow.flow.engine.merge import Merge
from shardflow.flow.replies import Done, Events
from shardflow.flow.settings import Settings
from support.colds import AtOnce
from support.disks import Disk
from support.engines import Counting, history_of

COUNT = 120
NOW_MS = 1_000


def opened(disk: Disk, folder: Path) -> Engine:
    return Engine(disk, Counting(), Settings(cold_flows_min=0), folder=DiskFolder(folder))


def ask(engine: Engine, request: object) -> Done:
    (answer,) = engine.step([request], NOW_MS, NOW_MS)  # type: ignore[list-item]
    assert isinstance(answer.reply, Done)
    return answer.reply


def run_upkeep(engine: Engine) -> None:
    while engine.upkeep.step():
        pass


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def folder(disk: Disk, tmp_path: Path) -> Path:
    """Return where the cold flows of a closed engine are."""
    engine = opened(disk, tmp_path)
    new = [
        commands.NewFlow(f"f{number}", None, "t", "queued", payload=b"x", correlation_id="c")
        for number in range(COUNT)
    ]
    ask(engine, commands.Create(new))
    endings = [commands.Ending(f"f{n}", None, None, None, force=True) for n in range(COUNT)]
    ask(engine, commands.Cancel(endings))
    run_upkeep(engine)
    engine.upkeep.checkpoint()
    engine.close()
    return tmp_path


def check(engine: Engine) -> None:
    page = ask(engine, queries.List("t", None, None, None, 1_000, None, False, True))
    assert len(page.outcomes) == COUNT
    assert engine.statistics(check=True)["problems"] == []


def test_they_are_there_again_and_verified(disk: Disk, folder: Path) -> None:
    engine = opened(disk, folder)
    assert engine.restored.checkpoint is not None
    assert engine.cold is not None and engine.cold.rows == COUNT
    assert len(engine.state.table) == 0
    assert engine.upkeep.is_needed
    run_upkeep(engine)
    assert not engine.upkeep.is_needed
    check(engine)
    engine.abandon()


@pytest.mark.parametrize("name", ["ids", "lists", "expiry", "rows", "values"])
def test_what_is_damaged_is_found_and_made_anew(disk: Disk, folder: Path, name: str) -> None:
    with lmdb.open(str(folder), max_dbs=20, lock=False) as env:
        database = env.open_db(name.encode(), create=False)
        with env.begin(write=True, db=database) as txn:
            cursor = txn.cursor()
            assert cursor.first()
            for _ in range(70):
                assert cursor.next()
            key, data = bytes(cursor.key()), bytearray(cursor.value())
            txn.delete(key)
            if data:
                data[-1] ^= 1
                txn.put(key, bytes(data))
            else:
                txn.put(bytes([key[0] ^ 1]) + key[1:], b"")
    engine = opened(disk, folder)
    assert engine.cold is not None and engine.cold.rows == COUNT
    with pytest.raises(ColdDamaged):
        run_upkeep(engine)
    engine.abandon()
    again = opened(disk, folder)
    assert again.cold is not None and again.cold.rows == 0
    assert len(again.state.table) == COUNT
    run_upkeep(again)
    assert again.cold.rows == COUNT
    check(again)
    again.abandon()


def test_a_value_that_is_nowhere_is_damage(disk: Disk, folder: Path) -> None:
    with lmdb.open(str(folder), max_dbs=20, lock=False) as env:
        database = env.open_db(b"values", create=False)
        with env.begin(write=True, db=database) as txn:
            cursor = txn.cursor()
            assert cursor.first() and cursor.delete()
    engine = opened(disk, folder)
    with pytest.raises(ColdDamaged, match="value"):
        run_upkeep(engine)
    engine.abandon()


def test_a_flow_whose_value_is_nowhere_stays_in_memory(disk: Disk, folder: Path) -> None:
    engine = opened(disk, folder)
    flows = [commands.NewFlow(name, None, "t", "queued", payload=b"x") for name in ("n", "o")]
    ask(engine, commands.Create(flows))
    slot = engine.state.table.get(None, "n")
    assert slot is not None
    engine.values.drop([slot.held.payload_number])
    ask(engine, commands.Cancel([commands.Ending(n, None, None, None, force=True) for n in "no"]))
    run_upkeep(engine)
    assert engine.state.table.get(None, "n") is not None
    assert engine.cold is not None and engine.cold.rows == COUNT + 1
    assert list(verify(engine.cold))
    engine.abandon()


def test_without_them_their_checkpoint_is_of_no_use(disk: Disk, folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    engine = opened(disk, folder)
    assert engine.restored.checkpoint is None
    assert len(engine.state.table) == COUNT
    check(engine)
    engine.abandon()


@pytest.mark.parametrize("changes_again", [False, True])
def test_what_came_back_from_cold_is_in_the_next_checkpoint(
    disk: Disk, folder: Path, changes_again: bool
) -> None:
    engine = opened(disk, folder)
    engine.step([commands.ValuePut("f3", None, "x", b"1", True)], NOW_MS, NOW_MS)
    engine.upkeep.want_checkpoint()
    engine.upkeep.step()
    if changes_again:
        engine.step([commands.ValuePut("f3", None, "x", b"2", True)], NOW_MS, NOW_MS)
    engine.upkeep.step()
    while engine.upkeep._job is not None:
        engine.upkeep.step()
    assert engine.upkeep.checkpoints == 1
    engine.abandon()
    again = opened(disk, folder)
    assert again.restored.checkpoint is not None and again.restored.notes == []
    (answer,) = again.step([history_of("f3", None)], NOW_MS, NOW_MS)
    assert isinstance(answer.reply, Events) and answer.reply.events is not None
    names = [event.name for event in answer.reply.events]
    assert names == ["created", "cancelled", *["value_put"] * (1 + changes_again)]
    check(again)
    again.abandon()


def test_a_checkpoint_that_is_cut_short_anywhere_costs_none_before_it(
    disk: Disk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "Background", AtOnce)
    engine = opened(disk, folder)
    is_done = False
    for slices in range(40):
        name = f"f{2 * slices}"
        engine.step([commands.ValuePut(name, None, "x", b"1", True)], NOW_MS, NOW_MS)
        run_upkeep(engine)
        assert engine.cold is not None and engine.cold.rows == COUNT
        engine.upkeep.want_checkpoint()
        for _ in range(slices):
            engine.upkeep.step()
        is_done = is_done or engine.upkeep.checkpoints > 0
        other = f"f{2 * slices + 1}"
        engine.step([commands.ValuePut(other, None, "x", b"1", True)], NOW_MS, NOW_MS)
        engine.cold.flush()
        engine.abandon()
        engine = opened(disk, folder)
        assert engine.restored.checkpoint is not None
        assert engine.restored.notes == [], f"after {slices} slices"
        check(engine)
    assert is_done
    engine.abandon()


@pytest.mark.parametrize("times", [1, 3])
def test_coming_back_to_a_state_may_be_cut_short(
    disk: Disk, folder: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "COLD_UNDO_ROWS", 7)
    engine = opened(disk, folder)
    for number in range(50):
        engine.step([commands.ValuePut(f"f{number}", None, "x", b"1", True)], NOW_MS, NOW_MS)
    run_upkeep(engine)
    engine.upkeep.want_checkpoint()
    engine.upkeep.step()
    engine.abandon()
    write = Environment.write
    for writes in range(0, 14 * times, times):
        left = iter(range(writes))

        def end(env: Environment, work: Any, left: Any = left) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return write(env, work)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Environment, "write", end)
            opened(disk, folder).abandon()
    engine = opened(disk, folder)
    assert engine.restored.checkpoint is not None and engine.restored.notes == []
    check(engine)
    engine.abandon()


def test_a_flow_that_spends_a_value_again_comes_back_as_it_was(disk: Disk, folder: Path) -> None:
    engine = opened(disk, folder)
    for data in (b"1", b"2", b"3"):
        engine.step([commands.ValuePut("f3", None, "x", data, True)], NOW_MS, NOW_MS)
        if data == b"2":
            run_upkeep(engine)
            engine.upkeep.checkpoint()
    assert engine.cold is not None
    engine.cold.flush()
    engine.abandon()
    again = opened(disk, folder)
    assert again.restored.checkpoint is not None and again.restored.notes == []
    check(again)
    again.abandon()


def test_on_a_full_disk_nothing_becomes_cold_and_nothing_is_deleted(
    disk: Disk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "COLD_BATCH_FLOWS", 1)
    engine = opened(disk, folder)
    assert engine.cold is not None
    engine.cold.flush()
    engine.log.space.fill(errno.ENOSPC)
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "write", None)
        for number in range(5):
            put = commands.ValuePut(f"f{number}", None, "x", b"1", True)
            engine.step([put], NOW_MS, NOW_MS)
        run_upkeep(engine)
    assert engine.cold.rows == COUNT - 5
    engine.log.look()
    assert not engine.log.space.is_full
    run_upkeep(engine)
    assert engine.cold.rows == COUNT
    check(engine)
    engine.abandon()


def test_a_start_keeps_none_of_them_in_memory(
    disk: Disk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "COLD_BATCH_FLOWS", 10)
    engine = opened(disk, folder)
    engine.log.rotate()
    ask(engine, commands.Create([commands.NewFlow("new", None, "u", "queued")]))
    engine.upkeep.checkpoint()
    for number in range(COUNT // 2):
        put = commands.ValuePut(f"f{number}", None, "x", b"1", True)
        engine.step([put], NOW_MS, NOW_MS)
    spans = [span for span in engine.log.spans.values() if span.part.last == 1]
    merge = Merge(engine.log, engine.state, engine.values, spans, engine.cold)
    while not merge.is_done:
        merge.step()
    engine.abandon()
    again = opened(disk, folder)
    assert again.restored.checkpoint is not None and again.restored.notes == []
    assert again.cold is not None and again.cold.rows == COUNT // 2
    assert not again.cold._slots and len(again.cold._gone) < 10
    check(again)
    again.abandon()
