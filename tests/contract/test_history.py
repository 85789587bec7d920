"""Section 3: flow_history."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name

LONG_LIFE = [
    "created",
    "claimed",
    "lease_extended",
    "step_continued",
    "retry",
    "claimed",
    "transitioned",
    "value_put",
    "claimed",
    "completed",
]


def long_life(flows: Flows, clock: ManualClock) -> sf.FlowRecord:
    """Let a flow go through most of what can happen to it, 10 ms apart."""
    flow = flows.create(state="a", payload="p0")
    clock.advance(10)
    job = flows.take(flow, worker="w1")
    clock.advance(10)
    flows.extend(job)
    clock.advance(10)
    job = flows.step(job, "b", payload="p1")
    clock.advance(10)
    flow = flows.retry(job, run_at_ms=0, error="e1")
    clock.advance(10)
    job = flows.take(flow, worker="w2")
    clock.advance(10)
    flow = flows.move(job, "c", payload="p2")
    clock.advance(10)
    flow = flows.put(flow, "v", 1)
    clock.advance(10)
    job = flows.take(flow, worker="w1")
    clock.advance(10)
    return flows.complete(job, result="r")


def test_every_write_is_told_by_name(flows: Flows, clock: ManualClock) -> None:
    assert flows.event_names(long_life(flows, clock)) == LONG_LIFE


def test_the_other_ends_are_told_by_name(flows: Flows) -> None:
    failed = flows.fail(flows.leased("failed"))
    cancelled = flows.cancel(flows.create("cancelled"))
    assert flows.event_names(failed) == ["created", "claimed", "failed"]
    assert flows.event_names(cancelled) == ["created", "cancelled"]


def test_an_event_tells_where_it_led(flows: Flows, clock: ManualClock) -> None:
    start_ms = clock.now_ms()
    events = flows.events(long_life(flows, clock))
    assert [event.version for event in events] == list(range(1, 11))
    assert [event.at_ms - start_ms for event in events] == list(range(0, 100, 10))
    assert [(event.from_state, event.to_state) for event in events] == [
        (None, "a"),
        ("a", "a"),
        ("a", "a"),
        ("a", "b"),
        ("b", "b"),
        ("b", "b"),
        ("b", "c"),
        ("c", "c"),
        ("c", "c"),
        ("c", "completed"),
    ]
    assert [event.attempts for event in events] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    first = events[0].fencing_token
    assert [event.fencing_token - first for event in events] == [0, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def test_an_event_of_a_claim_names_its_worker(flows: Flows, clock: ManualClock) -> None:
    events = flows.events(long_life(flows, clock), event="claimed")
    assert [event.worker for event in events] == ["w1", "w2", "w1"]


def test_event_ids_grow_strictly_and_sort_as_text(flows: Flows) -> None:
    flow = flows.create()
    for _ in range(12):
        flow = flows.move(flow, "queued")
    event_ids = [event.event_id for event in flows.events(flow)]
    assert event_ids == sorted(event_ids)
    assert len(set(event_ids)) == 13


def test_events_stay_in_order_when_time_goes_backwards(flows: Flows, clock: ManualClock) -> None:
    now_ms = clock.now_ms()
    flow = flows.create()
    for offset in (5_000, -5_000, 0, 1):
        flow = flows.move(flow, "queued", now_ms=now_ms + offset)
    events = flows.events(flow)
    assert [event.version for event in events] == [1, 2, 3, 4, 5]
    event_ids = [event.event_id for event in events]
    assert event_ids == sorted(set(event_ids))
    times = [event.at_ms for event in events]
    assert times == sorted(times)


def test_reversed_history_is_the_same_the_other_way_round(flows: Flows, clock: ManualClock) -> None:
    flow = long_life(flows, clock)
    assert flows.events(flow, reverse=True) == flows.events(flow)[::-1]


@pytest.mark.parametrize("count", [1, 3, 10, 10_000])
def test_a_count_gives_the_newest(flows: Flows, clock: ManualClock, count: int) -> None:
    flow = long_life(flows, clock)
    assert flows.event_names(flow, count=count) == LONG_LIFE[-count:]
    assert flows.event_names(flow, count=count, reverse=True) == LONG_LIFE[-count:][::-1]


def test_a_count_counts_what_matches(flows: Flows, clock: ManualClock) -> None:
    flow = long_life(flows, clock)
    events = flows.events(flow, event="claimed", count=2)
    assert [event.version for event in events] == [6, 9]


@pytest.mark.parametrize(
    ("given", "versions"),
    [
        ({"event": "claimed"}, [2, 6, 9]),
        ({"event": "rewound"}, []),
        ({"from_version": 8}, [8, 9, 10]),
        ({"to_version": 2}, [1, 2]),
        ({"from_version": 3, "to_version": 5}, [3, 4, 5]),
        ({"from_version": 4, "to_version": 4}, [4]),
        ({"from_version": 5, "to_version": 3}, []),
        ({"from_version": 0}, list(range(1, 11))),
        ({"to_version": 0}, []),
        ({"event": "claimed", "from_version": 3}, [6, 9]),
    ],
    ids=repr,
)
def test_a_history_is_filtered(
    flows: Flows, clock: ManualClock, given: dict[str, Any], versions: list[int]
) -> None:
    events = flows.events(long_life(flows, clock), **given)
    assert [event.version for event in events] == versions


def test_a_history_is_filtered_by_time(flows: Flows, clock: ManualClock) -> None:
    start_ms = clock.now_ms()
    flow = long_life(flows, clock)
    between = flows.events(flow, from_ms=start_ms + 15, to_ms=start_ms + 45)
    assert [event.version for event in between] == [3, 4, 5]
    exact = flows.events(flow, from_ms=start_ms + 20, to_ms=start_ms + 40)
    assert [event.version for event in exact] == [3, 4, 5]
    assert flows.events(flow, to_ms=start_ms - 1) == []
    assert flows.events(flow, to_ms=0) == []


def test_a_history_is_filtered_by_worker(flows: Flows, clock: ManualClock) -> None:
    flow = long_life(flows, clock)
    by_second = flows.events(flow, worker="w2")
    assert {event.worker for event in by_second} == {"w2"}
    assert "claimed" in [event.name for event in by_second]
    assert flows.events(flow, worker="nobody") == []


def test_values_are_told_as_of_each_event(flows: Flows, clock: ManualClock) -> None:
    flow = long_life(flows, clock)
    events = flows.events(flow, values=True)
    assert [event.payload for event in events] == ["p0"] * 3 + ["p1"] * 3 + ["p2"] * 4
    assert events[4].error == "e1"
    assert [event.result for event in events] == [None] * 9 + ["r"]


def test_values_are_not_told_unasked(flows: Flows, clock: ManualClock) -> None:
    events = flows.events(long_life(flows, clock))
    assert {(event.payload, event.result, event.error) for event in events} == {(None, None, None)}


def test_a_refused_write_leaves_no_event(flows: Flows) -> None:
    job = flows.leased()
    for _ in range(3):
        with pytest.raises(sf.StaleLease):
            flows.complete(job, fencing_token=job.fencing_token + 1)
        with pytest.raises(sf.WrongState):
            flows.move(job, "next", from_state="elsewhere")
    assert flows.event_names(job) == ["created", "claimed"]


def test_two_partitions_have_two_histories(flows: Flows, name: Name) -> None:
    one, two = (flows.create(partition_key=key) for key in name.partitions())
    flows.cancel(one)
    assert flows.event_names(one) == ["created", "cancelled"]
    assert flows.event_names(two) == ["created"]


def test_the_history_of_an_ended_flow_includes_what_is_cold(
    flows: Flows, clock: ManualClock
) -> None:
    flow = long_life(flows, clock)
    clock.advance(3_600_000)
    assert flows.event_names(flow, include_cold=True) == LONG_LIFE


def test_a_flow_that_does_not_exist_has_no_history(flows: Flows, name: Name) -> None:
    try:
        assert list(flows.store.flow_history(name("nowhere"))) == []
    except sf.FlowNotFound as error:
        assert error.flow_id == name("nowhere")
