"""The narrow waist: what the SDK needs of whatever answers its commands."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .future import ReplyFuture

T = TypeVar("T")


class Receiver(Protocol):
    """Takes one answer: as bytes from a process, or as a reply from this one."""

    def arrive(self, body: bytes) -> None:
        """Take the bytes of a reply."""
        ...

    def answer(self, reply: Any) -> None:
        """Take a reply."""
        ...


class Link(Protocol):
    """The caller's end of one shard."""

    shard: int
    channel: socket.socket | None
    """What to wait on for answers; None while there is no connection."""

    @property
    def requests_pending(self) -> int:
        """How many requests wait for an answer."""
        ...

    def submit(self, request: Any, receiver: Receiver) -> int:
        """Send a request; the receiver is called exactly once. Returns the request's number."""
        ...

    def withdraw(self, number: int) -> bool:
        """Take a request back; True if it was never sent, and now never will be."""
        ...

    def begin_lead(self) -> bool:
        """Become the one that reads this link; False if that is not possible now."""
        ...

    def end_lead(self) -> None:
        """Leave the reading to others again."""
        ...

    def read(self) -> bool:
        """Hand out what has arrived; return whether anything had. For the one that leads."""
        ...

    def close(self) -> None:
        """Refuse everything from now on; safe to repeat."""
        ...


class Port(Protocol):
    """Takes a command for the whole store and promises its answer."""

    shards: int

    def submit(self, request: Any, read: Callable[[Any], T]) -> ReplyFuture[T]:
        """Send a request to where it belongs; `read` turns the reply into the caller's value."""
        ...

    def now_ms(self) -> int:
        """Return the store's time."""
        ...

    def close(self, timeout_s: float | None) -> None:
        """Stop everything that belongs to this port; safe to repeat."""
        ...
