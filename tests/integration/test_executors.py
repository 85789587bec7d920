"""What a handler may do, alike in threads, in processes and as coroutines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import memory_store
from support import handlers
from support.handlers import INSTANT, AsyncFlow, ContractFlow
from support.processes import eventually

EXECUTORS = ("thread", "process", "async")
each_executor = pytest.mark.parametrize("executor", EXECUTORS)


class Done:
    """What became of one flow of each kind."""

    def __init__(self, executor: str, store: sf.Store, stats: dict[str, float]) -> None:
        self.executor = executor
        self.stats = stats
        self._store = store

    def of(self, name: str) -> sf.FlowRecord:
        record = self._store.flow_get(name, partition_key="t1", payload=True)
        assert record is not None
        return record

    def events(self, name: str) -> list[str]:
        return [event.name for event in self._store.flow_history(name, partition_key="t1")]


@pytest.fixture(scope="module", params=EXECUTORS)
def done(request: pytest.FixtureRequest) -> Iterator[Done]:
    with memory_store() as store:
        for name in handlers.OUTCOMES:
            ContractFlow.using(store).create(
                id=name,
                tenant="t1",
                payload={"do": name, "at": INSTANT, 5: b"bytes"},
                attributes={"vip": True},
                correlation_id="order-9",
            )
        with sf.Worker(
            ContractFlow.using(store), concurrency=2, executor=request.param, worker="w1"
        ) as worker:
            # Errors are tried once more, at once.
            eventually(lambda: store.flow_info("contract")["failed"] == 7, str(worker.stats()))
            eventually(lambda: worker.stats()["in_hand"] == 0, "all is settled")
        yield Done(request.param, store, worker.stats())


@pytest.mark.parametrize("name", ["ok", "ok_tuple"])
def test_ok_does_what_the_state_declares(done: Done, name: str) -> None:
    assert (done.of(name).state, done.of(name).payload) == ("moved", {"n": 1})


@pytest.mark.parametrize("name", ["err", "error_tuple"])
def test_an_error_is_retried_and_then_fails(done: Done, name: str) -> None:
    assert (done.of(name).state, done.of(name).error) == ("failed", "no")
    assert done.events(name).count("claimed") == 2


def test_an_exception_is_told(done: Done) -> None:
    error = done.of("exception").error
    assert (error["exception"], error["message"]) == ("OddError", "odd exception")
    trace = error["traceback"].splitlines()
    assert trace[0].startswith("Traceback")
    assert "in do" in trace[1], "nothing of ours in it"
    assert done.stats["exceptions"] == 2


def test_noreply_leaves_the_flow_to_the_handler(done: Done) -> None:
    assert (done.of("noreply").state, done.stats["noreply"]) == ("running", 1)


def test_the_other_outcomes_are_their_commands(done: Done) -> None:
    assert (done.of("transition").state, done.of("transition").payload) == ("parked", {"n": 2})
    assert (done.of("complete").state, done.of("complete").result) == ("completed", INSTANT)
    assert (done.of("fail").state, done.of("fail").error) == ("failed", {"why": [1, b"2"]})
    later = done.of("later")
    assert (later.state, later.attempts, later.error) == ("work", 1, "later")


def test_what_is_no_outcome_is_an_error(done: Done) -> None:
    assert done.of("none").error == {"unexpected_worker_result": "None"}


@pytest.mark.parametrize("name", ["transition_wrong", "unpackable"])
def test_an_outcome_that_cannot_be_is_the_handlers_error(done: Done, name: str) -> None:
    assert done.of(name).state == "failed"
    assert done.of(name).error["exception"] == "InvalidArgument"


def test_the_job_is_all_there(done: Done) -> None:
    told = done.of("fields").result
    record = done.of("fields")
    assert told.pop("pid") == os.getpid() or done.executor == "process"
    assert told == {
        "id": "fields",
        "type": "contract",
        "state": "work",
        "partition_key": "t1",
        "payload": {"do": "fields", "at": INSTANT, 5: b"bytes"},
        "attributes": {"vip": True},
        "attempts": 0,
        "fencing_token": 1,
        "has_lease": True,
        "correlation_id": "order-9",
        "root_flow_id": "fields",
        "payload_size": record.payload_size,
        "cancelled": False,
        "workflow": "ContractFlow",
        "log": {
            "flow_id": "fields",
            "flow_type": "contract",
            "flow_state": "work",
            "partition_key": "t1",
            "attempts": 0,
            "worker": "w1",
        },
    }


def test_everything_is_counted_once(done: Done) -> None:
    counts = {name: count for name, count in done.stats.items() if count}
    durations = ("handler_sum_ms", "handler_p50_ms", "handler_p99_ms", "handler_max_ms")
    for name in durations:
        assert counts.pop(name, 1) > 0
    failed_twice = 6
    assert counts == {
        "claimed": len(handlers.OUTCOMES) + failed_twice,
        "handled": len(handlers.OUTCOMES) + failed_twice,
        "ok": 7,
        "errors": 2 * failed_twice,
        "exceptions": 2,
        "noreply": 1,
    }


# ---- middleware ----


def one_flow(executor: Any, **options: Any) -> tuple[sf.FlowRecord, dict[str, float]]:
    """Return what becomes of one flow."""
    with memory_store() as store:
        flow = handlers.BriefFlow.using(store)
        flow.create(id="f1", payload={"n": 1})
        with sf.Worker(
            flow, states="queued", executor=executor, concurrency=1, **options
        ) as worker:
            eventually(lambda: worker.stats()["ok"] + worker.stats()["errors"], "it is settled")
        record = store.flow_get("f1", payload=True)
        assert record is not None
        return record, worker.stats()


@each_executor
def test_middleware_is_around_the_handler_outermost_first(executor: str) -> None:
    middleware = (
        [handlers.outer_async, handlers.inner_async]
        if executor == "async"
        else [handlers.outer, handlers.inner]
    )
    record, _ = one_flow(executor, handler=handlers.plain_complete, middleware=middleware)
    assert record.result == ["inner", "outer"]


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_what_a_middleware_raises_is_the_handlers_error(executor: str) -> None:
    record, stats = one_flow(
        executor, handler=handlers.plain_complete, middleware=[handlers.refuse]
    )
    assert record.error["message"] == "not let through"
    assert stats["exceptions"] == 1


# ---- coroutines ----


def test_coroutines_are_awaited_on_one_loop() -> None:
    with memory_store() as store:
        flow = AsyncFlow.using(store)
        for number in range(20):
            flow.create(id=f"f{number}")
        with sf.Worker(flow, executor="async", concurrency=10) as worker:
            eventually(lambda: worker.stats()["ok"] == 20, "all are completed")
        results = [store.flow_get(f"f{number}", payload=True) for number in range(20)]
    told = [record.result for record in results if record is not None]
    assert len({result["thread"] for result in told}) == 1
    assert {result["log"]["flow_id"] for result in told} == {f"f{n}" for n in range(20)}


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_coroutines_are_refused_elsewhere(executor: Any) -> None:
    with memory_store() as store, pytest.raises(sf.InvalidArgument, match="executor='async'"):
        sf.Worker(AsyncFlow.using(store), executor=executor)


# ---- logging ----


def test_lines_of_handlers_bear_the_fields_of_their_job(caplog: pytest.LogCaptureFixture) -> None:
    log_filter = sf.JobLogFilter()
    caplog.handler.addFilter(log_filter)
    try:
        one_flow("thread", handler=handlers.logs, worker="w1")
        logging.getLogger("application").warning("outside")
    finally:
        caplog.handler.removeFilter(log_filter)
    (inside, outside) = [vars(r) for r in caplog.records if r.name == "application"]
    assert (inside["flow_id"], inside["flow_state"], inside["worker"]) == ("f1", "queued", "w1")
    assert (outside["flow_id"], outside["worker"]) == (None, None)
    assert sf.job_log_fields() == {}


# ---- processes: what crosses ----


def test_a_codec_crosses_by_its_name() -> None:
    with memory_store(codec=handlers.CelsiusCodec()) as store:
        flow = handlers.BriefFlow.using(store)
        flow.create(id="f1", payload=handlers.Celsius(20.5))
        with sf.Worker(
            flow, states="queued", handler=handlers.warmer, executor="process", concurrency=1
        ) as worker:
            eventually(lambda: worker.stats()["ok"], "it is completed")
        record = store.flow_get("f1", payload=True)
    assert record is not None
    assert record.result.degrees == 21.5


class LocalCodec(handlers.CelsiusCodec):
    def __init__(self, scale: float) -> None:
        self.scale = scale


def test_a_codec_that_cannot_be_made_again_is_refused() -> None:
    with memory_store(codec=LocalCodec(1.8)) as store:
        worker = sf.Worker(
            handlers.BriefFlow.using(store),
            states="queued",
            handler=handlers.warmer,
            executor="process",
        )
        with pytest.raises(sf.InvalidArgument, match="codec"):
            worker.start()


def test_what_processes_could_not_find_is_refused_when_the_worker_is_made() -> None:
    class LocalFlow(sf.Workflow, type="local"):
        queued = sf.state()

        @queued.handler
        @staticmethod
        def do(job: sf.Job) -> Any:
            return sf.Ok()

    anything: Any
    with memory_store() as store:
        local, bound = LocalFlow.using(store), handlers.BriefFlow.using(store)
        anything = [lambda job: None, lambda job, call_next: call_next(job)]
        for flow, options, words in (
            (local, {}, "the workflow .*LocalFlow: it is defined inside a function"),
            (bound, {"handler": anything[0]}, "the handler .*lambda"),
            (bound, {"handler": handlers.hogs, "middleware": anything[1:]}, "the middleware"),
        ):
            given: dict[str, Any] = options
            with pytest.raises(sf.InvalidArgument, match=words):
                sf.Worker(flow, executor="process", **given)
