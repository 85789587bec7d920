"""A store's shards, and the roads to them, in one thread: everything happens when it is told to.

Shards are the real services over files in memory. Between a process and a shard is a `Wire`: in
order both ways; wires do not wait for each other. Faults that it has:

- a shard dies between two batches and is started again later. Requests that it had, answered or
  not, end as outcome_unknown, but for reads, which go again; requests that it never got wait.
- a process dies: of its last requests each shard still gets some, and then forgets it.
- with `relaxed` shards, the death of one takes what it had not synced, whole or in part.
- a request is refused on its way, as one too many (`refuses`), or comes twice (`Deliver`).

It does not lose requests on wires that hold, and changes no order on one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from shardflow.actors.messages import Arrival, Departure
from shardflow.actors.service import Service
from shardflow.flow.engine import Engine
from shardflow.flow.family import (
    Abort,
    AskOutcome,
    Collect,
    Commit,
    Deliver,
    SpawnEnd,
)
from shardflow.flow.host import Files, SetClock
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.queries import is_query
from shardflow.flow.replies import reject
from shardflow.flow.settings import Settings
from support.disks import KINDS, Disk, Loss

START_MS = 1_000_000
WAKES_MAX = 1_000
NOBODY = 0
"""The number of a request whose answer nobody hears."""
NEVER_REFUSED = (Collect, Deliver, Commit, Abort, SpawnEnd, AskOutcome)

OnReply = Callable[[Any], None]


class SeededEntropy:
    """Bytes that a seed chooses."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    def token_bytes(self, size: int) -> bytes:
        return self._chance.randbytes(size)


class SimClock(SetClock):
    """Stands still, and orders by counting."""

    def __init__(self) -> None:
        super().__init__(START_MS)
        self._orders = itertools.count(START_MS * 1_000)

    def order_us(self) -> int:
        return next(self._orders)


class Wire:
    """One process's connection to one shard."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.requests: deque[tuple[int, Any]] = deque()
        """Sent, and not read by the shard."""
        self.replies: deque[tuple[int, Any]] = deque()
        """Sent by the shard, and not read."""
        self.pending: dict[int, tuple[Any, OnReply]] = {}
        self.delay = 0.0
        """How often it is passed over when something could be moved on it."""
        self.is_cut = False
        """Its process is dead: nothing follows what is on its way to the shard."""
        self._numbers = itertools.count(1)

    def submit(self, request: Any, on_reply: OnReply) -> None:
        """Send a request; `on_reply` is called once, unless the process dies."""
        number = next(self._numbers)
        self.pending[number] = request, on_reply
        self.requests.append((number, request))

    def refuse(self, request: Any, on_reply: OnReply) -> None:
        """Refuse a request, and never send it."""
        number = next(self._numbers)
        self.pending[number] = request, on_reply
        full = reject("overloaded", "too many requests", reason="requests in flight")
        self.replies.append((number, full))

    def deliver(self) -> None:
        """Let the process read one answer."""
        number, reply = self.replies.popleft()
        if number != NOBODY:
            _, on_reply = self.pending.pop(number)
            on_reply(reply)

    def cut(self, chance: Random) -> None:
        """Let the process die."""
        self.is_cut = True
        self.pending.clear()
        self.replies.clear()
        for _ in range(chance.randint(0, len(self.requests))):
            self.requests.pop()

    def lose_shard(self, chance: Random) -> None:
        """Let the shard die: of what was on its way back, some arrives."""
        for _ in range(chance.randint(0, len(self.replies))):
            self.replies.pop()
        sent = chance.randint(0, len(self.requests))
        unsent = list(self.requests)[sent:]
        kept = {number for number, _ in [*self.replies, *unsent]}
        self.requests = deque(pair for pair in unsent if pair[0] != NOBODY)
        for number, (request, _) in self.pending.items():
            if number in kept:
                continue
            if is_query(request):
                self.requests.append((number, request))
            else:
                self.replies.append((number, reject("outcome_unknown", "the shard went away")))


class Shard:
    """One shard's files, and its service while it is up."""

    def __init__(self, shard: int, shards: int, clock: SimClock, chance: Random, *, relaxed: bool):
        self.shard = shard
        self.service: Service | None = None
        self.wires: list[Wire] = []
        self._settings = Settings(shard=shard, shards=shards)
        self._clock = clock
        self._chance = chance
        self._relaxed = relaxed
        self._files: Files = Disk() if relaxed else MemoryFiles()
        self.start()

    @property
    def engine(self) -> Engine:
        assert self.service is not None, "the shard is up"
        return self.service.engine

    def start(self) -> None:
        """Recover from the log."""
        assert self.service is None
        entropy = SeededEntropy(self._chance)
        engine = Engine(self._files, entropy, self._settings, sync=not self._relaxed)
        assert engine.restored.notes == [], "the disk fails by losing what is on no disk only"
        self.service = Service(
            engine,
            self._clock,
            relaxed=self._relaxed,
            now_s=lambda: self._clock.now_ms() / 1_000,
        )

    def die(self) -> None:
        """Leave the files as they are, or as a power loss leaves them."""
        self.engine.abandon()
        self.service = None
        if isinstance(self._files, Disk):
            loss = Loss(self._chance.choice(KINDS), self._chance.randrange(2**32))
            self._files = self._files.after_crash(loss)
        for wire in self.wires:
            wire.lose_shard(self._chance)
        self.wires = [wire for wire in self.wires if not wire.is_cut]

    def serve(self) -> None:
        """Take one batch: some of what has arrived, from some of the wires."""
        service = self.service
        assert service is not None
        arrivals: list[Arrival] = []
        gone: list[Wire] = []
        wires = [wire for wire in self.wires if self.may_read(wire)]
        self._chance.shuffle(wires)
        for wire in wires[: self._chance.randint(1, len(wires))] if wires else []:
            for _ in range(self._chance.randint(0, len(wire.requests))):
                arrivals.append(Arrival(wire, *wire.requests.popleft()))
            if wire.is_cut and not wire.requests:
                gone.append(wire)
        for wire in gone:
            self.wires.remove(wire)
            service.forget(wire)
        if arrivals:
            _depart(service.serve(arrivals))
        for wire in gone:
            service.forget(wire)
        self.wake()

    def may_read(self, wire: Wire) -> bool:
        """Whether there is something on a wire, and it is not late this time."""
        there = bool(wire.requests) or wire.is_cut
        return there and self._chance.random() >= wire.delay

    def wake(self) -> None:
        """Do what has become due."""
        service = self.service
        for _ in range(WAKES_MAX if service is not None else 0):
            assert service is not None
            at_ms = service.next_wake_ms()
            if at_ms is None or at_ms > self._clock.now_ms():
                return
            _depart(service.wake())
        assert service is None, "the shard wakes for ever, and has nothing to do"

    @property
    def has_work(self) -> bool:
        """Whether anything waits to be read, here or by a process."""
        return any(wire.requests or wire.is_cut or wire.replies for wire in self.wires)


