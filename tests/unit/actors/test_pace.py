"""How much of its time a shard takes for itself, measured on a clock that only work moves."""

from __future__ import annotations

import pytest

from shardflow.actors.pace import Pace
from shardflow.flow.limits import (
    UPKEEP_HASTE_RATIO,
    UPKEEP_QUIET_SECONDS,
    UPKEEP_REST_RATIO,
    UPKEEP_SLICE_SECONDS,
)

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
