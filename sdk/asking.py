"""Many calls of a store at once: as futures where it has them, one after the other where not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from ..flow.errors import (
    FlowNotFound,
    FlowTerminal,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    StaleLease,
    StoreNotRunning,
)
from .flowstore import FlowStore
from .plan import Plan

STORE_AWAY: Final = (Overloaded, ShardUnavailable, OutcomeUnknown, StoreNotRunning, OSError)
"""What passes by itself: the call may be made again."""
LEASE_LOST: Final = (StaleLease, FlowTerminal, FlowNotFound)
"""Somebody else has, or has ended, the flow; or its retention is over."""


def has_futures(store: FlowStore) -> bool:
    """Whether a store has futures and batches, as `Store` has; a small fake need not."""
    return getattr(store, "submit", None) is not None


def ask_all(store: FlowStore, plans: Iterable[Plan[Any]], timeout_s: float) -> list[Any]:
    """Make all calls and return, for each, the store's answer or the error that it raised."""
    submit = getattr(store, "submit", None)
    if submit is None:
        return [_tried(store, plan) for plan in plans]
    deadline_s = time.monotonic() + timeout_s
    return [_answer(future, deadline_s) for future in [_sent(submit, plan) for plan in plans]]


def send_all(store: FlowStore, plans: Iterable[Plan[Any]]) -> None:
    """Make calls whose answers nobody waits for."""
    submit = getattr(store, "submit", None)
    for plan in plans:
        if submit is None:
            _tried(store, plan)
        else:
            _sent(submit, plan)


def _tried(store: FlowStore, plan: Plan[Any]) -> Any:
    try:
        return plan.run(store)
    except Exception as error:
        return error


def _sent(submit: Any, plan: Plan[Any]) -> Any:
    try:
        return getattr(submit, plan.command)(*plan.positional, **plan.options)
    except Exception as error:
        return error


def _answer(future: Any, deadline_s: float) -> Any:
    if isinstance(future, Exception):
        return future
    try:
        return future.get(timeout=max(0.0, deadline_s - time.monotonic()))
    except Exception as error:
        return error
