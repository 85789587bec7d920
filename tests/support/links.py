"""Links whose answers a test decides about, or whose requests it lets through one by one."""

from __future__ import annotations

import itertools
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

import shardflow as sf
from shardflow.actors.local import LocalLink
from shardflow.actors.port import Link, Receiver
from shardflow.actors.service import Service
from shardflow.flow.codec import encoder
from shardflow.flow.replies import Data

Script = Callable[[Any], Any]
"""What a shard answers to a request; None: nothing, for now."""


def links_of(store: sf.Store) -> list[Any]:
    """Return a store's links, shard by shard."""
    port: Any = store.port
    found: list[Any] = port.links if hasattr(port, "links") else port._router.links
    return found


def service_of(store: sf.Store, shard: int = 0) -> Service:
    """Return what serves a shard inside this process."""
    link: LocalLink = links_of(store)[shard]
    assert link._service is not None
    return link._service


def pending_in(store: sf.Store) -> list[int]:
    """Return how many requests wait for an answer, shard by shard."""
    return [link.requests_pending for link in links_of(store)]


class Answers:
    """A receiver that keeps what it is told; whoever is called once has one answer."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.all: list[Any] = []
        self._then = then

    @property
    def only(self) -> Any:
        assert len(self.all) == 1, self.all
        return self.all[0]

    def arrive(self, body: bytes) -> None:
        self.answer(msgspec.msgpack.decode(body))

    def answer(self, reply: Any) -> None:
        self.all.append(reply)
        if self._then is not None:
            self._then()


class ScriptedLink:
    """A shard that answers at once whatever its script says, and notes what it was asked."""

    def __init__(self, shard: int, script: Script) -> None:
        self.shard = shard
        self.channel: socket.socket | None = None
        self.asked: list[Any] = []
        self.leads = 0
        self.requests_pending = 0
        self._script = script
        self._numbers = itertools.count(1)

    def submit(self, request: Any, receiver: Receiver) -> int:
        self.asked.append(request)
        reply = self._script(request)
        if reply is not None:
            receiver.answer(reply)
        return next(self._numbers)

    def withdraw(self, number: int) -> bool:
        return False

    def begin_lead(self) -> bool:
        self.leads += 1
        return False

    def end_lead(self) -> None:
        raise AssertionError("nothing was begun")

    def read(self) -> bool:
        raise AssertionError("nobody leads")

    def close(self) -> None: ...


class HeldLink(ScriptedLink):
    """A real shard behind a road on which requests wait until the test lets them pass."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.shard, lambda request: None)
        self._link = link
        self._road: deque[tuple[Any, Receiver]] = deque()

    def submit(self, request: Any, receiver: Receiver) -> int:
        self._road.append((request, receiver))
        return super().submit(request, receiver)

    @property
    def is_idle(self) -> bool:
        return not self._road

    def let_pass(self) -> None:
        """Let what waits now, but nothing that follows from it, reach the shard."""
        for _ in range(len(self._road)):
            request, receiver = self._road.popleft()
            self._link.submit(request, receiver)


def held_links(store: sf.Store) -> list[HeldLink]:
    """Return held links to the shards of a store inside this process."""
    return [HeldLink(link) for link in links_of(store)]


def a_body(data: Any = 1) -> bytes:
    """Return the bytes of some reply."""
    return encoder.encode(Data(data))
