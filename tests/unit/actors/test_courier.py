"""The courier: every post is applied once and in order, whatever goes away meanwhile."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.actors import courier as module
from shardflow.actors.courier import Courier
from shardflow.actors.errands import Errand
from shardflow.flow.family import (
    Abort,
    AskOutcome,
    Collect,
    Commit,
    Committed,
    Deliver,
    Outbound,
    Post,
)
from shardflow.flow.limits import COURIER_TRIES_MAX
from shardflow.flow.replies import Data, Rejected, reject

UNKNOWN = reject("outcome_unknown", "it went away")
GIVEN_UP = reject("shard_unavailable", "it is given up")
CLOSED = reject("store_closed", "closed")
MANY = 3
"""Posts that these tests let the courier take at a time."""


class Shard:
    """A shard, as far as the courier can tell."""

    def __init__(self, shards: int) -> None:
        self.outbox: list[list[tuple[int, Post]]] = [[] for _ in range(shards)]
        self.last = [0] * shards
        self.applied: list[list[Post]] = [[] for _ in range(shards)]
        """By source."""
        self.asks: list[tuple[str, int]] = []
        self.refuses: Rejected | None = None

    def post(self, dest: int) -> None:
        self.last[dest] += 1
        self.outbox[dest].append((self.last[dest], Committed(f"{dest}/{self.last[dest]}")))

    def collect(self, request: Collect, limit: int) -> Outbound | None:
        for dest, acked in enumerate(request.acked):
            self.outbox[dest] = [pair for pair in self.outbox[dest] if pair[0] > acked]
        posts = [
            (dest, number, post)
            for dest, lane in enumerate(self.outbox)
            for number, post in lane
            if number > request.taken[dest]
        ]
        asks, self.asks = self.asks, []
        return Outbound(posts[:limit], asks) if posts or asks else None

    def deliver(self, request: Deliver, at_once: int) -> Any:
        seen = self.applied[request.source]
        assert request.first <= len(seen) + 1, "a gap"
        for number, post in enumerate(request.posts, request.first):
            if number > len(seen) and at_once:
                at_once -= 1
                seen.append(post)
        return Data(len(seen))


class World:
    """Shards, and the road between them and the courier: one step at a time."""

    def __init__(self, shards: int = 2, at_once: int = 100) -> None:
        self.shards = [Shard(shards) for _ in range(shards)]
        self.at_once = at_once
        self.outcomes: dict[str, str] = {}
        self.told: list[Errand] = []
        self.refused: Counter[type] = Counter()
        self.courier = Courier(shards)
        self.road: list[Errand] = []
        self.send(self.courier.begin())

    def replace_courier(self) -> None:
        """Lose the courier and all it knows; requests under way may still arrive, unheard."""
        self.courier = Courier(len(self.shards))
        self.road.clear()
        self.send(self.courier.begin())

    def send(self, errands: list[Errand]) -> None:
        self.road += errands
        out = Counter(
            (errand.shard, errand.request.source)
            for errand in self.road
            if isinstance(errand.request, Deliver)
        )
        assert max(out.values(), default=0) <= 1, "one Deliver per source and destination"

    def take(self, errand: Errand, reply: Any) -> None:
        self.send(self.courier.take(errand, reply))

    def run(self) -> None:
        """Let everything arrive until nothing moves any more."""
        while any(self.step(errand) for errand in list(self.road)):
            pass

    def step(self, errand: Errand) -> bool:
        """Let a request arrive and be answered; False if the shard lets it wait."""
        reply = self.answer(errand)
        if reply is None or errand not in self.road:
            return False
        self.road.remove(errand)
        self.take(errand, reply)
        return True

    def answer(self, errand: Errand) -> Any:
        shard, request = self.shards[errand.shard], errand.request
        if shard.refuses is not None:
            self.refused[type(request)] += 1
            return shard.refuses
        if isinstance(request, Collect):
            newest = [e for e in self.road if e.shard == errand.shard and is_collect(e)][-1]
            found = shard.collect(request, MANY)
            return Outbound([], []) if found is None and newest is not errand else found
        if isinstance(request, Deliver):
            return shard.deliver(request, self.at_once)
        if isinstance(request, AskOutcome):
            return Data(self.outcomes[request.txn])
        self.told.append(errand)
        return Data(True)

    def cut(self, errand: Errand, *, applied: bool) -> None:
        """Let a shard go away with a request: reads are sent again by the link."""
        if isinstance(errand.request, Collect):
            return
        if applied:
            self.answer(errand)
        self.road.remove(errand)
        self.take(errand, UNKNOWN)

    def collects(self, shard: int = 0) -> list[Collect]:
        return [e.request for e in self.road if e.shard == shard and is_collect(e)]

    def delivers(self) -> list[Errand]:
        return [errand for errand in self.road if isinstance(errand.request, Deliver)]

    def check(self) -> None:
        """Check that all has arrived, is forgotten by its sender, and that the courier waits."""
        for source, shard in enumerate(self.shards):
            for dest, other in enumerate(self.shards):
                posts = [Committed(f"{dest}/{n + 1}") for n in range(shard.last[dest])]
                assert other.applied[source] == posts
            assert shard.outbox == [[] for _ in self.shards]
            assert len(self.collects(source)) == 1
        assert len(self.road) == len(self.shards)


def is_collect(errand: Errand) -> bool:
    return isinstance(errand.request, Collect)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few posts be many."""
    monkeypatch.setattr(module, "COLLECT_POSTS_MAX", MANY)


