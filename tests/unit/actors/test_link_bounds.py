"""A link's bounds: what ends something is taken over them as well."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from shardflow.actors import link as module
from shardflow.actors.link import ProcessLink
from shardflow.flow.family import Abort, AskOutcome, Collect, Commit, Deliver, SpawnEnd
from shardflow.flow.queries import Tick, Unwatch
from support.links import Answers


class NoReader:
    """A router for a link without a shard."""

    def look(self, channel: socket.socket, link: ProcessLink, *, read: bool, write: bool) -> None:
        pass

    def forget(self, channel: socket.socket) -> None:
        pass

    def lost(self, link: ProcessLink) -> None:
        pass


@pytest.fixture
def link(tmp_path: Path) -> ProcessLink:
    """Return a link to a shard that is away, so that every request waits."""
    return ProcessLink(0, tmp_path / "socket", "token", NoReader())


def is_taken(link: ProcessLink, request: Any) -> bool:
    answers = Answers()
    link.submit(request, answers)
    if answers.all:
        assert answers.only.refused.code == "overloaded"
    return not answers.all


def test_what_ends_something_is_taken_by_a_link_that_is_full(
    link: ProcessLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINK_REQUESTS_MAX", 1)
    assert is_taken(link, Tick(1))
    assert not is_taken(link, Tick(1))
    for request in (
        Commit("x"),
        Abort("x"),
        SpawnEnd("x"),
        AskOutcome("x"),
        Deliver(0, 1, []),
        Collect([], []),
        Unwatch(1),
    ):
        assert is_taken(link, request), request
    assert not is_taken(link, Tick(1))


def test_the_couriers_request_does_not_count_as_pending(link: ProcessLink) -> None:
    # Else no caller would ever be alone: see actors/leading.py.
    numbers = [link.submit(Collect([], []), Answers()) for _ in range(3)]
    assert link.requests_pending == 0
    link.submit(Tick(1), Answers())
    assert link.requests_pending == 1
    link.withdraw(numbers[-1])
    assert link.requests_pending == 1
