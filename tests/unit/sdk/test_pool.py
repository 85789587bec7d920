"""A pool of workers: started together, restarted when they fail, stopped together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pykka
import pytest

from shardflow.flow.errors import InvalidArgument
from shardflow.sdk import pool as pool_module
from shardflow.sdk.outcome import Complete
from shardflow.sdk.pool import WorkerPool, WorkerStatus
from shardflow.sdk.worker import Worker
from support.processes import eventually
from support.working import Gate, WorkingStore, worker_on


@pytest.fixture(autouse=True)
def _no_pool_is_left() -> Iterator[None]:
    yield
    assert pykka.ActorRegistry.get_by_class(WorkerPool) == []


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def status_of(pool: pykka.ActorRef[WorkerPool]) -> list[WorkerStatus]:
    told: list[WorkerStatus] = pool.proxy().status().get()
    return told


def test_all_workers_work_and_tell_what_they_do() -> None:
    one, two = WorkingStore(), WorkingStore()
    pool = WorkerPool.start(
        lambda: worker_on(one, worker="w1"), lambda: worker_on(two, worker="w2")
    )
    try:
        one.offer("f1")
        two.offer("f2", "f3")
        one.wait_for(lambda: one.sent("flow_complete") == 1)
        two.wait_for(lambda: two.sent("flow_complete") == 2)
        eventually(lambda: status_of(pool)[1].stats["ok"] == 2, "it is counted")
        first, second = status_of(pool)
        assert (first.name, first.state, first.restarts, first.error) == ("w1", "running", 0, None)
        assert (second.name, second.stats["claimed"]) == ("w2", 2)
    finally:
        pool.stop()


def test_stopping_drains_all_of_them_at_once(gate: Gate) -> None:
    one, two = WorkingStore(), WorkingStore()
    pool = WorkerPool.start(
        lambda: worker_on(one, handler=gate), lambda: worker_on(two, handler=gate)
    )
    one.offer("f1")
    two.offer("f2")
    gate.wait_entered(2)
    stopped = pool.stop(block=False)
    gate.opened.set()
    assert isinstance(stopped, pykka.Future)
    stopped.get()
    assert one.sent("flow_complete", "f1") == two.sent("flow_complete", "f2") == 1


def test_a_worker_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "RESTART_BASE_S", 0.001)
    stores: list[Any] = [
        WorkingStore(flow_claim_due=TypeError("broken")),
        InvalidArgument("not this time"),
        WorkingStore(flow_claim_due=TypeError("broken again")),
        WorkingStore(),
    ]
    left = iter(stores)

    def make() -> Worker:
        store = next(left)
        if isinstance(store, Exception):
            raise store
        return worker_on(store)

    steady = WorkingStore()
    pool = WorkerPool.start(make, lambda: worker_on(steady))
    try:
        stores[-1].offer("f1")
        stores[-1].wait_for(lambda: stores[-1].sent("flow_complete"))
        first, second = status_of(pool)
        assert (first.state, first.restarts) == ("running", 3)
        assert first.error == "TypeError('broken again')"
        assert (second.state, second.restarts) == ("running", 0)
    finally:
        pool.stop()


def test_a_worker_that_waits_for_its_next_start_does_not_delay_the_stop() -> None:
    broken = WorkingStore(flow_claim_due=TypeError("broken"))
    pool = WorkerPool.start(lambda: worker_on(broken))
    try:
        eventually(lambda: status_of(pool)[0].state == "restarting", "it has failed")
    finally:
        pool.stop()


def test_a_worker_that_was_stopped_by_its_handler_stays_stopped() -> None:
    store = WorkingStore()
    made: list[Worker] = []

    def handler(job: Any) -> Any:
        made[0].stop()
        return Complete()

    def make() -> Worker:
        made.append(worker_on(store, handler=handler))
        return made[-1]

    pool = WorkerPool.start(make)
    try:
        store.offer("f1")
        eventually(lambda: status_of(pool)[0].state == "stopped", "it has ended")
        assert status_of(pool)[0].error is None
    finally:
        pool.stop()


@pytest.mark.parametrize("makers", [[], [5]])
def test_what_makes_no_workers_is_refused_at_once(makers: list[Any]) -> None:
    with pytest.raises(InvalidArgument, match="functions that each make a worker"):
        WorkerPool.start(*makers)


def test_an_error_in_making_a_worker_is_told_at_once() -> None:
    with pytest.raises(InvalidArgument, match="concurrency"):
        WorkerPool.start(lambda: worker_on(WorkingStore(), concurrency=0))
