"""Settling: one command for each job, sent again while the store is away, together where it can."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shardflow.flow.errors import (
    FlowNotFound,
    FlowTerminal,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    StaleLease,
    StoreConfigError,
)
from shardflow.sdk import settler as settler_module
from shardflow.sdk.asking import has_futures
from shardflow.sdk.claims import jobs_of
from shardflow.sdk.hands import Hands, Phase
from shardflow.sdk.outcome import NOREPLY, Complete, Err, Fail, Ok, Raised, RetryLater, Transition
from shardflow.sdk.settler import Settler
from shardflow.sdk.source import Source
from shardflow.sdk.store import Store
from shardflow.sdk.tally import Tally
from shardflow.sdk.testing import memory_store
from support.recording import a_leased_record
from support.working import WAIT_S, BillingFlow, WorkingStore, worker_on


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settler_module, "SETTLE_BACKOFF_BASE_S", 0.000_1)


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (StaleLease("taken over"), "stale"),
        (FlowTerminal("cancelled"), "stale"),
        (FlowNotFound("swept"), "stale"),
        (RuntimeError("a bug"), "settle_errors"),
    ],
    ids=repr,
)
def test_an_error_that_does_not_pass_is_counted_and_told_and_never_a_second_command(
    error: Exception, counter: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = WorkingStore(flow_complete=error)
    with caplog.at_level(logging.WARNING), worker_on(store, concurrency=1) as worker:
        store.offer("f1", "f2")
        store.wait_for(lambda: store.sent("flow_complete") == 2)
    assert worker.stats()[counter] == 2
    assert [c for c in store.commands if c != "flow_claim_due"] == ["flow_complete"] * 2
    told = [record for record in caplog.records if record.name == "shardflow.worker"]
    assert [vars(record)["flow_id"] for record in told] == ["f1", "f2"]
    assert {(vars(record)["flow_type"], vars(record)["flow_state"]) for record in told} == {
        ("billing", "created")
    }


@pytest.mark.parametrize(
    "error", [Overloaded("full"), ShardUnavailable("starting"), OutcomeUnknown("no answer")]
)
def test_the_same_command_is_sent_again_while_the_store_is_away(error: Exception) -> None:
    store = WorkingStore()
    failures = iter([error] * 3)

    def complete(*args: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return a_leased_record()

    store.answers["flow_complete"] = complete
    with worker_on(store) as worker:
        store.offer("f1")
        store.wait_for(lambda: store.sent("flow_complete") == 4)
    calls = [call for call in store.calls if call[0] == "flow_complete"]
    assert calls == calls[:1] * 4
    assert (worker.stats()["ok"], worker.stats()["settle_errors"]) == (1, 0)


def test_a_store_that_stays_away_is_given_up() -> None:
    store = WorkingStore(flow_complete=ShardUnavailable("gone"))
    with worker_on(store) as worker:
        store.offer("f1")
        store.wait_for(lambda: store.sent("flow_complete") == settler_module.SETTLE_TRIES_MAX)
    assert store.sent("flow_complete") == settler_module.SETTLE_TRIES_MAX
    assert (worker.stats()["ok"], worker.stats()["settle_errors"]) == (0, 1)
    assert worker.stats()["in_hand"] == 0


def test_a_result_that_cannot_be_stored_is_the_handlers_error() -> None:
    store = WorkingStore(flow_complete=InvalidArgument("a set has no stored form"))
    with worker_on(store, handler=lambda job: Complete({1})) as worker:
        store.offer("f1")
        store.wait_for(lambda: store.sent("flow_retry"))
    assert [c for c in store.commands if c != "flow_claim_due"] == ["flow_complete", "flow_retry"]
    _, _, options = store.calls[store.commands.index("flow_retry")]
    assert options["error"]["message"] == "a set has no stored form"
    assert (worker.stats()["ok"], worker.stats()["errors"]) == (0, 1)


def test_a_workflow_without_a_store_is_an_error_of_the_store() -> None:
    store = WorkingStore()
    gone = threading.Event()

    def give() -> Any:
        if gone.is_set():
            raise StoreConfigError("0 stores are open")
        return store

    def handler(job: Any) -> Any:
        gone.set()
        return Ok()

    worker = worker_on(give, handler=handler).start()
    store.offer("f1")
    assert worker._stopping.wait(WAIT_S), "claiming meets it too, and does not get over it"
    with pytest.raises(StoreConfigError):
        worker.stop()
    assert worker.stats()["settle_errors"] == 1


# ---- with a store that has futures and batches ----


class Bench:
    """A settler on a store in memory, with jobs in hand."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: list[str] = []
        self.tally = Tally()
        self.hands = Hands(self.tally, prefetch=0)
        self.hands.resize(100)
        self.crashed: list[BaseException] = []
        itself: Any = self
        bound = BillingFlow.using(lambda: itself)
        self.source = Source(bound, "any", lambda job: None, "w")
        self.source.prepare(lambda handler: handler)
        self.settler = Settler(self.hands, self.tally, name="w", crashed=self.crashed.append)
        self.hands.settle = self.settler.add

    def __getattr__(self, name: str) -> Any:
        if name.startswith("flow_"):
            self.calls.append(name)
        return getattr(self.store, name)

    def in_hand(self, count: int) -> list[Any]:
        ids = [f"f{number}" for number in range(count)]
        self.store.flow_create_many([{"id": id} for id in ids], type="billing", state="created")
        records = self.store.flow_claim_due("billing", worker="w", limit=count)
        taken = self.hands.take(self.source, jobs_of(self.source.workflow, records))
        assert taken is not None
        assert all(self.hands.begin(each) for each in taken)
        return taken

    def finish_all(self, outcomes: list[Any]) -> None:
        """Finish jobs before the settler looks, so that they go together."""
        for assignment, outcome in zip(self.in_hand(len(outcomes)), outcomes, strict=True):
            self.hands.finish(assignment, outcome, 0.001)
        self.settler.start()
        self.hands.wait_settled(WAIT_S, is_urgent=lambda: bool(self.crashed))
        assert self.crashed == []

    def states(self, count: int) -> list[str]:
        records = [self.store.flow_get(f"f{number}") for number in range(count)]
        return [record.state for record in records if record is not None]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with memory_store() as store:
        bench = Bench(store)
        yield bench
        bench.settler.stop()
        bench.settler.join(WAIT_S)


