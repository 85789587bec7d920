"""Where a flow lives: partition keys and ids to shards. Pure arithmetic, fixed for ever."""

from __future__ import annotations

from zlib import crc32

AUTO_BUCKETS = 256
"""Flows without a partition key fall into this many hidden buckets by id."""


def shard_of(partition_key: str | None, flow_id: str, shards: int) -> int:
    """Return the index of the shard that owns the flow. Changing this strands existing data."""
    if shards == 1:
        return 0
    if partition_key is None:
        return crc32(flow_id.encode()) % AUTO_BUCKETS % shards
    return crc32(partition_key.encode()) % shards


def shard_of_type(flow_type: str, shards: int) -> int:
    """Return the shard that decides the policy of a type; the others follow it."""
    return crc32(flow_type.encode()) % shards


def shard_of_value(number: int) -> int:
    """Return the shard that holds a value: the low 8 bits of its number."""
    return number & 0xFF
