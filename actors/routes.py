"""Which shards a request concerns, and how their answers become one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ..flow import commands, family, queries
from ..flow.errors import Refused
from ..flow.keys import shard_of, shard_of_type, shard_of_value
from ..flow.record import TERMINAL_STATES
from ..flow.replies import Data, Rejected
from . import gather
from .claims import Claim
from .crossing import Crossing
from .errands import Errand, Errands
from .future import ReplyFuture
from .leading import lead
from .pages import Pages
from .port import Link

T = TypeVar("T")


class Routes:
    """Sends each request to the shards that it concerns. Callable from any thread."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._shards = len(links)
        self._turn = itertools.count()

    def submit(
        self, request: Any, read: Callable[[Any], T], until_ms: int | None = None
    ) -> ReplyFuture[T]:
        """Send a request and promise its answer; `until_ms` is how long a claim may wait."""
        future = ReplyFuture(read)
        future.lead = partial(lead, self._links)
        if isinstance(request, commands.ClaimDue):
            links = self._claimed_links(request)
            claim = Claim(links, request, until_ms, future, self._shards)
            future.lead = partial(lead, links)
            future.withdraw = claim.give_up
            claim.start()
        else:
            ROUTES[request.__class__](self, request, future)
        return future

    def _send(self, shard: int, request: Any, future: ReplyFuture[Any]) -> None:
        link = self._links[shard]
        number = link.submit(request, future)
        future.withdraw = lambda: link.withdraw(number)
        future.lead = partial(lead, (link,))

    def by_items(self, command: commands.Batch, future: ReplyFuture[Any]) -> None:
        """Send a batch to the shards of its items."""
        count = self._shards
        items = command.items
        if count == 1 or len(items) == 1:
            item = items[0]
            shard = shard_of(item.partition_key, item.id, count)
            self._send(shard, command, future)
            return
        shards = [shard_of(item.partition_key, item.id, count) for item in items]
        if shards.count(shards[0]) == len(shards):
            self._send(shards[0], command, future)
        else:
            gather.scatter_items(self._links, command, shards, future)

    def by_item(self, command: Any, future: ReplyFuture[Any]) -> None:
        """Send a command with one item to its shard."""
        self._send(
            shard_of(command.item.partition_key, command.item.id, self._shards), command, future
        )

    def by_id(self, command: Any, future: ReplyFuture[Any]) -> None:
        """Send a command that names a flow to its shard."""
        self._send(shard_of(command.partition_key, command.id, self._shards), command, future)

    def read(self, query: Any, future: ReplyFuture[Any]) -> None:
        """Read one flow; without a partition, wherever it is."""
        shard = shard_of(query.partition_key, query.id, self._shards)
        if query.anywhere and self._shards > 1:
            gather.find_first(self._links, self._links[shard], query, future)
        else:
            self._send(shard, query, future)

    def pages(self, query: Any, future: ReplyFuture[Any]) -> None:
        """List over all shards, or over the one of the partition."""
        links = self._links
        if query.partition_key is not None:
            links = (links[shard_of(query.partition_key, "", self._shards)],)
        pages = Pages(links, query, future)
        future.withdraw = pages.give_up
        future.lead = partial(lead, links)
        pages.ask()

    def stuck(self, query: queries.Stuck, future: ReplyFuture[Any]) -> None:
        """List stuck flows of all shards."""
        gather.merge_stuck(self._links, query, future)

    def info(self, query: queries.Info, future: ReplyFuture[Any]) -> None:
        """Add up the counts of all shards."""
        gather.sum_up(self._links, query, add_counts, future)

    def every(self, query: Any, future: ReplyFuture[Any]) -> None:
        """Ask every shard and answer with the list."""
        gather.sum_up(self._links, query, list, future)

    def spawn(self, request: family.SpawnChildren, future: ReplyFuture[Any]) -> None:
        """Have children made, on one shard with one command, else in two phases."""
        crossing = Crossing(request, self._shards)
        alone = crossing.alone()
        if alone is not None:
            self._send(crossing.home, alone, future)
            return

        def take(errand: Errand, reply: Any) -> list[Errand]:
            errands = crossing.take(errand, reply)
            if crossing.reply is not None:
                future.answer(crossing.reply)
            return errands

        future.withdraw = crossing.give_up
        future.lead = partial(lead, [self._links[shard] for shard in crossing.shards])
        Errands(self._links, take).send(crossing.begin())

    def policy_set(self, command: commands.PolicySet, future: ReplyFuture[Any]) -> None:
        """Let the type's home shard decide, then all follow."""
        home = self._links[shard_of_type(command.type, self._shards)]
        gather.set_policy(self._links, home, command, future)

    def policy_get(self, query: queries.PolicyGet, future: ReplyFuture[Any]) -> None:
        """Read from the type's home shard."""
        self._send(shard_of_type(query.type or "", self._shards), query, future)

    def clean_up(self, command: commands.RetentionCleanup, future: ReplyFuture[Any]) -> None:
        """Remove what is over on all shards."""
        gather.clean_up(self._links, command, future)

    def shared_value(self, command: commands.SharedValuePut, future: ReplyFuture[Any]) -> None:
        """Put a value that no flow owns on one shard after the other."""
        self._send(next(self._turn) % self._shards, command, future)

    def values(self, query: queries.ValueGet, future: ReplyFuture[Any]) -> None:
        """Read values from the shards that hold them."""
        places: dict[int, list[int]] = {}
        for place, number in enumerate(query.numbers):
            places.setdefault(shard_of_value(number) % self._shards, []).append(place)
        requests = {
            shard: queries.ValueGet([query.numbers[place] for place in group], query.max_bytes)
            for shard, group in places.items()
        }
        if requests:
            gather.read_values(self._links, requests, places, future)
        else:
            future.answer(Data([]))

    def _claimed_links(self, command: commands.ClaimDue) -> Sequence[Link]:
        keys = command.partition_keys
        if keys is None or self._shards == 1:
            return self._links
        return [self._links[s] for s in sorted({shard_of(k, "", self._shards) for k in keys})]


