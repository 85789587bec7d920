"""Families through the public API, on a stage that may be closed and opened after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import shardflow as sf
from support.contract import Flows, facts
from support.processes import eventually

TARGETS = {"success": "won", "failure": "lost"}
PLACES = ("own", "other", "both")
"""Where children are: on the parent's shard, on another one, or on both."""
ENDS = {
    "complete": "completed",
    "fail": "failed",
    "cancel": "cancelled",
    "exhaust": "failed",
    "time out": "failed",
}
"""How a child is made to end, and what it is then."""
ACTIVE_MS = 5_000
TERMINAL = ("completed", "failed", "cancelled")


class Stage:
    """A store, and what may happen to it between two steps of a test."""

    def __init__(self, flows: Callable[[], Flows], restart: Callable[[int], object]) -> None:
        self._flows = flows
        self._restart = restart
        self.steps = 0

    @property
    def flows(self) -> Flows:
        """The commands; not to be kept over a step."""
        return self._flows()

    @property
    def store(self) -> sf.Store:
        return self.flows.store

    def step(self) -> None:
        """End a step."""
        self.steps += 1
        self._restart(self.steps)


class Family:
    """A parent and its children; each command that changes something is a step of the stage."""

    def __init__(self, stage: Stage, place: str = "both", name: str = "", **fields: Any) -> None:
        self.stage = stage
        self.name = name
        self.home, self.away = stage.flows.name.partitions()
        self.keys = {"own": [self.home], "other": [self.away], "both": [self.away, self.home]}[
            place
        ]
        self.job = self._leased(f"{name}parent", self.home, **fields)

    @property
    def flows(self) -> Flows:
        return self.stage.flows

    # ---- steps ----

    def _leased(self, suffix: str, key: str, **fields: Any) -> sf.FlowRecord:
        job = self.flows.leased(suffix, partition_key=key, type=self.flows.name(suffix), **fields)
        self.stage.step()
        return job

    def specs(self, count: int = 3, prefix: str = "c", **fields: Any) -> list[dict[str, Any]]:
        """Return children on the family's shards in turn, each of a type of its own."""
        return [
            {
                "id": self.flows.name(f"{self.name}{prefix}{number}"),
                "type": self.flows.name(f"{self.name}{prefix}{number}-type"),
                "partition_key": self.keys[number % len(self.keys)],
                **fields,
            }
            for number in range(count)
        ]

    def spawn(
        self, children: Any = None, parent: sf.FlowRecord | None = None, **options: Any
    ) -> sf.FlowRecord:
        """Fan out, with the lease of the parent if it has one."""
        parent = parent or self.job
        given: dict[str, Any] = {"partition_key": parent.partition_key}
        if options.get("wait") != "none":
            given |= TARGETS
        if parent.lease_token is not None:
            given |= {"lease_token": parent.lease_token, "fencing_token": parent.fencing_token}
        specs = self.specs() if children is None else children
        record = self.stage.store.flow_spawn_children(parent.id, specs, **{**given, **options})
        self.stage.step()
        return record

    def end(self, child: dict[str, Any], how: str) -> None:
        """End a flow, claimed before if that takes a lease."""
        where = {"partition_key": child["partition_key"]}
        if how == "cancel":
            self.stage.store.flow_cancel(child["id"], force=True, **where)
        elif how == "time out":
            self.flows.clock.advance(ACTIVE_MS)
        else:
            job = self.claim(child)
            if how == "exhaust":
                self.flows.retry(job, retry=sf.Retry(max_retries=0))
            else:
                getattr(self.flows, how)(job)
        self.stage.step()

    def claim(self, child: dict[str, Any]) -> sf.FlowRecord:
        (job,) = self.flows.claim(type=child["type"], partition_key=child["partition_key"])
        assert job.id == child["id"]
        return job

    # ---- views ----

    @property
    def parent(self) -> sf.FlowRecord:
        return self.flows.get(self.job)

    def get(self, child: dict[str, Any]) -> sf.FlowRecord:
        found = self.stage.store.flow_get(child["id"], partition_key=child["partition_key"])
        assert found is not None
        return found

    def states(self, children: list[dict[str, Any]]) -> list[str]:
        return [self.get(child).logical_state for child in children]

    def group(self, group_id: str = "fanout") -> sf.ChildGroup:
        return self.parent.child_groups[group_id]

    def counters(self, group_id: str = "fanout") -> tuple[int, int, int]:
        group = self.group(group_id)
        return group.completed, group.failed, group.cancelled

    @contextmanager
    def unchanged(self, *flows: sf.FlowRecord) -> Iterator[None]:
        """Check that the body, steps and all, changes neither these flows nor their histories."""
        before = [(facts(self.flows.get(flow)), self.flows.events(flow)) for flow in flows]
        yield
        assert [(facts(self.flows.get(flow)), self.flows.events(flow)) for flow in flows] == before

    # ---- what comes a moment later where it crosses processes ----

    def await_counters(self, *counters: int, group_id: str = "fanout") -> sf.FlowRecord:
        """Wait until so many children have completed, failed and been cancelled."""
        eventually(
            lambda: self.counters(group_id) == counters,
            lambda: f"{counters}, it has {self.group(group_id)}",
        )
        return self.parent

    def await_states(self, children: list[dict[str, Any]], *states: str) -> None:
        """Wait until the children are in these states, in this order."""
        eventually(
            lambda: self.states(children) == list(states),
            lambda: f"{states}, they are {self.states(children)}",
        )


def await_state(flows: Flows, flow: sf.FlowRecord, state: str) -> sf.FlowRecord:
    """Wait until a flow is in a logical state, and return it."""
    eventually(
        lambda: flows.get(flow).logical_state == state,
        lambda: f"{flow.id} is {flows.get(flow).logical_state}, not {state}",
    )
    return flows.get(flow)
