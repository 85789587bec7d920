"""Everything that a log can be shortened by, at once, against what was there before it was lost.

One store of families, values, moves, retries and retention, whose merges, checkpoints and cold
flows never rest. Now and then its directory is copied as it is, as after a crash of its processes,
and any of what shortens the log is removed from the copy; or a backup is made. The copy, once it is
opened, has to give the same answers. Half of the time the work goes on with the copy.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import shardflow as sf
from shardflow.flow.beside import COLD_FOLDER
from shardflow.flow.engine import Engine
from shardflow.sdk import opening
from shardflow.testing import ManualClock
from support.hasty import install
from support.links import links_of, service_of

START_MS = 1_700_000_000_000
SHARDS = 2
TYPES = ("a", "b")
STATES = ("queued", "next", "waiting_children", "completed", "failed", "cancelled")
STEPS = 220
IMAGES_EVERY = 12
RETENTION_MS = 4_000
LEASE_MS = 1_500
PARTITIONS = (None, "p0", "p1", "p2")
REFUSALS = (sf.StaleLease, sf.FlowNotFound, sf.FlowTerminal, sf.WrongState)


@pytest.mark.parametrize("turn", range(6))
def test_what_shortens_the_log_may_be_lost_at_any_moment(
    tmp_path: Path, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = turn if turn < 4 else random.randrange(2**32)
    print(f"seed {seed}")
    install(monkeypatch)
    settings_of = opening.settings_of
    monkeypatch.setattr(
        opening, "settings_of", lambda *given: replace(settings_of(*given), cold_flows_min=3)
    )
    with ExitStack() as stack:
        told = Work(tmp_path, random.Random(seed), stack).run()
    print(told)
    assert told["merges"] and told["checkpoints"] and told["cold_flows"] and told["spawned"]


class Work:
    """Random work on one store after another."""

    def __init__(self, folder: Path, chance: random.Random, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._chance = chance
        self._clock = ManualClock(START_MS)
        self._path = folder / "0"
        self._images = 0
        self._names = 0
        self._told: dict[str, int] = dict.fromkeys(
            ("merges", "checkpoints", "cold_flows", "spawned"), 0
        )
        self._store = self._open(self._path)

    def run(self) -> dict[str, int]:
        """Work, and compare copies with what they were made of; return what has happened."""
        for number in range(STEPS):
            self._work()
            for engine in engines_of(self._store):
                for _ in range(self._chance.randint(0, 12)):
                    engine.upkeep.step()
            if number % IMAGES_EVERY == IMAGES_EVERY - 1:
                self._look_at_a_copy()
        self._count()
        return self._told

    def _open(self, path: Path) -> sf.Store:
        store = sf.open(
            path, shards=SHARDS, in_process=True, clock=self._clock, retention_ms=RETENTION_MS
        )
        self._stack.callback(store.close)
        return store

    def _count(self) -> None:
        for told in self._store.stats():
            for name in ("merges", "checkpoints", "cold_flows"):
                self._told[name] += told[name]

    # ---- copies ----

    def _look_at_a_copy(self) -> None:
        self._images += 1
        path = self._folder / str(self._images)
        lost = self._copy(path)
        copy = self._open(path)
        wanted, found = answers(self._store), answers(copy)
        for name, answer in wanted.items():
            assert found[name] == answer, (name, lost)
        assert found.keys() == wanted.keys(), lost
        if self._chance.random() < 0.5:
            self._count()
            copy, self._store = self._store, copy
            self._path = path
        copy.close()

    def _copy(self, path: Path) -> list[str]:
        """Make a copy; return what it lacks of what it may lack."""
        if self._chance.random() < 0.25:
            self._store.backup(path)
            return ["a backup"]
        with ExitStack() as stack:
            for link in links_of(self._store):
                stack.enter_context(link._lock)
            shutil.copytree(self._path, path)
        return self._lose(path)

    def _lose(self, path: Path) -> list[str]:
        """Remove any of what may be removed."""
        lost = []
        for shard in sorted(path.glob("shard-*")):
            for what in ("*.checkpoint", "*.hint", COLD_FOLDER):
                if self._chance.random() < 0.4:
                    for found in shard.glob(what):
                        lost.append(f"{shard.name}/{found.name}")
                        shutil.rmtree(found) if found.is_dir() else found.unlink()
        return lost

    # ---- work ----

    def _work(self) -> None:
        chance = self._chance
        self._clock.advance(chance.choice([0, 0, 1, 50, 700]))
        doing = chance.random()
        if doing < 0.45:
            self._create(chance.randint(1, 6))
            return
        type_ = chance.choice(TYPES)
        if doing < 0.5:
            self._store.flow_policy_set(type_, retry=sf.Retry(max_retries=chance.randint(0, 3)))
            return
        if doing < 0.6:
            # Of any flow: one that is cold comes back.
            flows = self._store.flow_list(type_, count=1_000)
            for flow in chance.sample(flows, k=min(2, len(flows))):
                self._put(flow)
            return
        for job in self._store.flow_claim_due(
            type_, worker="w", limit=chance.randint(1, 5), lease_ms=LEASE_MS
        ):
            try:
                self._settle(job)
            except REFUSALS:
                # Its parent, or one of its siblings, has ended it.
                continue

    def _create(self, count: int) -> None:
        chance = self._chance
        self._store.flow_create_many(
            [
                {
                    "id": self._name(),
                    "type": chance.choice(TYPES),
                    "partition_key": chance.choice(PARTITIONS),
                    "payload": self._value(),
                    "history_max_events": chance.choice([None, None, 1, 2, 3]),
                    "correlation_id": chance.choice([None, "c"]),
                    "run_at_ms": self._clock.now_ms() + chance.choice([0, 0, 0, 3_000, 10**7]),
                }
                for _ in range(count)
            ]
        )

    def _name(self) -> str:
        self._names += 1
        return f"f{self._names}"

    def _value(self) -> bytes | None:
        return self._chance.choice([None, self._chance.randbytes(self._chance.choice([3, 900]))])

    def _settle(self, job: sf.FlowRecord) -> None:
        store, chance = self._store, self._chance
        key: dict[str, Any] = {"partition_key": job.partition_key}
        held = {**key, "fencing_token": job.fencing_token}
        token = job.lease_token
        doing = chance.random()
        if doing < 0.35:
            store.flow_complete(job.id, token, **held, result=self._value())
        elif doing < 0.45:
            store.flow_fail(job.id, token, **held, error=self._value())
        elif doing < 0.55:
            store.flow_retry(job.id, token, **held, error="again")
        elif doing < 0.7:
            store.flow_transition(
                job.id, job.logical_state, "next", **held, lease_token=token, payload=self._value()
            )
        elif doing < 0.8:
            self._put(job)
        elif doing < 0.95:
            self._spawn(job)

    def _put(self, flow: sf.FlowRecord) -> None:
        name, key = self._chance.choice(["v", "w"]), flow.partition_key
        value = self._value()
        self._store.flow_value_put(value, id=flow.id, name=name, partition_key=key, override=True)

    def _spawn(self, job: sf.FlowRecord) -> None:
        chance = self._chance
        children = [
            {
                "id": self._name(),
                "type": chance.choice(TYPES),
                "partition_key": chance.choice(PARTITIONS),
                "payload": self._value(),
            }
            for _ in range(chance.randint(1, 4))
        ]
        self._store.flow_spawn_children(
            job.id,
            children,
            group_id=chance.choice(["g", "h"]) + str(job.version),
            wait=chance.choice(["all", "any", "none"]),
            success=chance.choice(["completed", "next"]),
            failure=chance.choice(["failed", "next"]),
            on_parent_closed=chance.choice(["cancel_children", "abandon_children"]),
            partition_key=job.partition_key,
            lease_token=job.lease_token,
            fencing_token=job.fencing_token,
        )
        self._told["spawned"] += 1


def engines_of(store: sf.Store) -> list[Engine]:
    return [service_of(store, shard).engine for shard in range(SHARDS)]


def answers(store: sf.Store) -> dict[str, Any]:
    """Ask everything that can be asked."""
    found: dict[str, Any] = {}
    flows: list[sf.FlowRecord] = []
    for kind in TYPES:
        found[f"info {kind}"] = store.flow_info(kind)
        for partition in PARTITIONS:
            listed = list(_listed(store, kind, partition))
            found[f"list {kind} {partition}"] = [record.id for record in listed]
            flows += listed
    for flow in {(flow.partition_key, flow.id): flow for flow in flows}.values():
        key: dict[str, Any] = {"partition_key": flow.partition_key}
        name = f"{flow.partition_key} {flow.id}"
        found[name] = store.flow_get(flow.id, **key, payload=True, payload_max_bytes=10**6)
        found[f"history of {name}"] = store.flow_history(flow.id, **key, count=1_000)
        found[f"children of {name}"] = [r.id for r in store.flow_by_parent(flow.id, **key)]
    found["by correlation"] = [r.id for r in store.flow_by_correlation("c", count=1_000)]
    found["flows and values"] = [
        (told["flows"], told["values"]) for told in store.stats(check=True)
    ]
    problems = [told["problems"] for told in store.stats(check=True)]
    assert problems == [[]] * SHARDS, problems
    return found


def _listed(store: sf.Store, kind: str, partition: str | None) -> Iterator[sf.FlowRecord]:
    after = None
    while True:
        page = store.flow_list(kind, partition_key=partition, count=50, after=after)
        yield from page
        if (after := page.after) is None:
            return
