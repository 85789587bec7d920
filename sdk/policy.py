"""Write what a workflow declares into the store, as the policy of its type."""

from __future__ import annotations

from typing import Any

from .arguments import arguments_of
from .definition import StateDefinition
from .plan import Bound, Plan


def install_policy(workflow: Bound, /, replace: bool = True, **options: Any) -> Plan[Any]:
    """Store the retry and the fifo mode of every state, so that they hold for other clients too.

    Replaces the whole stored policy of the type, what operators set by hand included; with
    replace=False it is merged into that. Leases and payload caps stay with the workflow. Further
    options are those of `flow_policy_set`.
    """
    definition = workflow.definition
    declared = {state.name: _policy(state) for state in definition.active_states}
    arguments = {
        "states": {name: policy for name, policy in declared.items() if policy},
        "replace": replace,
        **arguments_of(definition, options),
    }
    return Plan("flow_policy_set", (definition.type,), arguments)


def _policy(state: StateDefinition) -> dict[str, Any]:
    policy: dict[str, Any] = {}
    if state.mode == "fifo":
        policy["mode"] = state.mode
    if state.retry is not None:
        policy["retry"] = state.retry.as_dict()
    return policy
