"""Section 6: a fan-out that is refused creates nothing, moves nothing and reserves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import shardflow as sf
from shardflow.testing import ManualClock
from support.contract import Flows, Name, facts, ids

TARGETS: dict[str, Any] = {"success": "done", "failure": "review"}
CHILDREN_MAX = 1_000
GROUPS_MAX = 64
DEPTH_MAX = 32


def child(flows: Flows, suffix: object, **fields: Any) -> sf.ChildSpec:
    return sf.ChildSpec(**{"id": flows.name(suffix), "type": flows.name("child"), **fields})


def spread(flows: Flows, *suffixes: object, **fields: Any) -> list[sf.ChildSpec]:
    """Return children on all shards, in turn."""
    keys = flows.name.partitions()
    return [
        child(flows, suffix, partition_key=keys[number % len(keys)], **fields)
        for number, suffix in enumerate(suffixes)
    ]


def spawn(flows: Flows, parent: sf.FlowRecord, children: Any, **options: Any) -> sf.FlowRecord:
    """Fan out with the tokens of the record, unless the options say otherwise."""
    given: dict[str, Any] = {"partition_key": parent.partition_key}
    if options.get("wait") != "none":
        given |= TARGETS
    if parent.lease_token is not None:
        given |= {"lease_token": parent.lease_token, "fencing_token": parent.fencing_token}
    return flows.store.flow_spawn_children(parent.id, children, **{**given, **options})


def children_of(flows: Flows, parent: sf.FlowRecord) -> list[str]:
    return sorted(ids(flows.store.flow_by_parent(parent.id, count=1_000)))


def assert_free(flows: Flows, *children: Any) -> None:
    """Check that nothing has these ids, and that they can be used: nothing reserves them."""
    for spec in children:
        where = {"partition_key": spec.partition_key}
        assert flows.store.flow_get(spec.id, **where) is None
        assert flows.store.flow_create(spec.id, type=flows.name("late"), **where).version == 1


@contextmanager
def refused(
    flows: Flows, parent: sf.FlowRecord, error: type[Exception], *children: Any
) -> Iterator[Any]:
    """Check that the body raises, and leaves no trace of the parent's move or of these children."""
    child_type = flows.name("child")
    before = children_of(flows, parent), flows.store.flow_info(child_type)
    with flows.unchanged(parent), pytest.raises(error) as caught:
        yield caught
    if isinstance(caught.value, sf.FlowError):
        assert caught.value.applied == "no"
    assert (children_of(flows, parent), flows.store.flow_info(child_type)) == before
    assert_free(flows, *children)


def assert_usable(flows: Flows, parent: sf.FlowRecord) -> None:
    """Check that a refused fan-out did not use up the parent's lease or its group."""
    moved = spawn(flows, parent, spread(flows, "good-1", "good-2"))
    assert (moved.state, moved.version) == ("waiting_children", parent.version + 1)
    assert children_of(flows, parent) == [flows.name("good-1"), flows.name("good-2")]


