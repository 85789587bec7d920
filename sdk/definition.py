"""A workflow as its class declared it: checked once, when the class is made, and then immutable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, get_args

from msgspec import Struct

from ..flow.errors import InvalidArgument
from ..flow.limits import INTEGER_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_DEFAULT, VALUE_BYTES_CEILING
from ..flow.policy import Backoff, Retry, check_retry
from ..flow.record import COMPLETED, FAILED, RUNNING, TERMINAL_STATES
from .dsl import Ending, Handler, Mode, RetryOr, State, StateRef, state_name
from .names import did_you_mean
from .partition import partition_key_of
from .times import duration_ms

ANY: Final = "any"
RESERVED_STATES: Final = frozenset((RUNNING, ANY))
RESERVED_PARTS: Final = frozenset(("handler", "partition_key", "state", "type", "worker"))
"""Arguments of the functions of a workflow, which also take the parts as keywords."""


class StateDefinition(Struct, frozen=True, kw_only=True):
    """One checked state: durations in ms, targets as names."""

    name: str
    mode: Mode = "parallel"
    lease_ms: int | None = None
    """None: nothing declared, the store's default holds."""
    max_run_ms: int | None = None
    """None: a handler may run for ever."""
    claim_payload: bool | None = None
    """None: nothing declared, the store's default holds."""
    payload_max_bytes: int | None = None
    """Likewise."""
    retry: Retry | None = None
    """As declared, with the target of `retry_or` as its `exhausted_to`."""
    on_ok: str = COMPLETED
    """A declared or terminal state."""
    on_error: str | None = None
    """None: retry; else the declared or terminal state to go to at once."""
    declaration: State | None = None
    """None for a state that the workflow does not declare."""

    @property
    def handler(self) -> Handler | None:
        """The declared handler; it may have been attached after the class was made."""
        return None if self.declaration is None else self.declaration.function

    @property
    def is_terminal(self) -> bool:
        """Whether the declaration only documents an end."""
        return self.name in TERMINAL_STATES

    @property
    def payload_bytes_wanted(self) -> int:
        """The largest payload that a claim in this state is to bring; -1 = none at all."""
        if self.claim_payload is False:
            return -1
        cap = self.payload_max_bytes
        return PAYLOAD_BYTES_DEFAULT if cap is None else cap


class Definition(Struct, frozen=True, kw_only=True):
    """A checked workflow."""

    name: str
    """The class's name, for messages."""
    type: str
    partition_by: tuple[str, ...]
    initial_state: str
    states: Mapping[str, StateDefinition]
    """Every declared state by name, in the order of declaration."""

    @property
    def active_states(self) -> list[StateDefinition]:
        """The declared states that flows can be claimed in."""
        return [state for state in self.states.values() if not state.is_terminal]

    def state(self, name: str) -> StateDefinition:
        """Return a state; one that is not declared completes on ok and retries on error."""
        return self.states.get(name) or StateDefinition(name=name)

    def active_state(self, ref: StateRef, argument: str) -> str:
        """Return the name of a declared state that flows can be in.

        Raises:
            InvalidArgument: if it is not declared, or terminal.
        """
        name = state_name(ref)
        if name in TERMINAL_STATES:
            raise InvalidArgument(
                f"{self.name}: {argument}={name!r} is an end; complete(), fail() and cancel() "
                "lead there",
                argument=argument,
            )
        if name not in self.states:
            known = (state.name for state in self.active_states)
            raise InvalidArgument(
                f"{self.name}: {argument}={name!r} is not a declared state; "
                f"{did_you_mean(name, known)}",
                argument=argument,
            )
        return str(name)

    def partition_key(self, attributes: Mapping[str, Any]) -> str:
        """Return the partition key made of the attributes named by partition_by."""
        return partition_key_of(self.partition_by, attributes, self.name)


