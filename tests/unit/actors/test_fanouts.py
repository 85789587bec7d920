"""A shard's service: who waits for a fan-out, who drives one and goes away, and the courier."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from shardflow.actors import fanouts
from shardflow.actors.messages import Arrival, Departure
from shardflow.actors.service import Service
from shardflow.flow.commands import Cancel, Create, Ending, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.family import (
    Abort,
    AskOutcome,
    Begun,
    Collect,
    Commit,
    Outbound,
    Prepare,
    Spawn,
    SpawnBegin,
    SpawnDecide,
    SpawnEnd,
    children_digest,
)
from shardflow.flow.host import SetClock, SystemEntropy
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import ASK_AGAIN_MS, SPAWN_MS_MAX
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.queries import Watch
from shardflow.flow.replies import Data, Rejected, reject
from shardflow.flow.settings import Settings

START_MS = 1_000
HERE = 0
NOTHING = Outbound([], [])


def key_on(shard: int) -> str:
    return next(k for k in map(str, range(99)) if shard_of(k, "", 2) == shard)


NEAR, FAR = key_on(HERE), key_on(1)
CHILDREN = [NewFlow("near", NEAR, "kid", "queued"), NewFlow("far", FAR, "kid", "queued")]


def spawn_of(parent: str, children: list[NewFlow], key: str = NEAR) -> Spawn:
    return Spawn(
        parent, key, "g", "all", "waiting", "won", "lost", "fail_parent", "cancel_children",
        None, None, None, len(children), [0, 1], children_digest(children),
    )  # fmt: skip


class Client:
    """Some caller: its requests are numbered, its answers kept by number."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._number = 0
        self.got: dict[int, Any] = {}

    def ask(self, request: Any) -> Any:
        """Return the answer, None if there is none yet."""
        self._number += 1
        self._desk.give_out(self._desk.service.serve([Arrival(self, self._number, request)]))
        return self.got.get(self._number)

    @property
    def last(self) -> Any:
        return self.got.get(self._number)


class Desk:
    """A service, and its callers."""

    def __init__(self) -> None:
        self.clock = SetClock(START_MS)
        engine = Engine(MemoryFiles(), SystemEntropy(), Settings(shard=HERE, shards=2))
        self.service = Service(engine, self.clock, relaxed=False)
        created = self.client().ask(Create([NewFlow(n, NEAR, "parent", "go") for n in "pq"]))
        assert created.applied

    def client(self) -> Client:
        return Client(self)

    def give_out(self, departures: list[Departure]) -> None:
        for client, number, answer in departures:
            assert number not in client.got, "one answer each"
            client.got[number] = answer.reply

    def wake(self) -> None:
        """Wake it as long as it wants to be, as whoever runs it does."""
        for _ in range(9):
            at_ms = self.service.next_wake_ms()
            if at_ms is None or at_ms > self.clock.now_ms():
                return
            self.give_out(self.service.wake())
        raise AssertionError("it wants to be woken without end")

    def pass_time(self, ms: int) -> None:
        self.clock.set(self.clock.now_ms() + ms)
        self.wake()

    @property
    def undecided(self) -> int:
        return len(self.service.engine.state.families.undecided)


@pytest.fixture
def desk() -> Desk:
    return Desk()


BEGIN = SpawnBegin(spawn_of("p", CHILDREN))


def begun(client: Client) -> str:
    reply = client.ask(BEGIN)
    assert isinstance(reply, Begun)
    return reply.txn


# One fan-out of a parent at a time.


def test_a_second_fan_out_waits_until_the_first_is_given_up(desk: Desk) -> None:
    first, second, third = desk.client(), desk.client(), desk.client()
    txn = begun(first)
    assert second.ask(BEGIN) is None
    assert third.ask(BEGIN) is None
    assert first.ask(SpawnEnd(txn)) == Data(True)
    assert isinstance(second.last, Begun)
    assert third.last is None, "in the order in which they came"
    second.ask(SpawnEnd(second.last.txn))
    assert isinstance(third.last, Begun)


