"""A Hypothesis machine that gives a store commands in any order and holds it to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import shardflow as sf
from shardflow.testing import ManualClock, memory_store
from support.model import TYPE, Grip, Known, Model, check_claim_order

START_MS = 1_700_000_000_000
STATES = ["queued", "charging", "repair"]

ids = st.sampled_from(["a", "b", "c"])
partitions = st.sampled_from([None, None, "p", "q"])
states = st.sampled_from(STATES)
priorities = st.sampled_from([0, 0, 1, 2])
payloads = st.sampled_from([None, 0, "", "x", {"n": 1}])
picks = st.integers(0, 1_000)
delays = st.sampled_from([0, 0, 1, 1_000, sf.NEVER])
leases = st.sampled_from([1, 1_000, 5_000])


class Machine(RuleBasedStateMachine):
    """Commands against a store whose shards run in this process; subclasses say which."""

    shards = 1

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(START_MS)
        self.model = Model()
        self.store = self.open_store()
        # Takeovers without bound: the model knows nothing of poisoned flows.
        self.store.flow_policy_set(TYPE, retry={"max_reclaims": 1_000_000})

    def open_store(self) -> sf.Store:
        return memory_store(shards=self.shards, clock=self.clock)

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms()

    def instant(self, delay_ms: int) -> int:
        return sf.NEVER if delay_ms == sf.NEVER else self.now_ms + delay_ms

    def held(self, verb: str, flow: Known, grip: Grip, given: dict[str, Any]) -> sf.FlowRecord:
        """Give one of the commands that need a lease."""
        partition_key, flow_id = flow.key
        command: Callable[..., Any] = getattr(self.store, f"flow_{verb}")
        options = {"partition_key": partition_key, "fencing_token": grip.fencing_token, **given}
        if verb in ("transition", "cancel"):
            options["lease_token"] = grip.lease_token
            args = [flow_id]
        else:
            args = [flow_id, grip.lease_token]
        if verb in ("transition", "step_continue"):
            args += [options.pop("from_state"), options.pop("to_state")]
        record: sf.FlowRecord = command(*args, **options)
        return record

    def settle(self, verb: str, flow: Known, given: dict[str, Any]) -> sf.FlowRecord:
        """Use a lease up, and remember how."""
        grip = flow.grip
        record = self.held(verb, flow, grip, given)
        flow.settled = (verb, grip, given)
        return record

    # Creation and claims.

    @rule(
        flow_id=ids,
        partition_key=partitions,
        state=states,
        priority=priorities,
        delay_ms=delays,
        payload=payloads,
        idempotent=st.booleans(),
    )
    def create(
        self, flow_id: str, partition_key: str | None, delay_ms: int, idempotent: bool, **given: Any
    ) -> None:
        key = (partition_key, flow_id)
        given["run_at_ms"] = self.instant(delay_ms)
        if key in self.model.flows:
            self._create_again(self.model.flows[key], given, idempotent)
            return
        record = self._create(key, given, idempotent)
        known = Known(
            key=key,
            arguments=given,
            state=given["state"],
            priority=given["priority"],
            created_at_ms=self.now_ms,
            updated_at_ms=self.now_ms,
            next_run_at_ms=given["run_at_ms"],
            fencing_token=record.fencing_token,
            payload=given["payload"],
            entered=self.model.next_entry(),
        )
        known.check(record)
        self.model.flows[key] = known

    def _create(self, key: Any, given: dict[str, Any], idempotent: bool) -> sf.FlowRecord:
        return self.store.flow_create(
            key[1], type=TYPE, partition_key=key[0], idempotent=idempotent, **given
        )

    def _create_again(self, flow: Known, given: dict[str, Any], idempotent: bool) -> None:
        if not idempotent:
            with pytest.raises(sf.FlowAlreadyExists):
                self._create(flow.key, given, idempotent)
        elif given != flow.arguments:
            with pytest.raises(sf.IdempotencyConflict):
                self._create(flow.key, given, idempotent)
        else:
            flow.check(self._create(flow.key, given, idempotent))

    @precondition(lambda self: self.model.flows)
    @rule(pick=picks)
    def create_again_with_the_same_arguments(self, pick: int) -> None:
        flow = self._any(list(self.model.flows.values()), pick)
        flow.check(self._create(flow.key, flow.arguments, idempotent=True))

    @rule(
        limit=st.sampled_from([1, 1, 2, 3, 5, 20]),
        wanted=st.none() | st.lists(states, min_size=1, max_size=2),
        partition_key=partitions,
        lease_ms=leases,
        ratio=st.sampled_from([0, 25, 100]),
        reclaim=st.booleans(),
    )
    def claim(
        self,
        limit: int,
        wanted: list[str] | None,
        partition_key: str | None,
        lease_ms: int,
        ratio: int,
        reclaim: bool,
    ) -> None:
        jobs = self.store.flow_claim_due(
            TYPE,
            worker="w1",
            state="any" if wanted is None else wanted,
            partition_key=partition_key,
            limit=limit,
            lease_ms=lease_ms,
            reclaim_expired=reclaim,
            reclaim_ratio=ratio,
        )
        flows = list(self.model.matching(wanted, partition_key))
        due = [flow for flow in flows if flow.is_due(self.now_ms)]
        expired = [flow for flow in flows if reclaim and flow.is_expired(self.now_ms)]
        taken = [self.model.flows[job.partition_key, job.id] for job in jobs]
        taken_due = [flow for flow in taken if flow in due]
        assert all(flow in due or flow in expired for flow in taken)
        first = 0 if limit == 1 else min(-(-limit * ratio // 100), len(expired))
        due_count = min(limit - first, len(due))
        assert len(taken_due) == due_count
        assert len(taken) == due_count + min(limit - due_count, len(expired))
        check_claim_order(taken_due, due, self.shards == 1)
        for flow, job in zip(taken, jobs, strict=True):
            self._claimed(flow, job, lease_ms)

    def _claimed(self, flow: Known, job: sf.FlowRecord, lease_ms: int) -> None:
        if flow.is_leased:
            flow.reclaims += 1
            flow.lets_go()
        flow.is_leased_by("w1", self.model.new_token(job), self.now_ms + lease_ms)
        flow.wrote("claimed", self.now_ms)
        flow.check(job)
        assert job.payload == flow.payload

    @rule(lease_ms=leases, by_ms=st.sampled_from([0, 1_000, 5_000]))
    def claim_all(self, lease_ms: int, by_ms: int) -> None:
        """Take everything, and let some leases run out: this is where takeovers come from."""
        self.clock.advance(by_ms)
        self.claim(20, None, None, lease_ms, ratio=25, reclaim=True)

    # What a holder may do.

    @precondition(lambda self: self.model.leased())
    @rule(pick=picks, verb=st.sampled_from(["complete", "fail"]), value=payloads)
    def end(self, pick: int, verb: str, value: Any) -> None:
        flow = self._any(self.model.leased(), pick)
        record = self.settle(verb, flow, {"result" if verb == "complete" else "error": value})
        flow.ends("completed" if verb == "complete" else "failed")
        flow.wrote(flow.state, self.now_ms)
        flow.check(record)

    @precondition(lambda self: self.model.leased())
    @rule(
        pick=picks,
        max_retries=st.sampled_from([0, 1, 3]),
        base_ms=st.sampled_from([0, 1_000]),
        exhausted_to=st.sampled_from(["failed", "cancelled", "repair"]),
    )
    def retry(self, pick: int, max_retries: int, base_ms: int, exhausted_to: str) -> None:
        flow = self._any(self.model.leased(), pick)
        if exhausted_to == flow.logical_state:
            exhausted_to = "failed"
        backoff = {"kind": "fixed", "base_ms": base_ms, "max_ms": base_ms, "jitter_pct": 0}
        policy = {"max_retries": max_retries, "exhausted_to": exhausted_to, "backoff": backoff}
        record = self.settle("retry", flow, {"retry": policy})
        if flow.attempts + 1 <= max_retries:
            flow.lets_go()
            flow.enters(flow.logical_state, None)
            flow.attempts += 1
            flow.next_run_at_ms = self.now_ms + base_ms
        elif exhausted_to == "repair":
            flow.lets_go()
            flow.enters("repair", self.model.next_entry())
            flow.next_run_at_ms = self.now_ms
        else:
            flow.ends(exhausted_to)
        flow.wrote("retry", self.now_ms)
        flow.check(record)

    @precondition(lambda self: self.model.leased())
    @rule(pick=picks, lease_ms=leases)
    def extend(self, pick: int, lease_ms: int) -> None:
        flow = self._any(self.model.leased(), pick)
        record = self.held("extend_lease", flow, flow.grip, {"lease_ms": lease_ms})
        deadline_ms = self.now_ms + lease_ms
        # The very same extension at the very same time is a repeat: nothing is written.
        if flow.events[-1] != "lease_extended" or flow.lease_deadline_ms != deadline_ms:
            flow.lease_deadline_ms = deadline_ms
            flow.wrote("lease_extended", self.now_ms)
        flow.check(record)

    @precondition(lambda self: self.model.leased())
    @rule(pick=picks, to_state=states, lease_ms=leases, running=st.booleans())
    def step_continue(self, pick: int, to_state: str, lease_ms: int, running: bool) -> None:
        flow = self._any(self.model.leased(), pick)
        from_state = "running" if running else flow.logical_state
        given = {"from_state": from_state, "to_state": to_state, "lease_ms": lease_ms}
        record = self.settle("step_continue", flow, given)
        flow.used.append(flow.grip)
        flow.enters(to_state, self.model.next_entry())
        flow.is_leased_by("w1", self.model.new_token(record), self.now_ms + lease_ms)
        flow.wrote("step_continued", self.now_ms)
        flow.check(record)

    @precondition(lambda self: self.model.leased() or self.model.waiting())
    @rule(pick=picks, to_state=states, delay_ms=delays, priority=priorities, payload=payloads)
    def transition(self, pick: int, to_state: str, delay_ms: int, **given: Any) -> None:
        flow = self._any(self.model.leased() + self.model.waiting(), pick)
        given |= {"to_state": to_state, "run_at_ms": self.instant(delay_ms)}
        given["from_state"] = flow.logical_state
        if flow.is_leased:
            record = self.settle("transition", flow, given)
        else:
            record = self.store.flow_transition(
                flow.key[1],
                given["from_state"],
                to_state,
                partition_key=flow.key[0],
                fencing_token=flow.fencing_token,
                **{name: given[name] for name in ("run_at_ms", "priority", "payload")},
            )
        flow.lets_go()
        flow.enters(to_state, self.model.next_entry())
        flow.next_run_at_ms = given["run_at_ms"]
        flow.priority, flow.payload = given["priority"], given["payload"]
        flow.wrote("transitioned", self.now_ms)
        flow.check(record)

    # What anybody may try.

    @precondition(lambda self: self.model.flows)
    @rule(pick=picks, how=st.sampled_from(["plain", "force", "token"]))
    def cancel(self, pick: int, how: str) -> None:
        flow = self._any(list(self.model.flows.values()), pick)
        partition_key, flow_id = flow.key
        given: dict[str, Any] = {"partition_key": partition_key}
        if flow.is_leased and how == "token":
            record = self.settle("cancel", flow, {})
        elif flow.is_leased and how == "plain":
            with pytest.raises(sf.StaleLease):
                self.store.flow_cancel(flow_id, **given)
            return
        elif flow.state in ("completed", "failed"):
            with pytest.raises(sf.FlowTerminal):
                self.store.flow_cancel(flow_id, force=how == "force", **given)
            return
        else:
            record = self.store.flow_cancel(flow_id, force=how == "force", **given)
        if flow.state != "cancelled":
            if flow.is_leased and how == "force":
                flow.lets_go()
                flow.fencing_token += 1
                flow.settled = None  # whether older repeats are still known is left open
            flow.ends("cancelled")
            flow.wrote("cancelled", self.now_ms)
        flow.check(record)

    @precondition(lambda self: self._settled())
    @rule(pick=picks)
    def repeat_the_last_settlement(self, pick: int) -> None:
        flow = self._any(self._settled(), pick)
        assert flow.settled is not None
        verb, grip, given = flow.settled
        flow.check(self.held(verb, flow, grip, given))

    @precondition(lambda self: self._with_used_leases())
    @rule(pick=picks, which=picks, verb=st.sampled_from(["complete", "fail", "extend_lease"]))
    def use_an_old_lease(self, pick: int, which: int, verb: str) -> None:
        flow = self._any(self._with_used_leases(), pick)
        grip = flow.used[which % len(flow.used)]
        if flow.settled is not None and flow.settled[:2] == (verb, grip):
            return
        with pytest.raises(sf.StaleLease):
            self.held(verb, flow, grip, {})

    @precondition(lambda self: self.model.leased())
    @rule(pick=picks, verb=st.sampled_from(["complete", "fail", "retry", "extend_lease"]))
    def use_half_a_lease(self, pick: int, verb: str) -> None:
        flow = self._any(self.model.leased(), pick)
        for grip in (
            Grip("another", flow.fencing_token),
            Grip(flow.grip.lease_token, flow.fencing_token + 1),
        ):
            with pytest.raises(sf.StaleLease):
                self.held(verb, flow, grip, {})

    @rule(by_ms=st.sampled_from([1, 999, 1_000, 5_000]))
    def advance(self, by_ms: int) -> None:
        self.clock.advance(by_ms)

    # What holds after every step.

    @invariant()
    def every_flow_reads_as_its_callers_were_told(self) -> None:
        for (partition_key, flow_id), flow in self.model.flows.items():
            record = self.store.flow_get(flow_id, partition_key=partition_key, payload=True)
            assert record is not None
            flow.check(record)
            assert record.payload == flow.payload

    @invariant()
    def every_history_has_one_event_for_each_version(self) -> None:
        for (partition_key, flow_id), flow in self.model.flows.items():
            events = self.store.flow_history(flow_id, partition_key=partition_key)
            assert [event.name for event in events] == flow.events
            assert [event.version for event in events] == list(range(1, flow.version + 1))

    @invariant()
    def the_counts_are_those_of_the_flows(self) -> None:
        info = self.store.flow_info(TYPE)
        wanted = self.model.info(self.now_ms)
        found = {
            state: {part: n for part, n in counts.items() if n and part != "total"}
            for state, counts in info["states"].items()
        }
        assert {state: counts for state, counts in found.items() if counts} == wanted["states"]
        for name in ("completed", "failed", "cancelled", "oldest_ready_age_ms"):
            assert info[name] == wanted[name]

    def teardown(self) -> None:
        """Claim everything that is due: nothing may have been lost on the way."""
        due = {
            flow.key
            for flow in self.model.flows.values()
            if flow.is_due(self.now_ms) or flow.is_expired(self.now_ms)
        }
        jobs = self.store.flow_claim_due(TYPE, worker="last", limit=1_000)
        self.store.close()
        assert {(job.partition_key, job.id) for job in jobs} == due
        assert len(jobs) == len(due)

    def _any(self, flows: list[Known], pick: int) -> Known:
        return flows[pick % len(flows)]

    def _settled(self) -> list[Known]:
        return [flow for flow in self.model.flows.values() if flow.settled is not None]

    def _with_used_leases(self) -> list[Known]:
        return [flow for flow in self.model.flows.values() if flow.used]
