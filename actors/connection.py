"""A client's connection, seen from a shard: a stranger until it has shown the token."""

from __future__ import annotations

import hmac
import logging
import os
import socket
import struct
import sys
from collections import deque

from ..flow.limits import ANSWER_BACKLOG_BYTES_MAX, WIRE_FRAME_BYTES_MAX
from .wire import HELLO, PROTOCOL, FrameReader, Hello, WireError, read_hello

logger = logging.getLogger("shardflow.shard")

_HELLO_BYTES_MAX = 4_096
_READ_BYTES = 1 << 20
_SEND_BATCH = 64


class Connection:
    """Frames in, frames out, neither of which can block the shard or outgrow its bound."""

    def __init__(self, channel: socket.socket, opened_ms: int) -> None:
        channel.setblocking(False)
        self.channel = channel
        self.opened_ms = opened_ms
        self.is_trusted = False
        self.is_closed = False
        self.is_at_fault = False
        """It has sent a request that is not allowed, and that was logged."""
        self.peer_pid = 0
        self._reader = FrameReader(_HELLO_BYTES_MAX)
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0

    def read(self) -> list[tuple[int, bytes]]:
        """Return the frames that have arrived; of a stranger's only the first, see `rest`.

        Raises:
            EOFError: the client has closed the connection.
            WireError: what arrived is not the protocol.
        """
        try:
            data = self.channel.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return self._reader.feed(data, None if self.is_trusted else 1)

    def rest(self) -> list[tuple[int, bytes]]:
        """Return the frames that came right behind the handshake."""
        return self._reader.feed(b"")

    def greet(self, number: int, body: bytes, token: str) -> Hello:
        """Check the handshake; from then on frames may be large.

        Raises:
            WireError: wrong frame, wrong protocol or wrong token.
        """
        if number != HELLO:
            raise WireError("the first frame is not a handshake")
        hello = read_hello(body)
        if hello.protocol != PROTOCOL:
            raise WireError(f"protocol {hello.protocol}; this shard speaks {PROTOCOL}")
        if not hmac.compare_digest(hello.token.encode(), token.encode()):
            raise WireError("the token is not that of the data directory")
        self.is_trusted = True
        self.peer_pid = hello.pid
        self._reader.frame_bytes_max = WIRE_FRAME_BYTES_MAX
        return hello

    def send(self, data: bytes) -> bool:
        """Send now what the socket takes, keep the rest; return whether there is a rest.

        Raises:
            EOFError: the client has gone, or has not read its answers for too long.
        """
        if self._backlog:
            self._keep(memoryview(data))
            return True
        sent = self._try(data)
        if sent == len(data):
            return False
        self._keep(memoryview(data)[sent:])
        return True

    def flush(self) -> bool:
        """Send what was kept; return whether there is still a rest."""
        while self._backlog:
            first = self._backlog[0]
            sent = self._try(first)
            self._backlog_bytes -= sent
            if sent < len(first):
                self._backlog[0] = first[sent:]
                return True
            self._backlog.popleft()
        return False

    def close(self) -> None:
        """Close the socket; safe to repeat."""
        self.is_closed = True
        self._backlog.clear()
        self.channel.close()

    def _keep(self, data: memoryview) -> None:
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._backlog_bytes > ANSWER_BACKLOG_BYTES_MAX:
            logger.warning("client %d does not read its answers: closed", self.peer_pid)
            raise EOFError

    def _try(self, data: bytes | memoryview) -> int:
        try:
            return self.channel.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise EOFError from error


def peer_uid(channel: socket.socket) -> int | None:
    """Return the user id of the process at the other end; None where the system cannot tell."""
    if sys.platform != "linux":
        return None
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


def is_own_user(channel: socket.socket) -> bool:
    """Whether the peer runs as our user, as far as the system can tell."""
    uid = peer_uid(channel)
    return uid is None or uid == os.getuid()
