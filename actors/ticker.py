"""TickerActor: wakes shards that live in this process when time has made something due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .inbox import Ready, SelectorActor
from .local import LocalLink

_IDLE_S = 3_600.0


class TickerActor(SelectorActor):
    """Sleeps until the earliest wake time of its links; poked when that may have changed."""

    def __init__(self, links: Sequence[LocalLink], now_ms: Callable[[], int]) -> None:
        super().__init__()
        self._links = links
        self._now_ms = now_ms
        for link in links:
            link.poke = self.inbox.poke

    def on_receive(self, message: Any) -> Any:
        """Wake what is due, and plan the next round."""
        if not isinstance(message, Ready):
            return super().on_receive(message)
        now_ms = self._now_ms()
        wait_s = _IDLE_S
        for link in self._links:
            at_ms = link.next_wake_ms()
            if at_ms is not None and at_ms <= now_ms:
                link.wake()
                at_ms = link.next_wake_ms()
            if at_ms is not None:
                wait_s = min(wait_s, max(0, at_ms - now_ms) / 1_000)
        self.inbox.timeout_s = wait_s
        return None

    def on_stop(self) -> None:
        """Give the descriptors back."""
        self.inbox.close()
