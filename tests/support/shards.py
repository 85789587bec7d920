"""Several engines side by side, driven by hand: one message at a time, restarts in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardflow.flow import commands, family, queries
from shardflow.flow.commands import Hydration, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.errors import Refused
from shardflow.flow.family import Spawn, children_digest
from shardflow.flow.host import SystemEntropy
from shardflow.flow.keys import shard_of
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.record import Record
from shardflow.flow.replies import Data, Done, Rejected
from shardflow.flow.settings import Settings

START_MS = 1_000_000


class Shards:
    """A store without anyone between its shards."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.now_ms = START_MS
        self._files = [MemoryFiles() for _ in range(count)]
        self.engines = [self._open(shard) for shard in range(count)]

    def _open(self, shard: int) -> Engine:
        settings = Settings(shard=shard, shards=self.count)
        return Engine(self._files[shard], SystemEntropy(), settings)

    def restart(self, shard: int, *, clean: bool = False) -> None:
        """Recover a shard from its log."""
        if clean:
            self.engines[shard].close()
        else:
            self.engines[shard].abandon()
        self.engines[shard] = self._open(shard)

    def ask(self, shard: int, request: Any) -> Any:
        """Return a shard's reply to one request."""
        self.now_ms += 1
        answer = self.engines[shard].step([request], self.now_ms, self.now_ms * 1_000)[0]
        assert self.engines[shard].statistics(check=True)["problems"] == []
        return answer.reply

    def home(self, partition_key: str | None, flow_id: str) -> int:
        """Return the shard of a flow."""
        return shard_of(partition_key, flow_id, self.count)

    def key_on(self, shard: int) -> str:
        """Return a partition key that lives on a shard."""
        return next(k for k in map(str, range(1_000)) if self.home(k, "") == shard)

    # ---- flows ----

    def create(self, partition_key: str | None, flow_id: str, **fields: Any) -> Any:
        """Create a flow; return the outcome."""
        item = NewFlow(flow_id, partition_key, "t", "created", **fields)
        reply = self.ask(self.home(partition_key, flow_id), commands.Create([item]))
        return reply.outcomes[0]

    def get(self, partition_key: str | None, flow_id: str) -> Record | None:
        """Read a flow."""
        query = queries.Get(flow_id, partition_key, False, Hydration())
        done = self.ask(self.home(partition_key, flow_id), query)
        return done.outcomes[0] if done.outcomes else None

    def end(self, partition_key: str | None, flow_id: str, how: str = "completed") -> Record:
        """Claim nothing: start and end a flow from outside, or claim and settle it."""
        shard = self.home(partition_key, flow_id)
        record = self.get(partition_key, flow_id)
        assert record is not None
        ending = commands.Ending(flow_id, partition_key, None, None, force=True)
        if how == "cancelled":
            reply = self.ask(shard, commands.Cancel([ending]))
        else:
            claim = commands.ClaimDue(
                record.type,
                "w",
                [record.state],
                None,
                1_000,
                30_000,
                None,
                True,
                True,
                0,
                Hydration(),
            )
            for claimed in self.ask(shard, claim).outcomes:
                if (claimed.partition_key, claimed.id) == (partition_key, flow_id):
                    record = claimed
            assert record.is_leased, "it was due"
            ending = commands.Ending(
                flow_id, partition_key, record.lease_token, record.fencing_token
            )
            kind = commands.Complete if how == "completed" else commands.Fail
            reply = self.ask(shard, kind([ending]))
        outcome = reply.outcomes[0]
        assert isinstance(outcome, Record), outcome
        return outcome

    # ---- families ----

    def spawn_of(
        self, partition_key: str | None, parent_id: str, children: Sequence[NewFlow], **fields: Any
    ) -> Spawn:
        """Return a fan-out as the router would send it."""
        shards = sorted({self.home(child.partition_key, child.id) for child in children})
        given = {
            "group_id": "g",
            "wait": "all",
            "wait_state": "waiting",
            "success": "good",
            "failure": "bad",
            "on_child_failed": "fail_parent",
            "on_parent_closed": "cancel_children",
            "from_state": None,
            "lease_token": None,
            "fencing_token": None,
            **fields,
        }
        return Spawn(
            id=parent_id,
            partition_key=partition_key,
            total=len(children),
            shards=shards,
            digest=children_digest(list(children)),
            **given,
        )

    def fan_out(self, spawn: Spawn, children: Sequence[NewFlow]) -> Any:
        """Run the whole protocol without a fault; return the last outcome."""
        home = self.home(spawn.partition_key, spawn.id)
        if spawn.shards == [home]:
            return _outcome(self.ask(home, family.SpawnDecide(None, spawn, list(children))))
        begun = self.ask(home, family.SpawnBegin(spawn))
        if not isinstance(begun, family.Begun):
            return _outcome(begun)
        for shard in spawn.shards:
            if shard != home:
                reply = self.ask(shard, self.prepare(begun, home, children, shard))
                assert reply == Data(True), reply
        mine = [c for c in children if self.home(c.partition_key, c.id) == home]
        done = self.ask(home, family.SpawnDecide(begun.txn, spawn, mine))
        for shard in spawn.shards:
            if shard != home:
                self.ask(shard, family.Commit(begun.txn))
        return _outcome(done)

    def prepare(
        self, begun: family.Begun, home: int, children: Sequence[NewFlow], shard: int
    ) -> family.Prepare:
        """Return what a child's shard is sent first."""
        own = [c for c in children if self.home(c.partition_key, c.id) == shard]
        return family.Prepare(begun.txn, home, begun.kin, own)

    def courier(self, *, twice: bool = False) -> int:
        """Deliver everything until nothing is left to do; return how many posts that were."""
        taken = [[0] * self.count for _ in range(self.count)]
        delivered = 0
        for _ in range(10_000):
            moved = 0
            for source in range(self.count):
                moved += self._round(source, taken[source], twice=twice)
            if not moved:
                return delivered
            delivered += moved
        raise AssertionError("posts go round in circles")

    def _round(self, source: int, applied: list[int], *, twice: bool) -> int:
        query = family.Collect(list(applied), list(applied))
        outbound = self.engines[source].collect(query, self.now_ms)
        if outbound is None:
            return 0
        for dest in range(self.count):
            lane = [(number, post) for to, number, post in outbound.posts if to == dest]
            if lane:
                deliver = family.Deliver(source, lane[0][0], [post for _, post in lane])
                for _ in range(2 if twice else 1):
                    reply = self.ask(dest, deliver)
                    assert isinstance(reply, Data), reply
                    applied[dest] = reply.data
        for txn, coordinator in outbound.asks:
            decision = self.ask(coordinator, family.AskOutcome(txn)).data
            if decision != "undecided":
                kind = family.Commit if decision == "committed" else family.Abort
                self.ask(source, kind(txn))
        return len(outbound.posts) + len(outbound.asks)


def _outcome(reply: Any) -> Record | Refused:
    if isinstance(reply, Rejected):
        return reply.refused
    assert isinstance(reply, Done), reply
    outcome: Record | Refused = reply.outcomes[0]
    return outcome
