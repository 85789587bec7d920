"""ShardActor: owns one engine, in its own process; its inbox is a socket.

While a batch is being synced, the requests that arrive wait in the sockets; together they are the
next batch. So the batch grows with the load, and an idle shard answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pykka

from ..flow.engine import Answer
from ..flow.errors import FlowError, is_final
from ..flow.limits import (
    CONNECTIONS_MAX,
    HANDSHAKE_SECONDS_MAX,
    INBOX_BYTES_MAX,
    INBOX_REQUESTS_MAX,
)
from ..flow.replies import Rejected
from .connection import Connection, is_own_user
from .inbox import READ, WRITE, Ready, SelectorActor
from .messages import Arrival, Departure
from .service import Service
from .wire import (
    HELLO,
    PROTOCOL,
    Welcome,
    WireError,
    pack_answer,
    pack_body,
    pack_frame,
    read_request,
)

logger = logging.getLogger("shardflow.shard")

EXIT_BROKEN = 70
"""The exit code of a shard whose step failed: memory may be ahead of the disk."""
_IDLE_S = 3_600.0


class ShardActor(SelectorActor):
    """A Pykka actor whose loop is its process's main thread.

    An exception under Pykka's `ask` would be handed to one caller and the actor live on, serving
    from a state ahead of the disk. So whatever escapes a step ends the process.
    """

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        lifeline: list[Any],
        token: str,
        end: Callable[[int], None] = os._exit,
        report: Callable[[FlowError], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._service = service
        self._listener = listener
        self._lifeline = lifeline
        self._token = token
        self._end = end
        self._report = report
        self._connections: set[Connection] = set()
        self._strangers: set[Connection] = set()
        """Connections that have not shown the token yet."""
        self._waiting: deque[Arrival] = deque()
        """Requests over one batch's bound; no socket is read while there are any."""
        self._gone: list[Connection] = []
        """Dropped connections that may still have requests in the next batches."""
        self._is_asked_to_end = False
        """Whether the host closes the store; else it is gone."""
        self.inbox.watch(listener, listener)
        for channel in lifeline:
            self.inbox.watch(channel, channel)

    def run(self) -> None:
        """Serve in this thread until the host is gone or closes the shard."""
        pykka.ActorRegistry.register(self.actor_ref)
        self._plan()
        self._actor_loop()

    def on_receive(self, message: Any) -> Any:
        """Serve one batch, or whatever else has become ready."""
        try:
            if isinstance(message, Ready):
                self._ready(message)
                self._plan()
                return None
            return super().on_receive(message)
        except Exception as error:
            logger.exception("the shard's step failed; ending its process")
            if is_final(error):
                self._report(error)
            self._end(EXIT_BROKEN)
            raise

    def on_stop(self) -> None:
        """Close connections and log: everything that was answered is on disk already."""
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
        # The next host waits for the directory, and would not wait for a checkpoint.
        self._service.close(at_once=not self._is_asked_to_end)

    def _ready(self, message: Ready) -> None:
        arrivals: list[Arrival] = []
        size = 0
        is_over = False
        for what, mask in message.events:
            if isinstance(what, Connection):
                size += self._serve_connection(what, mask, arrivals, size)
            elif what is self._listener:
                self._accept()
            else:
                is_over = True
                # A host that dies says nothing.
                is_asked = isinstance(what, io.BufferedReader) and bool(what.read1(1))
                self._is_asked_to_end = self._is_asked_to_end or is_asked
        self._waiting.extend(arrivals)
        batch = [
            self._waiting.popleft() for _ in range(min(len(self._waiting), INBOX_REQUESTS_MAX))
        ]
        if batch:
            self._depart(self._service.serve(batch, len(self._waiting)))
        for connection in self._gone:
            self._service.forget(connection)
        if not self._waiting:
            self._gone.clear()
        if is_over:
            self.stop()

    def _serve_connection(
        self, connection: Connection, mask: int, arrivals: list[Arrival], size: int
    ) -> int:
        """Read one connection into the batch; return the bytes read."""
        if connection.is_closed:
            return 0
        try:
            if mask & WRITE and not connection.flush():
                self.inbox.watch(connection.channel, connection)
            if not mask & READ or size > INBOX_BYTES_MAX or self._waiting:
                return 0
            return self._read(connection, arrivals)
        except EOFError:
            self._drop(connection)
        except WireError as error:
            logger.warning("closed a connection that does not speak the protocol: %s", error)
            self._drop(connection)
        return 0

    def _read(self, connection: Connection, arrivals: list[Arrival]) -> int:
        size = 0
        frames = connection.read()
        if frames and not connection.is_trusted:
            self._greet(connection, *frames[0])
            frames = connection.rest()
        for number, body in frames:
            size += len(body)
            request = read_request(body)
            if request.__class__ is not Rejected:
                arrivals.append(Arrival(connection, number, request))
            elif self._turn_down(connection, number, request):
                break
        return size

    def _turn_down(self, connection: Connection, number: int, rejected: Rejected) -> bool:
        """Answer what is no allowed request; return whether the connection is closed by that.

        The requests beside it go on: a client may have one mistake in it and much in flight.
        """
        if number == HELLO:
            raise WireError(rejected.refused.message)
        if not connection.is_at_fault:
            connection.is_at_fault = True
            logger.warning(
                "client %d: %s; more of the kind are not told",
                connection.peer_pid,
                rejected.refused.message,
            )
        self._send(connection, pack_answer(number, Answer(rejected)))
        return connection.is_closed

    def _greet(self, connection: Connection, number: int, body: bytes) -> None:
        connection.greet(number, body, self._token)
        self._strangers.discard(connection)
        engine = self._service.engine
        welcome = Welcome(PROTOCOL, engine.state.settings.shard, os.getpid(), engine.log.epoch)
        self._send(connection, pack_frame(HELLO, pack_body(welcome)))

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError:
            return
        if len(self._connections) >= CONNECTIONS_MAX or not is_own_user(channel):
            logger.warning("refused a connection: another user's, or over %d", CONNECTIONS_MAX)
            channel.close()
            return
        connection = Connection(channel, self._now_ms())
        self._connections.add(connection)
        self._strangers.add(connection)
        self.inbox.watch(channel, connection)

    def _drop(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._strangers.discard(connection)
            self.inbox.unwatch(connection.channel)
            connection.close()
            self._service.forget(connection)
            self._gone.append(connection)

    def _depart(self, departures: list[Departure]) -> None:
        """Send each client all its answers of this batch at once."""
        outgoing: dict[Connection, list[bytes]] = {}
        for connection, number, answer in departures:
            if not connection.is_closed:
                outgoing.setdefault(connection, []).append(pack_answer(number, answer))
        for connection, frames in outgoing.items():
            self._send(connection, frames[0] if len(frames) == 1 else b"".join(frames))

    def _send(self, connection: Connection, data: bytes) -> None:
        try:
            if connection.send(data):
                self.inbox.watch(connection.channel, connection, write=True)
        except EOFError:
            self._drop(connection)

    def _plan(self) -> None:
        """Do what is due, and set how long the inbox may wait: until the next thing is."""
        clock = self._service.clock
        at_ms = self._service.next_wake_ms()
        if at_ms is not None and at_ms <= clock.now_ms():
            self._depart(self._service.wake())
            at_ms = self._service.next_wake_ms()
        timeout_s = _IDLE_S
        if self._waiting:
            timeout_s = 0.0
        elif at_ms is not None:
            timeout_s = min(timeout_s, max(0, at_ms - clock.now_ms()) / 1_000)
        for connection in list(self._strangers):
            left_s = HANDSHAKE_SECONDS_MAX - (self._now_ms() - connection.opened_ms) / 1_000
            if left_s <= 0:
                logger.warning("closed a connection that never showed the token")
                self._drop(connection)
            else:
                timeout_s = min(timeout_s, left_s)
        self.inbox.timeout_s = timeout_s

    @staticmethod
    def _now_ms() -> int:
        return time.monotonic_ns() // 1_000_000
