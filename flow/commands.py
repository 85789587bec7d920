"""The write commands: what may be asked of a shard. A command is a value, built once, read once.

Single and `*_many` forms are one command with one or several items. Values (payloads, results,
errors) arrive packed: flow/ never looks inside. `now_ms` None = the shard's clock.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from .bounds import (
    Attributes,
    ClaimLimit,
    HistoryEvents,
    Lease,
    ListCount,
    Name,
    Names,
    Natural,
    PackedValues,
    PolicyDocument,
    Positive,
    Priority,
    Short,
    SweepLimit,
    Text,
    Value,
    Wanted,
)
from .limits import BATCH_ITEMS_MAX
from .policy import RetryPatch

_some = Meta(min_length=1, max_length=BATCH_ITEMS_MAX)


class Item(Struct, array_like=True, frozen=True, gc=False):
    """Base of the items of a batch: one flow is named by each."""

    id: Text
    partition_key: Text | None


class NewFlow(Item, frozen=True, array_like=True, gc=False):
    """The creation arguments. Their digest, `idempotent` left out, is kept on the record."""

    type: Text
    state: str
    priority: Priority = 0
    run_at_ms: Natural | None = None
    payload: bytes | None = None
    correlation_id: Text | None = None
    parent_flow_id: Text | None = None
    root_flow_id: Text | None = None
    attributes: Attributes | None = None
    values: PackedValues | None = None
    retention_ttl_ms: Natural | None = None
    max_active_ms: Positive | None = None
    history_max_events: HistoryEvents | None = None
    idempotent: bool = False


class Ending(Item, frozen=True, array_like=True, gc=False):
    """Complete, fail or cancel one flow. `value` is the result, the error, or the reason."""

    lease_token: str | None
    fencing_token: int | None
    value: bytes | None = None
    payload: bytes | None = None
    values: PackedValues | None = None
    attributes: Attributes | None = None
    retention_ttl_ms: Natural | None = None
    force: bool = False


class Retrying(Item, frozen=True, array_like=True, gc=False):
    """Give a flow back for another attempt, or find it exhausted."""

    lease_token: Name
    fencing_token: Natural
    error: Value | None = None
    payload: Value | None = None
    run_at_ms: Natural | None = None
    retry: RetryPatch | None = None
    values: PackedValues | None = None
    attributes: Attributes | None = None


class Move(Item, frozen=True, array_like=True, gc=False):
    """Move a flow to another logical state, leased or not."""

    from_state: Name
    to_state: Name
    fencing_token: Natural
    lease_token: Name | None = None
    payload: Value | None = None
    run_at_ms: Natural | None = None
    priority: Priority | None = None
    values: PackedValues | None = None
    attributes: Attributes | None = None


class Extension(Item, frozen=True, array_like=True, gc=False):
    """Set a lease's deadline to now + lease_ms."""

    lease_token: Name
    fencing_token: Natural
    lease_ms: Lease


class Releasing(Item, frozen=True, array_like=True, gc=False):
    """Give a leased flow back, as if it had not been claimed."""

    lease_token: Name
    fencing_token: Natural
    run_at_ms: Natural | None = None


class Batch(Struct, array_like=True, frozen=True, tag_field="op", gc=False):
    """Base of commands over items. Not independent: all of them happen, or none."""

    items: list[Any]
    independent: bool = False
    now_ms: Natural | None = None


class Create(Batch, frozen=True, array_like=True, tag_field="op", tag=1, gc=False):
    """Create flows."""

    items: Annotated[list[NewFlow], _some]


class Complete(Batch, frozen=True, array_like=True, tag_field="op", tag=2, gc=False):
    """End leased flows well."""

    items: Annotated[list[Ending], _some]


class Fail(Batch, frozen=True, array_like=True, tag_field="op", tag=3, gc=False):
    """End leased flows badly."""

    items: Annotated[list[Ending], _some]


class Cancel(Batch, frozen=True, array_like=True, tag_field="op", tag=4, gc=False):
    """End flows from outside, leased or not."""

    items: Annotated[list[Ending], _some]


