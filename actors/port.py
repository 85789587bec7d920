"""The narrow waist: what the SDK needs of whatever answers its commands."""

from __future__ import annotations

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

    def submit(self, request: Any, receiver: Receiver) -> int:
        """Send a request; the receiver is called exactly once. Returns the request's number."""
        ...

    def withdraw(self, number: int) -> bool:
        """Take a request back; True if it was never sent, and now never will be."""
        ...

    def lead(self, future: ReplyFuture[Any], timeout_s: float | None) -> None:
        """Read answers in the caller's thread until the future is resolved or time is up."""
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
