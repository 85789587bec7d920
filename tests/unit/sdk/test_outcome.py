"""What handlers return and raise, and the outcome that it counts as."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.sdk.outcome import (
    MESSAGE_BYTES_MAX,
    NOREPLY,
    REPR_BYTES_MAX,
    TRACEBACK_BYTES_MAX,
    Complete,
    Err,
    Fail,
    Ok,
    RetryLater,
    Transition,
    capped,
    outcome_from,
    outcome_of,
    outcome_of_async,
)

JOB: Any = "a job"


@pytest.mark.parametrize(
    "outcome",
    [
        Ok(1),
        Ok(),
        Err("x"),
        NOREPLY,
        Transition("charged", 1),
        Complete(1),
        RetryLater("x", in_ms=5),
        Fail("x"),
    ],
    ids=repr,
)
def test_an_outcome_is_itself(outcome: Any) -> None:
    assert outcome_from(outcome) is outcome


def test_the_two_pairs_are_accepted() -> None:
    assert outcome_from(("ok", 5)) == Ok(5)
    assert outcome_from(("error", "why")) == Err("why")


@pytest.mark.parametrize(
    "returned",
    [None, True, 5, "ok", ["ok", 1], ("ok",), ("ok", 1, 2), ("fine", 1), Ok, {"ok": 1}],
    ids=repr,
)
def test_anything_else_is_an_error_that_shows_it(returned: Any) -> None:
    assert outcome_from(returned) == Err({"unexpected_worker_result": repr(returned)})


def test_a_long_repr_is_capped_and_a_broken_one_survived() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    long: Any = outcome_from("x" * 100_000)
    assert len(long.reason["unexpected_worker_result"]) == REPR_BYTES_MAX
    assert "Broken" in str(outcome_from(Broken()))


def failing(job: Any) -> None:
    raise ValueError(f"no funds for {job}")


def test_an_exception_is_an_error_with_class_message_and_traceback() -> None:
    outcome: Any = outcome_of(failing, JOB)
    assert outcome.reason["exception"] == "ValueError"
    assert outcome.reason["message"] == "no funds for a job"
    lines = outcome.reason["traceback"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in failing" in lines[1], "our own frame is left out"
    assert lines[-1] == "ValueError: no funds for a job"


def test_a_traceback_keeps_its_end_and_a_message_its_start() -> None:
    def deep(job: Any) -> None:
        raise ValueError("start" + "é" * 20_000 + "end")

    outcome: Any = outcome_of(deep, JOB)
    assert len(outcome.reason["traceback"].encode()) <= TRACEBACK_BYTES_MAX
    assert outcome.reason["traceback"].endswith("end\n")
    assert len(outcome.reason["message"].encode()) <= MESSAGE_BYTES_MAX
    assert outcome.reason["message"].startswith("start")


def test_an_exception_that_cannot_be_shown_is_an_error_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def raising(job: Any) -> None:
        raise Broken

    outcome: Any = outcome_of(raising, JOB)
    assert outcome.reason["exception"] == "Broken"
    assert "Broken" in outcome.reason["message"]


def test_text_that_has_no_utf_8_form_is_made_to_have_one() -> None:
    def raising(job: Any) -> None:
        raise ValueError("\ud800")

    outcome: Any = outcome_of(raising, JOB)
    assert outcome.reason["message"] == "\\ud800"


@given(st.text(), st.integers(0, 20), st.booleans())
def test_a_cap_is_in_bytes_and_cuts_no_letter(text: str, size: int, from_end: bool) -> None:
    cut = capped(text, size, from_end=from_end)
    assert len(cut.encode()) <= size
    whole = text.encode("utf-8", "backslashreplace").decode()
    assert whole.endswith(cut) if from_end else whole.startswith(cut)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_passes_through(kind: type[BaseException]) -> None:
    def raising(job: Any) -> None:
        raise kind

    with pytest.raises(kind):
        outcome_of(raising, JOB)


def test_a_coroutine_from_a_plain_handler_is_unexpected_and_gives_no_warning() -> None:
    async def work(job: Any) -> Ok:
        return Ok()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome: Any = outcome_of(lambda job: work(job), JOB)
    assert "coroutine" in outcome.reason["unexpected_worker_result"]


def test_async_handlers_are_awaited_and_plain_ones_run_off_the_loop() -> None:
    async def coroutine(job: Any) -> Ok:
        await asyncio.sleep(0)
        return Ok(asyncio.get_running_loop() is not None)

    def plain(job: Any) -> Ok:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return Ok("plain")

    class Callable:
        async def __call__(self, job: Any) -> Ok:
            return Ok("object")

    async def raising(job: Any) -> None:
        raise ValueError("x")

    async def outcomes() -> list[Any]:
        handlers: list[Any] = [coroutine, plain, Callable(), lambda job: coroutine(job), raising]
        return [await outcome_of_async(handler, JOB) for handler in handlers]

    *fine, failed = asyncio.run(outcomes())
    assert fine == [Ok(True), Ok("plain"), Ok("object"), Ok(True)]
    assert failed.reason["exception"] == "ValueError"


def test_cancelling_an_async_handler_is_no_error_of_its() -> None:
    async def cancelled(job: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(outcome_of_async(cancelled, JOB))
