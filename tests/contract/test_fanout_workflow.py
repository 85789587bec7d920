"""Section 11: fan-out as a workflow offers it, from a handler to the flow that goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import shardflow as sf
from support.contract import Name, ids


class Flows:
    """Two workflows with types of the test's own, on a store."""

    def __init__(self, store: sf.Store, name: Name) -> None:
        class EmailFlow(sf.Workflow, type=name("email"), store=store):
            queued = sf.state(on_ok=sf.complete(), on_error=sf.fail())

            @queued.handler
            @staticmethod
            def send(job: sf.Job) -> Any:
                return sf.Err("bounced") if job.payload == "bad" else sf.Ok("sent")

        class BillingFlow(
            sf.Workflow, type=name("billing"), store=store, partition_by=("tenant_id",)
        ):
            created = sf.state()
            notified = sf.state()
            review = sf.state()

            @created.handler
            @staticmethod
            def charge(job: sf.Job) -> Any:
                emails = [
                    EmailFlow.child(id=f"{job.id}-{number}", payload=payload)
                    for number, payload in enumerate(job.payload)
                ]
                job.workflow.fanout(job, emails, on_all_ok="notified", on_any_error="review")
                return sf.NOREPLY

            @notified.handler
            @staticmethod
            def finish(job: sf.Job) -> Any:
                return sf.Ok(job.record.child_groups["fanout"].completed)

        self.billing = BillingFlow
        self.email = EmailFlow
        self.id = name("i9")

    def create(self, *payloads: str) -> sf.FlowRecord:
        return self.billing.create(id=self.id, tenant_id=self.id, payload=list(payloads))

    def get(self) -> sf.FlowRecord:
        record = self.billing.get(self.id, tenant_id=self.id, payload=True)
        assert record is not None
        return record


@pytest.fixture
def two(store: sf.Store, name: Name) -> Flows:
    return Flows(store, name)


def test_a_flow_goes_on_when_all_its_children_have_completed(two: Flows) -> None:
    two.create("a", "b", "c")
    assert two.billing.run_once(worker="w1") == [None]
    waiting = two.get()
    assert (waiting.state, waiting.lease_token) == ("waiting_children", None)
    assert two.billing.run_once(worker="w1") == []
    two.email.run_once(worker="w1", limit=2)
    group = two.get().child_groups["fanout"]
    assert isinstance(group, sf.ChildGroup)
    assert (group.wait, group.status, group.total, group.completed) == ("all", "open", 3, 2)
    two.email.run_once(worker="w1")
    assert two.get().state == "notified"
    two.billing.run_once(worker="w1")
    ended = two.get()
    assert (ended.state, ended.result) == ("completed", 3)
    assert ended.child_groups["fanout"].status == "success"


def test_a_flow_goes_elsewhere_when_a_child_fails_and_the_others_are_cancelled(
    two: Flows,
) -> None:
    parent = two.create("bad", "b", "c")
    two.billing.run_once(worker="w1")
    children = {child.id: child for child in two.billing.children(parent)}
    first = children[f"{two.id}-0"]
    assert first.partition_key == two.id
    two.email.run_once(worker="w1")
    assert two.get().state == "review"
    group = two.get().child_groups["fanout"]
    assert (group.status, group.failed, group.cancelled) == ("failure", 1, 2)
    assert two.billing.waiting_children(parent) == []


def test_children_tells_all_and_waiting_children_those_that_have_not_ended(two: Flows) -> None:
    parent = two.create(*"abcdef")
    two.billing.run_once(worker="w1")
    two.email.run_once(worker="w1", limit=4)
    every = [f"{two.id}-{number}" for number in range(6)]
    assert sorted(ids(two.billing.children(parent))) == every
    assert sorted(ids(two.billing.waiting_children(parent))) == every[4:]
    # The ended ones do not count: two of two are found, however the listing is ordered.
    assert sorted(ids(two.billing.waiting_children(parent, count=2))) == every[4:]
    page = two.billing.waiting_children(parent.id, count=1)
    rest = two.billing.waiting_children(parent.id, count=1, after=page.after)
    assert sorted(ids([*page, *rest])) == every[4:]
    assert sorted(ids(asyncio.run(two.billing.aio.waiting_children(parent)))) == every[4:]
    assert sorted(ids(asyncio.run(two.billing.aio.children(parent, count=10)))) == every


def test_the_awaitable_twin_does_the_same(two: Flows) -> None:
    async def charge(job: sf.Job) -> Any:
        child = await two.email.aio.child(id=f"{two.id}-0", payload="a")
        await job.workflow.aio.fanout(
            job, [child], wait="any", success="notified", failure="completed"
        )
        return sf.NOREPLY

    two.create()
    assert asyncio.run(two.billing.aio.run_once(worker="w1", handler=charge)) == [None]
    assert two.get().child_groups["fanout"].wait == "any"
    asyncio.run(two.email.aio.run_once(worker="w1"))
    assert two.get().state == "notified"


def test_a_handler_that_waits_for_nobody_keeps_its_job(two: Flows) -> None:
    def charge(job: sf.Job) -> Any:
        after = job.workflow.fanout(job, [two.email.child(id=f"{two.id}-0")], wait="none")
        assert (after.state, after.lease_token) == ("running", job.lease_token)
        return sf.Ok("charged")

    two.create()
    (after,) = two.billing.run_once(worker="w1", handler=charge)
    assert after is not None
    assert after.state == "completed"


def test_an_outcome_after_a_fan_out_that_is_waited_for_is_a_stale_lease(two: Flows) -> None:
    def charge(job: sf.Job) -> Any:
        job.workflow.fanout(
            job,
            [two.email.child(id=f"{two.id}-0")],
            on_all_ok="notified",
            on_any_error="review",
        )
        return sf.Ok("charged")

    two.create()
    with pytest.raises(sf.StaleLease):
        two.billing.run_once(worker="w1", handler=charge)
    assert two.get().state == "waiting_children"
    assert two.get().child_groups["fanout"].status == "open"