def test_posts_reach_every_shard_and_the_sender_forgets_them() -> None:
    world = World(3)
    for source in world.shards:
        for dest in range(3):
            source.post(dest)
    world.run()
    world.check()


def test_many_posts_go_in_several_parts() -> None:
    world = World(2, at_once=2)
    for _ in range(20):
        world.shards[0].post(1)
        world.shards[1].post(1)
    world.run()
    world.check()


def test_an_idle_courier_waits_with_one_request_per_shard() -> None:
    world = World(4)
    world.run()
    assert [errand.request for errand in world.road] == [Collect([0] * 4, [0] * 4)] * 4


@given(st.data())
def test_whatever_goes_away_posts_are_applied_once_and_in_order(data: st.DataObject) -> None:
    world = World(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)))
    last = len(world.shards) - 1
    for _ in range(data.draw(st.integers(0, 60))):
        act = data.draw(st.sampled_from(("post", "post", "step", "step", "step", "cut", "lose")))
        if act == "post":
            world.shards[data.draw(st.integers(0, last))].post(data.draw(st.integers(0, last)))
        elif act == "lose" and data.draw(st.integers(0, 5)) == 0:
            world.replace_courier()
        elif act in ("step", "cut"):
            errand = world.road[data.draw(st.integers(0, len(world.road) - 1))]
            if act == "step":
                world.step(errand)
            else:
                world.cut(errand, applied=data.draw(st.booleans()))
    world.run()
    world.check()


def test_what_came_under_way_twice_is_taken_once() -> None:
    world = World(2)
    world.shards[0].post(1)
    old = next(errand for errand in world.road if is_collect(errand))
    posts = Outbound([(1, 1, Committed("1/1"))], [])
    world.take(old, posts)
    assert [errand.request.posts for errand in world.delivers()] == [[Committed("1/1")]]
    world.take(old, posts)
    assert len(world.delivers()) == 1
    world.road.remove(old)
    world.run()
    world.check()


def test_what_an_earlier_courier_has_brought_is_not_taken_late() -> None:
    """Two answers are under way: one with what is applied already, one with what follows that."""
    world = World(2)
    for _ in range(3 * MANY):
        world.shards[0].post(1)
    # All is applied, and the sender does not know.
    world.shards[1].applied[0] = [post for _, post in world.shards[0].outbox[1]]
    first = next(errand for errand in world.road if is_collect(errand) and errand.shard == 0)
    assert world.step(first)
    second = next(errand for errand in world.road if is_collect(errand) and errand.shard == 0)
    late = world.answer(second)
    assert late.posts
    (delivery,) = world.delivers()
    assert world.step(delivery)
    world.shards[0].post(1)
    world.road.remove(second)
    third = next(errand for errand in world.road if is_collect(errand) and errand.shard == 0)
    news = world.answer(third)
    world.road.remove(third)
    world.take(second, late)
    world.take(third, news)
    world.run()
    world.check()


