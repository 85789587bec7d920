"""What a worker counts: jobs by what became of them, and how long their handlers took."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Final

COUNTERS: Final = (
    "claimed",
    "ok",
    "errors",
    "exceptions",
    "noreply",
    "stale",
    "overrun",
    "crashed",
    "unknown",
    "released",
    "renewed",
    "claim_errors",
    "settle_errors",
    "renewal_errors",
)
BUCKET_FIRST_MS: Final = 0.001
BUCKET_GROWTH: Final = 1.25
BUCKETS: Final = 110
"""The last bound is about twelve hours. A quantile is told as the bound above it."""
_BOUNDS_MS: Final = tuple(BUCKET_FIRST_MS * BUCKET_GROWTH**power for power in range(BUCKETS))


class Histogram:
    """Durations in buckets of fixed, growing size: quantiles to 25 %, in constant memory."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_ms = 0.0
        self.max_ms = 0.0
        self._buckets = [0] * (BUCKETS + 1)

    def add(self, duration_ms: float) -> None:
        """Count one."""
        self.count += 1
        self.sum_ms += duration_ms
        self.max_ms = max(self.max_ms, duration_ms)
        self._buckets[bisect_left(_BOUNDS_MS, duration_ms)] += 1

    def quantile_ms(self, share: float) -> float:
        """Return a duration that so large a share of all did not exceed; 0 if there are none."""
        left = share * self.count
        for bucket, count in enumerate(self._buckets[:BUCKETS]):
            left -= count
            if left <= 0:
                return min(_BOUNDS_MS[bucket], self.max_ms)
        return self.max_ms


class Tally:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._handled = Histogram()

    def add(self, counter: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[counter] += amount

    def add_all(self, counts: Mapping[str, int]) -> None:
        """Add to several counters."""
        with self._lock:
            self._counts.update(counts)

    def handled(self, seconds: float) -> None:
        """Note how long one handler took."""
        with self._lock:
            self._handled.add(seconds * 1_000)

    def figures(self) -> dict[str, float]:
        """Return every counter, and the durations of the handlers."""
        with self._lock:
            handled = self._handled
            return {
                **{counter: self._counts[counter] for counter in COUNTERS},
                "handled": handled.count,
                "handler_sum_ms": round(handled.sum_ms, 3),
                "handler_p50_ms": round(handled.quantile_ms(0.50), 3),
                "handler_p99_ms": round(handled.quantile_ms(0.99), 3),
                "handler_max_ms": round(handled.max_ms, 3),
            }
