"""A fan-out over several shards: a two-phase commit driven from the caller, without I/O.

Begin at the parent's shard, prepare on the children's, decide at the parent's, commit on the
children's. Presumed abort: until the decision is written, giving up is always safe, and whatever
is prepared and never told asks the parent's shard. docs/two-phase.md has what recovery does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from ..flow.commands import NewFlow
from ..flow.errors import Refused
from ..flow.family import (
    Abort,
    Begun,
    Commit,
    Prepare,
    SpawnBegin,
    SpawnChildren,
    SpawnDecide,
    SpawnEnd,
    children_digest,
)
from ..flow.keys import shard_of
from ..flow.limits import SPAWN_TRIES_MAX
from ..flow.replies import Rejected, reject
from .errands import Errand

_UNKNOWN = "outcome_unknown"
_SPAWN_ABORTED = "spawn_aborted"
"""A shard's word for a transaction that it has forgotten; callers never see it."""
_AWAY = frozenset((_UNKNOWN, "shard_unavailable", "corrupt_log", "store_closed", "overloaded"))
"""Refusals that tell of a shard's condition, not of the fan-out."""
_RETRY_AFTER_MS = 100

_Replies = dict[int, Any]
_Then = Callable[[_Replies], list[Errand]]


class Crossing:
    """One fan-out under way: says what to send, is told the replies, ends with one `reply`.

    Each step waits for all its replies. So a shard is never told two things at once, and its
    prepare cannot overtake its abort.
    """

    def __init__(self, request: SpawnChildren, shards: int) -> None:
        spawn = request.spawn
        groups: dict[int, list[NewFlow]] = {}
        for child in request.children:
            groups.setdefault(shard_of(child.partition_key, child.id, shards), []).append(child)
        self._spawn = replace(
            spawn,
            total=len(request.children),
            shards=sorted(groups),
            digest=children_digest(request.children),
        )
        self._now_ms = request.now_ms
        self.home = shard_of(spawn.partition_key, spawn.id, shards)
        """The parent's shard, which coordinates."""
        self._own = groups.pop(self.home, [])
        self._groups = groups
        """Children by shard, without those of the coordinator: they come with the decision."""
        self._txn: str | None = None
        self._tries = 0
        self._replies: _Replies = {}
        self._awaited = 0
        self._then: _Then = self._end
        self._lock = threading.Lock()
        self._may_be_applied = False
        self._is_given_up = False
        self.reply: Any = None
        """The caller's answer, once there is one; then nothing is under way any more."""

    @property
    def shards(self) -> list[int]:
        """Every shard that takes part."""
        return sorted({self.home, *self._groups})

    def alone(self) -> SpawnDecide | None:
        """Return the one command that does it all, if only the parent's shard takes part."""
        if self._groups:
            return None
        return SpawnDecide(None, self._spawn, self._own, self._now_ms)

    def begin(self) -> list[Errand]:
        """Return what to send first."""
        assert self._groups, "a fan-out on one shard is one command"
        self._tries += 1
        # On the shard's own time, like everything that measures how long a transaction takes;
        # the caller's time is for what is written: the decision and the children.
        return self._send({self.home: SpawnBegin(self._spawn)}, self._begun)

    def take(self, errand: Errand, reply: Any) -> list[Errand]:
        """Take one reply, and return what to send next."""
        with self._lock:
            assert errand.shard not in self._replies, "one request per shard and step"
            self._replies[errand.shard] = reply
            if len(self._replies) < self._awaited:
                return []
            replies, self._replies = self._replies, {}
            return self._then(replies)

    def give_up(self) -> bool:
        """Stop as soon as possible; True if nothing was done and nothing will be."""
        with self._lock:
            self._is_given_up = True
            return not self._may_be_applied

    # ---- the steps, each with the replies of the one before ----

    def _begun(self, replies: _Replies) -> list[Errand]:
        reply = replies[self.home]
        if not isinstance(reply, Begun):
            return self._finish(_certain(self.home, reply))
        self._txn = reply.txn
        if self._is_given_up:
            return self._abort(_given_up(), [])
        return self._send(
            {
                shard: Prepare(reply.txn, self.home, reply.kin, group, self._now_ms)
                for shard, group in self._groups.items()
            },
            self._prepared,
        )

    def _prepared(self, replies: _Replies) -> list[Errand]:
        refused = [
            (shard, reply)
            for shard, reply in sorted(replies.items())
            if isinstance(reply, Rejected)
        ]
        if refused:
            return self._abort(_certain(*_most_telling(refused)), self._groups)
        if self._is_given_up:
            return self._abort(_given_up(), self._groups)
        self._may_be_applied = True
        decide = SpawnDecide(self._txn, self._spawn, self._own, self._now_ms)
        return self._send({self.home: decide}, self._decided)

    def _decided(self, replies: _Replies) -> list[Errand]:
        reply = replies[self.home]
        refused = _refused_in(reply)
        if refused is None:
            # A shard that does not hear this is told by the courier: the decision is a post too.
            commits = {shard: Commit(self._must_txn) for shard in self._groups}
            return self._send(commits, lambda _: self._finish(reply))
        if refused.code == _UNKNOWN:
            # Neither commit nor abort would be safe; the shards find out from the coordinator.
            return self._finish(reply)
        self._may_be_applied = False
        if refused.code != _SPAWN_ABORTED:
            return self._abort(reply, self._groups)
        if self._is_given_up:
            return self._abort(_given_up(), self._groups)
        if self._tries == SPAWN_TRIES_MAX:
            return self._abort(_too_often(refused), self._groups)
        return self._abort(None, self._groups)

    def _abort(self, reply: Any, told: Iterable[int]) -> list[Errand]:
        """Have everything forgotten; then answer, or begin again if there is no answer."""
        txn = self._must_txn
        requests: dict[int, Any] = {shard: Abort(txn) for shard in told}
        requests[self.home] = SpawnEnd(txn)

        def aborted(_: _Replies) -> list[Errand]:
            self._txn = None
            if reply is not None:
                return self._finish(reply)
            return self._finish(_given_up()) if self._is_given_up else self.begin()

        return self._send(requests, aborted)

    def _finish(self, reply: Any) -> list[Errand]:
        self.reply = reply
        return self._send({}, self._end)

    def _end(self, replies: _Replies) -> list[Errand]:
        raise AssertionError(f"nothing was under way any more: {replies}")

    # ---- parts ----

    @property
    def _must_txn(self) -> str:
        assert self._txn is not None, "it was begun"
        return self._txn

    def _send(self, requests: dict[int, Any], then: _Then) -> list[Errand]:
        self._awaited = len(requests)
        self._then = then
        return [Errand(shard, request) for shard, request in requests.items()]


