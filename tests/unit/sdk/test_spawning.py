"""What `flow_spawn_children` sends, and what it refuses before it sends anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import shardflow as sf
from shardflow.flow.commands import NewFlow
from shardflow.flow.errors import Refused
from shardflow.flow.family import Spawn, SpawnChildren
from shardflow.flow.limits import CHILDREN_MAX
from shardflow.flow.replies import Done
from shardflow.sdk.store import Builders
from support.recording import a_record

BUILDERS = Builders(None, 1_000, lambda: 0)
TARGETS: dict[str, Any] = {"success": "done", "failure": "review"}
WORDS = {
    "wait": ("all", "any", "none"),
    "on_child_failed": ("fail_parent", "ignore"),
    "on_parent_closed": ("cancel_children", "abandon_children"),
}


def spec(id: str = "c1", **fields: Any) -> sf.ChildSpec:
    return sf.ChildSpec(**{"id": id, "type": "email", **fields})


def asked(children: Any = None, **options: Any) -> SpawnChildren:
    children = [spec()] if children is None else children
    request: SpawnChildren = BUILDERS.flow_spawn_children(
        "p1", children, **{**TARGETS, **options}
    ).request
    return request


def refused(argument: str, *words: str, children: Any = None, **options: Any) -> None:
    with pytest.raises(sf.InvalidArgument) as caught:
        asked(children, **options)
    assert caught.value.argument == argument
    for word in words:
        assert word in str(caught.value)


def test_all_that_is_given_is_sent_in_its_place() -> None:
    request = asked(
        group_id="g",
        wait="any",
        wait_state="parked",
        on_child_failed="ignore",
        on_parent_closed="abandon_children",
        partition_key="t1",
        from_state="running",
        lease_token="token",
        fencing_token=7,
        now_ms=datetime(1970, 1, 2, tzinfo=UTC),
    )
    assert request.now_ms == 86_400_000
    assert request.spawn == Spawn(
        id="p1",
        partition_key="t1",
        group_id="g",
        wait="any",
        wait_state="parked",
        success="done",
        failure="review",
        on_child_failed="ignore",
        on_parent_closed="abandon_children",
        from_state="running",
        lease_token="token",
        fencing_token=7,
        total=0,
        shards=[],
        digest=b"",
    )


def test_what_is_not_given_has_the_defaults_of_the_contract() -> None:
    request = asked()
    assert request.now_ms is None
    assert request.spawn == Spawn(
        id="p1",
        partition_key=None,
        group_id="fanout",
        wait="all",
        wait_state="waiting_children",
        success="done",
        failure="review",
        on_child_failed="fail_parent",
        on_parent_closed="cancel_children",
        from_state=None,
        lease_token=None,
        fencing_token=None,
        total=0,
        shards=[],
        digest=b"",
    )


def test_a_child_is_a_specification_or_a_dict_of_the_same_fields() -> None:
    fields: dict[str, Any] = {
        "id": "c1",
        "type": "email",
        "state": "sending",
        "payload": None,
        "partition_key": "t2",
        "priority": 2,
        "run_at_ms": datetime(1970, 1, 2, tzinfo=UTC),
        "correlation_id": "o9",
        "attributes": {"a": 1},
        "values": {"v": 1},
        "max_active_ms": timedelta(seconds=1),
        "retention_ttl_ms": timedelta(seconds=2),
        "history_max_events": 3,
    }
    assert fields.keys() == set(sf.ChildSpec.__struct_fields__)
    (as_spec,) = asked([sf.ChildSpec(**fields)]).children
    assert asked([fields]).children == [as_spec]
    assert as_spec == NewFlow(
        id="c1",
        partition_key="t2",
        type="email",
        state="sending",
        priority=2,
        run_at_ms=86_400_000,
        payload=as_spec.payload,
        correlation_id="o9",
        attributes={"a": 1},
        values=as_spec.values,
        retention_ttl_ms=2_000,
        max_active_ms=1_000,
        history_max_events=3,
    )
    assert as_spec.payload is not None
    assert list(as_spec.values or ()) == ["v"]


def test_a_child_needs_an_id_and_a_type_and_begins_as_a_created_flow_does() -> None:
    expected = [NewFlow(id="c1", partition_key=None, type="email", state="queued")]
    assert asked([spec()]).children == expected
    assert asked(iter([{"id": "c1", "type": "email"}])).children == expected


def test_a_child_without_a_partition_lives_in_its_parents() -> None:
    children = [
        spec("a"),
        spec("b", partition_key="t2"),
        {"id": "c", "type": "email"},
        {"id": "d", "type": "email", "partition_key": None},
        {"id": "e", "type": "email", "partition_key": "t3"},
    ]
    found = asked(children, partition_key="t1").children
    assert [child.partition_key for child in found] == ["t1", "t2", "t1", "t1", "t3"]
    assert asked(children).children[0].partition_key is None


def test_a_thousand_children_are_allowed_and_keep_their_order() -> None:
    names = [f"c{number}" for number in range(CHILDREN_MAX)]
    assert [child.id for child in asked([spec(name) for name in names]).children] == names


def test_the_answer_is_the_parents_record_or_its_refusal() -> None:
    read = BUILDERS.flow_spawn_children("p1", [spec()], **TARGETS).read
    record = a_record("p1", state="waiting_children")
    assert read(Done([record])) == record
    with pytest.raises(sf.ChildGroupConflict, match="other children"):
        read(Done([Refused("child_group_conflict", "the group has other children")]))


# Refused: children


@pytest.mark.parametrize("children", [[], (), iter(()), {}.values()])
def test_no_children_are_no_group(children: Any) -> None:
    refused("children", "children has 0 entries", "1 to 1000 are allowed", children=children)


def test_more_than_a_thousand_children_are_too_many() -> None:
    children = (spec(f"c{number}") for number in range(CHILDREN_MAX + 1))
    refused("children", "1001 entries", "1 to 1000", children=children)


@pytest.mark.parametrize("children", [7, "c1", b"c1", {"id": "c1", "type": "t"}, spec()])
def test_children_are_a_list(children: Any) -> None:
    refused("children", "a list of ChildSpecs or dicts; got", children=children)


@pytest.mark.parametrize("child", [None, "c1", 7, [("id", "c1")], a_record("c1")])
def test_each_child_is_a_specification_or_a_dict(child: Any) -> None:
    refused("children", "children[1] is a ChildSpec or a dict; got", children=[spec(), child])


def test_two_children_of_one_identity_are_refused() -> None:
    refused("children", "'c1'", "twice", children=[spec(), spec("c2"), spec()])
    twice = [spec(), spec(partition_key="t1")]
    assert len(asked(twice).children) == 2
    refused("children", "'c1' in partition 't1' twice", children=twice, partition_key="t1")


def test_a_parent_is_not_its_own_child() -> None:
    refused("children", "'p1'", "their parent", children=[spec(), spec("p1")])
    refused("children", "their parent", children=[spec("p1")], partition_key="t1")
    refused(
        "children", "their parent", children=[spec("p1", partition_key="t1")], partition_key="t1"
    )
    assert asked([spec("p1", partition_key="t2")], partition_key="t1").children[0].id == "p1"
    assert asked([spec("p1", partition_key="t1")]).children[0].id == "p1"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("idempotent", "unexpected field 'idempotent'"),
        ("parent_flow_id", "unexpected field 'parent_flow_id'"),
        ("root_flow_id", "unexpected field 'root_flow_id'"),
        ("now_ms", "unexpected field 'now_ms'"),
        ("paylod", "unexpected field 'paylod'; did you mean 'payload'"),
        (7, "unexpected field 7"),
    ],
)
def test_an_unknown_field_of_a_child_is_a_type_error(field: Any, words: str) -> None:
    with pytest.raises(TypeError, match=rf"children\[1\] got the {words}"):
        asked([spec(), {"id": "c2", "type": "email", field: 1}])
    more: Any = {field: 1}
    with pytest.raises(TypeError):
        spec(**more)


@pytest.mark.parametrize("field", ["id", "type"])
def test_a_missing_field_of_a_child_is_a_type_error(field: str) -> None:
    fields = {"id": "c1", "type": "email"}
    del fields[field]
    with pytest.raises(TypeError, match=rf"children\[0\] needs the field '{field}'"):
        asked([fields])
    with pytest.raises(TypeError, match=field):
        sf.ChildSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("id", ""),
        ("id", None),
        ("id", "x" * 513),
        ("type", "\ud800"),
        ("state", "running"),
        ("state", "completed"),
        ("state", None),
        ("partition_key", ""),
        ("partition_key", 7),
        ("priority", 3),
        ("priority", None),
        ("run_at_ms", -1),
        ("run_at_ms", datetime(2024, 1, 1)),
        ("correlation_id", ""),
        ("attributes", {"a": []}),
        ("attributes", [1]),
        ("values", [1]),
        ("values", {"": 1}),
        ("payload", object()),
        ("payload", "x" * 1_001),
        ("max_active_ms", 0),
        ("retention_ttl_ms", -1),
        ("history_max_events", 0),
    ],
)
def test_a_bad_field_of_a_child_is_refused_by_its_place(field: str, bad: Any) -> None:
    for child in (spec(**{field: bad}), {"id": "c2", "type": "email", field: bad}):
        refused(field, f"children[1]: {field}", children=[spec("c0"), child])


# Refused: the rest


@pytest.mark.parametrize("argument", sorted(WORDS))
def test_a_word_that_nobody_knows_is_refused_with_those_that_are(argument: str) -> None:
    for word in ("every", "", "ALL", None, True, 7, ["all"]):
        allowed = ", ".join(map(repr, WORDS[argument]))
        refused(argument, f"{argument} is one of {allowed}; got {word!r}", **{argument: word})


@pytest.mark.parametrize("wait", ["all", "any"])
@pytest.mark.parametrize("argument", ["wait_state", "success", "failure"])
def test_who_waits_has_to_wait_somewhere_and_go_somewhere(wait: str, argument: str) -> None:
    refused(argument, argument, wait=wait, **{argument: None})


@pytest.mark.parametrize("wait", ["all", "any"])
def test_a_parent_waits_in_an_open_state(wait: str) -> None:
    for state in ("running", "completed", "failed", "cancelled"):
        refused("wait_state", repr(state), "reserved", wait=wait, wait_state=state)
    for bad in ("", "x" * 513, 7, b"x"):
        refused("wait_state", "1 to 512", wait=wait, wait_state=bad)


@pytest.mark.parametrize("wait", ["all", "any"])
@pytest.mark.parametrize("argument", ["success", "failure"])
def test_a_parent_goes_to_any_state_but_running(wait: str, argument: str) -> None:
    for state in ("next", "completed", "failed", "cancelled"):
        assert getattr(asked(wait=wait, **{argument: state}).spawn, argument) == state
    refused(argument, "'running' is reserved", "completed", wait=wait, **{argument: "running"})
    for bad in ("", "x" * 513, 7, b"x"):
        refused(argument, "1 to 512", wait=wait, **{argument: bad})


def test_who_does_not_wait_need_not_go_anywhere() -> None:
    for state in ("waiting_children", "running", None, 7):
        spawn = asked(wait="none", wait_state=state, success=None, failure=None).spawn
        assert (spawn.wait_state, spawn.success, spawn.failure) == (None, None, None)
    spawn = asked(wait="none", success="next", failure=None).spawn
    assert (spawn.wait_state, spawn.success, spawn.failure) == (None, "next", None)


def test_a_lease_token_comes_with_its_fencing_token() -> None:
    refused("fencing_token", "lease_token", lease_token="t")
    assert asked(fencing_token=0).spawn.fencing_token == 0


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("group_id", ""),
        ("group_id", None),
        ("group_id", "x" * 513),
        ("partition_key", ""),
        ("from_state", ""),
        ("from_state", 7),
        ("lease_token", ""),
        ("fencing_token", -1),
        ("fencing_token", True),
        ("fencing_token", "1"),
        ("now_ms", -1),
        ("now_ms", "now"),
        ("now_ms", datetime(2024, 1, 1)),
    ],
)
def test_an_argument_out_of_bounds_is_refused(argument: str, bad: Any) -> None:
    refused(argument, argument, **{"fencing_token": 1, argument: bad})


@pytest.mark.parametrize("bad", ["", None, 7, "x" * 513, "\ud800"])
def test_a_parents_id_out_of_bounds_is_refused(bad: Any) -> None:
    with pytest.raises(sf.InvalidArgument, match="parent_id"):
        BUILDERS.flow_spawn_children(bad, [spec()], **TARGETS)


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="on_all_ok"):
        asked(on_all_ok="done")
