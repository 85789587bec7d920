"""What a handler may return, and what counts as its outcome if it returns or raises otherwise."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from types import FrameType, TracebackType
from typing import Any, Final

from msgspec import Struct

from ..flow.limits import KIB
from .dsl import Handler, StateRef
from .job import Job

TRACEBACK_BYTES_MAX: Final = 8 * KIB
MESSAGE_BYTES_MAX: Final = 8 * KIB
REPR_BYTES_MAX: Final = 2 * KIB
_PLUMBING: Final = (__name__.removesuffix("outcome"), "asyncio.", "concurrent.futures.")
"""Modules that stand between a worker and a handler in a traceback."""


class Ok(Struct, frozen=True):
    """The work is done: do what the state declares as `on_ok`."""

    value: Any = None


class Err(Struct, frozen=True):
    """The work went wrong: do what the state declares as `on_error`."""

    reason: Any = None


class Raised(Err, frozen=True):
    """The handler raised; `reason` describes what."""


class NoReply(Enum):
    """The type of `NOREPLY`."""

    NOREPLY = "noreply"


NOREPLY: Final = NoReply.NOREPLY
"""The handler has given, or will give, the final command itself."""


class Transition(Struct, frozen=True):
    """Move to another declared state; a payload of None keeps the present one."""

    to: StateRef
    payload: Any = None


class Complete(Struct, frozen=True):
    """End well now, whatever the state declares."""

    value: Any = None


class RetryLater(Struct, frozen=True):
    """Try again: after `in_ms` (at most 30 days), or after the backoff of the state."""

    reason: Any = None
    in_ms: int | timedelta | None = None


class Fail(Struct, frozen=True):
    """End badly now, whatever the state declares."""

    reason: Any = None


Outcome = Ok | Err | NoReply | Transition | Complete | RetryLater | Fail
OUTCOMES: Final = (Ok, Err, NoReply, Transition, Complete, RetryLater, Fail)


def outcome_of(handler: Handler, job: Job) -> Outcome:
    """Call a handler and return its outcome; an exception of its is an `Err`.

    What is not an `Exception`, such as KeyboardInterrupt and SystemExit, passes through.
    """
    try:
        returned = handler(job)
    except Exception as error:
        return Raised(described(error))
    if inspect.iscoroutine(returned):
        returned.close()  # Else it warns that it was never awaited; the outcome says so already.
    return outcome_from(returned)


async def outcome_of_async(handler: Handler, job: Job) -> Outcome:
    """Likewise for a coroutine handler; a plain one runs in a thread, off the event loop."""
    try:
        if is_async(handler):
            returned = await handler(job)
        else:
            returned = await asyncio.to_thread(handler, job)
            if inspect.isawaitable(returned):
                returned = await returned
    except Exception as error:
        return Raised(described(error))
    return outcome_from(returned)


def outcome_from(returned: Any) -> Outcome:
    """Return what a handler returned as an outcome; what is none, is an `Err` that shows it."""
    if isinstance(returned, OUTCOMES):
        return returned
    match returned:
        case ("ok", value) if type(returned) is tuple:
            return Ok(value)
        case ("error", reason) if type(returned) is tuple:
            return Err(reason)
    return Err({"unexpected_worker_result": capped(_safe(repr, returned), REPR_BYTES_MAX)})


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether calling the handler gives a coroutine."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - for objects with an async __call__
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def reason_of(reason: Any) -> Any:
    """Return a reason that can be stored: an exception is told by class and message."""
    return described(reason) if isinstance(reason, BaseException) else reason


def described(error: BaseException) -> dict[str, str]:
    """Return an exception as plain data, with the end of its traceback."""
    told = {
        "exception": type(error).__name__,
        "message": capped(_safe(str, error), MESSAGE_BYTES_MAX),
    }
    if error.__traceback__ is not None:
        text = "".join(_formatted(error, _own_frames(error.__traceback__)))
        told["traceback"] = capped(text, TRACEBACK_BYTES_MAX, from_end=True)
    return told


def _own_frames(frames: TracebackType) -> TracebackType:
    """Return the frames from the handler on: our calls of it tell nobody anything."""
    while frames.tb_next is not None and _is_ours(frames.tb_frame):
        frames = frames.tb_next
    return frames


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_PLUMBING)


def _formatted(error: BaseException, frames: Any) -> list[str]:
    try:
        return traceback.format_exception(type(error), error, frames)
    except Exception:  # A __str__ or __repr__ of the application's.
        return traceback.format_tb(frames)


def _safe(show: Callable[[Any], str], value: Any) -> str:
    try:
        return show(value)
    except Exception:
        return f"<{type(value).__qualname__}, whose {show.__name__}() fails>"


def capped(text: str, bytes_max: int, *, from_end: bool = False) -> str:
    """Return at most so many bytes of a text in UTF-8, from its start or its end."""
    data = text.encode("utf-8", "backslashreplace")
    data = data[max(len(data) - bytes_max, 0) :] if from_end else data[:bytes_max]
    return data.decode("utf-8", "ignore")
