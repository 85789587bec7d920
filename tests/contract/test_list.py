"""Section 3: flow_list and flow_stuck."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts, ids


def pages(flows: Flows, **options: Any) -> list[list[str]]:
    """Follow the cursor to the end and return the ids of each page."""
    found: list[list[str]] = []
    after = None
    while True:
        page = flows.store.flow_list(flows.type, after=after, **options)
        found.append(ids(page))
        assert len(found) < 100
        if page.after is None:
            return found
        after = page.after


def made_apart(flows: Flows, count: int, **fields: Any) -> list[str]:
    """Create flows on all shards, 1 ms apart, and return their ids."""
    keys = flows.name.partitions()
    made = []
    for number in range(count):
        flow = flows.create(f"{number:03}", partition_key=keys[number % 2], **fields)
        made.append(flow.id)
        flows.clock.advance(1)
    return made


def test_a_page_is_a_list_of_records_with_a_cursor(flows: Flows) -> None:
    flow = flows.create()
    page = flows.store.flow_list(flows.type)
    assert isinstance(page, list)
    assert isinstance(page, sf.Page)
    assert [facts(record) for record in page] == [facts(flow)]
    assert page.after is None


def test_a_type_without_flows_lists_nothing(flows: Flows) -> None:
    page = flows.store.flow_list(flows.type)
    assert page == []
    assert page.after is None


def test_a_list_is_ordered_by_the_last_change(flows: Flows, clock: ManualClock) -> None:
    made = made_apart(flows, 6)
    assert ids(flows.store.flow_list(flows.type)) == made
    flows.cancel(flows.store.flow_list(flows.type)[0])
    assert ids(flows.store.flow_list(flows.type)) == [*made[1:], made[0]]


def test_equal_times_are_ordered_by_id(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    for number, suffix in enumerate(["d", "b", "e", "a", "c"]):
        flows.create(suffix, partition_key=keys[number % 2])
    assert ids(flows.store.flow_list(flows.type)) == [name(suffix) for suffix in "abcde"]


def test_a_reversed_list_is_the_same_the_other_way_round(flows: Flows) -> None:
    made = made_apart(flows, 5)
    assert ids(flows.store.flow_list(flows.type, reverse=True)) == made[::-1]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 11, 1_000])
def test_pages_follow_each_other_without_gap_or_repeat(
    flows: Flows, count: int, reverse: bool
) -> None:
    made = made_apart(flows, 10)
    found = pages(flows, count=count, reverse=reverse)
    assert all(len(page) <= count for page in found)
    flat = [flow_id for page in found for flow_id in page]
    assert flat == (made[::-1] if reverse else made)


def test_pages_of_equal_times_follow_each_other_too(flows: Flows, name: Name) -> None:
    keys = [*name.partitions(), None]
    for number in range(9):
        flows.create(number, partition_key=keys[number % 3])
    flat = [flow_id for page in pages(flows, count=2) for flow_id in page]
    assert flat == [name(number) for number in range(9)]


def test_the_same_id_in_two_partitions_is_listed_twice(flows: Flows, name: Name) -> None:
    for key in (*name.partitions(), None):
        flows.create(partition_key=key)
    flat = [flow_id for page in pages(flows, count=1) for flow_id in page]
    assert flat == [name("a")] * 3


def test_a_list_has_a_hundred_flows_unless_told_otherwise(flows: Flows, name: Name) -> None:
    flows.store.flow_create_many([{"id": name(n)} for n in range(120)], type=flows.type)
    page = flows.store.flow_list(flows.type)
    assert len(page) == 100
    assert len(flows.store.flow_list(flows.type, after=page.after)) == 20


def test_a_state_filters_by_the_logical_state(flows: Flows, name: Name) -> None:
    flows.create("waiting", state="a")
    flows.leased("leased", state="b")
    flows.ended("ended", state="c")
    listed = {
        state: ids(flows.store.flow_list(flows.type, state=state))
        for state in ("a", "b", "c", "running", "completed", "failed")
    }
    assert listed == {
        "a": [name("waiting")],
        "b": [name("leased")],
        "c": [],
        "running": [name("leased")],
        "completed": [name("ended")],
        "failed": [],
    }
    assert len(flows.store.flow_list(flows.type, state="any")) == 3


def test_an_expired_lease_is_still_listed_as_running(flows: Flows) -> None:
    (job,) = flows.expired("a")
    assert ids(flows.store.flow_list(flows.type, state="running")) == [job.id]


def test_a_partition_key_restricts_a_list(flows: Flows, name: Name) -> None:
    keys = name.neighbours(2)
    for number, key in enumerate([*keys, None]):
        flows.create(number, partition_key=key)
    assert ids(flows.store.flow_list(flows.type, partition_key=keys[1])) == [name(1)]
    assert len(flows.store.flow_list(flows.type)) == 3


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"tenant": "t1"}, ["a", "c"]),
        ({"tenant": "t1", "seats": 0}, ["a"]),
        ({"seats": 0}, ["a"]),
        ({"trial": False}, ["b"]),
        ({"note": ""}, ["c"]),
        ({"tenant": "t9"}, []),
        ({"unheard": "of"}, []),
    ],
    ids=repr,
)
def test_attributes_restrict_a_list(
    flows: Flows, name: Name, wanted: dict[str, Any], found: list[str]
) -> None:
    flows.create("a", attributes={"tenant": "t1", "seats": 0})
    flows.create("b", attributes={"tenant": "t2", "trial": False})
    flows.create("c", attributes={"tenant": "t1", "note": ""})
    flows.create("d")
    listed = flows.store.flow_list(flows.type, attributes=wanted)
    assert ids(listed) == [name(suffix) for suffix in found]


def test_a_filtered_list_pages_through_what_matches(flows: Flows) -> None:
    for number in range(10):
        flows.create(number, state="odd" if number % 2 else "even")
    flat = [flow_id for page in pages(flows, count=2, state="odd") for flow_id in page]
    assert flat == [flows.name(number) for number in (1, 3, 5, 7, 9)]


def test_a_list_includes_what_has_ended(flows: Flows, clock: ManualClock) -> None:
    ended = flows.ended("ended")
    clock.advance(3_600_000)
    waiting = flows.create("waiting")
    page = flows.store.flow_list(flows.type, include_cold=True)
    assert [facts(record) for record in page] == [facts(ended), facts(waiting)]


def test_a_list_brings_no_values(flows: Flows) -> None:
    flows.create(payload="in", values={"v": 1})
    (record,) = flows.store.flow_list(flows.type)
    assert record.payload is None
    assert record.values == {}
    assert record.payload_size > 0


def test_a_cursor_that_is_none_of_ours_is_refused(flows: Flows) -> None:
    loose: Any = flows.store
    with pytest.raises(sf.InvalidArgument):
        loose.flow_list(flows.type, after="not a cursor")


def test_stuck_flows_are_leased_ones_whose_deadline_has_passed(
    flows: Flows, clock: ManualClock
) -> None:
    flows.create("waiting")
    job = flows.leased("stuck", state="other", lease_ms=1_000)
    assert list(flows.store.flow_stuck(flows.type)) == []
    clock.advance(999)
    assert list(flows.store.flow_stuck(flows.type)) == []
    clock.advance(1)
    (stuck,) = flows.store.flow_stuck(flows.type)
    assert facts(stuck) == facts(job)


def test_stuck_flows_may_be_asked_for_by_age(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(lease_ms=1_000)
    clock.advance(1_500)
    assert list(flows.store.flow_stuck(flows.type, older_than_ms=501)) == []
    assert ids(flows.store.flow_stuck(flows.type, older_than_ms=500)) == [job.id]


def test_stuck_flows_are_counted_and_of_one_type(flows: Flows, name: Name) -> None:
    keys = name.partitions()
    for number in range(4):
        flows.leased(number, partition_key=keys[number % 2], lease_ms=1_000)
    flows.leased("other", type=name("other-type"), lease_ms=1_000)
    flows.clock.advance(1_000)
    assert len(flows.store.flow_stuck(flows.type)) == 4
    assert len(flows.store.flow_stuck(flows.type, count=3)) == 3


def test_a_flow_is_not_stuck_any_more_once_it_is_taken_or_settled(flows: Flows) -> None:
    flows.expired("a", "b", "c")
    first, second = flows.reclaim(limit=2)
    assert len(flows.store.flow_stuck(flows.type)) == 1
    (last,) = flows.store.flow_stuck(flows.type)
    flows.complete(last)
    assert list(flows.store.flow_stuck(flows.type)) == []
    assert flows.complete(first).state == flows.complete(second).state == "completed"
