"""What a shard keeps in memory stays in proportion to what it holds, and refusals write nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shardflow as sf
from shardflow.actors.ports import LocalPort
from shardflow.flow import limits
from shardflow.flow.engine import Engine, hydrate
from shardflow.flow.log.values import Values
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.settings import Settings
from shardflow.sdk.opening import make_store
from shardflow.testing import ManualClock, memory_store
from support.links import service_of

ROUNDS = 600
BOUND = 200
"""Well below ROUNDS, well above what a handful of flows needs."""


def open_on(files: MemoryFiles, clock: ManualClock, retention_ms: int = 1) -> sf.Store:
    """Open a store of one shard on a directory that outlives it."""
    port = LocalPort([files], Settings(retention_ms=retention_ms), clock, sync=True, manual=True)
    return make_store(port, clock, None, 2**20, 5.0, None, lambda: None)


def engine_of(store: sf.Store) -> Engine:
    return service_of(store).engine


def held(job: sf.FlowRecord) -> dict[str, Any]:
    return {"fencing_token": job.fencing_token}


# Bounds.


def test_ended_flows_leave_no_deadlines_behind_an_early_one() -> None:
    files, clock = MemoryFiles(), ManualClock(1_000)
    with open_on(files, clock) as store:
        store.flow_create("long", type="g", max_active_ms=10**9)
        for number in range(ROUNDS):
            job = store.flow_start_and_claim(
                f"g{number}", type="g", worker="w", max_active_ms=10**12
            )
            store.flow_complete(job.id, job.lease_token, **held(job))
            clock.advance(2)
        engine = engine_of(store)
        assert len(engine.state.table) <= 2
        assert len(engine.state.deadlines._heap) < BOUND
    with open_on(files, clock) as store:
        assert len(engine_of(store).state.deadlines._heap) < BOUND
        assert engine_of(store).next_sweep_ms() is not None


def test_live_deadlines_outlive_the_clearing_of_stale_ones() -> None:
    clock = ManualClock(1_000)
    with memory_store(clock=clock) as store:
        for number in range(ROUNDS):
            store.flow_create(f"f{number}", type="t", max_active_ms=10_000 + number)
        clock.advance(10_000 + ROUNDS)
        for _ in range(ROUNDS // limits.SWEEP_ITEMS_MAX):
            clock.advance(1)
        assert len(store.flow_list("t", state="failed", count=limits.LIST_COUNT_MAX)) == ROUNDS


def test_the_order_of_recent_values_does_not_outgrow_them() -> None:
    values = Values()
    values.keep(0, b"stays")
    for number in range(1, 5_000):
        values.add(number, 1, number, 10)
        values.keep(number, b"x")
        values.drop([number])
    assert list(values._recent) == [0]
    assert len(values._recent_order) < 2_000


def test_values_that_are_kept_are_still_forgotten_oldest_first() -> None:
    values = Values()
    size = limits.VALUE_CACHE_ITEM_BYTES_MAX
    count = 2 * limits.VALUE_CACHE_BYTES // size
    for number in range(count):
        values.keep(number, bytes(size))
        if number % 2:
            values.drop([number])
    kept = list(values._recent)
    assert kept == sorted(kept) and kept[-1] == count - 2
    assert values._recent_bytes <= limits.VALUE_CACHE_BYTES


def test_a_flow_with_a_short_history_keeps_few_values_also_when_reopened() -> None:
    files, clock = MemoryFiles(), ManualClock(1_000)

    def assert_bounded(store: sf.Store) -> None:
        engine = engine_of(store)
        (slot,) = engine.state.table
        assert len(slot.spent or ()) <= 2
        assert len(engine.values) <= 3
        record = store.flow_get("s", payload=True)
        assert record is not None and record.payload == ROUNDS - 1

    with open_on(files, clock) as store:
        record = store.flow_create("s", type="s", history_max_events=1, payload=-1)
        for number in range(ROUNDS):
            record = store.flow_transition(
                "s", record.state, "ab"[number % 2], payload=number, **held(record)
            )
        assert_bounded(store)
        assert len(store.flow_history("s")) == 1
    with open_on(files, clock) as store:
        assert_bounded(store)


# Refusals.


def full_of_values(store: sf.Store, flow_id: str) -> sf.FlowRecord:
    values = {f"v{number}": number for number in range(limits.NAMED_VALUES_MAX)}
    return store.flow_start_and_claim(flow_id, type="t", worker="w", values=values)


def full_of_attributes(store: sf.Store, flow_id: str) -> sf.FlowRecord:
    attributes = {f"a{number}": number for number in range(limits.ATTRIBUTES_MAX)}
    return store.flow_start_and_claim(flow_id, type="t", worker="w", attributes=attributes)


TOO_MUCH: list[Any] = [
    (full_of_values, {"values": {"one more": "x" * 1_000}}),
    (full_of_attributes, {"values": {"n": "x" * 1_000}, "attributes": {"one more": 1}}),
]


def step_continue(store: sf.Store, job: sf.FlowRecord, **more: Any) -> None:
    with pytest.raises(sf.InvalidArgument):
        store.flow_step_continue(
            job.id, job.lease_token, "queued", "b", lease_ms=1_000, **held(job), **more
        )


def move_independently(store: sf.Store, job: sf.FlowRecord, **more: Any) -> None:
    item = {
        "id": job.id,
        "lease_token": job.lease_token,
        "from_state": "queued",
        "to_state": "b",
        **held(job),
    }
    (found,) = store.flow_transition_many([{**item, **more}], independent=True)
    assert isinstance(found, sf.InvalidArgument)


def put_value(store: sf.Store, job: sf.FlowRecord, **more: Any) -> None:
    ((name, value),) = more["values"].items()
    with pytest.raises(sf.InvalidArgument):
        store.flow_value_put(value, id=job.id, name=name)


@pytest.mark.parametrize(("fill", "more"), TOO_MUCH)
@pytest.mark.parametrize("refused", [step_continue, move_independently])
def test_a_write_that_is_refused_leaves_no_value_behind(
    fill: Callable[..., sf.FlowRecord], more: dict[str, Any], refused: Callable[..., None]
) -> None:
    with memory_store() as store:
        assert_writes_nothing(store, fill(store, "o"), more, refused)


def test_a_value_that_is_refused_is_not_left_behind() -> None:
    with memory_store() as store:
        more = {"values": {"one more": 1}}
        assert_writes_nothing(store, full_of_values(store, "o"), more, put_value)


def assert_writes_nothing(
    store: sf.Store, job: sf.FlowRecord, more: dict[str, Any], refused: Callable[..., None]
) -> None:
    engine = engine_of(store)
    before = (len(engine.values), engine.log.bytes_written, store.flow_get(job.id))
    for _ in range(3):
        refused(store, job, **more)
    assert (len(engine.values), engine.log.bytes_written, store.flow_get(job.id)) == before


def test_a_sound_item_beside_a_refused_one_keeps_its_own_values() -> None:
    with memory_store() as store:
        first, last = full_of_values(store, "first"), full_of_values(store, "last")
        good = store.flow_start_and_claim("good", type="t", worker="w")
        before = len(engine_of(store).values)
        items = [
            {
                "id": job.id,
                "lease_token": job.lease_token,
                "from_state": "queued",
                "to_state": "b",
                "values": {"n": job.id * 100},
                **held(job),
            }
            for job in (first, good, last)
        ]
        found = store.flow_transition_many(items, independent=True)
        assert [isinstance(outcome, sf.InvalidArgument) for outcome in found] == [True, False, True]
        assert len(engine_of(store).values) == before + 1
        record = store.flow_get("good", values=True)
        assert record is not None and record.values == {"n": "good" * 100}


# The answer's budget, small enough for a unit test.


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(hydrate, "ANSWER_VALUE_BYTES_MAX", 2_500)
    return 2_500


def test_values_over_the_answers_budget_are_named_with_their_size(budget: int) -> None:
    with memory_store() as store:
        refs = [str(store.flow_value_put("x" * 1_000)) for _ in range(4)]
        found = store.flow_value_mget(refs, max_bytes=10_000)
        assert found[:2] == ["x" * 1_000] * 2
        assert all(isinstance(value, sf.OmittedValue) for value in found[2:])
        assert [value.ref for value in found[2:]] == refs[2:]
        assert min(value.size for value in found[2:]) >= 1_000


def test_a_claim_delivers_every_flow_and_leaves_payloads_over_the_budget_out(budget: int) -> None:
    with memory_store() as store:
        for number in range(4):
            store.flow_create(f"f{number}", type="t", payload="x" * 1_000)
        jobs = store.flow_claim_due("t", worker="w", limit=4, payload_max_bytes=10_000)
        assert [job.payload_omitted for job in jobs] == [False, False, True, True]
        assert [job.payload for job in jobs] == ["x" * 1_000] * 2 + [None] * 2
        later = store.flow_get(jobs[3].id, payload=True, payload_max_bytes=10_000)
        assert later is not None and later.payload == "x" * 1_000
