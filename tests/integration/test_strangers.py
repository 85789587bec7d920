"""Whatever else connects to a shard is shown out, and a client beside it notices nothing.

A client that has the token and asks for what is not allowed is told so, and may go on.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shardflow as sf
from shardflow.actors.wire import (
    HEADER,
    HELLO,
    PROTOCOL,
    FrameReader,
    Hello,
    pack_frame,
    pack_request,
    read_reply,
    read_welcome,
)
from shardflow.flow.codec import encoder
from shardflow.flow.limits import CONNECTIONS_MAX, WIRE_FRAME_BYTES_MAX
from shardflow.flow.queries import Info, Stats, ValueGet, Watch
from shardflow.flow.replies import Rejected
from support.lone import Shard
from support.processes import eventually, stderr_to
from support.strange import places, raw, replaced, strangers_of, valid_requests

HALF_MIB = 2**19


class Stranger:
    """A connection that speaks as the test wants it to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channel = socket.socket(socket.AF_UNIX)
        self.channel.settimeout(20)
        self.channel.connect(str(path / "run" / "shard-0.sock"))
        self._frames = FrameReader()
        self._arrived: list[tuple[int, bytes]] = []

    def send(self, data: bytes) -> None:
        self.channel.sendall(data)

    def greet(self, token: str | None = None, protocol: int = PROTOCOL) -> None:
        if token is None:
            token = (self.path / "run" / "token").read_text()
        self.send(pack_frame(HELLO, encoder.encode(Hello(protocol, token, os.getpid()))))

    def ask(self, number: int, request: Any) -> None:
        self.send(pack_request(number, request))

    def receive(self) -> tuple[int, bytes]:
        """Wait for the next frame."""
        while not self._arrived:
            data = self.channel.recv(2**20)
            if not data:
                raise EOFError
            self._arrived += self._frames.feed(data)
        return self._arrived.pop(0)

    def assert_shown_out(self) -> None:
        """Check that the shard has closed the connection, answering nothing more."""
        try:
            while self.channel.recv(2**20):
                continue
        except ConnectionResetError:
            pass


