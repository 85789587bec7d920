"""A fan-out over several shards: whatever the shards answer, it happens everywhere or nowhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.actors.crossing import Crossing
from shardflow.actors.errands import Errand
from shardflow.flow.commands import NewFlow
from shardflow.flow.errors import ERRORS, Refused
from shardflow.flow.family import (
    Abort,
    Begun,
    Commit,
    Kin,
    Prepare,
    Spawn,
    SpawnBegin,
    SpawnChildren,
    SpawnDecide,
    SpawnEnd,
    children_digest,
)
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import SPAWN_TRIES_MAX
from shardflow.flow.replies import Data, Done, Rejected, reject

SHARDS = 3
PARENT = Spawn(
    "p", None, "g", "all", "waiting", "won", "lost", "fail_parent", "cancel_children",
    None, None, None, 0, [], b"",
)  # fmt: skip
HOME = shard_of(None, "p", SHARDS)
REMOTE = [shard for shard in range(SHARDS) if shard != HOME]
KIN = Kin("p", None, "p", None, "g", 1, 1)
NOW_MS = 77
RECORD = object()
"""Stands for the parent's record: passed on, never looked into."""

PREPARED = Data(True)
DECIDED = Done([RECORD])
REPEAT = Done([RECORD])
STALE = Done([Refused("stale_lease", "no")], applied=False)
FORGOTTEN = Done([Refused("spawn_aborted", "no")], applied=False)
TAKEN = reject("flow_already_exists", "no")
AWAY = reject("shard_unavailable", "no")
FULL = reject("overloaded", "no")
UNKNOWN = reject("outcome_unknown", "no")

BEGIN_REPLIES = ["begun", REPEAT, STALE, AWAY, FULL, UNKNOWN]
PREPARE_REPLIES = [PREPARED, TAKEN, AWAY, FULL, UNKNOWN]
DECIDE_REPLIES = [DECIDED, STALE, FORGOTTEN, AWAY, FULL, UNKNOWN]
TELL_REPLIES: list[Any] = [Data(True), AWAY, UNKNOWN]


def child_on(shard: int, number: int = 0) -> NewFlow:
    ids = (f"c{count}" for count in itertools.count())
    found = (name for name in ids if shard_of(None, name, SHARDS) == shard)
    return NewFlow(next(itertools.islice(found, number, None)), None, "t", "queued")


def a_request(shards: list[int] | None = None) -> SpawnChildren:
    chosen = range(SHARDS) if shards is None else shards
    return SpawnChildren(PARENT, [child_on(shard) for shard in chosen], NOW_MS)


class Road:
    """Carries a crossing's requests to made-up shards, and watches what must never happen."""

    def __init__(self, answer: Callable[[Errand], Any], request: SpawnChildren | None = None):
        self.crossing = Crossing(request or a_request(), SHARDS)
        self.sent: list[Errand] = []
        self.open: list[Errand] = []
        self.told: list[tuple[Errand, Any]] = []
        self.is_given_up = False
        self._answer = answer
        self._txns = 0
        self._send(self.crossing.begin())

    def run(self) -> Any:
        while self.open:
            self.step(0)
        return self.crossing.reply

    def step(self, index: int) -> None:
        """Let one of the shards that are asked answer."""
        errand = self.open.pop(index % len(self.open))
        reply = self._answer(errand)
        if reply == "begun":
            self._txns += 1
            reply = Begun(f"txn{self._txns}", KIN)
        self.told.append((errand, reply))
        assert self.crossing.reply is None, "nothing is under way once there is an answer"
        self._send(self.crossing.take(errand, reply))
        assert (self.crossing.reply is None) == bool(self.open), "one answer, at the end"

    def give_up(self) -> bool:
        self.is_given_up = self.crossing.give_up() or self.is_given_up
        return self.is_given_up

    def sent_of(self, kind: type[Any], txn: str | None = None) -> list[Errand]:
        return [
            errand
            for errand in self.sent
            if isinstance(errand.request, kind) and (txn is None or errand.request.txn == txn)
        ]

    def check(self) -> None:
        """Check what must hold at the end of every way."""
        assert not self.open
        assert 1 <= len(self.sent_of(SpawnBegin)) <= SPAWN_TRIES_MAX
        for errand, reply in self.told:
            if isinstance(reply, Begun):
                assert isinstance(errand.request, SpawnBegin)
                self._check_txn(reply.txn)
        self._check_answer()

    def _check_txn(self, txn: str) -> None:
        prepared = {errand.shard for errand in self.sent_of(Prepare, txn)}
        committed = {errand.shard for errand in self.sent_of(Commit, txn)}
        aborted = {errand.shard for errand in self.sent_of(Abort, txn)}
        ended = {errand.shard for errand in self.sent_of(SpawnEnd, txn)}
        decision = self.decision(txn)
        assert not (committed and aborted)
        if decision is not None:
            replies = [reply for errand, reply in self.told if errand in self.sent_of(Prepare, txn)]
            assert replies == [PREPARED] * len(REMOTE)
        if decision is DECIDED:
            assert committed == prepared == set(REMOTE)
            assert not ended
        elif decision is UNKNOWN:
            assert not (committed or aborted or ended), "only the coordinator knows"
        else:
            assert not committed
            assert aborted == prepared
            assert ended == {HOME}

    def decision(self, txn: str) -> Any:
        replies = [reply for errand, reply in self.told if errand in self.sent_of(SpawnDecide, txn)]
        assert len(replies) <= 1, "a decision is asked for once"
        return replies[0] if replies else None

    def _check_answer(self) -> None:
        decisions = [
            reply for errand, reply in self.told if isinstance(errand.request, SpawnDecide)
        ]
        reply = self.crossing.reply
        if decisions and decisions[-1] in (DECIDED, UNKNOWN):
            assert reply is decisions[-1]
            assert not self.is_given_up, "it was said that nothing would be done"
            return
        if isinstance(reply, Done) and reply.outcomes == [RECORD]:
            assert not decisions or decisions[-1] is FORGOTTEN
            return
        refused = reply.refused if isinstance(reply, Rejected) else reply.outcomes[0]
        assert ERRORS[refused.code].applied == "no", "and the caller may rely on it"

    def _send(self, errands: list[Errand]) -> None:
        asked = {errand.shard for errand in self.open}
        assert len(asked | {errand.shard for errand in errands}) == len(asked) + len(errands)
        self.sent += errands
        self.open += errands


