"""Fan out: children of a job, as specifications and as one atomic command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Required, TypedDict, cast

from ..flow.record import AttributeValue, FlowRecord
from .arguments import flow_and_arguments, guards
from .creation import FLOW_FIELDS, creation_arguments
from .dsl import state_name
from .job import Claimed, Job, logical_state
from .plan import Bound, Plan

WAIT_STATE: Final = "waiting_children"
SYNONYMS: Final = {
    "on_all_ok": "success",
    "on_success": "success",
    "on_any_error": "failure",
    "on_failure": "failure",
    "child_failure_policy": "on_child_failed",
}
"""Other names of options, and the store's."""


class ChildSpec(TypedDict, total=False):
    """A child to be spawned: its creation arguments. The parent's link is added by the store."""

    id: Required[str]
    type: Required[str]
    state: str
    partition_key: str | None
    payload: Any
    priority: int
    run_at_ms: int
    correlation_id: str
    attributes: dict[str, AttributeValue]
    values: dict[str, Any]
    max_active_ms: int
    retention_ttl_ms: int
    history_max_events: int


def child(workflow: Bound, /, **attrs: Any) -> ChildSpec:
    """Return a child of this workflow for `fanout`; asks no store.

    Takes the attributes of `create`; type, initial state and partition key are filled in. Without
    a partition key it lives in its parent's partition.
    """
    definition = workflow.definition
    arguments = creation_arguments(definition, "child", attrs, FLOW_FIELDS)
    arguments.setdefault("state", definition.initial_state)
    return cast(ChildSpec, {"type": definition.type, **arguments})


async def child_async(workflow: Bound, /, **attrs: Any) -> ChildSpec:
    """Return a child of this workflow for `fanout`; waits for nothing, like its twin."""
    return child(workflow, **attrs)


def spawn_children(
    workflow: Bound,
    /,
    job: str | Claimed,
    children: Iterable[Mapping[str, Any]],
    *,
    group_id: str = "fanout",
    wait: str = "all",
    **options: Any,
) -> Plan[FlowRecord]:
    """Create children of a job and let it wait for them, all of it or nothing.

    The job's lease ends with it: give no further command for the job. The same group again with
    the same children changes nothing. `wait` is all, any or none; the flow waits in `wait_state`
    and moves to `on_all_ok` (or `on_success`, `success`) or `on_any_error` (or `on_failure`,
    `failure`). `on_child_failed` (or `child_failure_policy`) is fail_parent or ignore. Further
    options are those of `flow_spawn_children`.

    Raises:
        TypeError: if an option is given under two of its names.
    """
    flow_id, given = flow_and_arguments(workflow.definition, job, _one_name_each(options))
    arguments: dict[str, Any] = {"group_id": group_id, "wait": wait}
    if wait != "none":
        arguments["wait_state"] = WAIT_STATE
    if isinstance(job, Job) or (not isinstance(job, str) and job.is_leased):
        arguments.update(guards(job), lease_token=job.lease_token, from_state=logical_state(job))
    elif not isinstance(job, str):
        arguments.update(guards(job), from_state=logical_state(job))
    return Plan("flow_spawn_children", (flow_id, list(children)), {**arguments, **given})


def _one_name_each(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under the store's names."""
    chosen: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in options.items():
        option = SYNONYMS.get(name, name)
        if option in chosen:
            raise TypeError(f"{name} and {spelled[option]} are names of one option; give one")
        spelled[option] = name
        chosen[option] = state_name(value)
    return chosen
