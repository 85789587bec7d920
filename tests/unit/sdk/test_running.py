"""run_once and handle: one command for each job, whatever its handler does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shardflow.flow.errors import InvalidArgument, OutcomeUnknown, StaleLease
from shardflow.flow.policy import Backoff, Retry
from shardflow.sdk.dsl import complete, retry_or, state
from shardflow.sdk.job import Job
from shardflow.sdk.outcome import NOREPLY, Complete, Err, Fail, Ok, RetryLater, Transition
from shardflow.sdk.workflow import Workflow
from support.recording import RecordingStore, a_leased_record, a_record


class BillingFlow(Workflow, type="billing"):
    created = state(on_ok="charged", on_error=retry_or("failed"))
    charged = state(on_ok=complete())
    parked = state()
    failed = state()

    @created.handler
    @staticmethod
    def charge(job: Job) -> Any:
        return Ok(f"charged {job.id}")

    @charged.handler
    @staticmethod
    def send(job: Job) -> Any:
        return Ok(f"sent {job.id}")


Run = Callable[..., Any]


def run_once(workflow: type[Workflow], *args: Any, **options: Any) -> Any:
    return workflow.run_once(*args, **options)


def run_once_async(workflow: type[Workflow], *args: Any, **options: Any) -> Any:
    return asyncio.run(workflow.aio.run_once(*args, **options))


both = pytest.mark.parametrize("run", [run_once, run_once_async])


def store_of(*records: Any, **answers: Any) -> Any:
    return RecordingStore(flow_claim_due=list(records), **answers)


@both
def test_each_job_goes_to_the_handler_of_its_state(run: Run) -> None:
    store = store_of(a_leased_record("f1"), a_leased_record("f2", "charged"))
    settled = run(BillingFlow.using(store), worker="w1", limit=10)
    assert [record.id for record in settled] == ["f1", "f1"], "what the store answered"
    claim, *settlements = store.calls
    assert claim == (
        "flow_claim_due",
        ("billing",),
        {"state": ["created", "charged"], "worker": "w1", "limit": 10},
    )
    assert [(command, options.get("payload")) for command, _, options in settlements] == [
        ("flow_transition", "charged f1"),
        ("flow_complete", None),
    ]


@both
def test_a_handler_that_is_given_takes_all_states(run: Run) -> None:
    store = store_of(a_leased_record("f1", "parked"))
    run(BillingFlow.using(store), worker="w1", handler=lambda job: Complete(job.state))
    assert store.calls[0][2]["state"] == "any"
    assert store.calls[1][2]["result"] == "parked"


@both
def test_the_state_may_be_a_declaration(run: Run) -> None:
    store = store_of()
    assert run(BillingFlow.using(store), BillingFlow.created, worker="w1") == []
    assert store.only_call[2]["state"] == "created"


@both
def test_a_state_without_a_handler_is_refused_before_anything_is_claimed(run: Run) -> None:
    store = store_of()
    with pytest.raises(InvalidArgument, match=r"BillingFlow: the state 'parked' has no handler"):
        run(BillingFlow.using(store), ["created", "parked"], worker="w1")

    class Bare(Workflow, type="bare", store=store):
        created = state()

    with pytest.raises(InvalidArgument, match=r"Bare has no handler; .*@created.handler"):
        run(Bare, worker="w1")
    assert store.calls == []


def test_coroutine_handlers_are_refused_where_nothing_awaits_them() -> None:
    async def work(job: Job) -> Ok:
        return Ok()

    store = store_of(a_leased_record())
    bound = BillingFlow.using(store)
    for call in (
        lambda: bound.run_once(worker="w1", handler=work),
        lambda: bound.handle(Job(bound, a_leased_record()), work),
    ):
        with pytest.raises(InvalidArgument, match=r"work is a coroutine function.*aio.run_once"):
            call()
    assert store.calls == []


def test_coroutine_handlers_are_awaited_by_the_twins() -> None:
    async def work(job: Job) -> Ok:
        await asyncio.sleep(0)
        return Ok(1)

    store = store_of(a_leased_record())
    bound = BillingFlow.using(store)
    run_once_async(bound, worker="w1", handler=work)
    asyncio.run(bound.aio.handle(Job(bound, a_leased_record()), work))
    assert store.commands == ["flow_claim_due", "flow_transition", "flow_transition"]


def handled(outcome: Any, state_name: str = "created") -> Any:
    """Return the one command that a handler's outcome becomes, alike in both colours."""

    def handler(job: Job) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def plain(bound: type[Workflow], job: Job) -> Any:
        return bound.handle(job, handler)

    def awaited(bound: type[Workflow], job: Job) -> Any:
        return asyncio.run(bound.aio.handle(job, handler))

    calls = []
    for run in (plain, awaited):
        store: Any = RecordingStore()
        bound = BillingFlow.using(store)
        run(bound, Job(bound, a_leased_record(state=state_name)))
        calls.append(store.only_call)
    one, two = ((name, args, {**options, "error": None}) for name, args, options in calls)
    assert one == two
    return calls[0]


