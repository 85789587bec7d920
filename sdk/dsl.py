"""The words of a workflow's class body: states and what follows them. Declarations only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeVar

from msgspec import Struct

from ..flow.errors import InvalidArgument
from ..flow.policy import Retry
from ..flow.record import COMPLETED, FAILED
from .job import Job

Handler = Callable[[Job], Any]
"""Does the work of one state; returns an outcome, or an awaitable of one."""
H = TypeVar("H", bound=Callable[..., Any])
Mode = Literal["parallel", "fifo"]


class Ending(Struct, frozen=True):
    """What `complete()` and `fail()` return: the flow ends there."""

    state: str


class RetryOr(Struct, frozen=True):
    """What `retry_or()` returns: try again, and go to `target` when the attempts are used up."""

    target: StateRef


class State:
    """One declared state of a workflow; made by `state()`. Usable wherever a state's name is.

    `name` is the name in the store: the attribute's, unless the declaration gave another.
    """

    __slots__ = (
        "claim_payload",
        "function",
        "lease_ms",
        "max_run_ms",
        "mode",
        "name",
        "on_error",
        "on_ok",
        "retry",
    )

    # Held as the user gave them: what is wrong is told when the class is made, which has a name.
    name: Any
    mode: Any
    lease_ms: Any
    max_run_ms: Any
    claim_payload: Any
    retry: Any
    on_ok: Any
    on_error: Any
    function: Handler | None
    """The handler, once there is one."""

    def __set_name__(self, owner: type, attribute: str) -> None:
        if self.name is None:
            self.name = attribute

    def handler(self, function: H) -> H:
        """Make a function, plain or async, the handler of this state; it stays what it was.

        Works in the class body as `@created.handler` and after it as
        `@BillingFlow.created.handler`. The function takes the job and nothing else; in a class
        body, mypy wants `@staticmethod` below this decorator.

        Raises:
            InvalidArgument: if the state has a handler already, or the function cannot take a job.
        """
        if self.function is not None:
            raise InvalidArgument(
                f"state {self.name or ''!r} has the handler {_name(self.function)} already; "
                f"{_name(function)} would be a second one",
                argument="handler",
            )
        check_handler(function)
        # What a staticmethod wraps tells whether it is a coroutine function; the wrapper does not.
        plain: Any = function
        self.function = plain.__func__ if isinstance(plain, staticmethod) else plain
        return function

    def __repr__(self) -> str:
        return f"<state {self.name!r}>"


StateRef = str | State


def state(
    *,
    name: str | None = None,
    mode: Mode = "parallel",
    lease_ms: int | timedelta | None = None,
    max_run_ms: int | timedelta | None = None,
    claim_payload: bool | int | None = None,
    retry: Retry | Mapping[str, Any] | None = None,
    on_ok: StateRef | Ending | None = None,
    on_error: StateRef | Ending | RetryOr | None = None,
) -> State:
    """Declare a state of a workflow. All options are checked when the class is made.

    Without `on_ok` a success completes the flow; without `on_error` an error is retried. A target
    is a declared state or a terminal name (`completed`, `failed`, `cancelled`). A state that bears
    a terminal name documents an end: flows in it are never claimed, so it takes no handler.

    `lease_ms`: how long a claim in this state lasts; None = the store's default.
    `max_run_ms`: how long a `Worker` lets the handler run. After that it gives the job up: the
    lease is renewed no more, so the flow is delivered again when it runs out, and what the handler
    returns is dropped. A handler process is killed, a coroutine cancelled; a thread cannot be.
    `claim_payload`: whether claims bring the payload along; an int is the largest size in bytes
    that they bring. None = the store's default.
    `mode="fifo"`: one flow at a time per partition, in order of arrival; needs `partition_by`.

        created = sf.state(lease_ms=60_000, on_ok="charged", on_error=sf.retry_or("failed"))
    """
    declared = State()
    declared.name = name
    declared.mode = mode
    declared.lease_ms = lease_ms
    declared.max_run_ms = max_run_ms
    declared.claim_payload = claim_payload
    declared.retry = retry
    declared.on_ok = on_ok
    declared.on_error = on_error
    declared.function = None
    return declared


def complete() -> Ending:
    """Say that a success in this state completes the flow: `on_ok=sf.complete()`."""
    return Ending(COMPLETED)


def fail() -> Ending:
    """Say that an error in this state fails the flow at once: `on_error=sf.fail()`."""
    return Ending(FAILED)


def retry_or(state: StateRef) -> RetryOr:
    """Say that an error is retried, and where the flow goes when the attempts are used up.

    on_error=sf.retry_or("failed")
    """
    return RetryOr(state)


def state_name(ref: Any) -> Any:
    """Return the name that a reference to a state stands for; anything else as it is."""
    return ref.name if isinstance(ref, State) else ref


def check_handler(function: Any) -> None:
    """Refuse what cannot be called with one job.

    Raises:
        InvalidArgument: naming the function.
    """
    if not callable(function):
        raise InvalidArgument(
            f"a handler is a function of one argument, the job; got {function!r}",
            argument="handler",
        )
    try:
        signature = inspect.signature(function)
    except ValueError:
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidArgument(
            f"the handler {_name(function)}{signature} is called with one argument, the job: "
            f"{error}",
            argument="handler",
        ) from None


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)
