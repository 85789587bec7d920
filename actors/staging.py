"""A shard's part in a backup: it stands still for what crosses shards, and links its files.

Segments that are sealed never change, so a second name in another folder is a copy of them. Where a
file system has no links, the files themselves stay for a while, and are copied from where they are.
Which moment the copies of all shards show has to be the same for everything that one shard promises
another: fan-outs and notices wait from `hold` until `release`, on every shard, and the links are
made in between (a consistent cut: Chandy, Lamport, "Distributed Snapshots", 1985; with channels
that are made empty instead of recorded).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from os import link
from pathlib import Path
from typing import Any

from ..flow.family import (
    Abort,
    AskOutcome,
    Collect,
    Commit,
    Deliver,
    Prepare,
    SpawnBegin,
    SpawnDecide,
    SpawnEnd,
)
from ..flow.limits import BACKUP_HOLD_SECONDS, BACKUP_KEEP_SECONDS
from ..flow.queries import Backup
from ..flow.replies import Data, Reply, reject
from .messages import Arrival

logger = logging.getLogger("shardflow.shard")

CROSSING = frozenset(
    (SpawnBegin, Prepare, SpawnDecide, Commit, Abort, SpawnEnd, AskOutcome, Deliver, Collect)
)
"""Requests that another shard's state depends on, or that depend on another shard's."""
_PREFIX = "backup-"


class Staging:
    """Holds requests back, and keeps linked files until they were copied."""

    def __init__(self, folder: Path | None, now_s: Callable[[], float] = time.monotonic) -> None:
        """`folder`: the shard's; None where there is none. What was left in it is removed."""
        self._folder = folder
        self._now_s = now_s
        self._holder = ""
        self._until_s = 0.0
        self._held: list[Arrival] = []
        self._callers: dict[str, Any] = {}
        """Who has the files of a backup, by its name."""
        self._kept_until_s: dict[str, float] = {}
        """The backups whose files could not be linked."""
        self._clean_up()

    @property
    def is_holding(self) -> bool:
        """Whether requests are held back now."""
        return bool(self._holder)

    def keeps_files(self) -> bool:
        """Whether a backup copies the shard's own files now, so that they have to stay."""
        if not self._kept_until_s:
            return False
        return self._now_s() < max(self._kept_until_s.values())

    def wait_ms(self) -> int:
        """Return the time until requests go on by themselves."""
        return max(0, round((self._until_s - self._now_s()) * 1_000))

    def keep(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Hold back what crosses shards; return the rest."""
        rest: list[Arrival] = []
        for arrival in arrivals:
            (self._held if arrival.request.__class__ in CROSSING else rest).append(arrival)
        return rest

    def forget(self, caller: Any) -> None:
        """Drop what a caller that has gone was kept waiting with, and what it was copying."""
        self._held = [arrival for arrival in self._held if arrival.caller is not caller]
        for name in [name for name, copies in self._callers.items() if copies is caller]:
            self._discard(name)

    def take(self) -> list[Arrival]:
        """Return what was held back, once that is over."""
        if self._holder and self._now_s() < self._until_s:
            return []
        self._holder = ""
        held, self._held = self._held, []
        return held

    def clear(self) -> list[Arrival]:
        """Return what is held back, whatever the time."""
        self._holder = ""
        return self.take()

    def answer(
        self, request: Backup, seal: Callable[[], list[str] | None], caller: Any = None
    ) -> Reply:
        """Do one step. `seal`: closes the files that are written, and names all that are closed."""
        is_holder = self._holder == request.name
        is_unbroken = is_holder and self._now_s() < self._until_s
        if request.step == "hold":
            if self._holder and not is_holder:
                return Data(False)
            self._holder = request.name
            self._until_s = self._now_s() + BACKUP_HOLD_SECONDS
            self._clean_up()
            return Data(True)
        if request.step == "release":
            self._holder = "" if is_holder else self._holder
            return Data(is_unbroken)
        if self._folder is None:
            return reject("invalid_argument", "a store in memory has no files to copy")
        if request.step == "link":
            files = seal() if is_unbroken else None
            self._callers[request.name] = caller
            return Data(files and self._link(self._folder, request.name, files))
        self._discard(request.name)
        return Data(True)

    def _link(self, folder: Path, name: str, files: list[str]) -> list[str]:
        place = staged(folder, name)
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            for file in files:
                with contextlib.suppress(FileExistsError):
                    link(folder / file, place / file)
        except OSError as error:
            logger.warning(
                "%s cannot be linked for a backup (%s): no merges meanwhile", folder, error
            )
            self._kept_until_s[name] = self._now_s() + BACKUP_KEEP_SECONDS
        return files

    def _discard(self, name: str) -> None:
        self._callers.pop(name, None)
        self._kept_until_s.pop(name, None)
        self._clean_up()

    def _clean_up(self) -> None:
        """Remove what nobody copies any more; what cannot be removed now, the next time."""
        for left in [] if self._folder is None else self._folder.glob(f"{_PREFIX}*"):
            if left.name.removeprefix(_PREFIX) not in self._callers:
                shutil.rmtree(left, ignore_errors=True)


def staged(folder: Path, name: str) -> Path:
    """Return where a shard keeps the files of a backup."""
    return folder / f"{_PREFIX}{name}"
