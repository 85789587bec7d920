"""Section 3.2: in which order due flows are claimed."""

from __future__ import annotations

import random

from shardflow.testing import ManualClock
from support.contract import Flows, Name, ids


def claim_one_by_one(flows: Flows, **options: object) -> list[str]:
    taken: list[str] = []
    while jobs := flows.claim(limit=1, **options):
        taken.extend(ids(jobs))
    return taken


def test_a_higher_priority_is_claimed_first(flows: Flows, name: Name) -> None:
    for priority in (1, 0, 2):
        flows.create(priority, priority=priority, partition_key=name("p"))
    assert ids(flows.claim(limit=3)) == [name(2), name(1), name(0)]


def test_a_higher_priority_goes_before_an_earlier_due_time(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    flows.create("early", priority=0, run_at_ms=0)
    flows.create("late", priority=1, run_at_ms=clock.now_ms())
    assert claim_one_by_one(flows) == [name("late"), name("early")]


def test_an_earlier_due_time_goes_before_an_earlier_creation(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    now_ms = clock.now_ms()
    for number, offset in enumerate([30, 10, 20]):
        flows.create(number, run_at_ms=now_ms + offset, partition_key=name("p"))
    clock.advance(30)
    assert ids(flows.claim(limit=3)) == [name(1), name(2), name(0)]


def test_equal_due_times_are_claimed_in_the_order_of_entering_the_state(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    due_ms = clock.now_ms() + 100
    made = flows.create_in_order("z", "m", "a", run_at_ms=due_ms, partition_key=name("p"))
    clock.advance(100)
    assert ids(flows.claim(limit=3)) == made


def test_the_order_is_that_of_entering_the_state_not_of_creation(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    due_ms = clock.now_ms() + 100
    first = flows.create("first", state="start", partition_key=name("p"))
    second = flows.create("second", state="start", partition_key=name("p"))
    for flow in (second, first):
        clock.advance(1)
        flows.move(flow, "next", run_at_ms=due_ms)
    clock.advance(100)
    assert ids(flows.claim(state="next", limit=2)) == [second.id, first.id]


def test_flows_created_in_one_batch_keep_its_order(flows: Flows, name: Name) -> None:
    items = [{"id": name(letter)} for letter in "qwertz"]
    flows.store.flow_create_many(items, type=flows.type, partition_key=name("p"))
    assert ids(flows.claim(limit=6)) == [name(letter) for letter in "qwertz"]


def test_several_states_are_claimed_in_one_merged_order(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    now_ms = clock.now_ms()
    for offset, state in enumerate(["b", "a", "c", "a", "b", "c"]):
        flows.create(offset, state=state, run_at_ms=now_ms + offset, partition_key=name("p"))
    clock.advance(10)
    assert ids(flows.claim(state=["a", "b"], limit=3)) == [name(0), name(1), name(3)]
    assert ids(flows.claim(state="any", limit=10)) == [name(2), name(4), name(5)]


def test_a_merged_order_puts_priority_before_state_and_due_time(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    flows.create("a0", state="a", priority=0, run_at_ms=1, partition_key=name("p"))
    flows.create("b1", state="b", priority=1, run_at_ms=3, partition_key=name("p"))
    flows.create("a1", state="a", priority=1, run_at_ms=4, partition_key=name("p"))
    flows.create("b0", state="b", priority=0, run_at_ms=2, partition_key=name("p"))
    assert claim_one_by_one(flows, state=["a", "b"]) == [
        name("b1"),
        name("a1"),
        name("a0"),
        name("b0"),
    ]


def test_an_empty_state_does_not_end_a_merged_claim(flows: Flows, name: Name) -> None:
    flows.create("only", state="z")
    assert ids(flows.claim(state=["a", "b", "z"], limit=5)) == [name("only")]


def test_shards_are_merged_by_priority_and_due_time(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    now_ms = clock.now_ms()
    keys = name.partitions()
    wanted: list[tuple[int, int, str]] = []
    for number in range(24):
        priority, offset = number % 3, (number * 7) % 24
        made = flows.create(
            number, priority=priority, run_at_ms=now_ms + offset, partition_key=keys[number % 2]
        )
        wanted.append((-priority, offset, made.id))
    clock.advance(24)
    in_order = [flow_id for _, _, flow_id in sorted(wanted)]
    assert ids(flows.claim(limit=5)) == in_order[:5]
    assert ids(flows.claim(limit=5)) == in_order[5:10]
    assert claim_one_by_one(flows) == in_order[10:]


def test_every_shard_with_due_work_gets_its_turn(flows: Flows, name: Name) -> None:
    for key in name.partitions():
        for number in range(10):
            flows.create(f"{key}-{number}", partition_key=key)
    jobs = flows.claim(limit=20)
    assert len(jobs) == 20
    assert {job.partition_key for job in jobs} == set(name.partitions())


def test_a_claim_fills_its_limit_from_whichever_shard_has_work(flows: Flows, name: Name) -> None:
    one, other = name.partitions()
    for number in range(12):
        flows.create(number, partition_key=one)
    flows.create("lone", partition_key=other)
    jobs = flows.claim(limit=13)
    assert len(jobs) == 13


def test_claims_of_one_drain_all_shards(flows: Flows, name: Name) -> None:
    made = [
        flows.create(f"{key}-{number}", partition_key=key).id
        for key in name.partitions()
        for number in range(4)
    ]
    assert sorted(claim_one_by_one(flows)) == sorted(made)


def test_a_partition_key_claims_in_the_same_order(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    now_ms = clock.now_ms()
    due = random.Random(7).sample(range(100), 12)
    for offset in due:
        flows.create(offset, run_at_ms=now_ms + offset, partition_key=name("p"))
    clock.advance(100)
    in_order = [name(offset) for offset in sorted(due)]
    assert ids(flows.claim(partition_key=name("p"), limit=12)) == in_order


def test_a_move_may_change_the_priority(flows: Flows, name: Name) -> None:
    low = flows.create("low", state="start", partition_key=name("p"))
    flows.create("middle", state="next", priority=1, partition_key=name("p"))
    raised = flows.move(low, "next", priority=2)
    assert raised.priority == 2
    assert ids(flows.claim(state="next", limit=2)) == [name("low"), name("middle")]


def test_a_retried_flow_takes_its_place_by_its_new_due_time(
    flows: Flows, clock: ManualClock, name: Name
) -> None:
    job = flows.leased("first", partition_key=name("p"))
    flows.create("second", partition_key=name("p"))
    flows.retry(job, run_at_ms=clock.now_ms() + 5)
    clock.advance(5)
    assert ids(flows.claim(limit=2)) == [name("second"), name("first")]
