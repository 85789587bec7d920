"""Fan out: children of a job, as specifications and as one atomic command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..flow.family import Wait
from ..flow.record import TERMINAL_STATES, FlowRecord
from .arguments import argument_of, check_own, flow_and_arguments, guards
from .childspec import GROUP_DEFAULT, WAIT_STATE_DEFAULT, ChildSpec
from .creation import FLOW_FIELDS, creation_arguments
from .definition import Definition
from .dsl import state_name
from .job import Claimed, Job, logical_state
from .plan import Bound, Plan

SYNONYMS: Final = {
    "on_all_ok": "success",
    "on_success": "success",
    "on_any_error": "failure",
    "on_failure": "failure",
    "child_failure_policy": "on_child_failed",
}
"""Other names of options, and the store's."""
PLACES: Final = {
    "wait_state": frozenset((WAIT_STATE_DEFAULT,)),
    "success": TERMINAL_STATES,
    "failure": TERMINAL_STATES,
}
"""Where a fan-out sends the flow, and what may stand there besides declared states."""

Child = ChildSpec | Mapping[str, Any]


def child(workflow: Bound, /, **attrs: Any) -> ChildSpec:
    """Return a child of this workflow for `fanout`; asks no store.

    Takes the attributes of `create`, those apart that only a flow of its own has (`idempotent`,
    `parent_flow_id`, `root_flow_id`, `now_ms`); type, initial state and partition key are filled
    in. Of a workflow without partition_by, the child lives in its parent's partition.

        EmailFlow.child(id="email-123", payload={"template": "paid"})

    Raises:
        TypeError: if there is no id, or an attribute that is neither.
    """
    definition = workflow.definition
    arguments = creation_arguments(definition, "child", attrs, FLOW_FIELDS)
    arguments.setdefault("state", definition.initial_state)
    return ChildSpec(type=definition.type, **arguments)


async def child_async(workflow: Bound, /, **attrs: Any) -> ChildSpec:
    """Return a child of this workflow for `fanout`; waits for nothing, like its twin."""
    return child(workflow, **attrs)


def spawn_children(
    workflow: Bound,
    /,
    job: str | Claimed,
    children: Iterable[Child],
    *,
    group_id: str = GROUP_DEFAULT,
    wait: Wait = "all",
    **options: Any,
) -> Plan[FlowRecord]:
    """Create children of a job, of any workflow, and let it wait for them: all of it or nothing.

    With `wait` all or any the job's lease ends with it, so its handler returns `NOREPLY`. The flow
    waits in `wait_state` (`waiting_children` unless given) and moves to `on_all_ok` (or
    `on_success`, `success`) or to `on_any_error` (or `on_failure`, `failure`): declared states or
    ends. With none it moves to `on_all_ok` at once; without that the job stays in hand, and its
    handler's outcome counts as ever.

        @created.handler
        def charge(job: sf.Job):
            email = EmailFlow.child(id=f"email-{job.id}", payload={"template": "paid"})
            job.workflow.fanout(job, [email], on_all_ok="notified", on_any_error="failed")
            return sf.NOREPLY

    The same group again with the same children changes nothing, so that a handler that runs again
    may repeat it; one that spawns several groups gives each a `group_id`. `on_child_failed` (or
    `child_failure_policy`) is fail_parent or ignore, `on_parent_closed` cancel_children or
    abandon_children. Further options are those of `flow_spawn_children`.

    Raises:
        TypeError: if an option is given under two of its names.
        InvalidArgument: if the flow is to go to a state that is not declared.
        ChildGroupConflict: if the group exists with other children.
    """
    definition = workflow.definition
    chosen, spelled = _one_name_each(options)
    _check_states(definition, chosen, spelled)
    flow_id, given = flow_and_arguments(definition, job, chosen)
    arguments: dict[str, Any] = {"group_id": group_id, "wait": wait}
    if wait != "none":
        arguments["wait_state"] = WAIT_STATE_DEFAULT
    if not isinstance(job, str):
        check_own(definition, job)
        arguments.update(guards(job), from_state=logical_state(job))
        if isinstance(job, Job) or job.is_leased:
            arguments["lease_token"] = job.lease_token
    return Plan("flow_spawn_children", (flow_id, _listed(children)), {**arguments, **given})


def _one_name_each(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options under the store's names, and for each the name that it was given by."""
    chosen: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in options.items():
        option = SYNONYMS.get(name, name)
        if option in chosen:
            raise TypeError(f"{name} and {spelled[option]} are names of one option; give one")
        spelled[option] = name
        chosen[option] = state_name(value)
    return chosen, spelled


def _check_states(
    definition: Definition, chosen: Mapping[str, Any], spelled: Mapping[str, str]
) -> None:
    """Refuse to send the flow where no handler would ever be called for it."""
    for option, allowed in PLACES.items():
        state = chosen.get(option)
        if state is not None and state not in allowed:
            definition.active_state(state, spelled[option])


def _listed(children: Any) -> Any:
    """Return the children as a list, those given as dicts with states by name."""
    if isinstance(children, str | bytes | Mapping) or not isinstance(children, Iterable):
        return children  # The store says what is wrong with it.
    return [
        {name: argument_of(name, value) for name, value in spec.items()}
        if isinstance(spec, Mapping)
        else spec
        for spec in children
    ]
