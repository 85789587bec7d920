"""RouterActor: the caller's side of all shard processes, one thread, one selector.

Requests are sent by the calling threads themselves; the router reads the answers, mends
connections, and drives what crosses shards. `ask` and `tell` work as with any Pykka actor: a
message that is a command is submitted, and its future is the answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from ..flow.errors import FlowError
from .inbox import READ, WRITE, Mail, Ready, SelectorActor
from .link import ProcessLink
from .routes import Routes

logger = logging.getLogger("shardflow.router")

_WAIT_MIN_S = 0.005
_WAIT_MAX_S = 0.5


class Keeper(Protocol):
    """Who knows how to come by shards. Asked by the router's thread alone; may not block."""

    def prepare(self) -> bool:
        """See to it that shards can be connected to; False: not now, try again later."""
        ...

    def missed(self, shard: int) -> None:
        """Hear that a shard cannot be connected to."""
        ...

    def given_up(self) -> None:
        """Hear that a shard of our own does not start."""
        ...


class Connect(NamedTuple):
    """Told by who starts shards, or looks for them: this one may be up."""

    shard: int


class GiveUp(NamedTuple):
    """Told by who starts shards: this one does not start."""

    shard: int
    error: FlowError


class _Lost(NamedTuple):
    shard: int


_HOST = object()
"""What the inbox reports when the host that is followed has ended."""


class RouterActor(SelectorActor):
    """Owns the links to the shard processes."""

    def __init__(self, paths: Sequence[Path], keeper: Keeper) -> None:
        super().__init__()
        self.links = [ProcessLink(i, path, "", self) for i, path in enumerate(paths)]
        self.routes = Routes(self.links)
        self._keeper = keeper
        self._tries: dict[int, float] = {}
        """shard → when to connect again, in monotonic seconds."""
        self._waits_s: dict[int, float] = {}
        """shard → the wait before that, which grows until the shard lets us in."""
        self._host_fd = -1

    def on_receive(self, message: Any) -> Any:
        """Serve one round of ready sockets, or one message."""
        result: Any = None
        if isinstance(message, Ready):
            for what, mask in message.events:
                if what is _HOST:
                    self.seek()
                else:
                    self._serve(what, mask)
        elif isinstance(message, _Lost):
            self._lost(self.links[message.shard])
        elif isinstance(message, Connect):
            self._tries[message.shard] = 0.0
        elif isinstance(message, GiveUp):
            self._tries.pop(message.shard, None)
            self.links[message.shard].fail(message.error)
            self._keeper.given_up()
        else:
            result = self.routes.submit(message, _as_it_is)
        self._connect_due()
        return result

    def on_stop(self) -> None:
        """Refuse everything that is not answered yet."""
        for link in self.links:
            link.close()
        self.follow(None)
        self.inbox.close()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Refuse everything: a router that failed answers nothing any more."""
        self.on_stop()

    def follow(self, host_pid: int | None) -> None:
        """Look for the shards anew as soon as this process has ended. For the keeper.

        Not only their sockets tell: a shard that is stopped keeps its socket open.
        """
        if self._host_fd >= 0:
            self.inbox.unwatch(self._host_fd)
            os.close(self._host_fd)
            self._host_fd = -1
        if host_pid is not None and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._host_fd = os.pidfd_open(host_pid)
                self.inbox.watch(self._host_fd, _HOST)

    def abandon(self) -> None:
        """In a forked child: close its copies, without a word to whoever is at the other end."""
        for link in self.links:
            if link.channel is not None:
                link.channel.close()
        if self._host_fd >= 0:
            os.close(self._host_fd)
        self.inbox.close()

    def seek(self) -> None:
        """Look for all shards anew. For the keeper."""
        self.follow(None)
        for link in self.links:
            self._tries[link.shard] = 0.0

    def _serve(self, link: ProcessLink, mask: int) -> None:
        if mask & WRITE:
            link.writable()
        if mask & READ:
            link.readable()
        link.look()

    def _lost(self, link: ProcessLink) -> None:
        if link.channel is not None:
            return  # connected again, before this message came
        if link.welcome is not None:
            # It had let us in. Else it shows us out each time, and must not be asked in a loop.
            link.welcome = None
            self._waits_s.pop(link.shard, None)
        self._try_later(link.shard)

    def _try_later(self, shard: int) -> None:
        wait_s = min(2 * self._waits_s.get(shard, _WAIT_MIN_S / 2), _WAIT_MAX_S)
        self._waits_s[shard] = wait_s
        # Uneven, so that the many that wait for one shard do not come all at once.
        self._tries[shard] = time.monotonic() + wait_s * random.uniform(0.7, 1.0)

    def _connect_due(self) -> None:
        """Connect where it is time to, and let the inbox wait until it is elsewhere."""
        if not self._tries:
            self.inbox.timeout_s = None
            return
        now_s = time.monotonic()
        due = [shard for shard, at_s in self._tries.items() if at_s <= now_s]
        is_prepared = bool(due) and self._keeper.prepare()
        for shard in due:
            if is_prepared:
                self._connect(shard)
            else:
                self._try_later(shard)
        times = self._tries.values()
        self.inbox.timeout_s = max(0.0, min(times) - now_s) if times else None

    def _connect(self, shard: int) -> None:
        link = self.links[shard]
        try:
            if link.channel is None:
                link.connect()
        except OSError as error:
            logger.debug("shard %d cannot be reached: %s", shard, error)
            self._try_later(shard)
            self._keeper.missed(shard)
        else:
            self._tries.pop(shard, None)

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