def _refused_in(reply: Any) -> Refused | None:
    if isinstance(reply, Rejected):
        return reply.refused
    (outcome,) = reply.outcomes
    return outcome if isinstance(outcome, Refused) else None


def _most_telling(refused: list[tuple[int, Rejected]]) -> tuple[int, Rejected]:
    """Return the refusal to tell: what is wrong with the fan-out, before what is with a shard."""
    telling = [pair for pair in refused if pair[1].refused.code not in _AWAY]
    known = [pair for pair in refused if pair[1].refused.code != _UNKNOWN]
    return (telling or known or refused)[0]


def _certain(shard: int, reply: Any) -> Any:
    """Return the answer to a step before the decision: what it may have done will be undone."""
    if not isinstance(reply, Rejected) or reply.refused.code != _UNKNOWN:
        return reply
    return reject(
        "shard_unavailable",
        f"shard {shard} went away before the fan-out was decided, and nothing was done; try again",
        shard=shard,
        reason="went away",
    )


def _given_up() -> Rejected:
    return reject(
        "shard_unavailable",
        "nothing was done: the fan-out was given up before its decision",
        reason="given up",
    )


def _too_often(refused: Refused) -> Rejected:
    return reject(
        "overloaded",
        f"nothing was done: {refused.message}, as it was {SPAWN_TRIES_MAX} times",
        reason="fan-outs",
        retry_after_ms=_RETRY_AFTER_MS,
    )