def answering(
    begin: Any = "begun",
    prepare: dict[int, Any] | None = None,
    decide: Any = DECIDED,
    tell: dict[int, Any] | None = None,
) -> Callable[[Errand], Any]:
    def answer(errand: Errand) -> Any:
        if isinstance(errand.request, SpawnBegin):
            return begin
        if isinstance(errand.request, Prepare):
            return (prepare or {}).get(errand.shard, PREPARED)
        if isinstance(errand.request, SpawnDecide):
            return decide
        return (tell or {}).get(errand.shard, Data(True))

    return answer


def test_every_combination_of_answers_ends_whole_or_not_at_all() -> None:
    for begin, first, second, decide in itertools.product(
        BEGIN_REPLIES, PREPARE_REPLIES, PREPARE_REPLIES, DECIDE_REPLIES
    ):
        prepare = dict(zip(REMOTE, (first, second), strict=True))
        for told in TELL_REPLIES:
            road = Road(answering(begin, prepare, decide, {REMOTE[0]: told, HOME: told}))
            road.run()
            road.check()


@given(st.data())
def test_in_whatever_order_and_given_up_at_any_moment(data: st.DataObject) -> None:
    def answer(errand: Errand) -> Any:
        options: list[Any] = TELL_REPLIES
        if isinstance(errand.request, SpawnBegin):
            options = ["begun", "begun", *BEGIN_REPLIES]
        elif isinstance(errand.request, Prepare):
            options = [PREPARED, PREPARED, PREPARED, *PREPARE_REPLIES]
        elif isinstance(errand.request, SpawnDecide):
            options = [FORGOTTEN, *DECIDE_REPLIES]
        return data.draw(st.sampled_from(options))

    road = Road(answer)
    while road.open:
        if data.draw(st.integers(0, 9)) == 0:
            road.give_up()
        road.step(data.draw(st.integers(0, SHARDS)))
    road.check()


def test_a_fan_out_goes_through_its_steps() -> None:
    road = Road(answering())
    assert road.run() is DECIDED
    kinds = [type(errand.request).__name__ for errand in road.sent]
    assert kinds == ["SpawnBegin", "Prepare", "Prepare", "SpawnDecide", "Commit", "Commit"]
    assert road.sent[0].shard == road.sent[3].shard == HOME


def test_the_messages_hold_what_the_shards_need() -> None:
    request = a_request()
    road = Road(answering(), request)
    road.run()
    (begin,), (decide,) = road.sent_of(SpawnBegin), road.sent_of(SpawnDecide)
    assert begin.request.spawn == decide.request.spawn
    spawn = decide.request.spawn
    assert (spawn.total, spawn.shards) == (SHARDS, list(range(SHARDS)))
    assert spawn.digest == children_digest(list(reversed(request.children)))
    assert decide.request.children == [child_on(HOME)]
    for errand in road.sent_of(Prepare):
        assert errand.request.children == [child_on(errand.shard)]
        assert (errand.request.coordinator, errand.request.kin) == (HOME, KIN)
        # What is written has the caller's time; how long a transaction takes is the shards'.
        assert (errand.request.created_ms, errand.request.now_ms) == (NOW_MS, None)
    assert {errand.request.now_ms for errand in road.sent_of(Commit)} == {None}
    assert decide.request.now_ms == NOW_MS


