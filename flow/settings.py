"""What a shard is told when it starts; the same for all shards of a store but for its number."""

from __future__ import annotations

from msgspec import Struct

from . import limits


class Settings(Struct, frozen=True):
    """Set when a store is opened; not kept in the log."""

    shard: int = 0
    shards: int = 1
    retention_ms: int = limits.RETENTION_MS_DEFAULT
    """How long completed and cancelled flows are kept, unless they or their policy say more."""
    failed_retention_ms: int = limits.FAILED_RETENTION_MS_DEFAULT
    """Likewise for failed ones."""
    cold_flows_min: int = limits.COLD_FLOWS_MIN
    """Ended flows that stay in memory."""
    max_rss_bytes: int | None = None
    """The memory of the process from which on creations are refused; None = no limit."""
    upkeep: bool = True
    """Whether merges run; without them the log only grows."""