def define(
    owner: str,
    declared: Mapping[str, State],
    *,
    type: str | None,
    partition_by: str | Iterable[str],
    initial_state: StateRef | None,
    taken: Iterable[str],
) -> Definition:
    """Check the declarations of one class; `declared` is by attribute, `taken` are other names.

    Raises:
        InvalidArgument: naming the class and, where it is about one, the state.
    """
    if type is None:
        raise _invalid(owner, "type", f'type is missing: class {owner}(Workflow, type="…")')
    _check_name(owner, "type", type)
    parts = _parts(owner, partition_by)
    names = _names(owner, declared, frozenset(taken))
    states: dict[str, StateDefinition] = {}
    for attribute, state in declared.items():
        where = f"{owner}.{attribute}"
        if attribute != names[attribute]:
            where += f" (state {names[attribute]!r})"
        states[names[attribute]] = _checked(where, names[attribute], state, names.values())
        if state.mode == "fifo" and not parts:
            raise _invalid(where, "mode", "mode='fifo' orders by partition: give partition_by")
    return Definition(
        name=owner,
        type=type,
        partition_by=parts,
        initial_state=_initial(owner, initial_state, states),
        states=MappingProxyType(states),
    )


def _invalid(where: str, argument: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: {message}", argument=argument)


def _check_name(where: str, argument: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            if 1 <= len(value.encode()) <= NAME_BYTES_MAX:
                return
        except UnicodeEncodeError:
            pass
    raise _invalid(
        where,
        argument,
        f"{argument} is a str of 1 to {NAME_BYTES_MAX} bytes of UTF-8; got {value!r}",
    )


def _parts(owner: str, partition_by: str | Iterable[str]) -> tuple[str, ...]:
    parts = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
    for part in parts:
        if not isinstance(part, str) or not part.isidentifier():
            raise _invalid(
                owner, "partition_by", f"partition_by names attributes; {part!r} is no such name"
            )
        if part in RESERVED_PARTS or parts.count(part) > 1:
            raise _invalid(
                owner,
                "partition_by",
                f"partition_by names {part!r}, which has a meaning of its own"
                if part in RESERVED_PARTS
                else f"partition_by names {part!r} twice",
            )
    return parts


def _names(owner: str, declared: Mapping[str, State], taken: frozenset[str]) -> dict[str, str]:
    """Return the name in the store of each state, by attribute."""
    if not declared:
        raise _invalid(owner, "states", "no states; declare one with created = state(…)")
    attributes: dict[str, str] = {}
    seen: dict[int, str] = {}
    for attribute, state in declared.items():
        where = f"{owner}.{attribute}"
        _check_name(where, "name", state.name)
        if attribute in taken:
            raise _invalid(
                where,
                "name",
                f"every workflow has a function {attribute!r}; call the attribute otherwise and "
                f"keep the state's name with state(name={state.name!r})",
            )
        if state.name in RESERVED_STATES:
            raise _invalid(where, "name", f"the state name {state.name!r} is reserved")
        if id(state) in seen:
            raise _invalid(where, "name", f"is the same declaration as {seen[id(state)]}")
        if state.name in attributes:
            first = attributes[state.name]
            raise _invalid(where, "name", f"the state {state.name!r} is declared by {first} too")
        seen[id(state)] = attributes[state.name] = attribute
    return {attribute: name for name, attribute in attributes.items()}


def _initial(
    owner: str, initial_state: StateRef | None, states: Mapping[str, StateDefinition]
) -> str:
    name = next(iter(states)) if initial_state is None else state_name(initial_state)
    if name in TERMINAL_STATES:
        raise _invalid(owner, "initial_state", f"flows cannot begin in {name!r}, which is an end")
    if name not in states:
        active = states.keys() - TERMINAL_STATES
        raise _invalid(
            owner,
            "initial_state",
            f"initial_state={name!r} is not declared; {did_you_mean(name, active)}",
        )
    return str(name)


def _checked(where: str, name: str, state: State, declared: Iterable[str]) -> StateDefinition:
    if state.mode not in get_args(Mode):
        raise _invalid(where, "mode", f"mode is 'parallel' or 'fifo'; got {state.mode!r}")
    if name in TERMINAL_STATES and state.function is not None:
        raise _invalid(
            where, "handler", f"flows in {name!r} have ended; a handler would never be called"
        )
    claim_payload, payload_max_bytes = _payload(where, state.claim_payload)
    targets = frozenset(declared) | TERMINAL_STATES
    on_error, exhausted_to = _on_error(where, state.on_error, targets)
    return StateDefinition(
        name=name,
        mode=state.mode,
        lease_ms=_positive_ms(where, "lease_ms", state.lease_ms),
        max_run_ms=_positive_ms(where, "max_run_ms", state.max_run_ms),
        claim_payload=claim_payload,
        payload_max_bytes=payload_max_bytes,
        retry=_retry(where, state.retry, exhausted_to, targets),
        on_ok=_on_ok(where, state.on_ok, targets),
        on_error=on_error,
        declaration=state,
    )


def _positive_ms(where: str, argument: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        checked_ms = duration_ms(value, argument)
    except InvalidArgument as error:
        raise _invalid(where, argument, str(error)) from None
    if checked_ms == 0:
        raise _invalid(where, argument, f"{argument} is from 1 to {INTEGER_MAX}; got {value!r}")
    return checked_ms


def _payload(where: str, value: Any) -> tuple[bool | None, int | None]:
    if value is None or isinstance(value, bool):
        return value, None
    if type(value) is not int or not 1 <= value <= VALUE_BYTES_CEILING:
        raise _invalid(
            where,
            "claim_payload",
            f"claim_payload is True, False or a size from 1 to {VALUE_BYTES_CEILING} bytes; "
            f"got {value!r}",
        )
    return True, value


def _target(where: str, argument: str, ref: Any, targets: frozenset[str]) -> str:
    name = state_name(ref)
    if not isinstance(name, str):
        raise _invalid(where, argument, f"{argument} is {_FORMS[argument]}; got {name!r}")
    if name not in targets:
        raise _invalid(
            where,
            argument,
            f"{argument} leads to {name!r}, which is neither declared nor terminal; "
            f"{did_you_mean(name, targets)}",
        )
    return name


_FORMS: Final = {
    "on_ok": "a state or complete()",
    "on_error": "a state, retry_or(state) or fail()",
    "exhausted_to": "a state",
}


def _on_ok(where: str, value: Any, targets: frozenset[str]) -> str:
    if value is None or value == Ending(COMPLETED):
        return COMPLETED
    return _target(where, "on_ok", value, targets)


def _on_error(where: str, value: Any, targets: frozenset[str]) -> tuple[str | None, str | None]:
    """Return where an error leads at once, and where it leads after the last attempt."""
    if value is None:
        return None, None
    if value == Ending(FAILED):
        return FAILED, None
    if isinstance(value, RetryOr):
        return None, _target(where, "on_error", value.target, targets)
    return _target(where, "on_error", value, targets), None


def _retry(
    where: str, value: Any, exhausted_to: str | None, targets: frozenset[str]
) -> Retry | None:
    """Return the declared retry, completed by the target of `retry_or`."""
    if value is not None and not isinstance(value, Retry | Mapping):
        raise _invalid(where, "retry", f"retry is a Retry or a dict of its fields; got {value!r}")
    given = value.as_dict() if isinstance(value, Retry) else dict(value or {})
    if isinstance(given.get("backoff"), Backoff):
        given["backoff"] = given["backoff"].as_dict()
    try:
        check_retry(given)
    except InvalidArgument as error:
        raise _invalid(where, "retry", str(error)) from None
    declared = given.get("exhausted_to")
    if declared is not None:
        _target(where, "exhausted_to", declared, targets)
    if None not in (declared, exhausted_to) and declared != exhausted_to:
        raise _invalid(
            where,
            "retry",
            f"retry leads to {declared!r} when its attempts are used up, retry_or to "
            f"{exhausted_to!r}; say it once",
        )
    if exhausted_to is not None:
        given["exhausted_to"] = exhausted_to
    return Retry(**given) if given else None
