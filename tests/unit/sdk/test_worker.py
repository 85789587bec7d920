"""The worker: what it claims, renews, settles and gives back, and how it stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shardflow.flow.errors import (
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    StaleLease,
    StoreNotRunning,
)
from shardflow.sdk import claimer
from shardflow.sdk.job import Job
from shardflow.sdk.outcome import NOREPLY, Complete
from shardflow.sdk.stopping import SIGNALS
from shardflow.sdk.worker import RELEASE_S, URGENT_END_S
from support.working import WAIT_S, Gate, WorkingStore, joined, stop_in_thread, worker_on


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_it_claims_handles_and_settles_until_stopped() -> None:
    store = WorkingStore()
    with worker_on(store, handler=None, worker="w1") as worker:
        store.offer("f1", "f2")
        store.wait_for(lambda: store.sent("flow_transition") == 2)
    claim = store.calls[0]
    assert claim[:2] == ("flow_claim_due", ("billing",))
    assert claim[2] == {"state": "created", "worker": "w1", "limit": 8, "block_ms": 500}
    stats = worker.stats()
    assert (stats["claimed"], stats["ok"], stats["in_hand"]) == (2, 2, 0)
    after = len(store.calls)
    store.offer("f3")
    assert len(store.calls) == after


def test_it_claims_only_for_free_hands(gate: Gate) -> None:
    store = WorkingStore()
    store.offer("f1", "f2", "f3", "f4", "f5")
    with worker_on(store, concurrency=2, handler=gate):
        gate.wait_entered(2)
        gate.opened.set()
        store.wait_for(lambda: store.sent("flow_complete") == 5)
    assert store.most_held == 2
    assert set(store.limits) <= {1, 2}


def test_one_claim_takes_no_more_than_the_limit() -> None:
    store = WorkingStore()
    store.offer("f1", "f2", "f3", "f4")
    with worker_on(store, concurrency=8, limit=3):
        store.wait_for(lambda: store.sent("flow_complete") == 4)
    assert max(store.limits) == 3


def test_a_free_hand_is_used_while_the_others_are_busy(gate: Gate) -> None:
    store = WorkingStore()

    def handler(job: Job) -> Any:
        return gate(job) if job.id == "slow" else Complete()

    with worker_on(store, concurrency=2, handler=handler):
        store.offer("slow")
        gate.wait_entered()
        store.offer("f1", "f2", "f3")
        store.wait_for(lambda: store.sent("flow_complete") == 3)
        gate.opened.set()
        store.wait_for(lambda: store.sent("flow_complete") == 4)


def test_leases_of_running_handlers_are_renewed_and_others_are_not(gate: Gate) -> None:
    store = WorkingStore()
    with worker_on(store, states="brief", handler=gate) as worker:
        store.offer("f1", state="brief")
        store.wait_for(lambda: store.sent("flow_extend_lease", "f1") >= 3)
        gate.opened.set()
        store.wait_for(lambda: store.sent("flow_complete", "f1"))
        renewed = store.sent("flow_extend_lease", "f1")
        gate.opened.clear()
        store.offer("f2", state="brief")
        store.wait_for(lambda: store.sent("flow_extend_lease", "f2") >= 3)
        # One renewal may have been under way at the end of the first.
        assert store.sent("flow_extend_lease", "f1") <= renewed + 1
        gate.opened.set()
    _, args, options = next(call for call in store.calls if call[0] == "flow_extend_lease")
    assert args == ("f1", "token-7")
    assert options == {"partition_key": "t1:i9", "fencing_token": 7, "lease_ms": 30}
    assert worker.stats()["renewed"] >= 6


def test_a_lease_that_was_lost_is_counted_once_and_renewed_no_more(gate: Gate) -> None:
    def extend(flow_id: str, *args: Any, **options: Any) -> Any:
        if flow_id == "lost":
            raise StaleLease("taken over")
        if flow_id == "away":
            raise ShardUnavailable("starting")

    store = WorkingStore(flow_extend_lease=extend)
    with worker_on(store, states="brief", handler=gate) as worker:
        store.offer("lost", "kept", "away", state="brief")
        store.wait_for(lambda: store.sent("flow_extend_lease", "kept") >= 4)
        assert store.sent("flow_extend_lease", "lost") == 1
        assert store.sent("flow_extend_lease", "away") >= 3, "an error is tried again"
        stats = worker.stats()
        assert (stats["stale"], stats["renewal_errors"] >= 3) == (1, True)
        gate.opened.set()


def test_without_heartbeat_no_lease_is_renewed(gate: Gate) -> None:
    store = WorkingStore()
    with worker_on(store, states="brief", handler=gate, heartbeat=False):
        store.offer("f1", state="brief")
        gate.wait_entered()
        claims = store.sent("flow_claim_due")
        store.wait_for(lambda: store.sent("flow_claim_due") >= claims + 3)
        gate.opened.set()
    assert store.sent("flow_extend_lease") == 0


def test_outcomes_are_counted_by_kind() -> None:
    outcomes = {"f1": Complete(), "f2": NOREPLY, "f3": None, "f4": ("ok", 1)}
    store = WorkingStore()
    with worker_on(store, handler=lambda job: outcomes[job.id], concurrency=1) as worker:
        store.offer(*outcomes)
        store.wait_for(lambda: store.sent("flow_transition"))
    stats = worker.stats()
    assert (stats["ok"], stats["errors"], stats["noreply"]) == (2, 1, 1)


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after_ms=1),
        ShardUnavailable("starting", retry_after_ms=1),
        OutcomeUnknown("no answer"),
        StoreNotRunning("nobody hosts it"),
        ConnectionError("gone"),
    ],
    ids=repr,
)
def test_it_waits_while_the_store_is_away_and_comes_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimer, "BACKOFF_BASE_S", 0.001)
    store = WorkingStore()
    failures = iter([error] * 3)

    def claim(*args: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return store.claim(options["limit"])

    store.answers["flow_claim_due"] = claim
    with worker_on(store) as worker:
        store.offer("f1")
        store.wait_for(lambda: store.sent("flow_complete"))
    assert worker.stats()["claim_errors"] == 3


def test_stopping_waits_for_running_handlers_and_claims_nothing_more(gate: Gate) -> None:
    store = WorkingStore()
    worker = worker_on(store, handler=gate).start()
    store.offer("f1")
    gate.wait_entered()
    stopping = stop_in_thread(worker)
    assert worker._stopping.wait(WAIT_S)
    store.offer("f2")
    gate.opened.set()
    assert joined(stopping)
    assert store.sent("flow_complete", "f1") == 1
    assert store.sent("flow_complete", "f2") == 0
    assert worker.stats()["released"] == store.sent("flow_release")


def test_what_is_unfinished_after_the_drain_goes_back_uncharged(gate: Gate) -> None:
    store = WorkingStore()
    worker = worker_on(store, handler=gate, drain_timeout_ms=0).start()
    store.offer("f1")
    gate.wait_entered()
    assert not gate.jobs[0].cancelled
    worker.stop()
    ((command, args, options),) = (c for c in store.calls if c[0] != "flow_claim_due")
    assert (command, args) == ("flow_release", ("f1", "token-7"))
    assert options == {"partition_key": "t1:i9", "fencing_token": 7}
    assert gate.jobs[0].cancelled
    assert (worker.stats()["released"], worker.stats()["in_hand"]) == (1, 1)
    gate.opened.set()
    with worker._hands.changed:
        assert worker._hands.changed.wait_for(lambda: len(worker._hands) == 0, WAIT_S)
    assert store.sent("flow_complete") == 0, "the late outcome is dropped"


def test_what_has_not_begun_goes_back_at_once(gate: Gate) -> None:
    store = WorkingStore()
    worker = worker_on(store, handler=gate, concurrency=1, prefetch=2).start()
    store.offer("f1", "f2", "f3", "f4")
    gate.wait_entered()
    store.wait_for(lambda: len(store.held) == 3)
    stopping = stop_in_thread(worker)
    store.wait_for(lambda: store.sent("flow_release") == 2)
    gate.opened.set()
    assert joined(stopping)
    assert (store.sent("flow_complete", "f1"), len(gate.jobs)) == (1, 1)


def test_a_second_stop_does_not_wait(gate: Gate) -> None:
    store = WorkingStore()
    worker = worker_on(store, handler=gate).start()
    store.offer("f1")
    gate.wait_entered()
    first = stop_in_thread(worker)
    assert worker._stopping.wait(WAIT_S)
    assert first.is_alive()
    second = stop_in_thread(worker)
    assert joined(first)
    assert joined(second)
    assert store.sent("flow_release", "f1") == 1
    assert store.sent("flow_complete") == 0


@pytest.mark.parametrize(("stops", "wait_s"), [(1, RELEASE_S), (2, URGENT_END_S)])
def test_a_store_that_hangs_is_not_waited_for_if_it_is_urgent(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, stops: int, wait_s: float
) -> None:
    asked: list[float] = []

    def hanging(store: Any, plans: list[Any], timeout_s: float) -> list[Any]:
        asked.append(timeout_s)
        return [OutcomeUnknown("no answer")] * len(plans)

    monkeypatch.setattr("shardflow.sdk.worker.ask_all", hanging)
    store = WorkingStore()
    store.offer("f1")
    drain_ms = 0 if stops == 1 else 60_000
    worker = worker_on(store, handler=gate, drain_timeout_ms=drain_ms).start()
    gate.wait_entered()
    threads = [stop_in_thread(worker) for _ in range(stops)]
    assert all(map(joined, threads))
    assert asked == [wait_s]
    gate.opened.set()


def test_leaving_with_while_another_thread_stops_it_waits_for_that(gate: Gate) -> None:
    store = WorkingStore()
    with worker_on(store, handler=gate) as worker:
        store.offer("f1")
        gate.wait_entered()
        stopping = stop_in_thread(worker)
        assert worker._stopping.wait(WAIT_S)
        threading.Timer(0, gate.opened.set).start()
    assert joined(stopping)
    assert store.sent("flow_complete", "f1") == 1


def test_a_claim_that_comes_back_after_the_stop_gives_its_jobs_back() -> None:
    store = WorkingStore()
    asked, answered = threading.Event(), threading.Event()

    def claim(*args: Any, **options: Any) -> Any:
        asked.set()
        assert answered.wait(WAIT_S)
        return store.claim(options["limit"])

    store.answers["flow_claim_due"] = claim
    store.offer("f1")
    worker = worker_on(store).start()
    assert asked.wait(WAIT_S)
    stopping = stop_in_thread(worker)
    assert worker._stopping.wait(WAIT_S)
    answered.set()
    assert joined(stopping)
    assert store.commands == ["flow_claim_due", "flow_release"]
    assert worker.stats()["released"] == 1


def test_a_handler_may_ask_its_worker_to_stop() -> None:
    store = WorkingStore()

    def handler(job: Job) -> Any:
        worker.stop()
        return Complete()

    worker = worker_on(store, handler=handler)
    store.offer("f1")
    worker.run()
    assert store.sent("flow_complete") == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_drains_a_running_worker_and_its_old_handlers_come_back(
    number: signal.Signals,
) -> None:
    store = WorkingStore()
    before = [signal.getsignal(each) for each in SIGNALS]

    def handler(job: Job) -> Any:
        os.kill(os.getpid(), number)
        return Complete()

    worker = worker_on(store, handler=handler)
    store.offer("f1")
    worker.run()
    assert store.sent("flow_complete") == 1
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_second_signal_does_not_wait(gate: Gate) -> None:
    store = WorkingStore()
    worker = worker_on(store, handler=gate)
    store.offer("f1")

    def kill() -> None:
        gate.wait_entered()
        os.kill(os.getpid(), signal.SIGTERM)
        store.wait_for(lambda: worker._stopping.is_requested)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=kill)
    thread.start()
    worker.run()
    assert joined(thread)
    assert store.sent("flow_release", "f1") == 1
    assert store.sent("flow_complete") == 0


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_ends_the_process_ends_the_worker_and_its_flow_is_left_alone(
    kind: type[BaseException],
) -> None:
    def handler(job: Job) -> Any:
        raise kind

    store = WorkingStore()
    store.offer("f1")
    worker = worker_on(store, handler=handler)
    with pytest.raises(kind):
        worker.run()
    assert set(store.commands) == {"flow_claim_due"}


def test_an_error_that_does_not_pass_ends_the_worker_loudly() -> None:
    store = WorkingStore(flow_claim_due=TypeError("unexpected keyword"))
    with pytest.raises(TypeError, match="unexpected keyword"):
        worker_on(store).run()
    worker = worker_on(store).start()
    assert worker._stopping.wait(WAIT_S)
    with pytest.raises(TypeError, match="unexpected keyword"):
        worker.stop()
    worker.stop()


def test_a_worker_is_used_once_and_may_be_stopped_at_any_time() -> None:
    worker = worker_on(WorkingStore())
    worker.stop()
    worker = worker_on(WorkingStore()).start()
    with pytest.raises(InvalidArgument, match="started once"):
        worker.start()
    worker.stop()
    worker.stop()


def test_every_worker_has_a_name_of_its_own() -> None:
    one, two = worker_on(WorkingStore()), worker_on(WorkingStore())
    assert one.name != two.name
    assert f"-{os.getpid()}-" in one.name
    assert worker_on(WorkingStore(), worker="payments-1").name == "payments-1"


async def coroutine(job: Job) -> None: ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"executor": "process"}, "cannot find the handler .*lambda.*outermost level"),
        ({"executor": "fiber"}, "executor is 'thread'"),
        ({"kill_lost": True}, "kill_lost needs executor"),
        ({"prefetch": -1}, "prefetch is from 0"),
        ({"middleware": coroutine}, "middleware is a list"),
        ({"middleware": [coroutine]}, "called with two arguments"),
        ({"concurrency": 0}, "concurrency is from 1"),
        ({"concurrency": True}, "concurrency is from 1"),
        ({"concurrency": 1_001}, "concurrency is from 1 to 1000"),
        ({"limit": 0}, "limit is from 1 to 1000"),
        ({"limit": 1_001}, "limit is from 1 to 1000"),
        ({"interval_ms": -1}, "interval_ms is a duration"),
        ({"drain_timeout_ms": None}, "drain_timeout_ms is a duration"),
        ({"handler": None, "states": "charged"}, "'charged' has no handler"),
        ({"handler": coroutine}, "coroutine is a coroutine function"),
    ],
)
def test_wrong_options_are_refused_when_it_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        worker_on(WorkingStore(), **options)