def test_a_second_fan_out_of_the_same_group_learns_that_it_is_done(desk: Desk) -> None:
    first, second = desk.client(), desk.client()
    txn = begun(first)
    assert second.ask(BEGIN) is None
    decided = first.ask(SpawnDecide(txn, BEGIN.spawn, CHILDREN[:1]))
    assert decided.applied
    assert second.last.outcomes == decided.outcomes


def test_fan_outs_of_other_parents_do_not_wait(desk: Desk) -> None:
    first, second, third = desk.client(), desk.client(), desk.client()
    begun(first)
    assert second.ask(BEGIN) is None
    assert isinstance(third.ask(SpawnBegin(spawn_of("q", CHILDREN))), Begun)
    assert second.last is None


def test_too_many_fan_outs_that_wait_are_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanouts, "WAITERS_MAX", 1)
    begun(desk.client())
    kept, over = desk.client(), desk.client()
    assert kept.ask(BEGIN) is None
    assert over.ask(BEGIN).refused.code == "overloaded"


# Who drives one, and goes away.


def test_a_client_that_goes_away_takes_its_fan_out_along(desk: Desk) -> None:
    first, second = desk.client(), desk.client()
    txn = begun(first)
    assert second.ask(BEGIN) is None
    told = dict(first.got)
    desk.service.forget(first)
    desk.wake()
    assert isinstance(second.last, Begun)
    assert first.got == told, "nobody is told of what the shard does by itself"
    assert second.ask(AskOutcome(txn)) == Data("aborted")


def test_a_client_that_goes_away_waits_for_nothing(desk: Desk) -> None:
    first, second = desk.client(), desk.client()
    txn = begun(first)
    second.ask(BEGIN)
    desk.service.forget(second)
    first.ask(SpawnEnd(txn))
    desk.wake()
    assert (second.last, desk.undecided) == (None, 0)


def test_a_fan_out_that_was_decided_outlives_its_client(desk: Desk) -> None:
    first = desk.client()
    txn = begun(first)
    first.ask(SpawnDecide(txn, BEGIN.spawn, CHILDREN[:1]))
    desk.service.forget(first)
    desk.wake()
    assert desk.client().ask(AskOutcome(txn)) == Data("committed")


def test_a_fan_out_whose_decision_was_refused_still_ends_with_its_client(desk: Desk) -> None:
    first = desk.client()
    txn = begun(first)
    desk.client().ask(Create([CHILDREN[0]]))
    assert not first.ask(SpawnDecide(txn, BEGIN.spawn, CHILDREN[:1])).applied
    assert desk.undecided == 1
    desk.service.forget(first)
    desk.wake()
    assert desk.undecided == 0


