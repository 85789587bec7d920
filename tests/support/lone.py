"""One shard without a process, from the bytes of a request to the bytes of its answers."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from shardflow.actors.messages import Arrival
from shardflow.actors.service import Service
from shardflow.actors.wire import HEADER_BYTES, WireError, pack_answer, read_reply, read_request
from shardflow.flow import commands, family, queries
from shardflow.flow.commands import Hydration, NewFlow
from shardflow.flow.engine import Engine
from shardflow.flow.errors import FlowError, Refused
from shardflow.flow.host import SetClock
from shardflow.flow.limits import NEVER
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.record import Record
from shardflow.flow.replies import Rejected
from shardflow.flow.settings import Settings

encode = msgspec.msgpack.encode
NOW_MS = 1_700_000_000_000
LATER_MS = 10_000
FAR_MS = NOW_MS + 10**11
TYPE = "t"
ALL = Hydration(True, True, 2**40, True)
POLICY = {
    "retry": {"max_retries": 2, "backoff": {"kind": "linear", "base_ms": 5}, "exhausted_to": "z"},
    "retention_ttl_ms": 9_000_000,
    "max_active_ms": 8_000_000_000,
    "states": {"a": {"mode": "parallel", "retry": {"max_reclaims": 3, "max_retries": 1}}},
}


KIN = family.Kin("far", "q", "top", "c", "g", 7, 1)


def history_of(flow_id: str, count: int) -> queries.History:
    """Ask for all of a flow's newest events, with their values."""
    every = queries.History(
        flow_id, None, True, 10, False, None, None, None, None, None, None, True, True
    )
    return replace(every, count=count)


def spawn_of(flow_id: str, total: int = 1, **fields: Any) -> family.Spawn:
    """Return a fan-out of a flow that is not leased."""
    spawn = family.Spawn(
        flow_id,
        None,
        "g",
        "all",
        "waiting",
        "b",
        "failed",
        "fail_parent",
        "cancel_children",
        "a",
        None,
        0,
        total,
        [0],
        b"digest",
    )
    return replace(spawn, **fields)