def test_children_on_the_parents_shard_alone_take_one_command() -> None:
    crossing = Crossing(a_request([HOME]), SHARDS)
    alone = crossing.alone()
    assert alone is not None
    assert (alone.txn, alone.children, alone.now_ms) == (None, [child_on(HOME)], NOW_MS)
    assert (alone.spawn.total, alone.spawn.shards) == (1, [HOME])
    assert crossing.shards == [HOME]
    assert Crossing(a_request([REMOTE[0]]), SHARDS).alone() is None


def test_children_on_one_other_shard_still_take_two_phases() -> None:
    road = Road(answering(), a_request([REMOTE[0]]))
    assert road.run() is DECIDED
    assert [errand.shard for errand in road.sent] == [HOME, REMOTE[0], HOME, REMOTE[0]]
    assert road.sent_of(SpawnDecide)[0].request.children == []


@pytest.mark.parametrize("reply", [REPEAT, STALE, AWAY, FULL])
def test_what_the_beginning_says_is_the_answer(reply: Any) -> None:
    road = Road(answering(begin=reply))
    assert road.run() is reply
    assert len(road.sent) == 1


@pytest.mark.parametrize(
    "begin, prepare", [(UNKNOWN, None), ("begun", UNKNOWN)], ids=["begin", "prepare"]
)
def test_a_shard_that_goes_away_before_the_decision_leaves_no_doubt(
    begin: Any, prepare: Any
) -> None:
    told = {} if prepare is None else {REMOTE[0]: prepare}
    reply = Road(answering(begin=begin, prepare=told)).run()
    assert reply.refused.code == "shard_unavailable"
    assert "nothing was done" in reply.refused.message


@pytest.mark.parametrize("other", [AWAY, UNKNOWN, FULL])
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_wrong_with_the_fan_out_is_told_before_what_is_with_a_shard(
    other: Any, turned: bool
) -> None:
    replies = [other, TAKEN] if turned else [TAKEN, other]
    assert Road(answering(prepare=dict(zip(REMOTE, replies, strict=True)))).run() is TAKEN


def test_a_transaction_that_was_forgotten_is_tried_again() -> None:
    decisions = iter([FORGOTTEN, DECIDED])

    def answer(errand: Errand) -> Any:
        decide = isinstance(errand.request, SpawnDecide)
        return next(decisions) if decide else answering()(errand)

    road = Road(answer)
    assert road.run() is DECIDED
    road.check()
    assert {errand.request.txn for errand in road.sent_of(Abort)} == {"txn1"}
    assert {errand.request.txn for errand in road.sent_of(Commit)} == {"txn2"}


def test_a_transaction_that_is_always_forgotten_ends_as_overloaded() -> None:
    road = Road(answering(decide=FORGOTTEN))
    reply = road.run()
    road.check()
    assert (reply.refused.code, reply.refused.fields["retry_after_ms"] > 0) == ("overloaded", True)
    assert len(road.sent_of(SpawnBegin)) == SPAWN_TRIES_MAX


def test_an_unknown_decision_is_left_to_the_coordinator() -> None:
    road = Road(answering(decide=UNKNOWN))
    assert road.run() is UNKNOWN
    assert isinstance(road.sent[-1].request, SpawnDecide)
    assert not road.give_up()


def test_a_decision_stands_although_nobody_hears_of_it() -> None:
    deaf = dict.fromkeys(REMOTE, UNKNOWN)
    assert Road(answering(tell=deaf)).run() is DECIDED


@pytest.mark.parametrize("steps", range(4))
def test_a_fan_out_that_is_given_up_in_time_is_not_decided(steps: int) -> None:
    road = Road(answering())
    for _ in range(steps):
        road.step(0)
    in_time = steps < 3
    assert road.give_up() is in_time
    reply = road.run()
    road.check()
    if in_time:
        assert reply.refused.code == "shard_unavailable"
        assert not road.sent_of(SpawnDecide)
        assert len(road.sent_of(Prepare)) == (len(REMOTE) if steps else 0)
    else:
        assert reply is DECIDED


@pytest.mark.parametrize("decide", [STALE, FORGOTTEN])
def test_a_fan_out_that_was_refused_can_still_be_given_up(decide: Any) -> None:
    road = Road(answering(decide=decide))
    while not road.told or road.told[-1][1] is not decide:
        road.step(0)
    assert road.give_up()
    road.run()
    road.check()
    assert len(road.sent_of(SpawnBegin)) == 1
