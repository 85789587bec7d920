"""Workers at their limits: leases that run out, processes that die or stop, signals, leaks."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shardflow as sf
from shardflow.testing import memory_store
from support import handlers
from support.handlers import BriefFlow
from support.processes import eventually, is_running

EXECUTORS = ("thread", "process", "async")
each_executor = pytest.mark.parametrize("executor", EXECUTORS)
LEASE_S = 0.4


@pytest.fixture
def store() -> Iterator[sf.Store]:
    with memory_store() as store:
        yield store


class Play:
    """One worker on brief leases, and flows whose handlers a test talks to through files."""

    def __init__(self, store: sf.Store, folder: Path, handler: Any, **options: Any) -> None:
        self.store = store
        self.folder = folder
        self.flow = BriefFlow.using(store)
        options = {"states": "queued", "concurrency": 2, "interval_ms": 10, **options}
        self.worker = sf.Worker(self.flow, handler=handler, **options)

    def create(self, *ids: str, **fields: Any) -> None:
        for id in ids:
            self.flow.create(id=id, payload={"folder": str(self.folder), **fields})

    def has_begun(self, id: str, token: int = 1) -> int:
        """Wait until a handler has begun and return the process that it runs in."""
        file = self.folder / f"{id}.{token}.begun"
        eventually(file.exists, f"{file.name}: {self.worker.stats()}")
        return int(file.read_text())

    def go(self) -> None:
        """Let all handlers return."""
        (self.folder / "go").touch()

    def state(self, id: str) -> str | None:
        record = self.store.flow_get(id)
        return None if record is None else record.state

    def until(self, counter: str, count: int = 1) -> None:
        eventually(
            lambda: self.worker.stats()[counter] >= count, f"{counter}: {self.worker.stats()}"
        )

    def events(self, id: str) -> list[str]:
        return [event.name for event in self.store.flow_history(id)]


# ---- leases ----


@each_executor
def test_a_handler_that_outlasts_its_lease_keeps_it(
    store: sf.Store, tmp_path: Path, executor: str
) -> None:
    play = Play(store, tmp_path, handlers.until_told, executor=executor)
    play.create("f1")
    with play.worker as worker:
        play.has_begun("f1")
        play.until("renewed", 5)  # 5 times a third of the lease: it would have run out.
        play.go()
        play.until("ok")
        assert (worker.stats()["stale"], worker.stats()["claimed"]) == (0, 1)
    record = store.flow_get("f1", payload=True)
    assert record is not None
    assert (record.state, record.result) == ("completed", 1)


@each_executor
def test_without_heartbeat_the_lease_is_lost_and_counted(
    store: sf.Store, tmp_path: Path, executor: str
) -> None:
    play = Play(store, tmp_path, handlers.until_told, executor=executor, heartbeat=False)
    play.create("f1")
    with play.worker:
        play.has_begun("f1")
        play.has_begun("f1", token=2)  # The second slot takes it over.
        play.go()
        play.until("stale")
        eventually(lambda: play.state("f1") == "completed", str(play.worker.stats()))
    assert play.events("f1").count("completed") == 1


@each_executor
def test_a_lost_job_is_cancelled_and_its_outcome_dropped(
    store: sf.Store, tmp_path: Path, executor: str
) -> None:
    play = Play(store, tmp_path, handlers.until_cancelled, executor=executor)
    play.create("f1")
    with play.worker as worker:
        play.has_begun("f1")
        store.flow_cancel("f1", force=True)
        eventually((tmp_path / "f1.1.cancelled").exists, "the handler sees it")
        eventually(lambda: worker.stats()["in_hand"] == 0, "its slot is free")
        stats = worker.stats()
        assert (stats["stale"], stats["ok"], stats["handled"]) == (1, 0, 1)
    assert play.state("f1") == "cancelled"


def test_a_lost_job_kills_its_process_if_asked_to(store: sf.Store, tmp_path: Path) -> None:
    play = Play(store, tmp_path, handlers.until_told, executor="process", kill_lost=True)
    play.create("f1")
    with play.worker as worker:
        pid = play.has_begun("f1")
        store.flow_cancel("f1", force=True)
        eventually(lambda: not is_running(pid), "it is killed")
        play.go()
        play.create("f2")
        play.until("ok")
        assert (worker.stats()["stale"], worker.stats()["crashed"]) == (1, 0)


async def naps_for_ever(job: sf.Job) -> Any:
    import asyncio

    handlers.say(job, f"{job.id}.{job.fencing_token}.begun", str(os.getpid()))
    try:
        await asyncio.sleep(3_600)
    finally:
        handlers.say(job, f"{job.id}.{job.fencing_token}.cancelled")


@pytest.mark.parametrize(
    ("executor", "handler", "ends"),
    [
        ("thread", handlers.until_cancelled, True),
        ("process", handlers.until_told, False),
        ("async", naps_for_ever, True),
    ],
)
def test_a_handler_that_runs_too_long_is_given_up(
    store: sf.Store, tmp_path: Path, executor: str, handler: Any, ends: bool
) -> None:
    play = Play(store, tmp_path, handler, executor=executor, states="limited", concurrency=1)
    play.flow.create(id="f1", payload={"folder": str(tmp_path)}, state="limited")
    with play.worker as worker:
        pid = play.has_begun("f1")
        play.until("overrun")
        if ends:
            eventually((tmp_path / "f1.1.cancelled").exists, "the handler sees it")
        else:
            eventually(lambda: not is_running(pid), "its process is killed")
        play.has_begun("f1", token=2)  # Once its lease has run out, it is delivered again.
        play.until("overrun", 2)
        assert (worker.stats()["ok"], worker.stats()["crashed"]) == (0, 0)
    assert "completed" not in play.events("f1")


def test_a_handler_that_hogs_the_interpreter_does_not_stop_heartbeats(
    store: sf.Store, tmp_path: Path
) -> None:
    play = Play(store, tmp_path, handlers.until_told, concurrency=1)
    play.create("f1")
    other = BriefFlow.using(store)
    other.create(id="hog", payload={"seconds": 4 * LEASE_S})
    with play.worker as worker:
        play.has_begun("f1")
        other.run_once("queued", worker="hog", handler=handlers.hogs, lease_ms=60_000)
        play.go()
        play.until("ok")
        assert worker.stats()["stale"] == 0
        assert worker.stats()["renewed"] >= 4
    assert play.state("f1") == "completed"


# ---- processes that die ----


@pytest.mark.parametrize("handler", [handlers.killed_once, handlers.exits])
def test_a_process_that_dies_costs_one_delivery(
    store: sf.Store, tmp_path: Path, handler: Any
) -> None:
    play = Play(store, tmp_path, handler, executor="process", concurrency=1)
    play.create("f1")
    with play.worker as worker:
        play.until("ok")
        stats = worker.stats()
        assert (stats["crashed"], stats["claimed"]) == (1, 2)
    record = store.flow_get("f1", payload=True)
    assert record is not None
    assert (record.result, record.attempts) == (2, 0)
    assert play.events("f1").count("completed") == 1


def test_the_others_go_on_while_a_killed_process_is_replaced(
    store: sf.Store, tmp_path: Path
) -> None:
    play = Play(store, tmp_path, handlers.until_told, executor="process")
    play.create("f1", "f2")
    with play.worker as worker:
        pids = {play.has_begun("f1"), play.has_begun("f2")}
        os.kill(play.has_begun("f1"), signal.SIGKILL)
        play.until("crashed")
        play.has_begun("f1", token=2)
        play.go()
        play.until("ok", 2)
        assert worker.stats()["stale"] == 0
        executor: Any = worker._executor
        assert len(set(executor.pids) & pids) == 1
    assert (play.state("f1"), play.state("f2")) == ("completed", "completed")


def test_a_process_that_cannot_load_its_handlers_ends_the_worker(
    store: sf.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.until_told, "__module__", "support.recording")
    monkeypatch.setattr("support.recording.until_told", handlers.until_told, raising=False)
    worker = sf.Worker(
        BriefFlow.using(store), states="queued", handler=handlers.until_told, executor="process"
    )
    with pytest.raises(sf.InvalidArgument, match=r"(?s)could not load.*until_told"):
        worker.run()


# ---- stopping ----


@each_executor
def test_a_drain_gives_back_what_does_not_finish(
    store: sf.Store, tmp_path: Path, executor: str
) -> None:
    play = Play(store, tmp_path, handlers.until_cancelled, executor=executor, drain_timeout_ms=100)
    play.create("f1")
    play.worker.start()
    pid = play.has_begun("f1")
    play.worker.stop()
    record = store.flow_get("f1")
    assert record is not None
    assert (record.state, record.attempts, record.reclaims) == ("queued", 0, 0)
    assert play.events("f1")[-1] == "released"
    assert play.worker.stats()["released"] == 1
    if executor == "process":
        assert not is_running(pid)
    else:
        eventually((tmp_path / "f1.1.cancelled").exists, "the handler sees it")


@each_executor
def test_a_drain_waits_for_what_finishes(store: sf.Store, tmp_path: Path, executor: str) -> None:
    play = Play(store, tmp_path, handlers.until_told, executor=executor)
    play.create("f1")
    play.worker.start()
    play.has_begun("f1")
    thread = threading.Thread(target=play.worker.stop)
    thread.start()
    eventually(lambda: play.worker._stopping.is_requested, "it is stopping")
    play.go()
    thread.join()
    assert play.state("f1") == "completed"


def test_a_stop_takes_back_the_claim_that_waits(store: sf.Store, tmp_path: Path) -> None:
    play = Play(store, tmp_path, handlers.until_told)
    play.worker.start()
    eventually(lambda: play.worker._claimer._turns[0].is_waiting, "it waits for work")
    play.worker.stop()
    play.create("f1")
    assert play.state("f1") == "queued"
    assert play.events("f1") == ["created"]


# ---- leaks ----


def resources() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {
        "threads": threading.active_count(),
        "descriptors": process.num_fds(),
        "children": len(process.children(recursive=True)),
    }


@pytest.mark.parametrize(("executor", "cycles"), [("thread", 20), ("process", 20), ("async", 20)])
def test_starting_and_stopping_leaks_nothing(store: sf.Store, executor: Any, cycles: int) -> None:
    flow = BriefFlow.using(store)
    before: dict[str, int] = {}
    for cycle in range(cycles):
        flow.create(id=f"f{cycle}", payload={})
        with sf.Worker(
            flow, states="queued", handler=handlers.plain_complete, executor=executor, concurrency=1
        ) as worker:
            eventually(lambda: worker.stats()["ok"], "it works")
        before = before or resources()
    assert resources() == before
