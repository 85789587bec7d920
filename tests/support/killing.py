"""Fan-outs that are stopped at a named point of their protocol, and what must come of them.

A point is a kind of message and a number n: n messages of that kind have been answered, and none
of the further ones has been sent. There something is killed. `SENT` stands for: the first one has
been sent, and its answer is not waited for.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import shardflow as sf
from shardflow.actors.errands import Errand, Errands
from shardflow.flow.family import (
    CancelChildren,
    ChildEnded,
    Deliver,
    Prepare,
    SpawnBegin,
    SpawnDecide,
)
from shardflow.flow.keys import shard_of
from support.processes import eventually

SHARDS = 4
HOME = 0
"""The parent's shard. The first, the middle and the last child shard follow it."""
SENT = -1
KEYS = [
    next(key for key in map(str, range(1_000)) if shard_of(key, "", SHARDS) == shard)
    for shard in range(SHARDS)
]


class Point(NamedTuple):
    """Where something is killed, and what."""

    scenario: str
    message: str
    """A request's class; of a `Deliver`, that of its first post."""
    number: int
    victim: str = "host"
    """host, addressee (of the next message, or of the last), coordinator, or shards: all."""

    @property
    def name(self) -> str:
        number = "sent" if self.number == SENT else str(self.number)
        return f"{self.scenario}-{self.message}-{number}-{self.victim}"

    @property
    def has_happened(self) -> bool | None:
        """Whether the fan-out has been decided at this point; None: that cannot be told."""
        if self.scenario == "refuse" or self.message in ("SpawnBegin", "Prepare"):
            return False
        return None if self.message == "SpawnDecide" else True


class Trap:
    """Stands between the machines and the links, and springs at a point."""

    def __init__(self, spring: Callable[[int], None]) -> None:
        self._spring = spring
        self._point: Point | None = None
        self._lock = threading.RLock()
        self._txns: dict[str, str] = {}
        """Transaction → parent."""
        self._sent: set[int] = set()
        """The messages of the point's kind that were sent, by identity."""
        self._answered = 0
        self._held: list[tuple[Errands, Errand]] = []
        self._send = Errands.send
        self._arrive = Errands._arrive
        trap = self

        def send(errands: Errands, found: Iterable[Errand]) -> None:
            for errand in found:
                trap._pass(errands, errand)

        def arrive(errands: Errands, errand: Errand, reply: Any) -> None:
            trap._note(errand)
            trap._arrive(errands, errand, reply)

        patched: Any = Errands
        patched.send = send
        patched._arrive = arrive

    def set(self, point: Point) -> None:
        """Spring once, at this point."""
        with self._lock:
            self._point = point
            self._sent.clear()
            self._answered = 0

    @property
    def has_sprung(self) -> bool:
        return self._point is None

    def _pass(self, errands: Errands, errand: Errand) -> None:
        with self._lock:
            point = self._point
            if isinstance(errand.request, Prepare):
                self._txns[errand.request.txn] = errand.request.kin.parent_flow_id
            if point is None or not self._is_of(point, errand.request):
                self._send(errands, [errand])
                return
            if point.number == SENT:
                self._send(errands, [errand])
                self._go(errand.shard)
            elif len(self._sent) < point.number:
                self._sent.add(id(errand.request))
                self._send(errands, [errand])
            else:
                self._held.append((errands, errand))
                if self._answered == point.number:
                    self._go(errand.shard)

    def _is_of(self, point: Point, request: Any) -> bool:
        """Whether a request is of the point's kind, and of its scene; others may still go on."""
        if isinstance(request, Deliver):
            request = request.posts[0]
        if type(request).__name__ != point.message:
            return False
        if isinstance(request, SpawnBegin | SpawnDecide):
            return request.spawn.id == point.name
        if isinstance(request, ChildEnded | CancelChildren):
            return request.parent_flow_id == point.name
        return self._txns[request.txn] == point.name

    def _note(self, errand: Errand) -> None:
        with self._lock:
            if self._point is not None and id(errand.request) in self._sent:
                self._answered += 1
                if self._answered == self._point.number:
                    self._go(self._held[0][1].shard if self._held else errand.shard)

    def _go(self, shard: int) -> None:
        self._point = None
        self._spring(shard)
        held, self._held = self._held, []
        for errands, errand in held:
            self._send(errands, [errand])


def kill(store: sf.Store, victim: str, addressee: int) -> None:
    """SIGKILL this process, or shards of it."""
    pids = [told["pid"] for told in store.processes()]
    if victim == "host":
        os.kill(os.getpid(), signal.SIGKILL)
    chosen = {"addressee": [addressee], "coordinator": [HOME], "shards": range(SHARDS)}[victim]
    for shard in chosen:
        os.kill(pids[shard], signal.SIGKILL)


