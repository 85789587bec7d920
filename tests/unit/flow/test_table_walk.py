"""Walks through the table of flows, a few at a time, while flows come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shardflow.flow.index import table as tables
from shardflow.flow.index.table import FlowTable, Slot
from shardflow.flow.record import Record

keys = st.sampled_from([None, None, "p", "q"])


@pytest.fixture(autouse=True, scope="module")
def _few_at_a_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "TABLE_WALK_FLOWS", 10)
        yield


def slot_of(flow_id: str, partition_key: str | None, version: int) -> Slot:
    record = Record(flow_id, partition_key, "t", "s", None, version, 1, 0, 0, 0, 1, 1, 1, version)
    return Slot(record, version)


class Walks(RuleBasedStateMachine):
    """A table beside a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FlowTable()
        self.slots: dict[tuple[str | None, str], Slot] = {}
        self.walk: Iterator[list[Slot]] | None = None
        self.at_begin: list[Slot] = []
        self.walked: list[Slot] = []
        self.count = 0

    @rule(numbers=st.lists(st.integers(0, 99), max_size=30), key=keys)
    def come(self, numbers: list[int], key: str | None) -> None:
        for number in numbers:
            identity = (key, f"f{number}")
            if identity in self.slots:
                continue
            self.count += 1
            slot = slot_of(identity[1], key, self.count)
            self.table.add(slot)
            self.slots[identity] = slot

    @rule(numbers=st.lists(st.integers(0, 99), max_size=40), key=keys)
    def go(self, numbers: list[int], key: str | None) -> None:
        for number in numbers:
            slot = self.slots.pop((key, f"f{number}"), None)
            if slot is not None:
                self.table.remove(key, f"f{number}")
                slot.held = None

    @precondition(lambda self: self.walk is None)
    @rule()
    def walk_begins(self) -> None:
        self.at_begin = list(self.slots.values())
        self.walk = iter(self.table.walk())
        self.walked = []
        self.walk_goes_on()

    @precondition(lambda self: self.walk is not None)
    @rule()
    def walk_goes_on(self) -> None:
        assert self.walk is not None
        try:
            found = next(self.walk)
        except StopIteration:
            self.walk = None
            self.walk_is_over()
        else:
            assert len(found) <= 4 * 10, "several partitions may have an id"
            self.walked += found

    def walk_is_over(self) -> None:
        found = [id(slot) for slot in self.walked if slot.held is not None]
        assert len(found) == len(set(found)), "each once"
        begun = {id(slot) for slot in self.at_begin if slot.held is not None}
        assert set(found) == begun, "what was there as it began, and is there still"

    @precondition(lambda self: self.walk is not None)
    @rule()
    def walk_is_given_up(self) -> None:
        self.walk.close()  # type: ignore[union-attr]
        self.walk = None

    @precondition(lambda self: self.walk is None)
    @rule()
    def compacted(self) -> None:
        self.table.compact()

    @invariant()
    def all_are_found(self) -> None:
        assert len(self.table) == len(self.slots)
        for (key, flow_id), slot in self.slots.items():
            assert self.table.get(key, flow_id) is slot
        assert {id(slot) for slot in self.table} == {id(slot) for slot in self.slots.values()}

    @rule(number=st.integers(0, 99))
    def looked_up(self, number: int) -> None:
        flow_id = f"f{number}"
        wanted = {key: slot for (key, name), slot in self.slots.items() if name == flow_id}
        assert {id(slot) for slot in self.table.of_id(flow_id)} == set(map(id, wanted.values()))
        for key in (None, "p", "q"):
            assert self.table.get(key, flow_id) is wanted.get(key)

    def teardown(self) -> None:
        while self.walk is not None:
            self.walk_goes_on()
        self.all_are_found()


TestWalks = Walks.TestCase
TestWalks.settings = settings(stateful_step_count=60)


def test_flows_are_walked_through_in_the_order_of_their_coming() -> None:
    table = FlowTable()
    names = [f"f{number}" for number in range(25)]
    for version, name in enumerate(names, 1):
        table.add(slot_of(name, None, version))
    for found in table.walk():
        if found:
            name = f"new{len(table)}"
            names.append(name)
            table.add(slot_of(name, None, 1))
    assert [slot.held.id for slot in table] == names
