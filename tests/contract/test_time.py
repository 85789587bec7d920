"""Sections 1 and 2: the clock, the time of one command, instants and durations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import START_MS, Flows, Name, ids

AT = datetime(2033, 5, 18, 3, 33, 20, 5_000, tzinfo=UTC)
AT_MS = 2_000_000_000_005


def test_a_manual_clock_moves_only_when_told(clock: ManualClock) -> None:
    before_ms = clock.now_ms()
    assert clock.now_ms() == before_ms
    clock.advance(5)
    assert clock.now_ms() == before_ms + 5


def test_a_manual_clock_starts_where_told() -> None:
    assert ManualClock(START_MS).now_ms() == START_MS
    assert ManualClock(0).now_ms() == 0


def test_commands_take_the_time_from_the_clock(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create()
    clock.advance(123)
    moved = flows.move(flow, "next")
    assert moved.created_at_ms == clock.now_ms() - 123
    assert moved.updated_at_ms == clock.now_ms()


def test_the_time_of_one_command_may_be_given(flows: Flows, clock: ManualClock) -> None:
    later_ms = clock.now_ms() + 40_000
    flow = flows.create(now_ms=later_ms)
    assert flow.created_at_ms == later_ms
    assert flow.next_run_at_ms == later_ms
    assert flows.claim() == []
    (job,) = flows.claim(now_ms=later_ms, lease_ms=1_000)
    assert job.lease_deadline_ms == later_ms + 1_000
    assert flows.create("other").created_at_ms == clock.now_ms()


def test_a_given_time_in_the_past_sees_the_flow_as_not_due(
    flows: Flows, clock: ManualClock
) -> None:
    flow = flows.create()
    assert flows.claim(now_ms=clock.now_ms() - 1) == []
    assert ids(flows.claim()) == [flow.id]


def test_a_given_time_decides_whether_a_lease_has_expired(flows: Flows) -> None:
    job = flows.leased(lease_ms=10_000)
    assert job.lease_deadline_ms is not None
    assert flows.reclaim(now_ms=job.lease_deadline_ms - 1) == []
    assert ids(flows.reclaim(now_ms=job.lease_deadline_ms)) == [job.id]


def test_a_time_that_goes_backwards_never_loses_a_flow(flows: Flows, clock: ManualClock) -> None:
    now_ms = clock.now_ms()
    flow = flows.create(now_ms=now_ms + 9_000)
    (job,) = flows.claim(now_ms=now_ms + 9_000)
    stepped = flows.step(job, "next", now_ms=now_ms, lease_ms=1_000)
    assert stepped.updated_at_ms >= flow.updated_at_ms
    retried = flows.retry(stepped, run_at_ms=now_ms, now_ms=now_ms - 1_000)
    assert retried.updated_at_ms >= stepped.updated_at_ms
    assert ids(flows.claim(now_ms=now_ms)) == [flow.id]


@pytest.mark.parametrize(
    "instant",
    [
        AT_MS,
        AT,
        AT.astimezone(timezone(timedelta(hours=-8))),
        AT.astimezone(timezone(timedelta(hours=5, minutes=45))),
    ],
    ids=["ms", "utc", "west", "east"],
)
def test_an_instant_is_an_integer_or_an_aware_datetime(flows: Flows, instant: Any) -> None:
    flow = flows.create("a", run_at_ms=instant)
    moved = flows.move(flows.create("b"), "next", run_at_ms=instant)
    retried = flows.retry(flows.leased("c", state="other"), run_at_ms=instant)
    assert [record.next_run_at_ms for record in (flow, moved, retried)] == [AT_MS] * 3
    assert flows.create("d", now_ms=instant).created_at_ms == AT_MS


def test_an_aware_datetime_restricts_a_history(flows: Flows) -> None:
    flow = flows.create(now_ms=AT_MS)
    assert flows.event_names(flow, from_ms=AT) == ["created"]
    assert flows.event_names(flow, to_ms=AT - timedelta(milliseconds=1)) == []


def test_a_naive_datetime_is_a_value_error(flows: Flows) -> None:
    naive = datetime(2033, 5, 18)
    flow, job = flows.create("flow"), flows.leased("job", state="other")
    with flows.unchanged(flow, job):
        with pytest.raises(ValueError):
            flows.create("new", run_at_ms=naive)
        with pytest.raises(ValueError):
            flows.create("new", now_ms=naive)
        with pytest.raises(ValueError):
            flows.move(flow, "next", run_at_ms=naive)
        with pytest.raises(ValueError):
            flows.retry(job, run_at_ms=naive)
        with pytest.raises(ValueError):
            flows.events(flow, from_ms=naive)
        with pytest.raises(ValueError):
            flows.store.flow_create_many(
                [{"id": flows.name("new"), "run_at_ms": naive}], type=flows.type
            )
    assert flows.store.flow_get(flows.name("new")) is None


def test_a_naive_datetime_is_an_invalid_argument(flows: Flows) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.create(run_at_ms=datetime(2033, 5, 18))


@pytest.mark.parametrize("duration", [90_000, timedelta(seconds=90)], ids=["ms", "timedelta"])
def test_a_duration_is_an_integer_or_a_timedelta(
    flows: Flows, clock: ManualClock, duration: Any
) -> None:
    deadline_ms = clock.now_ms() + 90_000
    flows.create(retention_ttl_ms=duration)
    (job,) = flows.claim(lease_ms=duration)
    assert job.retention_ttl_ms == 90_000
    assert job.lease_deadline_ms == deadline_ms
    assert flows.extend(job, lease_ms=duration).lease_deadline_ms == deadline_ms
    assert flows.step(job, "next", lease_ms=duration).lease_deadline_ms == deadline_ms
    started = flows.store.flow_start_and_claim(
        flows.name("started"), type=flows.type, state="s", worker="w", lease_ms=duration
    )
    assert started.lease_deadline_ms == deadline_ms


@pytest.mark.parametrize("duration", [timedelta(seconds=-1), timedelta(days=200_000_000)])
def test_a_duration_out_of_bounds_is_refused(flows: Flows, duration: timedelta) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.create(retention_ttl_ms=duration)
    assert flows.store.flow_get(flows.name("a")) is None


def test_an_instant_before_the_epoch_is_refused(flows: Flows) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.create(run_at_ms=datetime(1969, 12, 31, tzinfo=UTC))


def test_the_wall_clock_is_the_default(open_store: Any, name: Name) -> None:
    before_ms = int(datetime.now(UTC).timestamp() * 1_000)
    flow = open_store().flow_create(name("a"), type=name.type)
    after_ms = int(datetime.now(UTC).timestamp() * 1_000)
    # The two clocks are read differently and may be rounded apart.
    assert before_ms - 1_000 <= flow.created_at_ms <= after_ms + 1_000