def test_a_slow_shard_keeps_neither_others_waiting_nor_the_memory_full() -> None:
    world = World(3)
    for _ in range(50):
        world.shards[0].post(1)
    for _ in range(20):
        world.shards[0].post(2)
    slow: list[Errand] = []
    while not slow or any(world.step(e) for e in list(world.road) if e not in slow):
        slow = [errand for errand in world.delivers() if errand.shard == 1]
        for errand in world.road:
            if is_collect(errand):
                world.step(errand)
                break
    assert len(world.shards[2].applied[0]) == 20
    lane = world.courier._sources[0].lanes[1]
    assert len(lane.posts) <= 2 * MANY
    world.run()
    world.check()


def test_a_shard_that_was_slow_gets_the_rest_although_another_one_hangs() -> None:
    world = World(3)
    for _ in range(20):
        world.shards[0].post(2)
    world.shards[0].post(1)

    def go_on(*kinds: type, shards: tuple[int, ...] = (0, 1, 2)) -> None:
        while any(
            world.step(errand)
            for errand in list(world.road)
            if isinstance(errand.request, kinds) and errand.shard in shards
        ):
            pass

    go_on(Collect)
    assert world.collects()[-1].taken[2] > 20, "nothing more for it, for now"
    go_on(Collect, Deliver, shards=(0, 2))
    assert len(world.shards[2].applied[0]) == 20
    assert len(world.delivers()) == 1
    world.run()
    world.check()


def test_a_shard_that_is_given_up_keeps_nobody_else_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(3)
    world.shards[1].refuses = GIVEN_UP
    for _ in range(10):
        world.shards[0].post(1)
        world.shards[0].post(2)
    world.run()
    assert len(world.shards[2].applied[0]) == 10
    assert [len(world.collects(shard)) for shard in range(3)] == [1, 0, 1], "nothing spins"
    assert world.refused == Counter({Collect: 1, Deliver: 1})
    assert caplog.text.count("stay undelivered") == 1
    assert caplog.text.count("not collected") == 1
    world.shards[0].post(1)
    world.shards[0].post(2)
    world.run()
    assert len(world.shards[2].applied[0]) == 11
    assert len(world.shards[0].outbox[1]) == 11, "they stay with their sender"


def test_a_shard_that_dies_of_its_posts_is_left_alone_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(2)
    world.shards[0].post(1)
    tries = 0
    while world.delivers() or tries == 0:
        for errand in list(world.road):
            if isinstance(errand.request, Deliver):
                tries += 1
                world.cut(errand, applied=False)
            else:
                world.step(errand)
    assert tries == COURIER_TRIES_MAX
    assert "stay undelivered" in caplog.text


def test_an_outbox_that_cannot_be_read_is_left_alone_after_a_while() -> None:
    world = World(1)
    tries = 0
    while world.road:
        world.take(world.road.pop(), UNKNOWN)
        tries += 1
    assert tries == COURIER_TRIES_MAX


def test_a_closed_store_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    world = World(2)
    for shard in world.shards:
        shard.refuses = CLOSED
    with caplog.at_level(logging.DEBUG):
        world.run()
    assert world.road == []
    assert caplog.text == ""


def test_a_courier_that_was_stopped_sends_nothing() -> None:
    world = World(2)
    world.shards[0].post(1)
    world.courier.stop()
    world.run()
    assert [errand.shard for errand in world.road] == [1], "only what waits anyway"


@pytest.mark.parametrize(
    "outcome, told", [("committed", Commit("x")), ("aborted", Abort("x")), ("undecided", None)]
)
def test_the_outcome_of_prepared_children_is_asked_for(outcome: str, told: Any) -> None:
    world = World(3)
    world.outcomes["x"] = outcome
    world.shards[2].asks = [("x", 1)]
    world.run()
    assert world.told == ([] if told is None else [Errand(2, told)])
    assert len(world.road) == 3


def test_an_outcome_is_asked_for_once_at_a_time_and_again_after_a_loss() -> None:
    world = World(2)
    world.outcomes["x"] = "committed"
    collect = next(errand for errand in world.road if is_collect(errand))
    for _ in range(2):
        world.take(collect, Outbound([], [("x", 1)]))
    (ask,) = (errand for errand in world.road if isinstance(errand.request, AskOutcome))
    world.cut(ask, applied=False)
    assert world.told == []
    world.shards[0].asks = [("x", 1)]
    world.road.remove(collect)
    world.run()
    assert world.told == [Errand(0, Commit("x"))]