# Refused without asking a shard


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("success", {"success": None}),
        ("failure", {"failure": None}),
        ("wait_state", {"wait_state": None}),
        ("success", {"wait": "any", "success": None}),
        ("failure", {"wait": "any", "failure": None}),
        ("wait_state", {"wait": "any", "wait_state": None}),
        ("success", {"wait": "none", "success": "running"}),
        ("failure", {"wait": "none", "failure": "running"}),
        ("wait_state", {"wait_state": "running"}),
        ("wait_state", {"wait_state": "completed"}),
        ("success", {"success": "running"}),
        ("failure", {"failure": "running"}),
        ("wait", {"wait": "some"}),
        ("wait", {"wait": None}),
        ("on_child_failed", {"on_child_failed": "fail"}),
        ("on_parent_closed", {"on_parent_closed": "cancel"}),
        ("group_id", {"group_id": ""}),
        ("group_id", {"group_id": "x" * 513}),
        ("from_state", {"from_state": ""}),
        ("fencing_token", {"fencing_token": None}),
        ("fencing_token", {"fencing_token": -1}),
        ("now_ms", {"now_ms": -1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_options_that_make_no_sense_are_refused(
    flows: Flows, argument: str, options: dict[str, Any]
) -> None:
    parent = flows.leased("parent")
    children = spread(flows, "a", "b", "c")
    with refused(flows, parent, sf.InvalidArgument, *children) as caught:
        spawn(flows, parent, children, **options)
    assert caught.value.argument == argument
    assert_usable(flows, parent)


def test_no_children_are_refused(flows: Flows) -> None:
    parent = flows.leased("parent")
    with refused(flows, parent, sf.InvalidArgument) as caught:
        spawn(flows, parent, [])
    assert caught.value.argument == "children"
    assert_usable(flows, parent)


def test_more_than_a_thousand_children_are_refused_and_a_thousand_are_not(flows: Flows) -> None:
    parent = flows.leased("parent")
    children = spread(flows, *range(CHILDREN_MAX + 1))
    with refused(flows, parent, sf.InvalidArgument, children[0], children[-1]) as caught:
        spawn(flows, parent, children)
    assert caught.value.argument == "children"
    moved = spawn(flows, parent, children[1:-1])
    assert moved.child_groups["fanout"].total == CHILDREN_MAX - 1
    other = flows.leased("other")
    names = [f"o{number}" for number in range(CHILDREN_MAX)]
    assert spawn(flows, other, spread(flows, *names)).child_groups["fanout"].total == CHILDREN_MAX


def test_a_parent_that_is_its_own_child_is_refused(flows: Flows, name: Name) -> None:
    for number, key in enumerate([None, *name.partitions()]):
        parent = flows.leased(f"parent-{number}", partition_key=key)
        own = child(flows, f"parent-{number}")
        others = spread(flows, f"a{number}", f"b{number}")
        for children in ([own], [*others, own]):
            with refused(flows, parent, sf.InvalidArgument) as caught:
                spawn(flows, parent, children)
            assert caught.value.argument == "children"
        assert_free(flows, *others)


def test_the_same_id_in_another_partition_is_another_flow(flows: Flows, name: Name) -> None:
    first, second = name.partitions()
    parent = flows.leased("parent", partition_key=first)
    spawn(flows, parent, [child(flows, "parent", partition_key=second)])
    assert children_of(flows, parent) == [parent.id]


def test_children_with_one_id_are_refused(flows: Flows) -> None:
    parent = flows.leased("parent")
    twins = [child(flows, "a"), child(flows, "b"), child(flows, "a", payload=1)]
    with refused(flows, parent, sf.InvalidArgument, *twins[:2]) as caught:
        spawn(flows, parent, twins)
    assert caught.value.argument == "children"
    assert_usable(flows, parent)


@pytest.mark.parametrize(
    "bad",
    [
        {"id": ""},
        {"type": ""},
        {"state": "running"},
        {"state": "completed"},
        {"priority": 3},
        {"run_at_ms": -1},
        {"partition_key": ""},
        {"max_active_ms": 0},
        {"attributes": {"a": []}},
        {"payload": object()},
    ],
    ids=lambda bad: "-".join(map(str, bad)),
)
def test_a_bad_child_keeps_the_good_ones_from_being_created(
    flows: Flows, bad: dict[str, Any]
) -> None:
    parent = flows.leased("parent")
    children = spread(flows, "a", "b", "c")
    with refused(flows, parent, sf.InvalidArgument, *children):
        spawn(flows, parent, [*children, child(flows, "z", **bad)])
    assert_usable(flows, parent)


@pytest.mark.parametrize(
    "field", ["idempotent", "parent_flow_id", "root_flow_id", "now_ms", "colour"]
)
def test_an_unknown_field_of_a_child_is_a_type_error(flows: Flows, field: str) -> None:
    parent = flows.leased("parent")
    children = spread(flows, "a", "b")
    odd = {"id": flows.name("z"), "type": flows.name("child"), field: 1}
    with refused(flows, parent, TypeError, *children, child(flows, "z")):
        spawn(flows, parent, [*children, odd])
    assert_usable(flows, parent)


# Refused by the parent's shard


def test_tokens_that_are_not_those_of_the_lease_are_stale(flows: Flows) -> None:
    parent = flows.leased("parent")
    wrong: list[dict[str, Any]] = [
        {"lease_token": "other"},
        {"fencing_token": parent.fencing_token + 1},
        {"fencing_token": parent.fencing_token - 1},
        {"lease_token": None, "fencing_token": None},
        {"lease_token": None},
    ]
    for number, tokens in enumerate(wrong):
        children = spread(flows, *(f"{number}-{letter}" for letter in "abc"))
        with refused(flows, parent, sf.StaleLease, *children):
            spawn(flows, parent, children, **tokens)
    assert_usable(flows, parent)


@pytest.mark.parametrize("wait", ["all", "any", "none"])
def test_a_lease_that_another_worker_has_taken_over_is_stale(flows: Flows, wait: str) -> None:
    (former,) = flows.expired("parent")
    (holder,) = flows.reclaim()
    children = spread(flows, "a", "b")
    with refused(flows, holder, sf.StaleLease, *children):
        spawn(flows, former, children, wait=wait)
    assert_usable(flows, holder)


def test_an_expired_lease_that_nobody_has_taken_over_is_still_good(flows: Flows) -> None:
    (parent,) = flows.expired("parent")
    assert_usable(flows, parent)


def test_a_lease_that_has_been_used_up_is_stale(flows: Flows) -> None:
    parent = flows.leased("parent")
    moved = flows.move(parent, "next")
    children = spread(flows, "a", "b")
    with refused(flows, moved, sf.StaleLease, *children):
        spawn(flows, parent, children)
    again = flows.take(moved)
    waiting = spawn(flows, again, spread(flows, "c", "d"))
    more = spread(flows, "e", "f")
    with refused(flows, waiting, sf.StaleLease, *more):
        spawn(flows, again, more, group_id="second")


def test_a_fencing_token_guards_a_flow_that_is_not_leased(flows: Flows) -> None:
    parent = flows.create("parent")
    children = spread(flows, "a", "b")
    with refused(flows, parent, sf.StaleLease, *children):
        spawn(flows, parent, children, fencing_token=parent.fencing_token + 1)
    moved = spawn(flows, parent, spread(flows, "c"), fencing_token=parent.fencing_token)
    assert moved.state == "waiting_children"


def test_a_parent_in_another_state_is_refused(flows: Flows) -> None:
    parent = flows.leased("parent", state="charging")
    children = spread(flows, "a", "b")
    with refused(flows, parent, sf.WrongState, *children) as caught:
        spawn(flows, parent, children, from_state="created")
    assert caught.value.state == "charging"
    assert spawn(flows, parent, spread(flows, "c"), from_state="running").version == 3


def test_a_parent_that_is_not_leased_is_not_running(flows: Flows) -> None:
    parent = flows.create("parent", state="charging")
    children = spread(flows, "a", "b")
    with refused(flows, parent, sf.WrongState, *children):
        spawn(flows, parent, children, from_state="running")


@pytest.mark.parametrize("key", [None, "elsewhere"])
def test_a_parent_that_is_not_there_has_no_children(
    flows: Flows, name: Name, key: str | None
) -> None:
    parent = flows.leased("parent", partition_key=name("p"))
    children = spread(flows, "a", "b")
    where = None if key is None else name(key)
    with refused(flows, parent, sf.FlowNotFound, *children) as caught:
        spawn(flows, parent, children, partition_key=where)
    assert caught.value.flow_id == parent.id
    assert_usable(flows, parent)


def test_a_parent_that_has_ended_has_no_more_children(flows: Flows) -> None:
    for ending in ("complete", "fail", "cancel"):
        parent = flows.leased(ending)
        options = {"force": True} if ending == "cancel" else {}
        ended = getattr(flows, ending)(parent, **options)
        for number, wait in enumerate(("all", "any", "none")):
            children = spread(flows, f"{ending}-a{number}", f"{ending}-b{number}")
            with refused(flows, ended, sf.FlowTerminal, *children):
                spawn(flows, ended, children, wait=wait)
            with refused(flows, ended, sf.StaleLease):
                spawn(flows, parent, children, wait=wait, group_id="late")


def test_other_children_in_a_group_that_exists_are_a_conflict(flows: Flows) -> None:
    parent = flows.leased("parent")
    first = spread(flows, "a", "b", "c", payload={"n": 1})
    waiting = spawn(flows, parent, first)
    others = {
        "fewer": first[:2],
        "more": [*first, child(flows, "d")],
        "other-id": [*first[:2], child(flows, "e")],
        "other-payload": [*first[:2], *spread(flows, "a", "b", "c", payload={"n": 2})[2:]],
        "other-partition": [*first[:2], child(flows, "c", partition_key=flows.name("far"))],
        "other-state": [*first[:2], *spread(flows, "a", "b", "c", state="x")[2:]],
    }
    free = [child(flows, "d"), child(flows, "e"), others["other-partition"][-1]]
    for children in others.values():
        with refused(flows, waiting, sf.ChildGroupConflict):
            spawn(flows, parent, children)
        with refused(flows, waiting, sf.ChildGroupConflict):
            spawn(flows, waiting, children)
    assert_free(flows, *free)


@pytest.mark.parametrize("wait", ["all", "none"])
def test_the_same_children_again_are_no_conflict_and_write_nothing(flows: Flows, wait: str) -> None:
    parent = flows.leased("parent")
    children = spread(flows, "a", "b", "c", payload={"n": 1}, attributes={"x": 1, "y": 2})
    after = spawn(flows, parent, children, wait=wait)
    as_dicts = [
        {
            "attributes": {"y": 2, "x": 1},
            "payload": spec.payload,
            "type": spec.type,
            "partition_key": spec.partition_key,
            "id": spec.id,
        }
        for spec in reversed(children)
    ]
    with flows.unchanged(after):
        for tokens in (parent, after):
            for again in (children, as_dicts):
                assert facts(spawn(flows, tokens, again, wait=wait)) == facts(after)
    assert len(children_of(flows, parent)) == 3


def test_a_parent_has_64_groups_at_most(flows: Flows) -> None:
    parent = flows.create("parent")
    groups = [spread(flows, f"{number}-a", f"{number}-b") for number in range(GROUPS_MAX + 1)]
    for number in range(GROUPS_MAX):
        parent = spawn(flows, parent, groups[number], group_id=f"g{number}", wait="none")
    assert len(parent.child_groups) == GROUPS_MAX
    for wait in ("none", "all"):
        with refused(flows, parent, sf.InvalidArgument) as caught:
            spawn(flows, parent, groups[-1], group_id=f"g{GROUPS_MAX}", wait=wait)
        assert str(GROUPS_MAX) in str(caught.value)
    assert_free(flows, *groups[-1])
    assert facts(spawn(flows, parent, groups[0], group_id="g0", wait="none")) == facts(parent)


def test_a_flow_has_32_ancestors_at_most(flows: Flows) -> None:
    parent = flows.create("root")
    keys = flows.name.partitions()
    for depth in range(1, DEPTH_MAX + 1):
        spec = child(flows, f"d{depth}", partition_key=keys[depth % len(keys)])
        spawn(flows, parent, [spec], wait="none")
        found = flows.store.flow_get(spec.id, partition_key=spec.partition_key)
        assert found is not None
        assert (found.parent_flow_id, found.root_flow_id) == (parent.id, flows.name("root"))
        parent = found
    children = spread(flows, "e", "f", "g")
    for wait in ("none", "all"):
        with refused(flows, parent, sf.InvalidArgument) as caught:
            spawn(flows, parent, children, wait=wait)
        assert str(DEPTH_MAX) in str(caught.value)
    assert_free(flows, *children)


# Refused by a child's shard


@pytest.mark.parametrize("place", [0, 3, 6], ids=["first", "middle", "last"])
@pytest.mark.parametrize("wait", ["all", "none"])
def test_a_taken_id_undoes_all_of_it(flows: Flows, wait: str, place: int) -> None:
    parent = flows.leased("parent")
    children = spread(flows, *range(7))
    taken = children.pop(place)
    there = flows.store.flow_create(
        taken.id, type=flows.name("other"), partition_key=taken.partition_key
    )
    with (
        flows.unchanged(there),
        refused(flows, parent, sf.FlowAlreadyExists, *children) as caught,
    ):
        spawn(flows, parent, [*children[:place], taken, *children[place:]], wait=wait)
    assert caught.value.flow_id == taken.id
    assert_usable(flows, parent)


def test_an_id_is_taken_by_whatever_has_it(flows: Flows, name: Name) -> None:
    parent = flows.leased("parent")
    first, second = name.partitions()
    sister = child(flows, "sister", partition_key=second)
    spawn(flows, parent, [sister], group_id="earlier", wait="none")
    other = flows.leased("other-parent")
    spawn(flows, other, [child(flows, "cousin", partition_key=first)])
    flows.leased("leased", partition_key=first)
    flows.ended("ended", partition_key=second)
    flows.create("hidden")
    holder = flows.get(parent)
    for suffix, key in (
        ("sister", second),
        ("cousin", first),
        ("leased", first),
        ("ended", second),
        ("hidden", None),
    ):
        children = spread(flows, f"{suffix}-a", f"{suffix}-b", f"{suffix}-c")
        with refused(flows, holder, sf.FlowAlreadyExists, *children) as caught:
            spawn(flows, holder, [*children, child(flows, suffix, partition_key=key)])
        assert caught.value.flow_id == name(suffix)


def test_a_flow_past_its_retention_does_not_take_its_id(flows: Flows, clock: ManualClock) -> None:
    flows.cancel(flows.create("a", retention_ttl_ms=1_000))
    parent = flows.leased("parent")
    with refused(flows, parent, sf.FlowAlreadyExists):
        spawn(flows, parent, [child(flows, "a")])
    clock.advance(1_000)
    spawn(flows, parent, [child(flows, "a")])
    assert children_of(flows, parent) == [flows.name("a")]


def test_a_refused_fan_out_may_be_tried_again_with_other_children(flows: Flows) -> None:
    parent = flows.leased("parent")
    children = spread(flows, *range(8))
    taken = flows.store.flow_create(
        children[5].id, type=flows.name("other"), partition_key=children[5].partition_key
    )
    for _ in range(3):
        with flows.unchanged(parent, taken), pytest.raises(sf.FlowAlreadyExists):
            spawn(flows, parent, children)
    del children[5]
    moved = spawn(flows, parent, children)
    group = moved.child_groups["fanout"]
    assert (group.wait, group.status, group.total) == ("all", "open", 7)
    assert (group.completed, group.failed, group.cancelled) == (0, 0, 0)
    assert (moved.state, moved.lease_token, moved.next_run_at_ms) == (
        "waiting_children",
        None,
        None,
    )
    assert flows.event_names(moved) == ["created", "claimed", "children_spawned"]
