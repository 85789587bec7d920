"""An engine on a disk that fails: what was answered is there, what was not is whole or absent.

The machine behind the tests in tests/unit/flow/test_engine_crash.py and test_merge_crash.py.

Random batches, and between and within them power losses, failed writes and syncs, restarts. What
Hypothesis prints on a failure replays it.
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardflow.flow import commands, queries
from shardflow.flow.engine import engine as engines
from shardflow.flow.engine.engine import Engine
from shardflow.flow.limits import FRAME_BYTES_SOFT_MAX
from shardflow.flow.machine.turn import Turn
from shardflow.flow.record import Record, numbers_of
from shardflow.flow.replies import Data, Done, Events
from shardflow.flow.settings import Settings
from support.disks import KINDS, Disk, Loss, PowerLoss

TYPE = "t"
RETENTION_MS = 10_000
SHARDS = 4
"""How many there would be; one of them runs."""
ALL = commands.Hydration(payload=True, outcome=True, max_bytes=2**30, names=True)

Key = tuple[str | None, str]
Snapshot = dict[Any, Any]
"""Each flow's record, and what is known beside them: policies, fan-outs, posts."""

keys = st.tuples(st.sampled_from([None, "p"]), st.sampled_from("abcdefgh"))
sizes = st.sampled_from([None, 0, 10, 5_000])
picks = st.integers(0, 100)
ops = st.one_of(
    st.tuples(
        st.just("create"),
        st.lists(keys, min_size=1, max_size=4, unique=True),
        sizes,
        st.booleans(),
    ),
    st.tuples(st.just("claim"), st.integers(1, 5)),
    st.tuples(st.sampled_from(["complete", "fail"]), st.lists(picks, max_size=3), sizes),
    st.tuples(st.just("retry"), picks, sizes),
    st.tuples(st.just("move"), picks, sizes),
    st.tuples(st.just("step"), picks),
    st.tuples(st.just("put"), picks, st.sampled_from(["x", "y"]), st.sampled_from([1, 5_000])),
    st.tuples(st.just("policy"), st.integers(0, 9)),
    st.tuples(st.just("cleanup")),
    st.tuples(st.just("read")),
)
batches = st.lists(ops, max_size=5)
losses = st.builds(Loss, st.sampled_from(KINDS), st.integers(0, 2**16))


def numbers_in(column: bytes) -> list[int]:
    """Return the integers of a column of a keydir."""
    return [int.from_bytes(column[at : at + 8], "little") for at in range(0, len(column), 8)]


