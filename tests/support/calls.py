"""One valid call of each command, for tests that hold for every command alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
"""Takes a store (or its `submit` or `aio`), an id, a type and further keyword arguments."""

FENCED = {"fencing_token": 1}


def _item(flow_id: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": flow_id, "lease_token": "t", **FENCED, **fields}]


ON_ONE_FLOW: dict[str, Call] = {
    "flow_extend_lease": lambda s, i, t, **o: s.flow_extend_lease(i, "t", **FENCED, **o),
    "flow_complete": lambda s, i, t, **o: s.flow_complete(i, "t", **FENCED, **o),
    "flow_fail": lambda s, i, t, **o: s.flow_fail(i, "t", **FENCED, **o),
    "flow_retry": lambda s, i, t, **o: s.flow_retry(i, "t", **FENCED, **o),
    "flow_transition": lambda s, i, t, **o: s.flow_transition(i, "a", "b", **FENCED, **o),
    "flow_step_continue": lambda s, i, t, **o: s.flow_step_continue(
        i, "t", "a", "b", lease_ms=1_000, **FENCED, **o
    ),
    "flow_cancel": lambda s, i, t, **o: s.flow_cancel(i, **o),
    "flow_spawn_children": lambda s, i, t, **o: s.flow_spawn_children(
        i, [{"id": f"{i}-child", "type": t}], success="a", failure="b", **o
    ),
    "flow_value_put": lambda s, i, t, **o: s.flow_value_put(1, id=i, name="n", **o),
}
"""The writes that need an existing flow."""

ON_NEW_FLOWS: dict[str, Call] = {
    "flow_create": lambda s, i, t, **o: s.flow_create(i, type=t, **o),
    "flow_create_many": lambda s, i, t, **o: s.flow_create_many([{"id": i, "type": t}], **o),
    "flow_start_and_claim": lambda s, i, t, **o: s.flow_start_and_claim(
        i, type=t, state="a", worker="w", lease_ms=1_000, **o
    ),
}

ON_MANY_FLOWS: dict[str, Call] = {
    "flow_complete_many": lambda s, i, t, **o: s.flow_complete_many(_item(i), **o),
    "flow_fail_many": lambda s, i, t, **o: s.flow_fail_many(_item(i), **o),
    "flow_retry_many": lambda s, i, t, **o: s.flow_retry_many(_item(i), **o),
    "flow_transition_many": lambda s, i, t, **o: s.flow_transition_many(
        _item(i, from_state="a", to_state="b"), **o
    ),
    "flow_cancel_many": lambda s, i, t, **o: s.flow_cancel_many([{"id": i}], **o),
}

ON_A_TYPE: dict[str, Call] = {
    "flow_claim_due": lambda s, i, t, **o: s.flow_claim_due(t, worker="w", **o),
    "flow_reclaim": lambda s, i, t, **o: s.flow_reclaim(t, worker="w", lease_ms=1_000, **o),
    "flow_list": lambda s, i, t, **o: s.flow_list(t, **o),
    "flow_info": lambda s, i, t, **o: s.flow_info(t, **o),
    "flow_stuck": lambda s, i, t, **o: s.flow_stuck(t, **o),
}

READS_BY_ID: dict[str, Call] = {
    "flow_get": lambda s, i, t, **o: s.flow_get(i, **o),
    "flow_by_parent": lambda s, i, t, **o: s.flow_by_parent(i, **o),
    "flow_by_root": lambda s, i, t, **o: s.flow_by_root(i, **o),
    "flow_by_correlation": lambda s, i, t, **o: s.flow_by_correlation(i, **o),
}

OTHERS: dict[str, Call] = {
    "flow_history": lambda s, i, t, **o: s.flow_history(i, **o),
    "flow_policy_set": lambda s, i, t, **o: s.flow_policy_set(t, retention_ttl_ms=1, **o),
    "flow_policy_get": lambda s, i, t, **o: s.flow_policy_get(t, **o),
    "flow_value_mget": lambda s, i, t, **o: s.flow_value_mget([], max_bytes=1, **o),
    "flow_retention_cleanup": lambda s, i, t, **o: s.flow_retention_cleanup(**o),
}

ON_ABSENT_FLOWS = ON_NEW_FLOWS | ON_A_TYPE | READS_BY_ID
"""The calls that succeed although the flow is not there."""

ALL = ON_ONE_FLOW | ON_MANY_FLOWS | ON_ABSENT_FLOWS | OTHERS

NEEDS_FLOW_ID = (
    ON_ONE_FLOW
    | READS_BY_ID
    | {name: call for name, call in ON_NEW_FLOWS.items() if name != "flow_create_many"}
)
