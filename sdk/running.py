"""Claim and work once, without a supervised worker: run_once and handle, in both colours."""

from __future__ import annotations

from typing import Any

from ..flow.errors import InvalidArgument, StaleLease
from ..flow.record import FlowRecord
from .arguments import states_of
from .claims import States, claim_due
from .definition import ANY, Definition
from .dsl import Handler
from .job import Job
from .outcome import is_async, outcome_of, outcome_of_async
from .plan import Bound
from .settles import settle

Settled = FlowRecord | None
"""The record after the handler's command; None after NOREPLY."""
SettledList = list[Settled]


def run_once(
    workflow: Bound,
    /,
    state: States = ANY,
    *,
    worker: str,
    handler: Handler | None = None,
    **options: Any,
) -> SettledList:
    """Claim once, handle each job in turn, and return the records after; see `claim_due`.

    Without `handler` each state's own is called, and "any" means the states that have one. A job
    whose lease was lost in the meantime does not keep the others from being handled; its
    StaleLease is raised at the end. Any other error of the store is raised at once.
    """
    states = handled_states(workflow.definition, state, handler)
    require_plain(workflow.definition, states, handler)
    jobs = claim_due(workflow, states, worker=worker, **options).run(workflow.bound_store())
    settled: SettledList = []
    stale: list[StaleLease] = []
    for job in jobs:
        try:
            settled.append(handle(workflow, job, handler))
        except StaleLease as error:
            stale.append(error)
    if stale:
        raise stale[0]
    return settled


async def run_once_async(
    workflow: Bound,
    /,
    state: States = ANY,
    *,
    worker: str,
    handler: Handler | None = None,
    **options: Any,
) -> SettledList:
    """Claim once, handle each job in turn, and return the records after; see `claim_due`.

    Handlers may be coroutine functions; plain ones run in a thread. Otherwise like its twin.
    """
    states = handled_states(workflow.definition, state, handler)
    claim = claim_due(workflow, states, worker=worker, **options)
    settled: SettledList = []
    stale: list[StaleLease] = []
    for job in await claim.run_async(workflow.bound_store()):
        try:
            settled.append(await handle_async(workflow, job, handler))
        except StaleLease as error:
            stale.append(error)
    if stale:
        raise stale[0]
    return settled


def handle(workflow: Bound, /, job: Job, handler: Handler | None = None) -> Settled:
    """Call the handler for a claimed job and do what its outcome asks for.

    Only the handler's own code is guarded: an error of the store reaches the caller, and no
    second command is given for the job.
    """
    states = handled_states(workflow.definition, job.state, handler)
    require_plain(workflow.definition, states, handler)
    outcome = outcome_of(handler or handler_of(workflow.definition, job.state), job)
    plan = settle(workflow, job, outcome)
    return None if plan is None else plan.run(workflow.bound_store())


async def handle_async(workflow: Bound, /, job: Job, handler: Handler | None = None) -> Settled:
    """Call the handler for a claimed job and do what its outcome asks for.

    The handler may be a coroutine function; a plain one runs in a thread. Otherwise like its twin.
    """
    outcome = await outcome_of_async(handler or handler_of(workflow.definition, job.state), job)
    plan = settle(workflow, job, outcome)
    return None if plan is None else await plan.run_async(workflow.bound_store())


def handled_states(definition: Definition, state: States, handler: Handler | None) -> Any:
    """Return the states to claim: as asked, and only such as have a handler.

    Raises:
        InvalidArgument: if a state that was asked for by name has none.
    """
    states = states_of(state)
    if handler is not None:
        return states
    if states != ANY:
        for name in [states] if isinstance(states, str) else states:
            handler_of(definition, name)
        return states
    handled = [declared.name for declared in definition.active_states if declared.handler]
    if not handled:
        raise InvalidArgument(
            f"{definition.name} has no handler; decorate a function with "
            f"@{definition.initial_state}.handler, or pass handler=",
            argument="handler",
        )
    return handled if len(handled) > 1 else handled[0]


def handler_of(definition: Definition, state: str) -> Handler:
    """Return the declared handler of a state.

    Raises:
        InvalidArgument: if there is none.
    """
    handler = definition.state(state).handler
    if handler is None:
        raise InvalidArgument(
            f"{definition.name}: the state {state!r} has no handler; decorate a function with "
            f"@{state}.handler, or pass handler=",
            argument="handler",
        )
    return handler


def require_plain(definition: Definition, states: str | list[str], handler: Handler | None) -> None:
    """Refuse coroutine handlers where nothing could await them.

    Raises:
        InvalidArgument: naming the handler and what runs it.
    """
    names = [states] if isinstance(states, str) else states
    chosen = [handler] if handler is not None else [handler_of(definition, n) for n in names]
    for function in chosen:
        if is_async(function):
            name = getattr(function, "__name__", repr(function))
            raise InvalidArgument(
                f"{definition.name}: the handler {name} is a coroutine function, which only "
                f"{definition.name}.aio.run_once and .aio.handle and a worker with "
                "executor='async' can run; use those, or make it a plain function",
                argument="handler",
            )
