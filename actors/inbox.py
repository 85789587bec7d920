"""A Pykka inbox that is a selector: an actor on it waits for messages, sockets and time at once."""

from __future__ import annotations

import contextlib
import select
import socket
from collections import deque
from typing import Any, Self

from pykka import ActorRegistry, Future, ThreadingActor

_WAKE = object()


class Mail:
    """A message and whom to answer: what Pykka's loop takes from an inbox.

    Pykka's own envelope is private; its loop reads these two attributes and nothing else.
    """

    __slots__ = ("message", "reply_to")

    def __init__(self, message: Any, reply_to: Future[Any] | None = None) -> None:
        self.message = message
        self.reply_to = reply_to


class Ready:
    """The message that a selector inbox makes itself: these channels are ready, or time is up."""

    __slots__ = ("events",)

    def __init__(self, events: list[tuple[Any, int]]) -> None:
        self.events = events
        """(what was registered, READ | WRITE); empty: time is up."""


READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
WRITE = select.EPOLLOUT


class SelectorInbox:
    """Messages told from other threads come first; then whatever the selector finds.

    `timeout_s` is set by the actor that reads from it: how long `get` may wait for channels.
    The selector is an epoll, because that may be changed by any thread while one waits on it.
    """

    def __init__(self) -> None:
        self._told: deque[Any] = deque()
        self._epoll = select.epoll()
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._what: dict[int, Any] = {}
        self.timeout_s: float | None = None
        self._closed = False
        self.watch(self._wakee, _WAKE)

    def put(self, envelope: Any, /) -> None:
        """Add a message; safe from any thread."""
        self._told.append(envelope)
        self.poke()

    def poke(self) -> None:
        """Make a waiting `get` look again; safe from any thread."""
        # A full pipe is as good as one more byte: the reader is going to wake up.
        with contextlib.suppress(BlockingIOError, OSError):
            self._waker.send(b"!")

    def get(self) -> Any:
        """Return the next message, waiting for one."""
        while True:
            if self._told:
                return self._told.popleft()
            events = self._epoll.poll(self.timeout_s)
            ready = []
            for fd, mask in events:
                what = self._what.get(fd)
                if what is _WAKE:
                    with contextlib.suppress(BlockingIOError):
                        self._wakee.recv(4_096)
                elif what is not None:
                    ready.append((what, mask))
            if ready or not events or not self._told:
                return Mail(Ready(ready))

    def empty(self) -> bool:
        """Whether no told message waits; ready channels do not count."""
        return not self._told

    def watch(
        self,
        channel: Any,
        what: Any,
        *,
        read: bool = True,
        write: bool = False,
        once: bool = False,
    ) -> None:
        """Report `what` when the channel can be read, and also, or only, when it can be written.

        With `once`, a report is the last one until `watch` is called again. Any thread.
        """
        fd = channel if isinstance(channel, int) else channel.fileno()
        mask = (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
        mask |= select.EPOLLONESHOT if once else 0
        if fd in self._what:
            self._what[fd] = what
            self._epoll.modify(fd, mask)
        else:
            self._what[fd] = what
            self._epoll.register(fd, mask)

    def unwatch(self, channel: Any) -> None:
        """Forget a channel, before it is closed; safe to repeat. Any thread."""
        fd = channel if isinstance(channel, int) else channel.fileno()
        if self._what.pop(fd, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Give the descriptors back; later pokes do nothing."""
        if not self._closed:
            self._closed = True
            self._epoll.close()
            self._waker.close()
            self._wakee.close()


class SelectorActor(ThreadingActor):
    """A Pykka actor whose inbox is a selector. Its thread does not keep the program alive."""

    use_daemon_thread = True

    @property
    def inbox(self) -> SelectorInbox:
        """The actor's inbox, by its own type."""
        assert isinstance(self.actor_inbox, SelectorInbox)
        return self.actor_inbox

    @staticmethod
    def _create_actor_inbox() -> SelectorInbox:
        return SelectorInbox()

    @classmethod
    def launch(cls, *args: Any) -> Self:
        """Start as `start` does, but return the actor: for owners that share its process."""
        actor = cls(*args)
        ActorRegistry.register(actor.actor_ref)
        actor._start_actor_loop()
        return actor
