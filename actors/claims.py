"""A claim over one or several shards, waiting if asked to: a state machine without I/O.

Over one shard the claim is sent as it is. Over several, a probe asks each what it would find;
then small claims are divided in exact order, large ones go to the shards in the order of their
first flow, so that every shard with due work gets its turn. If nothing is found and the claim may
wait, every shard watches; the first that has something starts the claim again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from ..flow.commands import ClaimDue, Release, Releasing
from ..flow.keys import shard_of
from ..flow.limits import PROBE_KEYS_MAX
from ..flow.queries import Probe, Unwatch, Watch
from ..flow.replies import Done, Heads, Rejected
from .division import divide, first_of, is_reclaimed, merge
from .gather import Everywhere, Part
from .port import Link, Receiver

_PROBES_AGAIN_MAX = 8
"""How often a claim that was beaten to all it saw looks again before it comes back empty."""


class Claim:
    """One claim under way. The receiver gets one `Done`, or the refusal of every shard."""

    def __init__(
        self,
        links: Sequence[Link],
        command: ClaimDue,
        until_ms: int | None,
        receiver: Receiver,
        shards: int | None = None,
    ) -> None:
        """`shards`: of the store, if the claim is over fewer."""
        self._links = links
        self._shards = len(links) if shards is None else shards
        self._command = command
        self._until_ms = until_ms
        """On the store's clock: how long to wait for something; None = not at all."""
        self._receiver = receiver
        self._lock = threading.Lock()
        self._round = 0
        self._probes_left = _PROBES_AGAIN_MAX
        self._waiting: _Watching | None = None
        self._is_given_up = False
        self._since_us = time.time_ns() // 1_000
        self._woken: tuple[Link, int] | None = None
        """The watch that has started this round: what it found is kept for this claim."""

    def give_up(self) -> bool:
        """Stop waiting; True if nothing was claimed and nothing will be, and no answer comes."""
        with self._lock:
            self._is_given_up = True
            waiting, self._waiting = self._waiting, None
            self._round += 1
        if waiting is None:
            return False
        waiting.end()
        return True

    def start(self) -> None:
        """Try once; what follows is driven by the answers."""
        if len(self._links) == 1:
            self._links[0].submit(self._command, Part(self._claimed_alone))
        else:
            self._probe()

    # ---- one shard ----

    def _claimed_alone(self, reply: Any) -> None:
        if isinstance(reply, Rejected) or reply.outcomes or self._until_ms is None:
            self._answer(reply)
        else:
            self._watch()

    # ---- several shards ----

    def _probe(self) -> None:
        command = self._command
        exact = command.limit <= PROBE_KEYS_MAX
        probe = Probe(
            command.type,
            command.states,
            command.partition_keys,
            command.limit if exact else 1,
            command.priority,
            command.due,
            command.expired,
            command.now_ms,
        )
        Everywhere(self._links, self._probed).send(probe)

    def _probed(self, replies: list[Any]) -> None:
        if self._is_given_up:
            self._answer(Done([]))
            return
        served = [
            (link, reply)
            for link, reply in zip(self._links, replies, strict=True)
            if isinstance(reply, Heads)
        ]
        if not served:
            self._answer(replies[0])
        elif self._command.limit <= PROBE_KEYS_MAX:
            self._claim_exactly(served)
        else:
            found = [(link, heads) for link, heads in served if heads.due or heads.expired]
            found.sort(key=lambda pair: first_of(pair[1]))
            self._claim_in_turn([link for link, _ in found])

    def _claim_exactly(self, served: list[tuple[Link, Heads]]) -> None:
        requests = divide(self._command, [heads for _, heads in served])
        chosen = [(link, request) for (link, _), request in zip(served, requests, strict=True)]
        asked = [(link, request) for link, request in chosen if request is not None]
        if not asked:
            self._finish([])
            return
        whole = Everywhere([link for link, _ in asked], self._claimed_exactly)
        whole.send_each([request for _, request in asked])

    def _claimed_exactly(self, replies: list[Any]) -> None:
        """Probe again if others were faster with all that the probe had found."""
        is_beaten = all(not isinstance(r, Rejected) and not r.outcomes for r in replies)
        if is_beaten and self._probes_left:
            self._probes_left -= 1
            self._probe()
        else:
            self._finish(replies)

    def _claim_in_turn(self, links: list[Link]) -> None:
        command = self._command
        replies: list[Any] = []
        rounds = [(link, True) for link in links]
        if command.expired and command.due:
            # Expired leases fill up only once no shard has due flows any more.
            rounds += [(link, False) for link in links]

        turns = iter(rounds)
        left, expired_first = command.limit, command.expired_first
        arrived: deque[Any] = deque()
        driving = threading.Lock()

        def send_next() -> None:
            link, is_first = next(turns, (None, False))
            if link is None or left == 0 or self._is_given_up:
                self._finish(replies)
                return
            if not command.due:
                request = replace(command, limit=left, expired_first=left)
            else:
                request = replace(
                    command,
                    limit=left,
                    expired_first=min(expired_first, left) if is_first else left,
                    due=is_first,
                    expired_after=not is_first,
                )
            link.submit(request, Part(claimed))

        def claimed(reply: Any) -> None:
            arrived.append(reply)
            drive()

        def drive() -> None:
            # A loop, not a recursion: shards in this process answer before submit returns.
            nonlocal left, expired_first
            while arrived and driving.acquire(blocking=False):
                try:
                    reply = arrived.popleft()
                    replies.append(reply)
                    got = [] if isinstance(reply, Rejected) else reply.outcomes
                    left -= len(got)
                    expired_first -= sum(1 for record in got if is_reclaimed(record))
                    expired_first = max(0, expired_first)
                    send_next()
                finally:
                    driving.release()

        send_next()

    def _finish(self, replies: list[Any]) -> None:
        refused = [reply for reply in replies if isinstance(reply, Rejected)]
        done = merge(self._command, [reply for reply in replies if not isinstance(reply, Rejected)])
        unknown = [reply for reply in refused if reply.refused.code == "outcome_unknown"]
        if not done.outcomes and (unknown or (refused and len(refused) == len(replies))):
            # "Nothing is due" would be a lie: leases may have been granted.
            self._answer((unknown or refused)[0])
        elif done.outcomes or self._until_ms is None:
            self._answer(done)
        else:
            self._watch()

    # ---- waiting ----

    def _watch(self) -> None:
        assert self._until_ms is not None
        command = self._command
        watch = Watch(
            command.type,
            command.states,
            command.partition_keys,
            command.priority,
            command.due,
            command.expired,
            self._until_ms,
            since_us=self._since_us,
        )
        self._release()
        waiting = None
        with self._lock:
            if not self._is_given_up:
                self._round += 1
                waiting = self._waiting = _Watching(self, self._round, len(self._links))
        if waiting is None:
            self._answer(Done([]))
            return
        for link in self._links:
            waiting.send(link, watch)

    def again(self, round_number: int, woken: tuple[Link, int] | None) -> None:
        """Try once more: some shard has something, now under the shard's own time."""
        with self._lock:
            self._woken = woken
            is_over = round_number != self._round or self._is_given_up
            if not is_over:
                self._round += 1
                self._waiting = None
        if is_over:
            self._release()
            return
        self._command = replace(self._command, now_ms=None)
        if woken is None:
            self.start()
            return
        # Nothing was due anywhere but there: a probe of all would cost the flow a round trip.
        self._woken = None
        woken[0].submit(self._command, Part(self._claimed_where_woken))

    def _claimed_where_woken(self, reply: Any) -> None:
        is_unknown = isinstance(reply, Rejected) and reply.refused.code == "outcome_unknown"
        if is_unknown or (not isinstance(reply, Rejected) and reply.outcomes):
            self._answer(reply)
        else:
            self.start()

    def over(self, refused: Rejected | None) -> None:
        """End the wait: time is up, or no shard serves."""
        self._answer(refused or Done([]))

    def _answer(self, reply: Any) -> None:
        """Answer; what was granted to a caller that has given up goes back at once."""
        self._release()
        if self._is_given_up and not isinstance(reply, Rejected):
            for link in self._links:
                items = [
                    Releasing(r.id, r.partition_key, r.lease_token, r.fencing_token)
                    for r in reply.outcomes
                    if shard_of(r.partition_key, r.id, self._shards) == link.shard
                ]
                if items:
                    link.submit(Release(items, independent=True), _NOBODY)
        self._receiver.answer(reply)

    def _release(self) -> None:
        """Tell the shard that woke this claim that it is done: the next waiter may be woken.

        The claim itself tells that shard as well; but it may have gone to others only.
        """
        woken, self._woken = self._woken, None
        if woken is not None and len(self._links) > 1:
            link, number = woken
            link.submit(Unwatch(number), _NOBODY)


