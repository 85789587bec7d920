"""The exceptions of the public surface, and `Refused`, the value they travel as inside.

Ask of each: did it happen (`applied`), may I try again, who must act? The message says the remedy;
the data are attributes. All of them survive pickling.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar, Literal, TypeGuard

from msgspec import Struct

Applied = Literal["no", "yes", "unknown"]


class FlowError(Exception):
    """Base of everything that shardflow raises on purpose.

    `code` names the class in logs and over the wire. `applied` tells whether the command took
    effect. Keyword arguments become attributes.
    """

    code: ClassVar[str] = "flow_error"
    applied: Applied = "no"
    flow_id: str | None = None
    partition_key: str | None = None
    retry_after_ms: int | None = None

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])
        self._fields = fields
        for name, value in fields.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the message and the fields, which the default would lose."""
        return _rebuild, (type(self), self.args[0], self._fields)


def _rebuild(kind: type[FlowError], message: str, fields: dict[str, Any]) -> FlowError:
    return kind(message, **fields)


class InvalidArgument(FlowError, ValueError):
    """An argument is not allowed; nothing was sent or written."""

    code = "invalid_argument"
    argument: str | None = None


class FlowNotFound(FlowError):
    """No flow with this partition key and id; it may have been removed after its retention."""

    code = "flow_not_found"


class FlowAlreadyExists(FlowError):
    """The id is taken in this partition; pass idempotent=True to accept an equal creation."""

    code = "flow_already_exists"


class IdempotencyConflict(FlowError):
    """The same id or key was used before with other arguments."""

    code = "idempotency_conflict"


class WrongState(FlowError):
    """The flow is not in the state that the command expects; read it and decide anew."""

    code = "wrong_state"
    state: str | None = None
    """The logical state that the flow is in."""
    expected: Any = None


class StaleLease(FlowError):
    """The lease is no longer yours: stop working on this flow, do not retry the command."""

    code = "stale_lease"
    fencing_token: int | None = None
    """The flow's current fencing token."""


class FlowTerminal(FlowError):
    """The flow has ended and takes no further commands."""

    code = "flow_terminal"
    state: str | None = None


class AmbiguousFlow(FlowError):
    """The id exists in several partitions; pass partition_key."""

    code = "ambiguous_flow"
    partition_keys: list[str | None]


class ChildGroupConflict(FlowError):
    """The child group exists with other children; use another group_id."""

    code = "child_group_conflict"


class ValueConflict(FlowError):
    """A named value has other bytes already; pass override to replace it."""

    code = "value_conflict"
    name: str | None = None


class StalePolicyGeneration(FlowError):
    """The policy has changed since it was read; read it again and repeat the change."""

    code = "stale_policy_generation"
    generation: int | None = None


class MaxActiveExceeded(FlowError):
    """The flow was active for longer than its max_active_ms and has been failed."""

    code = "max_active_exceeded"


class BatchAborted(FlowError):
    """This item is sound but was not applied: another item of its shard's group was refused."""

    code = "batch_aborted"


class BatchError(FlowError):
    """At least one shard's group was refused; `results` has a record or an error for each item.

    Items whose result is a record *are* applied.
    """

    code = "batch_error"
    results: list[Any]


class Overloaded(FlowError):
    """A bound was reached; nothing was done; come back after retry_after_ms."""

    code = "overloaded"
    retry_after_ms = 100
    reason: str | None = None


class OutcomeUnknown(FlowError):
    """The command was sent but not answered: it may have been applied. Read before repeating it."""

    code = "outcome_unknown"
    applied = "unknown"


class StoreClosed(FlowError):
    """The store is closed; open it again."""

    code = "store_closed"


class StoreLocked(FlowError):
    """Another process owns the data directory; open it with role="attach" or stop that process."""

    code = "store_locked"
    pid: int | None = None
    path: str | None = None


class StoreNotRunning(FlowError):
    """No process hosts the data directory; open it with role="auto" or role="host"."""

    code = "store_not_running"
    path: str | None = None


class StoreConfigError(FlowError):
    """The data directory and the options do not fit together."""

    code = "store_config_error"
    path: str | None = None


class ShardUnavailable(FlowError):
    """A shard is not serving; the other shards go on. `reason` says why."""

    code = "shard_unavailable"
    shard: int | None = None
    reason: str | None = None
    retry_after_ms = 1_000


class CorruptLog(ShardUnavailable):
    """A log holds damaged bytes before its tail; restore the segment from a backup.

    It is a `ShardUnavailable`, because that shard does not serve; the others go on.
    """

    code = "corrupt_log"
    path: str | None = None
    offset: int | None = None


DELETED = "deleted"
"""The `reason` of a `CorruptLog` whose files went while its shard used them: no start brings them
back, though what is left may read as a shorter log."""


def is_final(error: Exception) -> TypeGuard[CorruptLog]:
    """Whether a shard that met this while it served must not be started again."""
    return isinstance(error, CorruptLog) and error.reason == DELETED


class Refused(Struct, array_like=True, frozen=True, gc=False, tag_field="op", tag=0):
    """A refusal as a value: what travels instead of an exception inside flow/ and actors/."""

    code: str
    message: str
    fields: dict[str, Any] = {}

    def error(self) -> FlowError:
        """Return the exception that this refusal becomes at the SDK's edge."""
        return ERRORS[self.code](self.message, **self.fields)


def refusal(error: FlowError) -> Refused:
    """Return the value form of an exception, for one that has to cross a process."""
    return Refused(error.code, str(error.args[0]), error._fields)


def ambiguous(flow_id: str, partition_keys: list[str | None]) -> Refused:
    """Refuse a read by id that several partitions answer."""
    return Refused(
        "ambiguous_flow",
        f"flow {flow_id!r} exists in partitions {sorted(map(str, partition_keys))}; "
        "pass partition_key",
        {"flow_id": flow_id, "partition_keys": partition_keys},
    )


OUT_OF_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))
REFUSALS = OUT_OF_SPACE | {errno.EROFS, errno.EACCES, errno.EPERM}
"""What a disk says that lets no file grow, and that someone can mend while the shard runs."""


def advice(number: int | None) -> str:
    """Return what mends an error of the operating system about files, by its number."""
    if number in OUT_OF_SPACE:
        return "free space there, or raise the quota"
    if number == errno.EROFS:
        return "mount the file system writable"
    if number in (errno.EACCES, errno.EPERM):
        return "give this user the right to write there"
    return "mend that, or use another directory"


ERRORS: dict[str, type[FlowError]] = {
    kind.code: kind
    for kind in (
        FlowError,
        InvalidArgument,
        FlowNotFound,
        FlowAlreadyExists,
        IdempotencyConflict,
        WrongState,
        StaleLease,
        FlowTerminal,
        AmbiguousFlow,
        ChildGroupConflict,
        ValueConflict,
        StalePolicyGeneration,
        MaxActiveExceeded,
        BatchAborted,
        BatchError,
        Overloaded,
        OutcomeUnknown,
        StoreClosed,
        StoreLocked,
        StoreNotRunning,
        StoreConfigError,
        ShardUnavailable,
        CorruptLog,
    )
}
