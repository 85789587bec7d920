"""What a shard keeps for a backup that is being copied, and for how long."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from shardflow.actors import staging
from shardflow.actors.staging import Staging, staged
from shardflow.flow.limits import BACKUP_KEEP_SECONDS
from shardflow.flow.log.parts import parts_in
from shardflow.flow.queries import Backup
from shardflow.flow.replies import Data
from support.checkpoints import Shard, small_slices

NAME = "1" * 32
OTHER = "2" * 32
Step = Literal["hold", "link", "release", "discard"]


class Staged:
    """A shard's staging in a folder with one file, on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 0.0
        (folder / "a.log").write_bytes(b"a")
        self.staging = Staging(folder, now_s=lambda: self.now_s)

    def do(self, step: Step, name: str = NAME, caller: str = "") -> Any:
        reply = self.staging.answer(Backup(step, name), lambda: ["a.log"], caller)
        assert isinstance(reply, Data)
        return reply.data

    def link(self, name: str = NAME, caller: str = "") -> None:
        assert self.do("hold", name, caller) is True
        assert self.do("link", name, caller) == ["a.log"]
        assert self.do("release", name, caller) is True

    @property
    def folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("backup-*"))


@pytest.fixture
def shard(tmp_path: Path) -> Staged:
    return Staged(tmp_path)


@pytest.fixture
def _no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(staging, "link", refuse)


def test_what_is_linked_keeps_no_files(shard: Staged) -> None:
    shard.link()
    assert (staged(shard.folder, NAME) / "a.log").read_bytes() == b"a"
    assert not shard.staging.keeps_files()
    shard.do("discard")
    assert shard.folders == []


def test_what_cannot_be_linked_is_kept_until_it_is_copied(shard: Staged, _no_links: None) -> None:
    shard.link()
    shard.link(OTHER)
    assert shard.staging.keeps_files()
    shard.do("discard")
    assert shard.staging.keeps_files()
    shard.do("discard", OTHER)
    assert not shard.staging.keeps_files()


def test_nothing_is_kept_for_ever(shard: Staged, _no_links: None) -> None:
    shard.link()
    shard.now_s = BACKUP_KEEP_SECONDS - 1
    assert shard.staging.keeps_files()
    shard.now_s = BACKUP_KEEP_SECONDS
    assert not shard.staging.keeps_files()


@pytest.fixture
def _small() -> Iterator[None]:
    with small_slices():
        yield


@pytest.mark.parametrize("slices", range(0, 30, 3))
def test_a_shard_removes_no_file_that_is_kept(_small: None, slices: int) -> None:
    shard = Shard()
    for number in range(8):
        shard.create(f"f{number}", f"kept{number}", payload=b"x" * 300)
        shard.drop(f"f{number}")
    log = shard.engine.log
    for _ in range(slices):
        shard.engine.upkeep.step()
    names = log.seal()
    assert names is not None
    is_copied = False
    log.keeps_files = lambda: not is_copied
    shard.run_upkeep()
    assert set(names) <= set(shard.disk.names())
    is_copied = True
    shard.put("kept0", b"y")
    shard.run_upkeep()
    assert not set(names) <= set(shard.disk.names())
    assert {part.number for part in parts_in(shard.disk)} == {*log.spans, log.position[0]}
    shard.restart()


def test_what_a_caller_has_linked_goes_with_it(shard: Staged) -> None:
    shard.link(caller="a")
    shard.link(OTHER, caller="b")
    shard.staging.forget("c")
    assert len(shard.folders) == 2
    shard.staging.forget("a")
    assert shard.folders == [f"backup-{OTHER}"]
    shard.staging.forget("b")
    assert shard.folders == []


def test_what_a_caller_has_kept_goes_with_it(shard: Staged, _no_links: None) -> None:
    shard.link(caller="a")
    shard.staging.forget("a")
    assert not shard.staging.keeps_files()


def test_what_could_not_be_removed_is_at_the_next_hold(
    shard: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.link(caller="a")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        shard.staging.forget("a")
    assert shard.folders == [f"backup-{NAME}"]
    shard.link(OTHER, caller="b")
    assert shard.folders == [f"backup-{OTHER}"]
