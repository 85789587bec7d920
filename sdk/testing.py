"""For users' tests: the real engine in memory, and time that moves only when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..actors.ports import LocalPort
from ..flow import limits
from ..flow.errors import InvalidArgument
from ..flow.host import Files, SetClock, SystemClock
from ..flow.memory import MemoryFiles
from .checks import check_int
from .codecs import Codec
from .opening import (
    Durability,
    check_choices,
    check_clock,
    check_timeout,
    make_store,
    settings_of,
)
from .store import Store
from .times import duration_ms


class ManualClock(SetClock):
    """A clock that stands still until `advance`; leases, delays and waits go by it.

    Give it to `shardflow.open(..., clock=...)` or `memory_store`. Several stores may share one.
    """

    def __init__(self, start_ms: int = 0) -> None:
        super().__init__(check_int(start_ms, "start_ms"))
        self._followers: list[Callable[[int], None]] = []
        self._lock = threading.Lock()

    def advance(self, ms: Any) -> int:
        """Move time on, by ms or a timedelta; return the new time.

        On return every store that uses this clock has done what became due, and claims that
        waited for it have been woken.
        """
        step_ms = duration_ms(ms, "ms")
        with self._lock:
            if self.now_ms() + step_ms > limits.INTEGER_MAX:
                raise InvalidArgument(f"the clock would pass {limits.INTEGER_MAX}", argument="ms")
            self.set(self.now_ms() + step_ms)
            now_ms = self.now_ms()
            followers = list(self._followers)
        for follower in followers:
            follower(now_ms)
        return now_ms

    def subscribe(self, follower: Callable[[int], None]) -> Callable[[], None]:
        """Call `follower(now_ms)` at each advance, until the returned function is called."""
        self._followers.append(follower)

        def unsubscribe() -> None:
            if follower in self._followers:
                self._followers.remove(follower)

        return unsubscribe


def memory_store(
    *,
    shards: int = 1,
    clock: ManualClock | None = None,
    retention_ms: Any = limits.RETENTION_MS_DEFAULT,
    failed_retention_ms: Any = limits.FAILED_RETENTION_MS_DEFAULT,
    max_value_bytes: int = limits.VALUE_BYTES_DEFAULT,
    timeout: float = limits.TIMEOUT_S_DEFAULT,
    codec: Codec | None = None,
    durability: Durability = "sync",
) -> Store:
    """Open a store that lives in memory: the same decisions and the same log, no disk, no process.

    Without a clock it goes by the wall clock. The options are those of `shardflow.open`.
    """
    check_int(shards, "shards", 1, limits.SHARDS_MAX)
    check_int(max_value_bytes, "max_value_bytes", 1, limits.VALUE_BYTES_CEILING)
    check_clock(clock)
    check_choices(durability, "auto")
    files: list[Files] = [MemoryFiles() for _ in range(shards)]
    settings = settings_of(retention_ms, failed_retention_ms)
    timeout_s = check_timeout(timeout)
    actual = clock or SystemClock()
    port = LocalPort(files, settings, actual, sync=durability == "sync", manual=clock is not None)
    return make_store(port, clock, codec, max_value_bytes, timeout_s, None, lambda: None)
