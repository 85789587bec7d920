"""Section 3: flow_info."""

from __future__ import annotations

from typing import Any

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name

SPLIT = ("ready", "scheduled", "leased", "expired", "waiting")


def info(flows: Flows, **options: Any) -> dict[str, Any]:
    """Ask for the counts and check that they add up."""
    found: dict[str, Any] = flows.store.flow_info(flows.type, **options)
    assert found["type"] == flows.type
    for counts in found["states"].values():
        assert counts["total"] == sum(counts[part] for part in SPLIT)
    for part in SPLIT:
        assert found[part] == sum(counts[part] for counts in found["states"].values())
    return found


def parts(found: dict[str, Any], state: str) -> tuple[int, ...]:
    """Return one state's counts: ready, scheduled, leased, expired, waiting."""
    counts = found["states"].get(state, dict.fromkeys(SPLIT, 0))
    return tuple(counts[part] for part in SPLIT)


def test_a_type_without_flows_counts_nothing(flows: Flows) -> None:
    found = info(flows)
    assert [found[part] for part in SPLIT] == [0] * 5
    assert [found[end] for end in ("completed", "failed", "cancelled")] == [0] * 3
    assert found["oldest_ready_age_ms"] is None


def test_flows_are_counted_by_logical_state_and_by_what_they_wait_for(
    flows: Flows, clock: ManualClock
) -> None:
    now_ms = clock.now_ms()
    flows.leased("held", state="a")
    flows.leased("late", state="a", lease_ms=1_000)
    flows.create("ready", state="a")
    flows.create("later", state="a", run_at_ms=now_ms + 1_000_000)
    flows.create("parked", state="a", run_at_ms=sf.NEVER)
    flows.create("other", state="b")
    clock.advance(1_000)
    found = info(flows)
    assert parts(found, "a") == (1, 1, 1, 1, 1)
    assert parts(found, "b") == (1, 0, 0, 0, 0)
    assert [found[part] for part in SPLIT] == [2, 1, 1, 1, 1]


def test_ended_flows_are_counted_by_their_end(flows: Flows, clock: ManualClock) -> None:
    for number in range(3):
        flows.ended(f"completed-{number}")
    for number in range(2):
        flows.fail(flows.leased(f"failed-{number}"))
    flows.cancel(flows.create("cancelled"))
    clock.advance(3_600_000)
    found = info(flows)
    assert (found["completed"], found["failed"], found["cancelled"]) == (3, 2, 1)
    assert [found[part] for part in SPLIT] == [0] * 5


def test_counts_are_over_all_shards(flows: Flows, name: Name) -> None:
    for key in (*name.partitions(), None):
        flows.create(key, partition_key=key)
        flows.cancel(flows.create(f"{key}-gone", partition_key=key))
    found = info(flows)
    assert parts(found, "queued") == (3, 0, 0, 0, 0)
    assert found["cancelled"] == 3


def test_counts_follow_a_flow_through_its_life(flows: Flows, clock: ManualClock) -> None:
    seen: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []

    def look() -> None:
        found = info(flows)
        seen.append((parts(found, "a"), parts(found, "b"), found["completed"]))

    flow = flows.create(state="a")
    look()
    job = flows.take(flow)
    look()
    job = flows.step(job, "b", lease_ms=1_000)
    look()
    clock.advance(1_000)
    look()
    (job,) = flows.reclaim()
    look()
    flow = flows.retry(job, run_at_ms=clock.now_ms() + 500)
    look()
    clock.advance(500)
    look()
    flows.complete(flows.take(flow))
    look()
    nothing = (0, 0, 0, 0, 0)
    assert seen == [
        ((1, 0, 0, 0, 0), nothing, 0),
        ((0, 0, 1, 0, 0), nothing, 0),
        (nothing, (0, 0, 1, 0, 0), 0),
        (nothing, (0, 0, 0, 1, 0), 0),
        (nothing, (0, 0, 1, 0, 0), 0),
        (nothing, (0, 1, 0, 0, 0), 0),
        (nothing, (1, 0, 0, 0, 0), 0),
        (nothing, nothing, 1),
    ]


def test_the_oldest_ready_flow_is_told_by_its_age(flows: Flows, clock: ManualClock) -> None:
    now_ms = clock.now_ms()
    flows.create("later", run_at_ms=now_ms + 100)
    assert info(flows)["oldest_ready_age_ms"] is None
    flows.create("now")
    assert info(flows)["oldest_ready_age_ms"] == 0
    flows.create("earlier", run_at_ms=now_ms - 700)
    clock.advance(50)
    assert info(flows)["oldest_ready_age_ms"] == 750
    flows.claim()
    assert info(flows)["oldest_ready_age_ms"] == 50


def test_a_leased_flow_is_not_ready(flows: Flows, clock: ManualClock) -> None:
    flows.leased()
    clock.advance(60_000)
    assert info(flows)["oldest_ready_age_ms"] is None
    assert info(flows)["ready"] == 0


def test_the_time_asked_for_decides_what_is_ready(flows: Flows, clock: ManualClock) -> None:
    now_ms = clock.now_ms()
    flows.create(run_at_ms=now_ms + 10)
    assert info(flows, now_ms=now_ms + 9)["scheduled"] == 1
    assert info(flows, now_ms=now_ms + 10)["ready"] == 1


def test_a_flow_after_its_retention_is_not_counted(flows: Flows, clock: ManualClock) -> None:
    flows.ended(retention_ttl_ms=1_000)
    assert info(flows)["completed"] == 1
    clock.advance(1_000)
    assert info(flows)["completed"] == 0


def test_types_are_counted_apart(flows: Flows, name: Name) -> None:
    flows.create("mine")
    flows.create("other", type=name("other-type"))
    assert info(flows)["ready"] == 1