class Counting:
    """Entropy that never repeats itself and needs no chance."""

    def __init__(self) -> None:
        self._count = 0

    def token_bytes(self, size: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(size, "big")


HISTORY = {"f": 2, "g": 1, "h": 1}
"""How many events some flows keep, by id."""


def value_of(flow_id: str, size: int | None) -> bytes | None:
    """Return bytes that tell, when they are read again, whose they are and that all are there."""
    return None if size is None else (flow_id.encode() * size)[:size]


def commands_for(op: tuple[Any, ...], records: list[Record]) -> list[Any]:
    """Return the command that an operation is, given the flows that there are."""
    verb, *args = op
    leased = [record for record in records if record.is_leased]
    if verb == "create":
        wanted, size, idempotent = args
        items = [
            commands.NewFlow(
                flow_id,
                key,
                TYPE,
                "queued",
                payload=value_of(flow_id, size),
                history_max_events=HISTORY.get(flow_id),
                idempotent=idempotent,
            )
            for key, flow_id in wanted
        ]
        return [commands.Create(items)]
    if verb == "claim":
        return [
            commands.ClaimDue(
                TYPE, "w", None, None, args[0], 1_000, None, True, True, args[0] // 2, ALL
            )
        ]
    if verb == "policy":
        return [commands.PolicySet(TYPE, {"retry": {"max_retries": args[0]}}, False, None)]
    if verb == "cleanup":
        return [commands.RetentionCleanup(3)]
    if verb == "read":
        return [queries.Info(TYPE), queries.Stats(check=True)]
    if verb == "put":
        return [
            commands.ValuePut(r.id, r.partition_key, args[1], value_of(r.id, args[2]) or b"", True)
            for r in records[args[0] : args[0] + 1]
        ]
    if verb in ("complete", "fail"):
        chosen = {pick % len(leased) for pick in args[0]} if leased else set()
        kind = commands.Complete if verb == "complete" else commands.Fail
        endings = [
            commands.Ending(r.id, r.partition_key, *grip(r), value=value_of(r.id, args[1]))
            for r in (leased[number] for number in sorted(chosen))
        ]
        return [kind(endings)] if endings else []
    return [lease_command(verb, r, args) for r in leased[args[0] % 8 : args[0] % 8 + 1]]


def lease_command(verb: str, record: Record, args: list[Any]) -> Any:
    token, fencing = grip(record)
    names = (record.id, record.partition_key)
    if verb == "retry":
        error = value_of(record.id, args[1])
        return commands.Retry([commands.Retrying(*names, token, fencing, error=error)])
    move = commands.Move(*names, record.logical_state, "next", fencing, token)
    if verb == "step":
        return commands.StepContinue(move, 1_000)
    payload = value_of(record.id, args[1])
    return commands.Transition(
        [commands.Move(*names, record.logical_state, "next", fencing, token, payload=payload)]
    )


def grip(record: Record) -> tuple[str, int]:
    assert record.lease_token is not None
    return record.lease_token, record.fencing_token


def history_of(flow_id: str, key: str | None) -> queries.History:
    """Return the query for every event of a flow, with its values."""
    return queries.History(
        id=flow_id,
        partition_key=key,
        anywhere=False,
        count=10_000,
        reverse=False,
        event=None,
        worker=None,
        from_ms=None,
        to_ms=None,
        from_version=None,
        to_version=None,
        values=True,
        include_cold=True,
        now_ms=0,
    )


class EngineMachine(RuleBasedStateMachine):
    """Drives one engine; `allowed` holds every state that the next power loss may lead back to."""

    sync = True
    frame_bytes_soft_max: int = FRAME_BYTES_SOFT_MAX
    """A batch goes on in another frame past this size; no command of it ever does."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(engines, "FRAME_BYTES_SOFT_MAX", self.frame_bytes_soft_max)
        self.disk = Disk()
        self.entropy = Counting()
        self.now_ms = 1_000_000
        self.engine = self.opened()
        self.allowed: list[Snapshot] = [self.snapshot()]

    def opened(self) -> Engine:
        files_settings = Settings(
            shards=SHARDS, retention_ms=RETENTION_MS, failed_retention_ms=RETENTION_MS
        )
        return Engine(self.disk, self.entropy, files_settings, sync=self.sync)

    def snapshot(self) -> Snapshot:
        """Return all flows and policies that the engine has."""
        state = self.engine.state
        found: Snapshot = {
            (slot.record.partition_key, slot.record.id): slot.record
            for slot in state.slots()
            if slot.record is not None
        }
        families = state.families
        found["facts"] = (
            {p.type: (p.policy, p.generation) for p in state.policies.all()},
            dict(families.prepared),
            dict(families.seen),
            # How many of them wait is another thing: what is applied elsewhere may be sent again.
            {dest: last for dest, _, last in families.outbox.lanes()},
        )
        return found

    def records(self) -> list[Record]:
        found = [slot.record for slot in self.engine.state.slots() if slot.record is not None]
        return sorted(found, key=lambda record: (record.id, record.partition_key or ""))

    def ask(self, *requests: Any) -> list[Any]:
        answers = self.engine.step(list(requests), self.now_ms, self.now_ms * 1_000)
        return [answer.reply for answer in answers]

    def requests(self, batch: list[tuple[Any, ...]]) -> list[Any]:
        records = self.records()
        return [request for op in batch for request in commands_for(op, records)]

    def recovered(self, allowed: list[Snapshot]) -> None:
        """Open what is on the disk and check that it is one of the states allowed."""
        self.engine = self.opened()
        found = self.snapshot()
        assert found in allowed
        self.allowed = [found]
        # None is left that nobody names.
        named = Counter(
            number
            for slot in self.engine.state.table
            if slot.record is not None
            for number in numbers_of(slot.record, slot.spent)
        )
        keydir = self.engine.values.keydir
        numbers, _, _ = keydir.columns(keydir.pages(), keydir.loose())
        assert Counter(numbers_in(numbers)) == Counter(set(named))

    @invariant()
    def everything_reads_back(self) -> None:
        for (key, flow_id), record in self.flows():
            done, told = self.ask(
                queries.Get(flow_id, key, False, ALL, now_ms=0),
                history_of(flow_id, key),
            )
            assert isinstance(done, Done) and isinstance(told, Events)
            assert done.outcomes == [record]
            assert told.events is not None
            kept = min(record.version, record.history_max_events or record.version)
            versions = [*range(record.version - kept + 1, record.version + 1)]
            assert [event.version for event in told.events] == versions
            assert done.values is not None and done.values[0] is not None
            values = done.values[0]
            for data, size, number in (
                (values.payload, record.payload_size, record.payload_number),
                (values.result, record.result_size, record.result_number),
                (values.error, record.error_size, record.error_number),
            ):
                assert data == (None if number is None else value_of(flow_id, size))
            stored = {} if record.extras is None else record.extras.values or {}
            assert values.named == {n: value_of(flow_id, v.size) for n, v in stored.items()}

    def flows(self) -> list[tuple[Key, Record]]:
        return [(key, record) for key, record in self.snapshot().items() if key != "facts"]

    # What goes well.

    @rule(batch=batches)
    def step(self, batch: list[tuple[Any, ...]]) -> None:
        self._act(lambda: self.ask(*self.requests(batch)))

    @rule(by_ms=st.sampled_from([1, 1_000, RETENTION_MS]))
    def time_passes(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @rule()
    def close_and_open_again(self) -> None:
        self.engine.close()
        assert self.disk.open_handles == 0
        self.recovered(self.allowed[-1:])

    # What does not.

    @rule()
    def the_process_is_killed(self) -> None:
        self.engine.abandon()
        self.recovered(self.allowed[-1:])

    @rule(loss=losses)
    def the_power_fails(self, loss: Loss) -> None:
        self.disk = self.disk.after_crash(loss)
        self.recovered(self.allowed)

    @rule(batch=batches, at=st.integers(1, 8), loss=losses)
    def the_power_fails_in_a_step(self, batch: list[tuple[Any, ...]], at: int, loss: Loss) -> None:
        self.disk.power_fails_at(at)
        self._fails(lambda: self.ask(*self.requests(batch)), PowerLoss)
        self.disk = self.disk.after_crash(loss)
        self.recovered(self.allowed)

    @rule(
        batch=batches,
        operation=st.sampled_from(["write", "sync", "reserve", "truncate", "create"]),
        error=st.sampled_from([errno.EIO, errno.ENOSPC]),
        after_bytes=st.sampled_from([0, 30, 100, 10_000]),
        loss=losses,
    )
    def the_disk_fails_in_a_step(
        self, batch: list[tuple[Any, ...]], operation: str, **fault: Any
    ) -> None:
        before = len(self.allowed)
        self.disk.fail(operation, **fault)
        if self._fails(lambda: self.ask(*self.requests(batch)), OSError):
            operations = self.disk.operations
            for request in (commands.PolicySet(TYPE, {}, False, None), None):
                with pytest.raises(OSError, match="failed before"):
                    self.ask(request) if request else self.engine.sync()
            assert self.disk.operations == operations
            self.engine.abandon()
            self.disk.forget_faults()
            self.recovered(self.allowed[before - 1 :])
        self.disk.forget_faults()

    @rule(
        before=batches,
        batch=batches,
        leave=st.sampled_from([0, 300, 3_000]),
        dies=st.booleans(),
        loss=st.none() | losses,
    )
    def the_disk_is_full_for_a_while(
        self,
        before: list[tuple[Any, ...]],
        batch: list[tuple[Any, ...]],
        leave: int,
        dies: bool,
        loss: Loss | None,
    ) -> None:
        self.engine.log.look()
        self.disk.capacity = self.disk.used_bytes + leave
        count = len(self.allowed)
        # Nobody has looked since the disk became full: a frame may not fit any more.
        has_failed = self._fails(lambda: self.ask(*self.requests(before)), OSError)
        if has_failed or dies:
            self.engine.abandon()
            if loss is not None:
                self.disk = self.disk.after_crash(loss)
                self.disk.capacity = self.disk.used_bytes
                self.recovered(self.allowed)
            else:
                self.recovered(self.allowed[count - 1 if has_failed else -1 :])
        self.engine.log.look()
        self._act(lambda: self.ask(*self.requests(batch)))
        self.everything_reads_back()
        self.nothing_is_amiss()
        self.disk.capacity = None
        self.engine.log.look()
        assert not self.engine.log.space.is_full

    @rule(at=st.integers(1, 8), loss=losses, first=losses)
    def the_power_fails_again_in_the_recovery(self, at: int, loss: Loss, first: Loss) -> None:
        survivor = self.disk.after_crash(first)
        self.disk = Disk.of(survivor.image())
        self.recovered(self.allowed)
        self.disk = survivor
        self.disk.power_fails_at(at)
        with contextlib.suppress(PowerLoss):
            self.opened()
        self.disk = self.disk.after_crash(loss)
        self.recovered(self.allowed)

    def _fails(self, act: Callable[[], object], error: type[Exception]) -> bool:
        """Act; return whether that failed, as it may."""
        try:
            self._act(act)
        except error:
            return True
        return False

    def _act(self, act: Callable[[], object]) -> None:
        """Act, and note every state that a power loss may lead back to from now on."""
        state = self.engine.state
        evolve = state.evolve
        in_flight: list[Snapshot] = []

        def evolve_and_note(turn: Turn) -> None:
            evolve(turn)
            in_flight.append(self.snapshot())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "evolve", evolve_and_note)
            try:
                act()
            finally:
                self.allowed += in_flight if self.may_be_split else in_flight[-1:]
        if not self.engine.log.has_unsynced:
            self.allowed = [self.snapshot()]

    @property
    def may_be_split(self) -> bool:
        """Whether a batch is there from its first command on, not only as a whole."""
        return self.frame_bytes_soft_max != FRAME_BYTES_SOFT_MAX

    def teardown(self) -> None:
        self.patch.undo()

    # Relaxed durability only.

    @precondition(lambda self: not self.sync)
    @rule()
    def what_is_left_is_synced(self) -> None:
        self._act(self.engine.sync)

    @precondition(lambda self: not self.sync)
    @rule(loss=losses)
    def the_sync_of_what_is_left_fails(self, loss: Loss) -> None:
        if not self.engine.log.has_unsynced:
            return
        self.disk.fail("sync", loss=loss)
        self._fails(self.engine.sync, OSError)
        self.engine.abandon()
        self.recovered(self.allowed[-1:])

    @invariant()
    def nothing_is_amiss(self) -> None:
        (told,) = self.ask(queries.Stats(check=True))
        assert isinstance(told, Data)
        assert told.data["problems"] == []

    @invariant()
    def what_was_answered_is_on_disk(self) -> None:
        if self.sync:
            assert not self.engine.log.has_unsynced
            assert len(self.allowed) == 1
