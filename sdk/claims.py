"""Claim flows as jobs: which states, for how long, with how much payload."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from ..flow.limits import LEASE_MS_DEFAULT
from .arguments import arguments_of, states_of
from .definition import ANY, Definition, StateDefinition
from .dsl import StateRef
from .job import Job
from .plan import Bound, Plan

States = StateRef | Iterable[StateRef]
"""One state, several, or "any"."""


def claim_due(
    workflow: Bound, /, state: States = ANY, *, worker: str, **options: Any
) -> Plan[list[Job]]:
    """Lease due flows for a worker and return them as jobs; nothing due: an empty list.

    `state` is a name, a declaration, several of them, or "any". The lease and the payload are as
    the state declares; for several states (or "any": all declared ones) the longest lease, and
    payloads up to the largest cap if one of the states wants any, because one claim has one order
    over all its states. Options are those of `flow_claim_due` and win over declarations.
    """
    definition = workflow.definition
    states = states_of(state)
    arguments = {
        "state": states,
        "worker": worker,
        **claim_defaults(definition, states),
        **arguments_of(definition, options),
    }
    return Plan("flow_claim_due", (definition.type,), arguments, partial(jobs_of, workflow))


def reclaim_once(
    workflow: Bound, /, state: States = ANY, *, worker: str, **options: Any
) -> Plan[list[Job]]:
    """Take over flows whose lease has expired, and nothing else, and return them as jobs.

    `state` filters the logical state; "running" is "any". Otherwise like `claim_due`.
    """
    definition = workflow.definition
    states = states_of(state)
    arguments = {
        "state": states,
        "worker": worker,
        "lease_ms": LEASE_MS_DEFAULT,
        **claim_defaults(definition, states),
        **arguments_of(definition, options),
    }
    return Plan("flow_reclaim", (definition.type,), arguments, partial(jobs_of, workflow))


def jobs_of(workflow: Any, records: Iterable[Any]) -> list[Job]:
    """Return claimed records as jobs of a workflow."""
    return [Job(workflow, record) for record in records]


def claim_defaults(definition: Definition, states: str | list[str]) -> dict[str, Any]:
    """Return the arguments of a claim that the declarations of its states decide."""
    names = [states] if isinstance(states, str) else states
    if names == [ANY] or ANY in names or "running" in names:
        claimed = definition.active_states
    else:
        claimed = [definition.state(name) for name in names]
    return {**_lease(claimed), **_payload(claimed)}


def _lease(states: list[StateDefinition]) -> dict[str, Any]:
    if all(state.lease_ms is None for state in states):
        return {}
    return {"lease_ms": max(state.lease_ms or LEASE_MS_DEFAULT for state in states)}


def _payload(states: list[StateDefinition]) -> dict[str, Any]:
    if all(state.claim_payload is None for state in states):
        return {}
    wanted = max(state.payload_bytes_wanted for state in states)
    if wanted < 0:
        return {"payload": False}
    if all(state.payload_max_bytes is None for state in states):
        return {"payload": True}
    return {"payload": True, "payload_max_bytes": wanted}
