"""A link that fails while it is read, callbacks that raise, and who may lead."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardflow.actors.future import ReplyFuture
from shardflow.actors.leading import lead
from shardflow.actors.link import ProcessLink
from shardflow.actors.wire import HELLO, PROTOCOL, Welcome, pack_body, pack_frame
from shardflow.flow.errors import Refused
from shardflow.flow.queries import Tick
from shardflow.flow.replies import Data, Rejected
from support.links import Answers, ScriptedLink, a_body

CLOSED = Refused("store_closed", "closed")


class NoReader:
    """A router that leaves all reading to the test."""

    def look(self, channel: socket.socket, link: ProcessLink, *, read: bool, write: bool) -> None:
        pass

    def forget(self, channel: socket.socket) -> None:
        pass

    def lost(self, link: ProcessLink) -> None:
        pass


@contextlib.contextmanager
def greeted(folder: Path) -> Iterator[tuple[ProcessLink, socket.socket]]:
    """Yield a link that may send, and the shard's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        link = ProcessLink(0, folder / "socket", "token", NoReader())
        link.channel = ours
        theirs.sendall(pack_frame(HELLO, pack_body(Welcome(PROTOCOL, 0, 1, 1))))
        assert link.read()
        yield link, theirs


def test_a_link_that_fails_while_it_is_read_answers_each_receiver_once(
    tmp_path: Path,
) -> None:
    with greeted(tmp_path) as (link, shard):
        receivers = [Answers() for _ in range(9)]
        failing = Answers(then=lambda: _in_a_thread(lambda: link.fail(CLOSED)))
        receivers.insert(4, failing)
        numbers = [link.submit(Tick(1), receiver) for receiver in receivers]
        shard.sendall(b"".join(pack_frame(number, a_body()) for number in numbers))
        assert link.read()
        refused = [isinstance(receiver.only, Rejected) for receiver in receivers]
        assert refused == [False] * 5 + [True] * 5
        assert link.requests_pending == 0


class Interleaved(dict[int, Any]):
    """Pending requests of which some are answered right after somebody has listed them all."""

    def __init__(self, requests: dict[int, Any], read: Callable[[], bool]) -> None:
        super().__init__(requests)
        self._read_once = [read]

    def __iter__(self) -> Iterator[int]:
        return iter(self._listed(list(super().__iter__())))

    def values(self) -> Any:
        return self._listed(list(super().values()))

    def _listed(self, found: list[Any]) -> list[Any]:
        while self._read_once:
            self._read_once.pop()()
        return found


def test_an_answer_that_arrives_while_a_link_fails_is_the_only_one(tmp_path: Path) -> None:
    with greeted(tmp_path) as (link, shard):
        receivers = [Answers() for _ in range(6)]
        numbers = [link.submit(Tick(1), receiver) for receiver in receivers]
        shard.sendall(b"".join(pack_frame(number, a_body()) for number in numbers[:3]))
        link._pending = Interleaved(link._pending, link.read)
        link.fail(CLOSED)
        refused = [isinstance(receiver.only, Rejected) for receiver in receivers]
        assert refused == [False] * 3 + [True] * 3
        assert link.requests_pending == 0


def test_a_callback_that_raises_keeps_neither_the_answer_nor_other_callbacks_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    future: ReplyFuture[Any] = ReplyFuture(lambda reply: reply.data)
    called: list[int] = []
    future.add_done_callback(lambda: called.append(1))
    future.add_done_callback(lambda: called.append(1 // 0))
    future.add_done_callback(lambda: called.append(2))
    future.answer(Data("there"))
    assert called == [1, 2]
    assert future.get(timeout=0) == "there"
    assert "ZeroDivisionError" in caplog.text


def test_the_main_thread_never_leads() -> None:
    links = [ScriptedLink(shard, lambda request: None) for shard in range(2)]
    future: ReplyFuture[Any] = ReplyFuture(lambda reply: reply)
    assert threading.current_thread() is threading.main_thread()
    lead(links, future, 1.0)
    assert [link.leads for link in links] == [0, 0]
    _in_a_thread(lambda: lead(links, future, 1.0))
    assert [link.leads for link in links] == [1, 0], "other threads do, if no shard refuses"


def _in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
