"""How often a shard works for itself: work in slices, with rests in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..flow.limits import UPKEEP_IDLE_SECONDS, UPKEEP_REST_RATIO, UPKEEP_SLICE_SECONDS


class Pace:
    """Runs slices of work for a short time, then leaves the shard to its callers for longer."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._not_before_s = 0.0

    @property
    def wait_ms(self) -> int:
        """Milliseconds until the next slice may run."""
        return max(0, math.ceil((self._not_before_s - self._now_s()) * 1_000))

    def run(self, work: Callable[[], bool]) -> None:
        """Do slices, if it is time for them. `work` does one and says whether there was any."""
        start_s = self._now_s()
        if start_s < self._not_before_s:
            return
        is_busy = True
        while is_busy and self._now_s() - start_s < UPKEEP_SLICE_SECONDS:
            is_busy = work()
        now_s = self._now_s()
        rest_s = (now_s - start_s) * UPKEEP_REST_RATIO if is_busy else UPKEEP_IDLE_SECONDS
        self._not_before_s = now_s + rest_s
