"""Test helpers: `shardflow.testing`."""

from __future__ import annotations

from shardflow.sdk.testing import ManualClock, memory_store

__all__ = ["ManualClock", "memory_store"]
