"""How a worker claims: for free slots, in fair turn over its workflows, never after its stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shardflow.flow.errors import FlowError, InvalidArgument, ShardUnavailable
from shardflow.sdk import claimer
from shardflow.sdk.dsl import state
from shardflow.sdk.job import Job
from shardflow.sdk.outcome import Complete
from shardflow.sdk.store import Store
from shardflow.sdk.testing import ManualClock, memory_store
from shardflow.sdk.worker import Worker
from shardflow.sdk.workflow import Workflow
from support.links import service_of
from support.processes import eventually
from support.working import WAIT_S, BillingFlow, Gate, WorkingStore, worker_on


class RedFlow(Workflow, type="red"):
    queued = state()


class BlueFlow(Workflow, type="blue"):
    queued = state()


class GreenFlow(Workflow, type="green"):
    queued = state()


FLOWS = (RedFlow, BlueFlow, GreenFlow)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def store() -> Iterator[Store]:
    with memory_store() as store:
        yield store


def create(store: Store, type: str, count: int) -> None:
    ids = [f"{type}{number}" for number in range(count)]
    store.flow_create_many([{"id": id} for id in ids], type=type, state="queued")


def worker_for(store: Any, *flows: type[Workflow], **options: Any) -> Worker:
    options = {"interval_ms": 10, "handler": lambda job: Complete(), **options}
    return Worker([flow.using(store) for flow in flows], **options)


def waiters(store: Store) -> int:
    """Return how many claims wait at the shard."""
    return len(service_of(store).waiters)


def until(worker: Worker, condition: Callable[[], object]) -> None:
    """Wait for something that happens when a slot is freed or a claim is answered."""
    changed = worker._hands.changed
    with changed:
        assert changed.wait_for(condition, WAIT_S), worker.stats()


# ---- several workflows ----


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_all_workflows_are_worked_for_even_with_a_single_slot(
    store: Store, concurrency: int
) -> None:
    for flow in FLOWS:
        create(store, flow.definition.type, 20)
    with worker_for(store, *FLOWS, concurrency=concurrency) as worker:
        until(worker, lambda: worker.stats()["ok"] == 60)
        # Idle now; and still none of them is deaf.
        for flow in FLOWS:
            flow.using(store).create(id=f"late {flow.definition.type}")
        until(worker, lambda: worker.stats()["ok"] == 63)
    assert worker.stats()["claimed"] == 63


def test_no_more_is_ever_in_hand_than_there_are_slots(store: Store) -> None:
    most, now, lock = 0, 0, threading.Lock()

    def handler(job: Job) -> Any:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now, len(worker._hands))
        with lock:
            now -= 1
        return Complete()

    for flow in FLOWS:
        create(store, flow.definition.type, 100)
    worker = worker_for(store, *FLOWS, concurrency=4, handler=handler)
    with worker:
        until(worker, lambda: worker.stats()["ok"] == 300)
    assert most <= 4


def test_a_workflow_with_much_to_do_leaves_the_others_their_turn(store: Store) -> None:
    order: list[str] = []

    def handler(job: Job) -> Any:
        order.append(job.type)
        return Complete()

    create(store, "red", 300)
    create(store, "blue", 20)
    with worker_for(store, RedFlow, BlueFlow, concurrency=2, handler=handler) as worker:
        until(worker, lambda: worker.stats()["ok"] == 320)
    last_blue = max(place for place, type in enumerate(order) if type == "blue")
    assert last_blue < 200, "in turn, blue is done long before red"


def test_one_busy_workflow_may_use_all_slots(store: Store, gate: Gate) -> None:
    create(store, "red", 4)
    with worker_for(store, *FLOWS, concurrency=4, handler=gate):
        gate.wait_entered(4)
        gate.opened.set()


def test_states_may_be_chosen_by_workflow(store: Store) -> None:
    create(store, "red", 2)
    with worker_for(store, RedFlow, BlueFlow, states={}) as worker:
        until(worker, lambda: worker.stats()["ok"] == 2)
    red, blue = RedFlow.using(store), BlueFlow.using(store)
    states: dict[type[Workflow], Any] = {red: RedFlow.queued, blue: ["queued"]}
    worker = Worker([red, blue], states=states, handler=lambda job: None)
    assert [source.states for source in worker._sources] == ["queued", ["queued"]]


@pytest.mark.parametrize(
    ("flows", "options", "words"),
    [
        ([], {}, "1 to 100 workflows"),
        ([RedFlow, RedFlow], {}, "two of the workflows are of type 'red'"),
        ([RedFlow, BlueFlow], {"states": "queued"}, "for several workflows states"),
        ([RedFlow, BlueFlow], {"states": {GreenFlow: "queued"}}, "none of the workflows"),
    ],
)
def test_workflows_that_do_not_fit_are_refused(
    flows: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Worker(flows, handler=lambda job: None, **options)


# ---- a claim that waits ----


def test_a_waiting_claim_is_woken_and_taken_back_at_a_stop(store: Store) -> None:
    with worker_for(store, RedFlow) as worker:
        eventually(lambda: waiters(store) == 1, "a claim waits")
        create(store, "red", 1)
        until(worker, lambda: worker.stats()["ok"] == 1)
        eventually(lambda: waiters(store) == 1, "a claim waits")
    assert waiters(store) == 0
    store.flow_create("after", type="red", state="queued")
    record = store.flow_get("after")
    assert record is not None
    assert record.state == "queued"


def test_time_that_stands_still_does_not_keep_it_from_stopping() -> None:
    clock = ManualClock(1_000)
    with memory_store(clock=clock) as store:
        with worker_for(store, RedFlow, BlueFlow) as worker:
            store.flow_create("f1", type="red", state="queued", run_at_ms=5_000)
            clock.advance(4_000)
            until(worker, lambda: worker.stats()["ok"] == 1)
        assert worker.stats()["released"] == 0


class LateFuture:
    """A claim that is answered when the test says so, and cannot be taken back."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.records: Any = None
        self.is_resolved = False
        self.was_withdrawn = threading.Event()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def withdraw(self) -> bool:
        self.was_withdrawn.set()
        return False

    def get(self, *, timeout: float | None = None) -> Any:
        return self.records

    def resolve(self, records: Any) -> None:
        self.records = records
        self.is_resolved = True
        for callback in self.callbacks:
            callback()