class Process:
    """A process that talks to the shards."""

    def __init__(self, shards: list[Shard]) -> None:
        self.wires = [Wire(shard.shard) for shard in shards]
        self.is_dead = False
        for shard, wire in zip(shards, self.wires, strict=True):
            shard.wires.append(wire)

    def slow_down(self, delay: float) -> None:
        for wire in self.wires:
            wire.delay = delay

    def die(self, chance: Random) -> None:
        self.is_dead = True
        for wire in self.wires:
            wire.cut(chance)


class Network:
    """All shards and processes of one simulated store."""

    def __init__(self, count: int, chance: Random, *, relaxed: bool) -> None:
        self.clock = SimClock()
        self.chance = chance
        self.shards = [
            Shard(shard, count, self.clock, chance, relaxed=relaxed) for shard in range(count)
        ]
        self.processes: list[Process] = []
        self.refuses = 0.0
        """How many of the requests that may be refused are."""
        self.repeats = 0.0
        """How many deliveries come twice."""
        self._delivered: list[tuple[Wire, Deliver]] = []

    def add_process(self) -> Process:
        process = Process(self.shards)
        self.processes.append(process)
        return process

    def send(self, process: Process, shard: int, request: Any, on_reply: OnReply) -> None:
        """Send a request from a process to a shard."""
        wire = process.wires[shard]
        if not isinstance(request, NEVER_REFUSED) and self.chance.random() < self.refuses:
            wire.refuse(request, on_reply)
            return
        wire.submit(request, on_reply)
        if isinstance(request, Deliver):
            self._delivered.append((wire, request))

    def ask(self, shard: int, request: Any) -> Any:
        """Return the answer to a request that nothing is in the way of."""
        service = self.shards[shard].service
        assert service is not None
        departures = service.serve([Arrival(None, NOBODY, request)])
        _depart([departure for departure in departures if departure.caller is not None])
        (answer,) = [departure.answer for departure in departures if departure.caller is None]
        return answer.reply

    def step(self) -> None:
        """Let one shard serve, or one process read an answer, if there is anything to do."""
        moves = list(self._moves())
        if moves:
            self.chance.choice(moves)()
        if self._delivered and self.chance.random() < self.repeats:
            wire, request = self.chance.choice(self._delivered)
            if not wire.is_cut:
                wire.requests.append((NOBODY, request))

    def _moves(self) -> Iterator[Callable[[], None]]:
        for shard in self.shards:
            if shard.service is not None and any(map(shard.may_read, shard.wires)):
                yield shard.serve
            for wire in shard.wires:
                if wire.replies and self.chance.random() >= wire.delay:
                    yield wire.deliver

    def advance(self, ms: int) -> None:
        """Let time pass."""
        self.clock.set(self.clock.now_ms() + ms)
        for shard in self.shards:
            shard.wake()

    def run_dry(self, steps_max: int = 100_000) -> None:
        """Go on until nothing is on its way."""
        for _ in range(steps_max):
            if not any(shard.has_work for shard in self.shards):
                return
            self.step()
        raise AssertionError("messages go round in circles")


def _depart(departures: list[Departure]) -> None:
    for caller, number, answer in departures:
        assert isinstance(caller, Wire)
        if not caller.is_cut:
            caller.replies.append((number, answer.reply))
