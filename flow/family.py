"""Families: what shards are told so that a parent and its children on several of them act as one.

A fan-out is a two-phase commit whose coordinator is the parent's shard (presumed abort: Mohan,
Lindsay, Obermarck, "Transaction management in the R* distributed database management system",
1986). What follows later, ends of children and cancellations, travels as posts through outboxes.
docs/two-phase.md has the messages, the states and what recovery does at each crash point.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.msgpack import Encoder

from .bounds import (
    ChildCount,
    Count,
    Depth,
    Digest,
    End,
    Name,
    Natural,
    Ordinal,
    PerShard,
    Shard,
    Shards,
)
from .commands import Item, NewFlow
from .limits import CHILDREN_MAX, COLLECT_POSTS_MAX

Wait = Literal["all", "any", "none"]
OnChildFailed = Literal["fail_parent", "ignore"]
OnParentClosed = Literal["cancel_children", "abandon_children"]
Decision = Literal["committed", "aborted", "undecided"]

Children = Annotated[list[NewFlow], Meta(max_length=CHILDREN_MAX)]

_DIGEST_BYTES = 16
_encode = Encoder(order="deterministic").encode


class Spawn(Item, array_like=True, frozen=True, gc=False):
    """A fan-out as its caller asked for it, without the children. The id is the parent's."""

    group_id: Name
    wait: Wait
    wait_state: Name | None
    success: Name | None
    failure: Name | None
    on_child_failed: OnChildFailed
    on_parent_closed: OnParentClosed
    from_state: Name | None
    lease_token: Name | None
    fencing_token: Natural | None
    total: ChildCount
    """How many children there are, over all shards."""
    shards: Shards
    """The shards that children go to, ascending."""
    digest: Digest
    """Of the children, in whatever order: see `children_digest`."""


class Kin(Struct, array_like=True, frozen=True, gc=False):
    """What children have from their parent."""

    parent_flow_id: Name
    parent_partition_key: Name | None
    root_flow_id: Name
    correlation_id: Name | None
    """The children's, where they were given none."""
    group_id: Name
    group_seq: Count
    """Tells the group from one of the same name of another flow with the parent's id."""
    depth: Depth
    """How many ancestors the children have: 1 for those of a root."""


def children_digest(children: list[NewFlow]) -> bytes:
    """Return a digest of a group's children as the caller gave them, in whatever order."""
    packed = sorted(_encode(child) for child in children)
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for data in packed:
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


# ---- two-phase commands ----


class SpawnBegin(Struct, array_like=True, frozen=True, tag_field="op", tag=17, gc=False):
    """To the parent's shard: may this fan-out be tried? Writes nothing.

    Answered with `Begun`; with the parent's record if the group exists with the same children;
    with `Busy` while another fan-out of this parent is under way; or refused.
    """

    spawn: Spawn
    now_ms: Natural | None = None


class Prepare(Struct, array_like=True, frozen=True, tag_field="op", tag=18, gc=False):
    """To a child's shard: keep these children, invisible, their ids reserved, until told."""

    txn: Name
    coordinator: Shard
    """The parent's shard: to be asked if nothing is heard."""
    kin: Kin
    children: Children
    created_ms: Natural | None = None
    """The time that the children are given as theirs; None = that of their commit."""
    now_ms: Natural | None = None


class SpawnDecide(Struct, array_like=True, frozen=True, tag_field="op", tag=19, gc=False):
    """To the parent's shard: the group exists, with the children of this shard, from now on.

    This write is the commit point. `txn` None: all children are on this shard, and nothing was
    begun or prepared.
    """

    txn: Name | None
    spawn: Spawn
    children: Children
    now_ms: Natural | None = None


class Commit(Struct, array_like=True, frozen=True, tag_field="op", tag=20, gc=False):
    """To a child's shard: the prepared children exist. Unknown transactions are done already."""

    txn: Name
    now_ms: Natural | None = None


class Abort(Struct, array_like=True, frozen=True, tag_field="op", tag=21, gc=False):
    """To a child's shard: forget the prepared children. Unknown transactions are done already."""

    txn: Name
    now_ms: Natural | None = None


class SpawnEnd(Struct, array_like=True, frozen=True, tag_field="op", tag=22, gc=False):
    """To the parent's shard: this transaction will not be decided. Writes nothing."""

    txn: Name
    now_ms: Natural | None = None


class AskOutcome(Struct, array_like=True, frozen=True, tag_field="op", tag=23, gc=False):
    """To the parent's shard: what became of a transaction? Answered with `Data(Decision)`."""

    txn: Name
    now_ms: Natural | None = None


# ---- posts: durable messages from shard to shard ----


class ChildEnded(Struct, array_like=True, frozen=True, tag_field="op", tag=1, gc=False):
    """To the parent's shard: a child of a group has ended."""

    parent_flow_id: Name
    parent_partition_key: Name | None
    group_id: Name
    group_seq: Count
    child_id: Name
    child_partition_key: Name | None
    end: End
    """The child's terminal state."""


class CancelChildren(Struct, array_like=True, frozen=True, tag_field="op", tag=2, gc=False):
    """To a child's shard: end the open children of a parent's group."""

    parent_flow_id: Name
    parent_partition_key: Name | None
    group_id: Name
    group_seq: Count


class Committed(Struct, array_like=True, frozen=True, tag_field="op", tag=3, gc=False):
    """To a child's shard: a transaction was decided, its children exist."""

    txn: Name


Post = ChildEnded | CancelChildren | Committed


class Deliver(Struct, array_like=True, frozen=True, tag_field="op", tag=24, gc=False):
    """Posts from one shard to another, in order, without gaps. Those seen before are passed over.

    Answered with `Data(the number of the last post that has been applied)`.
    """

    source: Shard
    first: Ordinal
    """The number of the first post; the others follow it."""
    posts: Annotated[list[Post], Meta(max_length=COLLECT_POSTS_MAX)]
    now_ms: Natural | None = None


class Collect(Struct, array_like=True, frozen=True, tag_field="op", tag=114, gc=False):
    """To any shard, by the host's courier: what is to be delivered? Waits until there is something.

    Answered with `Outbound`. Repeating it does no harm, so that it counts as a query.
    """

    taken: PerShard
    """Per destination shard: the last post that the courier has already got."""
    acked: PerShard
    """Per destination shard: the last post that is applied there, and may be forgotten here."""
    now_ms: Natural | None = None


AnyFamilyCommand = (
    SpawnBegin | Prepare | SpawnDecide | Commit | Abort | SpawnEnd | AskOutcome | Deliver
)


# ---- replies ----


class Begun(Struct, array_like=True, frozen=True, tag_field="op", tag=6, gc=False):
    """The fan-out may go on under this transaction."""

    txn: Name
    kin: Kin


class Busy(Struct, array_like=True, frozen=True, tag_field="op", tag=7, gc=False):
    """Another fan-out of this parent is under way: the request is to be put again after it."""


class Outbound(Struct, array_like=True, frozen=True, tag_field="op", tag=8, gc=False):
    """What the courier is to do for a shard."""

    posts: list[tuple[int, int, Post]]
    """(destination shard, number, post), per destination ascending and without gaps."""
    asks: list[tuple[str, int]]
    """(transaction, coordinator shard) of prepared children whose outcome has to be asked for."""


# ---- inside the caller's process ----


class SpawnChildren(Struct, array_like=True, frozen=True, gc=False):
    """What a caller asks its port for: the port makes the messages above of it.

    `spawn` comes without total, shards and digest: 0, [] and b"" until the port fills them in.
    """

    spawn: Spawn
    children: list[NewFlow]
    now_ms: Natural | None = None