class LateStore:
    """The first claim is answered late; everything else by the store itself."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.future = LateFuture()
        self.asked = threading.Event()

    @property
    def submit(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store.submit, name)

    def flow_claim_due(self, *args: Any, **options: Any) -> Any:
        if self.asked.is_set():
            return self.store.submit.flow_claim_due(*args, **options)
        self.asked.set()
        return self.future


@pytest.mark.parametrize("in_time", [True, False])
def test_what_is_granted_after_the_stop_is_given_back(
    store: Store, in_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_time:
        monkeypatch.setattr(claimer, "CLAIM_END_S", 0.0)
    create(store, "red", 2)
    records = store.flow_claim_due("red", worker="w", limit=2)
    late = LateStore(store)
    worker = worker_for(late, RedFlow).start()
    assert late.asked.wait(WAIT_S)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    assert late.future.was_withdrawn.wait(WAIT_S)
    if not in_time:
        stopping.join(WAIT_S)
    late.future.resolve(records)
    stopping.join(WAIT_S)
    states = [store.flow_get(record.id) for record in records]
    assert [record and record.state for record in states] == ["queued", "queued"]
    assert (worker.stats()["claimed"], worker.stats()["released"]) == (2, 2)


def test_what_is_granted_after_its_slot_went_to_another_workflow_is_given_back(
    store: Store,
) -> None:
    create(store, "red", 1)
    records = store.flow_claim_due("red", worker="w")
    late = LateStore(store)
    bound: Any = late
    tokens: list[int] = []

    def handler(job: Job) -> Any:
        tokens.append(job.fencing_token)
        return Complete()

    flows = [RedFlow.using(bound), BlueFlow.using(store)]
    with Worker(flows, handler=handler, concurrency=1, interval_ms=1) as worker:
        assert late.future.was_withdrawn.wait(WAIT_S), "blue has no slot to claim with"
        late.future.resolve(records)
        until(worker, lambda: worker.stats()["ok"] == 1)
    assert tokens == [2], "not handled under the lease that was given back"
    assert (worker.stats()["claimed"], worker.stats()["released"]) == (2, 1)


# ---- what goes wrong ----


def test_a_store_that_is_away_does_not_stop_the_other_workflow(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimer, "BACKOFF_BASE_S", 0.001)
    away = WorkingStore(flow_claim_due=ShardUnavailable("starting", retry_after_ms=1))
    create(store, "red", 5)
    bound: Any = away
    flows = [RedFlow.using(store), BlueFlow.using(bound)]
    with Worker(flows, handler=lambda job: Complete(), interval_ms=1) as worker:
        until(worker, lambda: worker.stats()["ok"] == 5)
        away.wait_for(lambda: away.sent("flow_claim_due") >= 3)
    assert worker.stats()["claim_errors"] >= 2


def test_an_error_that_does_not_pass_gives_back_what_the_others_claim(store: Store) -> None:
    broken: Any = WorkingStore(flow_claim_due=TypeError("unexpected keyword"))
    worker = Worker([RedFlow.using(store), BlueFlow.using(broken)], handler=lambda job: Complete())
    with pytest.raises(TypeError, match="unexpected keyword"):
        worker.run()
    assert waiters(store) == 0


def test_jobs_of_an_unknown_kind_are_put_aside_and_counted() -> None:
    working = WorkingStore()
    with worker_on(working, handler=None) as worker:
        working.offer("f1", state="charged")  # It has no handler, and was not asked for.
        working.offer("f2")
        working.wait_for(lambda: working.sent("flow_transition", "f2"))
        working.wait_for(lambda: working.sent("flow_release", "f1"))
    assert (worker.stats()["unknown"], worker.stats()["ok"]) == (1, 1)
    assert working.sent("flow_fail") == working.sent("flow_retry") == 0


def test_an_unknown_flow_is_due_again_only_later(store: Store) -> None:
    store.flow_create("f1", type="billing", state="charged")
    bound = BillingFlow.using(store)
    worker = Worker(bound)
    source = worker._sources[0]
    worker._hands.resize(8)
    worker._take(source, source.jobs(store.flow_claim_due("billing", worker="w")))
    record = store.flow_get("f1")
    assert record is not None
    assert record.state == "charged"
    assert record.next_run_at_ms is not None
    assert record.next_run_at_ms > store.now_ms()
    assert (record.attempts, worker.stats()["in_hand"]) == (0, 0)


def test_a_closed_store_ends_the_worker(store: Store) -> None:
    worker = worker_for(store, RedFlow).start()
    eventually(lambda: waiters(store) == 1, "a claim waits")
    store.close()
    assert worker._stopping.wait(WAIT_S)
    with pytest.raises(FlowError, match="closed"):
        worker.stop()
