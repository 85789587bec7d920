"""Handlers in threads: how many there are, who is woken, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from shardflow.sdk.executors.threads import Threads
from shardflow.sdk.hands import Assignment, Hands
from shardflow.sdk.job import Cancellation, Job
from shardflow.sdk.outcome import Complete, Ok
from shardflow.sdk.source import Source
from shardflow.sdk.tally import Tally
from support.recording import RecordingStore, a_leased_record
from support.working import WAIT_S, BillingFlow, Gate


class Room:
    """An executor whose outcomes are kept."""

    def __init__(self, handler: Any, size: int) -> None:
        store: Any = RecordingStore()
        self.source = Source(BillingFlow.using(store), "any", handler, "w")
        self.source.prepare(lambda each: each)
        self.hands = Hands(Tally(), prefetch=1_000)
        self.hands.settle = self._settled
        self.outcomes: list[tuple[str, Any]] = []
        self.crashes: list[BaseException] = []
        self.threads = Threads(self.hands, size, "w", self._crashed)
        self.threads.start()

    def run(self, *ids: str) -> list[Assignment]:
        jobs = [Job(self.source.workflow, a_leased_record(id), Cancellation()) for id in ids]
        taken = self.hands.take(self.source, jobs)
        assert taken is not None
        self.threads.run(taken)
        return taken

    def until(self, condition: Callable[[], object]) -> None:
        with self.hands.changed:
            assert self.hands.changed.wait_for(condition, WAIT_S)

    def end(self) -> None:
        self.threads.stop()
        self.threads.join(WAIT_S)
        assert not any(thread.is_alive() for thread in self.threads._threads)

    def _settled(self, assignment: Assignment, outcome: Any) -> None:
        self.outcomes.append((assignment.job.id, outcome))
        self.hands.put_down([assignment])

    def _crashed(self, error: BaseException) -> None:
        self.crashes.append(error)
        self.hands.close()


def test_every_job_is_run_once_in_order_of_arrival_by_one_thread() -> None:
    room = Room(lambda job: Complete(job.id), size=1)
    ids = [f"f{number}" for number in range(500)]
    room.run(*ids)
    room.until(lambda: len(room.hands) == 0)
    assert room.outcomes == [(id, Complete(id)) for id in ids]
    room.end()


def test_threads_are_made_as_they_are_needed_and_no_more_than_allowed() -> None:
    gate = Gate()
    room = Room(gate, size=3)
    assert room.threads._threads == []
    room.run("f1")
    gate.wait_entered()
    room.run("f2", "f3", "f4", "f5")
    gate.wait_entered(2)
    assert len(room.threads._threads) == 3
    gate.opened.set()
    room.until(lambda: len(room.hands) == 0)
    assert len(room.threads._threads) == 3
    room.end()


def test_a_slow_handler_does_not_keep_those_behind_it() -> None:
    gate = Gate()
    room = Room(lambda job: gate(job) if job.id == "slow" else Ok(), size=2)
    room.run("slow", *(f"f{number}" for number in range(50)))
    room.until(lambda: len(room.outcomes) == 50)
    gate.opened.set()
    room.until(lambda: len(room.hands) == 0)
    room.end()


def test_jobs_that_were_given_up_are_passed_over() -> None:
    gate = Gate()
    room = Room(gate, size=1)
    first, second, third = room.run("f1", "f2", "f3")
    gate.wait_entered()
    assert room.hands.give_up(second)
    assert len(room.hands) == 2, "its slot is free at once"
    gate.opened.set()
    room.until(lambda: len(room.hands) == 0)
    assert [id for id, _ in room.outcomes] == [first.job.id, third.job.id]
    room.end()


def test_what_is_no_exception_is_told_and_ends_the_thread() -> None:
    def leave(job: Job) -> None:
        raise SystemExit(3)

    room = Room(leave, size=1)
    room.run("f1")
    room.until(lambda: room.crashes)
    assert isinstance(room.crashes[0], SystemExit)
    assert (room.outcomes, len(room.hands)) == ([], 0)
    room.end()


def test_a_handler_that_does_not_return_does_not_delay_the_end() -> None:
    gate = Gate()
    room = Room(gate, size=2)
    room.run("f1")
    gate.wait_entered()
    room.threads.stop()
    room.threads.join(WAIT_S)
    gate.opened.set()
    room.until(lambda: len(room.hands) == 0)
    room.end()


@pytest.mark.parametrize("size", [1, 4])
def test_no_wake_up_is_lost_between_many_small_batches(size: int) -> None:
    room = Room(lambda job: Ok(), size=size)
    barrier = threading.Barrier(4)

    def feed(feeder: int) -> None:
        barrier.wait()
        for number in range(200):
            room.run(f"{feeder}.{number}")

    feeders = [threading.Thread(target=feed, args=[feeder]) for feeder in range(4)]
    for thread in feeders:
        thread.start()
    for thread in feeders:
        thread.join()
    room.until(lambda: len(room.hands) == 0)
    assert len(room.outcomes) == 800
    room.end()
