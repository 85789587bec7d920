"""Section 3: flow_by_parent, flow_by_root and flow_by_correlation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts, ids

FIELDS = {
    "parent": "parent_flow_id",
    "root": "root_flow_id",
    "correlation": "correlation_id",
}


@pytest.fixture(params=sorted(FIELDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def related(flows: Flows, kind: str, suffix: object, **fields: Any) -> sf.FlowRecord:
    """Create a flow that belongs to the test's parent, root or correlation."""
    return flows.create(suffix, **{FIELDS[kind]: flows.name("top"), **fields})


def lookup(flows: Flows, kind: str, **options: Any) -> Any:
    command: Callable[..., Any] = getattr(flows.store, f"flow_by_{kind}")
    return command(flows.name("top"), **options)


def test_flows_are_found_on_all_shards(flows: Flows, name: Name, kind: str) -> None:
    made = [related(flows, kind, key, partition_key=key) for key in name.partitions()]
    made.append(related(flows, kind, "hidden"))
    flows.create("unrelated")
    found = lookup(flows, kind)
    assert isinstance(found, sf.Page)
    assert sorted(ids(found)) == sorted(ids(made))
    by_id = {record.id: facts(record) for record in found}
    assert by_id == {record.id: facts(record) for record in made}


def test_nothing_related_is_an_empty_page(flows: Flows, kind: str) -> None:
    flows.create()
    found = lookup(flows, kind)
    assert found == []
    assert found.after is None


def test_flows_of_every_type_are_found(flows: Flows, name: Name, kind: str) -> None:
    related(flows, kind, "a")
    related(flows, kind, "b", type=name("other-type"))
    assert sorted(ids(lookup(flows, kind))) == [name("a"), name("b")]


def test_a_partition_restricts_the_lookup(flows: Flows, name: Name, kind: str) -> None:
    keys = name.neighbours(2)
    for number, key in enumerate([*keys, None]):
        related(flows, kind, number, partition_key=key)
    assert ids(lookup(flows, kind, partition_key=keys[1])) == [name(1)]


def test_a_state_filters_the_lookup(flows: Flows, name: Name, kind: str) -> None:
    related(flows, kind, "waiting", state="a")
    flows.take(related(flows, kind, "leased", state="b"))
    flows.complete(flows.take(related(flows, kind, "ended", state="c")))
    assert ids(lookup(flows, kind, state="a")) == [name("waiting")]
    assert ids(lookup(flows, kind, state="b")) == [name("leased")]
    assert ids(lookup(flows, kind, state="completed")) == [name("ended")]
    assert ids(lookup(flows, kind, state="c")) == []
    assert len(lookup(flows, kind)) == 3


def test_terminal_tells_the_ended_from_the_open(
    flows: Flows, clock: ManualClock, name: Name, kind: str
) -> None:
    related(flows, kind, "waiting")
    flows.take(related(flows, kind, "leased", state="b"))
    flows.complete(flows.take(related(flows, kind, "completed", state="c")))
    flows.cancel(related(flows, kind, "cancelled"))
    clock.advance(3_600_000)
    ended = lookup(flows, kind, terminal=True, include_cold=True)
    assert sorted(ids(ended)) == [name("cancelled"), name("completed")]
    still_open = lookup(flows, kind, terminal=False)
    assert sorted(ids(still_open)) == [name("leased"), name("waiting")]


def test_a_count_counts_what_matches_and_the_cursor_goes_on(
    flows: Flows, name: Name, kind: str
) -> None:
    keys = name.partitions()
    for number in range(10):
        flow = related(flows, kind, number, partition_key=keys[number // 2 % 2])
        if number % 2:
            flows.cancel(flow)
    found: list[str] = []
    after = None
    for _ in range(10):
        page = lookup(flows, kind, terminal=False, count=2, after=after)
        assert len(page) <= 2
        found += ids(page)
        after = page.after
        if after is None:
            break
    assert sorted(found) == [name(number) for number in (0, 2, 4, 6, 8)]


def test_a_moved_flow_is_found_as_it_is_now(flows: Flows, kind: str) -> None:
    flow = related(flows, kind, "a")
    moved = flows.move(flow, "next", attributes={"a": 1})
    assert [facts(record) for record in lookup(flows, kind)] == [facts(moved)]


def test_a_flow_after_its_retention_is_not_found(
    flows: Flows, clock: ManualClock, kind: str
) -> None:
    flows.cancel(related(flows, kind, "a", retention_ttl_ms=1_000))
    assert len(lookup(flows, kind)) == 1
    clock.advance(1_000)
    assert lookup(flows, kind) == []


def test_lookups_do_not_mix_their_kinds(flows: Flows, name: Name) -> None:
    for kind in FIELDS:
        related(flows, kind, kind)
    assert ids(lookup(flows, "parent")) == [name("parent")]
    assert ids(lookup(flows, "root")) == [name("root")]
    assert ids(lookup(flows, "correlation")) == [name("correlation")]
