"""Who takes answers, and what every link to a shard has. sdk/store.py has the Port above."""

from __future__ import annotations

import socket
from typing import Any, Protocol


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
