"""The courier: carries posts from each shard's outbox to the shards that they are for.

A state machine without I/O, run by the host alone. Nothing is polled and nothing is timed: a
`Collect` waits at its shard until there is something, and the next one goes out with the answer.
What the courier knows is only in memory. After a loss of it, posts come a second time, and their
destinations pass over them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from ..flow.family import Abort, AskOutcome, Collect, Commit, Deliver, Outbound, Post
from ..flow.limits import COLLECT_POSTS_MAX, COURIER_TRIES_MAX, INTEGER_MAX
from ..flow.replies import Data, Rejected
from .errands import Errand, Errands
from .port import Link

logger = logging.getLogger("shardflow.courier")

_HELD = INTEGER_MAX
"""As `Collect.taken`: no post for this destination, whatever its number is."""


def start_courier(links: Sequence[Link]) -> Courier:
    """Let a courier run over these links until it is stopped."""
    courier = Courier(len(links))
    Errands(links, courier.take).send(courier.begin())
    return courier


class _Lane:
    """What one shard has for another: posts taken from it and not known to be applied."""

    def __init__(self) -> None:
        self.posts: deque[Post] = deque()
        self.taken = 0
        """The number of the last of them, or of the last there was."""
        self.acked = 0
        self.is_out = False
        """Whether a Deliver is on its way."""
        self.failures = 0
        self.is_given_up = False

    @property
    def is_held(self) -> bool:
        """Whether no more is to be taken, so that one slow shard does not fill the memory."""
        return self.is_given_up or len(self.posts) > COLLECT_POSTS_MAX

    def take(self, number: int, post: Post) -> None:
        """Take a post in, unless an earlier answer has brought it."""
        if number <= self.taken or self.is_given_up:
            return
        assert number == self.taken + 1 or not self.posts, "an outbox has no gaps"
        self.taken = number
        self.posts.append(post)

    def applied(self, number: int) -> None:
        """Forget posts up to this number."""
        first = self.taken - len(self.posts) + 1
        for _ in range(min(number - first + 1, len(self.posts))):
            self.posts.popleft()
        self.acked = max(self.acked, number)
        # An earlier courier may have brought more than this one has taken so far.
        self.taken = max(self.taken, number)

    def give_up(self) -> None:
        """Take and deliver no more."""
        self.is_given_up = True
        self.posts.clear()


class _Source:
    """One shard's outbox."""

    def __init__(self, shard: int, shards: int) -> None:
        self.shard = shard
        self.lanes = [_Lane() for _ in range(shards)]
        self.asked: Collect | None = None
        """The newest Collect that is not answered yet."""
        self.failures = 0
        self.is_over = False

    def collect(self) -> Collect:
        """Return the request for what is there beyond what was taken."""
        self.asked = Collect(
            [_HELD if lane.is_held else lane.taken for lane in self.lanes],
            [lane.acked for lane in self.lanes],
        )
        return self.asked

    @property
    def has_news(self) -> bool:
        """Whether the Collect that waits should make place for one that says more.

        It should when a held lane is open again; and when all is delivered, because the outbox
        would keep what is applied until the next post comes.
        """
        if self.asked is None:
            return True
        is_opened = any(
            taken == _HELD and not lane.is_held
            for taken, lane in zip(self.asked.taken, self.lanes, strict=True)
        )
        return is_opened or (
            not any(lane.posts for lane in self.lanes)
            and any(
                lane.acked != acked
                for acked, lane in zip(self.asked.acked, self.lanes, strict=True)
            )
        )


