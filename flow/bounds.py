"""What the fields of a request may hold, as types: a shard's decoder refuses everything else.

The SDK checks its caller's arguments first, and has better words for it. These hold for whoever
speaks to a shard directly: a request that is decoded and then cannot be decided would end the
shard's process. flow/machine/allowed.py has what types cannot say.

A bound costs 2 to 5 ns where the decoder meets it, so that a field of a batch's items has one only
where something depends on it. What is merely compared, such as a token or the type that a claim
asks for, has none. Strings are counted in characters, limits in bytes of UTF-8: a name may take
four times its limit here. The names and attributes of a new flow are measured by its creation.

New flows and posts are also in the log, for a while: a bound of theirs may widen, never narrow.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from msgspec import Meta

from . import limits
from .record import TERMINAL_STATES

Text = Annotated[str, Meta(min_length=1)]
Short = Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
"""Ids, types, states, partition keys, workers, lease tokens."""
Names = Annotated[list[str], Meta(min_length=1, max_length=limits.FILTER_NAMES_MAX)]
"""A filter: None stands for all, so that an empty one has no meaning."""
Wanted = Annotated[list[str], Meta(max_length=limits.FILTER_NAMES_MAX)]
"""Names of values that an answer is to bring along."""

Natural = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
"""Instants, durations, fencing tokens, versions, sizes, generations."""
Positive = Annotated[int, Meta(ge=1, le=limits.INTEGER_MAX)]
"""A duration that must not be over at once."""
Lease = Annotated[int, Meta(ge=1)]
"""Likewise; the deadline that comes of it is capped."""
Until = Annotated[int, Meta(ge=0, le=2 * limits.INTEGER_MAX)]
"""An instant plus a duration."""
RequestNumber = Annotated[int, Meta(ge=0)]
BackupName = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""Becomes a part of a folder's name, so nothing else may be in it."""
Count = Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)]
"""What a shard counts by itself: values, orders, posts."""
Ordinal = Annotated[int, Meta(ge=1, le=limits.COUNT_MAX)]
ValueNumbers = Annotated[list[Count], Meta(max_length=limits.VALUE_REFS_MAX)]

if TYPE_CHECKING:
    # Who makes a request has these, and nothing more exact.
    Priority = int
    End = str
    PolicyDocument = dict[str, Any]
else:
    # A literal costs the decoder nothing.
    Priority = Literal[0, 1, 2]
    assert get_args(Priority) == tuple(range(limits.PRIORITY_MAX + 1))
    End = Literal[tuple(sorted(TERMINAL_STATES))]
    # No deeper and no wider than a policy is; what its fields may hold is for flow/document.py.
    _fields = Meta(max_length=limits.POLICY_FIELDS_MAX)
    _Scalar = Natural | Name | None
    _Backoff = Annotated[dict[Name, _Scalar], _fields]
    _Retry = Annotated[dict[Name, _Scalar | _Backoff], _fields]
    _State = Annotated[dict[Name, _Scalar | _Retry], _fields]
    _States = Annotated[dict[Name, _Scalar | _State], Meta(max_length=limits.POLICY_STATES_MAX)]
    PolicyDocument = Annotated[dict[Name, _Scalar | _States], _fields]
ClaimLimit = Annotated[int, Meta(ge=1, le=limits.CLAIM_LIMIT_MAX)]
ListCount = Annotated[int, Meta(ge=1, le=limits.LIST_COUNT_MAX)]
HistoryCount = Annotated[int, Meta(ge=1, le=limits.HISTORY_COUNT_MAX)]
HistoryEvents = Annotated[int, Meta(ge=1, le=limits.HISTORY_EVENTS_MAX)]
SweepLimit = Annotated[int, Meta(ge=1, le=limits.SWEEP_ITEMS_MAX)]

MaxRetries = Annotated[int, Meta(ge=0, le=limits.MAX_RETRIES_MAX)]
MaxReclaims = Annotated[int, Meta(ge=0, le=limits.MAX_RECLAIMS_MAX)]
BackoffMs = Annotated[int, Meta(ge=0, le=limits.BACKOFF_MS_MAX)]
JitterPct = Annotated[int, Meta(ge=0, le=limits.JITTER_PCT_MAX)]

Value = Annotated[bytes, Meta(max_length=limits.VALUE_BYTES_CEILING)]
"""A value of a flow, packed. Those of a batch's items are bounded by the frame they came in."""
PackedValues = Annotated[dict[str, bytes], Meta(max_length=limits.NAMED_VALUES_MAX)]

Attribute = (
    str
    | Annotated[int, Meta(ge=-limits.INTEGER_MAX, le=limits.INTEGER_MAX)]
    | Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
    | bool
    | None
)
"""A NaN is not equal to itself: with one in it, no record equals what the log has of it."""
Attributes = Annotated[dict[str, Attribute], Meta(max_length=limits.ATTRIBUTES_MAX)]

Shard = Annotated[int, Meta(ge=0, lt=limits.SHARDS_MAX)]
Shards = Annotated[list[Shard], Meta(max_length=limits.SHARDS_MAX)]
PerShard = Annotated[list[Count], Meta(max_length=limits.SHARDS_MAX)]
ChildCount = Annotated[int, Meta(ge=0, le=limits.CHILDREN_MAX)]
Depth = Annotated[int, Meta(ge=1, le=limits.DEPTH_MAX)]
Digest = Annotated[bytes, Meta(max_length=limits.DIGEST_BYTES_MAX)]


def is_long(name: str) -> bool:
    """Whether a name takes more than its limit in bytes."""
    # A character takes at most four.
    return len(name) > limits.NAME_BYTES_MAX // 4 and len(name.encode()) > limits.NAME_BYTES_MAX
