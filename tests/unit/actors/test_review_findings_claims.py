"""Claims over several shards that are refused, beaten to it, or many at once."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from shardflow.actors.claims import Claim
from shardflow.flow.commands import ClaimDue, Hydration
from shardflow.flow.keys import shard_of
from shardflow.flow.queries import Probe, Watch
from shardflow.flow.replies import Data, Done, Heads, Rejected, reject
from shardflow.testing import memory_store
from support.links import Answers, HeldLink, ScriptedLink, held_links

EXACT = 1
MANY = 1_000
"""Limits of which the first divides in exact order, the second asks shard after shard."""
UNTIL_MS = 2**50


def a_claim(limit: int = EXACT) -> ClaimDue:
    return ClaimDue("t", "w", None, None, limit, 1_000, None, True, True, 0, Hydration())


def refusing(code: str, due: int = 1) -> Any:
    """Return the script of a shard that has something due, and refuses to lease it."""

    def script(request: Any) -> Any:
        if isinstance(request, Probe):
            return Heads([(0, 1, 1)] * due, [], None)
        if isinstance(request, ClaimDue):
            return reject(code, "no")
        return None

    return script


def idle(request: Any) -> Any:
    """Answer as a shard with nothing due does; a watch waits."""
    if isinstance(request, Probe):
        return Heads([], [], None)
    if isinstance(request, Watch):
        return None
    return Done([]) if isinstance(request, ClaimDue) else Data(True)


def start(links: list[ScriptedLink], limit: int, until_ms: int | None = None) -> Answers:
    answers = Answers()
    Claim(links, a_claim(limit), until_ms, answers).start()
    return answers


@pytest.mark.parametrize("limit", [EXACT, MANY])
@pytest.mark.parametrize("until_ms", [None, UNTIL_MS])
@pytest.mark.parametrize("code", ["outcome_unknown", "overloaded", "shard_unavailable"])
def test_a_claim_that_every_shard_it_asks_refuses_is_refused(
    code: str, until_ms: int | None, limit: int
) -> None:
    links = [ScriptedLink(0, refusing(code)), ScriptedLink(1, idle)]
    reply = start(links, limit, until_ms).only
    assert isinstance(reply, Rejected)
    assert reply.refused.code == code
    assert not any(isinstance(asked, Watch) for link in links for asked in link.asked)


@pytest.mark.parametrize("limit", [2, MANY])
def test_an_unknown_outcome_is_told_although_another_shard_had_nothing(limit: int) -> None:
    def beaten(request: Any) -> Any:
        return Heads([(0, 2, 1)], [], None) if isinstance(request, Probe) else idle(request)

    links = [ScriptedLink(0, refusing("outcome_unknown")), ScriptedLink(1, beaten)]
    reply = start(links, limit).only
    assert isinstance(reply, Rejected)
    assert reply.refused.code == "outcome_unknown"


def test_a_claim_that_is_beaten_for_ever_comes_back_empty_after_a_while() -> None:
    def beaten(request: Any) -> Any:
        return Heads([(0, 1, 1)], [], None) if isinstance(request, Probe) else idle(request)

    links = [ScriptedLink(shard, beaten) for shard in range(2)]
    assert start(links, EXACT).only == Done([])
    assert 2 <= sum(isinstance(asked, Probe) for asked in links[0].asked) < 100


def test_a_claim_that_is_given_up_asks_no_further_shard() -> None:
    def found(request: Any) -> Any:
        if isinstance(request, ClaimDue):
            claim.give_up()
        return Heads([(0, 1, 1)], [], None) if isinstance(request, Probe) else Done([])

    links = [ScriptedLink(shard, found) for shard in range(3)]
    answers = Answers()
    claim = Claim(links, a_claim(MANY), None, answers)
    claim.start()
    assert answers.only == Done([])
    assert sum(isinstance(asked, ClaimDue) for link in links for asked in link.asked) == 1


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("limit", [EXACT, MANY])
@pytest.mark.parametrize("until_ms", [None, UNTIL_MS])
@pytest.mark.parametrize("during", [Probe, ClaimDue])
def test_a_claim_that_is_given_up_before_it_waits_is_answered_once(
    during: type, until_ms: int | None, limit: int, shards: int
) -> None:
    withdrawn: list[bool] = []

    def found(request: Any) -> Any:
        if isinstance(request, during) and not withdrawn:
            withdrawn.append(claim.give_up())
        return Heads([(0, 1, 1)], [], None) if isinstance(request, Probe) else idle(request)

    links = [ScriptedLink(shard, found) for shard in range(shards)]
    answers = Answers()
    claim = Claim(links, a_claim(limit), until_ms, answers)
    claim.start()
    if withdrawn == [False] or until_ms is None:
        assert answers.only == Done([])
    assert (withdrawn == [False]) == (shards > 1 or during is ClaimDue)
    assert not withdrawn or not any(
        isinstance(asked, Watch) for link in links for asked in link.asked
    )


def test_a_claim_that_waits_and_is_given_up_is_not_answered() -> None:
    links = [ScriptedLink(shard, idle) for shard in range(2)]
    answers = Answers()
    claim = Claim(links, a_claim(), UNTIL_MS, answers)
    claim.start()
    assert claim.give_up() and answers.all == []


def test_shards_that_are_given_up_while_a_claim_waits_are_told_of_once() -> None:
    waiting: list[Any] = []

    class WaitingLink(ScriptedLink):
        def submit(self, request: Any, receiver: Any) -> int:
            if isinstance(request, Watch):
                waiting.append(receiver)
            return super().submit(request, receiver)

    links = [WaitingLink(shard, idle) for shard in range(2)]
    answers = Answers()
    Claim(links, a_claim(), UNTIL_MS, answers).start()
    waiting[0].answer(reject("shard_unavailable", "given up"))
    assert answers.all == []
    waiting[1].answer(reject("corrupt_log", "given up"))
    assert answers.only.refused.code == "shard_unavailable"


def test_two_claims_that_race_for_one_head_both_get_a_flow() -> None:
    ids = [_id_on(0, "first"), _id_on(1, "b"), _id_on(1, "c"), _id_on(1, "d")]
    with memory_store(shards=2) as store:
        for flow_id in ids:
            store.flow_create(flow_id, type="t")
        links = held_links(store)
        answers = [Answers(), Answers()]
        for answer in answers:
            Claim(links, a_claim(), None, answer).start()
        _drive(links)
        got = [record.id for answer in answers for record in answer.only.outcomes]
        assert got == ids[:2]
        assert store.flow_info("t")["ready"] == 2


def test_claims_that_race_for_few_flows_leave_none_of_them() -> None:
    ids = [_id_on(shard, f"x{number}") for number, shard in enumerate((0, 1, 0, 1))]
    with memory_store(shards=2) as store:
        for flow_id in ids:
            store.flow_create(flow_id, type="t")
        links = held_links(store)
        answers = [Answers() for _ in range(6)]
        for answer in answers:
            Claim(links, a_claim(), None, answer).start()
        _drive(links)
        got = [record.id for answer in answers for record in answer.only.outcomes]
        assert sorted(got) == sorted(ids)
        assert store.flow_info("t")["ready"] == 0


def test_a_large_claim_over_many_shards_needs_no_deep_stack() -> None:
    got: list[int] = []
    with memory_store(shards=64) as store:
        store.flow_create_many([{"id": f"k{number}", "type": "k"} for number in range(600)])

        def claim_from(depth: int) -> None:
            if depth:
                claim_from(depth - 1)
            else:
                got.append(len(store.flow_claim_due("k", worker="w", limit=1_000)))

        # A thread begins a stack of its own, so that the test's caller does not count.
        depth = sys.getrecursionlimit() - 200
        thread = threading.Thread(target=claim_from, args=(depth,))
        thread.start()
        thread.join()
        assert got == [600]
        assert store.flow_info("k")["leased"] == 600


def _id_on(shard: int, prefix: str) -> str:
    number = 0
    while shard_of(None, f"{prefix}{number}", 2) != shard:
        number += 1
    return f"{prefix}{number}"


def _drive(links: list[HeldLink]) -> None:
    """Let every request pass in rounds, so that all claims are always equally far."""
    while not all(link.is_idle for link in links):
        for link in links:
            link.let_pass()
