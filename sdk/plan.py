"""One call of the store, as a value: what each function of a workflow builds, sync or async."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from msgspec import Struct

from .definition import Definition
from .flowstore import FlowStore

P = ParamSpec("P")
T = TypeVar("T")


class Bound(Protocol):
    """What the functions of a workflow need of its class."""

    @property
    def definition(self) -> Definition:
        """What it declares."""
        ...

    def bound_store(self) -> FlowStore:
        """Return the store that the next call goes to."""
        ...


class Plan(Struct, Generic[T], frozen=True):
    """A command of the store with its arguments, and what makes our answer of the store's."""

    command: str
    positional: tuple[Any, ...]
    options: dict[str, Any]
    convert: Callable[[Any], T] | None = None
    """None: the store's answer is ours."""

    def run(self, store: FlowStore) -> T:
        """Call the store and wait."""
        reply = getattr(store, self.command)(*self.positional, **self.options)
        return self._answer(reply)

    async def run_async(self, store: FlowStore) -> T:
        """Call the store's awaitable form, or its plain one in a thread if it has no other."""
        awaitable = getattr(store, "aio", None)
        if awaitable is not None:
            reply = getattr(awaitable, self.command)(*self.positional, **self.options)
        else:
            call = getattr(store, self.command)
            reply = await asyncio.to_thread(call, *self.positional, **self.options)
        return self._answer(await reply if inspect.isawaitable(reply) else reply)

    def _answer(self, reply: Any) -> T:
        answer: T = reply if self.convert is None else self.convert(reply)
        return answer


def waits(
    function: Callable[Concatenate[Any, P], Plan[T]],
) -> classmethod[Any, P, T]:
    """Make a function of a workflow out of one that plans its call: it runs the plan."""

    @wraps(function)
    def run(workflow: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(workflow, *args, **kwargs).run(workflow.bound_store())

    show_answer(run)
    return classmethod(run)


def awaits(
    function: Callable[Concatenate[Any, P], Plan[T]],
) -> classmethod[Any, P, Coroutine[Any, Any, T]]:
    """Make its twin for `Workflow.aio`, of the same signature."""

    @wraps(function)
    async def run(twin: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        workflow = twin.workflow
        return await function(workflow, *args, **kwargs).run_async(workflow.bound_store())

    show_answer(run)
    return classmethod(run)


def runs_itself(function: Callable[Concatenate[Any, P], T]) -> classmethod[Any, P, T]:
    """Make a function of a workflow out of one that calls the store itself, or not at all."""
    return classmethod(function)


def awaits_itself(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> classmethod[Any, P, Coroutine[Any, Any, T]]:
    """Make a function for `Workflow.aio` out of a coroutine function of a workflow."""

    @wraps(function)
    async def run(twin: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await function(twin.workflow, *args, **kwargs)

    return classmethod(run)


def show_answer(function: Any) -> None:
    """Let help() show the answer of a plan where the planning function says Plan[…]."""
    signature = inspect.signature(function)
    answer = str(signature.return_annotation)
    if answer.startswith("Plan["):
        signature = signature.replace(return_annotation=answer[len("Plan[") : -1])
    function.__signature__ = signature
