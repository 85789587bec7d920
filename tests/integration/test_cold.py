"""Stores whose cold flows are damaged, deleted or cannot be: every answer stays right."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import shardflow as sf
from shardflow.flow.machine import reads
from shardflow.sdk import opening
from shardflow.testing import ManualClock
from support.colds import open_cold
from support.processes import eventually

TYPE = "t"
NAMES = [f"flow-{number}" for number in range(20)]


def fill(store: sf.Store) -> None:
    store.flow_create_many([{"id": name, "payload": name} for name in NAMES], type=TYPE)
    for job in store.flow_claim_due(TYPE, worker="w", limit=100):
        store.flow_complete(
            job.id, job.lease_token, fencing_token=job.fencing_token, result=job.payload
        )


def check(store: sf.Store) -> None:
    for name in NAMES:
        record = store.flow_get(name, payload=True)
        assert record is not None
        assert (record.state, record.payload, record.result) == ("completed", name, name)
        events = [event.name for event in store.flow_history(name)]
        assert events == ["created", "claimed", "completed"]
    assert sorted(record.id for record in store.flow_list(TYPE)) == sorted(NAMES)
    assert store.flow_info(TYPE)["completed"] == len(NAMES)
    assert [problem for told in store.stats(check=True) for problem in told["problems"]] == []


def cold_flows(store: sf.Store) -> int:
    count: int = sum(told["cold_flows"] for told in store.stats())
    return count


def damage(path: Path) -> None:
    """Flip a bit in every row."""
    data = bytearray(path.read_bytes())
    at = data.find(b"completed")
    assert at >= 0
    while at >= 0:
        data[at] ^= 1
        at = data.find(b"completed", at + 1)
    with path.open("r+b") as file:
        file.write(data)


def test_a_damaged_row_ends_the_shard_and_the_next_one_knows_better(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_cold(tmp_path / "data", {"shards": 1, "clock": ManualClock(1)}) as store:
        fill(store)
        assert cold_flows(store) == len(NAMES)
        damage(tmp_path / "data" / "shard-0" / "cold" / "data.mdb")
        with pytest.raises(sf.OutcomeUnknown, match="damaged"):
            store.flow_get(NAMES[3])
        check(store)
        assert cold_flows(store) == len(NAMES), "it is made anew"


@pytest.mark.parametrize("harm", ["removed", "emptied", "overwritten"])
def test_what_is_done_to_it_while_the_store_is_closed_changes_no_answer(
    tmp_path: Path, harm: str
) -> None:
    options = {"shards": 1, "clock": ManualClock(1)}
    with open_cold(tmp_path / "data", options) as store:
        fill(store)
    place = tmp_path / "data" / "shard-0" / "cold"
    if harm == "removed":
        shutil.rmtree(place)
    else:
        data = b"" if harm == "emptied" else os.urandom(10_000)
        (place / "data.mdb").write_bytes(data)
    with open_cold(tmp_path / "data", options) as store:
        check(store)


def test_where_there_can_be_no_cold_flows_they_stay_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sf.open(tmp_path / "data", shards=1, in_process=True):
        pass
    place = tmp_path / "data" / "shard-0" / "cold"
    shutil.rmtree(place)
    place.write_text("not a directory")
    caplog.set_level(logging.WARNING, "shardflow.shard")
    with sf.open(tmp_path / "data", in_process=True, clock=ManualClock(1)) as store:
        fill(store)
        check(store)
        assert cold_flows(store) == 0
    assert "stay in memory" in caplog.text


def test_a_shard_process_projects_by_itself_and_survives_being_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_of = opening.settings_of
    monkeypatch.setattr(
        opening, "settings_of", lambda *given: replace(settings_of(*given), cold_flows_min=2)
    )
    with sf.open(tmp_path / "data", shards=1) as store:
        for _ in range(2):
            if not store.flow_info(TYPE)["completed"]:
                fill(store)
            # Projecting waits for moments in which nobody asks.
            eventually(lambda: cold_flows(store) == len(NAMES) - 2, "flows become cold", poll_s=0.1)
            check(store)
            (told,) = store.processes()
            os.kill(told["pid"], signal.SIGKILL)
            check(store)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_listing_that_matches_few_comes_in_whole_pages(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "LIST_SCAN_FLOWS", 7)
    clock = ManualClock(1)
    with open_cold(tmp_path / "data", {"shards": shards, "clock": clock}) as store:
        for number in range(200):
            clock.advance(number % 2)
            kind = "few" if number % 23 == 5 else "many"
            store.flow_create(
                f"f{number:03}",
                type=TYPE,
                partition_key=f"p{number % 5}",
                attributes={"kind": kind},
                correlation_id="c",
            )
            if number % 10:
                store.flow_cancel(f"f{number:03}", partition_key=f"p{number % 5}")
        assert cold_flows(store) == 180
        few = [f"f{number:03}" for number in range(5, 200, 23)]
        for count in (1, 4, 100):
            for reverse in (False, True):
                read = partial(store.flow_list, TYPE, count=count, reverse=reverse)
                wanted = sorted(few, reverse=reverse)
                assert paged(partial(read, attributes={"kind": "few"}), count) == wanted
                of_one = [name for name in wanted if int(name[1:]) % 5 == 2]
                read = partial(read, attributes={"kind": "few"}, partition_key="p2")
                assert paged(read, count) == of_one
            kin = partial(store.flow_by_correlation, "c", count=count, state="queued")
            assert paged(kin, count) == [f"f{number:03}" for number in range(0, 200, 10)]
            assert paged(partial(store.flow_list, "none", count=count), count) == []


def paged(read: Callable[..., Any], count: int) -> list[str]:
    """Return what all pages have, all of them full but the last ones."""
    found: list[str] = []
    page = read()
    while True:
        found += [record.id for record in page]
        if page.after is None:
            return found
        assert len(page) == count
        page = read(after=page.after)


def test_without_what_is_cold_reads_stay_in_memory(tmp_path: Path) -> None:
    with open_cold(tmp_path / "data", {"shards": 2, "clock": ManualClock(1)}) as store:
        for name, end in (("hot", False), ("cold", True)):
            store.flow_create(name, type=TYPE, correlation_id="c", parent_flow_id="p")
            if end:
                store.flow_cancel(name)
        for read in (
            partial(store.flow_list, TYPE),
            partial(store.flow_by_correlation, "c"),
            partial(store.flow_by_parent, "p"),
        ):
            assert {record.id for record in read(include_cold=True)} == {"hot", "cold"}
            assert {record.id for record in read(include_cold=False)} == {"hot"}
        for name, events in (("hot", 1), ("cold", 2)):
            assert len(store.flow_history(name)) == events
            assert len(store.flow_history(name, include_cold=False)) == (name == "hot")
        assert store.flow_list(TYPE, state="cancelled", include_cold=False) == []
        assert cold_flows(store) == 1, "reads leave it where it is"
