"""What a workflow's class may declare, and what it is told when it may not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shardflow.flow.errors import InvalidArgument
from shardflow.flow.policy import Backoff, Retry
from shardflow.sdk.dsl import complete, fail, retry_or, state
from shardflow.sdk.job import Job
from shardflow.sdk.outcome import Ok
from shardflow.sdk.workflow import Workflow

RETRY = Retry(max_retries=8, backoff=Backoff.exponential(base_ms=1_000, max_ms=3_600_000))


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
    charged = state(lease_ms=timedelta(seconds=30), on_ok=complete(), on_error=fail())
    failed = state(on_ok=complete())

    @created.handler
    @staticmethod
    def charge(job: Job) -> Ok:
        return Ok(job)


def test_a_class_becomes_a_checked_definition() -> None:
    definition = BillingFlow.definition
    assert definition.type == "billing"
    assert definition.partition_by == ("tenant_id", "invoice_id")
    assert definition.initial_state == "created"
    assert list(definition.states) == ["created", "charged", "failed"]
    created = definition.states["created"]
    assert (created.lease_ms, created.claim_payload, created.payload_max_bytes) == (
        60_000,
        True,
        64_000,
    )
    assert (created.on_ok, created.on_error) == ("charged", None)
    assert created.retry is not None
    assert created.retry.as_dict() == {**RETRY.as_dict(), "exhausted_to": "failed"}
    charged = definition.states["charged"]
    assert (charged.lease_ms, charged.on_ok, charged.on_error) == (30_000, "completed", "failed")
    assert (charged.retry, charged.claim_payload, charged.payload_max_bytes) == (None, None, None)


def test_a_state_named_like_an_end_documents_the_end() -> None:
    assert BillingFlow.definition.states["failed"].is_terminal
    assert [s.name for s in BillingFlow.definition.active_states] == ["created", "charged"]


def test_the_declaration_and_the_handler_stay_what_they_were() -> None:
    assert repr(BillingFlow.created) == "<state 'created'>"
    job: Any = "a job"
    assert BillingFlow.charge(job) == Ok("a job")
    assert BillingFlow.definition.states["created"].handler is BillingFlow.charge


def test_a_plain_function_in_the_class_body_is_a_handler_and_stays_one() -> None:
    class Plain(Workflow, type="plain"):
        created = state()

        @created.handler
        def work(job):  # type: ignore[no-untyped-def]
            return job

    function: Any = Plain.work
    assert function(5) == 5
    assert Plain.definition.states["created"].handler is function


def test_a_handler_may_be_attached_after_the_class_was_made() -> None:
    class Later(Workflow, type="later"):
        created = state()

    @Later.created.handler
    async def work(job: Job) -> None: ...

    assert Later.definition.states["created"].handler is work


def test_a_state_keeps_its_own_name_under_any_attribute() -> None:
    class Named(Workflow, type="named"):
        review = state(name="in-review", on_ok="retry")
        again = state(name="retry", on_ok=review)

    assert list(Named.definition.states) == ["in-review", "retry"]
    assert Named.definition.initial_state == "in-review"
    assert Named.definition.states["retry"].on_ok == "in-review"
    assert Named.review.name == "in-review"


def test_the_first_state_is_the_initial_one_unless_another_is_named() -> None:
    class First(Workflow, type="first"):
        one = state()
        two = state()

    class Second(Workflow, type="second", initial_state="two"):
        one = state()
        two = state()

    assert (First.definition.initial_state, Second.definition.initial_state) == ("one", "two")


def test_one_attribute_may_make_the_partition() -> None:
    class One(Workflow, type="one", partition_by="tenant_id"):
        created = state(mode="fifo")

    assert One.definition.partition_by == ("tenant_id",)
    assert One.definition.states["created"].mode == "fifo"


def test_a_subclass_inherits_states_and_options_and_may_override_them() -> None:
    class Special(BillingFlow, type="special"):
        charged = state(lease_ms=5)
        audited = state()

    definition = Special.definition
    assert (definition.type, definition.partition_by) == ("special", ("tenant_id", "invoice_id"))
    assert list(definition.states) == ["created", "charged", "failed", "audited"]
    assert definition.states["charged"].lease_ms == 5
    assert definition.states["created"].handler is BillingFlow.charge
    assert BillingFlow.definition.states["charged"].lease_ms == 30_000


def test_retry_fields_may_be_given_as_a_dict() -> None:
    class Plain(Workflow, type="plain"):
        created = state(retry={"max_retries": 1, "backoff": {"base_ms": 5}, "exhausted_to": "dead"})
        mixed = state(retry={"backoff": Backoff(base_ms=5)})
        dead = state()

    states = Plain.definition.states
    assert states["created"].retry == Retry(1, Backoff(base_ms=5), "dead")
    assert states["mixed"].retry == Retry(backoff=Backoff(base_ms=5))


def declared(options: dict[str, Any] | None = None, **states: Any) -> type[Workflow]:
    """Make the class Broken with these states."""
    namespace = {"__module__": __name__, **states}
    options = {"type": "broken", **(options or {})}
    make: Any = type
    made: type[Workflow] = make("Broken", (Workflow,), namespace, **options)
    return made


def one(**options: Any) -> Callable[[], type[Workflow]]:
    """Return what makes the class Broken with one state of these options."""
    return lambda: declared(created=state(**options))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: declared({"type": None}, created=state()), r"^Broken: type is missing"),
        (lambda: declared({"type": ""}, created=state()), r"^Broken: type is a str of 1 to 512"),
        (lambda: declared({"type": 7}, created=state()), r"^Broken: type is a str"),
        (lambda: declared(), r"^Broken: no states"),
        (lambda: declared(running=state()), r"^Broken.running: .*'running' is reserved"),
        (one(name="any"), r"^Broken.created: .*'any' is reserved"),
        (one(name=""), r"^Broken.created: name is a str of 1 to 512"),
        (one(name="x" * 513), r"^Broken.created: name is a str"),
        (one(name="\ud800"), r"^Broken.created: name is a str"),
        (
            lambda: declared(one=state(name="x"), two=state(name="x")),
            r"^Broken.two: the state 'x' is declared by one too",
        ),
        (lambda: declared(retry=state()), r"^Broken.retry: .* state\(name='retry'\)"),
        (lambda: declared(list=state()), r"^Broken.list: every workflow has a function"),
        (lambda: declared(aio=state()), r"^Broken.aio: every workflow has a function"),
        (one(on_ok="crated"), r"^Broken.created: on_ok .*'crated'.* did you mean 'created'\?"),
        (one(on_ok=fail()), r"^Broken.created: on_ok is a state or complete\(\)"),
        (one(on_ok=retry_or("failed")), r"^Broken.created: on_ok is a state or complete\(\)"),
        (one(on_ok=complete), r"^Broken.created: on_ok is a state or complete\(\)"),
        (one(on_error="faild"), r"^Broken.created: on_error .* did you mean 'failed'\?"),
        (one(on_error=complete()), r"^Broken.created: on_error is a state, retry_or"),
        (one(on_error=retry_or("gone")), r"^Broken.created: on_error leads to 'gone'"),
        (one(on_error=retry_or("running")), r"^Broken.created: on_error leads to 'running'"),
        (one(retry=Retry(exhausted_to="gone")), r"^Broken.created: exhausted_to leads to 'gone'"),
        (
            one(retry=Retry(exhausted_to="failed"), on_error=retry_or("cancelled")),
            r"^Broken.created: .*'failed'.*'cancelled'",
        ),
        (one(retry=3), r"^Broken.created: retry is a Retry or a dict"),
        (one(retry={"max_attempts": 3}), r"^Broken.created: retry: .*max_attempts"),
        (one(retry={"max_retries": -1}), r"^Broken.created: retry: max_retries"),
        (one(lease_ms=0), r"^Broken.created: lease_ms is from 1"),
        (one(lease_ms=-1), r"^Broken.created: lease_ms is a duration"),
        (one(lease_ms=True), r"^Broken.created: lease_ms is a duration"),
        (one(lease_ms=1.5), r"^Broken.created: lease_ms is a duration"),
        (one(lease_ms=timedelta(-1)), r"^Broken.created: lease_ms is a duration"),
        (one(claim_payload=-1), r"^Broken.created: claim_payload is True, False or a size"),
        (one(claim_payload=2**40), r"^Broken.created: claim_payload is True, False or a size"),
        (one(claim_payload="yes"), r"^Broken.created: claim_payload is True, False or a size"),
        (one(mode="lifo"), r"^Broken.created: mode is 'parallel' or 'fifo'"),
        (one(mode="fifo"), r"^Broken.created: mode='fifo' .*partition_by"),
        (one(name="in-review", mode="x"), r"^Broken.created \(state 'in-review'\): mode"),
        (
            lambda: declared({"initial_state": "creatd"}, created=state()),
            r"^Broken: initial_state='creatd' .* did you mean 'created'\?",
        ),
        (
            lambda: declared({"initial_state": "failed"}, created=state(), failed=state()),
            r"^Broken: flows cannot begin in 'failed'",
        ),
        (lambda: declared(completed=state()), r"^Broken: flows cannot begin in 'completed'"),
        (
            lambda: declared({"partition_by": ("a", "a")}, created=state()),
            r"^Broken: partition_by names 'a' twice",
        ),
        (
            lambda: declared({"partition_by": ("a b",)}, created=state()),
            r"^Broken: partition_by names attributes; 'a b'",
        ),
        (
            lambda: declared({"partition_by": ("type",)}, created=state()),
            r"^Broken: partition_by names 'type'",
        ),
        (lambda: declared({"store": 7}, created=state()), r"^Broken: store is an object"),
    ],
)
def test_a_wrong_declaration_is_told_with_class_and_state(
    make: Callable[[], Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        make()


def test_one_declaration_cannot_be_two_states() -> None:
    shared = state()
    with pytest.raises(InvalidArgument, match=r"Broken.two: .* same declaration as one"):
        declared(one=shared, two=shared)


def test_a_handler_of_an_ended_state_is_refused_for_it_would_never_be_called() -> None:
    ended = state()
    ended.handler(lambda job: None)
    with pytest.raises(InvalidArgument, match=r"^Broken.failed: .* never be called"):
        declared(created=state(), failed=ended)


def test_a_second_handler_of_a_state_is_refused() -> None:
    created = state(name="created")

    @created.handler
    def charge(job: Job) -> None: ...

    with pytest.raises(InvalidArgument, match="'created' has the handler charge already; again"):

        @created.handler
        def again(job: Job) -> None: ...


@pytest.mark.parametrize("function", [lambda: None, lambda self, job: None, "charge", None])
def test_a_handler_takes_one_job(function: Any) -> None:
    with pytest.raises(InvalidArgument, match="one argument, the job"):
        state().handler(function)


def test_unknown_options_are_type_errors() -> None:
    unknown: dict[str, Any] = {"on_succes": "x"}
    with pytest.raises(TypeError, match="on_succes"):
        state(**unknown)
    with pytest.raises(TypeError, match="initial"):
        declared({"initial": "created"}, created=state())
