"""The fields that every end of a flow has in common."""

from __future__ import annotations

from typing import Any

from ..record import Record
from .state import ShardState


def closing(
    state: ShardState, record: Record, end: str, now_ms: int, ttl_ms: int | None = None
) -> dict[str, Any]:
    """Return the changes that end a record; a lease is over with it. Times in ms."""
    return {
        "state": end,
        "run_state": None,
        "version": record.version + 1,
        "attempts": 0,
        "reclaims": 0,
        "updated_at_ms": now_ms,
        "next_run_at_ms": None,
        "lease_owner": None,
        "lease_token": None,
        "lease_deadline_ms": None,
        "expires_at_ms": state.expires_at_ms(record, end, ttl_ms, now_ms),
    }
