"""Read flows of a workflow. Nothing here reads a payload unless asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..flow.record import FlowRecord, HistoryEvent
from .arguments import arguments_of, flow_and_arguments, states_of
from .claims import States
from .definition import ANY
from .job import Claimed
from .plan import Bound, Plan

if TYPE_CHECKING:
    from .requests.reading import Page


def get(workflow: Bound, /, id: str | Claimed, **options: Any) -> Plan[FlowRecord | None]:
    """Return a flow's record, or None if there is none.

    The partition is named by `partition_key`, or by the parts of partition_by as keywords; without
    it every partition is searched. `payload=True` brings payload, result and error. Options are
    those of `flow_get`.
    """
    flow_id, arguments = flow_and_arguments(workflow.definition, id, options)
    return Plan("flow_get", (flow_id,), arguments)


def history(workflow: Bound, /, id: str | Claimed, **options: Any) -> Plan[list[HistoryEvent]]:
    """Return what happened to a flow, oldest first. Options are those of `flow_history`."""
    flow_id, arguments = flow_and_arguments(workflow.definition, id, options)
    return Plan("flow_history", (flow_id,), arguments)


def list_flows(workflow: Bound, /, state: States = ANY, **options: Any) -> Plan[Page]:
    """List flows in a state, several, or any, a page at a time, by time of their last change.

    The answer's `after` is the cursor of the next page. Options are those of `flow_list`.
    """
    definition = workflow.definition
    arguments = {"state": states_of(state), **arguments_of(definition, options)}
    return Plan("flow_list", (definition.type,), arguments)


def by_parent(workflow: Bound, /, id: str, **options: Any) -> Plan[Page]:
    """List the children of a flow, of any type. Options are those of `flow_by_parent`."""
    return Plan("flow_by_parent", (id,), arguments_of(workflow.definition, options))


def by_root(workflow: Bound, /, id: str, **options: Any) -> Plan[Page]:
    """List the tree under a flow, of any type. Options are those of `flow_by_root`."""
    return Plan("flow_by_root", (id,), arguments_of(workflow.definition, options))


def by_correlation(workflow: Bound, /, id: str, **options: Any) -> Plan[Page]:
    """List the flows with a correlation id, of any type."""
    return Plan("flow_by_correlation", (id,), arguments_of(workflow.definition, options))


def info(workflow: Bound, /, **options: Any) -> Plan[Any]:
    """Count the workflow's flows, by state."""
    definition = workflow.definition
    return Plan("flow_info", (definition.type,), arguments_of(definition, options))


def stuck(workflow: Bound, /, **options: Any) -> Plan[list[FlowRecord]]:
    """List flows whose lease has expired and that nobody took over; see `older_than_ms`."""
    definition = workflow.definition
    return Plan("flow_stuck", (definition.type,), arguments_of(definition, options))


def children(workflow: Bound, /, job: str | Claimed, **options: Any) -> Plan[Page]:
    """List the children of a job, in whatever partitions they live; an id does as well."""
    if isinstance(job, str):
        return by_parent(workflow, job, **options)
    return by_parent(workflow, job.id, parent_partition_key=job.partition_key, **options)


def waiting_children(workflow: Bound, /, job: str | Claimed, **options: Any) -> Plan[Page]:
    """List the children of a job that have not ended; `count` counts these alone."""
    return children(workflow, job, terminal=False, **options)
