"""A job: what its handler sees of a claimed record."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from shardflow.flow.record import Extras
from shardflow.sdk.dsl import state
from shardflow.sdk.job import Job
from shardflow.sdk.workflow import Workflow
from support.recording import a_leased_record


class BillingFlow(Workflow, type="billing"):
    created = state()


RECORD = a_leased_record(
    payload={"amount": 1},
    payload_number=0x2A,
    payload_size=9,
    payload_omitted=False,
    attempts=2,
    values={"receipt": 5},
    extras=Extras(correlation_id="o9", root_flow_id="root", attributes={"vip": True}),
)
FIELDS = {
    "workflow": BillingFlow,
    "record": RECORD,
    "id": "f1",
    "type": "billing",
    "state": "created",
    "partition_key": "t1:i9",
    "lease_token": "token-7",
    "fencing_token": 7,
    "lease_deadline_ms": 61_000,
    "payload": {"amount": 1},
    "payload_ref": "v2a",
    "payload_omitted": False,
    "payload_size": 9,
    "attempts": 2,
    "values": {"receipt": 5},
    "attributes": {"vip": True},
    "correlation_id": "o9",
    "root_flow_id": "root",
    "cancelled": False,
}


def test_a_job_shows_the_record_with_its_logical_state() -> None:
    job = Job(BillingFlow, RECORD)
    assert {field: getattr(job, field) for field in FIELDS} == FIELDS


def test_a_job_has_no_other_fields() -> None:
    public = {name for name in dir(Job) if not name.startswith("_")}
    assert public == set(FIELDS)


@pytest.mark.parametrize("field", [*FIELDS, "unknown"])
def test_a_job_is_frozen(field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Job(BillingFlow, RECORD), field, 1)


def test_jobs_are_equal_by_record_and_can_be_kept_in_sets() -> None:
    assert Job(BillingFlow, RECORD) == Job(BillingFlow, RECORD)
    assert len({Job(BillingFlow, RECORD), Job(BillingFlow, RECORD)}) == 1
    assert Job(BillingFlow, RECORD) != Job(BillingFlow, a_leased_record("f2"))


def test_a_job_tells_what_it_is_without_its_payload() -> None:
    assert repr(Job(BillingFlow, RECORD)) == (
        "<Job 'f1' of BillingFlow in 'created', attempts 2, fencing token 7>"
    )


def test_a_job_can_be_pickled() -> None:
    job = Job(BillingFlow, RECORD)
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_job_may_be_made_of_anything_with_the_attributes_that_are_read() -> None:
    record: Any = SimpleNamespace(id="f1", state="created", payload=5)
    job = Job(BillingFlow, record)
    assert (job.id, job.state, job.payload, job.values, job.root_flow_id) == (
        "f1",
        "created",
        5,
        {},
        "f1",
    )
    assert (job.attempts, job.payload_omitted, job.partition_key) == (0, False, None)
