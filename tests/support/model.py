"""A plain model of flows that holds only what callers were told, and what has to follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import shardflow as sf

Key = tuple[str | None, str]
"""Partition key and id."""

TYPE = "model"
TERMINAL = ("completed", "failed", "cancelled")
PREDICTED = (
    "state",
    "run_state",
    "version",
    "fencing_token",
    "attempts",
    "reclaims",
    "priority",
    "created_at_ms",
    "updated_at_ms",
    "lease_owner",
    "lease_token",
    "lease_deadline_ms",
)


@dataclass(frozen=True)
class Grip:
    """What a worker was given with a lease."""

    lease_token: str
    fencing_token: int


@dataclass
class Known:
    """One flow, as far as callers know it. Fields are those of the record."""

    key: Key
    arguments: dict[str, Any]
    state: str
    priority: int
    created_at_ms: int
    updated_at_ms: int
    next_run_at_ms: int | None
    fencing_token: int
    payload: Any
    entered: int | None
    """When it came into its state; None where the contract leaves its place among equals open."""
    version: int = 1
    attempts: int = 0
    reclaims: int = 0
    run_state: str | None = None
    lease_owner: str | None = None
    lease_token: str | None = None
    lease_deadline_ms: int | None = None
    events: list[str] = field(default_factory=lambda: ["created"])
    used: list[Grip] = field(default_factory=list)
    """Leases that were given up or lost."""
    settled: tuple[str, Grip, dict[str, Any]] | None = None
    """The last command that used up a lease: its name, its tokens, its other arguments."""

    @property
    def logical_state(self) -> str:
        return self.run_state or self.state

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def is_leased(self) -> bool:
        return self.state == "running"

    @property
    def grip(self) -> Grip:
        assert self.lease_token is not None
        return Grip(self.lease_token, self.fencing_token)

    def is_due(self, now_ms: int) -> bool:
        if self.is_leased or self.is_terminal or self.next_run_at_ms in (None, sf.NEVER):
            return False
        assert self.next_run_at_ms is not None
        return self.next_run_at_ms <= now_ms

    def is_expired(self, now_ms: int) -> bool:
        return self.lease_deadline_ms is not None and self.lease_deadline_ms <= now_ms

    def wrote(self, event: str, now_ms: int) -> None:
        """Count one applied write."""
        self.version += 1
        self.updated_at_ms = max(self.updated_at_ms, now_ms)
        self.events.append(event)

    def enters(self, state: str, entered: int | None) -> None:
        """Come into a logical state, unleased."""
        if state != self.logical_state:
            self.attempts = self.reclaims = 0
        else:
            entered = None
        self.state, self.run_state, self.entered = state, None, entered

    def lets_go(self) -> None:
        """Give the lease up."""
        if self.lease_token is not None:
            self.used.append(self.grip)
        self.lease_owner = self.lease_token = self.lease_deadline_ms = None

    def ends(self, state: str) -> None:
        self.lets_go()
        self.enters(state, None)
        self.next_run_at_ms = None

    def is_leased_by(self, worker: str, token: str, deadline_ms: int) -> None:
        self.run_state, self.state = self.logical_state, "running"
        self.lease_owner, self.lease_token, self.lease_deadline_ms = worker, token, deadline_ms
        self.fencing_token += 1

    def check(self, record: sf.FlowRecord) -> None:
        """Compare a record that the store has answered with."""
        assert (record.partition_key, record.id) == self.key
        told = {name: getattr(record, name) for name in PREDICTED}
        assert told == {name: getattr(self, name) for name in PREDICTED}
        if not self.is_leased:
            assert record.next_run_at_ms == self.next_run_at_ms


@dataclass
class Model:
    """All flows that callers know of, and the tokens that they were ever given."""

    flows: dict[Key, Known] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    entries: int = 0

    def next_entry(self) -> int:
        self.entries += 1
        return self.entries

    def new_token(self, record: sf.FlowRecord) -> str:
        """Take note of a lease token: no two leases may ever have the same."""
        assert record.lease_token is not None
        assert record.lease_token not in self.tokens
        self.tokens.add(record.lease_token)
        return record.lease_token

    def leased(self) -> list[Known]:
        return [flow for flow in self.flows.values() if flow.is_leased]

    def waiting(self) -> list[Known]:
        return [f for f in self.flows.values() if not f.is_leased and not f.is_terminal]

    def matching(self, states: list[str] | None, partition_key: str | None) -> Iterable[Known]:
        for flow in self.flows.values():
            if partition_key is not None and flow.key[0] != partition_key:
                continue
            if states is None or flow.logical_state in states:
                yield flow

    def info(self, now_ms: int) -> dict[str, Any]:
        """Return what `flow_info` has to tell, states without flows left out."""
        states: dict[str, dict[str, int]] = {}
        ends: dict[str, int] = dict.fromkeys(TERMINAL, 0)
        ready_at_ms: list[int] = []
        for flow in self.flows.values():
            if flow.is_terminal:
                ends[flow.state] += 1
                continue
            part = self._part(flow, now_ms)
            if part == "ready":
                assert flow.next_run_at_ms is not None
                ready_at_ms.append(flow.next_run_at_ms)
            counts = states.setdefault(flow.logical_state, {})
            counts[part] = counts.get(part, 0) + 1
        age_ms = now_ms - min(ready_at_ms) if ready_at_ms else None
        return {"states": states, "oldest_ready_age_ms": age_ms, **ends}

    @staticmethod
    def _part(flow: Known, now_ms: int) -> str:
        if flow.is_leased:
            return "expired" if flow.is_expired(now_ms) else "leased"
        if flow.next_run_at_ms == sf.NEVER:
            return "waiting"
        return "ready" if flow.is_due(now_ms) else "scheduled"


def check_claim_order(taken: list[Known], due: list[Known], one_shard: bool) -> None:
    """Check that the flows taken are the first ones due, in the order of the contract.

    Among equal priorities and due times the order of entering the state decides. Where flows lie
    on several shards it is fixed within a partition only.
    """

    def rank(flow: Known) -> tuple[int, int]:
        assert flow.next_run_at_ms is not None
        return -flow.priority, flow.next_run_at_ms

    assert [rank(flow) for flow in taken] == sorted(map(rank, due))[: len(taken)]
    groups: dict[Any, list[Known]] = {}
    for flow in sorted(due, key=lambda flow: flow.entered or 0):
        if flow.entered is not None:
            partition = None if one_shard else flow.key[0] or flow.key
            groups.setdefault((rank(flow), partition), []).append(flow)
    for group in groups.values():
        first = [flow for flow in taken if flow in group]
        assert first == group[: len(first)]
