"""What users write, as arguments of the store: durations and instants in ms, states by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ..flow.errors import InvalidArgument
from .definition import Definition
from .dsl import state_name
from .job import Claimed, Job
from .times import duration_ms, instant_ms

_TIMES: Final[dict[str, Callable[[Any, str], int]]] = {
    "block_ms": duration_ms,
    "lease_ms": duration_ms,
    "max_active_ms": duration_ms,
    "older_than_ms": duration_ms,
    "retention_ttl_ms": duration_ms,
    "from_ms": instant_ms,
    "now_ms": instant_ms,
    "run_at_ms": instant_ms,
    "to_ms": instant_ms,
}
_STATES: Final = frozenset(("expect_state", "if_state", "state", "transition_to"))


def arguments_of(
    definition: Definition, options: Mapping[str, Any], flow: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return options as the store takes them; the parts of a partition key become the key.

    `flow` holds attributes known from elsewhere, such as the id of the flow that is asked about.

    Raises:
        InvalidArgument: if a time is none, or a part of the partition key is missing.
        TypeError: if partition_key is given and its parts as well.
    """
    arguments = {name: argument_of(name, value) for name, value in options.items()}
    parts = definition.partition_by
    flow = flow or {}
    if parts and (arguments or flow):
        given = [name for name in parts if name in arguments]
        if given and arguments.get("partition_key") is not None:
            raise TypeError(
                f"{definition.name}: partition_key and {', '.join(given)} both name the partition"
            )
        if given or ("partition_key" not in arguments and all(name in flow for name in parts)):
            values = {**flow, **{name: arguments.pop(name) for name in given}}
            arguments["partition_key"] = definition.partition_key(values)
    return arguments


def argument_of(name: str, value: Any) -> Any:
    """Return one option as the store takes it."""
    convert = _TIMES.get(name)
    if convert is not None:
        return None if value is None else convert(value, name)
    if name in _STATES:
        return states_of(value)
    return value


def states_of(value: Any) -> Any:
    """Return the names that a state, or several, stand for; anything else as it is."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [state_name(ref) for ref in value]
    return state_name(value)


def flow_and_arguments(
    definition: Definition, flow: str | Claimed, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the id and the arguments of a command about a flow, named by id, job or record."""
    if isinstance(flow, str):
        return flow, arguments_of(definition, options, {"id": flow})
    arguments = arguments_of(definition, options)
    arguments.setdefault("partition_key", flow.partition_key)
    return flow.id, arguments


def check_own(definition: Definition, job: Claimed) -> None:
    """Refuse a job of another workflow.

    Raises:
        InvalidArgument: naming both types.
    """
    if job.type != definition.type:
        raise InvalidArgument(
            f"{definition.name} settles flows of type {definition.type!r}; flow {job.id!r} is of "
            f"type {job.type!r}: call the workflow that claimed it",
            argument="job",
        )


def guards(claimed: Claimed) -> dict[str, Any]:
    """Return what proves a lease, besides the lease token."""
    return {"partition_key": claimed.partition_key, "fencing_token": claimed.fencing_token}


def lease_guards(flow: object) -> dict[str, Any]:
    """Return what proves the lease of a job; nothing for an id or a record."""
    if not isinstance(flow, Job):
        return {}
    return {"lease_token": flow.lease_token, "fencing_token": flow.fencing_token}
