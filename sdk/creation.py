"""Create flows of a workflow: attributes of the application to creation arguments of the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..flow.record import FlowRecord
from .arguments import argument_of
from .childspec import ChildSpec
from .definition import Definition
from .names import did_you_mean
from .plan import Bound, Plan

FLOW_FIELDS: Final = frozenset(ChildSpec.__struct_fields__) - {"type"}
"""What describes any new flow, a child too."""
ITEM_FIELDS: Final = FLOW_FIELDS | {"idempotent", "parent_flow_id", "root_flow_id"}
"""What one flow of several may say for itself."""
CREATE_FIELDS: Final = ITEM_FIELDS | {"now_ms"}
BATCH_OPTIONS: Final = frozenset(("independent", "now_ms"))


def create(workflow: Bound, /, **attrs: Any) -> Plan[FlowRecord]:
    """Create a flow in the workflow's initial state, or in `state`, and return its record.

    Takes the fields of `flow_create` and the names of partition_by, or `partition_key` in their
    place. It is on disk on return.

        BillingFlow.create(id="i9", tenant_id="t1", invoice_id="i9", payload={"amount": 4200})

    Raises:
        TypeError: if there is no id, or an attribute that is neither.
        FlowAlreadyExists: if the id is taken in this partition; see `idempotent`.
    """
    definition = workflow.definition
    arguments = creation_arguments(definition, "create", attrs, CREATE_FIELDS)
    arguments.setdefault("state", definition.initial_state)
    flow_id = arguments.pop("id")
    return Plan("flow_create", (flow_id,), {"type": definition.type, **arguments})


def create_many(
    workflow: Bound, /, items: Iterable[Mapping[str, Any]], **options: Any
) -> Plan[list[FlowRecord]]:
    """Create up to 1,000 flows, each given as the attributes of `create`, in the order given.

    The flows of one shard are created all or none. Further keyword arguments are `independent`,
    `now_ms` and attributes for the flows that lack them.

    Raises:
        BatchError: if a shard refused its flows; its `results` tell the fate of each.
    """
    definition = workflow.definition
    defaults = {name: value for name, value in options.items() if name not in BATCH_OPTIONS}
    batch = {
        name: argument_of(name, value) for name, value in options.items() if name in BATCH_OPTIONS
    }
    described = [
        creation_arguments(definition, "create_many", {**defaults, **item}, ITEM_FIELDS)
        for item in items
    ]
    return Plan(
        "flow_create_many",
        (described,),
        {"type": definition.type, "state": definition.initial_state, **batch},
    )


def creation_arguments(
    definition: Definition, function: str, attrs: Mapping[str, Any], fields: frozenset[str]
) -> dict[str, Any]:
    """Return attributes as creation arguments: known names only, the partition key derived."""
    parts = definition.partition_by
    where = f"{definition.name}.{function}()"
    for name in attrs:
        if name not in fields and name not in parts:
            raise TypeError(
                f"{where} got the unexpected attribute {name!r}; "
                f"{did_you_mean(name, fields.union(parts))}"
            )
    if "id" not in attrs:
        raise TypeError(f"{where} needs the attribute 'id'")
    # A part may be a field as well, such as the id: then it is both.
    arguments = {name: argument_of(name, attrs[name]) for name in attrs if name in fields}
    if arguments.get("state") is not None:
        arguments["state"] = definition.active_state(arguments["state"], "state")
    if parts and arguments.get("partition_key") is None:
        arguments["partition_key"] = definition.partition_key(attrs)
    elif given := [name for name in parts if name in attrs and name not in fields]:
        raise TypeError(f"{where}: partition_key and {', '.join(given)} both name the partition")
    return arguments