class Said:
    """What the shard has written to its stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def warnings(self) -> list[str]:
        lines = self.path.read_text().splitlines(keepends=True)
        return [line for line in lines if "WARNING" in line and line.endswith("\n")]


@pytest.fixture
def said(tmp_path: Path) -> Said:
    return Said(tmp_path / "stderr")


@pytest.fixture
def store(said: Said, tmp_path: Path) -> Iterator[sf.Store]:
    """A store of one shard whose process is the same at the end, having answered all along."""
    with stderr_to(said.path):
        opened = sf.open(tmp_path / "data", shards=1, timeout=20)
    with opened as store:
        store.flow_create("before", type="t")
        before = store.processes()
        waiting = store.submit.flow_claim_due("late", worker="w", block_ms=60_000)
        yield store
        assert store.processes() == before
        assert store.flow_create("after", type="late").version == 1
        assert [job.id for job in waiting.get(timeout=20)] == ["after"]
        (told,) = store.stats(check=True)
        assert told["problems"] == []
        assert told["epoch"] == 1


@pytest.fixture
def stranger(store: sf.Store, tmp_path: Path) -> Iterator[Stranger]:
    stranger = Stranger(tmp_path / "data")
    yield stranger
    stranger.channel.close()


def frame_of(size: int, number: int = HELLO) -> bytes:
    return HEADER.pack(size, number)


BEFORE_THE_TOKEN: dict[str, Callable[[Stranger], None]] = {
    "random bytes": lambda s: s.send(b"\xff" + random.Random(1).randbytes(5_000)),
    "an HTTP request": lambda s: s.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "a huge length": lambda s: s.send(frame_of(2**32 - 1)),
    "a length that only a client of ours may send": lambda s: s.send(frame_of(10_000)),
    "a wrong token": lambda s: s.greet("0" * 32),
    "an empty token": lambda s: s.greet(""),
    "half a token": lambda s: s.greet((s.path / "run" / "token").read_text()[:16]),
    "a token that is no ASCII": lambda s: s.greet("é" * 32),
    "another protocol": lambda s: s.greet(protocol=PROTOCOL + 1),
    "no handshake": lambda s: s.send(pack_frame(HELLO, b"\xc0")),
    "an empty handshake": lambda s: s.send(frame_of(0)),
    "a token that is no text": lambda s: s.send(pack_frame(HELLO, b"\x93\x01\xa3\xed\xa0\x80\x01")),
    "a deep handshake": lambda s: s.send(pack_frame(HELLO, b"\x91" * 4_000)),
    "a request without a handshake": lambda s: s.ask(1, Stats(False)),
}

AFTER_THE_TOKEN: dict[str, Callable[[Stranger], None]] = {
    "random bytes": lambda s: s.send(b"\xff\xff\xff\xff" + random.Random(2).randbytes(5_000)),
    "a huge length": lambda s: s.send(frame_of(2**32 - 1, 1)),
    "a frame over the bound": lambda s: s.send(frame_of(WIRE_FRAME_BYTES_MAX + 1, 1)),
    "a second handshake": Stranger.greet,
    "an empty request": lambda s: s.send(frame_of(0, 1)),
    "a request with bytes behind it": lambda s: s.send(
        pack_frame(1, encoder.encode(Stats(False)) + b"\xc0")
    ),
    "a request that ends too soon": lambda s: s.send(pack_frame(1, encoder.encode(Info("t"))[:-1])),
    "a name that is no text": lambda s: s.send(pack_frame(1, b"\x92\x69\xa3\xed\xa0\x80")),
    "an allowed request that is numbered as a handshake": lambda s: s.send(
        pack_frame(HELLO, b"\x92\x71\xa1x")
    ),
}

NOT_ALLOWED: dict[str, bytes] = {
    "a request that is none": b"\x93\x01\x02\x03",
    "a request of no known kind": b"\x91\xcd\xff\xff",
    "a deep request": b"\x91" * 100_000,
    "a deep policy": b"\x95\x0d\xa1t" + b"\x81\xa1a" * 100_000,
    "a wrong type in a request": b"\x92\x71\xa1x",
    "a number out of bounds": encoder.encode(Info("t", -1)),
    "a text out of bounds": encoder.encode(Info("t" * 513)),
    "an endless word": encoder.encode([104, "x" * 1_000_000]),
}


def assert_one_warning(said: Said) -> None:
    eventually(said.warnings, "nothing is said about it")
    (line,) = said.warnings()
    assert "shardflow.shard" in line
    assert "closed a connection" in line


@pytest.mark.parametrize("what", BEFORE_THE_TOKEN)
def test_who_does_not_show_the_token_is_shown_out(
    stranger: Stranger, said: Said, what: str
) -> None:
    BEFORE_THE_TOKEN[what](stranger)
    stranger.assert_shown_out()
    assert_one_warning(said)


@pytest.mark.parametrize("what", AFTER_THE_TOKEN)
def test_who_shows_the_token_and_then_sends_junk_is_shown_out(
    stranger: Stranger, said: Said, what: str
) -> None:
    stranger.greet()
    number, body = stranger.receive()
    assert (number, read_welcome(body).shard) == (HELLO, 0)
    stranger.ask(7, Stats(False))
    number, body = stranger.receive()
    assert (number, read_reply(body).data["shard"]) == (7, 0)
    AFTER_THE_TOKEN[what](stranger)
    stranger.assert_shown_out()
    assert_one_warning(said)


@pytest.mark.parametrize("what", NOT_ALLOWED)
def test_who_asks_for_what_is_not_allowed_is_told_so_and_may_go_on(
    stranger: Stranger, said: Said, what: str
) -> None:
    stranger.greet()
    stranger.receive()
    for number in (3, 4):
        stranger.send(pack_frame(number, NOT_ALLOWED[what]))
        got, body = stranger.receive()
        refused = read_reply(body).refused
        assert (got, refused.code) == (number, "invalid_argument")
        assert len(refused.message) < 300
    stranger.ask(7, Stats(False))
    assert stranger.receive()[0] == 7
    eventually(said.warnings, "nothing is said about it")
    (line,) = said.warnings()
    assert f"client {os.getpid()}: " in line
    assert len(line) < 400


def test_a_storm_of_strange_requests_is_answered_by_the_same_process(
    stranger: Stranger, store: sf.Store
) -> None:
    # The fixture sees to it that the process stays the same, and that others are served.
    stranger.greet()
    stranger.receive()
    refused = last = 0
    for request in valid_requests(Shard().known):
        first = last + 1
        for path, node in places(raw(request)):
            for strange in strangers_of(node)[:6]:
                last += 1
                body = msgspec.msgpack.encode(replaced(raw(request), path, strange))
                stranger.send(pack_frame(last, body))
        last += 1
        stranger.ask(last, Stats(False))
        # A watch need not be answered.
        wanted = {last} if isinstance(request, Watch) else {*range(first, last + 1)}
        while wanted:
            number, body = stranger.receive()
            wanted.discard(number)
            refused += isinstance(read_reply(body), Rejected)
        assert store.flow_info("late")["total"] == 0
    assert refused > last / 2


def test_the_token_is_never_said(stranger: Stranger, said: Said) -> None:
    token = (stranger.path / "run" / "token").read_text()
    stranger.greet(token[:-1] + ("0" if token[-1] != "0" else "1"))
    stranger.assert_shown_out()
    assert_one_warning(said)
    assert token[:-1] not in "".join(said.warnings())


@pytest.mark.parametrize("size", [0, 1, 11, 12, 20], ids="{} bytes".format)
def test_who_hangs_up_in_the_middle_of_a_handshake_is_forgotten(
    stranger: Stranger, said: Said, store: sf.Store, size: int
) -> None:
    stranger.send(pack_frame(HELLO, encoder.encode(Hello(PROTOCOL, "t" * 32, 1)))[:size])
    stranger.channel.close()
    store.flow_get("before")
    assert said.warnings() == []


def test_who_hangs_up_in_the_middle_of_a_request_is_forgotten(
    stranger: Stranger, said: Said, store: sf.Store
) -> None:
    stranger.greet()
    stranger.receive()
    stranger.send(frame_of(HALF_MIB, 1) + bytes(HALF_MIB // 2))
    # A reset, not only an end: linger for no time.
    stranger.channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.channel.close()
    store.flow_get("before")
    assert said.warnings() == []


def test_who_sends_one_byte_at_a_time_is_served(stranger: Stranger, said: Said) -> None:
    token = (stranger.path / "run" / "token").read_text()
    for byte in pack_frame(HELLO, encoder.encode(Hello(PROTOCOL, token, 1))):
        stranger.send(bytes([byte]))
    stranger.receive()
    for byte in pack_request(9, Stats(False)):
        stranger.send(bytes([byte]))
    assert stranger.receive()[0] == 9
    assert said.warnings() == []


def test_who_does_not_read_its_answers_holds_up_nobody(
    stranger: Stranger, said: Said, store: sf.Store
) -> None:
    ref = store.flow_value_put(b"x" * HALF_MIB)
    assert isinstance(ref, str)
    query = ValueGet([int(ref.removeprefix("v"), 16)], 2**30)
    stranger.greet()
    stranger.receive()
    for number in range(1, 101):
        stranger.ask(number, query)
    # 50 MiB of answers wait for the stranger; meanwhile others are served.
    for number in range(50):
        assert store.flow_create(f"f{number}", type="t").version == 1
    # It may still read them: they are all there, in order.
    for number in range(1, 101):
        got, body = stranger.receive()
        assert got == number
        assert len(read_reply(body).data[0]) > HALF_MIB
    assert said.warnings() == []


def test_who_lets_too_many_answers_wait_is_shown_out(
    stranger: Stranger, said: Said, store: sf.Store
) -> None:
    ref = store.flow_value_put(b"x" * (8 * 2**20))
    assert isinstance(ref, str)
    number = int(ref.removeprefix("v"), 16)
    stranger.greet()
    stranger.receive()
    query = ValueGet([number] * 10, 2**30)
    for asked in range(1, 5):
        stranger.ask(asked, query)
        store.flow_get("before")
    eventually(said.warnings, "nothing is said about it")
    (line,) = said.warnings()
    assert f"client {os.getpid()} does not read its answers" in line
    stranger.assert_shown_out()


def test_too_many_strangers_are_not_let_in_and_leave_room_again(
    store: sf.Store, said: Said, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(CONNECTIONS_MAX + 10):
            crowd.enter_context(contextlib.closing(Stranger(tmp_path / "data").channel))
            # One at a time: the queue of a listening socket is shorter than the crowd.
            store.flow_get("before")
        eventually(said.warnings, "all were let in")
        assert all("refused a connection" in line for line in said.warnings())

    def is_let_in() -> bool:
        late = Stranger(tmp_path / "data")
        with contextlib.closing(late.channel), contextlib.suppress(OSError, EOFError):
            late.greet()
            return late.receive()[0] == HELLO
        return False

    eventually(is_let_in, "there is no room again")


def test_sockets_and_token_are_for_their_owner_only(store: sf.Store, tmp_path: Path) -> None:
    run = tmp_path / "data" / "run"
    assert run.stat().st_mode & 0o777 == 0o700
    for file in run.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
