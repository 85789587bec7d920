"""Which command of the store each function of a workflow gives, and with which arguments."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardflow.flow.errors import InvalidArgument
from shardflow.flow.policy import Backoff, Retry
from shardflow.sdk.dsl import complete, fail, retry_or, state
from shardflow.sdk.job import Job
from shardflow.sdk.workflow import Aio, Workflow
from support.recording import RecordingStore, a_leased_record, a_record

RETRY = Retry(max_retries=8, backoff=Backoff.exponential(base_ms=1_000, max_ms=3_600_000))
OVER = Retry(max_retries=8, backoff=RETRY.backoff, exhausted_to="failed")
GUARDS = {"partition_key": "t1:i9", "fencing_token": 7}
LEASE = {"lease_token": "token-7", **GUARDS}


class BillingFlow(
    Workflow, type="billing", partition_by=("tenant_id", "invoice_id"), initial_state="created"
):
    created = state(
        lease_ms=60_000,
        claim_payload=64_000,
        retry=RETRY,
        on_ok="charged",
        on_error=retry_or("failed"),
    )
    charged = state(lease_ms=30_000, claim_payload=False, on_ok=complete(), on_error=fail())
    reviewed = state(mode="fifo", on_ok="failed", on_error="charged")
    dropped = state(on_ok="cancelled", on_error="cancelled")
    plain = state()


class EmailFlow(Workflow, type="email"):
    queued = state()


Call = Callable[[Any, Job], Any]


def given(call: Call, workflow: type[Workflow] = BillingFlow, **leased: Any) -> tuple[Any, ...]:
    """Return the one command that a call gives, checking that its awaitable twin gives the same."""
    store: Any = RecordingStore()
    bound = workflow.using(store)
    call(bound, Job(bound, a_leased_record(**leased)))
    twin: Any = RecordingStore()
    bound = workflow.using(twin)
    asyncio.run(call(bound.aio, Job(bound, a_leased_record(**leased))))
    assert twin.calls == store.calls
    command: tuple[Any, ...] = store.only_call
    return command


def refused(call: Call, kind: type[Exception], words: str, **leased: Any) -> None:
    """Check that a call is refused before the store is asked, by its awaitable twin too."""
    store: Any = RecordingStore()
    bound = BillingFlow.using(store)
    job = Job(bound, a_leased_record(**leased))
    with pytest.raises(kind, match=words):
        call(bound, job)
    with pytest.raises(kind, match=words):
        asyncio.run(call(bound.aio, job))
    assert store.calls == []


# Creating


def test_create_fills_in_type_state_and_partition() -> None:
    call: Call = lambda w, job: w.create(  # noqa: E731
        id="i9", tenant_id="t1", invoice_id="i9", payload={"amount": 4200}, correlation_id="o9"
    )
    assert given(call) == (
        "flow_create",
        ("i9",),
        {
            "type": "billing",
            "state": "created",
            "partition_key": "t1:i9",
            "payload": {"amount": 4200},
            "correlation_id": "o9",
        },
    )


def test_create_takes_durations_and_instants() -> None:
    _, _, arguments = given(
        lambda w, job: w.create(
            id="e1",
            state=EmailFlow.queued,
            run_at_ms=datetime(1970, 1, 2, tzinfo=UTC),
            max_active_ms=timedelta(hours=1),
        ),
        EmailFlow,
    )
    assert arguments == {
        "type": "email",
        "state": "queued",
        "run_at_ms": 86_400_000,
        "max_active_ms": 3_600_000,
    }


def test_a_partition_key_may_stand_for_its_parts() -> None:
    _, _, arguments = given(lambda w, job: w.create(id="i9", partition_key=job.partition_key))
    assert arguments["partition_key"] == "t1:i9"


def test_a_part_of_the_partition_may_be_a_creation_argument_too() -> None:
    class Tree(Workflow, type="tree", partition_by=("id",)):
        created = state()

    assert given(lambda w, job: w.create(id="a:b"), Tree)[1:] == (
        ("a:b",),
        {"type": "tree", "state": "created", "partition_key": r"a\:b"},
    )
    assert given(lambda w, job: w.get("a:b"), Tree)[2] == {"partition_key": r"a\:b"}


@pytest.mark.parametrize(
    ("attrs", "kind", "words"),
    [
        (
            {"id": "x", "tenat_id": 1},
            TypeError,
            r"BillingFlow.create\(\).*did you mean 'tenant_id'",
        ),
        ({"id": "x", "type": "y"}, TypeError, "unexpected attribute 'type'"),
        ({"tenant_id": "t", "invoice_id": "i"}, TypeError, "needs the attribute 'id'"),
        ({"id": "x", "tenant_id": "t"}, InvalidArgument, "invoice_id is missing"),
        ({"id": "x", "tenant_id": "t", "partition_key": "t"}, TypeError, "both name the partition"),
        (
            {"id": "x", "partition_key": "t", "state": "chargd"},
            InvalidArgument,
            "state='chargd' is not a declared state; did you mean 'charged'",
        ),
        ({"id": "x", "partition_key": "t", "state": "failed"}, InvalidArgument, "is an end"),
        (
            {"id": "x", "partition_key": "t", "run_at_ms": datetime(2024, 1, 1)},
            ValueError,
            "run_at_ms is a naive datetime",
        ),
    ],
)
def test_create_refuses_wrong_attributes(
    attrs: dict[str, Any], kind: type[Exception], words: str
) -> None:
    refused(lambda w, job: w.create(**attrs), kind, words)


def test_create_many_gives_each_its_partition_and_all_the_type() -> None:
    command, (items,), options = given(
        lambda w, job: w.create_many(
            [
                {"id": "1", "tenant_id": "t1", "invoice_id": "1", "payload": 1},
                {"id": "2", "invoice_id": "2", "state": "charged", "priority": 2},
            ],
            independent=True,
            tenant_id="t0",
            priority=1,
        )
    )
    assert command == "flow_create_many"
    assert items == [
        {"id": "1", "partition_key": "t1:1", "payload": 1, "priority": 1},
        {"id": "2", "partition_key": "t0:2", "state": "charged", "priority": 2},
    ]
    assert options == {"type": "billing", "state": "created", "independent": True}


def test_create_many_refuses_an_unknown_attribute_of_any_item() -> None:
    refused(
        lambda w, job: w.create_many([{"id": "1", "partition_key": "x"}, {"id": "2", "nme": 1}]),
        TypeError,
        r"create_many\(\) got the unexpected attribute 'nme'",
    )


# Claiming


@pytest.mark.parametrize(
    ("states", "declared"),
    [
        ("created", {"lease_ms": 60_000, "payload": True, "payload_max_bytes": 64_000}),
        ("charged", {"lease_ms": 30_000, "payload": False}),
        ("plain", {}),
        (["plain", "reviewed"], {}),
        (["charged", "plain"], {"lease_ms": 30_000, "payload": True}),
        (
            ["charged", "created"],
            {"lease_ms": 60_000, "payload": True, "payload_max_bytes": 64_000},
        ),
        ("any", {"lease_ms": 60_000, "payload": True, "payload_max_bytes": 65_536}),
        ("undeclared", {}),
    ],
)
def test_a_claim_asks_as_its_states_declare(states: Any, declared: dict[str, Any]) -> None:
    expected = {"state": states, "worker": "w1", **declared}
    assert given(lambda w, job: w.claim_due(states, worker="w1")) == (
        "flow_claim_due",
        ("billing",),
        expected,
    )
    assert given(lambda w, job: w.reclaim_once(states, worker="w1")) == (
        "flow_reclaim",
        ("billing",),
        {"lease_ms": 30_000, **expected},
    )


def test_a_claim_takes_any_state_by_default_and_declarations_as_names() -> None:
    assert given(lambda w, job: w.claim_due(worker="w1"))[2]["state"] == "any"
    claim = given(lambda w, job: w.claim_due([BillingFlow.created, "plain"], worker="w1"))
    assert claim[2]["state"] == ["created", "plain"]
    assert given(lambda w, job: w.claim_due(BillingFlow.plain, worker="w"))[2]["state"] == "plain"


def test_options_of_the_caller_win_over_declarations() -> None:
    _, _, arguments = given(
        lambda w, job: w.claim_due(
            "created",
            worker="w1",
            limit=100,
            lease_ms=timedelta(seconds=5),
            payload=False,
            block_ms=timedelta(seconds=1),
            tenant_id="t1",
            invoice_id=9,
        )
    )
    assert arguments == {
        "state": "created",
        "worker": "w1",
        "limit": 100,
        "lease_ms": 5_000,
        "payload": False,
        "payload_max_bytes": 64_000,
        "block_ms": 1_000,
        "partition_key": "t1:9",
    }


def test_claimed_records_come_as_jobs_of_the_workflow() -> None:
    store: Any = RecordingStore(flow_claim_due=[a_leased_record("f1"), a_leased_record("f2")])
    bound = BillingFlow.using(store)
    jobs = bound.claim_due(worker="w1")
    assert [(job.id, job.state, job.workflow) for job in jobs] == [
        ("f1", "created", bound),
        ("f2", "created", bound),
    ]


# Settling


@pytest.mark.parametrize(
    ("state_name", "command", "more", "arguments"),
    [
        ("created", "flow_transition", ("created", "charged"), {"payload": "r", **LEASE}),
        ("charged", "flow_complete", ("token-7",), {"result": "r", **GUARDS}),
        ("reviewed", "flow_fail", ("token-7",), {"error": "r", **GUARDS}),
        ("dropped", "flow_cancel", (), {"reason": "r", **LEASE}),
        ("plain", "flow_complete", ("token-7",), {"result": "r", **GUARDS}),
        ("undeclared", "flow_complete", ("token-7",), {"result": "r", **GUARDS}),
    ],
)
def test_ok_does_what_the_logical_state_declares(
    state_name: str, command: str, more: tuple[str, ...], arguments: dict[str, Any]
) -> None:
    expected = (command, ("f1", *more), arguments)
    assert given(lambda w, job: w.ok(job, "r"), state=state_name) == expected
    # A record of the store does as well as a job.
    assert given(lambda w, job: w.ok(job.record, "r"), state=state_name) == expected


@pytest.mark.parametrize(
    ("state_name", "command", "arguments"),
    [
        ("created", "flow_retry", {"retry": OVER}),
        ("charged", "flow_fail", {}),
        ("reviewed", "flow_retry", {"retry": Retry(0, exhausted_to="charged")}),
        ("dropped", "flow_retry", {"retry": Retry(0, exhausted_to="cancelled")}),
        ("plain", "flow_retry", {}),
        ("undeclared", "flow_retry", {}),
    ],
)
def test_error_does_what_the_logical_state_declares(
    state_name: str, command: str, arguments: dict[str, Any]
) -> None:
    expected = (command, ("f1", "token-7"), {"error": "why", **GUARDS, **arguments})
    assert given(lambda w, job: w.error(job, "why"), state=state_name) == expected


def test_no_value_is_sent_for_none() -> None:
    assert given(lambda w, job: w.ok(job))[2] == LEASE
    assert given(lambda w, job: w.complete(job))[2] == GUARDS
    assert given(lambda w, job: w.fail(job, None))[2] == GUARDS
    assert given(lambda w, job: w.complete(job, 0))[2] == {"result": 0, **GUARDS}


def test_the_explicit_commands_ignore_what_the_state_declares() -> None:
    assert given(lambda w, job: w.complete(job, 1, attributes={"a": 1})) == (
        "flow_complete",
        ("f1", "token-7"),
        {"result": 1, "attributes": {"a": 1}, **GUARDS},
    )
    assert given(lambda w, job: w.fail(job, 1))[0] == "flow_fail"
    assert given(lambda w, job: w.transition(job, "plain", 1, priority=2)) == (
        "flow_transition",
        ("f1", "created", "plain"),
        {"payload": 1, "priority": 2, **LEASE},
    )
    assert given(lambda w, job: w.transition(job, BillingFlow.plain))[1][2] == "plain"
    assert given(lambda w, job: w.retry(job, "x"), state="charged") == (
        "flow_retry",
        ("f1", "token-7"),
        {"error": "x", **GUARDS},
    )


def test_an_exception_as_a_reason_is_told_by_class_and_message() -> None:
    _, _, arguments = given(lambda w, job: w.fail(job, ValueError("no funds")))
    assert arguments["error"] == {"exception": "ValueError", "message": "no funds"}


def test_retry_merges_field_by_field_and_a_wait_is_exact() -> None:
    _, _, arguments = given(
        lambda w, job: w.retry(
            job, retry={"max_retries": 2, "backoff": {"max_ms": 7}}, in_ms=timedelta(seconds=5)
        )
    )
    assert arguments["retry"] == Retry(
        max_retries=2,
        backoff=Backoff("fixed", base_ms=5_000, max_ms=5_000, jitter_pct=0),
        exhausted_to="failed",
    )
    merged = given(lambda w, job: w.retry(job, retry=Retry(backoff=Backoff(jitter_pct=1))))
    assert merged[2]["retry"].as_dict() == {
        **OVER.as_dict(),
        "backoff": {**OVER.backoff.as_dict(), "jitter_pct": 1},
    }


def test_a_lease_is_extended_as_the_state_declares_or_as_asked() -> None:
    assert given(lambda w, job: w.extend_lease(job)) == (
        "flow_extend_lease",
        ("f1", "token-7"),
        {"lease_ms": 60_000, **GUARDS},
    )
    assert given(lambda w, job: w.extend_lease(job), state="plain")[2] == GUARDS
    extended = given(lambda w, job: w.extend_lease(job, lease_ms=timedelta(minutes=1)))
    assert extended[2]["lease_ms"] == 60_000


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda w, job: w.transition(job, "chargd"), InvalidArgument, "did you mean 'charged'"),
        (lambda w, job: w.transition(job, "completed"), InvalidArgument, r"complete\(\)"),
        (lambda w, job: w.retry(job, in_ms=1, run_at_ms=1), TypeError, "in_ms and run_at_ms"),
        (lambda w, job: w.retry(job, in_ms=31 * 86_400_000), InvalidArgument, "30 days"),
        (lambda w, job: w.retry(job, in_ms=-1), InvalidArgument, "in_ms"),
        (lambda w, job: w.extend_lease(job, -1), InvalidArgument, "lease_ms"),
    ],
)
def test_a_command_that_cannot_be_is_refused_first(
    call: Call, kind: type[Exception], words: str
) -> None:
    refused(call, kind, words)


@pytest.mark.parametrize(
    "function", ["ok", "error", "transition", "complete", "retry", "fail", "extend_lease"]
)
def test_a_job_of_another_workflow_is_refused(function: str) -> None:
    arguments = ("charged",) if function == "transition" else ()
    call: Call = lambda w, job: getattr(w, function)(job, *arguments)  # noqa: E731
    refused(call, InvalidArgument, "BillingFlow settles flows of type 'billing'", type="email")


# By id


@pytest.mark.parametrize(
    ("function", "extra", "sent"),
    [
        ("get", {"payload": True}, {"payload": True}),
        ("history", {"from_ms": datetime(1970, 1, 2, tzinfo=UTC)}, {"from_ms": 86_400_000}),
        ("cancel", {"reason": "x"}, {"reason": "x"}),
        (
            "signal",
            {"signal": "paid", "if_state": [BillingFlow.created], "transition_to": "charged"},
            {"signal": "paid", "if_state": ["created"], "transition_to": "charged"},
        ),
        ("rewind", {"to_event": "e1"}, {"to_event": "e1"}),
    ],
)
def test_a_flow_is_named_by_id_and_partition_or_its_parts(
    function: str, extra: dict[str, Any], sent: dict[str, Any]
) -> None:
    def called(**where: Any) -> tuple[Any, ...]:
        return given(lambda w, job: getattr(w, function)("f1", **extra, **where))

    command = f"flow_{function}"
    assert called() == (command, ("f1",), sent)
    named = {**sent, "partition_key": "t1:9"}
    assert called(partition_key="t1:9") == (command, ("f1",), named)
    assert called(tenant_id="t1", invoice_id=9) == (command, ("f1",), named)


@pytest.mark.parametrize("function", ["get", "history", "cancel"])
def test_a_partition_that_is_named_by_halves_or_twice_is_refused(function: str) -> None:
    refused(
        lambda w, job: getattr(w, function)("f1", tenant_id="t1"),
        InvalidArgument,
        "invoice_id is missing",
    )
    refused(
        lambda w, job: getattr(w, function)("f1", tenant_id="t1", partition_key="x"),
        TypeError,
        "both name the partition",
    )


def test_a_job_names_its_flow_and_proves_its_lease() -> None:
    assert given(lambda w, job: w.get(job)) == ("flow_get", ("f1",), {"partition_key": "t1:i9"})
    assert given(lambda w, job: w.cancel(job)) == ("flow_cancel", ("f1",), LEASE)
    assert given(lambda w, job: w.cancel(job.record)) == (
        "flow_cancel",
        ("f1",),
        {"partition_key": "t1:i9"},
    )


def test_reads_of_the_type_and_of_lineage() -> None:
    assert given(lambda w, job: w.list("created", count=5)) == (
        "flow_list",
        ("billing",),
        {"state": "created", "count": 5},
    )
    assert given(lambda w, job: w.list())[2] == {"state": "any"}
    assert given(lambda w, job: w.info()) == ("flow_info", ("billing",), {})
    assert given(lambda w, job: w.stuck(older_than_ms=timedelta(seconds=1))) == (
        "flow_stuck",
        ("billing",),
        {"older_than_ms": 1_000},
    )
    for name in ("by_parent", "by_root", "by_correlation"):
        read = given(lambda w, job, name=name: getattr(w, name)("x", count=1))  # type: ignore[misc]
        assert read == (f"flow_{name}", ("x",), {"count": 1})


def test_install_policy_stores_retries_and_lanes() -> None:
    assert given(lambda w, job: w.install_policy()) == (
        "flow_policy_set",
        ("billing",),
        {
            "replace": True,
            "states": {
                "created": {"retry": {**RETRY.as_dict(), "exhausted_to": "failed"}},
                "reviewed": {"mode": "fifo"},
            },
        },
    )
    merged = given(lambda w, job: w.install_policy(replace=False, expected_generation=3))
    assert (merged[2]["replace"], merged[2]["expected_generation"]) == (False, 3)


# The store, and the twins


def test_using_binds_the_same_workflow_to_another_store() -> None:
    one: Any = RecordingStore()
    two: Any = RecordingStore()
    bound = BillingFlow.using(one)
    again = bound.using(lambda: two)
    assert bound.definition is again.definition is BillingFlow.definition
    assert (bound.__name__, bound.__qualname__) == (BillingFlow.__name__, BillingFlow.__qualname__)
    again.get("f1")
    assert (one.calls, two.commands) == ([], ["flow_get"])


def test_a_store_may_be_named_by_the_class_or_given_by_a_function_at_each_call() -> None:
    stores: list[Any] = [RecordingStore(), RecordingStore()]
    given_out = iter(stores)

    class One(Workflow, type="one", store=lambda: next(given_out)):
        created = state()

    class Two(One, type="two", store=stores[0]):
        pass

    One.get("a")
    One.get("b")
    Two.get("c")
    assert [store.commands for store in stores] == [["flow_get"] * 2, ["flow_get"]]


def test_a_store_with_only_the_commands_of_the_test_will_do() -> None:
    class Small:
        def flow_get(self, id: str, **options: Any) -> Any:
            return a_record(id)

    small: Any = Small()
    assert getattr(EmailFlow.using(small).get("e1"), "id", None) == "e1"


def test_the_awaitable_twin_uses_the_awaitable_commands_of_the_store() -> None:
    class Awaitable:
        async def flow_get(self, id: str, **options: Any) -> Any:
            return a_record(id, payload="awaited")

    store: Any = RecordingStore()
    store.aio = Awaitable()
    record = asyncio.run(EmailFlow.using(store).aio.get("e1"))
    assert record is not None
    assert (record.payload, store.calls) == ("awaited", [])


def functions(owner: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(getattr(owner, name))
        for name in dir(owner)
        if not name.startswith("_") and inspect.ismethod(getattr(owner, name))
    }


def test_every_function_has_an_awaitable_twin_of_the_same_signature() -> None:
    plain = functions(Workflow)
    for own in ("using", "bound_store"):
        del plain[own]
    assert plain == functions(Aio)
    for name in plain:
        assert inspect.iscoroutinefunction(getattr(Aio, name)), name
        assert getattr(Workflow, name).__doc__, name


CONTRACT = """
create create_many child fanout spawn_children claim_due run_once reclaim_once ok error handle
transition complete retry fail extend_lease cancel signal rewind get history list by_parent
by_root by_correlation info stuck children waiting_children install_policy
"""


def test_the_functions_are_those_of_the_contract() -> None:
    assert set(functions(Aio)) == set(CONTRACT.split())


def test_help_shows_what_a_function_answers() -> None:
    assert inspect.signature(BillingFlow.create).return_annotation == "FlowRecord"
