"""Cold flows in the middle of everything: projected, adopted, dropped, merged, reopened.

After each step every flow reads as before, wherever it is, and so does its history; listings and
counts are those of all flows together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from msgspec.structs import replace

from shardflow.flow import commands, queries
from shardflow.flow.beside import DiskFolder
from shardflow.flow.cold import environment, store
from shardflow.flow.cold.store import Cold
from shardflow.flow.engine import project
from shardflow.flow.engine.engine import Engine
from shardflow.flow.index.listing import cursor_of
from shardflow.flow.record import Record
from shardflow.flow.replies import Data, Done
from shardflow.flow.settings import Settings
from support.checkpoints import CheckpointingMachine
from support.engines import RETENTION_MS, TYPE
from support.merging import small_files


@pytest.fixture(autouse=True, scope="module")
def _small_slices() -> Iterator[None]:
    with small_files(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "COLD_BATCH_FLOWS", 2)
        patch.setattr(project, "COLD_COMPACT_FLOWS", 3)
        patch.setattr(store, "COLD_BATCH_FLOWS", 3)
        patch.setattr(environment, "Background", AtOnce)
        patch.setattr(store, "COLD_REMAP_ROWS", 5)
        yield


class AtOnce:
    """Work in the background that is over before anybody looks: runs have to be repeatable."""

    is_running = False

    def __init__(self, work: Callable[[], None]) -> None:
        work()

    def wait(self) -> None:
        """It is done."""


class ColdMachine(CheckpointingMachine):
    """The merging machine, whose upkeep projects as well, and checkpoints that bring rows back."""

    flows_min = 0

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cold-"))
        self.before: list[Cold] = []
        super().__init__()

    def opened(self) -> Engine:
        while self.before:
            # The power has failed, and this process lives on with what it had mapped.
            self.before.pop().abandon()
        told = Settings(
            retention_ms=RETENTION_MS,
            failed_retention_ms=RETENTION_MS,
            cold_flows_min=self.flows_min,
        )
        folder = DiskFolder(self.directory)
        engine = Engine(self.disk, self.entropy, told, sync=self.sync, folder=folder)
        assert engine.cold is not None
        if engine.restored.checkpoint is not None:
            event(f"opened by a checkpoint, cold flows: {min(3, engine.cold.rows)}")
        self.before.append(engine.cold)
        return engine

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

    @rule()
    def the_upkeep_has_nothing_left_to_do(self) -> None:
        # A disk that has failed may be taken for full: then nothing becomes cold.
        self.engine.log.look()
        self.the_log_is_merged_until_nothing_is_left()
        for slot in self.engine.state.table:
            assert slot.record is not None
            assert self.flows_min or not project.may_leave(slot.record)

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
        kin = [record for record in records if record.id in "abc"]
        self._listed("parent", "a", kin)
        self._listed("correlation", "c", kin)
        self._listed("root", "b", kin)

    def _listed(self, kind: Any, name: str, wanted: list[Record]) -> None:
        first = queries.Lineage(kind, name, None, None, None, 3, None, True, now_ms=0)
        (page,) = self.ask(first)
        assert isinstance(page, Done)
        (rest,) = self.ask(replace(first, after=page.cursor, count=1_000))
        assert isinstance(rest, Done)
        listed = page.outcomes if page.cursor is None else page.outcomes + rest.outcomes
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


class RelaxedColdMachine(ColdMachine):
    """The same without a sync after each batch."""

    sync = False


class LukewarmMachine(ColdMachine):
    """The same, with some ended flows that stay in memory."""

    flows_min = 3


TestCold = ColdMachine.TestCase
TestCold.settings = settings(stateful_step_count=40)
TestRelaxedCold = RelaxedColdMachine.TestCase
TestRelaxedCold.settings = settings(stateful_step_count=30)
TestLukewarm = LukewarmMachine.TestCase
TestLukewarm.settings = settings(stateful_step_count=30)
