"""Fan-outs, ends and cancellations at random over a network that fails, and what must come of it.

One number, the seed, chooses everything. Several drivers fan out at a time, some for one parent,
some the very same group, some with ids that another one has; children end in every way, their
parents end or move away, and become children's parents themselves; shards, callers and the host
die. In the end all is up, time passes, everything is delivered; then `Simulation.problems` says
what is not as it must be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from shardflow.actors.courier import Courier
from shardflow.actors.errands import Errand
from shardflow.flow import commands, family
from shardflow.flow.commands import Ending, Hydration, Move, NewFlow, Retrying
from shardflow.flow.errors import Refused
from shardflow.flow.family import AskOutcome, SpawnChildren, SpawnDecide
from shardflow.flow.keys import shard_of
from shardflow.flow.limits import ASK_AGAIN_MS, SPAWN_MS_MAX
from shardflow.flow.policy import RetryPatch
from shardflow.flow.record import TERMINAL_STATES, Record
from shardflow.flow.replies import Data, Done, Rejected
from support.driving import FanOut
from support.families import Census, Key, problems_of
from support.network import Network, Process, Shard

GROUPS = ("g1", "g2")
ENDS = ("waiting", "on", "completed", "failed")
CHILDREN_MAX = 6
STEPS = 600
TIMES_MS = (1, 100, ASK_AGAIN_MS, ASK_AGAIN_MS, ASK_AGAIN_MS, SPAWN_MS_MAX)


class Simulation:
    """A store under a seed."""

    def __init__(self, seed: int, *, relaxed: bool | None = None) -> None:
        self.chance = Random(seed)
        self.count = self.chance.randint(2, 4)
        self.seen: Counter[str] = Counter()
        """How often what happened, to see that runs come to where it matters."""
        self._relaxed = self.chance.random() < 0.15 if relaxed is None else relaxed
        self.network = Network(self.count, self.chance, relaxed=self._relaxed)
        self.network.refuses = self.chance.choice((0.0, 0.0, 0.05))
        self.network.repeats = 0.05
        self.fan_outs: list[FanOut] = []
        self._deadly = self.chance.choice((0.0, 0.01, 0.03))
        self._pace = self.chance.choice((120, 240))
        """How many messages pass for one thing that a caller does."""
        self._flows = 0
        self._host = self._new_host()
        self._callers: list[Process] = [self._host]
        for _ in range(self.chance.randint(2, 5)):
            self._create()

    # ---- the run ----

    def run(self) -> list[str]:
        """Go through it all, and return what is wrong in the end."""
        for _ in range(STEPS):
            self._choose()()
        return self.quiesce()

    def quiesce(self) -> list[str]:
        """Let everything come to its end."""
        network = self.network
        network.refuses = network.repeats = 0.0
        for process in network.processes:
            process.slow_down(0.0)
        for shard in network.shards:
            if shard.service is None:
                shard.start()
        network.run_dry()
        # Twice: what has been asked for may be undecided until the coordinator's time is over.
        for _ in range(2 * max(SPAWN_MS_MAX, ASK_AGAIN_MS) // ASK_AGAIN_MS + 2):
            network.advance(ASK_AGAIN_MS)
            network.run_dry()
        return self.problems()

    def problems(self) -> list[str]:
        """Return what is wrong, after everything has come to its end."""
        engines = [shard.engine for shard in self.network.shards]
        found = problems_of(engines)
        census = Census(engines)
        for number, fan_out in enumerate(self.fan_outs):
            if fan_out.outcome is None:
                found.append(f"fan-out {number} of {fan_out.group} has no answer")
            # On one shard, relaxed durability may lose what was answered; across shards it may not.
            lasts = fan_out.is_across or not self._relaxed
            group = self._group_of(census, fan_out)
            is_there = group is not None and group.digest == fan_out.digest
            if fan_out.outcome == "record" and lasts and not is_there:
                found.append(f"fan-out {number} of {fan_out.group} was answered, and is not there")
        for key, record in census.records.items():
            for group_id, group in record.child_groups.items():
                callers = [
                    fan_out
                    for fan_out in self.fan_outs
                    if fan_out.group == (key, group_id) and fan_out.digest == group.digest
                ]
                if all(fan_out.is_refused for fan_out in callers):
                    found.append(f"{key} has a group {group_id} that was refused")
        return found

    @staticmethod
    def _group_of(census: Census, fan_out: FanOut) -> Any:
        key, group_id = fan_out.group
        parent = census.records.get(key)
        return None if parent is None else parent.child_groups.get(group_id)

    def note(self, errand: Errand, reply: Any) -> None:
        """Count where a fan-out has come to."""
        name = type(errand.request).__name__
        if isinstance(reply, Rejected):
            name += f" {reply.refused.code}"
        elif isinstance(errand.request, SpawnDecide) and isinstance(reply.outcomes[0], Refused):
            name += f" {reply.outcomes[0].code}"
        self.seen[name] += 1

    # ---- what may happen next ----

    def _choose(self) -> Callable[[], None]:
        chance = self.chance.random()
        if chance < self._deadly:
            return self.chance.choice(
                (self._shard_dies,) * 4 + (self._caller_dies, self._caller_dies, self._host_dies)
            )
        if self._is_anything_down() and chance < self._deadly + 0.1:
            return self._start_shard
        work = (
            (10, self._fan_out),
            (8, self._end_one),
            (3, self._cancel_one),
            (1, self._move_one),
            (2, self._write_checkpoint),
            (1, self._give_up_one),
            (3, self._pass_time),
            (self._pace, self.network.step),
        )
        return self.chance.choices([do for _, do in work], [weight for weight, _ in work])[0]

    def _is_anything_down(self) -> bool:
        return any(shard.service is None for shard in self.network.shards)

    def _shard_dies(self) -> None:
        """Let a shard die: better one that has to answer something, and each kind as often."""
        up = [shard for shard in self.network.shards if shard.service is not None]
        asked: dict[str, list[Shard]] = {}
        for shard in up:
            for kind in {
                type(request) for wire in shard.wires for request, _ in wire.pending.values()
            }:
                asked.setdefault(kind.__name__, []).append(shard)
        if not up:
            return
        victims = asked[self.chance.choice(sorted(asked))] if asked else up
        victim = self.chance.choice(victims)
        if self.chance.random() < 0.5:
            victim.serve()
        self.seen["shard died"] += 1
        victim.die()

    def _start_shard(self) -> None:
        for shard in self.network.shards:
            if shard.service is None:
                shard.start()
                return

    def _caller_dies(self) -> None:
        callers = [process for process in self._callers if process is not self._host]
        if callers:
            self._kill(self.chance.choice(callers))

    def _host_dies(self) -> None:
        """Let the host die, and with it every shard; another one opens the store."""
        self.seen["host died"] += 1
        self._kill(self._host)
        for shard in self.network.shards:
            if self.chance.random() < 0.5 and shard.service is not None:
                shard.serve()
            if shard.service is not None:
                shard.die()
            shard.start()
        self._host = self._new_host()
        self._callers.append(self._host)

    def _kill(self, process: Process) -> None:
        self.seen["caller died"] += 1
        process.die(self.chance)
        if process in self._callers:
            self._callers.remove(process)
        for fan_out in self.fan_outs:
            if fan_out.process is process and fan_out.outcome is None:
                fan_out.outcome = "gone"

    def _new_host(self) -> Process:
        """Return a process that runs a courier."""
        host = self.network.add_process()
        # At times the courier is so late that it has much to carry at once.
        host.slow_down(self.chance.choice((0.0, 0.0, 0.9)))
        courier = Courier(self.count)

        def send(errands: list[Errand]) -> None:
            for errand in errands:
                self.network.send(host, errand.shard, errand.request, partial(took, errand))

        def took(errand: Errand, reply: Any) -> None:
            if isinstance(errand.request, AskOutcome) and isinstance(reply, Data):
                self.seen[f"asked: {reply.data}"] += 1
            send(courier.take(errand, reply))

        send(courier.begin())
        return host

    def _caller(self) -> Process:
        if self.chance.random() < 0.1 or not self._callers:
            self._callers.append(self.network.add_process())
        return self.chance.choice(self._callers)

    def _pass_time(self) -> None:
        self.network.advance(self.chance.choice(TIMES_MS))

    # ---- flows ----

    def _key(self) -> Key:
        self._flows += 1
        partition = self.chance.choice((None, "p0", "p1", "p2", "p3", "p4", "p5"))
        return partition, f"f{self._flows}"

    def _new_flow(self, key: Key) -> NewFlow:
        max_active_ms = 2_000 if self.chance.random() < 0.05 else None
        return NewFlow(key[1], key[0], f"type of {key[1]}", "on", max_active_ms=max_active_ms)

    def _create(self) -> None:
        key = self._key()
        flow = self._new_flow(key)
        reply = self.network.ask(shard_of(*key, self.count), commands.Create([flow]))
        assert isinstance(reply.outcomes[0], Record)

    def _any(self, *, parents: bool = False) -> Record | None:
        """Return some flow, or parent, that has not ended, of a shard that is up, as it is now."""
        found = [
            slot.record
            for shard in self.network.shards
            if shard.service is not None
            for slot in shard.service.engine.state.table
            if slot.record is not None and slot.record.state not in TERMINAL_STATES
            if slot.record.child_groups or not parents
        ]
        return self.chance.choice(found) if found else None

    # ---- what callers do ----

    def _fan_out(self) -> None:
        former = self.fan_outs[-8:]
        if former and self.chance.random() < 0.3:
            # Again, or at the same time, by another caller; with the tokens of the first.
            request = self.chance.choice(former).request
            if self.chance.random() < 0.2:
                request = SpawnChildren(request.spawn, self._children(former))
        else:
            parent = self._any()
            if parent is None:
                return
            request = SpawnChildren(self._spawn_of(parent), self._children(former))
        self.fan_outs.append(FanOut(self.network, self._caller(), request, self.note))

    def _spawn_of(self, parent: Record) -> family.Spawn:
        choose: Callable[[Any], Any] = self.chance.choice
        wait = choose(("all", "all", "any", "none"))
        wait_state = choose(("waiting", "waiting", "on"))
        return family.Spawn(
            parent.id,
            parent.partition_key,
            choose(GROUPS),
            wait,
            None if wait == "none" else wait_state,
            choose((None, "on")) if wait == "none" else choose(ENDS),
            None if wait == "none" else choose(ENDS),
            choose(("fail_parent", "ignore")),
            choose(("cancel_children", "abandon_children")),
            None,
            parent.lease_token,
            parent.fencing_token if parent.lease_token is not None else None,
            0,
            [],
            b"",
        )

    def _children(self, former: list[FanOut]) -> list[NewFlow]:
        found = [self._new_flow(self._key()) for _ in range(self.chance.randint(1, CHILDREN_MAX))]
        if former and self.chance.random() < 0.15:
            found.append(self.chance.choice(self.chance.choice(former).request.children))
        return found

    def _send(self, flow: Record, request: Any, then: Callable[[Any], None] | None = None) -> None:
        home = shard_of(flow.partition_key, flow.id, self.count)
        self.network.send(self._caller(), home, request, then or (lambda _: None))

    def _end_one(self) -> None:
        """Claim a flow, and end it if it was due."""
        flow = self._any()
        if flow is None:
            return
        claim = commands.ClaimDue(
            flow.type, "w", None, None, 1, 600_000, None, True, True, 0, Hydration()
        )

        def claimed(reply: Any) -> None:
            jobs = reply.outcomes if isinstance(reply, Done) else []
            if jobs:
                self._send(jobs[0], self._ending(jobs[0]))

        self._send(flow, claim, claimed)

    def _ending(self, job: Record) -> Any:
        assert job.lease_token is not None
        how = self.chance.choice(("complete", "complete", "fail", "exhaust"))
        if how == "exhaust":
            retrying = Retrying(
                job.id,
                job.partition_key,
                job.lease_token,
                job.fencing_token,
                retry=RetryPatch(max_retries=0),
            )
            return commands.Retry([retrying])
        ending = Ending(job.id, job.partition_key, job.lease_token, job.fencing_token)
        return commands.Complete([ending]) if how == "complete" else commands.Fail([ending])

    def _cancel_one(self) -> None:
        # Now and then while not all of its children know yet that they exist.
        flow = self._any(parents=self.chance.random() < 0.5)
        if flow is not None:
            ending = Ending(flow.id, flow.partition_key, None, None, force=True)
            self._send(flow, commands.Cancel([ending]))

    def _move_one(self) -> None:
        flow = self._any()
        if flow is not None and not flow.is_leased:
            to_state = self.chance.choice(("on", "elsewhere"))
            move = Move(flow.id, flow.partition_key, flow.state, to_state, flow.fencing_token)
            self._send(flow, commands.Transition([move]))

    def _write_checkpoint(self) -> None:
        # Whole: slices go by real time, and a run would not be repeated by its seed.
        up = [shard for shard in self.network.shards if shard.service is not None]
        if up:
            self.chance.choice(up).engine.upkeep.checkpoint()

    def _give_up_one(self) -> None:
        open_ones = [fan_out for fan_out in self.fan_outs if fan_out.outcome is None]
        if open_ones:
            self.seen["given up"] += 1
            self.chance.choice(open_ones).give_up()
