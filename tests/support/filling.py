"""One shard on a disk that fills up, and what its callers were told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from shardflow.actors.disk import DiskWatch
from shardflow.actors.messages import Arrival
from shardflow.actors.service import Service
from shardflow.flow import commands, family, queries
from shardflow.flow.commands import Ending, Hydration, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.host import SetClock
from shardflow.flow.limits import DISK_CHECK_SECONDS
from shardflow.flow.log import log as logs
from shardflow.flow.log import space
from shardflow.flow.record import Record
from shardflow.flow.replies import Data, Done, Rejected
from shardflow.flow.settings import Settings
from support.disks import Disk
from support.lone import Counting

NOW_MS = 1_000_000
RETENTION_MS = 10_000
TYPE = "t"
CAPACITY = 100_000
RESERVE_BYTES = 4_000
FLOOR_BYTES = 3_000
JOB_BYTES = 200

STRAY = family.ChildEnded("nobody", "p", "g", 1, "x", None, "completed")
"""A post that changes nothing: about the least that can be written."""

Key = tuple[str | None, str]


@contextlib.contextmanager
def small_sizes(*, frame_bytes_max: int | None = None) -> Iterator[None]:
    """Let a disk of some KB do; with a small largest frame, the disk is tight only when full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "SEGMENT_BYTES", 2_000)
        patch.setattr(logs, "SEGMENT_GROW_BYTES", 1_000)
        patch.setattr(space, "DISK_RESERVE_BYTES", RESERVE_BYTES)
        patch.setattr(space, "DISK_FLOOR_BYTES", FLOOR_BYTES)
        patch.setattr(space, "DISK_JOB_BYTES", JOB_BYTES)
        if frame_bytes_max is not None:
            patch.setattr(space, "FRAME_BYTES_MAX", frame_bytes_max)
        yield


class Filling:
    """A service on one disk, started again when it fails; `acked` is what it has answered."""

    def __init__(self, disk: Disk, *, sync: bool = True) -> None:
        self.disk = disk
        self.acked: dict[Key, Record] = {}
        self.deaths = 0
        self.clock = SetClock(NOW_MS)
        self._seconds = 0.0
        self._sync = sync
        self._entropy = Counting()
        self.service = self._open()

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def _open(self) -> Service:
        settings = Settings(retention_ms=RETENTION_MS, failed_retention_ms=RETENTION_MS)
        engine = Engine(self.disk, self._entropy, settings, sync=self._sync)
        service = Service(engine, self.clock, relaxed=not self._sync)
        service.disk = DiskWatch(engine, now_s=lambda: self._seconds)
        return service

    def look(self) -> None:
        """Let so much time pass that the next request finds out about the disk."""
        self._seconds += DISK_CHECK_SECONDS

    def reopen(self, *, clean: bool = False) -> None:
        """End the process, in order or not, and start it again."""
        (self.engine.close if clean else self.engine.abandon)()
        self.service = self._open()

    def ask(self, request: Any) -> Any:
        """Return the reply; None: the process died of it, and was started again."""
        try:
            (departure,) = self.service.serve([Arrival(self, 1, request)])
        except OSError:
            self.deaths += 1
            self.reopen()
            return None
        reply = departure.answer.reply
        if isinstance(reply, Done) and not queries.is_query(request):
            for record in reply.outcomes:
                if isinstance(record, Record):
                    self.acked[record.partition_key, record.id] = record
        return reply

    def wait(self, by_ms: int) -> None:
        """Let time pass, and the shard do what becomes due."""
        self.clock.set(self.clock.now_ms() + by_ms)
        try:
            self.service.wake()
        except OSError:
            self.deaths += 1
            self.reopen()

    def exhaust(self) -> None:
        """Use up all that is left, the reserve as well, until nothing at all can be written."""
        self.disk.fill()
        self.look()
        assert is_refused(self.create("new"))
        number = 0
        now_ms = self.clock.now_ms()
        while True:
            number += 1
            # Past the service, which would keep it until there is room.
            (told,) = self.engine.step([family.Deliver(0, number, [STRAY])], now_ms, 1)
            self.disk.fill()
            if is_refused(told.reply):
                break

    # ---- requests ----

    def create(self, *names: str, size: int = 100) -> Any:
        items = [NewFlow(name, "p", TYPE, "a", payload=payload(name, size)) for name in names]
        return self.ask(commands.Create(items))

    def claim(self, limit: int, partition_keys: list[str] | None = None) -> Any:
        claim = commands.ClaimDue(
            TYPE, "w", None, partition_keys, limit, 5_000, None, True, True, 0, Hydration()
        )
        return self.ask(claim)

    def held(self) -> list[Record]:
        """Return the flows that are leased, as their holders know."""
        return [record for _, record in sorted(self.acked.items(), key=str) if record.is_leased]

    def complete(self, record: Record, size: int = 20) -> Any:
        ending = Ending(
            record.id,
            record.partition_key,
            record.lease_token,
            record.fencing_token,
            value=payload(record.id, size),
        )
        return self.ask(commands.Complete([ending]))

    def retry(self, record: Record) -> Any:
        assert record.lease_token is not None
        item = commands.Retrying(
            record.id, record.partition_key, record.lease_token, record.fencing_token
        )
        return self.ask(commands.Retry([item]))

    def problems(self) -> list[str]:
        reply = self.ask(queries.Stats(check=True))
        assert isinstance(reply, Data)
        problems: list[str] = reply.data["problems"]
        return problems

    def records(self) -> dict[Key, Record]:
        table = self.engine.state.table
        records = [slot.record for slot in table if slot.record is not None]
        return {(record.partition_key, record.id): record for record in records}

    def assert_kept(self) -> None:
        """Check that what was answered is there, or what came after it."""
        found = self.records()
        for key, record in self.acked.items():
            if key not in found:
                assert record.is_terminal, "only what is over is removed"
            elif found[key].version == record.version:
                assert replace(found[key], event_details=record.event_details) == record
            else:
                assert found[key].version > record.version
        assert self.problems() == []


def payload(name: str, size: int) -> bytes:
    """Return bytes that tell whose they are."""
    return (name.encode() * size)[:size]


def is_refused(reply: Any, reason: str = "disk") -> bool:
    """Whether a request was refused for want of room, nothing done."""
    if not isinstance(reply, Rejected):
        return False
    return reply.refused.code == "overloaded" and reply.refused.fields["reason"] == reason
