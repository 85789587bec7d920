"""The host is killed while others are attached and work: one takes over, and nothing is lost.

Four processes create and complete batches through one store. Round by round the one that hosts is
killed, another takes its place, and all that is known to be written is looked for in the end.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from support.processes import Program, eventually, is_running, running

SCRIPT = Path(__file__).with_name("busy_attached.py")
KIND = "crash"
PARTITIONS = ("p0", "p1", "p2", "p3")
SHARDS = 2
ROUNDS = 10
ATTACHED = 4
GOES_ON_S = 5.0
UNSURE = {"outcome_unknown", "shard_unavailable"}


class Crowd:
    """The processes at work, and what the killed ones had told before."""

    def __init__(self, path: Path, stderr: Path) -> None:
        self.path = path
        self.working: list[Program] = []
        self.lines: list[list[dict[str, Any]]] = []
        self._stderr = stderr
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self) -> None:
        program = self._stack.enter_context(running(SCRIPT, self.path, stderr=self._stderr))
        self.working.append(program)
        program.wait_for(lambda lines: lines, "it does not open the store")

    def host(self) -> Program:
        """Return the one that owns the directory."""

        def found() -> Program | None:
            owner = (self.path / "OWNER").read_text().strip()
            return next((p for p in self.working if str(p.pid) == owner), None)

        host = eventually(found, "nobody hosts")
        assert host is not None
        return host

    def kill(self, program: Program) -> None:
        self.working.remove(program)
        program.kill()
        program.wait()
        self.lines.append([json.loads(line) for line in program.lines()])

    def kill_all(self) -> None:
        """Kill the host last, so that nobody takes its place."""
        host = self.host()
        for program in [*(p for p in self.working if p is not host), host]:
            self.kill(program)


def acknowledged(program: Program, since: int) -> bool:
    """Whether a command that was tried after so many lines was acknowledged."""
    lines = [json.loads(line) for line in program.lines()[since:]]
    tried = next((n for n, line in enumerate(lines) if line["op"] == "try"), len(lines))
    return any(line["op"] == "ok" for line in lines[tried:])


def outcomes(lines: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield what was tried, how it ended, and with which code; a killed one ends unsure."""
    tried: dict[str, Any] | None = None
    for line in lines:
        if line["op"] == "try":
            tried = line
        elif tried is not None:
            yield tried, line["op"], line.get("code", "")
            tried = None
    if tried is not None:
        yield tried, "unsure", "outcome_unknown"


def everything(store: sf.Store) -> dict[str, sf.FlowRecord]:
    found: dict[str, sf.FlowRecord] = {}
    for partition in PARTITIONS:
        after = None
        while True:
            page = store.flow_list(KIND, partition_key=partition, count=1_000, after=after)
            found |= {record.id: record for record in page}
            if (after := page.after) is None:
                break
    return found


def check(told: list[list[dict[str, Any]]], found: dict[str, sf.FlowRecord]) -> dict[str, int]:
    """Compare what the processes were told with what is there."""
    counts = {"ok": 0, "no": 0, "unsure": 0}
    created: set[str] = set()
    for lines in told:
        for tried, op, code in outcomes(lines):
            counts[op] += 1
            ids = tried["ids"]
            if op == "no":
                # A lease ran out before its holder came back to work.
                assert code in (*UNSURE, "batch_error") or tried["verb"] == "complete", (
                    tried,
                    code,
                )
            if tried["verb"] == "create":
                created |= set(ids)
                there = [id in found for id in ids]
                assert all(there) if op == "ok" else not any(there) or op == "unsure", (tried, op)
                assert all(there) or not any(there), f"half a batch: {tried}"
            elif op == "ok":
                assert all(found[id].state == "completed" for id in ids), tried
    assert found.keys() <= created, "a flow that nobody created"
    return counts


def complete_all(store: sf.Store) -> None:
    """Complete what is left, once the leases of the killed have run out."""

    def is_done() -> bool:
        while jobs := store.flow_claim_due(KIND, worker="last", limit=100):
            for job in jobs:
                store.flow_complete(
                    job.id,
                    job.lease_token,
                    fencing_token=job.fencing_token,
                    partition_key=job.partition_key,
                )
        info = store.flow_info(KIND)
        return bool(info["total"] == 0)

    eventually(is_done, "something is never completed")


@pytest.mark.timeout(300)
def test_a_killed_host_is_replaced_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    path, stderr = tmp_path / "data", tmp_path / "stderr"
    waits_s: list[float] = []
    killed: list[int] = []
    with Crowd(path, stderr) as crowd:
        for _ in range(ATTACHED + 1):
            crowd.add()
        for _ in range(ROUNDS):
            host = crowd.host()
            time.sleep(random.uniform(0.1, 0.5))  # in the middle of whatever it does
            since = {program: len(program.lines()) for program in crowd.working}
            crowd.kill(host)
            killed.append(host.pid)
            killed_s = time.monotonic()
            for program in crowd.working:
                eventually(
                    partial(acknowledged, program, since[program]),
                    "an attached process does not go on",
                )
                waits_s.append(time.monotonic() - killed_s)
            assert crowd.host() is not host
            crowd.add()
        crowd.kill_all()
    said = stderr.read_text()
    takers = [
        (int(a), int(b)) for a, b in re.findall(r"process (\d+) takes over \S+ from (\d+)", said)
    ]
    with sf.open(path) as store:
        # Each shard has been started once per host: there never were two at a time.
        assert [told["epoch"] for told in store.stats()] == [ROUNDS + 2] * SHARDS
        assert [old for _, old in takers] == killed
        assert [new for new, _ in takers][:-1] == killed[1:]
        found = everything(store)
        counts = check(crowd.lines, found)
        complete_all(store)
        for record in random.sample(list(found.values()), min(200, len(found))):
            history = store.flow_history(record.id, partition_key=record.partition_key)
            names = [event.name for event in history]
            assert names.count("completed") == 1 and names[0] == "created"
        assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS
    assert not any(is_running(pid) for pid in killed)
    assert "Traceback" not in said, said
    print(f"{len(found)} flows, {counts}, to go on: {max(waits_s):.1f} s at most")
    assert max(waits_s) < GOES_ON_S
