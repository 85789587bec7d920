"""Hosts are killed while fan-outs go over several shards: each is done whole, or not at all."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from support.clients import Clients
from support.processes import eventually

SHARDS = 2
ROUNDS = 8
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
"""A partition key of each shard."""
TARGETS: dict[str, Any] = {"success": "won", "failure": "lost"}


class Parents(threading.Thread):
    """Creates parents and has their children made, until it is told to stop."""

    def __init__(self, store: sf.Store) -> None:
        super().__init__()
        self.store = store
        self.is_over = threading.Event()
        self.outcomes: dict[str, str] = {}
        self.errors: list[BaseException] = []

    def run(self) -> None:
        try:
            while not self.is_over.is_set():
                self.spawn(f"parent-{len(self.outcomes)}")
        except BaseException as error:
            self.errors.append(error)

    def spawn(self, parent: str) -> None:
        self.outcomes[parent] = "no"
        home = random.choice(KEYS)
        with contextlib.suppress(sf.OutcomeUnknown):
            self.store.flow_create(parent, type="p", partition_key=home)
        try:
            self.store.flow_spawn_children(
                parent,
                [{"id": f"{parent}-{key}", "type": "c", "partition_key": key} for key in KEYS],
                partition_key=home,
                **TARGETS,
            )
        except sf.FlowNotFound:
            return  # its creation was lost
        except sf.FlowError as error:
            self.outcomes[parent] = error.applied
        else:
            self.outcomes[parent] = "yes"


def all_of(store: sf.Store, kind: str) -> dict[str, sf.FlowRecord]:
    found: dict[str, sf.FlowRecord] = {}
    after = None
    while True:
        page = store.flow_list(kind, count=1_000, after=after)
        found |= {record.id: record for record in page}
        if (after := page.after) is None:
            return found


def complete_children(store: sf.Store) -> bool:
    """Complete what is due; return whether every parent that waits has been told."""
    while jobs := store.flow_claim_due("c", worker="w", limit=100):
        for job in jobs:
            store.flow_complete(
                job.id,
                job.lease_token,
                fencing_token=job.fencing_token,
                partition_key=job.partition_key,
            )
    return not any(record.state == "waiting_children" for record in all_of(store, "p").values())


@pytest.mark.timeout(200)
def test_fan_outs_of_an_attached_process_are_whole_after_every_takeover(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        clients.open(shards=SHARDS)
    # As a program without an interpreter for shards, this one is always attached.
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with sf.open(clients.path, timeout=20) as store:
        parents = Parents(store)
        parents.start()
        try:
            for number in range(ROUNDS):
                since = len(parents.outcomes)
                eventually(
                    lambda since=since: len(parents.outcomes) > since + 5,  # type: ignore[misc]
                    f"nothing goes on: {parents.errors}",
                )
                time.sleep(random.uniform(0, 0.1))
                clients.host.kill()
                clients.open()
                assert clients.count("takes over") == number + 1
        finally:
            parents.is_over.set()
            parents.join()
        assert parents.errors == []
        eventually(lambda: complete_children(store), "a parent waits for ever", 60)
        check(store, parents.outcomes)


def check(store: sf.Store, outcomes: dict[str, str]) -> None:
    found, children = all_of(store, "p"), all_of(store, "c")
    assert len(children) == SHARDS * sum("fanout" in p.child_groups for p in found.values())
    for parent, outcome in outcomes.items():
        groups = found[parent].child_groups if parent in found else {}
        made = [f"{parent}-{key}" in children for key in KEYS]
        assert made == [bool(groups)] * SHARDS, (parent, outcome)
        if outcome != "unknown":
            assert bool(groups) == (outcome == "yes"), (parent, outcome)
        if groups:
            group = groups["fanout"]
            assert (group.status, group.total, group.completed) == ("success", SHARDS, SHARDS)
            assert found[parent].state == "won"
    assert [told["problems"] for told in store.stats(check=True)] == [[]] * SHARDS
    print({outcome: list(outcomes.values()).count(outcome) for outcome in ("yes", "no", "unknown")})
