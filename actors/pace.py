"""How often a shard works for itself: work in slices, with rests in between."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..flow.limits import (
    SWEEP_REST_RATIO,
    UPKEEP_HASTE_RATIO,
    UPKEEP_IDLE_SECONDS,
    UPKEEP_QUIET_SECONDS,
    UPKEEP_REST_RATIO,
    UPKEEP_SLICE_SECONDS,
)


class _Rests:
    """When the next work may be done, in seconds of a clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._not_before_s = 0.0

    @property
    def wait_ms(self) -> int:
        """Milliseconds until there may be work again."""
        return max(0, math.ceil((self._not_before_s - self._now_s()) * 1_000))


class Pace(_Rests):
    """Runs slices of work for a short time, then leaves the shard to its callers for longer."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__(now_s)
        self._busy_until_s = 0.0

    def served(self) -> None:
        """Note that callers were served just now."""
        self._busy_until_s = self._now_s() + UPKEEP_QUIET_SECONDS

    def run(self, work: Callable[[], bool], haste: float = 0.0, *, can_wait: bool = False) -> None:
        """Do slices, if it is time for them. `work` does one and says whether there was any.

        `haste`: from 0 = there is time, to 1 = what is not done now piles up: no rests any more.
        `can_wait`: without haste, it is for when nobody is served.
        """
        start_s = self._now_s()
        if start_s < self._not_before_s:
            return
        if can_wait and not haste and start_s < self._busy_until_s:
            self._not_before_s = self._busy_until_s
            return
        is_busy = True
        slice_s = UPKEEP_SLICE_SECONDS * (1 + haste * UPKEEP_HASTE_RATIO)
        while is_busy and self._now_s() - start_s < slice_s:
            is_busy = work()
        now_s = self._now_s()
        rest_s = UPKEEP_IDLE_SECONDS
        if is_busy:
            rest_s = (now_s - start_s) * UPKEEP_REST_RATIO * (1 - haste)
        self._not_before_s = now_s + rest_s


class SweepPace(_Rests):
    """After each sweep, leaves the shard to its callers for a while."""

    def run(self, work: Callable[[], object]) -> None:
        """Do one sweep."""
        start_s = self._now_s()
        work()
        now_s = self._now_s()
        self._not_before_s = now_s + (now_s - start_s) * SWEEP_REST_RATIO
