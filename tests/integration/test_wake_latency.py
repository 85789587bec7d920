"""How soon a claim that waits is answered, by what makes a flow due. Told, never judged by time.

Over all shards and sockets, for the process that hosts and for one that is attached. `-s` shows it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from support.clients import clients_at
from support.contract import assert_waiting

SHARDS = 2
KEYS = [next(k for k in map(str, range(99)) if shard_of(k, "", SHARDS) == n) for n in range(SHARDS)]
"""A partition key of each shard."""
TIMES = 6
SOON_MS = 60
"""How far ahead what time makes due lies, so that the claim waits already."""
KIND = "woken"


@pytest.fixture(params=["host", "attached"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sf.Store]:
    with clients_at(tmp_path / "data", tmp_path / "stderr") as clients:
        if request.param == "attached":
            clients.open(shards=SHARDS)
        with sf.open(tmp_path / "data", shards=SHARDS) as store:
            assert store.role == request.param
            yield store


def claimed(
    store: sf.Store, kind: str, id: str, key: str, lease_ms: int = 60_000
) -> dict[str, Any]:
    """Make a flow and claim it; return what settles it."""
    record = store.flow_start_and_claim(
        id, type=kind, worker="first", partition_key=key, lease_ms=lease_ms
    )
    return {
        "lease_token": record.lease_token,
        "fencing_token": record.fencing_token,
        "partition_key": key,
    }


Due = tuple[Callable[[], None], int | None]
"""What makes a flow due, and when it is, in ms of the wall clock; None = when that is done."""


def create(store: sf.Store, id: str, key: str) -> Due:
    return lambda: _no(store.flow_create(id, type=KIND, partition_key=key)), None


def create_elsewhere(store: sf.Store, id: str, key: str) -> Due:
    """A batch over all shards, of which one flow is waited for."""
    items = [{"id": id, "type": KIND, "partition_key": key}]
    items += [{"id": id, "type": "other", "partition_key": other} for other in KEYS if other != key]
    return lambda: _no(store.flow_create_many(items)), None


def transition(store: sf.Store, id: str, key: str) -> Due:
    held = claimed(store, KIND, id, key)
    return lambda: _no(store.flow_transition(id, "running", "next", **held)), None


def retry_due(store: sf.Store, id: str, key: str) -> Due:
    held = claimed(store, KIND, id, key)
    due_ms = store.now_ms() + SOON_MS
    store.flow_retry(id, error="again", run_at_ms=due_ms, **held)
    return lambda: None, due_ms


def delayed(store: sf.Store, id: str, key: str) -> Due:
    due_ms = store.now_ms() + SOON_MS
    store.flow_create(id, type=KIND, partition_key=key, run_at_ms=due_ms)
    return lambda: None, due_ms


def release(store: sf.Store, id: str, key: str) -> Due:
    held = claimed(store, KIND, id, key)
    return lambda: _no(store.flow_release(id, **held)), None


def lease_expiry(store: sf.Store, id: str, key: str) -> Due:
    record = store.flow_start_and_claim(
        id, type=KIND, worker="first", partition_key=key, lease_ms=SOON_MS
    )
    return lambda: None, record.lease_deadline_ms


def group_resolution(store: sf.Store, id: str, key: str) -> Due:
    """The last child ends, on the shard that is not its parent's."""
    (child_key,) = (other for other in KEYS if other != key)
    parent = store.flow_create(id, type=KIND, partition_key=key)
    store.flow_spawn_children(
        id,
        [{"id": f"{id}-child", "type": "child", "partition_key": child_key}],
        partition_key=key,
        fencing_token=parent.fencing_token,
        success="joined",
        failure="stuck",
    )
    (child,) = store.flow_claim_due("child", worker="first", partition_key=child_key)

    def end() -> None:
        store.flow_complete(
            child.id,
            child.lease_token,
            fencing_token=child.fencing_token,
            partition_key=child_key,
        )

    return end, None


def _no(_: object) -> None:
    """Have no result."""


MAKERS = (
    create,
    create_elsewhere,
    transition,
    retry_due,
    delayed,
    release,
    lease_expiry,
    group_resolution,
)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_waiting_claim_is_woken(store: sf.Store, make: Any) -> None:
    took_ms: list[float] = []
    for number in range(TIMES):
        key = KEYS[number % SHARDS]
        act, due_ms = make(store, f"f{number}", key)
        answered_ns: list[int] = []

        def note(to: list[int] = answered_ns) -> None:
            to.append(time.time_ns())

        waits = store.submit.flow_claim_due(KIND, worker="second", block_ms=20_000)
        waits.add_done_callback(note)
        if due_ms is None:
            assert_waiting(waits)
        act()
        done_ns = time.time_ns() if due_ms is None else due_ms * 1_000_000
        (job,) = waits.get(timeout=20)
        assert (job.id, job.partition_key) == (f"f{number}", key)
        took_ms.append((answered_ns[0] - done_ns) / 1e6)
        store.flow_complete(
            job.id, job.lease_token, fencing_token=job.fencing_token, partition_key=key
        )
    told = f"{statistics.median(took_ms):.1f} ms typically, {max(took_ms):.1f} ms at most"
    print(f"woken by {make.__name__}, {store.role}: {told}")
