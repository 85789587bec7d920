"""Middleware: what is around a handler, and what a line of the log knows of its job."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import pytest

from shardflow.flow.errors import InvalidArgument
from shardflow.sdk.job import Job
from shardflow.sdk.logs import JOB_FIELDS, JobLogFilter, job_log_fields
from shardflow.sdk.middleware import around, around_async, check_middleware
from shardflow.sdk.outcome import Ok, outcome_of, outcome_of_async
from support.recording import a_leased_record
from support.working import BillingFlow

JOB = Job(BillingFlow, a_leased_record())


def noting(seen: list[str], name: str, job: Job, call_next: Any) -> Any:
    seen.append(f"{name} before")
    returned = call_next(job)
    seen.append(f"{name} after")
    return returned


async def noting_async(seen: list[str], name: str, job: Job, call_next: Any) -> Any:
    seen.append(f"{name} before")
    returned = await call_next(job)
    seen.append(f"{name} after")
    return returned


ORDER = ["outer before", "inner before", "handled", "inner after", "outer after"]


def test_the_first_is_the_outermost() -> None:
    seen: list[str] = []

    def handler(job: Job) -> Any:
        seen.append("handled")
        return Ok(1)

    call = around(handler, [partial(noting, seen, "outer"), partial(noting, seen, "inner")])
    assert outcome_of(call, JOB) == Ok(1)
    assert seen == ORDER


@pytest.mark.parametrize("is_plain", [True, False])
def test_coroutines_are_awaited_likewise(is_plain: bool) -> None:
    seen: list[str] = []

    def plain(job: Job) -> Any:
        seen.append("handled")
        assert job_log_fields()["flow_id"] == "f1", "also in the thread of a plain handler"
        return Ok(1)

    async def handler(job: Job) -> Any:
        return plain(job)

    middleware = [partial(noting_async, seen, "outer"), partial(noting_async, seen, "inner")]
    call = around_async(plain if is_plain else handler, middleware)
    assert asyncio.run(outcome_of_async(call, JOB)) == Ok(1)
    assert seen == ORDER


def test_it_may_answer_by_itself_and_change_the_job() -> None:
    other = Job(BillingFlow, a_leased_record("f2"))
    assert outcome_of(around(lambda job: Ok(job.id), [lambda job, call_next: Ok(0)]), JOB) == Ok(0)
    call = around(lambda job: Ok(job.id), [lambda job, call_next: call_next(other)])
    assert outcome_of(call, JOB) == Ok("f2")


def test_an_error_inside_passes_through_and_is_told_from_the_handler_on() -> None:
    def handler(job: Job) -> Any:
        raise ValueError("no funds")

    outcome: Any = outcome_of(around(handler, [lambda job, call_next: call_next(job)]), JOB)
    assert outcome.reason["message"] == "no funds"
    assert "in handler" in outcome.reason["traceback"]
    assert "sdk/middleware.py" not in outcome.reason["traceback"].splitlines()[1]


async def coroutine(job: Job, call_next: Any) -> Any: ...


@pytest.mark.parametrize(
    ("middleware", "is_awaited", "words"),
    [
        (noting, False, "is a list of functions"),
        ([lambda job: None], False, "two arguments"),
        ([coroutine], False, "takes a plain function"),
        ([lambda job, call_next: None], True, "takes a coroutine function"),
    ],
)
def test_what_is_no_middleware_is_refused(middleware: Any, is_awaited: bool, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check_middleware(middleware, is_awaited=is_awaited)


# ---- the log ----


def test_the_job_is_known_within_its_handler_and_nowhere_else() -> None:
    seen: list[dict[str, Any]] = []
    around(lambda job: seen.append(job_log_fields()), [])(JOB)
    assert tuple(seen[0]) == JOB_FIELDS
    assert seen[0]["flow_id"] == "f1"
    assert seen[0]["worker"] == "w1"
    assert job_log_fields() == {}


def test_the_filter_adds_what_is_missing() -> None:
    def record(**fields: Any) -> logging.LogRecord:
        made = logging.makeLogRecord(fields)
        assert JobLogFilter().filter(made)
        return made

    outside = vars(record())
    assert [outside[name] for name in JOB_FIELDS] == [None] * len(JOB_FIELDS)
    found: list[logging.LogRecord] = []
    around(lambda job: found.append(record(worker="mine")), [])(JOB)
    inside = vars(found[0])
    assert (inside["flow_id"], inside["flow_state"], inside["worker"]) == ("f1", "created", "mine")
