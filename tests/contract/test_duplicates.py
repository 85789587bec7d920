"""Section 4: the same command twice, because its first answer was lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import shardflow as sf
from support.contract import Flows, Name, facts, ids, item

NOW = {"run_at_ms": 0}
EXHAUST = {"retry": {"max_retries": 0}}

SETTLING: dict[str, Callable[[Flows, sf.FlowRecord], Any]] = {
    "complete": lambda flows, job: flows.complete(job, result=1),
    "fail": lambda flows, job: flows.fail(job, error=1),
    "retry": lambda flows, job: flows.retry(job, error=1, **NOW),
    "retry that exhausts": lambda flows, job: flows.retry(job, error=1, **EXHAUST),
    "move": lambda flows, job: flows.move(job, "next", payload=1),
    "step": lambda flows, job: flows.step(job, "next", payload=1),
    "cancel": lambda flows, job: flows.cancel(job, lease_token=job.lease_token, reason=1),
}
ENDING = ("complete", "fail", "retry that exhausts", "cancel")
REUSABLE = ("retry", "move", "step")


@pytest.mark.parametrize("verb", sorted(SETTLING))
def test_a_repeated_command_returns_the_record_and_writes_nothing(flows: Flows, verb: str) -> None:
    job = flows.leased()
    first = SETTLING[verb](flows, job)
    with flows.unchanged(first):
        for _ in range(3):
            again = SETTLING[verb](flows, job)
            assert facts(again) == facts(first)


@pytest.mark.parametrize("verb", ["retry", "move"])
def test_a_repeat_is_known_even_when_the_flow_has_been_claimed_again(
    flows: Flows, verb: str
) -> None:
    job = flows.leased()
    taken = flows.take(SETTLING[verb](flows, job))
    with flows.unchanged(taken):
        again = SETTLING[verb](flows, job)
        assert (again.id, again.version) == (taken.id, taken.version)
    assert flows.complete(taken).state == "completed"


def test_a_repeat_does_not_hurt_the_next_holder_after_many_moves(flows: Flows) -> None:
    job = flows.leased()
    second = flows.take(flows.retry(job, **NOW))
    third = flows.take(flows.retry(second, **NOW))
    # Only the last command is sure to be remembered; an older repeat may be called stale.
    with flows.unchanged(third), contextlib.suppress(sf.StaleLease):
        assert flows.retry(job, **NOW).version == third.version
    assert third.attempts == 2
    assert flows.complete(third).state == "completed"


def test_a_repeated_step_returns_the_new_lease(flows: Flows) -> None:
    job = flows.leased()
    lost = flows.step(job, "next")
    again = flows.step(job, "next")
    assert again.lease_token == lost.lease_token != job.lease_token
    assert again.fencing_token == lost.fencing_token
    assert flows.complete(again).state == "completed"


def test_a_step_is_not_confused_with_a_step_to_elsewhere(flows: Flows) -> None:
    job = flows.leased()
    stepped = flows.step(job, "next")
    with flows.unchanged(stepped), pytest.raises(sf.StaleLease):
        flows.step(job, "elsewhere")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (first, second)
        for first in ENDING
        for second in ("complete", "fail", "retry")
        if not first.startswith(second)  # that would be a repeat
    ],
)
def test_another_command_with_the_tokens_of_an_ended_lease_is_stale(
    flows: Flows, first: str, second: str
) -> None:
    job = flows.leased()
    ended = SETTLING[first](flows, job)
    with flows.unchanged(ended), pytest.raises(sf.StaleLease):
        SETTLING[second](flows, job)


@pytest.mark.parametrize("first", REUSABLE)
@pytest.mark.parametrize("second", ["complete", "fail"])
def test_an_end_with_tokens_that_were_used_up_is_stale(
    flows: Flows, first: str, second: str
) -> None:
    job = flows.leased()
    after = SETTLING[first](flows, job)
    with flows.unchanged(after), pytest.raises(sf.StaleLease):
        SETTLING[second](flows, job)


@pytest.mark.parametrize("verb", ["complete", "fail", "retry"])
def test_a_repeat_needs_both_tokens(flows: Flows, verb: str) -> None:
    job = flows.leased()
    ended = SETTLING[verb](flows, job)
    command = getattr(flows, verb)
    with flows.unchanged(ended):
        with pytest.raises(sf.StaleLease):
            command(job, lease_token="another")
        with pytest.raises(sf.StaleLease):
            command(job, fencing_token=job.fencing_token + 1)


def test_a_repeat_with_another_result_never_changes_the_first(flows: Flows) -> None:
    job = flows.leased()
    ended = flows.complete(job, result="first")
    with flows.unchanged(ended), contextlib.suppress(sf.StaleLease):
        flows.complete(job, result="second")
    assert flows.read(ended).result == "first"


def test_a_repeat_after_the_flow_is_gone_does_not_bring_it_back(flows: Flows) -> None:
    job = flows.leased(retention_ttl_ms=1_000)
    flows.complete(job)
    flows.clock.advance(1_000)
    with pytest.raises(sf.FlowNotFound):
        flows.complete(job)
    assert flows.store.flow_get(job.id) is None


def test_an_extension_repeated_at_the_same_instant_writes_nothing(flows: Flows) -> None:
    job = flows.leased()
    extended = flows.extend(job, lease_ms=45_000)
    with flows.unchanged(extended):
        assert facts(flows.extend(job, lease_ms=45_000)) == facts(extended)


def test_a_repeat_charges_no_second_attempt(flows: Flows) -> None:
    job = flows.leased()
    for _ in range(5):
        flow = flows.retry(job, retry={"max_retries": 2}, **NOW)
        assert flow.attempts == 1
        assert flow.state == "queued"


def test_a_repeated_creation_with_a_claim_is_no_second_lease(flows: Flows) -> None:
    def start() -> sf.FlowRecord:
        return flows.store.flow_start_and_claim(
            flows.name("a"), type=flows.type, state="s", worker="w1", lease_ms=30_000
        )

    job = start()
    with flows.unchanged(job), pytest.raises(sf.FlowAlreadyExists):
        start()


@pytest.mark.parametrize("independent", [False, True])
def test_a_batch_may_be_repeated_whole(flows: Flows, independent: bool) -> None:
    flows.create_in_order(*range(6))
    jobs = flows.claim(limit=6)
    items = [item(job, result=job.id) for job in jobs]
    first = flows.store.flow_complete_many(items, independent=independent)
    with flows.unchanged(*first):
        again = flows.store.flow_complete_many(items, independent=independent)
    assert [facts(record) for record in again] == [facts(record) for record in first]


def test_a_batch_may_mix_repeats_with_new_commands(flows: Flows, name: Name) -> None:
    for number in range(4):
        flows.create(number, partition_key=name("p"))
    jobs = flows.claim(limit=4)
    done = flows.complete(jobs[1])
    results = flows.store.flow_complete_many([item(job) for job in jobs])
    assert ids(results) == ids(jobs)
    assert [record.state for record in results] == ["completed"] * 4
    assert facts(results[1]) == facts(done)
