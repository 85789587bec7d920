"""What the contract tests share: unique names, short forms of the commands, views of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pykka
import pytest

import shardflow as sf
from shardflow.flow.keys import shard_of
from shardflow.testing import ManualClock

START_MS = 1_700_000_000_000
SHARDS = 2
DAY_MS = 24 * 3_600_000

FACTS = (
    "id",
    "partition_key",
    "type",
    "state",
    "run_state",
    "logical_state",
    "version",
    "fencing_token",
    "attempts",
    "reclaims",
    "priority",
    "created_at_ms",
    "updated_at_ms",
    "next_run_at_ms",
    "lease_owner",
    "lease_token",
    "lease_deadline_ms",
    "payload_size",
    "payload_ref",
    "result_ref",
    "error_ref",
    "value_refs",
    "attributes",
    "parent_flow_id",
    "root_flow_id",
    "correlation_id",
    "retention_ttl_ms",
    "max_active_ms",
    "history_max_events",
)
"""The fields of a record that do not depend on what a read asked to be hydrated."""


def facts(record: Any) -> dict[str, Any]:
    """Return what a record says, hydration left out."""
    return {field: getattr(record, field) for field in FACTS}


def ids(records: Any) -> list[str]:
    """Return the ids of records, in order."""
    return [record.id for record in records]


class Name:
    """Names that no other test of the session uses."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.type = f"{prefix}-type"

    def __call__(self, suffix: object = "") -> str:
        return f"{self.prefix}-{suffix}"

    def padded(self, size: int, letter: str) -> str:
        """Return a name of exactly `size` bytes of UTF-8, made of `letter` as far as it goes."""
        room = size - len(self.prefix.encode()) - 1
        count, rest = divmod(room, len(letter.encode()))
        return f"{self.prefix}-{letter * count}{'.' * rest}"

    def partitions(self, shards: int = SHARDS) -> list[str]:
        """Return one partition key on each shard."""
        found: dict[int, str] = {}
        number = 0
        while len(found) < shards:
            key = self(f"p{number}")
            found.setdefault(shard_of(key, "", shards), key)
            number += 1
        return [found[shard] for shard in range(shards)]

    def neighbours(self, count: int, shards: int = SHARDS) -> list[str]:
        """Return several partition keys of one shard."""
        found: list[str] = []
        number = 0
        while len(found) < count:
            key = self(f"n{number}")
            if shard_of(key, "", shards) == 0:
                found.append(key)
            number += 1
        return found


