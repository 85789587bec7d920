"""Settle a job: every command that its lease allows, and what an outcome of its handler becomes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..flow.errors import InvalidArgument
from ..flow.limits import BACKOFF_MS_MAX
from ..flow.policy import Backoff, Retry
from ..flow.record import CANCELLED, COMPLETED, FAILED, FlowRecord
from .arguments import arguments_of, check_own, guards
from .definition import StateDefinition
from .dsl import StateRef
from .job import Claimed, logical_state
from .outcome import (
    Complete,
    Err,
    Fail,
    NoReply,
    Ok,
    Outcome,
    RetryLater,
    Transition,
    reason_of,
)
from .plan import Bound, Plan
from .times import duration_ms


def ok(workflow: Bound, /, job: Claimed, result: Any = None, **options: Any) -> Plan[FlowRecord]:
    """Do what the job's state declares as `on_ok`: complete, or move on.

    A completed flow keeps the result; a flow that moves on takes it along as its new payload, and
    keeps the old one if the result is None.
    """
    target = _state_of(workflow, job).on_ok
    if target == COMPLETED:
        return complete(workflow, job, result, **options)
    if target == FAILED:
        return fail(workflow, job, result, **options)
    if target == CANCELLED:
        return _cancel(workflow, job, result, options)
    return transition(workflow, job, target, result, **options)


def error(workflow: Bound, /, job: Claimed, reason: Any = None, **options: Any) -> Plan[FlowRecord]:
    """Do what the job's state declares as `on_error`: retry, fail, or move on.

    The reason becomes the flow's error; an exception is told by class and message. A flow that
    moves on keeps its payload: it is moved by a retry that allows no further attempt.
    """
    target = _state_of(workflow, job).on_error
    if target is None:
        return retry(workflow, job, reason, **options)
    if target == FAILED:
        return fail(workflow, job, reason, **options)
    return retry(workflow, job, reason, retry=Retry(max_retries=0, exhausted_to=target), **options)


def transition(
    workflow: Bound, /, job: Claimed, to: StateRef, payload: Any = None, **options: Any
) -> Plan[FlowRecord]:
    """Move the job to another declared state, due now; a payload of None keeps the present one.

    Raises:
        InvalidArgument: if `to` is not declared, or an end; before the store is asked.
    """
    _state_of(workflow, job)
    target = workflow.definition.active_state(to, "to")
    arguments = {"lease_token": job.lease_token, **guards(job)}
    _bring(workflow, arguments, "payload", payload, options)
    return Plan("flow_transition", (job.id, logical_state(job), target), arguments)


def complete(
    workflow: Bound, /, job: Claimed, result: Any = None, **options: Any
) -> Plan[FlowRecord]:
    """End the job well, whatever its state declares."""
    return _settle("flow_complete", workflow, job, "result", result, options)


def retry(
    workflow: Bound,
    /,
    job: Claimed,
    reason: Any = None,
    *,
    in_ms: int | timedelta | None = None,
    retry: Retry | Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan[FlowRecord]:
    """Give the job back for another attempt, whatever its state declares as `on_error`.

    The state's declared retry goes along with the command, so it wins over a stored policy;
    `retry` overrides it field by field. `in_ms` is an exact wait for this attempt, by the clock of
    the store. When the attempts are used up, the flow goes to `exhausted_to`.
    """
    declared = _state_of(workflow, job).retry
    layers = [_retry_fields(declared), _retry_fields(retry)]
    if in_ms is not None:
        if options.get("run_at_ms") is not None:
            raise TypeError("in_ms and run_at_ms both say when the next attempt is due")
        layers.append(_exact_wait(in_ms))
    arguments: dict[str, Any] = {}
    if merged := _merged(layers):
        arguments["retry"] = Retry(**merged)
    return _settle("flow_retry", workflow, job, "error", reason_of(reason), options, arguments)


def fail(workflow: Bound, /, job: Claimed, reason: Any = None, **options: Any) -> Plan[FlowRecord]:
    """End the job badly, whatever its state declares."""
    return _settle("flow_fail", workflow, job, "error", reason_of(reason), options)


def extend_lease(
    workflow: Bound,
    /,
    job: Claimed,
    lease_ms: int | timedelta | None = None,
    **options: Any,
) -> Plan[FlowRecord]:
    """Set the end of the job's lease to now + lease_ms; None = what its state declares."""
    declared = _state_of(workflow, job).lease_ms
    if lease_ms is None:
        lease_ms = declared
    given = options if lease_ms is None else {"lease_ms": lease_ms, **options}
    return _settle("flow_extend_lease", workflow, job, "", None, given)