class Courier:
    """Says what to send, is told the replies. Told one at a time."""

    def __init__(self, shards: int) -> None:
        self._sources = [_Source(shard, shards) for shard in range(shards)]
        self._asking: set[tuple[int, str]] = set()
        """(shard, transaction) whose outcome is being asked for."""
        self._is_stopped = False

    def begin(self) -> list[Errand]:
        """Return what to send first."""
        return [Errand(source.shard, source.collect()) for source in self._sources]

    def stop(self) -> None:
        """Send nothing more. What is under way is carried again when the store is opened."""
        self._is_stopped = True

    def take(self, errand: Errand, reply: Any) -> list[Errand]:
        """Take one reply, and return what to send next."""
        if self._is_stopped:
            return []
        request = errand.request
        if isinstance(request, Collect):
            return self._collected(self._sources[errand.shard], request, reply)
        if isinstance(request, Deliver):
            return self._delivered(errand.shard, request, reply)
        if isinstance(request, AskOutcome):
            return self._answered(errand.asker, request.txn, reply)
        # A commit or an abort that got lost is asked for again by the shard that waits for it.
        assert isinstance(request, Commit | Abort)
        return []

    # ---- what was sent, and how it ended ----

    def _collected(self, source: _Source, request: Collect, reply: Any) -> list[Errand]:
        if source.asked is request:
            source.asked = None
        if isinstance(reply, Rejected):
            return self._not_collected(source, reply)
        assert isinstance(reply, Outbound)
        source.failures = 0
        for dest, number, post in reply.posts:
            source.lanes[dest].take(number, post)
        errands = self._asks(source, reply.asks)
        for dest in sorted({dest for dest, _, _ in reply.posts}):
            errands += self._deliver(source, dest)
        return errands + self._collect(source)

    def _not_collected(self, source: _Source, reply: Rejected) -> list[Errand]:
        source.failures += 1
        if _may_go_again(reply, source.failures):
            return self._collect(source)
        if not source.is_over:
            source.is_over = True
            _log_end(reply, f"posts of shard {source.shard} are not collected any more")
        return []

    def _delivered(self, dest: int, request: Deliver, reply: Any) -> list[Errand]:
        source = self._sources[request.source]
        lane = source.lanes[dest]
        lane.is_out = False
        if isinstance(reply, Data):
            assert reply.data >= request.first, "a shard applies at least one post"
            lane.failures = 0
            lane.applied(reply.data)
        else:
            lane.failures += 1
            if not _may_go_again(reply, lane.failures):
                lane.give_up()
                _log_end(reply, f"posts of shard {source.shard} to {dest} stay undelivered")
        return self._deliver(source, dest) + self._collect(source)

    def _answered(self, asker: int, txn: str, reply: Any) -> list[Errand]:
        self._asking.discard((asker, txn))
        outcome = reply.data if isinstance(reply, Data) else "undecided"
        if outcome == "committed":
            return [Errand(asker, Commit(txn))]
        if outcome == "aborted":
            return [Errand(asker, Abort(txn))]
        return []

    # ---- what to send ----

    def _collect(self, source: _Source) -> list[Errand]:
        if source.is_over or not source.has_news:
            return []
        return [Errand(source.shard, source.collect())]

    def _deliver(self, source: _Source, dest: int) -> list[Errand]:
        lane = source.lanes[dest]
        if lane.is_out or not lane.posts:
            return []
        lane.is_out = True
        first = lane.taken - len(lane.posts) + 1
        posts = list(islice(lane.posts, COLLECT_POSTS_MAX))
        return [Errand(dest, Deliver(source.shard, first, posts))]

    def _asks(self, source: _Source, asks: list[tuple[str, int]]) -> list[Errand]:
        errands = []
        for txn, coordinator in asks:
            if (source.shard, txn) not in self._asking:
                self._asking.add((source.shard, txn))
                errands.append(Errand(coordinator, AskOutcome(txn), source.shard))
        return errands


def _may_go_again(reply: Rejected, failures: int) -> bool:
    """Whether to repeat a request: its shard went away, and the link keeps it until it is back.

    Not for ever: it may be the very cause of each end of that shard.
    """
    return reply.refused.code == "outcome_unknown" and failures < COURIER_TRIES_MAX


def _log_end(reply: Rejected, told: str) -> None:
    if reply.refused.code != "store_closed":
        logger.error("%s until the store is opened again: %s", told, reply.refused.message)
