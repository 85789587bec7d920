"""Applying what other shards posted: in order, once."""

from __future__ import annotations

from ..events import Received
from ..family import CancelChildren, ChildEnded, Deliver, Post
from ..limits import CASCADE_ITEMS_MAX, DELIVER_VALUE_BYTES_MAX
from ..replies import Data, Reply, reject
from .cascade import Cascade
from .spawn import commit_prepared
from .state import ShardState
from .turn import Turn


def deliver(state: ShardState, command: Deliver, turn: Turn) -> Reply:
    """Apply posts that are new here, as many as one turn may hold; answer with the last one."""
    if command.source >= state.settings.shards:
        return reject("invalid_argument", "there is no such shard", argument="source")
    seen = state.families.seen.get(command.source, 0)
    if command.first > seen + 1:
        return reject(
            "store_config_error",
            f"shard {state.settings.shard} has applied post {seen} of shard {command.source} and "
            f"is given {command.first}: their logs do not belong together; restore both from the "
            "same backup",
        )
    last = seen
    for number, post in enumerate(command.posts, command.first):
        if number <= seen:
            continue
        if _is_full(turn):
            break
        _apply(state, post, turn)
        last = number
    if last > seen:
        turn.facts.append(Received(command.source, last))
    return Data(last)


def _apply(state: ShardState, post: Post, turn: Turn) -> None:
    if isinstance(post, ChildEnded):
        Cascade(state, turn).note(post)
    elif isinstance(post, CancelChildren):
        Cascade(state, turn).cancel(post)
    else:
        commit_prepared(state, post.txn, turn)


def _is_full(turn: Turn) -> bool:
    size = sum(len(data) for _, data in turn.values)
    return len(turn.puts) >= CASCADE_ITEMS_MAX or size >= DELIVER_VALUE_BYTES_MAX