def add_counts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the shards' answers to an `Info`."""
    states: dict[str, dict[str, int]] = {}
    ends = dict.fromkeys(sorted(TERMINAL_STATES), 0)
    oldest: list[int] = []
    for part in parts:
        for state, counts in part["states"].items():
            have = states.setdefault(state, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                have[name] += count
        for end, count in part["ends"].items():
            ends[end] += count
        if part["oldest_ready_at_ms"] is not None:
            oldest.append(part["oldest_ready_at_ms"])
    return {"states": states, "ends": ends, "oldest_ready_at_ms": min(oldest, default=None)}


def closed() -> Rejected:
    """Return the refusal of a port that was closed."""
    return Rejected(Refused("store_closed", "the store is closed; open it again"))


Route = Callable[[Routes, Any, ReplyFuture[Any]], None]
_BATCHES = (
    commands.Create,
    commands.Complete,
    commands.Fail,
    commands.Cancel,
    commands.Retry,
    commands.Transition,
    commands.ExtendLease,
    commands.Release,
)
ROUTES: dict[type, Route] = {
    **dict.fromkeys(_BATCHES, Routes.by_items),
    commands.StepContinue: Routes.by_item,
    commands.StartAndClaim: Routes.by_item,
    commands.ValuePut: Routes.by_id,
    family.SpawnChildren: Routes.spawn,
    commands.SharedValuePut: Routes.shared_value,
    commands.PolicySet: Routes.policy_set,
    commands.RetentionCleanup: Routes.clean_up,
    queries.Get: Routes.read,
    queries.History: Routes.read,
    queries.List: Routes.pages,
    queries.Lineage: Routes.pages,
    queries.Stuck: Routes.stuck,
    queries.Info: Routes.info,
    queries.PolicyGet: Routes.policy_get,
    queries.ValueGet: Routes.values,
    queries.Stats: Routes.every,
    queries.Backup: Routes.every,
    queries.Tick: Routes.every,
}
