"""RouterActor: the caller's side of all shard processes, one thread, one selector.

Requests are sent by the calling threads themselves; the router reads the answers, mends
connections, and drives what crosses shards. `ask` and `tell` work as with any Pykka actor: a
message that is a command is submitted, and its future is the answer.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ..flow.errors import FlowError
from .inbox import READ, WRITE, Mail, Ready, SelectorActor
from .link import ProcessLink
from .routes import Routes

logger = logging.getLogger("shardflow.router")

_RETRY_MIN_S = 0.005
_RETRY_MAX_S = 0.5


class Connect(NamedTuple):
    """Told by who starts shards: this one is up."""

    shard: int


class GiveUp(NamedTuple):
    """Told by who starts shards: this one does not start."""

    shard: int
    error: FlowError


class _Lost(NamedTuple):
    shard: int


class RouterActor(SelectorActor):
    """Owns the links to the shard processes."""

    def __init__(self, paths: Sequence[Path], token: str) -> None:
        super().__init__()
        self.links = [ProcessLink(i, path, token, self) for i, path in enumerate(paths)]
        self.routes = Routes(self.links)
        self._retries: dict[int, tuple[float, float]] = {}
        """shard → (when to connect again, the wait before that), monotonic seconds."""

    def on_receive(self, message: Any) -> Any:
        """Serve one round of ready sockets, or one message."""
        result: Any = None
        if isinstance(message, Ready):
            for what, mask in message.events:
                self._serve(what, mask)
        elif isinstance(message, _Lost):
            self._retry_later(message.shard)
        elif isinstance(message, Connect):
            self._connect(message.shard)
        elif isinstance(message, GiveUp):
            self._retries.pop(message.shard, None)
            self.links[message.shard].fail(message.error)
        else:
            result = self.routes.submit(message, _as_it_is)
        self._retry_due()
        return result

    def on_stop(self) -> None:
        """Refuse everything that is not answered yet."""
        for link in self.links:
            link.close()
        self.inbox.close()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Refuse everything: a router that failed answers nothing any more."""
        self.on_stop()

    def _serve(self, link: ProcessLink, mask: int) -> None:
        if mask & WRITE:
            link.writable()
        if mask & READ:
            link.readable()
        link.look()

    def _connect(self, shard: int) -> None:
        link = self.links[shard]
        if link.channel is not None:
            return
        try:
            link.connect()
        except OSError as error:
            logger.debug("shard %d cannot be reached: %s", shard, error)
            self._retry_later(shard)
        else:
            self._retries.pop(shard, None)

    def _retry_later(self, shard: int) -> None:
        _, wait_s = self._retries.get(shard, (0.0, _RETRY_MIN_S / 2))
        wait_s = min(2 * wait_s, _RETRY_MAX_S)
        self._retries[shard] = (time.monotonic() + wait_s, wait_s)

    def _retry_due(self) -> None:
        if not self._retries:
            self.inbox.timeout_s = None
            return
        now_s = time.monotonic()
        for shard, (at_s, _) in list(self._retries.items()):
            if at_s <= now_s:
                self._connect(shard)
        times = [at_s for at_s, _ in self._retries.values()]
        self.inbox.timeout_s = max(0.0, min(times) - now_s) if times else None

    # ---- for the links, from any thread ----

    def look(self, channel: socket.socket, link: ProcessLink, *, read: bool, write: bool) -> None:
        """Report once when a link's socket can be read, written, or either."""
        self.inbox.watch(channel, link, read=read, write=write, once=True)

    def forget(self, channel: socket.socket) -> None:
        """Report a socket never again: it is about to be closed."""
        self.inbox.unwatch(channel)

    def lost(self, link: ProcessLink) -> None:
        """Connect again, by and by."""
        self.inbox.put(Mail(_Lost(link.shard)))


def _as_it_is(reply: Any) -> Any:
    return reply