def test_a_fan_out_that_hangs_ends_in_time(desk: Desk) -> None:
    first, second = desk.client(), desk.client()
    txn = begun(first)
    desk.pass_time(SPAWN_MS_MAX // 2)
    second.ask(BEGIN)
    assert desk.service.next_wake_ms() == START_MS + SPAWN_MS_MAX
    desk.pass_time(SPAWN_MS_MAX // 2)
    assert isinstance(second.last, Begun)
    late = first.ask(SpawnDecide(txn, BEGIN.spawn, CHILDREN[:1]))
    assert late.outcomes[0].code == "spawn_aborted"


def test_time_is_counted_on_the_shards_own_clock(desk: Desk) -> None:
    client = desk.client()
    for now_ms in (0, 2**50):
        reply = client.ask(SpawnBegin(BEGIN.spawn, now_ms))
        assert isinstance(reply, Begun)
        assert desk.service.next_wake_ms() == START_MS + SPAWN_MS_MAX
        client.ask(SpawnEnd(reply.txn))
    assert desk.service.next_wake_ms() is None


def test_a_fan_out_that_is_over_has_nothing_to_wake_for(desk: Desk) -> None:
    client = desk.client()
    client.ask(SpawnDecide(begun(client), BEGIN.spawn, CHILDREN[:1]))
    assert desk.service.next_wake_ms() is None


# The courier.


def test_the_courier_waits_until_there_is_a_post(desk: Desk) -> None:
    courier, client = desk.client(), desk.client()
    assert courier.ask(Collect([0, 0], [0, 0])) is None
    client.ask(SpawnDecide(begun(client), BEGIN.spawn, CHILDREN[:1]))
    ((dest, number, post),) = courier.last.posts
    assert (dest, number, type(post).__name__) == (1, 1, "Committed")
    assert courier.ask(Collect([0, 1], [0, 0])) is None
    assert courier.ask(Collect([0, 1], [0, 1])) is None
    assert not len(desk.service.engine.state.families.outbox)


def test_a_newer_courier_takes_the_place_of_an_older_one(desk: Desk) -> None:
    older, newer = desk.client(), desk.client()
    older.ask(Collect([0, 0], [0, 0]))
    assert newer.ask(Collect([0, 0], [0, 0])) is None
    assert older.last == NOTHING


def test_a_courier_that_has_gone_is_not_told(desk: Desk) -> None:
    courier, client = desk.client(), desk.client()
    courier.ask(Collect([0, 0], [0, 0]))
    desk.service.forget(courier)
    client.ask(SpawnDecide(begun(client), BEGIN.spawn, CHILDREN[:1]))
    assert courier.last is None


def test_the_courier_is_woken_to_ask_for_an_outcome(desk: Desk) -> None:
    courier, client = desk.client(), desk.client()
    kin = begun_kin(client)
    client.ask(Prepare("x", 1, kin, [NewFlow("c", NEAR, "kid", "queued")]))
    assert desk.service.next_wake_ms() is None, "nobody could ask"
    assert courier.ask(Collect([0, 0], [0, 0])) is None
    assert desk.service.next_wake_ms() == START_MS + ASK_AGAIN_MS
    desk.pass_time(ASK_AGAIN_MS)
    assert courier.last == Outbound([], [("x", 1)])
    courier.ask(Abort("x"))
    assert courier.ask(Collect([0, 0], [0, 0])) is None
    assert desk.service.next_wake_ms() is None


def begun_kin(client: Client) -> Any:
    """Return kin without leaving a transaction behind."""
    reply = client.ask(BEGIN)
    client.ask(SpawnEnd(reply.txn))
    return reply.kin


# What waits when the service ends.


def test_what_waits_looks_again_when_the_shard_is_recovered(desk: Desk) -> None:
    driver, kept, courier = desk.client(), desk.client(), desk.client()
    begun(driver)
    kept.ask(BEGIN)
    courier.ask(Collect([0, 0], [0, 0]))
    desk.give_out(desk.service.dismiss(None))
    assert courier.last == NOTHING
    assert isinstance(kept.last, Rejected)
    assert kept.last.refused.code == "shard_unavailable", "for it has done nothing"


def test_what_waits_is_refused_when_the_shard_is_closed(desk: Desk) -> None:
    driver, kept, courier = desk.client(), desk.client(), desk.client()
    begun(driver)
    kept.ask(BEGIN)
    courier.ask(Collect([0, 0], [0, 0]))
    closed = reject("store_closed", "closed")
    desk.give_out(desk.service.dismiss(closed))
    assert (kept.last, courier.last) == (closed, closed)


def test_a_claim_is_woken_by_what_a_shard_does_by_itself(desk: Desk) -> None:
    client, waiting = desk.client(), desk.client()
    child = NewFlow("c", NEAR, "kid", "queued", max_active_ms=50)
    assert client.ask(SpawnDecide(None, spawn_of("p", [child]), [child])).applied
    watch = Watch("parent", ["lost"], None, None, True, True, START_MS + 60_000)
    assert waiting.ask(watch) is None
    desk.pass_time(50)
    assert waiting.last == Data(True), "the child is over its time, and its parent goes on"


def test_a_commit_and_an_end_far_away_meet_at_the_courier(desk: Desk) -> None:
    courier, client = desk.client(), desk.client()
    kin = begun_kin(client)
    far = replace(kin, parent_partition_key=FAR)
    client.ask(Prepare("x", 1, far, [NewFlow("c", NEAR, "kid", "queued")]))
    client.ask(Commit("x"))
    assert courier.ask(Collect([0, 0], [0, 0])) is None
    client.ask(Cancel([Ending("c", NEAR, None, None)]))
    ((dest, _, post),) = courier.last.posts
    assert (dest, post.child_id, post.end) == (1, "c", "cancelled")
