"""Blocked claims at one shard: the oldest is woken, one per flow, and none is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from sys import intern

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.actors.waiters import Waiter, Waiters
from shardflow.flow import commands
from shardflow.flow.commands import Hydration, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.host import SystemEntropy
from shardflow.flow.limits import PROMISE_MS
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.queries import Watch
from shardflow.flow.replies import Done
from shardflow.flow.settings import Settings

FOREVER_MS = 10**9


class Desk:
    """An engine and its waiters, with a clock that stands still."""

    def __init__(self) -> None:
        self.engine = Engine(MemoryFiles(), SystemEntropy(), Settings())
        self.waiters = Waiters()
        self.now_ms = 1_000
        self.made = 0
        self.others: list[str] = []
        """Who else was woken when the last one came."""

    def wait(self, name: str, since_us: int, until_ms: int = FOREVER_MS, type: str = "t") -> bool:
        watch = Watch(type, None, None, None, True, True, until_ms, since_us=since_us)
        # Callers are told apart by identity.
        waiter = Waiter(intern(name), since_us, watch, until_ms)
        self.waiters.add(waiter)
        self.others = self.look()
        if name in self.others:
            self.others.remove(name)
            return False
        return True

    def create(self, count: int = 1, *, in_ms: int = 0, type: str = "t") -> list[str]:
        items = []
        for _ in range(count):
            self.made += 1
            at_ms = self.now_ms + in_ms
            items.append(NewFlow(f"f{self.made}", None, type, "queued", run_at_ms=at_ms))
        self._step(commands.Create(items))
        return self.look({type})

    def claim(self, name: str) -> list[str]:
        """Let a woken waiter claim one flow; return who is woken by that."""
        claim = commands.ClaimDue(
            "t", name, None, None, 1, 30_000, None, True, True, 0, Hydration()
        )
        granted = self._step(claim)
        self.waiters.claimed(intern(name), "t")
        return self.look({"t"} if granted else set())

    def look(self, touched: set[str] | None = None) -> list[str]:
        woken = self.waiters.woken(self.engine, self.now_ms, touched)
        return [waiter.caller if is_due else f"{waiter.caller} in vain" for waiter, is_due in woken]

    def _step(self, request: commands.Create | commands.ClaimDue) -> int:
        reply = self.engine.step([request], self.now_ms, self.now_ms * 1_000)[0].reply
        assert isinstance(reply, Done)
        return len(reply.outcomes)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_flow_wakes_the_oldest_waiter_alone(desk: Desk) -> None:
    for since, name in ((3, "c"), (1, "a"), (2, "b")):
        assert desk.wait(name, since)
    assert desk.create() == ["a"]
    assert desk.claim("a") == []
    assert desk.create(2) == ["b", "c"]


def test_so_many_flows_wake_so_many(desk: Desk) -> None:
    for number in range(5):
        desk.wait(f"w{number}", number)
    assert desk.create(3) == ["w0", "w1", "w2"]
    assert desk.create(9) == ["w3", "w4"]
    assert len(desk.waiters) == 0


def test_who_finds_nothing_waits_on_in_its_old_place(desk: Desk) -> None:
    desk.wait("old", 1)
    desk.wait("young", 2)
    assert desk.create() == ["old"]
    # Somebody who never waited was faster.
    assert desk.claim("other") == []
    assert desk.claim("old") == []
    assert desk.wait("old", 1)
    assert desk.create() == ["old"]


def test_what_is_promised_is_not_given_to_a_newcomer_that_waits(desk: Desk) -> None:
    desk.wait("old", 1)
    assert desk.create() == ["old"]
    assert desk.wait("new", 2)
    assert desk.claim("old") == []
    assert desk.create() == ["new"]


def test_a_newcomer_does_not_wait_for_what_nobody_was_promised(desk: Desk) -> None:
    desk.create()
    assert not desk.wait("a", 1)
    assert desk.wait("b", 2)


def test_a_promise_that_is_given_back_goes_to_the_next(desk: Desk) -> None:
    desk.wait("a", 1)
    desk.wait("b", 2)
    assert desk.create() == ["a"]
    assert desk.waiters.remove("a", 1) is None
    assert desk.look() == ["b"]


def test_a_promise_to_a_caller_that_has_gone_goes_to_the_next(desk: Desk) -> None:
    desk.wait("a", 1)
    desk.wait("b", 2)
    assert desk.create() == ["a"]
    desk.waiters.forget("a")
    assert desk.look() == ["b"]


def test_a_promise_that_nobody_uses_ends_by_itself(desk: Desk) -> None:
    desk.wait("a", 1)
    desk.wait("b", 2)
    assert desk.create() == ["a"]
    assert desk.waiters.next_wake_ms() == desk.now_ms + PROMISE_MS
    desk.now_ms += PROMISE_MS
    assert desk.look() == ["b"]


def test_time_wakes_who_waits_for_it(desk: Desk) -> None:
    desk.wait("a", 1)
    assert desk.create(in_ms=50) == []
    assert desk.waiters.next_wake_ms() == desk.now_ms + 50
    desk.now_ms += 50
    assert desk.look() == ["a"]


def test_a_waiter_whose_time_is_over_is_told(desk: Desk) -> None:
    desk.wait("a", 1, until_ms=desk.now_ms + 10)
    desk.wait("b", 2)
    assert desk.waiters.next_wake_ms() == desk.now_ms + 10
    desk.now_ms += 10
    assert desk.look() == ["a in vain"]
    assert desk.create() == ["b"]


def test_at_its_last_moment_a_waiter_still_gets_something(desk: Desk) -> None:
    desk.wait("a", 1, until_ms=desk.now_ms + 10)
    desk.create(in_ms=10)
    desk.now_ms += 10
    assert desk.look() == ["a"]


def test_waiters_for_other_types_are_left_alone(desk: Desk) -> None:
    desk.wait("a", 1)
    desk.wait("b", 2, type="u")
    assert desk.create(type="u") == ["b"]


def test_nothing_is_kept_of_who_has_gone(desk: Desk) -> None:
    for number in range(10):
        desk.wait(f"w{number}", number, until_ms=desk.now_ms + number)
    desk.create(3)
    for number in range(10):
        desk.waiters.forget(intern(f"w{number}"))
    assert (len(desk.waiters), desk.waiters.has_promises) == (0, False)
    assert desk.waiters.next_wake_ms() is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(0, 9)),
        st.tuples(st.just("create"), st.integers(0, 60)),
        st.tuples(st.just("claim"), st.integers(0, 9)),
        st.tuples(st.just("steal"), st.just(0)),
        st.tuples(st.just("pass"), st.integers(1, 60)),
        st.tuples(st.just("forget"), st.integers(0, 9)),
    ),
    max_size=40,
)


class Hall:
    """A desk, who waits at it, and who was woken and has not claimed yet."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.since = 0
        self.waiting: set[str] = set()
        self.awake: list[str] = []

    def note(self, woken: list[str]) -> None:
        self.waiting.difference_update(woken)
        self.awake += woken

    def wait(self, name: str) -> None:
        if name not in self.waiting and name not in self.awake:
            self.since += 1
            if self.desk.wait(name, self.since):
                self.waiting.add(name)
            else:
                self.awake.append(name)
            self.note(self.desk.others)

    def claim(self, name: str) -> None:
        if name in self.awake:
            self.awake.remove(name)
            self.note(self.desk.claim(name))

    def forget(self, name: str) -> None:
        self.waiting.discard(name)
        self.awake = [other for other in self.awake if other != name]
        self.desk.waiters.forget(intern(name))
        self.note(self.desk.look())

    def move_on(self, by_ms: int) -> None:
        self.desk.now_ms += by_ms
        self.note(self.desk.look())


@given(steps=steps)
def test_while_something_is_due_someone_is_awake(steps: list[tuple[str, int]]) -> None:
    hall = Hall()
    do: dict[str, Callable[[int], None]] = {
        "wait": lambda number: hall.wait(f"w{number}"),
        "create": lambda number: hall.note(hall.desk.create(in_ms=number)),
        "claim": lambda number: hall.claim(f"w{number}"),
        "steal": lambda _: hall.note(hall.desk.claim("thief")),
        "pass": hall.move_on,
        "forget": lambda number: hall.forget(f"w{number}"),
    }
    for what, number in steps:
        do[what](number)
        while hall.awake:
            hall.claim(hall.awake[0])
        watch = Watch("t", None, None, None, True, True, FOREVER_MS)
        assert not hall.waiting or not hall.desk.engine.count_due(watch, 1, hall.desk.now_ms)


def test_who_comes_in_the_same_batch_as_a_flow_does_not_hide_it_from_the_oldest(desk: Desk) -> None:
    desk.wait("old", 1)
    # Written, and not looked at yet.
    desk._step(commands.Create([NewFlow("f", None, "t", "queued")]))
    assert desk.wait("new", 2)
    assert desk.others == ["old"]