class Flows:
    """The commands, with everything filled in that a test does not care about."""

    def __init__(self, store: sf.Store, clock: ManualClock, name: Name) -> None:
        self.store = store
        self.clock = clock
        self.name = name
        self.type = name.type

    def create(self, suffix: object = "a", **fields: Any) -> sf.FlowRecord:
        fields.setdefault("type", self.type)
        return self.store.flow_create(self.name(suffix), **fields)

    def create_in_order(self, *suffixes: object, **fields: Any) -> list[str]:
        """Create flows one after the other and return their ids."""
        return [self.create(suffix, **fields).id for suffix in suffixes]

    def claim(self, **options: Any) -> list[sf.FlowRecord]:
        options.setdefault("worker", "w1")
        return list(self.store.flow_claim_due(options.pop("type", self.type), **options))

    def reclaim(self, **options: Any) -> list[sf.FlowRecord]:
        options.setdefault("worker", "w2")
        options.setdefault("lease_ms", 30_000)
        return list(self.store.flow_reclaim(options.pop("type", self.type), **options))

    def wait(self, **options: Any) -> Any:
        """Start a claim that blocks, and see that it does."""
        options.setdefault("worker", "w1")
        options.setdefault("block_ms", 10_000)
        flow_type = options.pop("type", self.type)
        future = self.store.submit.flow_claim_due(flow_type, **options)
        assert_waiting(future)
        return future

    def take(self, flow: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        """Claim this very flow, which has to be the next one due in its state."""
        options.setdefault("state", flow.logical_state)
        options.setdefault("type", flow.type)
        (job,) = self.claim(**options)
        assert (job.id, job.partition_key) == (flow.id, flow.partition_key)
        return job

    def leased(
        self,
        suffix: object = "a",
        *,
        lease_ms: int = 30_000,
        worker: str = "w1",
        **fields: Any,
    ) -> sf.FlowRecord:
        return self.take(self.create(suffix, **fields), lease_ms=lease_ms, worker=worker)

    def expired(self, *suffixes: object, **fields: Any) -> list[sf.FlowRecord]:
        """Return leased flows whose leases ran out in the order given, 1 ms apart."""
        jobs = [
            self.leased(suffix, lease_ms=1_000 + number, **fields)
            for number, suffix in enumerate(suffixes)
        ]
        self.clock.advance(1_000 + len(suffixes))
        return jobs

    def ended(self, suffix: object = "a", **fields: Any) -> sf.FlowRecord:
        return self.complete(self.leased(suffix, **fields))

    def complete(self, job: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        return self._held(self.store.flow_complete, job, options)

    def fail(self, job: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        return self._held(self.store.flow_fail, job, options)

    def retry(self, job: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        return self._held(self.store.flow_retry, job, options)

    def extend(self, job: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        return self._held(self.store.flow_extend_lease, job, options)

    def release(self, job: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        return self._held(self.store.flow_release, job, options)

    def step(self, job: sf.FlowRecord, to_state: str, **options: Any) -> sf.FlowRecord:
        options.setdefault("lease_ms", 30_000)
        from_state = options.pop("from_state", job.logical_state)
        return self._held(self.store.flow_step_continue, job, options, from_state, to_state)

    def move(self, flow: sf.FlowRecord, to_state: str, **options: Any) -> sf.FlowRecord:
        options.setdefault("partition_key", flow.partition_key)
        options.setdefault("fencing_token", flow.fencing_token)
        options.setdefault("lease_token", flow.lease_token)
        from_state = options.pop("from_state", flow.logical_state)
        return self.store.flow_transition(flow.id, from_state, to_state, **options)

    def cancel(self, flow: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        options.setdefault("partition_key", flow.partition_key)
        return self.store.flow_cancel(flow.id, **options)

    def put(self, flow: sf.FlowRecord, value_name: str, value: Any, **options: Any) -> Any:
        options.setdefault("partition_key", flow.partition_key)
        return self.store.flow_value_put(value, id=flow.id, name=value_name, **options)

    def share(self, value: Any) -> str:
        """Put a value that belongs to no flow and return its reference."""
        found = self.store.flow_value_put(value)
        assert isinstance(found, str)
        return found

    def values(self, *refs: str | None, max_bytes: int = 100_000) -> list[Any]:
        """Read values by references that have to be there."""
        given = [ref for ref in refs if ref is not None]
        assert len(given) == len(refs)
        return list(self.store.flow_value_mget(given, max_bytes=max_bytes))

    def get(self, flow: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        options.setdefault("partition_key", flow.partition_key)
        record = self.store.flow_get(flow.id, **options)
        assert record is not None
        return record

    def read(self, flow: sf.FlowRecord, **options: Any) -> sf.FlowRecord:
        """Get a flow with everything hydrated."""
        options.setdefault("payload_max_bytes", 32 * 2**20)
        return self.get(flow, payload=True, values=True, **options)

    def events(self, flow: sf.FlowRecord, **options: Any) -> list[sf.HistoryEvent]:
        options.setdefault("partition_key", flow.partition_key)
        return list(self.store.flow_history(flow.id, **options))

    def event_names(self, flow: sf.FlowRecord, **options: Any) -> list[str]:
        return [event.name for event in self.events(flow, **options)]

    @contextmanager
    def unchanged(self, *flows: sf.FlowRecord) -> Iterator[None]:
        """Check that the body changes neither these flows nor their histories."""
        before = [(facts(self.get(flow)), self.events(flow)) for flow in flows]
        yield
        assert [(facts(self.get(flow)), self.events(flow)) for flow in flows] == before

    @staticmethod
    def _held(
        command: Callable[..., sf.FlowRecord],
        job: sf.FlowRecord,
        options: dict[str, Any],
        *states: str,
    ) -> sf.FlowRecord:
        options.setdefault("partition_key", job.partition_key)
        options.setdefault("fencing_token", job.fencing_token)
        token = options.pop("lease_token", job.lease_token)
        return command(job.id, token, *states, **options)


def item(job: sf.FlowRecord, **fields: Any) -> dict[str, Any]:
    """Return the item of a batch that settles a leased flow."""
    held = {
        "id": job.id,
        "partition_key": job.partition_key,
        "lease_token": job.lease_token,
        "fencing_token": job.fencing_token,
    }
    return held | fields


def assert_waiting(future: Any) -> None:
    """Check that a submitted command has not been answered."""
    with pytest.raises(pykka.Timeout):
        future.get(timeout=0.02)


def get_while_advancing(future: Any, clock: ManualClock, step_ms: int) -> Any:
    """Let time pass in steps until the command is answered; return the answer."""
    for _ in range(200):
        clock.advance(step_ms)
        try:
            return future.get(timeout=0.05)
        except pykka.Timeout:
            continue
    raise AssertionError("not answered, however much time passed")


def assert_absent(flows: Flows, flow: sf.FlowRecord, **options: Any) -> None:
    """Check that neither the flow nor its history can be read."""
    where = {"partition_key": flow.partition_key, **options}
    assert flows.store.flow_get(flow.id, **where) is None
    try:
        events = list(flows.store.flow_history(flow.id, **where))
    except sf.FlowNotFound:
        return
    assert events == []
