"""Requests that concern several shards: split, send, collect, answer once.

State machines without I/O: they are told answers and say what to send. A lock guards each,
because a link may answer in the sender's thread or in the router's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from ..flow.commands import Batch, PolicyAdopt, PolicySet, RetentionCleanup
from ..flow.errors import ambiguous
from ..flow.queries import Get, History, Stuck
from ..flow.record import Record
from ..flow.replies import Data, Done, Events, Rejected, reject
from .port import Link, Receiver
from .wire import read_reply

OnReply = Callable[[Any], None]


class Part:
    """Receives one shard's answer for a gather."""

    __slots__ = ("_on_reply",)

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply

    def arrive(self, body: bytes) -> None:
        """Take the bytes of a reply."""
        self._on_reply(read_reply(body))

    def answer(self, reply: Any) -> None:
        """Take a reply."""
        self._on_reply(reply)


class Everywhere:
    """Sends one request to several shards at once, and hands over all replies in their order."""

    def __init__(self, links: Sequence[Link], whole: Callable[[list[Any]], None]) -> None:
        self._links = links
        self._whole = whole
        self._lock = threading.Lock()
        self._left = len(links)
        self._replies: list[Any] = [None] * len(links)

    def send(self, request: Any) -> None:
        """Send; `whole` is called once, when the last reply is there."""
        for index, link in enumerate(self._links):
            link.submit(request, Part(partial(self._take, index)))

    def send_each(self, requests: Sequence[Any]) -> None:
        """Send each shard its own request."""
        for index, (link, request) in enumerate(zip(self._links, requests, strict=True)):
            link.submit(request, Part(partial(self._take, index)))

    def _take(self, index: int, reply: Any) -> None:
        with self._lock:
            self._replies[index] = reply
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._whole(self._replies)


def scatter_items(
    links: Sequence[Link], command: Batch, shards: Sequence[int], receiver: Receiver
) -> None:
    """Send each shard its items of a batch, and answer with the outcomes in the input's order."""
    places: dict[int, list[int]] = {}
    for place, shard in enumerate(shards):
        places.setdefault(shard, []).append(place)
    groups = list(places.items())

    def whole(replies: list[Any]) -> None:
        outcomes: list[Any] = [None] * len(shards)
        applied = True
        for (_, group), reply in zip(groups, replies, strict=True):
            if isinstance(reply, Rejected):
                applied = False
                for place in group:
                    outcomes[place] = reply.refused
                continue
            applied = applied and reply.applied
            for place, outcome in zip(group, reply.outcomes, strict=True):
                outcomes[place] = outcome
        receiver.answer(Done(outcomes, applied=applied))

    requests = [
        msgspec.structs.replace(command, items=[command.items[place] for place in group])
        for _, group in groups
    ]
    Everywhere([links[shard] for shard, _ in groups], whole).send_each(requests)


def find_first(links: Sequence[Link], home: Link, query: Get | History, receiver: Receiver) -> None:
    """Read a flow whose partition is not known: its automatic bucket first, then every shard.

    Two matches in different partitions are an `ambiguous_flow`.
    """
    exact = msgspec.structs.replace(query, anywhere=False)

    def at_home(reply: Any) -> None:
        if isinstance(reply, Rejected) or _found(reply):
            receiver.answer(reply)
        else:
            Everywhere(links, everywhere).send(msgspec.structs.replace(query, anywhere=True))

    def everywhere(replies: list[Any]) -> None:
        found = [reply for reply in replies if _found(reply)]
        refused = [reply for reply in replies if isinstance(reply, Rejected)]
        if len(found) > 1:
            keys = [_partition_of(reply) for reply in found]
            receiver.answer(Rejected(ambiguous(query.id, keys)))
        else:
            receiver.answer((refused or found or [replies[0]])[0])

    home.submit(exact, Part(at_home))


def _found(reply: Any) -> bool:
    if isinstance(reply, Rejected):
        return False
    if isinstance(reply, Events):
        return reply.events is not None
    return bool(reply.outcomes)


def _partition_of(reply: Any) -> str | None:
    where = reply if isinstance(reply, Events) else reply.outcomes[0]
    key: str | None = where.partition_key
    return key


def merge_stuck(links: Sequence[Link], query: Stuck, receiver: Receiver) -> None:
    """List what is stuck on any shard, the oldest deadline first."""

    def whole(replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Rejected):
                receiver.answer(reply)
                return
        records = [record for reply in replies for record in reply.outcomes]
        records.sort(key=_deadline_of)
        receiver.answer(Done(records[: query.count]))

    Everywhere(links, whole).send(query)


def _deadline_of(record: Record) -> tuple[int, str]:
    return record.lease_deadline_ms or 0, record.id


def sum_up(
    links: Sequence[Link],
    query: Any,
    combine: Callable[[list[Any]], Any],
    receiver: Receiver,
) -> None:
    """Ask every shard for data and answer with what `combine` makes of it."""

    def whole(replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Rejected):
                receiver.answer(reply)
                return
        receiver.answer(Data(combine([reply.data for reply in replies])))

    Everywhere(links, whole).send(query)


def set_policy(links: Sequence[Link], home: Link, command: PolicySet, receiver: Receiver) -> None:
    """Let the type's home shard decide, then have the others adopt; answer when all have.

    A crash in between leaves some behind: the host brings them up when it opens the store.
    """

    def decided(reply: Any) -> None:
        if isinstance(reply, Rejected):
            receiver.answer(reply)
            return
        others = [link for link in links if link is not home]
        if not others:
            receiver.answer(reply)
            return
        data = reply.data
        adopt = PolicyAdopt(command.type, data["policy"], data["generation"])

        def whole(replies: list[Any]) -> None:
            refused = [r for r in replies if isinstance(r, Rejected)]
            if not refused:
                receiver.answer(reply)
                return
            receiver.answer(
                reject(
                    "outcome_unknown",
                    f"the policy of {command.type!r} is at generation {data['generation']}, but "
                    f"not on every shard yet ({refused[0].refused.message}): those that are away "
                    "follow when the store is opened; or set it again",
                )
            )

        Everywhere(others, whole).send(adopt)

    home.submit(command, Part(decided))


def clean_up(links: Sequence[Link], command: RetentionCleanup, receiver: Receiver) -> None:
    """Let the shards, one after the other, remove what is over, up to the limit in all."""
    removed = 0

    def step(index: int) -> None:
        left = command.limit - removed
        if index == len(links) or left == 0:
            receiver.answer(Data(removed))
            return
        request = RetentionCleanup(left, command.now_ms)
        links[index].submit(request, Part(lambda reply: counted(index, reply)))

    def counted(index: int, reply: Any) -> None:
        nonlocal removed
        if isinstance(reply, Rejected):
            receiver.answer(reply)
            return
        removed += reply.data
        step(index + 1)

    step(0)


def read_values(
    links: Sequence[Link],
    requests: dict[int, Any],
    places: dict[int, list[int]],
    receiver: Receiver,
) -> None:
    """Read values by number from the shards that hold them, in the order of the request."""
    size = sum(len(group) for group in places.values())
    shards = list(requests)

    def whole(replies: list[Any]) -> None:
        found: list[Any] = [None] * size
        for shard, reply in zip(shards, replies, strict=True):
            if isinstance(reply, Rejected):
                receiver.answer(reply)
                return
            for place, data in zip(places[shard], reply.data, strict=True):
                found[place] = data
        receiver.answer(Data(found))

    Everywhere([links[shard] for shard in shards], whole).send_each(
        [requests[shard] for shard in shards]
    )
