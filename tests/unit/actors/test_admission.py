"""A shard that holds too much refuses creations, and goes on with everything else."""

from __future__ import annotations

from typing import Any

import pytest

from shardflow.actors.admission import Admission
from shardflow.actors.messages import Arrival
from shardflow.actors.service import Service
from shardflow.actors.staging import Staging
from shardflow.flow import commands, queries
from shardflow.flow.commands import Ending, Hydration, NewFlow
from shardflow.flow.creating import is_creating
from shardflow.flow.engine import Engine
from shardflow.flow.host import SetClock, SystemEntropy
from shardflow.flow.limits import (
    INBOX_WAITING_MAX,
    OVERLOAD_RETRY_MS,
    RSS_CHECK_SECONDS,
    RSS_TRIM_SECONDS,
)
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.replies import Done, Rejected
from shardflow.flow.settings import Settings

LIMIT = 1_000


class Meter:
    """A process whose memory and time the test sets."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.freed_by_trim = 0
        self.seconds = 0.0
        self.measured = 0
        self.trimmed = 0

    def measure(self) -> int:
        self.measured += 1
        return self.held

    def trim(self) -> None:
        self.trimmed += 1
        self.held -= self.freed_by_trim

    def gate(self, limit: int | None = LIMIT) -> Admission:
        return Admission(limit, measure=self.measure, trim=self.trim, now_s=lambda: self.seconds)


def test_creations_are_let_in_below_the_limit_and_refused_above_it() -> None:
    meter = Meter(LIMIT)
    gate = meter.gate()
    assert gate.refusal(0) is None
    meter.held, meter.seconds = LIMIT + 1, RSS_CHECK_SECONDS
    refusal = gate.refusal(0)
    assert refusal is not None
    assert refusal.refused.code == "overloaded"
    assert refusal.refused.fields == {"reason": "memory", "retry_after_ms": OVERLOAD_RETRY_MS}
    meter.held, meter.seconds = LIMIT, 2 * RSS_CHECK_SECONDS
    assert gate.refusal(0) is None


def test_memory_is_measured_now_and_then() -> None:
    meter = Meter(0)
    gate = meter.gate()
    for _ in range(100):
        gate.refusal(0)
    assert meter.measured == 1


def test_memory_that_is_no_longer_used_is_given_back_first() -> None:
    meter = Meter(LIMIT + 1)
    meter.freed_by_trim = 1
    gate = meter.gate()
    assert gate.refusal(0) is None
    assert meter.trimmed == 1
    meter.held = 2 * LIMIT
    for _ in range(4):
        meter.seconds += RSS_CHECK_SECONDS
        assert gate.refusal(0) is not None
    assert meter.trimmed == 1, "it takes time, so it is tried rarely"


def test_without_a_limit_nothing_is_measured() -> None:
    meter = Meter(10**12)
    assert meter.gate(None).refusal(0) is None
    assert meter.measured == 0


def test_a_long_queue_refuses_creations() -> None:
    gate = Meter(0).gate()
    assert gate.refusal(INBOX_WAITING_MAX) is None
    refusal = gate.refusal(INBOX_WAITING_MAX + 1)
    assert refusal is not None and refusal.refused.fields["reason"] == "inbox"


@pytest.fixture
def service() -> Service:
    settings = Settings(max_rss_bytes=LIMIT)
    engine = Engine(MemoryFiles(), SystemEntropy(), settings)
    return Service(engine, SetClock(1_000), relaxed=False)


def test_a_full_shard_completes_and_creates_nothing(service: Service) -> None:
    meter = Meter(0)
    service.admission = meter.gate()
    start = commands.StartAndClaim(NewFlow("a", None, "t", "queued"), "w", 30_000)
    (claimed,) = ask(service, start).outcomes
    meter.held, meter.seconds = 2 * LIMIT, RSS_CHECK_SECONDS
    create = commands.Create([NewFlow("b", None, "t", "queued")])
    assert isinstance(ask(service, create), Rejected)
    assert isinstance(ask(service, commands.SharedValuePut(b"x")), Rejected)
    query = queries.Get("a", None, False, Hydration())
    assert ask(service, query).outcomes[0].state == "running"
    ending = Ending("a", None, claimed.lease_token, claimed.fencing_token)
    done = ask(service, commands.Complete([ending]))
    assert isinstance(done, Done) and done.outcomes[0].state == "completed"


def test_within_one_batch_only_creations_are_refused(service: Service) -> None:
    service.admission = Meter(2 * LIMIT).gate()
    create = commands.Create([NewFlow("b", None, "t", "queued")])
    query = queries.Get("b", None, False, Hydration())
    departures = service.serve([Arrival("me", 1, create), Arrival("me", 2, query)])
    told = {number: answer.reply for _, number, answer in departures}
    assert isinstance(told[1], Rejected)
    assert told[2] == Done([])


def test_what_makes_room_is_no_creation() -> None:
    for request in (commands.Complete([]), commands.Release([]), commands.Transition([])):
        assert not is_creating(request)


def ask(service: Service, request: Any) -> Any:
    (departure,) = service.serve([Arrival("me", 1, request)])
    return departure.answer.reply


def test_memory_is_given_back_now_and_then_whoever_asks_for_it() -> None:
    meter = Meter(LIMIT + 1)
    gate = meter.gate()
    gate.give_back()
    assert gate.refusal(0) is not None
    gate.give_back()
    assert meter.trimmed == 1
    meter.seconds = RSS_TRIM_SECONDS
    gate.refusal(0)
    gate.give_back()
    assert meter.trimmed == 2


def test_the_time_is_asked_for_once_to_find_out_what_is_next() -> None:
    class Counted(SetClock):
        asked = 0

        def now_ms(self) -> int:
            self.asked += 1
            return super().now_ms()

    clock = Counted(1_000)
    staging = Staging(None)
    engine = Engine(MemoryFiles(), SystemEntropy(), Settings())
    service = Service(engine, clock, relaxed=False, staging=staging)
    service.serve([Arrival("a", 1, queries.Backup("hold", "0" * 32))])
    engine.upkeep.want_checkpoint()
    assert staging.is_holding and engine.upkeep.is_needed
    clock.asked = 0
    assert service.next_wake_ms() is not None
    assert clock.asked == 1
    service.close()