def test_what_is_finished_together_is_settled_together(bench: Bench) -> None:
    assert has_futures(bench.store)
    bench.finish_all([Complete(1)] * 5)
    assert bench.calls == ["flow_complete_many"]
    assert bench.states(5) == ["completed"] * 5
    assert bench.tally.figures()["ok"] == 5


def test_each_kind_of_outcome_is_one_batch(bench: Bench) -> None:
    outcomes = [Complete(1), Err("e"), Fail("f"), NOREPLY, Transition("charged", 1), Ok(2)]
    outcomes += [Complete(1), Raised({"exception": "ValueError"}), Fail("f"), RetryLater("later")]
    bench.finish_all(outcomes)
    assert sorted(bench.calls) == [
        "flow_complete_many",
        "flow_fail_many",
        "flow_retry_many",
        "flow_transition_many",
    ]
    assert bench.states(10) == [
        *("completed", "created", "failed", "running", "charged"),
        *("charged", "completed", "created", "failed", "created"),
    ]
    counts = bench.tally.figures()
    assert {name: counts[name] for name in ("ok", "errors", "exceptions", "noreply")} == {
        "ok": 7,
        "errors": 2,
        "exceptions": 1,
        "noreply": 1,
    }


def test_one_alone_is_settled_alone(bench: Bench) -> None:
    bench.finish_all([Complete()])
    assert bench.calls == ["flow_complete"]


def test_one_that_is_refused_does_not_keep_the_others(bench: Bench) -> None:
    taken = bench.in_hand(3)
    bench.store.flow_cancel(taken[1].job.id, force=True)
    for assignment in taken:
        bench.hands.finish(assignment, Complete(), 0.001)
    bench.settler.start()
    bench.hands.wait_settled(WAIT_S, is_urgent=lambda: False)
    assert bench.states(3) == ["completed", "cancelled", "completed"]
    assert (bench.tally.figures()["ok"], bench.tally.figures()["stale"]) == (2, 1)
    assert len(bench.hands) == 0


def test_one_that_cannot_be_stored_does_not_keep_the_others(bench: Bench) -> None:
    bench.finish_all([Complete(1), Complete({1}), Complete(2)])
    assert bench.states(3) == ["completed", "created", "completed"]
    counts = bench.tally.figures()
    assert (counts["ok"], counts["errors"], counts["settle_errors"]) == (2, 1, 0)
    record = bench.store.flow_get("f1", payload=True)
    assert record is not None
    assert "type set has no stored form" in record.error["message"]


def test_the_same_flow_twice_goes_in_two_batches(bench: Bench) -> None:
    taken = bench.in_hand(2)
    for assignment in taken:
        bench.hands.finish(assignment, Complete(assignment.job.id), 0.001)
    again = bench.hands.take(bench.source, [taken[0].job])
    assert again is not None
    assert bench.hands.begin(again[0])
    bench.hands.finish(again[0], Complete(taken[0].job.id), 0.001)
    bench.settler.start()
    bench.hands.wait_settled(WAIT_S, is_urgent=lambda: False)
    assert bench.calls == ["flow_complete_many", "flow_complete"]
    assert bench.tally.figures()["ok"] == 3, "a repeat, which the store recognises"


def test_a_job_that_was_given_up_is_not_settled(bench: Bench) -> None:
    (assignment,) = bench.in_hand(1)
    assert bench.hands.give_up(assignment)
    assert assignment.job.cancelled
    assert not bench.hands.give_up(assignment)
    bench.hands.finish(assignment, Complete(), 0.001)
    assert assignment.phase is Phase.GIVEN_UP
    assert (len(bench.hands), bench.calls) == (0, [])
