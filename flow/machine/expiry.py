"""Retention: ended flows leave once their time is over."""

from __future__ import annotations

from ..commands import RetentionCleanup
from ..index.timequeue import take
from ..replies import Data, Reply
from .state import ShardState, drop_of
from .turn import Turn


def retention_cleanup(state: ShardState, command: RetentionCleanup, turn: Turn) -> Reply:
    """Remove up to `limit` flows that are past their retention; return how many."""
    entries = take([(state.expiry, None)], turn.now_ms, command.limit)
    turn.drops.extend(drop_of(entry[3]) for entry in entries)
    return Data(len(entries))
