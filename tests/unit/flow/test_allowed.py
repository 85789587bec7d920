"""What a client may not say, whoever it is: refused as `invalid_argument`, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from shardflow.flow import commands, family, limits, queries
from shardflow.flow.commands import Ending, Extension, Hydration, Move, NewFlow, Retrying
from shardflow.flow.policy import RetryPatch
from shardflow.flow.replies import Rejected
from support.lone import FAR_MS, KIN, NOW_MS, Shard, history_of, spawn_of

LONG = "x" * (limits.NAME_BYTES_MAX + 1)
WIDE = "\U0001f600" * limits.NAME_BYTES_MAX
HUGE = 2**63 - 1
RESERVED = ["running", "completed", "failed", "cancelled", ""]
NOTHING = Hydration()

Make = Callable[[Shard], Any]
"""Makes a request for a shard with its flows, held ones among them."""


def just(request: Any) -> Make:
    return lambda shard: request


def new(flow_id: str = "new", **fields: Any) -> NewFlow:
    named = {"type": "t", "state": "a", "partition_key": None, **fields}
    return NewFlow(flow_id, **named)


def held(shard: Shard, kind: Any, *fields: Any, **named: Any) -> Any:
    """Return an item about the flow that is held."""
    return kind("held", None, *fields, **{"fencing_token": 1, **named})


def token(shard: Shard) -> dict[str, Any]:
    return {"lease_token": shard.known["held"]}


def claim(**fields: Any) -> commands.ClaimDue:
    due = commands.ClaimDue("t", "w", None, None, 5, 1_000, None, True, True, 0, NOTHING)
    return msgspec.structs.replace(due, **fields)


def listing(**fields: Any) -> queries.List:
    every = queries.List("t", None, None, None, 10, None, False, True)
    return msgspec.structs.replace(every, **fields)


def move(shard: Shard, **fields: Any) -> Any:
    return held(shard, Move, "a", **{"to_state": "b", **token(shard), **fields})


def transition_to(state: str) -> Make:
    return lambda shard: commands.Transition([move(shard, to_state=state)])


def step_to(state: str) -> Make:
    return lambda shard: commands.StepContinue(move(shard, to_state=state), 9)


def retry(shard: Shard, **fields: Any) -> commands.Retry:
    item = held(shard, Retrying, **token(shard), retry=RetryPatch(**fields))
    return commands.Retry([item])


def extend(shard: Shard, lease_ms: int) -> commands.ExtendLease:
    return commands.ExtendLease([held(shard, Extension, lease_ms=lease_ms, **token(shard))])


def complete(shard: Shard, **fields: Any) -> commands.Complete:
    return commands.Complete([held(shard, Ending, **token(shard), **fields)])


def policy(**patch: Any) -> commands.PolicySet:
    return commands.PolicySet("t", patch, False, None)


def adopt(generation: int = 9, **document: Any) -> commands.PolicyAdopt:
    return commands.PolicyAdopt("t", document, generation)


def prepare(*children: NewFlow, coordinator: int = 1) -> family.Prepare:
    return family.Prepare("next", coordinator, KIN, list(children))


def ended(shard: Shard, end: str, child_id: str = "kid") -> family.ChildEnded:
    return family.ChildEnded("mother", None, "g", shard.known["seq"], child_id, None, end)


CREATIONS: dict[str, NewFlow] = {
    **{f"the state {state!r}": new(state=state) for state in RESERVED},
    **{f"the priority {number}": new(priority=number) for number in (-4, -1, 3, 9, HUGE)},
    "no id": new(""),
    "no type": new(type=""),
    "an empty partition": new(partition_key=""),
    "a long id": new(LONG),
    "an id of many bytes": new(WIDE[:129]),
    "a long type": new(type=LONG),
    "a long state": new(state=LONG),
    "a long partition": new(partition_key=WIDE),
    "a long parent": new(parent_flow_id=LONG),
    "a long correlation": new(correlation_id=LONG),
    "a negative time": new(run_at_ms=-1),
    "a time beyond all": new(run_at_ms=limits.NEVER + 1),
    "a negative retention": new(retention_ttl_ms=-HUGE),
    "no time to be active": new(max_active_ms=0),
    "a negative time to be active": new(max_active_ms=-1),
    "no history": new(history_max_events=0),
    "less than no history": new(history_max_events=-3),
    "too many attributes": new(attributes={f"{n}": n for n in range(65)}),
    "too large attributes": new(attributes={"a": "x" * 100_000}),
    "an attribute with a long name": new(attributes={"x" * 100_000: 1}),
    "an attribute that is no number": new(attributes={"a": float("nan")}),
    "an attribute without end": new(attributes={"a": float("inf")}),
    "a large number in an attribute": new(attributes={"a": 2**53}),
    "too many values": new(values={f"{n}": b"" for n in range(101)}),
    "a value without a name": new(values={"": b""}),
    "a value with a long name": new(values={LONG: b""}),
}

FANOUTS: dict[str, dict[str, Any]] = {
    "to wait in running": {"wait_state": "running"},
    "to wait in an end": {"wait_state": "completed"},
    "to wait nowhere": {"wait_state": None},
    "to succeed as running": {"success": "running"},
    "to fail as running": {"failure": "running"},
    "to go on as running": {"wait": "none", "wait_state": None, "success": "running"},
    "no way to succeed": {"success": None},
    "a long group": {"group_id": LONG},
    "a group of many bytes": {"group_id": WIDE},
    "a shard that is not there": {"shards": [0, 2]},
    "shards in no order": {"shards": [1, 0]},
    "more children than there are": {"total": 2},
    "more children than any": {"total": 1_001},
    "no children": {"total": 0},
    "a long digest": {"digest": b"x" * 33},
}

REQUESTS: dict[str, Make] = {
    **{f"create: {what}": just(commands.Create([item])) for what, item in CREATIONS.items()},
    "create: nothing": lambda s: commands.Create([]),
    "create: the same twice": lambda s: commands.Create([new(), new()]),
    "create: each for itself, the same twice": lambda s: commands.Create([new(), new()], True),
    "create: too many": lambda s: commands.Create([new(f"{n}") for n in range(1_001)]),
    "create: a negative now": lambda s: commands.Create([new()], now_ms=-1),
    "create: a now beyond all": lambda s: commands.Create([new()], now_ms=2**64 - 1),
    "start: a reserved state": lambda s: commands.StartAndClaim(new(state="failed"), "w", 1),
    "start: no worker": lambda s: commands.StartAndClaim(new(), "", 1),
    "start: a lease of nothing": lambda s: commands.StartAndClaim(new(), "w", 0),
    "start: one that is there": lambda s: commands.StartAndClaim(
        new("keyed", partition_key="p", root_flow_id="ready", idempotent=True), "w", 1
    ),
    "start: later": lambda s: commands.StartAndClaim(new(run_at_ms=NOW_MS), "w", 1),
    "claim: nothing": lambda s: claim(limit=0),
    "claim: less than nothing": lambda s: claim(limit=-1),
    "claim: a limit beyond all": lambda s: claim(limit=HUGE),
    "claim: more expired ones than flows": lambda s: claim(expired_first=6),
    "claim: fewer expired ones than none": lambda s: claim(expired_first=-1),
    "claim: a priority that is none": lambda s: claim(priority=5),
    "claim: a lease into the past": lambda s: claim(lease_ms=-HUGE),
    "claim: no states": lambda s: claim(states=[]),
    "claim: too many states": lambda s: claim(states=[f"{n}" for n in range(1_001)]),
    "claim: too many partitions": lambda s: claim(partition_keys=["p"] * 1_001),
    "claim: a long worker": lambda s: claim(worker=LONG),
    "probe: a priority that is none": lambda s: queries.Probe("t", None, None, 5, 9, True, True),
    "watch: a priority that is none": lambda s: queries.Watch("t", None, None, 9, True, True, 5),
    "complete: the same twice": lambda s: commands.Complete([*complete(s).items] * 2),
    "complete: a negative retention": lambda s: complete(s, retention_ttl_ms=-HUGE),
    "complete: a long id": lambda s: commands.Complete([Ending(LONG, None, "t", 1)]),
    "complete: too large attributes": lambda s: complete(s, attributes={"x" * 100_000: 1}),
    "complete: a value without a name": lambda s: complete(s, values={"": b""}),
    "cancel: the same twice": lambda s: commands.Cancel([Ending("ready", None, None, 0)] * 2),
    "retry: to running": lambda s: retry(s, exhausted_to="running"),
    "retry: less jitter than none": lambda s: retry(s, jitter_pct=-1, kind="fixed", base_ms=100),
    "retry: a negative wait": lambda s: retry(s, base_ms=-100),
    "retry: a wait beyond all": lambda s: retry(s, kind="linear", base_ms=HUGE, max_ms=HUGE),
    "retry: too many": lambda s: retry(s, max_retries=1_001),
    **{f"transition: to {state!r}": transition_to(state) for state in RESERVED},
    "transition: a priority that is none": lambda s: commands.Transition([move(s, priority=9)]),
    "transition: the same twice": lambda s: commands.Transition([move(s), move(s)]),
    **{f"step: to {state!r}": step_to(state) for state in RESERVED},
    "step: without a lease": lambda s: commands.StepContinue(
        Move("ready", None, "a", "b", 0, None), 9
    ),
    "step: a lease of nothing": lambda s: commands.StepContinue(move(s), 0),
    "step: later": lambda s: commands.StepContinue(move(s, run_at_ms=NOW_MS), 9),
    "step: with a priority": lambda s: commands.StepContinue(move(s, priority=1), 9),
    "extend: by a negative lease": lambda s: extend(s, -5),
    "extend: into what no number holds": lambda s: extend(s, -(2**63)),
    "extend: by nothing": lambda s: extend(s, 0),
    "put: no name": lambda s: commands.ValuePut("ready", None, "", b"", False),
    "put: a long name": lambda s: commands.ValuePut("ready", None, LONG, b"", False),
    "put: a name of many bytes": lambda s: commands.ValuePut("ready", None, WIDE, b"", False),
    "clean up: nothing": lambda s: commands.RetentionCleanup(0),
    "sweep: less than nothing": lambda s: commands.Sweep(-1),
    "get: values without end": lambda s: queries.Get(
        "ready", None, True, Hydration(names=["n"] * 1_001)
    ),
    "history: nothing": lambda s: history_of("ready", 0),
    "list: nothing": lambda s: listing(count=0),
    "list: less than nothing": lambda s: listing(count=-1),
    "list: all at once": lambda s: listing(count=HUGE),
    "list: after a negative time": lambda s: listing(after=(-1, "i", "")),
    "list: after no id": lambda s: listing(after=(1, "", "")),
    "list: after what is no place": lambda s: listing(after=(2**64 - 1, LONG, LONG)),
    "lineage: nothing": lambda s: queries.Lineage("root", "ready", None, None, None, 0, None, True),
    "stuck: a negative age": lambda s: queries.Stuck("t", -1, 10),
    "values: too many": lambda s: queries.ValueGet([1] * 1_001, 5),
    "values: a number that is none": lambda s: queries.ValueGet([-1], 5),
    **{
        f"spawn: {what}": just(family.SpawnDecide(None, spawn_of("ready", **fields), [new()]))
        for what, fields in FANOUTS.items()
    },
    "spawn: to begin with, a shard that is not there": lambda s: family.SpawnBegin(
        spawn_of("ready", 1, shards=[2])
    ),
    "spawn: the same child twice": lambda s: family.SpawnDecide(
        None, spawn_of("ready", 2), [new(), new()]
    ),
    "spawn: a child in a reserved state": lambda s: family.SpawnDecide(
        None, spawn_of("ready", 1), [new(state="running")]
    ),
    "prepare: a child in a reserved state": lambda s: prepare(new(state="completed")),
    "prepare: a child with a long name": lambda s: prepare(new(type=LONG)),
    "prepare: the same child twice": lambda s: prepare(new(), new()),
    "prepare: for a shard that is not there": lambda s: prepare(new(), coordinator=2),
    "prepare: for a shard that is nowhere": lambda s: prepare(new(), coordinator=HUGE),
    "deliver: from a shard that is not there": lambda s: family.Deliver(2, 1, []),
    "deliver: before the first": lambda s: family.Deliver(1, 0, []),
    "deliver: an end that is none": lambda s: family.Deliver(1, 1, [ended(s, "waiting")]),
    "collect: what no shard counts to": lambda s: family.Collect([], [2**64 - 1]),
    "collect: from more shards than there can be": lambda s: family.Collect([0] * 65, []),
    "adopt: a generation that none follows": lambda s: adopt(2**64 - 1),
    "adopt: a negative generation": lambda s: adopt(-1),
}

POLICIES: dict[str, dict[str, Any]] = {
    "a field that is none": {"retries": 1},
    "a retry that is a number": {"retry": 5},
    "a retry with a field that is none": {"retry": {"junk": 1}},
    "a retry that is text": {"retry": {"max_retries": "x"}},
    "a retry without end": {"retry": {"max_retries": 1_001}},
    "a retry to running": {"retry": {"exhausted_to": "running"}},
    "a retry to nowhere": {"retry": {"exhausted_to": ""}},
    "a retry to many bytes": {"retry": {"exhausted_to": WIDE}},
    "a backoff that is text": {"retry": {"backoff": "linear"}},
    "a backoff of no kind": {"retry": {"backoff": {"kind": "none of them"}}},
    "a negative backoff": {"retry": {"backoff": {"base_ms": -1}}},
    "a retention that is text": {"retention_ttl_ms": "x"},
    "a retention that is no whole number": {"retention_ttl_ms": 1.5},
    "a negative retention": {"retention_ttl_ms": -1},
    "no time to be active": {"max_active_ms": 0},
    "a time to be active that is text": {"max_active_ms": "x"},
    "states that are a number": {"states": 1},
    "a state that is a number": {"states": {"a": 1}},
    "a state that is reserved": {"states": {"running": {}}},
    "a state that is an end": {"states": {"completed": {}}},
    "a state without a name": {"states": {"": {}}},
    "a state of many bytes": {"states": {WIDE: {}}},
    "a state with a field that is none": {"states": {"a": {"x": 1}}},
    "a state of no mode": {"states": {"a": {"mode": "x"}}},
    "a state's retry to running": {"states": {"a": {"retry": {"exhausted_to": "running"}}}},
    "too many states": {"states": {f"{n}": {"mode": "parallel"} for n in range(1_001)}},
    "a policy without a bottom": {"retry": {"backoff": {"kind": {"a": {"a": {"a": 1}}}}}},
}
for what, document in POLICIES.items():
    REQUESTS[f"policy: {what}"] = just(policy(**document))
    REQUESTS[f"adopt: {what}"] = just(adopt(**document))


@pytest.mark.parametrize("what", REQUESTS)
def test_it_is_refused_and_nothing_is_written(what: str) -> None:
    shard = Shard()
    frames, records = shard.engine.log.frames_written, shard.records()
    (reply,) = shard.send(msgspec.msgpack.encode(REQUESTS[what](shard)))
    refusals = [reply.refused] if isinstance(reply, Rejected) else reply.outcomes
    assert [refused.code for refused in refusals] == ["invalid_argument"]
    assert shard.engine.log.frames_written == frames
    assert shard.records() == records
    shard.aftermath()


def test_what_one_item_says_wrong_is_its_own_fault() -> None:
    shard = Shard()
    items = [new("one"), new("two", state="failed"), new("three")]
    outcomes = shard.ask(commands.Create(items, True)).outcomes
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [
        None,
        "invalid_argument",
        None,
    ]
    assert outcomes[1].fields == {"argument": "state", "flow_id": "two", "partition_key": None}
    assert {"one", "three"} <= {flow_id for _, flow_id in shard.records()}


def test_the_same_id_in_two_partitions_is_two_flows() -> None:
    shard = Shard()
    items = [new(partition_key="p"), new(partition_key="q"), new()]
    assert len(shard.ask(commands.Create(items)).outcomes) == 3


def test_a_filter_that_names_a_state_twice_finds_each_flow_once() -> None:
    shard = Shard()
    claimed = shard.ask(claim(states=["a", "b", "a"], partition_keys=["p", "p"], limit=9))
    assert [record.id for record in claimed.outcomes] == ["keyed", "baby"]
    heads = shard.ask(queries.Probe("t", ["a", "a"], None, 9, None, True, False))
    assert len(heads.due) == len(set(heads.due))


def test_a_refusal_does_not_repeat_an_endless_id() -> None:
    shard = Shard()
    endless = "x" * 1_000_000
    for partition_key, flow_id in ((None, endless), (endless, "i")):
        item = Ending(flow_id, partition_key, "t", 1)
        (refused,) = shard.ask(commands.Complete([item])).outcomes
        assert len(msgspec.msgpack.encode(refused)) < 1_000


def test_policies_that_are_merged_have_no_more_states_than_one() -> None:
    shard = Shard()
    for start in (0, 500):
        states = {f"{n}": {"mode": "parallel"} for n in range(start, start + 500)}
        reply = shard.ask(commands.PolicySet("t", {"states": states}, start == 0, None))
        assert not isinstance(reply, Rejected)
    reply = shard.ask(
        commands.PolicySet("t", {"states": {"one": {"mode": "parallel"}}}, False, None)
    )
    assert reply.refused.code == "invalid_argument"


def test_no_generation_follows_the_last() -> None:
    shard = Shard()
    shard.ask(adopt(limits.INTEGER_MAX))
    assert shard.ask(policy(max_active_ms=5)).refused.code == "invalid_argument"
    shard.reopen()


def test_an_adopted_policy_is_kept_without_what_a_patch_may_clear() -> None:
    shard = Shard()
    shard.ask(adopt(states=None, retry={"backoff": None, "max_retries": 3}))
    assert shard.ask(queries.PolicyGet("t")).data["policy"] == {"retry": {"max_retries": 3}}
    shard.aftermath()


def test_more_ends_than_children_are_not_counted() -> None:
    shard = Shard()
    posts: list[family.Post] = [ended(shard, "cancelled", f"kid{n}") for n in range(5)]
    assert shard.ask(family.Deliver(1, 1, posts)).data == 5
    group = shard.records()[None, "mother"].child_groups["g"]
    assert (group.cancelled, group.open_count) == (2, 0)
    shard.aftermath()


def test_what_is_acknowledged_before_it_is_posted_does_not_move_the_numbers() -> None:
    shard = Shard()
    shard.send(msgspec.msgpack.encode(family.Collect([], [limits.COUNT_MAX] * 2)))
    decide = family.SpawnDecide(shard.known["txn"], spawn_of("dad", 1, shards=[0, 1]), [])
    assert shard.ask(decide).applied
    (outbound,) = shard.send(msgspec.msgpack.encode(family.Collect([], [])))
    assert [(dest, number) for dest, number, _ in outbound.posts] == [(1, 1)]
    shard.aftermath()


def test_a_prepared_child_is_born_whatever_time_its_commit_names() -> None:
    # The flow that had its id is past its retention when it is prepared, and is not swept yet.
    shard = Shard()
    assert shard.ask(family.Prepare("next", 1, KIN, [new("done")], now_ms=FAR_MS)).data is True
    assert shard.ask(family.Commit("next", NOW_MS)).data is True
    assert shard.records()[None, "done"].version == 1
    shard.aftermath()
