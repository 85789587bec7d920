"""Steer flows from outside, by id: cancel, signal, rewind."""

from __future__ import annotations

from typing import Any

from ..flow.record import FlowRecord
from .arguments import flow_and_arguments, lease_guards
from .job import Claimed
from .plan import Bound, Plan


def cancel(workflow: Bound, /, id: str | Claimed, **options: Any) -> Plan[FlowRecord]:
    """End a flow from outside. A leased one needs force=True, or its job in place of the id.

    The partition is named by `partition_key` or by the parts of partition_by, as everywhere an id
    is given. Options are those of `flow_cancel`.
    """
    flow_id, arguments = flow_and_arguments(workflow.definition, id, options)
    return Plan("flow_cancel", (flow_id,), {**lease_guards(id), **arguments})


def signal(workflow: Bound, /, id: str | Claimed, signal: str, **options: Any) -> Plan[FlowRecord]:
    """Tell a flow that something happened, and move it if `transition_to` says so.

    Options are those of `flow_signal`.
    """
    flow_id, arguments = flow_and_arguments(workflow.definition, id, options)
    return Plan("flow_signal", (flow_id,), {"signal": signal, **arguments})


def rewind(
    workflow: Bound, /, id: str | Claimed, to_event: str, **options: Any
) -> Plan[FlowRecord]:
    """Take a flow back to what it was after one of its events. Options are of `flow_rewind`."""
    flow_id, arguments = flow_and_arguments(workflow.definition, id, options)
    return Plan("flow_rewind", (flow_id,), {"to_event": to_event, **arguments})