class Counting:
    """Entropy that never repeats itself and needs no chance."""

    def __init__(self) -> None:
        self._count = 0

    def token_bytes(self, size: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(size, "big")


class Shard:
    """A shard with flows in every condition, and a family; what they are called, `known` says."""

    def __init__(self) -> None:
        self.files = MemoryFiles()
        self._entropy = Counting()
        self._clock = SetClock(NOW_MS)
        self._number = 0
        self.service = self._open()
        self.known: dict[str, Any] = {}
        """Lease tokens by flow, and what the family requests refer to."""
        self._populate()

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def _open(self) -> Service:
        engine = Engine(self.files, self._entropy, Settings(shards=2), sync=True)
        return Service(engine, self._clock, relaxed=False)

    def reopen(self) -> None:
        """End it in order, and recover it from its log: the same flows are there."""
        before = self.records()
        self.engine.close()
        self.service = self._open()
        assert self.records() == before

    def records(self) -> dict[tuple[str | None, str], Record]:
        records = [slot.record for slot in self.engine.state.table if slot.record is not None]
        return {(record.partition_key, record.id): record for record in records}

    def send(self, body: bytes) -> list[Any]:
        """Serve a request; return its answers as a client reads them. None: it was shown out."""
        try:
            request = read_request(body)
        except WireError:
            return []
        if isinstance(request, Rejected):
            assert isinstance(request.refused.error(), FlowError)
            return [request]
        # A client that is none of ours uses a request number again.
        self._number = self._number % 3 + 1
        served = self.service.serve([Arrival(self, self._number, request)])
        replies = [read_reply(pack_answer(d.number, d.answer)[HEADER_BYTES:]) for d in served]
        for reply in replies:
            _check(reply)
        return replies

    def ask(self, request: Any) -> Any:
        """Serve a request of our own."""
        return self.send(encode(request))[0]

    def _populate(self) -> None:
        extra: dict[str, Any] = {
            "attributes": {"k": 1, "f": 1.5},
            "values": {"v": b"\x01"},
            "payload": b"\x01",
        }
        a, p = (TYPE, "a"), "p"
        ready = NewFlow("ready", None, *a, correlation_id="c", parent_flow_id="ready", **extra)
        others = [
            NewFlow("keyed", p, *a, root_flow_id="ready"),
            NewFlow("parked", None, *a, run_at_ms=NEVER),
            NewFlow("short", None, *a, max_active_ms=LATER_MS + 5),
        ]
        self.ask(commands.Create([ready, *others]))
        for flow_id, lease_ms in (("held", 600_000), ("late", 1), ("done", 600_000)):
            item = NewFlow(flow_id, None, *a)
            (record,) = self.ask(commands.StartAndClaim(item, "w", lease_ms)).outcomes
            self.known[flow_id] = record.lease_token
        self.ask(commands.Complete([commands.Ending("done", None, self.known["done"], 1)]))
        self.ask(commands.PolicySet(TYPE, POLICY, False, None))
        self._found_families()
        self.ask(queries.Tick(NOW_MS + LATER_MS))

    def _found_families(self) -> None:
        parents = [NewFlow(name, None, "parent", "a") for name in ("mother", "dad", "aunt")]
        self.ask(commands.Create(parents))
        children = [NewFlow("kid", None, TYPE, "a"), NewFlow("baby", "p", TYPE, "a")]
        self.ask(family.SpawnDecide(None, spawn_of("mother", 2), children))
        self.ask(family.Prepare("unborn", 1, KIN, [NewFlow("unborn", None, TYPE, "a")]))
        begun = self.ask(family.SpawnBegin(spawn_of("dad", 1)))
        group = self.records()[None, "mother"].child_groups["g"]
        self.known |= {"txn": begun.txn, "seq": group.seq}

    def aftermath(self) -> None:
        """Do whatever could meet what a request has left behind."""
        self.reopen()
        self._look()
        for at_ms in (None, FAR_MS):
            claim = commands.ClaimDue(
                TYPE, "w2", None, None, 1_000, 1, None, True, True, 500, ALL, now_ms=at_ms
            )
            granted = self.ask(claim).outcomes
            self.ask(replace(claim, type="elsewhere"))
            for record in granted[::2]:
                retry = commands.Retrying(
                    record.id, record.partition_key, record.lease_token, record.fencing_token
                )
                self.ask(commands.Retry([retry], now_ms=at_ms))
        self.ask(commands.PolicySet(TYPE, {"retry": {"max_retries": 5}}, False, None))
        self._end_families()
        self.ask(commands.Sweep(200, FAR_MS))
        self._look()
        self.reopen()

    def _end_families(self) -> None:
        """Let children be born and end, and parents with open children."""
        for txn in list(self.engine.state.families.prepared):
            self.ask(family.Commit(txn))
        flows = [commands.Ending(name, key, None, None) for key, name in self.records()]
        for at in range(0, len(flows), 1_000):
            ended = [replace(flow, force=True) for flow in flows[at : at + 1_000]]
            self.ask(commands.Cancel(ended[::2], True))
        for outbound in self.send(encode(family.Collect([], []))):
            for dest, number, post in outbound.posts:
                assert 0 <= dest < 2
                if dest == 0:
                    self.ask(family.Deliver(0, number, [post]))
            for _, coordinator in outbound.asks:
                assert 0 <= coordinator < 2

    def _look(self) -> None:
        """Read everything there is to read."""
        for _, flow_id in self.records():
            self.ask(queries.Get(flow_id, None, True, ALL))
            self.ask(history_of(flow_id, 9))
        self.ask(queries.List(TYPE, None, None, None, 1_000, None, False, True))
        self.ask(queries.Lineage("root", "ready", None, None, None, 1_000, None, True))
        self.ask(queries.Info(TYPE))
        self.ask(queries.Stuck(TYPE, 0, 1_000))
        self.ask(queries.PolicyGet(None))
        # Whoever makes up ends of children, or how many there are, makes their group count wrongly.
        problems = self.ask(queries.Stats(True)).data["problems"]
        assert [problem for problem in problems if not problem.startswith("group ")] == []


def _check(reply: Any) -> None:
    """Check that whatever was refused can be raised."""
    if isinstance(reply, Rejected):
        assert isinstance(reply.refused.error(), FlowError)
    for outcome in getattr(reply, "outcomes", ()):
        # A shard's word for a transaction that it has forgotten is not for callers.
        if isinstance(outcome, Refused) and outcome.code != "spawn_aborted":
            assert isinstance(outcome.error(), FlowError)
