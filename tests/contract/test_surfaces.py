"""Section 2: each command three ways, waiting, as a future and as an awaitable."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pykka
import pytest

import shardflow as sf
from support import calls
from support.contract import Flows, Name, assert_waiting, facts, ids

COMMANDS = sorted(calls.ALL)


async def awaited(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, timeout=10)


def parameters(surface: Any, command: str) -> dict[str, Any]:
    return {
        name: (parameter.kind, parameter.default)
        for name, parameter in inspect.signature(getattr(surface, command)).parameters.items()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_offered_three_ways_with_the_same_arguments(
    store: sf.Store, command: str
) -> None:
    waiting = parameters(store, command)
    assert parameters(store.submit, command) == waiting
    assert parameters(store.aio, command) == waiting


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_time(store: sf.Store, command: str) -> None:
    assert "now_ms" in parameters(store, command)


def test_every_command_is_part_of_the_protocol() -> None:
    assert getattr(sf.FlowStore, "_is_protocol", False)
    assert [command for command in COMMANDS if not hasattr(sf.FlowStore, command)] == []


@pytest.mark.parametrize("command", sorted(calls.ON_ABSENT_FLOWS))
def test_every_command_answers_the_same_on_all_three_ways(
    flows: Flows, name: Name, command: str
) -> None:
    call = calls.ALL[command]
    answers = [
        call(flows.store, name("a"), name("type-1")),
        call(flows.store.submit, name("b"), name("type-2")).get(timeout=10),
        asyncio.run(awaited(call(flows.store.aio, name("c"), name("type-3")))),
    ]
    assert len({type(answer) for answer in answers}) == 1


@pytest.mark.parametrize("command", sorted(calls.ON_ONE_FLOW))
def test_every_refusal_is_the_same_on_all_three_ways(
    flows: Flows, name: Name, command: str
) -> None:
    call = calls.ALL[command]
    with pytest.raises(sf.FlowNotFound):
        call(flows.store, name("a"), flows.type)
    with pytest.raises(sf.FlowNotFound):
        call(flows.store.submit, name("a"), flows.type).get(timeout=10)
    with pytest.raises(sf.FlowNotFound):
        asyncio.run(awaited(call(flows.store.aio, name("a"), flows.type)))


def test_invalid_arguments_are_refused_on_all_three_ways(flows: Flows, name: Name) -> None:
    with pytest.raises(sf.InvalidArgument):
        flows.store.submit.flow_create(name("a"), type=flows.type, priority=3).get(timeout=10)
    with pytest.raises(sf.InvalidArgument):
        asyncio.run(awaited(flows.store.aio.flow_create(name("a"), type=flows.type, priority=3)))
    assert flows.store.flow_get(name("a")) is None


def test_what_one_way_writes_the_others_read(flows: Flows, name: Name) -> None:
    made = flows.store.submit.flow_create(name("a"), type=flows.type).get(timeout=10)
    (job,) = asyncio.run(awaited(flows.store.aio.flow_claim_due(flows.type, worker="w1")))
    assert job.id == made.id
    assert facts(flows.get(made)) == facts(job)
    assert flows.complete(job).state == "completed"


def test_a_future_is_one_that_pykka_knows(flows: Flows, name: Name) -> None:
    futures = [flows.store.submit.flow_create(name(number), type=flows.type) for number in range(5)]
    records = pykka.get_all(futures, timeout=10)
    assert ids(records) == [name(number) for number in range(5)]


def test_a_future_may_be_asked_more_than_once(flows: Flows, name: Name) -> None:
    future = flows.store.submit.flow_create(name("a"), type=flows.type)
    assert future.get(timeout=10) is future.get(timeout=10)
    refused = flows.store.submit.flow_create(name("a"), type=flows.type)
    for _ in range(2):
        with pytest.raises(sf.FlowAlreadyExists):
            refused.get(timeout=10)


def test_a_future_that_is_not_answered_in_time_can_be_asked_again(flows: Flows) -> None:
    future = flows.wait()
    assert_waiting(future)
    flow = flows.create()
    assert ids(future.get(timeout=10)) == [flow.id]


def test_a_submitted_command_runs_without_anybody_asking(flows: Flows, name: Name) -> None:
    flows.store.submit.flow_create(name("a"), type=flows.type, partition_key=name("p"))
    # Commands of one caller to one partition are carried out in order.
    assert flows.store.flow_get(name("a"), partition_key=name("p")) is not None


def test_submitted_commands_of_one_partition_keep_their_order(flows: Flows, name: Name) -> None:
    for number in range(50):
        flows.store.submit.flow_create(
            name(f"{number:02}"), type=flows.type, partition_key=name("p")
        )
    jobs = flows.claim(partition_key=name("p"), limit=50)
    assert ids(jobs) == [name(f"{number:02}") for number in range(50)]


def test_many_awaitables_may_be_gathered(flows: Flows, name: Name) -> None:
    async def create_all() -> list[sf.FlowRecord]:
        aio = flows.store.aio
        return list(
            await asyncio.gather(
                *(aio.flow_create(name(number), type=flows.type) for number in range(20))
            )
        )

    assert ids(asyncio.run(create_all())) == [name(number) for number in range(20)]


def test_many_threads_may_use_one_store(flows: Flows, name: Name) -> None:
    async def from_threads() -> list[str]:
        made = await asyncio.gather(
            *(asyncio.to_thread(flows.create, f"{number:02}") for number in range(16))
        )
        return ids(made)

    made = asyncio.run(from_threads())
    assert made == [name(f"{number:02}") for number in range(16)]
    assert sorted(ids(flows.claim(limit=16))) == made


def test_records_cannot_be_changed_by_their_reader(flows: Flows) -> None:
    flow: Any = flows.create()
    with pytest.raises(AttributeError):
        flow.state = "completed"
    with pytest.raises(AttributeError):
        flow.version += 1