class Scene:
    """A parent on the first shard, and one child on each; named after its point."""

    def __init__(self, store: sf.Store, point: Point) -> None:
        self.store = store
        self.point = point
        self.parent_id = point.name
        self.children = [
            {"id": f"{point.name}-{shard}", "type": f"{point.name}-{shard}", "partition_key": key}
            for shard, key in enumerate(KEYS)
        ]

    # ---- before and at the point ----

    def prepare(self) -> None:
        """Do all that comes before the step that is interrupted."""
        self.store.flow_create(self.parent_id, type=self.parent_id, partition_key=KEYS[HOME])
        if self.point.scenario == "refuse":
            self._create(self.children[-1])
        elif self.point.scenario != "spawn":
            self.spawn()

    def act(self) -> str:
        """Do what is interrupted; return what its caller is told."""
        try:
            if self.point.scenario == "end":
                self.complete(self.children[2])
            elif self.point.scenario == "cancel":
                self.store.flow_cancel(self.parent_id, partition_key=KEYS[HOME])
            else:
                self.spawn()
        except sf.FlowError as error:
            return f"{error.applied} {error.code}"
        return "yes"

    def _create(self, child: dict[str, Any]) -> None:
        self.store.flow_create(
            child["id"], type=child["type"], partition_key=child["partition_key"]
        )

    def spawn(self) -> sf.FlowRecord:
        return self.store.flow_spawn_children(
            self.parent_id,
            self.children,
            partition_key=KEYS[HOME],
            success="won",
            failure="lost",
            on_child_failed="ignore",
        )

    def complete(self, child: dict[str, Any]) -> None:
        (job,) = self.store.flow_claim_due(child["type"], worker="w")
        assert job.lease_token is not None
        self.store.flow_complete(
            job.id,
            job.lease_token,
            fencing_token=job.fencing_token,
            partition_key=job.partition_key,
        )

    # ---- what must come of it ----

    @property
    def parent(self) -> sf.FlowRecord:
        found = self.store.flow_get(self.parent_id, partition_key=KEYS[HOME])
        assert found is not None
        return found

    def states(self) -> list[str | None]:
        found = [
            self.store.flow_get(child["id"], partition_key=child["partition_key"])
            for child in self.children
        ]
        return [None if child is None else child.logical_state for child in found]

    def counters(self) -> tuple[str, int, int, int]:
        group = self.parent.child_groups["fanout"]
        return group.status, group.completed, group.failed, group.cancelled

    def check(self, told: str | None) -> None:
        """Wait until it has come to one outcome, one that agrees with what its caller was told."""
        checks: dict[str, Callable[[str | None], None]] = {
            "spawn": self._check_spawn,
            "refuse": self._check_refused,
            "end": self._check_end,
            "cancel": self._check_cancel,
        }
        checks[self.point.scenario](told)

    def _check_spawn(self, told: str | None) -> None:
        happened = bool(self.parent.child_groups)
        expected = ["queued"] * SHARDS if happened else [None] * SHARDS
        self._await_states(expected)
        if told is not None and not told.startswith("unknown"):
            assert happened == (told == "yes"), (told, happened)
        if self.point.victim == "host" and self.point.has_happened is not None:
            assert happened == self.point.has_happened
        if not happened:
            assert (self.parent.state, self.parent.version) == ("queued", 1)
        # Nothing is in the way of it, or it is a repeat.
        eventually(self._is_spawned, "nothing is left of what was given up")
        self._await_states(["queued"] * SHARDS)
        for child in self.children:
            self.complete(child)
        self._await_counters("success", SHARDS, 0, 0)
        assert self.parent.state == "won"

    def _is_spawned(self) -> bool:
        try:
            return self.spawn().child_groups["fanout"].total == SHARDS
        except sf.Overloaded:
            assert self.states() == [None] * SHARDS
            return False

    def _check_refused(self, told: str | None) -> None:
        assert told is None or told.startswith("no"), told
        self._await_states([None] * (SHARDS - 1) + ["queued"])
        assert (self.parent.state, self.parent.version) == ("queued", 1)
        eventually(self._are_free, "the ids of the others are free")

    def _are_free(self) -> bool:
        try:
            for child in self.children[:-1]:
                if self.store.flow_get(child["id"], partition_key=child["partition_key"]) is None:
                    self._create(child)
        except sf.Overloaded:
            return False
        return True

    def _check_end(self, told: str | None) -> None:
        assert told in (None, "yes"), told
        self._await_states(["queued", "queued", "completed", "queued"])
        self._await_counters("open", 1, 0, 0)
        for number in (0, 1, 3):
            self.complete(self.children[number])
        self._await_counters("success", SHARDS, 0, 0)
        assert self.parent.state == "won"

    def _check_cancel(self, told: str | None) -> None:
        assert told in (None, "yes"), told
        self._await_states(["cancelled"] * SHARDS)
        self._await_counters("success", 0, 0, SHARDS)
        assert self.parent.state == "cancelled"

    def _await_states(self, states: list[Any]) -> None:
        eventually(lambda: self.states() == states, lambda: f"{states}, not {self.states()}")

    def _await_counters(self, *counters: Any) -> None:
        eventually(
            lambda: self.counters() == counters, lambda: f"{counters}, not {self.counters()}"
        )


def problems_of(store: sf.Store) -> list[str]:
    """Return what the shards find wrong about themselves."""
    return [problem for told in store.stats(check=True) for problem in told["problems"]]