class Retry(Batch, frozen=True, array_like=True, tag_field="op", tag=5, gc=False):
    """Give leased flows back for another attempt."""

    items: Annotated[list[Retrying], _some]


class Transition(Batch, frozen=True, array_like=True, tag_field="op", tag=6, gc=False):
    """Move flows."""

    items: Annotated[list[Move], _some]


class ExtendLease(Batch, frozen=True, array_like=True, tag_field="op", tag=7, gc=False):
    """Renew leases."""

    items: Annotated[list[Extension], _some]


class Release(Batch, frozen=True, array_like=True, tag_field="op", tag=25, gc=False):
    """Give leased flows back without charging an attempt."""

    items: Annotated[list[Releasing], _some]


class StepContinue(Struct, array_like=True, frozen=True, tag_field="op", tag=8, gc=False):
    """Move a leased flow and keep it: new lease token, fencing + 1."""

    item: Move
    lease_ms: Lease
    now_ms: Natural | None = None


class StartAndClaim(Struct, array_like=True, frozen=True, tag_field="op", tag=9, gc=False):
    """Create a flow that is leased from its first moment."""

    item: NewFlow
    worker: Name
    lease_ms: Lease
    now_ms: Natural | None = None


class Hydration(Struct, array_like=True, frozen=True, gc=False):
    """Which values an answer brings along."""

    payload: bool = False
    """The payload; with `outcome`, result and error as well."""
    outcome: bool = False
    max_bytes: int = 0
    """A single value larger than this is left out and flagged."""
    names: bool | Wanted = False
    """Named values: all, none, or those listed."""


class ClaimDue(Struct, array_like=True, frozen=True, tag_field="op", tag=10, gc=False):
    """Lease what is due: `expired_first` expired leases, then due flows, then expired ones."""

    type: str
    worker: Short
    states: Names | None
    """Logical states; None = any."""
    partition_keys: Names | None
    """None = every partition."""
    limit: ClaimLimit
    lease_ms: Lease
    priority: Priority | None
    due: bool
    """False: expired leases only."""
    expired: bool
    """False: due flows only."""
    expired_first: int
    hydration: Hydration
    expired_after: bool = True
    """Whether expired leases also fill what due flows leave free."""
    now_ms: Natural | None = None


class ValuePut(Struct, array_like=True, frozen=True, tag_field="op", tag=11, gc=False):
    """Set a named value of a flow."""

    id: Name
    partition_key: Name | None
    name: Name
    value: Value
    override: bool
    now_ms: Natural | None = None


class SharedValuePut(Struct, array_like=True, frozen=True, tag_field="op", tag=12, gc=False):
    """Store a value that no flow owns; nothing removes it."""

    value: Value
    now_ms: Natural | None = None


class PolicySet(Struct, array_like=True, frozen=True, tag_field="op", tag=13, gc=False):
    """Change the policy of a type, on the shard that decides it."""

    type: Name
    patch: PolicyDocument
    replace: bool
    expected_generation: Natural | None
    now_ms: Natural | None = None


class PolicyAdopt(Struct, array_like=True, frozen=True, tag_field="op", tag=14, gc=False):
    """Take over a policy that the deciding shard has set; older generations are ignored."""

    type: Name
    policy: PolicyDocument
    generation: Natural
    now_ms: Natural | None = None


class Sweep(Struct, array_like=True, frozen=True, tag_field="op", tag=16, gc=False):
    """What a shard does by itself: fail what was active too long, remove what is over."""

    limit: SweepLimit
    now_ms: Natural | None = None


class RetentionCleanup(Struct, array_like=True, frozen=True, tag_field="op", tag=15, gc=False):
    """Remove ended flows whose retention is over."""

    limit: ListCount
    now_ms: Natural | None = None


AnyCommand = (
    Create
    | Complete
    | Fail
    | Cancel
    | Retry
    | Transition
    | ExtendLease
    | Release
    | StepContinue
    | StartAndClaim
    | ClaimDue
    | ValuePut
    | SharedValuePut
    | PolicySet
    | PolicyAdopt
    | RetentionCleanup
    | Sweep
)
