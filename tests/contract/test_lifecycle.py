"""Section 2: opening and closing a store."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from support import calls
from support.contract import Name

OpenStore = Callable[..., Any]


def test_a_store_is_a_context_manager(open_store: OpenStore, name: Name) -> None:
    with open_store() as store:
        assert store.flow_create(name("a"), type=name.type).version == 1
    with pytest.raises(sf.StoreClosed):
        store.flow_get(name("a"))


def test_a_store_is_closed_when_its_block_fails(open_store: OpenStore, name: Name) -> None:
    with pytest.raises(ZeroDivisionError), open_store() as store:
        raise ZeroDivisionError
    with pytest.raises(sf.StoreClosed):
        store.flow_get(name("a"))


def test_closing_twice_is_closing_once(open_store: OpenStore) -> None:
    store = open_store()
    store.close()
    store.close()
    store.close(timeout=5)


def test_closing_may_be_given_a_time(open_store: OpenStore, name: Name) -> None:
    store = open_store()
    store.flow_create(name("a"), type=name.type)
    store.close(timeout=10)
    with pytest.raises(sf.StoreClosed):
        store.flow_get(name("a"))


def test_every_command_of_a_closed_store_is_refused_on_all_three_ways(
    open_store: OpenStore,
) -> None:
    store = open_store()
    store.close()
    for call in calls.ALL.values():
        with pytest.raises(sf.StoreClosed) as caught:
            call(store, "a", "t")
        assert caught.value.applied == "no"
        with pytest.raises(sf.StoreClosed):
            call(store.submit, "a", "t").get(timeout=10)

        async def await_one(call: calls.Call = call) -> None:
            await call(store.aio, "a", "t")

        with pytest.raises(sf.StoreClosed):
            asyncio.run(await_one())


def test_an_answer_given_before_closing_can_still_be_read(
    open_store: OpenStore, name: Name
) -> None:
    store = open_store()
    future = store.submit.flow_create(name("a"), type=name.type)
    assert future.get(timeout=10).version == 1
    store.close()
    assert future.get(timeout=10).version == 1


@pytest.mark.parametrize(
    "options",
    [
        {"shards": 0},
        {"shards": -1},
        {"shards": 65},
        {"shards": 1.5},
        {"shards": "2"},
        {"retention_ms": -1},
        {"retention_ms": 2**53},
        {"retention_ms": 1.5},
        {"failed_retention_ms": -1},
        {"max_value_bytes": -1},
        {"max_value_bytes": 32 * 2**20 + 1},
        {"max_value_bytes": "1"},
    ],
    ids=repr,
)
def test_an_option_that_is_not_allowed_opens_nothing(
    open_store: OpenStore, options: dict[str, Any]
) -> None:
    with pytest.raises(sf.InvalidArgument):
        open_store(**options)
    open_store().close()


@pytest.mark.parametrize("role", ["boss", "", None, 1], ids=repr)
def test_a_role_that_does_not_exist_is_refused(tmp_path: Path, role: Any) -> None:
    with pytest.raises(sf.InvalidArgument):
        sf.open(tmp_path / "data", role=role, shards=1, in_process=True)


def test_an_unknown_option_is_a_type_error(open_store: OpenStore) -> None:
    with pytest.raises(TypeError):
        open_store(colour="red")


@pytest.mark.parametrize("durability", ["maybe", "", None, 1], ids=repr)
def test_a_durability_that_does_not_exist_is_refused(tmp_path: Path, durability: Any) -> None:
    with pytest.raises(sf.InvalidArgument):
        sf.open(tmp_path / "data", durability=durability, shards=1, in_process=True)


@pytest.mark.parametrize("durability", ["sync", "relaxed"])
@pytest.mark.parametrize("in_process", [True, False])
def test_both_durabilities_keep_what_was_written(
    tmp_path: Path, durability: Any, in_process: bool
) -> None:
    for version in (1, 2, 3):
        with sf.open(
            tmp_path / "data", durability=durability, shards=1, in_process=in_process
        ) as store:
            flow = store.flow_get("a") or store.flow_create("a", type="t")
            assert flow.version == version
            store.flow_transition("a", "queued", "queued", fencing_token=flow.fencing_token)


def test_a_store_may_have_one_shard(open_store: OpenStore, name: Name) -> None:
    with open_store(shards=1) as store:
        for key in name.partitions():
            store.flow_create(name("a"), type=name.type, partition_key=key)
        assert len(store.flow_claim_due(name.type, worker="w1", limit=10)) == 2


def test_a_value_may_be_as_large_as_the_store_says(open_store: OpenStore, name: Name) -> None:
    with open_store(max_value_bytes=1_000) as store:
        flow = store.flow_create(name("a"), type=name.type, payload=b"x" * 990)
        assert flow.payload_size <= 1_000
        with pytest.raises(sf.InvalidArgument):
            store.flow_create(name("b"), type=name.type, payload=b"x" * 1_001)
        assert store.flow_get(name("b")) is None


@pytest.mark.parametrize("in_process", [True, False])
def test_a_path_may_be_a_string_or_a_path(tmp_path: Path, in_process: bool) -> None:
    with sf.open(str(tmp_path / "data"), shards=1, in_process=in_process) as store:
        store.flow_create("a", type="t")
    with sf.open(tmp_path / "data", in_process=in_process) as store:
        assert store.flow_get("a") is not None


@pytest.mark.parametrize("in_process", [True, False])
def test_another_number_of_shards_is_refused_naming_both(tmp_path: Path, in_process: bool) -> None:
    path = tmp_path / "data"
    sf.open(path, shards=2, in_process=in_process).close()
    with pytest.raises(sf.StoreConfigError) as caught:
        sf.open(path, shards=3, in_process=in_process)
    numbers = re.findall(r"\d+", str(caught.value).replace(str(path), ""))
    assert {"2", "3"} <= set(numbers)
    sf.open(path, shards=2, in_process=in_process).close()


def test_the_number_of_shards_is_remembered(tmp_path: Path, name: Name) -> None:
    path = tmp_path / "data"
    with sf.open(path, shards=3, in_process=True) as store:
        for number in range(30):
            store.flow_create(name(number), type=name.type)
    with sf.open(path, in_process=True) as store:
        assert len(store.flow_list(name.type)) == 30
    with sf.open(path, shards=3, in_process=True) as store:
        assert len(store.flow_list(name.type)) == 30


@pytest.mark.parametrize("in_process", [True, False])
def test_a_directory_is_hosted_once(tmp_path: Path, in_process: bool) -> None:
    path = tmp_path / "data"
    with sf.open(path, shards=1, role="host", in_process=in_process) as store:
        with pytest.raises(sf.StoreLocked) as caught:
            sf.open(path, shards=1, role="host", in_process=in_process)
        assert caught.value.pid == os.getpid()
        assert str(os.getpid()) in str(caught.value)
        assert store.flow_create("a", type="t").version == 1
    sf.open(path, role="host", in_process=in_process).close()


def test_two_stores_in_one_process_know_nothing_of_each_other(tmp_path: Path, name: Name) -> None:
    with (
        sf.open(tmp_path / "one", shards=1, in_process=True) as one,
        sf.open(tmp_path / "two", shards=1, in_process=True) as two,
    ):
        one.flow_create(name("a"), type=name.type)
        assert two.flow_get(name("a")) is None
        assert two.flow_create(name("a"), type=name.type).version == 1
