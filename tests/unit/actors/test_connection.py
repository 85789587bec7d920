"""What a client sends right behind its handshake is not lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shardflow.actors.connection import Connection
from shardflow.actors.wire import HELLO, PROTOCOL, Hello, WireError, pack_body, pack_frame

TOKEN = "t" * 32
GREETING = pack_frame(HELLO, pack_body(Hello(PROTOCOL, TOKEN, 1)))
LARGE = b"x" * 50_000
"""More than a stranger may send at a time."""


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Connection(ours, 0), theirs


def greet(connection: Connection) -> list[tuple[int, bytes]]:
    ((number, body),) = connection.read()
    connection.greet(number, body, TOKEN)
    return connection.rest()


@pytest.mark.parametrize("body", [b"", b"small", LARGE])
def test_requests_behind_the_handshake_are_served(
    pair: tuple[Connection, socket.socket], body: bytes
) -> None:
    connection, client = pair
    client.sendall(GREETING + pack_frame(1, body) + pack_frame(2, b"next"))
    assert greet(connection) == [(1, body), (2, b"next")]


@pytest.mark.parametrize("size", [0, 1, 12, 13, 40_000])
def test_a_request_whose_beginning_came_with_the_handshake_is_served_whole(
    pair: tuple[Connection, socket.socket], size: int
) -> None:
    connection, client = pair
    request = pack_frame(1, LARGE)
    client.sendall(GREETING + request[:size])
    assert greet(connection) == []
    client.sendall(request[size:])
    assert connection.read() == [(1, LARGE)]


def test_a_strangers_first_frame_stays_small(pair: tuple[Connection, socket.socket]) -> None:
    connection, client = pair
    client.sendall(pack_frame(HELLO, LARGE))
    with pytest.raises(WireError):
        connection.read()
