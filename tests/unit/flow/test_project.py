"""Projecting as the upkeep does it: which flows, in which order, and when the disk has no room."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardflow.flow import commands, queries
from shardflow.flow.beside import DiskFolder
from shardflow.flow.cold.environment import ColdFull
from shardflow.flow.engine import Engine
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.settings import Settings
from support.engines import ALL, Counting

KEEP = 3


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    folder = DiskFolder(tmp_path / "cold")
    made = Engine(MemoryFiles(), Counting(), Settings(cold_flows_min=KEEP), folder=folder)
    yield made
    made.close()


def ask(engine: Engine, *requests: Any) -> Any:
    answers = engine.step(list(requests), 1_000, 1_000_000)
    return answers[-1].reply


def end(engine: Engine, *names: str) -> None:
    flows = [commands.NewFlow(name, None, "t", "queued", payload=name.encode()) for name in names]
    ask(engine, commands.Create(flows))
    ask(engine, commands.Cancel([commands.Ending(name, None, None, None) for name in names]))


def hot(engine: Engine) -> list[str]:
    return sorted(slot.record.id for slot in engine.state.table if slot.record is not None)


def check(engine: Engine, names: str) -> None:
    for name in names:
        done = ask(engine, queries.Get(name, None, False, ALL))
        assert done.values[0].payload == name.encode()
    assert engine.statistics(check=True)["problems"] == []


def test_the_oldest_leave_first_and_the_newest_stay(engine: Engine) -> None:
    end(engine, *"edcba")
    ask(engine, commands.Create([commands.NewFlow("live", None, "t", "queued")]))
    assert engine.upkeep.step() and not engine.upkeep.step()
    assert hot(engine) == ["a", "b", "c", "live"]
    check(engine, "abcde")


def test_without_room_on_the_disk_they_stay_and_try_again_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(engine, *"abcdef")
    cold = engine.cold
    assert cold is not None
    tries = []

    def full(*given: Any) -> None:
        tries.append(given)
        raise ColdFull(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(cold, "project", full)
        while engine.upkeep.step():
            pass
    assert len(tries) == 1, "a full disk is not tried over and over"
    assert hot(engine) == [*"abcdef"] and cold.rows == 0
    check(engine, "abcdef")
    monkeypatch.setattr(engine.upkeep._projector, "_rest_until", 0)
    while engine.upkeep.step():
        pass
    assert hot(engine) == [*"def"]
    check(engine, "abcdef")


def test_they_stay_while_the_disk_is_full(engine: Engine) -> None:
    space = engine.log.space
    end(engine, *"abcdef")
    space.fill(errno.ENOSPC)
    assert not engine.upkeep.is_needed and not engine.upkeep.step()
    assert engine.upkeep.haste == 0
    assert hot(engine) == [*"abcdef"]
    space.look(wants_reserve=False)
    assert engine.upkeep.is_needed
    while engine.upkeep.step():
        pass
    assert hot(engine) == [*"def"]


def test_an_id_that_is_cold_is_taken(engine: Engine) -> None:
    end(engine, *"abcde")
    engine.upkeep.step()
    again = commands.NewFlow("a", None, "t", "queued", payload=b"a", idempotent=True)
    other = commands.NewFlow("a", None, "t", "queued", payload=b"b", idempotent=True)
    assert ask(engine, commands.Create([again])).outcomes[0].state == "cancelled"
    assert ask(engine, commands.Create([other])).outcomes[0].code == "idempotency_conflict"
    assert hot(engine) == [*"cde"]
