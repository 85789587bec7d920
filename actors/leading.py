"""Leading: a caller that waits reads the answers itself, instead of being woken by the router.

It saves the two thread switches between router and caller. One caller at a time leads a link, and
hands out the answers of others as well; who cannot lead every link that its answer may come from
just waits, and is woken by whoever reads. A caller that waits alone first looks for a moment
without sleeping: to be woken on another core takes longer than most answers (`bench single`).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from .future import ReplyFuture
from .port import Link

SPIN_S = 0.000_2


def lead(links: Sequence[Link], future: ReplyFuture[Any], timeout_s: float | None) -> None:
    """Read the links' answers until the future is resolved, a shard goes away, or time is up.

    Never in the main thread: there a signal's handler may run, and raise, between any two steps,
    and a link left half read is lost to everybody.
    """
    if threading.get_ident() == threading.main_thread().ident:
        return
    led: list[Link] = []
    try:
        for link in links:
            if not link.begin_lead():
                return
            led.append(link)
        channels = [link.channel for link in links]
        if None not in channels:
            _read_until(links, channels, future, timeout_s)
    finally:
        for link in led:
            link.end_lead()


def _read_until(
    links: Sequence[Link],
    channels: list[socket.socket | None],
    future: ReplyFuture[Any],
    timeout_s: float | None,
) -> None:
    now_s = time.monotonic()
    end_s = None if timeout_s is None else now_s + timeout_s
    is_alone = sum(link.requests_pending for link in links) == 1
    spin_until_s = now_s + SPIN_S if is_alone else 0.0
    sleeper: select.poll | None = None
    while not future.is_resolved:
        has_read = False
        for link in links:
            has_read = link.read() or has_read
        if future.is_resolved or any(
            link.channel is not channel for link, channel in zip(links, channels, strict=True)
        ):
            return
        if has_read or time.monotonic() < spin_until_s:
            continue
        if sleeper is None:
            sleeper = select.poll()
            for channel in channels:
                if channel is None or channel.fileno() < 0:
                    return
                sleeper.register(channel, select.POLLIN)
        left_ms = None
        if end_s is not None:
            left_ms = (end_s - time.monotonic()) * 1_000
            if left_ms <= 0:
                return
        sleeper.poll(left_ms)
