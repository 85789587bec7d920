"""A store of families that are compared with the plain model after every step."""

from __future__ import annotations

from collections import Counter

from hypothesis.stateful import RuleBasedStateMachine, invariant

import shardflow as sf
from shardflow.actors.ports import LocalPort
from shardflow.flow import limits
from shardflow.flow.memory import MemoryFiles
from shardflow.flow.settings import Settings
from shardflow.sdk.opening import make_store
from shardflow.testing import ManualClock
from support.families import problems_of
from support.kinship import Families, Known
from support.links import service_of

START_MS = 1_700_000_000_000
SHARDS = 3
UNTOLD_EVENTS = {"children_cancelled"}
"""Events whose number the contract leaves open."""


class FamilyStore(RuleBasedStateMachine):
    """A store whose shards run in this process, so that everything is told when a call returns."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(START_MS)
        self.files = [MemoryFiles() for _ in range(SHARDS)]
        self.families = Families()
        self.last_deadline_ms = START_MS
        self.names = 0
        self.store = self.open_store()

    def open_store(self) -> sf.Store:
        port = LocalPort(self.files, Settings(), self.clock, sync=True, manual=True)
        return make_store(
            port,
            self.clock,
            None,
            limits.VALUE_BYTES_DEFAULT,
            limits.TIMEOUT_S_DEFAULT,
            None,
            lambda: None,
        )

    # ---- what holds after every step ----

    @invariant()
    def families_agree(self) -> None:
        engines = [service_of(self.store, shard).engine for shard in range(SHARDS)]
        assert problems_of(engines) == []

    @invariant()
    def every_flow_is_as_the_model_says(self) -> None:
        for flow in self.families.flows.values():
            record = self.read(flow)
            assert record.logical_state == flow.state, flow.key
            assert (record.state == "running") == (flow.lease is not None)
            assert (record.root_flow_id, record.correlation_id) == (
                flow.root_id,
                flow.correlation_id,
            )
            if flow.group is not None:
                parent = record.parent_partition_key, record.parent_flow_id
                assert parent == flow.group.parent.key
            assert all(job.fencing_token < record.fencing_token for job in flow.lost)
            if flow.is_open and flow.lease is None:
                assert (record.next_run_at_ms is not None) == flow.is_due
            told = {name: _counted(group) for name, group in record.child_groups.items()}
            assert told == {
                name: (
                    group.status,
                    len(group.children),
                    *(group.count(end) for end in ("completed", "failed", "cancelled")),
                )
                for name, group in flow.groups.items()
            }

    @invariant()
    def every_history_tells_what_happened(self) -> None:
        for flow in self.families.flows.values():
            partition_key, flow_id = flow.key
            events = self.store.flow_history(flow_id, partition_key=partition_key)
            names = Counter(event.name for event in events if event.name not in UNTOLD_EVENTS)
            assert names == +flow.events, flow.key

    @invariant()
    def every_parent_finds_its_children(self) -> None:
        for flow in self.families.flows.values():
            if not flow.groups:
                continue
            mine = {child.key for group in flow.groups.values() for child in group.children}
            found = {
                (record.partition_key, record.id)
                for record in self.store.flow_by_parent(flow.key[1], count=1_000)
                if record.parent_partition_key == flow.key[0]
            }
            assert found == mine

    def teardown(self) -> None:
        self.store.close()

    def read(self, flow: Known) -> sf.FlowRecord:
        partition_key, flow_id = flow.key
        record = self.store.flow_get(flow_id, partition_key=partition_key)
        assert record is not None, flow.key
        assert record.partition_key == partition_key
        return record

    def cancellations(self, flow: Known) -> int:
        partition_key, flow_id = flow.key
        events = self.store.flow_history(flow_id, partition_key=partition_key)
        return sum(event.name in UNTOLD_EVENTS for event in events)


def _counted(group: sf.ChildGroup) -> tuple[str, int, int, int, int]:
    return group.status, group.total, group.completed, group.failed, group.cancelled