class _Watching:
    """The watches of one round, one per shard: the first that finds something ends them all."""

    def __init__(self, claim: Claim, round_number: int, shards: int) -> None:
        self._claim = claim
        self._round = round_number
        self._lock = threading.Lock()
        self._left = shards
        self._asked: list[tuple[Link, int]] = []
        self._is_over = False
        self._refused: list[Rejected] = []
        self._shards = shards

    def send(self, link: Link, watch: Watch) -> None:
        number = link.submit(watch, Part(partial(self._answered, link)))
        with self._lock:
            if not self._is_over:
                self._asked.append((link, number))
                return
        link.submit(Unwatch(number), _NOBODY)

    def end(self, woken: Link | None = None) -> tuple[Link, int] | None:
        """Take all watches back but the one that has found something; return that."""
        found = None
        with self._lock:
            self._is_over = True
            asked, self._asked = self._asked, []
        for link, number in asked:
            if link is woken:
                found = link, number
            else:
                link.submit(Unwatch(number), _NOBODY)
        return found

    def _answered(self, link: Link, reply: Any) -> None:
        is_found = not isinstance(reply, Rejected) and reply.data is True
        with self._lock:
            self._left -= 1
            if isinstance(reply, Rejected):
                self._refused.append(reply)
            if self._is_over or not (is_found or self._left == 0):
                return
            self._is_over = True
        if not is_found:
            everyone = len(self._refused) == self._shards
            self._claim.over(self._refused[0] if everyone else None)
            return
        self._claim.again(self._round, self.end(link))


class _Nobody:
    def arrive(self, body: bytes) -> None:
        """Ignore it."""

    def answer(self, reply: Any) -> None:
        """Ignore it."""


_NOBODY = _Nobody()
