"""Children of a workflow: what `child` describes, and the one command that a fan-out becomes."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import shardflow as sf
from shardflow.sdk.job import Job
from support.recording import RecordingStore, a_leased_record, a_record


class BillingFlow(sf.Workflow, type="billing", partition_by=("tenant_id", "invoice_id")):
    created = sf.state(on_ok="charged")
    charged = sf.state()
    children_done = sf.state()
    reviewed = sf.state(name="under_review")
    failed = sf.state()


class EmailFlow(sf.Workflow, type="email"):
    queued = sf.state()
    sent = sf.state()


DONE: dict[str, Any] = {"on_all_ok": "children_done", "on_any_error": "failed"}
LEASE = {"partition_key": "t1:i9", "lease_token": "token-7", "fencing_token": 7}
CHILD = EmailFlow.child(id="e1")

Call = Callable[[Any, Job], Any]


def given(call: Call, workflow: type[sf.Workflow] = BillingFlow, **leased: Any) -> tuple[Any, ...]:
    """Return the one command that a call gives, checking that its awaitable twin gives the same."""
    store: Any = RecordingStore()
    bound = workflow.using(store)
    answer = call(bound, Job(bound, a_leased_record(**leased)))
    assert answer == a_record()
    twin: Any = RecordingStore()
    bound = workflow.using(twin)
    assert asyncio.run(call(bound.aio, Job(bound, a_leased_record(**leased)))) == answer
    assert twin.calls == store.calls
    command: tuple[Any, ...] = store.only_call
    return command


def sent(children: Any = (CHILD,), **options: Any) -> dict[str, Any]:
    """Return the arguments that a fan-out of a job sends."""
    command, _, arguments = given(lambda w, job: w.fanout(job, children, **options))
    assert command == "flow_spawn_children"
    return dict(arguments)


def refused(kind: type[Exception], words: str, children: Any = (CHILD,), **options: Any) -> None:
    """Check that a fan-out is refused before the store is asked, by its awaitable twin too."""
    store: Any = RecordingStore()
    bound = BillingFlow.using(store)
    job = Job(bound, a_leased_record())
    with pytest.raises(kind, match=words):
        bound.fanout(job, children, **options)
    with pytest.raises(kind, match=words):
        asyncio.run(bound.aio.fanout(job, children, **options))
    assert store.calls == []


# child


def test_a_child_is_a_specification_and_asks_no_store() -> None:
    attrs: dict[str, Any] = {"id": "c1", "tenant_id": "t", "invoice_id": "i", "payload": 1}
    expected = sf.ChildSpec(
        id="c1", type="billing", state="created", partition_key="t:i", payload=1
    )
    assert BillingFlow.child(**attrs) == expected
    assert asyncio.run(BillingFlow.aio.child(**attrs)) == expected
    assert EmailFlow.child(id="e1") == sf.ChildSpec(id="e1", type="email", state="queued")


def test_a_child_takes_every_field_of_a_new_flow() -> None:
    child = EmailFlow.child(
        id="e1",
        state=EmailFlow.sent,
        payload=None,
        partition_key="p",
        priority=2,
        run_at_ms=datetime(1970, 1, 2, tzinfo=UTC),
        correlation_id="o9",
        attributes={"a": 1},
        values={"v": 1},
        max_active_ms=timedelta(seconds=1),
        retention_ttl_ms=2_000,
        history_max_events=3,
    )
    assert child == sf.ChildSpec(
        id="e1",
        type="email",
        state="sent",
        payload=None,
        partition_key="p",
        priority=2,
        run_at_ms=86_400_000,
        correlation_id="o9",
        attributes={"a": 1},
        values={"v": 1},
        max_active_ms=1_000,
        retention_ttl_ms=2_000,
        history_max_events=3,
    )


@pytest.mark.parametrize(
    ("attrs", "kind", "words"),
    [
        ({"id": "x", "now_ms": 1}, TypeError, "unexpected attribute 'now_ms'"),
        ({"id": "x", "idempotent": True}, TypeError, "unexpected attribute 'idempotent'"),
        ({"id": "x", "parent_flow_id": "p"}, TypeError, "'parent_flow_id'"),
        ({"id": "x", "root_flow_id": "p"}, TypeError, "'root_flow_id'"),
        ({"id": "x", "type": "y"}, TypeError, "unexpected attribute 'type'"),
        ({"id": "x", "paylod": 1}, TypeError, r"BillingFlow.child\(\).*did you mean 'payload'"),
        ({"tenant_id": "t", "invoice_id": "i"}, TypeError, "needs the attribute 'id'"),
        ({"id": "x", "tenant_id": "t"}, sf.InvalidArgument, "invoice_id is missing"),
        ({"id": "x", "partition_key": "t", "state": "chargd"}, sf.InvalidArgument, "'charged'"),
    ],
)
def test_child_refuses_wrong_attributes(
    attrs: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        BillingFlow.child(**attrs)
    with pytest.raises(kind, match=words):
        asyncio.run(BillingFlow.aio.child(**attrs))


def test_a_specification_is_frozen_and_can_be_shown_compared_and_pickled() -> None:
    child: Any = sf.ChildSpec(id="e1", type="email", attributes={"a": 1})
    with pytest.raises(AttributeError):
        child.id = "e2"
    with pytest.raises(TypeError):
        sf.ChildSpec("e1", "email")  # type: ignore[call-arg]
    assert repr(child) == "ChildSpec(id='e1', type='email', attributes={'a': 1})"
    assert pickle.loads(pickle.dumps(child)) == child != sf.ChildSpec(id="e1", type="email")


# fanout


@pytest.mark.parametrize("name", ["fanout", "spawn_children"])
def test_fanout_carries_the_guards_of_the_job(name: str) -> None:
    audit = {"id": "a1", "type": "audit"}
    call: Call = lambda w, job: getattr(w, name)(  # noqa: E731
        job,
        iter([CHILD, audit]),
        group_id="notify",
        on_all_ok="children_done",
        on_any_error=BillingFlow.reviewed,
        on_parent_closed="abandon_children",
        now_ms=datetime(1970, 1, 2, tzinfo=UTC),
    )
    assert given(call) == (
        "flow_spawn_children",
        ("f1", [CHILD, audit]),
        {
            "group_id": "notify",
            "wait": "all",
            "wait_state": "waiting_children",
            "success": "children_done",
            "failure": "under_review",
            "on_parent_closed": "abandon_children",
            "from_state": "created",
            "now_ms": 86_400_000,
            **LEASE,
        },
    )


def test_a_flow_that_is_not_leased_is_named_by_its_record_or_its_id() -> None:
    def arguments(flow: Any, **where: Any) -> dict[str, Any]:
        _, (flow_id, _), found = given(lambda w, job: w.fanout(flow, [CHILD], **DONE, **where))
        assert flow_id == "f1"
        for name in ("group_id", "wait", "wait_state", "success", "failure"):
            del found[name]
        return dict(found)

    record = a_record(partition_key="t1:i9", fencing_token=3)
    guards = {"partition_key": "t1:i9", "fencing_token": 3, "from_state": "created"}
    assert arguments(record) == guards
    assert arguments(a_leased_record()) == {**LEASE, "from_state": "created"}
    assert arguments("f1", tenant_id="t1", invoice_id="i9") == {"partition_key": "t1:i9"}
    assert arguments("f1", partition_key="x", fencing_token=2) == {
        "partition_key": "x",
        "fencing_token": 2,
    }


def test_options_of_the_caller_win_over_the_job() -> None:
    arguments = sent(**DONE, from_state=BillingFlow.charged, fencing_token=9, partition_key="x")
    assert (arguments["from_state"], arguments["fencing_token"]) == ("charged", 9)
    assert arguments["partition_key"] == "x"


def test_children_given_as_dicts_have_their_states_and_times_written_out() -> None:
    child = {
        "id": "e1",
        "type": "email",
        "state": EmailFlow.sent,
        "max_active_ms": timedelta(seconds=1),
    }
    _, (_, children), _ = given(lambda w, job: w.fanout(job, (child,), **DONE))
    assert children == [{"id": "e1", "type": "email", "state": "sent", "max_active_ms": 1_000}]
    assert child["state"] is EmailFlow.sent


@pytest.mark.parametrize("children", [None, 7, "e1", b"e1", {"id": "e1", "type": "email"}, CHILD])
def test_what_is_no_list_is_left_for_the_store_to_refuse(children: Any) -> None:
    assert given(lambda w, job: w.fanout(job, children, **DONE))[1] == ("f1", children)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("success", "success"),
        ("on_success", "success"),
        ("on_all_ok", "success"),
        ("failure", "failure"),
        ("on_failure", "failure"),
        ("on_any_error", "failure"),
        ("on_child_failed", "on_child_failed"),
        ("child_failure_policy", "on_child_failed"),
        ("wait_state", "wait_state"),
        ("on_parent_closed", "on_parent_closed"),
    ],
)
def test_every_alias_is_sent_under_the_name_of_the_store(option: str, name: str) -> None:
    arguments = sent(**{option: "charged"})
    assert arguments[name] == "charged"
    assert option == name or option not in arguments


@pytest.mark.parametrize(
    "names",
    [
        ("success", "on_success"),
        ("success", "on_all_ok"),
        ("on_success", "on_all_ok"),
        ("failure", "on_failure"),
        ("failure", "on_any_error"),
        ("on_failure", "on_any_error"),
        ("on_child_failed", "child_failure_policy"),
    ],
)
def test_two_names_of_one_option_are_refused(names: tuple[str, str]) -> None:
    words = f"{names[1]} and {names[0]} are names of one option"
    refused(TypeError, words, **dict.fromkeys(names, "nowhere"))
    refused(TypeError, words, **{names[0]: None, names[1]: "charged"})


@pytest.mark.parametrize("option", ["success", "on_all_ok", "failure", "on_any_error"])
def test_a_target_is_a_declared_state_or_an_end(option: str) -> None:
    name = "success" if option in ("success", "on_all_ok") else "failure"
    for state in ("charged", "under_review", "completed", "failed", "cancelled"):
        assert sent(**{option: state})[name] == state
    assert sent(**{option: BillingFlow.reviewed})[name] == "under_review"
    refused(sf.InvalidArgument, f"{option}='chargd'.*did you mean 'charged'", **{option: "chargd"})
    for other in ("running", "waiting_children", "reviewed", EmailFlow.queued, 7):
        refused(sf.InvalidArgument, "BillingFlow.*is not a declared state", **{option: other})


def test_the_flow_waits_in_waiting_children_or_in_a_declared_state() -> None:
    for state in ("waiting_children", "charged", BillingFlow.charged):
        name = "charged" if isinstance(state, sf.State) else state
        assert sent(wait_state=state, **DONE)["wait_state"] == name
    refused(sf.InvalidArgument, "wait_state='nowhere' is not a declared", wait_state="nowhere")
    refused(sf.InvalidArgument, "wait_state='running' is not a declared", wait_state="running")
    refused(sf.InvalidArgument, "wait_state='failed' is an end", wait_state="failed")


def test_a_group_that_nobody_waits_for_has_no_states() -> None:
    assert sent(wait="none") == {
        "group_id": "fanout",
        "wait": "none",
        "from_state": "created",
        **LEASE,
    }
    assert sent(wait="none", on_all_ok="charged")["success"] == "charged"
    refused(
        sf.InvalidArgument, "success='nowhere' is not a declared", wait="none", success="nowhere"
    )


@pytest.mark.parametrize("function", ["fanout", "spawn_children"])
def test_a_job_of_another_workflow_is_refused(function: str) -> None:
    store: Any = RecordingStore()
    bound = BillingFlow.using(store)
    job = Job(bound, a_leased_record(type="email"))
    for flow in (job, job.record):
        with pytest.raises(sf.InvalidArgument, match="BillingFlow settles flows of type 'billing'"):
            getattr(bound, function)(flow, [CHILD], **DONE)
        with pytest.raises(sf.InvalidArgument, match="'email'"):
            asyncio.run(getattr(bound.aio, function)(flow, [CHILD], **DONE))
    assert store.calls == []


def test_any_object_with_the_command_is_a_store_to_fan_out_in() -> None:
    class Small:
        def flow_spawn_children(self, parent_id: str, children: Any, **options: Any) -> Any:
            return a_record(parent_id, state=options["wait_state"])

    small: Any = Small()
    record = BillingFlow.using(small).fanout("f1", [CHILD], **DONE)
    assert (record.id, record.state) == ("f1", "waiting_children")


def test_a_handler_that_has_fanned_out_gives_no_second_command() -> None:
    def charge(job: sf.Job) -> Any:
        job.workflow.fanout(job, [CHILD], **DONE)
        return sf.NOREPLY

    store: Any = RecordingStore(flow_claim_due=[a_leased_record()])
    assert BillingFlow.using(store).run_once(worker="w1", handler=charge) == [None]
    assert store.commands == ["flow_claim_due", "flow_spawn_children"]


# Reading them


def test_children_are_looked_for_in_every_partition_and_the_waiting_ones_in_the_store() -> None:
    for flow, of in ((None, {"parent_partition_key": "t1:i9"}), ("f1", {})):
        read = given(lambda w, job, flow=flow: w.children(flow or job, count=5))  # type: ignore[misc]
        assert read == ("flow_by_parent", ("f1",), {"count": 5, **of})
        read = given(lambda w, job, flow=flow: w.waiting_children(flow or job, count=5))  # type: ignore[misc]
        assert read == ("flow_by_parent", ("f1",), {"count": 5, "terminal": False, **of})
