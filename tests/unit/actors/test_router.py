"""How the router looks for shards: when it asks, how long it waits, and whom it follows."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shardflow.actors import router as module
from shardflow.actors.router import Connect, GiveUp, RouterActor
from shardflow.flow.errors import ShardUnavailable
from shardflow.flow.queries import Tick
from support.links import Answers

WAIT_S = 20.0


class Keeper:
    """Lets the router try, or not, and counts."""

    def __init__(self) -> None:
        self.may_connect = True
        self.prepared = 0
        self.missing = 0
        self.given = 0
        self.changed = threading.Condition()

    def prepare(self) -> bool:
        with self.changed:
            self.prepared += 1
            self.changed.notify_all()
        return self.may_connect

    def missed(self, shard: int) -> None:
        with self.changed:
            self.missing += 1
            self.changed.notify_all()

    def given_up(self) -> None:
        with self.changed:
            self.given += 1
            self.changed.notify_all()

    def wait_for(self, prepared: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.prepared >= prepared, WAIT_S)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def router(keeper: Keeper, tmp_path: Path) -> Iterator[RouterActor]:
    found = RouterActor.launch([tmp_path / "a", tmp_path / "b"], keeper)
    yield found
    found.actor_ref.stop(block=True)


def test_an_idle_router_asks_nobody(router: RouterActor, keeper: Keeper) -> None:
    answers = Answers()
    router.links[0].submit(Tick(1), answers)
    router.actor_ref.tell(GiveUp(1, ShardUnavailable("down")))
    with keeper.changed:
        assert keeper.changed.wait_for(lambda: keeper.given, WAIT_S)
    assert (keeper.prepared, answers.all) == (0, [])


def test_nothing_is_connected_to_before_the_keeper_says_so(
    router: RouterActor, keeper: Keeper, tmp_path: Path
) -> None:
    keeper.may_connect = False
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a"))
        listener.listen()
        listener.settimeout(WAIT_S)
        router.actor_ref.tell(Connect(0))
        keeper.wait_for(3)
        assert router.links[0].channel is None
        keeper.may_connect = True
        listener.accept()[0].close()


def test_a_shard_that_shows_us_out_is_asked_ever_less_often(
    router: RouterActor, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a"))
        listener.listen()
        listener.settimeout(WAIT_S)
        router.actor_ref.tell(Connect(0))
        seen_s: list[float] = []
        for _ in range(5):
            listener.accept()[0].close()
            seen_s.append(router._waits_s.get(0, 0.0))
    assert seen_s == sorted(seen_s)
    assert seen_s[-1] >= 4 * module._WAIT_MIN_S
    assert max(seen_s) <= module._WAIT_MAX_S
    assert set(asked) == {(0.7, 1.0)}, "some earlier than others, so that not all come at once"


def test_the_end_of_the_host_has_the_shards_looked_for(router: RouterActor, keeper: Keeper) -> None:
    keeper.may_connect = False
    waits = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE) as host:
        router.follow(host.pid)
        router.inbox.poke()
        assert keeper.prepared == 0
        host.kill()
        keeper.wait_for(2)
    assert router._host_fd == -1


def test_a_host_that_has_ended_already_cannot_be_followed(router: RouterActor) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as host:
        host.wait()
    before = psutil.Process().num_fds()
    router.follow(host.pid)
    router.follow(None)
    assert psutil.Process().num_fds() == before
