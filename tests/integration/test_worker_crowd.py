"""Workers in processes of their own, attached to one store: they share the work, each flow once."""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pykka
import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from support.clients import clients_at
from support.handlers import BriefFlow, plain_complete
from support.processes import Program, eventually, running

SHARDS = 2
WORKERS = 4
FLOWS = 5_000
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
"""A partition key of each shard."""

PROGRAM = """
import logging, os, sys
import shardflow as sf

class CountFlow(sf.Workflow, type="count"):
    first = sf.state(on_ok="second")
    second = sf.state(on_ok=sf.complete())

    @first.handler
    @staticmethod
    def begin(job):
        return sf.Ok(job.payload)

    @second.handler
    @staticmethod
    def end(job):
        return sf.Ok([job.payload, os.getpid()])

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with sf.open(sys.argv[1], role="attach") as store:
        worker = sf.Worker(CountFlow, executor=sys.argv[2], concurrency=2, prefetch=30)
        print("runs", flush=True)
        worker.run()
        print("stats", worker.stats(), flush=True)
"""


def create(store: sf.Store, count: int) -> list[tuple[str, str]]:
    """Create flows on all shards; return (partition key, id) of each."""
    flows = [(KEYS[number % SHARDS], f"f{number}") for number in range(count)]
    for key in KEYS:
        ids = [id for its_key, id in flows if its_key == key]
        for start in range(0, len(ids), 500):
            items = [{"id": id, "payload": id} for id in ids[start : start + 500]]
            store.flow_create_many(items, type="count", state="first", partition_key=key)
    return flows


def completed(store: sf.Store) -> int:
    return int(store.flow_info("count")["completed"])


def histories(store: sf.Store, flows: list[tuple[str, str]]) -> list[list[str]]:
    futures = [store.submit.flow_history(id, partition_key=key) for key, id in flows]
    return [[event.name for event in future.get(timeout=60)] for future in futures]


def stats_of(program: Program) -> dict[str, Any]:
    """Stop a worker as a service manager does, and return what it has counted."""
    program.process.send_signal(signal.SIGTERM)
    stats: dict[str, Any] = ast.literal_eval(program.wait_for_line("stats "))
    assert program.wait() == 0, program.stderr
    return stats


@pytest.mark.timeout(240)
def test_attached_workers_complete_each_flow_exactly_once(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(sf.open(path, shards=SHARDS, role="host"))
        programs = [
            stack.enter_context(running(script, path, "thread", stderr=tmp_path / f"err{number}"))
            for number in range(WORKERS)
        ]
        for program in programs:
            program.wait_for_line("runs")
        flows = create(store, FLOWS)
        eventually(lambda: completed(store) == FLOWS, lambda: f"{completed(store)} are done", 120)
        stats = [stats_of(program) for program in programs]
        for names in histories(store, flows):
            assert Counter(names) == {"created": 1, "claimed": 2, "transitioned": 1, "completed": 1}
        assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS
    assert sum(told["ok"] for told in stats) == sum(told["claimed"] for told in stats) == 2 * FLOWS
    assert all(told["ok"] > 0 for told in stats), "each of them works"
    for counter in ("stale", "errors", "crashed", "settle_errors", "claim_errors"):
        assert [told[counter] for told in stats] == [0] * WORKERS, counter
    print("handled by each:", [told["ok"] for told in stats])


@pytest.mark.timeout(240)
def test_workers_that_are_killed_and_replaced_complete_each_flow_exactly_once(
    path: Path, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    # Leases that run out while the test lasts.
    script.write_text(PROGRAM.replace("sf.state(", "sf.state(lease_ms=1_500, "))
    count, kills = 2_000, 4
    with contextlib.ExitStack() as stack:

        def start(executor: str) -> Program:
            err = tmp_path / f"err-{executor}"
            program = stack.enter_context(running(script, path, executor, stderr=err))
            program.wait_for_line("runs")
            return program

        store = stack.enter_context(sf.open(path, shards=SHARDS, role="host"))
        programs = [start(executor) for executor in ("thread", "process", "process")]
        flows = create(store, count)
        for number in range(kills):
            since = completed(store)
            eventually(lambda since=since: completed(store) > since, "nobody works")  # type: ignore[misc]
            if number % 2:
                children = psutil.Process(programs[-1].pid).children()
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)
            else:
                programs.pop(0).kill()
                programs.append(start("process"))
        eventually(lambda: completed(store) == count, lambda: f"{completed(store)} are done", 120)
        for names in histories(store, flows):
            assert names.count("created") == names.count("completed") == 1
            assert names.count("transitioned") == 1
        for program in programs:
            stats_of(program)


CYCLES = 20


def resources(*processes: int) -> dict[str, int]:
    """Count what this process, and others by their pid, hold."""
    gc.collect()
    me = psutil.Process()
    return {
        "threads": threading.active_count(),
        "actors": len(pykka.ActorRegistry.get_all()),
        "descriptors": me.num_fds(),
        "children": len(me.children(recursive=True)),
        **{f"descriptors of {pid}": psutil.Process(pid).num_fds() for pid in processes},
        **{f"threads of {pid}": psutil.Process(pid).num_threads() for pid in processes},
    }


@pytest.mark.parametrize("executor", ["thread", "process", "async"])
def test_attached_workers_that_come_and_go_leave_nothing_behind(
    path: Path, tmp_path: Path, executor: Any
) -> None:
    with clients_at(path, tmp_path / "stderr") as clients:
        host = clients.open(shards=SHARDS)
        others = (host.pid, *host.shard_pids)
        before: dict[str, int] = {}
        for cycle in range(CYCLES):
            with sf.open(path, role="attach") as store:
                flow = BriefFlow.using(store)
                flow.create(id=f"f{cycle}", payload={})
                options: Any = {"executor": executor, "concurrency": 1, "states": "queued"}
                with sf.Worker(flow, handler=plain_complete, **options) as worker:
                    eventually(lambda worker=worker: worker.stats()["ok"], "it works")  # type: ignore[misc]
            before = before or resources(*others)

        def is_no_more() -> bool:
            now = resources(*others)
            return all(now[name] <= count for name, count in before.items())

        eventually(is_no_more, lambda: f"{before} became {resources(*others)}")
        run = {file.name for file in (path / "run").iterdir()}
        assert run == {"token", "host.json", *(f"shard-{n}.sock" for n in range(SHARDS))}
        assert host.call("flow_info", "brief")["completed"] == CYCLES