def settle(workflow: Bound, /, job: Claimed, outcome: Outcome) -> Plan[FlowRecord] | None:
    """Return the one command that an outcome becomes; None for NOREPLY.

    An outcome that cannot become a command, such as a transition to an undeclared state, is the
    handler's error.
    """
    try:
        return command_of(workflow, job, outcome)
    except (InvalidArgument, TypeError) as cause:
        return error(workflow, job, cause)


def release(workflow: Bound, /, job: Claimed, **options: Any) -> Plan[FlowRecord]:
    """Give the job back unworked: due now, in its state, with no attempt charged."""
    return _settle("flow_release", workflow, job, "", None, options)


def command_of(workflow: Bound, job: Claimed, outcome: Outcome) -> Plan[FlowRecord] | None:
    """Return the one command that an outcome becomes; None for NOREPLY.

    Raises:
        InvalidArgument: it cannot become a command.
        TypeError: likewise.
    """
    match outcome:
        case Ok(value):
            return ok(workflow, job, value)
        case Err(reason):
            return error(workflow, job, reason)
        case NoReply():
            return None
        case Transition(to, payload):
            return transition(workflow, job, to, payload)
        case Complete(value):
            return complete(workflow, job, value)
        case RetryLater(reason, in_ms):
            return retry(workflow, job, reason, in_ms=in_ms)
        case Fail(reason):
            return fail(workflow, job, reason)


def _state_of(workflow: Bound, job: Claimed) -> StateDefinition:
    check_own(workflow.definition, job)
    return workflow.definition.state(logical_state(job))


def _settle(
    command: str,
    workflow: Bound,
    job: Claimed,
    name: str,
    value: Any,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
) -> Plan[FlowRecord]:
    _state_of(workflow, job)
    given = {**guards(job), **(arguments or {})}
    _bring(workflow, given, name, value, options)
    return Plan(command, (job.id, job.lease_token), given)


def _cancel(
    workflow: Bound, job: Claimed, reason: Any, options: Mapping[str, Any]
) -> Plan[FlowRecord]:
    arguments = {"lease_token": job.lease_token, **guards(job)}
    _bring(workflow, arguments, "reason", reason, options)
    return Plan("flow_cancel", (job.id,), arguments)


def _bring(
    workflow: Bound,
    arguments: dict[str, Any],
    name: str,
    value: Any,
    options: Mapping[str, Any],
) -> None:
    """Add a value, unless it is None, and the user's options."""
    if value is not None:
        arguments[name] = value
    if options:
        arguments.update(arguments_of(workflow.definition, options))


def _retry_fields(retry: Retry | Mapping[str, Any] | None) -> dict[str, Any]:
    if retry is None:
        return {}
    fields = retry.as_dict() if isinstance(retry, Retry) else dict(retry)
    if isinstance(fields.get("backoff"), Backoff):
        fields["backoff"] = fields["backoff"].as_dict()
    return fields


def _exact_wait(in_ms: int | timedelta) -> dict[str, Any]:
    # As a backoff, not as an instant: the instant would need the store's clock here.
    wait_ms = duration_ms(in_ms, "in_ms")
    if wait_ms > BACKOFF_MS_MAX:
        raise InvalidArgument(
            f"in_ms is at most {BACKOFF_MS_MAX} (30 days); got {wait_ms}; give run_at_ms for later",
            argument="in_ms",
        )
    return {"backoff": {"kind": "fixed", "base_ms": wait_ms, "max_ms": wait_ms, "jitter_pct": 0}}


def _merged(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge retry fields, later layers winning, backoff fields one by one."""
    merged: dict[str, Any] = {}
    backoff: dict[str, Any] = {}
    for layer in layers:
        backoff.update(layer.get("backoff") or {})
        merged.update(layer)
    if backoff:
        merged["backoff"] = backoff
    return merged
