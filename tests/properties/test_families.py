"""Random trees of flows over shards, against a plain model, through every end and restart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

import shardflow as sf
from shardflow.flow import limits
from support.family_store import FamilyStore
from support.kinship import DEPTH_MAX, OPEN, Group, Key, Known, spawned

STEPS = 50
EXAMPLES = 120
LEASE_MS = 10**9
DEADLINES_APART_MS = 1_000

ids = st.sampled_from("abcdefgh")
partitions = st.sampled_from([None, "p0", "p1", "p2", "p3"])
children_specs = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(["new"] * 20 + ["parent's", "taken"]),
            "partition_key": partitions,
        },
        optional={"correlation_id": st.just("own"), "max_active_ms": st.just(0)},
    ),
    min_size=1,
    max_size=4,
)
"""Whose id a child has, and what it is given."""
picks = st.integers(0, 10_000)
hows = st.sampled_from(["complete", "complete", "complete", "fail", "exhaust"])
targets = st.sampled_from([OPEN, OPEN, "next", "completed", "failed", "cancelled"])


class FamilyMachine(FamilyStore):
    """Gives the commands; what has to hold after each is the base's."""

    # ---- how flows begin ----

    @initialize(partition_key=partitions)
    def create_the_first(self, partition_key: str | None) -> None:
        self.create("a", partition_key)

    @rule(flow_id=ids, partition_key=partitions)
    def create(self, flow_id: str, partition_key: str | None) -> None:
        key = partition_key, flow_id
        known = Known(key, _type_of(key), flow_id, "root's" if flow_id < "e" else None)
        given: dict[str, Any] = {"type": known.type, "state": OPEN, "partition_key": partition_key}
        if key in self.families.flows:
            with pytest.raises(sf.FlowAlreadyExists):
                self.store.flow_create(flow_id, **given)
            return
        self.store.flow_create(flow_id, correlation_id=known.correlation_id, **given)
        self.families.flows[key] = known

    @precondition(lambda self: self.families.parents())
    @rule(
        pick=picks,
        waits=st.booleans(),
        specs=children_specs,
        group_id=st.sampled_from(["g1", "g2", "g3"]),
        wait=st.sampled_from(["all", "all", "any", "any", "none"]),
        wait_state=st.sampled_from(["waiting", "waiting", "parked"]),
        success=targets,
        failure=targets,
        on_child_failed=st.sampled_from(["fail_parent", "ignore"]),
        on_parent_closed=st.sampled_from(["cancel_children", "abandon_children"]),
    )
    def spawn(
        self,
        pick: int,
        waits: bool,
        specs: list[dict[str, Any]],
        group_id: str,
        **options: Any,
    ) -> None:
        parents = self.families.parents()
        waiting = [flow for flow in self.families.waiting() if flow in parents]
        parent = _any(waiting if waits and waiting else parents, pick)
        children = self._children(parent, specs)
        if not children:
            return
        if options["wait"] == "none":
            del options["wait_state"], options["failure"]
            if options["success"] != OPEN:
                del options["success"]
        if parent.lease is not None:
            options["lease_token"] = parent.lease.lease_token
            options["fencing_token"] = parent.lease.fencing_token
        if group_id in parent.groups and _same(children, parent.groups[group_id].arguments[0]):
            before = self.read(parent)
            assert self._spawn(parent, children, group_id, options).version == before.version
            return
        refusal = self._refusal(parent, group_id, children)
        if refusal is not None:
            with pytest.raises(refusal):
                self._spawn(parent, children, group_id, options)
            return
        record = self._spawn(parent, children, group_id, options)
        group = Group(
            parent,
            options["wait"],
            options.get("wait_state"),
            options.get("success"),
            options.get("failure"),
            options["on_child_failed"],
            options["on_parent_closed"],
            (children, options),
        )
        group.children = [self._born(parent, group, child) for child in children]
        spawned(group, group_id)
        assert record.version == parent.events.total() + self.cancellations(parent)
        self.families.flows |= {child.key: child for child in group.children}

    def _spawn(
        self, parent: Known, children: list[dict[str, Any]], group_id: str, options: dict[str, Any]
    ) -> sf.FlowRecord:
        partition_key, flow_id = parent.key
        return self.store.flow_spawn_children(
            flow_id, children, group_id=group_id, partition_key=partition_key, **options
        )

    def _children(self, parent: Known, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return specifications of flows with different keys, each with a deadline of its own."""
        found: dict[Key, dict[str, Any]] = {}
        for spec in specs:
            child = dict(spec)
            if child["id"] == "parent's":
                child["id"] = parent.key[1]
            elif child["id"] == "taken":
                child["partition_key"], child["id"] = next(reversed(self.families.flows))
            else:
                self.names += 1
                child["id"] = f"f{self.names}"
            key = child["partition_key"] or parent.key[0], child["id"]
            if key in found or key == parent.key:
                continue
            child |= {"type": _type_of(key), "state": OPEN}
            if "max_active_ms" in child:
                now_ms = self.clock.now_ms()
                at_ms = max(self.last_deadline_ms, now_ms) + DEADLINES_APART_MS
                self.last_deadline_ms = at_ms
                child["max_active_ms"] = at_ms - now_ms
            found[key] = child
        return list(found.values())

    def _refusal(
        self, parent: Known, group_id: str, children: list[dict[str, Any]]
    ) -> type[Exception] | None:
        if group_id in parent.groups:
            return sf.ChildGroupConflict
        keys = [(child["partition_key"] or parent.key[0], child["id"]) for child in children]
        return sf.FlowAlreadyExists if any(key in self.families.flows for key in keys) else None

    def _born(self, parent: Known, group: Group, child: dict[str, Any]) -> Known:
        key = child["partition_key"] or parent.key[0], child["id"]
        correlation_id = child.get("correlation_id") or parent.correlation_id
        known = Known(key, child["type"], parent.root_id, correlation_id, group)
        if "max_active_ms" in child:
            known.deadline_ms = self.clock.now_ms() + child["max_active_ms"]
        return known

    @precondition(lambda self: self.families.groups())
    @rule(pick=picks, turned=st.booleans())
    def spawn_again(self, pick: int, turned: bool) -> None:
        """Repeat a call that was answered, with the tokens that it had then."""
        group_id, group = self.families.groups()[pick % len(self.families.groups())]
        children, options = group.arguments
        before = self.read(group.parent)
        again = list(reversed(children)) if turned else children
        assert self._spawn(group.parent, again, group_id, options).version == before.version

    # ---- how they go on and end ----

    @precondition(lambda self: self.families.claimable())
    @rule(pick=picks)
    def claim(self, pick: int) -> None:
        flow = _any(self.families.claimable(), pick)
        (flow.lease,) = self.store.flow_claim_due(flow.type, worker="w", lease_ms=LEASE_MS)
        flow.events["claimed"] += 1

    @precondition(lambda self: self.families.waiting())
    @rule(pick=picks)
    def claim_one_that_waits(self, pick: int) -> None:
        flow = _any(self.families.waiting(), pick)
        assert self.store.flow_claim_due(flow.type, worker="w") == []

    @precondition(lambda self: self.families.leased())
    @rule(pick=picks, how=hows)
    def settle(self, pick: int, how: str) -> None:
        self._settle(_any(self.families.leased(), pick), how)

    @precondition(lambda self: self.families.groups())
    @rule(pick=picks, some=st.lists(hows, min_size=1, max_size=4))
    def end_children(self, pick: int, some: list[str]) -> None:
        """End some of a group's children, one after the other, as far as they can be claimed."""
        groups = [pair for pair in self.families.groups() if pair[1].count(OPEN)]
        if not groups:
            return
        _, group = groups[pick % len(groups)]
        for how in some:
            ready = [c for c in group.children if c.is_open and (c.lease or c.is_due)]
            if ready:
                self._settle(_any(ready, pick), how)

    def _settle(self, flow: Known, how: str) -> None:
        if flow.lease is None:
            (flow.lease,) = self.store.flow_claim_due(flow.type, worker="w", lease_ms=LEASE_MS)
            flow.events["claimed"] += 1
        if how == "exhaust":
            self._held(self.store.flow_retry, flow, retry=sf.Retry(max_retries=0))
            flow.ends("failed", "retry", by_holder=True)
        elif how == "complete":
            self._held(self.store.flow_complete, flow)
            flow.ends("completed", "completed", by_holder=True)
        else:
            self._held(self.store.flow_fail, flow)
            flow.ends("failed", "failed", by_holder=True)

    def _held(self, command: Callable[..., Any], flow: Known, **options: Any) -> None:
        assert flow.lease is not None
        self._with_lease(command, flow.lease, **options)

    @staticmethod
    def _with_lease(command: Callable[..., Any], job: sf.FlowRecord, **options: Any) -> None:
        command(
            job.id,
            job.lease_token,
            fencing_token=job.fencing_token,
            partition_key=job.partition_key,
            **options,
        )

    @precondition(lambda self: self.families.robbed())
    @rule(pick=picks)
    def use_a_lease_that_was_taken_away(self, pick: int) -> None:
        flow = _any(self.families.robbed(), pick)
        for job in flow.lost:
            for command in (self.store.flow_complete, self.store.flow_fail):
                with pytest.raises(sf.StaleLease):
                    self._with_lease(command, job)

    @precondition(lambda self: self.families.open())
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        flow = _any(self.families.open(), pick)
        partition_key, flow_id = flow.key
        self.store.flow_cancel(flow_id, partition_key=partition_key, force=True)
        flow.ends("cancelled", "cancelled")

    @precondition(lambda self: self.families.waiting())
    @rule(pick=picks, to_state=st.sampled_from([OPEN, "elsewhere"]))
    def move_a_waiting_parent(self, pick: int, to_state: str) -> None:
        flow = _any(self.families.waiting(), pick)
        partition_key, flow_id = flow.key
        self.store.flow_transition(
            flow_id,
            flow.state,
            to_state,
            partition_key=partition_key,
            fencing_token=self.read(flow).fencing_token,
        )
        flow.moves(to_state, is_due=True)
        flow.events["transitioned"] += 1

    @precondition(lambda self: self.families.first_overdue())
    @rule(while_closed=st.booleans())
    def let_the_time_of_one_be_over(self, while_closed: bool) -> None:
        flow = self.families.first_overdue()
        assert flow is not None and flow.deadline_ms is not None
        if while_closed:
            self.store.close()
        self.clock.advance(max(0, flow.deadline_ms - self.clock.now_ms()))
        if while_closed:
            self.store = self.open_store()
        flow.ends("failed", "failed")

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        files = self.files if clean else copy.deepcopy(self.files)
        self.store.close()
        for file in files:
            file.unlock()
        self.files = files
        self.store = self.open_store()


def _type_of(key: Key) -> str:
    """Return a type that no other flow has: so that a claim finds this very flow."""
    return f"type of {key}"


def _any(flows: list[Known], pick: int) -> Known:
    return flows[pick % len(flows)]


def _same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    return sorted(map(repr, some)) == sorted(map(repr, others))


assert DEPTH_MAX < limits.DEPTH_MAX
TestFamilies = FamilyMachine.TestCase
TestFamilies.settings = settings(
    stateful_step_count=STEPS, max_examples=max(EXAMPLES, settings().max_examples * 2 // 3)
)
