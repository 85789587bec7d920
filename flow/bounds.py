"""What the fields of a request may hold, as types: a shard's decoder refuses everything else.

The SDK checks its caller's arguments first, with better words. These hold for whoever speaks to a
shard directly, because what gets past the decoder and cannot be decided ends the shard's process.

Strings are counted in characters, limits in bytes of UTF-8: so a name may take up to four times
its limit here. Where that would add up, as with attributes and the names of values, the decision
counts bytes. What is kept in the log is read back without these: they may become narrower.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal, get_args

from msgspec import Meta

from . import limits

_fields = Meta(max_length=limits.POLICY_FIELDS_MAX)

Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
"""Ids, types, states, partition keys, workers, lease tokens, names of attributes and values."""
Names = Annotated[list[Name], Meta(min_length=1, max_length=limits.FILTER_NAMES_MAX)]
"""A filter: None stands for all, so an empty one has no meaning."""
Wanted = Annotated[list[Name], Meta(max_length=limits.FILTER_NAMES_MAX)]
"""Names of values to bring along."""
Short = Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
"""A partition key in a cursor, "" for none."""

Natural = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
"""Instants, durations, fencing tokens, versions, sizes."""
Positive = Annotated[int, Meta(ge=1, le=limits.INTEGER_MAX)]
"""Durations that must not be over at once: leases, max_active_ms."""
Until = Annotated[int, Meta(ge=0, le=2 * limits.INTEGER_MAX)]
"""An instant plus a duration."""
RequestNumber = Annotated[int, Meta(ge=0)]
"""64 bits in a frame's header."""

Priority = Literal[0, 1, 2]
"""0 to PRIORITY_MAX; as a literal it costs the decoder nothing."""
assert get_args(Priority) == tuple(range(limits.PRIORITY_MAX + 1))
ClaimLimit = Annotated[int, Meta(ge=1, le=limits.CLAIM_LIMIT_MAX)]
ListCount = Annotated[int, Meta(ge=1, le=limits.LIST_COUNT_MAX)]
HistoryCount = Annotated[int, Meta(ge=1, le=limits.HISTORY_COUNT_MAX)]
HistoryEvents = Annotated[int, Meta(ge=1, le=limits.HISTORY_EVENTS_MAX)]
SweepLimit = Annotated[int, Meta(ge=1, le=limits.SWEEP_ITEMS_MAX)]
ValueNumber = Annotated[int, Meta(ge=0, le=limits.VALUE_NUMBER_MAX)]
ValueNumbers = Annotated[list[ValueNumber], Meta(max_length=limits.VALUE_REFS_MAX)]

MaxRetries = Annotated[int, Meta(ge=0, le=limits.MAX_RETRIES_MAX)]
MaxReclaims = Annotated[int, Meta(ge=0, le=limits.MAX_RECLAIMS_MAX)]
BackoffMs = Annotated[int, Meta(ge=0, le=limits.BACKOFF_MS_MAX)]
JitterPct = Annotated[int, Meta(ge=0, le=limits.JITTER_PCT_MAX)]

Value = Annotated[bytes, Meta(max_length=limits.VALUE_BYTES_CEILING)]
"""A payload, result, error or named value, packed."""
PackedValues = Annotated[dict[str, Value], Meta(max_length=limits.NAMED_VALUES_MAX)]

Attribute = (
    str
    | Annotated[int, Meta(ge=-limits.INTEGER_MAX, le=limits.INTEGER_MAX)]
    | Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
    | bool
    | None
)
"""A NaN is not equal to itself, so that an index with one never equals its rebuild."""
Attributes = Annotated[dict[str, Attribute], Meta(max_length=limits.ATTRIBUTES_MAX)]

_Scalar = Natural | Name | None
_Backoff = Annotated[dict[Name, _Scalar], _fields]
_Retry = Annotated[dict[Name, _Scalar | _Backoff], _fields]
_State = Annotated[dict[Name, _Scalar | _Retry], _fields]
_States = Annotated[dict[Name, _Scalar | _State], Meta(max_length=limits.POLICY_STATES_MAX)]
PolicyDocument = Annotated[dict[Name, _Scalar | _States], _fields]
"""No deeper and no wider than any policy; what its fields may hold is for flow/document.py."""
