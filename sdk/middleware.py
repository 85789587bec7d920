"""Middleware: functions around every handler of a worker, called with the job and what follows."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..flow.errors import InvalidArgument
from .dsl import Handler
from .job import Job
from .logs import current_job
from .outcome import is_async

CallNext = Callable[[Job], Any]
Middleware = Callable[[Job, CallNext], Any]
"""`def timed(job, call_next): ...; return call_next(job)`; a coroutine function with async."""


def around(handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    """Return the handler inside its middleware, outermost first, with the job known to the log."""
    call = handler
    for outer in reversed(middleware):
        call = partial(_through, outer, call)
    return partial(_known_to_the_log, call)


def around_async(handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    """Likewise for coroutines. A plain handler runs in a thread, off the event loop."""
    call = handler if is_async(handler) else partial(_in_thread, handler)
    for outer in reversed(middleware):
        call = partial(_through, outer, call)
    return partial(_known_to_the_log_async, call)


def check_middleware(middleware: Iterable[Middleware], *, is_awaited: bool) -> list[Middleware]:
    """Return the middleware of a worker as a list.

    Raises:
        InvalidArgument: if one cannot be called with a job and a function, or is a coroutine
            function where nothing awaits it, or is none where it has to be awaited.
    """
    if callable(middleware):
        raise InvalidArgument(
            f"middleware is a list of functions, outermost first; got {middleware!r}",
            argument="middleware",
        )
    checked = list(middleware)
    for function in checked:
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise InvalidArgument(
                f"a middleware is called with two arguments, the job and call_next; {function!r} "
                f"does not take them: {error}",
                argument="middleware",
            ) from None
        except ValueError:
            pass
        if is_async(function) != is_awaited:
            wanted, what = ("a coroutine", "async") if is_awaited else ("a plain", "thread")
            raise InvalidArgument(
                f"executor={what!r} takes {wanted} function as middleware; {function!r} is not",
                argument="middleware",
            )
    return checked


def _through(outer: Middleware, inner: CallNext, job: Job) -> Any:
    return outer(job, inner)


async def _in_thread(handler: Handler, job: Job) -> Any:
    returned = await asyncio.to_thread(handler, job)
    return await returned if inspect.isawaitable(returned) else returned


def _known_to_the_log(call: CallNext, job: Job) -> Any:
    token = current_job.set(job)
    try:
        return call(job)
    finally:
        current_job.reset(token)


async def _known_to_the_log_async(call: CallNext, job: Job) -> Any:
    token = current_job.set(job)
    try:
        return await call(job)
    finally:
        current_job.reset(token)
