"""Section 4: ending a flow from outside."""

from __future__ import annotations

from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts


def test_a_waiting_flow_is_cancelled_without_any_token(flows: Flows, clock: ManualClock) -> None:
    flow = flows.create()
    clock.advance(5)
    cancelled = flows.cancel(flow)
    assert cancelled.state == "cancelled"
    assert cancelled.run_state is None
    assert cancelled.next_run_at_ms is None
    assert cancelled.version == flow.version + 1
    assert cancelled.updated_at_ms == clock.now_ms()
    assert facts(flows.get(flow)) == facts(cancelled)
    assert flows.claim() == []


@pytest.mark.parametrize("run_at_ms", [4_000_000_000_000, sf.NEVER])
def test_a_flow_that_is_not_due_is_cancelled(flows: Flows, run_at_ms: int) -> None:
    assert flows.cancel(flows.create(run_at_ms=run_at_ms)).state == "cancelled"


def test_a_matching_fencing_token_cancels(flows: Flows) -> None:
    flow = flows.create()
    assert flows.cancel(flow, fencing_token=flow.fencing_token).state == "cancelled"


def test_another_fencing_token_does_not_cancel(flows: Flows) -> None:
    flow = flows.retry(flows.leased(), run_at_ms=0)
    for fencing_token in (0, flow.fencing_token - 1, flow.fencing_token + 1):
        with flows.unchanged(flow), pytest.raises(sf.StaleLease):
            flows.cancel(flow, fencing_token=fencing_token)


def test_fencing_token_zero_is_compared_too(flows: Flows) -> None:
    flow = flows.retry(flows.leased(), run_at_ms=0)
    assert flow.fencing_token > 0
    with flows.unchanged(flow), pytest.raises(sf.StaleLease):
        flows.cancel(flow, fencing_token=0)


def test_the_holder_cancels_with_its_lease_token(flows: Flows) -> None:
    job = flows.leased()
    cancelled = flows.cancel(job, lease_token=job.lease_token, fencing_token=job.fencing_token)
    assert cancelled.state == "cancelled"
    assert (cancelled.lease_owner, cancelled.lease_token) == (None, None)


def test_a_leased_flow_is_not_cancelled_without_its_lease_token(flows: Flows) -> None:
    job = flows.leased()
    tries: list[dict[str, Any]] = [
        {},
        {"fencing_token": job.fencing_token},
        {"lease_token": "another"},
        {"lease_token": job.lease_token, "fencing_token": job.fencing_token + 1},
    ]
    for options in tries:
        with flows.unchanged(job), pytest.raises(sf.StaleLease):
            flows.cancel(job, **options)
    assert flows.complete(job).state == "completed"


def test_an_expired_lease_still_protects_a_flow_from_being_cancelled(
    flows: Flows, clock: ManualClock
) -> None:
    job = flows.leased(lease_ms=1_000)
    clock.advance(1_000)
    with flows.unchanged(job), pytest.raises(sf.StaleLease):
        flows.cancel(job)


def test_force_cancels_a_leased_flow_and_fences_its_holder_off(flows: Flows) -> None:
    job = flows.leased()
    cancelled = flows.cancel(job, force=True)
    assert cancelled.state == "cancelled"
    assert cancelled.fencing_token == job.fencing_token + 1
    assert cancelled.lease_token is None
    with flows.unchanged(cancelled):
        for command in (flows.complete, flows.fail, flows.retry, flows.extend):
            with pytest.raises(sf.StaleLease):
                command(job)


def test_force_cancels_a_waiting_flow_as_well(flows: Flows) -> None:
    assert flows.cancel(flows.create(), force=True).state == "cancelled"


def test_cancelling_again_returns_the_flow_unchanged(flows: Flows) -> None:
    cancelled = flows.cancel(flows.create(), reason="first")
    with flows.unchanged(cancelled):
        assert facts(flows.cancel(cancelled)) == facts(cancelled)
        assert facts(flows.cancel(cancelled, reason="second")) == facts(cancelled)
        assert facts(flows.cancel(cancelled, force=True)) == facts(cancelled)


@pytest.mark.parametrize("end", ["completed", "failed"])
def test_an_ended_flow_cannot_be_cancelled(flows: Flows, end: str) -> None:
    job = flows.leased()
    ended = flows.complete(job) if end == "completed" else flows.fail(job)
    tries: list[dict[str, Any]] = [
        {},
        {"force": True},
        {"lease_token": job.lease_token, "fencing_token": job.fencing_token},
    ]
    for options in tries:
        with flows.unchanged(ended), pytest.raises(sf.FlowTerminal) as caught:
            flows.cancel(ended, **options)
        assert caught.value.state == end
        assert caught.value.flow_id == ended.id


def test_an_absent_flow_cannot_be_cancelled(flows: Flows, name: Name) -> None:
    with pytest.raises(sf.FlowNotFound) as caught:
        flows.store.flow_cancel(name("nowhere"), partition_key=name("p"))
    assert caught.value.flow_id == name("nowhere")
    assert caught.value.partition_key == name("p")


@pytest.mark.parametrize("reason", ["customer left", 0, "", {"by": "support"}], ids=repr)
def test_the_reason_of_a_cancellation_can_be_read(flows: Flows, reason: Any) -> None:
    cancelled = flows.cancel(flows.create(), reason=reason)
    assert flows.read(cancelled).error == reason


def test_a_cancelled_flow_keeps_its_payload(flows: Flows) -> None:
    cancelled = flows.cancel(flows.create(payload="in"))
    assert flows.read(cancelled).payload == "in"
