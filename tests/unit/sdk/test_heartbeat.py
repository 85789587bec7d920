"""The heartbeat: whose leases it renews, when, and what it does about those that are lost or late.

`_look` is called with the times that a test chooses; its thread only calls it again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from shardflow.flow.errors import OutcomeUnknown, StaleLease
from shardflow.sdk.dsl import state
from shardflow.sdk.hands import Assignment, Hands
from shardflow.sdk.heartbeat import Heartbeat
from shardflow.sdk.job import Cancellation, Job
from shardflow.sdk.outcome import Complete
from shardflow.sdk.source import Source
from shardflow.sdk.store import Store
from shardflow.sdk.tally import Tally
from shardflow.sdk.testing import ManualClock, memory_store
from shardflow.sdk.workflow import Workflow
from support.links import links_of
from support.recording import RecordingStore, a_leased_record

LEASE_S = 30.0
THIRD_S = 10.0


class SlowFlow(Workflow, type="billing"):
    created = state(lease_ms=30_000)
    limited = state(lease_ms=30_000, max_run_ms=4_000)


class Scene:
    """A heartbeat, and jobs in hand that were claimed at second 0."""

    def __init__(self, store: Any, *, renews: bool = True, states: Any = "any") -> None:
        self.store = store
        self.tally = Tally()
        self.hands = Hands(self.tally, prefetch=0)
        self.hands.resize(10)
        self.lost: list[str] = []
        self.overrun: list[str] = []
        self.source = Source(SlowFlow.using(store), states, lambda job: None, "w")
        self.heartbeat = Heartbeat(
            self.hands,
            [self.source],
            self.tally,
            renews=renews,
            name="w",
            lost=lambda each: self._note(self.lost, each),
            overrun=lambda each: self._note(self.overrun, each),
        )

    def _note(self, told: list[str], assignment: Assignment) -> None:
        told.append(assignment.job.id)
        self.hands.give_up(assignment)

    def take(self, *records: Any) -> list[Assignment]:
        jobs = [Job(self.source.workflow, record, Cancellation()) for record in records]
        taken = self.hands.take(self.source, jobs)
        assert taken is not None
        for assignment in taken:
            assert self.hands.begin(assignment)
            assignment.renewed_at_s = assignment.started_at_s = 0.0
        return taken

    def look(self, at_s: float) -> float:
        return self.heartbeat._look(at_s)


@pytest.fixture
def fake() -> RecordingStore:
    return RecordingStore()


def test_a_lease_is_renewed_once_a_third_of_it_has_passed(fake: RecordingStore) -> None:
    scene = Scene(fake)
    scene.take(a_leased_record())
    assert scene.look(0.5 * THIRD_S) <= THIRD_S
    assert fake.calls == []
    scene.look(THIRD_S)
    assert fake.only_call == (
        "flow_extend_lease",
        ("f1", "token-7"),
        {"partition_key": "t1:i9", "fencing_token": 7, "lease_ms": 30_000},
    )
    scene.look(1.5 * THIRD_S)
    assert len(fake.calls) == 1
    scene.look(2 * THIRD_S)
    assert len(fake.calls) == 2
    assert scene.tally.figures()["renewed"] == 2


def test_it_looks_often_enough_that_no_renewal_is_later_than_a_third(fake: RecordingStore) -> None:
    scene = Scene(fake)
    scene.take(a_leased_record())
    now_s, renewed_at_s = 0.1, [0.0]
    while now_s < 5 * LEASE_S:
        before = len(fake.calls)
        wait_s = scene.look(now_s)
        if len(fake.calls) > before:
            renewed_at_s.append(now_s)
        now_s += wait_s
    gaps_s = [later - sooner for sooner, later in pairwise(renewed_at_s)]
    assert max(gaps_s) <= THIRD_S
    assert min(gaps_s) >= THIRD_S / 2


def test_what_is_being_settled_or_was_given_up_is_not_renewed(fake: RecordingStore) -> None:
    scene = Scene(fake)
    scene.hands.settle = lambda assignment, outcome: None
    settling, given_up, held = scene.take(*(a_leased_record(id) for id in ("f1", "f2", "f3")))
    scene.hands.finish(settling, Complete(), 0.0)
    scene.hands.give_up(given_up)
    scene.look(THIRD_S)
    assert [args[0] for _, args, _ in fake.calls] == [held.job.id]


def test_a_lost_lease_is_told_and_an_error_of_the_store_tried_again() -> None:
    errors = {"f1": StaleLease("taken over"), "f2": OutcomeUnknown("no answer")}

    def extend(flow_id: str, *args: Any, **options: Any) -> Any:
        raise errors[flow_id]

    fake = RecordingStore(flow_extend_lease=extend)
    scene = Scene(fake)
    scene.take(a_leased_record("f1"), a_leased_record("f2"))
    scene.look(THIRD_S)
    wait_s = scene.look(1.25 * THIRD_S)
    assert scene.lost == ["f1"]
    assert sorted(args[0] for _, args, _ in fake.calls) == ["f1", "f2", "f2"]
    assert scene.tally.figures()["renewal_errors"] == 2
    assert wait_s <= THIRD_S / 4, "before the lease runs out there is time for several tries"


def test_a_refusal_after_its_own_settlement_is_no_loss() -> None:
    scene: Any = None

    def extend(*args: Any, **options: Any) -> Any:
        scene.hands.finish(assignment, Complete(), 0.0)
        raise StaleLease("it was completed")

    scene = Scene(RecordingStore(flow_extend_lease=extend))
    scene.hands.settle = lambda assignment, outcome: None
    (assignment,) = scene.take(a_leased_record())
    scene.look(THIRD_S)
    assert scene.lost == []


# ---- max_run_ms ----


@pytest.mark.parametrize("renews", [True, False])
def test_what_runs_too_long_is_told_once_and_on_time(fake: RecordingStore, renews: bool) -> None:
    scene = Scene(fake, renews=renews)
    scene.take(a_leased_record("f1", "limited"), a_leased_record("f2", "created"))
    assert scene.look(1.5) <= 2.5
    assert scene.overrun == []
    scene.look(4.0)
    scene.look(4.1)
    assert scene.overrun == ["f1"]
    assert scene.look(4.1) <= 4.0, "what begins after this look is looked at in time"


def test_without_anything_to_do_there_is_no_thread(fake: RecordingStore) -> None:
    scene = Scene(fake, renews=False, states="created")
    scene.heartbeat = Heartbeat(
        scene.hands, [], scene.tally, renews=False, name="w", lost=print, overrun=print
    )
    scene.heartbeat.start()
    scene.heartbeat.stop()
    scene.heartbeat.join(0)


# ---- with a store that has futures ----


@pytest.fixture
def store() -> Iterator[Store]:
    with memory_store(clock=ManualClock(1_000), shards=1) as store:
        yield store


def test_all_that_are_due_are_asked_for_before_the_first_answer_is_read(store: Store) -> None:
    for number in range(5):
        store.flow_create(f"f{number}", type="billing", state="created")
    records = store.flow_claim_due("billing", worker="w", limit=5, lease_ms=30_000)
    scene = Scene(store)
    scene.take(*records)
    order: list[str] = []
    link = links_of(store)[0]
    submit = link.submit

    def noting(request: Any, receiver: Any) -> int:
        order.append(type(request).__name__)
        number: int = submit(request, receiver)
        return number

    link.submit = noting
    scene.look(THIRD_S)
    assert order == ["ExtendLease"] * 5
    assert scene.tally.figures()["renewed"] == 5
    store.flow_cancel("f0", force=True)
    scene.look(2 * THIRD_S)
    assert scene.lost == ["f0"]
