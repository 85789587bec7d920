"""The engine's machine with cold flows in it: projected, adopted, dropped, merged, reopened.

After each step every flow reads as before, wherever it is, and so does its history; listings and
counts are those of all flows together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from msgspec.structs import replace

from shardflow.flow import commands, queries
from shardflow.flow.beside import DiskFolder
from shardflow.flow.cold import environment, rollback, rows, store
from shardflow.flow.cold.store import Cold
from shardflow.flow.engine import project
from shardflow.flow.engine.checkpoint import Checkpoint
from shardflow.flow.engine.engine import Engine
from shardflow.flow.index import table
from shardflow.flow.machine import reads
from shardflow.flow.order import cursor_of
from shardflow.flow.record import Record
from shardflow.flow.replies import Data, Done
from shardflow.flow.settings import Settings
from support.checkpoints import SHORTCUT, CheckpointingMachine, assert_same, found_in, opened
from support.colds import AtOnce
from support.disks import Disk
from support.engines import RETENTION_MS, SHARDS, TYPE
from support.merging import mergeable, small_files


@contextmanager
def small_cold_slices() -> Iterator[pytest.MonkeyPatch]:
    """Let whatever is done about cold flows take many slices."""
    with small_files(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "COLD_BATCH_FLOWS", 2)
        patch.setattr(project, "COLD_COMPACT_FLOWS", 3)
        patch.setattr(store, "COLD_BATCH_FLOWS", 3)
        patch.setattr(environment, "Background", AtOnce)
        patch.setattr(rollback, "COLD_UNDO_ROWS", 2)
        patch.setattr(rollback, "COLD_FORGET_ROWS", 4)
        patch.setattr(rows, "COLD_REMAP_ROWS", 5)
        patch.setattr(reads, "LIST_SCAN_FLOWS", 3)
        patch.setattr(table, "TABLE_WALK_FLOWS", 2)
        yield patch


class ColdMachine(CheckpointingMachine):
    """The merging machine, whose upkeep projects as well, and checkpoints that bring rows back."""

    flows_min = 0

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cold-"))
        self.before: list[Cold] = []
        super().__init__()

    def opened(self) -> Engine:
        engine = self.started()
        assert engine.cold is not None
        if engine.restored.checkpoint is not None:
            event(f"opened by a checkpoint, cold flows: {min(3, engine.cold.rows)}")
        self.before.append(engine.cold)
        return engine

    def started(self) -> Engine:
        """Start on what is there, be it with cold flows or not."""
        while self.before:
            # The power has failed, and this process lives on with what it had mapped.
            self.before.pop().abandon()
        told = Settings(
            shards=SHARDS,
            retention_ms=RETENTION_MS,
            failed_retention_ms=RETENTION_MS,
            cold_flows_min=self.flows_min,
        )
        folder = DiskFolder(self.directory)
        return Engine(self.disk, self.entropy, told, sync=self.sync, folder=folder)

    def recovered(self, allowed: list[Any]) -> None:
        """Open what is on the disk; what is found is what is found without shortcuts."""
        image = self.disk.image()
        super().recovered(allowed)
        assert self.is_hurt or self.engine.restored.notes == []
        self.is_hurt = False
        found = found_in(self.engine)
        assert found["problems"] == [], found["problems"]
        # Rows keep up with merges: what a hint has counted as dead, the tail may count once more.
        del found["dead"]
        if self.disk.capacity is not None:
            # A full disk has no room for the segment that a start on another one begins.
            del found["spans"]
        plain = {name: data for name, data in image.items() if not SHORTCUT.fullmatch(name)}
        other = opened(Disk.of(plain))
        assert_same(found, found_in(other))
        other.abandon()

    def requests(self, batch: list[tuple[Any, ...]]) -> list[Any]:
        """Give some of the flows relatives."""
        found = super().requests(batch)
        for at, request in enumerate(found):
            if isinstance(request, commands.Create):
                items = [
                    replace(item, correlation_id="c", parent_flow_id="a", root_flow_id="b")
                    if item.id in "abc"
                    else item
                    for item in request.items
                ]
                found[at] = replace(request, items=items)
        return found

    @rule(pick=st.integers(0, 100), name=st.sampled_from("xyz"), slices=st.integers(0, 3))
    def an_ended_flow_changes(self, pick: int, name: str, slices: int) -> None:
        ended = [record for record in self.records() if record.is_terminal]
        if not ended:
            return
        flow = ended[pick % len(ended)]
        put = ("put", self.records().index(flow), name, 10)
        self.step([put, put, ("put", *put[1:3], 300)])
        for _ in range(slices):
            self.engine.upkeep.step()

    @rule(names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True))
    def flows_are_cold_when_a_checkpoint_begins(self, names: list[str]) -> None:
        self.step([("create", [(None, name) for name in names], 10, True)])
        self.step([("claim", 5)])
        self.step([("complete", [0, 0, 0], 10)])
        self.the_log_is_merged_until_nothing_is_left()
        self.engine.upkeep.checkpoint()

    @rule(slices=st.integers(1, 30), pick=st.integers(0, 100))
    def the_process_is_killed_in_a_checkpoint(self, slices: int, pick: int) -> None:
        self.engine.upkeep.want_checkpoint()
        for _ in range(slices):
            self.engine.upkeep.step()
        self.an_ended_flow_changes(pick, "x", 0)
        self.the_process_is_killed()

    @rule(slices=st.integers(1, 30), pick=st.integers(0, 100), merged=st.integers(0, 60))
    def the_process_is_killed_in_a_merge_of_what_a_checkpoint_has(
        self, slices: int, pick: int, merged: int
    ) -> None:
        """A checkpoint while which a flow has come back, and a merge that only it can be behind."""
        told = self.engine.upkeep
        told.want_checkpoint()
        for _ in range(slices):
            told.step()
        self.an_ended_flow_changes(pick, "x", 0)
        while isinstance(job := told._job, Checkpoint):
            job.wait()
            told.step()
        if told._job is None and (sources := mergeable(self.engine)):
            told._job = told._begin_merge(sources)
        for _ in range(merged):
            told.step()
        self.the_process_is_killed()

    @rule()
    def the_upkeep_has_nothing_left_to_do(self) -> None:
        # A disk that has failed may be taken for full: then nothing becomes cold.
        self.engine.log.look()
        self.the_log_is_merged_until_nothing_is_left()
        projector = self.engine.upkeep._projector
        assert projector is not None
        is_resting = self.flows_min or projector._rest_until
        for slot in self.engine.state.table:
            assert slot.record is not None
            assert is_resting or not project.may_leave(slot.record)

    @invariant()
    def listings_are_those_of_all_flows(self) -> None:
        records = sorted((record for _, record in self.flows()), key=cursor_of)
        for reverse in (False, True):
            listed: list[Record] = []
            after = None
            while True:
                query = queries.List(TYPE, None, None, None, 2, after, reverse, True, now_ms=0)
                (page,) = self.ask(query)
                assert isinstance(page, Done)
                listed += page.outcomes
                after = page.cursor
                if after is None:
                    break
            assert listed == (records[::-1] if reverse else records)
        self._listed("parent", "a", [r for r in records if r.parent_flow_id == "a"])
        self._listed("correlation", "c", [r for r in records if r.correlation_id == "c"])
        self._listed("root", "b", [r for r in records if r.root_flow_id == "b"])

    def _listed(self, kind: Any, name: str, wanted: list[Record]) -> None:
        first = queries.Lineage(kind, name, None, None, None, 3, None, True, now_ms=0)
        (page,) = self.ask(first)
        assert isinstance(page, Done)
        listed = list(page.outcomes)
        while page.cursor is not None:
            (page,) = self.ask(replace(first, after=page.cursor, count=1_000))
            assert isinstance(page, Done)
            listed += page.outcomes
        assert listed == wanted

    @invariant()
    def the_counts_are_those_of_all_flows(self) -> None:
        (told,) = self.ask(queries.Info(TYPE, now_ms=0))
        assert isinstance(told, Data)
        states = [record.state for _, record in self.flows()]
        for end, count in told.data["ends"].items():
            assert count == states.count(end)

    @invariant()
    def what_is_in_memory_is_found_alone(self) -> None:
        table = self.engine.state.table
        hot = sorted((slot.record for slot in table if slot.record is not None), key=cursor_of)
        query = queries.List(TYPE, None, None, None, 1_000, None, False, False, now_ms=0)
        (page,) = self.ask(query)
        assert isinstance(page, Done)
        assert page.outcomes == hot

    def teardown(self) -> None:
        super().teardown()
        while self.before:
            self.before.pop().abandon()
        shutil.rmtree(self.directory, ignore_errors=True)
