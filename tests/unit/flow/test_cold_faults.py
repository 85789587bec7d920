"""Cold flows while LMDB finds no room, starts are cut short, merges wait, and backups are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shardflow.flow import queries
from shardflow.flow.cold.environment import ColdFull, Environment, Writing
from shardflow.flow.engine.checkpoint import Checkpoint
from shardflow.flow.engine.merge import Merge
from support.checkpoints import assert_same, found_in, opened
from support.cold_machine import ColdMachine, small_cold_slices
from support.disks import Disk
from support.engines import ALL, RETENTION_MS, history_of
from support.merging import mergeable

T = TypeVar("T")


class Killed(BaseException):
    """Ends a process that is about to write."""


class Writes:
    """What becomes of the next transactions of all environments."""

    full = 0
    """So many find no room."""
    until_kill: int | None = None
    """The one after so many is none any more."""


@pytest.fixture(autouse=True, scope="module")
def _faulty() -> Iterator[None]:
    write = Environment.write

    def faulty(env: Environment, work: Callable[[Writing], T]) -> T:
        if Writes.full:
            Writes.full -= 1
            raise ColdFull(28, "full")
        if Writes.until_kill is not None:
            Writes.until_kill -= 1
            if Writes.until_kill < 0:
                raise Killed
        return write(env, work)

    with small_cold_slices() as patch:
        patch.setattr(Environment, "write", faulty)
        yield


class FaultyMachine(ColdMachine):
    """What may be found wrong only when flows change places while something else is half done."""

    flows_min = 3

    def __init__(self) -> None:
        Writes.full, Writes.until_kill = 0, None
        super().__init__()

    def recovered(self, allowed: list[Any]) -> None:
        """Compare hints alone with the log as well."""
        image = self.disk.image()
        super().recovered(allowed)
        hinted = {name: data for name, data in image.items() if ".checkpoint" not in name}
        plain = {name: data for name, data in hinted.items() if ".hint" not in name}
        if len(plain) == len(hinted) or self.disk.capacity is not None:
            return
        first, second = opened(Disk.of(hinted)), opened(Disk.of(plain))
        assert_same(found_in(first), found_in(second))
        first.abandon()
        second.abandon()

    @rule(
        full=st.integers(1, 6),
        slices=st.integers(1, 30),
        pick=st.integers(0, 100),
        after=st.integers(0, 30),
    )
    def there_is_no_room_for_cold_flows(
        self, full: int, slices: int, pick: int, after: int
    ) -> None:
        Writes.full = full
        upkeep = self.engine.upkeep
        for _ in range(slices):
            upkeep.step()
            if isinstance(job := upkeep._job, Merge) and job.is_waiting:
                event("a merge waits")
                break
        Writes.full = max(Writes.full, 1)
        self.an_ended_flow_changes(pick, "y", 0)
        Writes.full = 0
        self.the_log_is_merged(after)

    @rule(slices=st.integers(1, 12), pick=st.integers(0, 100), name=st.sampled_from("abcdefgh"))
    def flows_come_and_go_in_a_checkpoint(self, slices: int, pick: int, name: str) -> None:
        upkeep = self.engine.upkeep
        upkeep.want_checkpoint()
        while upkeep._job is not None and not isinstance(upkeep._job, Checkpoint):
            if not upkeep.step():
                break
        self.the_log_is_merged(slices)
        self._change(pick)
        self.step([("create", [(None, name)], 10, True)])
        self.the_log_is_merged(slices)
        self.step([("claim", 5), ("complete", [0, 0, 0], 300)])

    @rule(slices=st.integers(1, 30), pick=st.integers(0, 100))
    def flows_come_and_go_in_a_merge(self, slices: int, pick: int) -> None:
        upkeep = self.engine.upkeep
        if upkeep._job is None and self.engine.log.tidy():
            sources = mergeable(self.engine)
            upkeep._job = upkeep._begin_merge(sources) if sources else None
        self.the_log_is_merged(slices)
        self._change(pick)
        self.the_log_is_merged(slices)

    def _change(self, pick: int) -> None:
        self.an_ended_flow_changes(pick, "x", 1)
        self.now_ms += (pick % 2) * RETENTION_MS
        self.step([("cleanup",)])

    @rule(at=st.integers(0, 6), is_full=st.booleans())
    def a_start_is_cut_short(self, at: int, is_full: bool) -> None:
        self.engine.abandon()
        if is_full:
            Writes.full = at + 1
        else:
            Writes.until_kill = at
        with suppress(Killed):
            self.started().abandon()
            event("a start has not been cut short")
        Writes.full, Writes.until_kill = 0, None
        self.is_hurt = True
        self.disk = Disk.of(self.disk.image())
        self.recovered(self.allowed[-1:])

    @rule()
    def a_backup_is_made(self) -> None:
        # A disk that has failed may be taken for full.
        self.engine.log.look()
        names = self.engine.seal()
        assert names is not None
        event(f"a backup during {type(self.engine.upkeep._job).__name__}")
        image = self.disk.image()
        copy = opened(Disk.of({name: image[name] for name in names}))
        assert copy.statistics(check=True)["problems"] == []
        for (key, flow_id), _ in self.flows():
            for query in (
                queries.Get(flow_id, key, False, ALL, now_ms=0),
                history_of(flow_id, key),
            ):
                (answer,) = copy.step([query], self.now_ms, self.now_ms * 1_000)
                assert [answer.reply] == self.ask(query)
        copy.abandon()


TestFaulty = FaultyMachine.TestCase
TestFaulty.settings = settings(stateful_step_count=30)
