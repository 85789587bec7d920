"""How much of its time a shard takes for itself, measured on a clock that only work moves."""

from __future__ import annotations

from typing import Any

import pytest

from shardflow.actors.messages import Arrival
from shardflow.actors.pace import Pace, SweepPace
from shardflow.actors.service import Service
from shardflow.flow.commands import Cancel, Create, Ending, Hydration, NewFlow, Sweep
from shardflow.flow.engine import Answer, Engine
from shardflow.flow.host import SetClock
from shardflow.flow.limits import (
    RELAXED_SYNC_MS,
    SWEEP_ITEMS_MAX,
    SWEEP_REST_RATIO,
    UPKEEP_HASTE_RATIO,
    UPKEEP_QUIET_SECONDS,
    UPKEEP_REST_RATIO,
    UPKEEP_SLICE_SECONDS,
)
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.queries import Get, Tick
from shardflow.flow.record import FAILED
from shardflow.flow.replies import Done
from shardflow.flow.settings import Settings
from support.lone import Counting

WORK_S = UPKEEP_SLICE_SECONDS / 4


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.slices = 0

    def work(self) -> bool:
        self.now_s += WORK_S
        self.slices += 1
        return True


@pytest.mark.parametrize("haste", [0.0, 0.5, 1.0])
def test_what_piles_up_gets_more_of_the_time(haste: float) -> None:
    clock = Clock()
    pace = Pace(lambda: clock.now_s)
    for _ in range(100):
        pace.run(clock.work, haste)
        # The callers' turn: until it may go on, or if it may at once, as good as nothing.
        clock.now_s += pace.wait_ms / 1_000
    share = clock.slices * WORK_S / clock.now_s
    wanted = 1 / (1 + UPKEEP_REST_RATIO * (1 - haste))
    assert share == pytest.approx(wanted, rel=0.2)
    per_turn = clock.slices * WORK_S / 100
    assert per_turn == pytest.approx(
        UPKEEP_SLICE_SECONDS * (1 + UPKEEP_HASTE_RATIO * haste), rel=0.3
    )


def test_what_can_wait_is_done_when_nobody_is_served() -> None:
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    done: list[float] = []

    def work() -> bool:
        done.append(clock[0])
        clock[0] += 1.0
        return True

    pace.served()
    pace.run(work, can_wait=True)
    assert done == []
    pace.run(work, can_wait=False)
    assert done == [], "it has been put off until the shard is quiet"
    clock[0] += UPKEEP_QUIET_SECONDS
    pace.run(work, can_wait=True)
    assert len(done) == 1
    clock[0] += 10
    pace.served()
    pace.run(work, 0.1, can_wait=True)
    assert len(done) == 2, "there is some haste"


def test_a_sweep_is_followed_by_a_rest_as_long() -> None:
    clock = [0.0]
    pace = SweepPace(lambda: clock[0])

    def work() -> None:
        clock[0] += 0.012

    assert pace.wait_ms == 0
    pace.run(work)
    rest_s = 0.012 * SWEEP_REST_RATIO
    assert pace.wait_ms == pytest.approx(rest_s * 1_000, abs=1)
    clock[0] += rest_s + 0.001
    assert pace.wait_ms == 0


def test_however_much_is_over_requests_are_served_in_between() -> None:
    clock = [0.0]
    wall = SetClock(1_000)
    engine = Engine(MemoryFiles(), Counting(), Settings(retention_ms=10))
    service = Service(engine, wall, relaxed=False)
    service._sweep_pace = SweepPace(lambda: clock[0])
    names = [f"f{number}" for number in range(3 * SWEEP_ITEMS_MAX)]
    engine.step([Create([NewFlow(name, None, "t", "a") for name in names])], 1_000, 1)
    engine.step([Cancel([Ending(n, None, None, None, force=True) for n in names])], 1_000, 2)
    step = engine.step

    def timed(requests: Any, now_ms: int, order_us: int) -> list[Answer]:
        clock[0] += 0.010 if any(isinstance(request, Sweep) for request in requests) else 0.001
        return step(requests, now_ms, order_us)

    engine.step = timed  # type: ignore[method-assign]
    wall.set(2_000)
    get = Get(names[-1], None, True, Hydration(True, True, 1_000, True))
    sizes = []
    for _ in range(5):
        (departure,) = service.serve([Arrival(None, 1, get)])
        assert isinstance(departure.answer.reply, Done)
        assert departure.answer.reply.outcomes == [], "what is over is seen no more"
        assert service.next_wake_ms() == 2_000 + service._sweep_pace.wait_ms
        sizes.append(len(engine.state.table))
    assert sizes == [2 * SWEEP_ITEMS_MAX] * 5, "five requests take less time than the rest"
    while engine.state.table:
        clock[0] += service._sweep_pace.wait_ms / 1_000
        service.wake()
    assert clock[0] >= 3 * 0.010 * (1 + SWEEP_REST_RATIO) - 0.010


def test_what_a_tick_sweeps_is_synced_in_time() -> None:
    clock = [0.0]
    wall = SetClock(1_000)
    engine = Engine(MemoryFiles(), Counting(), Settings(), sync=False)
    service = Service(engine, wall, relaxed=True, now_s=lambda: clock[0])
    flow = NewFlow("a", None, "t", "s", max_active_ms=100)
    service.serve([Arrival(None, 1, Create([flow]))])
    wall.set(1_000 + RELAXED_SYNC_MS)
    service.wake()
    assert not engine.log.has_unsynced
    # A sweep has just been, as after a tick before.
    service._sweep_pace._not_before_s = 1.0
    service.serve([Arrival(None, 2, Tick(1_200))])
    slot = engine.state.table.get(None, "a")
    assert slot is not None and slot.held.state == FAILED
    assert engine.log.has_unsynced
    assert service.next_wake_ms() == 1_200 + RELAXED_SYNC_MS
