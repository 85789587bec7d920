"""Who is let in when a shard has too much to hold: creations are refused first, all else goes on.

What ends flows, moves them on or gives them back makes room, so it is never refused here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import time
from collections.abc import Callable

import psutil

from ..flow.limits import (
    INBOX_WAITING_MAX,
    OVERLOAD_RETRY_MS,
    RSS_CHECK_SECONDS,
    RSS_TRIM_SECONDS,
)
from ..flow.replies import Rejected, reject

logger = logging.getLogger("shardflow.shard")


def rss_bytes() -> int:
    """Return the memory that this process holds, in bytes."""
    held: int = psutil.Process().memory_info().rss
    return held


def trim() -> None:
    """Give back to the system what the process no longer uses."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Admission:
    """Decides about the creations of one shard; cheap to ask before every batch."""

    def __init__(
        self,
        max_rss_bytes: int | None,
        *,
        measure: Callable[[], int] = rss_bytes,
        trim: Callable[[], None] = trim,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_rss_bytes = max_rss_bytes
        self._measure = measure
        self._trim = trim
        self._now_s = now_s
        self._rss_bytes = 0
        self._measure_at_s = 0.0
        self._trim_at_s = 0.0
        """When memory may be given back again, whatever for."""
        self._is_full = False

    def refusal(self, waiting: int) -> Rejected | None:
        """Return what creations are told now; None = they are let in.

        `waiting`: the requests that wait behind this batch.
        """
        if waiting > INBOX_WAITING_MAX:
            return reject(
                "overloaded",
                f"{waiting} requests wait at this shard already: create fewer flows at a time, or "
                f"try again in {OVERLOAD_RETRY_MS} ms",
                reason="inbox",
                retry_after_ms=OVERLOAD_RETRY_MS,
            )
        if self._max_rss_bytes is None or not self._is_over(self._max_rss_bytes):
            return None
        return reject(
            "overloaded",
            f"the shard's process holds {self._rss_bytes} bytes of memory and "
            f"{self._max_rss_bytes} is its share of max_rss_bytes: complete or remove flows, or "
            "open the store with a higher limit",
            reason="memory",
            retry_after_ms=OVERLOAD_RETRY_MS,
        )

    def give_back(self) -> None:
        """Give memory back that flows have left, now and then."""
        self._trim_now_and_then(self._now_s())

    def _trim_now_and_then(self, now_s: float) -> bool:
        if now_s < self._trim_at_s:
            return False
        self._trim_at_s = now_s + RSS_TRIM_SECONDS
        self._trim()
        return True

    def _is_over(self, max_rss_bytes: int) -> bool:
        now_s = self._now_s()
        if now_s < self._measure_at_s:
            return self._is_full
        self._measure_at_s = now_s + RSS_CHECK_SECONDS
        self._rss_bytes = self._measure()
        # Flows that are gone leave holes that the process still holds.
        if self._rss_bytes > max_rss_bytes and self._trim_now_and_then(now_s):
            self._rss_bytes = self._measure()
        was_full, self._is_full = self._is_full, self._rss_bytes > max_rss_bytes
        if self._is_full != was_full:
            told = "refuses creations:" if self._is_full else "takes creations again:"
            logger.warning(
                "the shard %s it holds %d bytes, the limit is %d",
                told,
                self._rss_bytes,
                max_rss_bytes,
            )
        return self._is_full
