"""The write commands: what may be asked of a shard. A command is a value, built once, read once.

Single and `*_many` forms are one command with one or several items. Values (payloads, results,
errors) arrive packed: flow/ never looks inside. `now_ms` None = the shard's clock.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from .policy import RetryPatch
from .record import AttributeValue

Attributes = dict[str, AttributeValue]
PackedValues = dict[str, bytes]


class Item(Struct, array_like=True, frozen=True, gc=False):
    """Base of the items of a batch: one flow is named by each."""

    id: str
    partition_key: str | None


class NewFlow(Item, frozen=True, array_like=True, gc=False):
    """The creation arguments. Their digest, `idempotent` left out, is kept on the record."""

    type: str
    state: str
    priority: int = 0
    run_at_ms: int | None = None
    payload: bytes | None = None
    correlation_id: str | None = None
    parent_flow_id: str | None = None
    root_flow_id: str | None = None
    attributes: Attributes | None = None
    values: PackedValues | None = None
    retention_ttl_ms: int | None = None
    max_active_ms: int | None = None
    history_max_events: int | None = None
    idempotent: bool = False


class Ending(Item, frozen=True, array_like=True, gc=False):
    """Complete, fail or cancel one flow. `value` is the result, the error, or the reason."""

    lease_token: str | None
    fencing_token: int | None
    value: bytes | None = None
    payload: bytes | None = None
    values: PackedValues | None = None
    attributes: Attributes | None = None
    retention_ttl_ms: int | None = None
    force: bool = False


class Retrying(Item, frozen=True, array_like=True, gc=False):
    """Give a flow back for another attempt, or find it exhausted."""

    lease_token: str
    fencing_token: int
    error: bytes | None = None
    payload: bytes | None = None
    run_at_ms: int | None = None
    retry: RetryPatch | None = None
    values: PackedValues | None = None
    attributes: Attributes | None = None


class Move(Item, frozen=True, array_like=True, gc=False):
    """Move a flow to another logical state, leased or not."""

    from_state: str
    to_state: str
    fencing_token: int
    lease_token: str | None = None
    payload: bytes | None = None
    run_at_ms: int | None = None
    priority: int | None = None
    values: PackedValues | None = None
    attributes: Attributes | None = None


class Extension(Item, frozen=True, array_like=True, gc=False):
    """Set a lease's deadline to now + lease_ms."""

    lease_token: str
    fencing_token: int
    lease_ms: int


class Batch(Struct, array_like=True, frozen=True, tag_field="op", gc=False):
    """Base of commands over items. Not independent: all of them happen, or none."""

    items: list[Any]
    independent: bool = False
    now_ms: int | None = None


class Create(Batch, frozen=True, array_like=True, tag_field="op", tag=1, gc=False):
    """Create flows."""

    items: list[NewFlow]


class Complete(Batch, frozen=True, array_like=True, tag_field="op", tag=2, gc=False):
    """End leased flows well."""

    items: list[Ending]


class Fail(Batch, frozen=True, array_like=True, tag_field="op", tag=3, gc=False):
    """End leased flows badly."""

    items: list[Ending]


class Cancel(Batch, frozen=True, array_like=True, tag_field="op", tag=4, gc=False):
    """End flows from outside, leased or not."""

    items: list[Ending]


class Retry(Batch, frozen=True, array_like=True, tag_field="op", tag=5, gc=False):
    """Give leased flows back for another attempt."""

    items: list[Retrying]


class Transition(Batch, frozen=True, array_like=True, tag_field="op", tag=6, gc=False):
    """Move flows."""

    items: list[Move]


class ExtendLease(Batch, frozen=True, array_like=True, tag_field="op", tag=7, gc=False):
    """Renew leases."""

    items: list[Extension]


class StepContinue(Struct, array_like=True, frozen=True, tag_field="op", tag=8, gc=False):
    """Move a leased flow and keep it: new lease token, fencing + 1."""

    item: Move
    lease_ms: int
    now_ms: int | None = None


class StartAndClaim(Struct, array_like=True, frozen=True, tag_field="op", tag=9, gc=False):
    """Create a flow that is leased from its first moment."""

    item: NewFlow
    worker: str
    lease_ms: int
    now_ms: int | None = None


class Hydration(Struct, array_like=True, frozen=True, gc=False):
    """Which values an answer brings along."""

    payload: bool = False
    """The payload; with `outcome`, result and error as well."""
    outcome: bool = False
    max_bytes: int = 0
    """A single value larger than this is left out and flagged."""
    names: bool | list[str] = False
    """Named values: all, none, or those listed."""


class ClaimDue(Struct, array_like=True, frozen=True, tag_field="op", tag=10, gc=False):
    """Lease what is due: `expired_first` expired leases, then due flows, then expired ones."""

    type: str
    worker: str
    states: list[str] | None
    """Logical states; None = any."""
    partition_keys: list[str] | None
    """None = every partition."""
    limit: int
    lease_ms: int
    priority: int | None
    due: bool
    """False: expired leases only."""
    expired: bool
    """False: due flows only."""
    expired_first: int
    hydration: Hydration
    expired_after: bool = True
    """Whether expired leases also fill what due flows leave free."""
    now_ms: int | None = None


class ValuePut(Struct, array_like=True, frozen=True, tag_field="op", tag=11, gc=False):
    """Set a named value of a flow."""

    id: str
    partition_key: str | None
    name: str
    value: bytes
    override: bool
    now_ms: int | None = None


class SharedValuePut(Struct, array_like=True, frozen=True, tag_field="op", tag=12, gc=False):
    """Store a value that no flow owns; nothing removes it."""

    value: bytes
    now_ms: int | None = None


class PolicySet(Struct, array_like=True, frozen=True, tag_field="op", tag=13, gc=False):
    """Change the policy of a type, on the shard that decides it."""

    type: str
    patch: dict[str, Any]
    replace: bool
    expected_generation: int | None
    now_ms: int | None = None


class PolicyAdopt(Struct, array_like=True, frozen=True, tag_field="op", tag=14, gc=False):
    """Take over a policy that the deciding shard has set; older generations are ignored."""

    type: str
    policy: dict[str, Any]
    generation: int
    now_ms: int | None = None


class Sweep(Struct, array_like=True, frozen=True, tag_field="op", tag=16, gc=False):
    """What a shard does by itself: fail what was active too long, remove what is over."""

    limit: int
    now_ms: int | None = None


class RetentionCleanup(Struct, array_like=True, frozen=True, tag_field="op", tag=15, gc=False):
    """Remove ended flows whose retention is over."""

    limit: int
    now_ms: int | None = None


AnyCommand = (
    Create
    | Complete
    | Fail
    | Cancel
    | Retry
    | Transition
    | ExtendLease
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