WAIT = Retry(backoff=Backoff("fixed", 500, 500, 0), exhausted_to="failed")


@pytest.mark.parametrize(
    ("outcome", "command", "sent"),
    [
        (Ok("r"), "flow_transition", {"payload": "r"}),
        (("ok", "r"), "flow_transition", {"payload": "r"}),
        (Err("why"), "flow_retry", {"error": "why"}),
        (("error", "why"), "flow_retry", {"error": "why"}),
        (Transition("parked", "p"), "flow_transition", {"payload": "p"}),
        (Complete("r"), "flow_complete", {"result": "r"}),
        (RetryLater("why"), "flow_retry", {"error": "why"}),
        (RetryLater("why", in_ms=500), "flow_retry", {"error": "why", "retry": WAIT}),
        (Fail("why"), "flow_fail", {"error": "why"}),
        (None, "flow_retry", {"error": {"unexpected_worker_result": "None"}}),
        (5, "flow_retry", {"error": {"unexpected_worker_result": "5"}}),
    ],
    ids=repr,
)
def test_an_outcome_becomes_one_command(outcome: Any, command: str, sent: dict[str, Any]) -> None:
    name, _, options = handled(outcome)
    assert name == command
    assert {field: options[field] for field in sent} == sent


def test_an_exception_becomes_an_error_that_is_retried() -> None:
    name, _, options = handled(ValueError("no funds"))
    assert name == "flow_retry"
    assert options["error"]["exception"] == "ValueError"
    assert options["error"]["message"] == "no funds"
    assert options["retry"] == Retry(exhausted_to="failed")


@pytest.mark.parametrize(
    "outcome",
    [Transition("chargd"), Transition("completed"), RetryLater("x", in_ms=-1)],
    ids=repr,
)
def test_an_outcome_that_cannot_be_is_the_handlers_error(outcome: Any) -> None:
    name, _, options = handled(outcome)
    assert name == "flow_retry"
    assert options["error"]["exception"] == "InvalidArgument"


def test_no_reply_gives_no_command() -> None:
    store = store_of(a_leased_record())
    bound = BillingFlow.using(store)
    assert bound.run_once(worker="w1", handler=lambda job: NOREPLY) == [None]
    assert store.commands == ["flow_claim_due"]


@both
@pytest.mark.parametrize("error", [OutcomeUnknown(), StaleLease(), RuntimeError("store")])
def test_an_error_of_the_store_gives_no_second_command(run: Run, error: Exception) -> None:
    store = store_of(a_leased_record(), flow_transition=error)
    with pytest.raises(type(error)):
        run(BillingFlow.using(store), worker="w1")
    assert store.commands == ["flow_claim_due", "flow_transition"]


@both
def test_a_lost_lease_does_not_keep_the_other_jobs_from_being_handled(run: Run) -> None:
    def complete(flow_id: str, *args: Any, **options: Any) -> Any:
        if flow_id == "f1":
            raise StaleLease("f1 was taken over", flow_id="f1")
        return a_record(flow_id)

    store = store_of(
        a_leased_record("f1"), a_leased_record("f2"), a_leased_record("f3"), flow_complete=complete
    )
    with pytest.raises(StaleLease, match="f1 was taken over"):
        run(BillingFlow.using(store), worker="w1", handler=lambda job: Complete())
    assert [args[0] for _, args, _ in store.calls[1:]] == ["f1", "f2", "f3"]


@both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_through_and_gives_no_command(
    run: Run, kind: type[BaseException]
) -> None:
    def handler(job: Job) -> Any:
        raise kind

    store = store_of(a_leased_record())
    with pytest.raises(kind):
        run(BillingFlow.using(store), worker="w1", handler=handler)
    assert store.commands == ["flow_claim_due"]
