"""Clients that begin a fan-out and go away, at a real shard process: nobody waits for them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shardflow as sf
from shardflow.actors.wire import HELLO, PROTOCOL, Hello, pack_body, pack_frame, pack_request
from shardflow.flow.family import Spawn, SpawnBegin
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import SPAWN_MS_MAX

SHARDS = 2
PARENT = next(i for i in map(str, range(99)) if shard_of(None, i, SHARDS) == 0)
CHILDREN = [{"id": f"c{number}", "type": "kid"} for number in range(9)]
SPAWN = Spawn(
    PARENT, None, "g", "all", "waiting", "won", "lost", "fail_parent", "cancel_children",
    None, None, None, 1, [1], b"someone's",
)  # fmt: skip
SOON_S = SPAWN_MS_MAX / 1_000 / 3

GARBAGE = pack_frame(3, b"\xc1")
"""Not MessagePack: closes the connection that it comes from."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sf.Store]:
    with sf.open(tmp_path / "data", shards=SHARDS) as store:
        store.flow_create(PARENT, type="parent")
        yield store


@pytest.fixture
def client(store: sf.Store, tmp_path: Path) -> Iterator[socket.socket]:
    token = (tmp_path / "data" / "run" / "token").read_text()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(tmp_path / "data" / "run" / "shard-0.sock"))
        # All in one piece with what a test sends next: the shard reads it in one round.
        channel.sendall(pack_frame(HELLO, pack_body(Hello(PROTOCOL, token, os.getpid()))))
        yield channel


def wait_for_the_end(channel: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        while channel.recv(4_096):
            continue


def hang_up(channel: socket.socket) -> None:
    channel.sendall(pack_request(1, SpawnBegin(SPAWN)))
    channel.recv(4_096)
    channel.close()


def rave(channel: socket.socket) -> None:
    channel.sendall(pack_request(1, SpawnBegin(SPAWN)) + GARBAGE)
    wait_for_the_end(channel)


def rave_while_waiting(channel: socket.socket) -> None:
    begins = pack_request(1, SpawnBegin(SPAWN)) + pack_request(2, SpawnBegin(SPAWN))
    channel.sendall(begins + GARBAGE)
    wait_for_the_end(channel)


@pytest.mark.parametrize("go_away", [hang_up, rave, rave_while_waiting])
def test_a_client_that_goes_away_takes_its_fan_out_along(
    store: sf.Store, client: socket.socket, go_away: Callable[[socket.socket], None]
) -> None:
    go_away(client)
    began_s = time.monotonic()
    parent = store.flow_spawn_children(PARENT, CHILDREN, success="won", failure="lost")
    assert time.monotonic() - began_s < SOON_S, "it waited for a transaction that nobody drives"
    assert parent.child_groups["fanout"].total == len(CHILDREN)
    assert all(not told["problems"] for told in store.stats(check=True))
