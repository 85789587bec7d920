"""What a shard has to tell others: posts in numbered lanes, one lane per destination.

A post is in the log of its sender from the frame that caused it until the destination has applied
it. Numbers grow by 1 per lane; the destination keeps the last one that it applied, so that a post
that comes twice is applied once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..family import Committed, Post


class Outbox:
    """Posts that are not known to be applied, by destination shard, oldest first."""

    def __init__(self) -> None:
        self._lanes: dict[int, deque[tuple[int, Post]]] = {}
        self._last: dict[int, int] = {}
        """Per destination: the last number in use, or used."""

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def last(self, dest: int) -> int:
        """Return the number of the newest post to a destination, 0 if there never was one."""
        return self._last.get(dest, 0)

    def add(self, dest: int, number: int, post: Post) -> None:
        """Take in a post that is, or is about to be, in the log.

        In the log there may be gaps: merges leave out posts that were applied, and `Delivered`,
        which says so, comes later than older ones that no merge has met.
        """
        assert number > self.last(dest), "posts are numbered in the order of the log"
        self._lanes.setdefault(dest, deque()).append((number, post))
        self._last[dest] = number

    def clear(self, dest: int, upto: int) -> bool:
        """Forget what is applied; return whether anything was left to forget."""
        lane = self._lanes.get(dest)
        before = 0 if lane is None else len(lane)
        while lane and lane[0][0] <= upto:
            lane.popleft()
        self._last[dest] = max(self.last(dest), upto)
        return lane is not None and len(lane) < before

    def cleared(self, dest: int) -> int:
        """Return the number of the last post that is known to be applied."""
        lane = self._lanes.get(dest)
        return lane[0][0] - 1 if lane else self.last(dest)

    def after(self, taken: dict[int, int], limit: int) -> list[tuple[int, int, Post]]:
        """Return up to `limit` posts (dest, number, post) behind those taken, lane by lane."""
        found: list[tuple[int, int, Post]] = []
        for dest, lane in sorted(self._lanes.items()):
            if not lane or lane[-1][0] <= taken.get(dest, 0):
                continue
            for number, post in lane:
                if number > taken.get(dest, 0):
                    if len(found) == limit:
                        return found
                    found.append((dest, number, post))
        return found

    def lane(self, dest: int) -> list[tuple[int, Post]]:
        """Return the posts (number, post) that wait for a destination, oldest first."""
        return list(self._lanes.get(dest, ()))

    def promises(self, txn: str) -> bool:
        """Whether a commit of this transaction is still to be delivered."""
        return any(
            isinstance(post, Committed) and post.txn == txn
            for lane in self._lanes.values()
            for _, post in lane
        )

    def lanes(self) -> Iterable[tuple[int, int, int]]:
        """Return (destination, posts that wait, last number) of every lane."""
        return [(dest, len(self._lanes.get(dest, ())), n) for dest, n in sorted(self._last.items())]
