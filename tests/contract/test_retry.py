"""Section 5: giving a flow back for another attempt."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import DAY_MS, Flows, Name, facts, ids


def plain(kind: Any, base_ms: int = 100, max_ms: int = 10_000, retries: int = 10) -> sf.Retry:
    backoff = sf.Backoff(kind=kind, base_ms=base_ms, max_ms=max_ms, jitter_pct=0)
    return sf.Retry(max_retries=retries, backoff=backoff)


def delays(flows: Flows, retry: Any, count: int) -> list[int]:
    """Retry a flow again and again and return how long it had to wait each time."""
    seen: list[int] = []
    flow = flows.create()
    for _ in range(count):
        flow = flows.retry(flows.take(flow), retry=retry)
        assert flow.next_run_at_ms is not None
        wait_ms = flow.next_run_at_ms - flows.clock.now_ms()
        seen.append(wait_ms)
        flows.clock.advance(wait_ms)
    return seen


def numbers_in(details: Any) -> set[Any]:
    """Return every scalar in nested details."""
    if isinstance(details, dict):
        return set().union(*map(numbers_in, details.values()))
    if isinstance(details, list):
        return set().union(*map(numbers_in, details))
    return {details}


def test_a_retry_gives_the_flow_back_to_its_state(flows: Flows, clock: ManualClock) -> None:
    job = flows.leased(state="charging")
    clock.advance(50)
    flow = flows.retry(job, retry=plain("fixed", 700))
    assert (flow.state, flow.run_state) == ("charging", None)
    assert (flow.lease_owner, flow.lease_token, flow.lease_deadline_ms) == (None, None, None)
    assert flow.attempts == 1
    assert flow.reclaims == 0
    assert flow.version == job.version + 1
    assert flow.fencing_token == job.fencing_token
    assert flow.next_run_at_ms == clock.now_ms() + 700
    assert facts(flows.get(job)) == facts(flow)


def test_a_retried_flow_is_claimed_when_its_wait_is_over(flows: Flows, clock: ManualClock) -> None:
    flow = flows.retry(flows.leased(), retry=plain("fixed", 700))
    clock.advance(699)
    assert flows.claim() == []
    clock.advance(1)
    (job,) = flows.claim()
    assert job.id == flow.id
    assert job.attempts == 1


def test_no_backoff_waits_not_at_all(flows: Flows) -> None:
    assert delays(flows, plain("none"), 3) == [0, 0, 0]


def test_a_fixed_backoff_waits_the_same_every_time(flows: Flows) -> None:
    assert delays(flows, plain("fixed"), 4) == [100] * 4


def test_a_linear_backoff_grows_by_its_base(flows: Flows) -> None:
    assert delays(flows, plain("linear", max_ms=350), 5) == [100, 200, 300, 350, 350]


def test_an_exponential_backoff_doubles(flows: Flows) -> None:
    assert delays(flows, plain("exponential", max_ms=1_000), 5) == [100, 200, 400, 800, 1_000]


def test_the_longest_waits_stay_within_the_cap(flows: Flows) -> None:
    retry = plain("exponential", base_ms=30 * DAY_MS, max_ms=30 * DAY_MS, retries=1_000)
    assert delays(flows, retry, 3) == [30 * DAY_MS] * 3


def test_a_base_above_the_cap_is_capped(flows: Flows) -> None:
    assert delays(flows, plain("fixed", base_ms=900, max_ms=300), 2) == [300, 300]


def test_jitter_only_shortens_a_wait(flows: Flows) -> None:
    retry = sf.Retry(10, sf.Backoff("fixed", base_ms=1_000, max_ms=1_000, jitter_pct=50))
    waits = delays(flows, retry, 10)
    assert all(500 <= wait_ms <= 1_000 for wait_ms in waits)
    assert len(set(waits)) > 1


def test_jitter_follows_from_the_id_and_the_attempt_alone(flows: Flows, name: Name) -> None:
    retry = sf.Retry(5, sf.Backoff("exponential", base_ms=10_000, max_ms=60_000, jitter_pct=90))
    dues = []
    for key in name.partitions():
        flow = flows.retry(flows.leased(partition_key=key), retry=retry)
        dues.append(flow.next_run_at_ms)
    assert dues[0] == dues[1]
    assert dues[0] is not None
    assert dues[0] - flows.clock.now_ms() == retry.preview(name("a"))[0]


def test_a_preview_lists_the_waits_that_a_flow_will_have(flows: Flows, name: Name) -> None:
    retry = sf.Retry(4, sf.Backoff("linear", base_ms=1_000, max_ms=3_500, jitter_pct=30))
    assert delays(flows, retry, 4) == retry.preview(name("a"))


def test_the_built_in_policy_holds_when_nothing_is_said(flows: Flows) -> None:
    waits = delays(flows, None, 3)
    for wait_ms, longest_ms in zip(waits, [1_000, 2_000, 4_000], strict=True):
        assert longest_ms * 0.8 <= wait_ms <= longest_ms
    flow = flows.get(flows.claim()[0])
    assert flow.attempts == 3
    assert flows.retry(flow).state == "failed"


def test_a_due_time_overrides_the_wait(flows: Flows, clock: ManualClock) -> None:
    due_ms = clock.now_ms() + 77
    flow = flows.retry(flows.leased(), retry=plain("fixed", 5_000), run_at_ms=due_ms)
    assert flow.next_run_at_ms == due_ms
    assert flow.attempts == 1
    clock.advance(77)
    assert ids(flows.claim()) == [flow.id]


@pytest.mark.parametrize("run_at_ms", [0, 1])
def test_a_due_time_in_the_past_is_due_now(flows: Flows, run_at_ms: int) -> None:
    flow = flows.retry(flows.leased(), run_at_ms=run_at_ms)
    assert flow.next_run_at_ms == run_at_ms
    assert ids(flows.claim()) == [flow.id]


def test_a_due_time_does_not_save_a_flow_that_is_exhausted(
    flows: Flows, clock: ManualClock
) -> None:
    flow = flows.retry(flows.leased(), retry=plain("none", retries=0), run_at_ms=clock.now_ms())
    assert flow.state == "failed"


def test_a_retry_keeps_the_error(flows: Flows) -> None:
    flow = flows.retry(flows.leased(payload="in"), error={"status": 503}, run_at_ms=0)
    read = flows.read(flow)
    assert read.error == {"status": 503}
    assert read.payload == "in"


def test_a_retry_may_change_the_payload(flows: Flows) -> None:
    flow = flows.retry(flows.leased(payload="in"), payload={"tried": 1}, run_at_ms=0)
    assert flows.take(flow).payload == {"tried": 1}


def test_a_retry_is_given_as_an_object_or_as_a_dict(flows: Flows) -> None:
    fields = {
        "max_retries": 2,
        "backoff": {"kind": "fixed", "base_ms": 123, "max_ms": 500, "jitter_pct": 0},
    }
    assert delays(flows, fields, 2) == [123, 123]


def test_the_priority_of_a_retried_flow_stays(flows: Flows) -> None:
    assert flows.retry(flows.leased(priority=2), run_at_ms=0).priority == 2


@pytest.mark.parametrize(
    "retry",
    [
        {"max_retries": -1},
        {"max_retries": 1_001},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"exhausted_to": "running"},
        {"exhausted_to": ""},
        {"exhausted_to": 1},
        {"exhausted_to": "x" * 513},
        {"backoff": {"kind": "quadratic"}},
        {"backoff": {"base_ms": 30 * DAY_MS + 1}},
        {"backoff": {"max_ms": 30 * DAY_MS + 1}},
        {"backoff": {"base_ms": -1}},
        {"backoff": {"jitter_pct": 101}},
        {"backoff": {"jitter_pct": -1}},
        {"backoff": {"delay": 1}},
        {"backoff": "fixed"},
        {"tries": 1},
        "fixed",
        3,
    ],
    ids=lambda retry: repr(retry)[:40],
)
def test_a_retry_that_is_not_allowed_is_refused_and_nothing_changes(
    flows: Flows, retry: Any
) -> None:
    job = flows.leased()
    with flows.unchanged(job), pytest.raises(sf.InvalidArgument):
        flows.retry(job, retry=retry)
    assert flows.complete(job).state == "completed"


def test_the_retry_event_names_the_decision_and_every_effective_number(flows: Flows) -> None:
    backoff = sf.Backoff("linear", base_ms=1_234, max_ms=5_678, jitter_pct=0)
    flow = flows.retry(
        flows.leased(), retry=sf.Retry(7, backoff, exhausted_to="repair", max_reclaims=9)
    )
    event = flows.events(flow)[-1]
    assert event.name == "retry"
    assert (event.from_state, event.to_state) == ("queued", "queued")
    assert event.attempts == 1
    told = numbers_in(event.details)
    assert {7, "linear", 1_234, 5_678, 0, "repair"} <= told
    assert "scheduled" in told


def test_the_retry_event_says_when_the_attempts_are_used_up(flows: Flows) -> None:
    flow = flows.retry(flows.leased(), retry=sf.Retry(0, exhausted_to="repair"))
    event = flows.events(flow)[-1]
    assert event.name == "retry"
    assert (event.from_state, event.to_state) == ("queued", "repair")
    assert {0, "repair", "exhausted"} <= numbers_in(event.details)
