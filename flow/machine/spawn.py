"""Fan-out as each shard sees it: begin and decide on the parent's, prepare and commit elsewhere.

docs/two-phase.md has the protocol; actors/crossing.py drives it.
"""

from __future__ import annotations

from typing import Any

from msgspec.msgpack import Encoder
from msgspec.structs import replace

from ..commands import NewFlow
from ..errors import Refused
from ..events import Prepared, Unprepared
from ..family import (
    Abort,
    AskOutcome,
    Begun,
    Busy,
    Commit,
    Committed,
    Kin,
    Prepare,
    Spawn,
    SpawnBegin,
    SpawnDecide,
    SpawnEnd,
)
from ..index.families import Undecided
from ..limits import CHILDREN_MAX, DEPTH_MAX, GROUPS_MAX
from ..record import NO_EXTRAS, RUNNING, TERMINAL_STATES, Extras, Record
from ..replies import Data, Done, Outcome, Rejected, Reply, reject
from .allowed import fault_of_new, fault_of_spawn, invalid, named_twice
from .create import create_item, refuse_reserved
from .ending import closing
from .expiry import refuse_overdue
from .groups import new_group
from .guard import check_lease, not_found, refuse, settle_mark, stale
from .state import ShardState
from .turn import Turn

_encode = Encoder().encode

# ---- the parent's shard ----


def spawn_begin(state: ShardState, command: SpawnBegin, turn: Turn) -> Reply:
    """Look whether a fan-out may be tried, and remember that it is."""
    spawn = command.spawn
    verdict = _examine(state, spawn, turn.now_ms)
    if verdict is not None:
        return _answer(verdict)
    slot = state.find(spawn.partition_key, spawn.id, turn.now_ms)
    assert slot is not None and slot.record is not None
    families = state.families
    key = spawn.partition_key, spawn.id
    other = families.spawning.get(key)
    if other is not None:
        if not families.undecided[other].is_over(turn.now_ms):
            return Busy()
        turn.ends.append(other)
    kin = _kin_of(slot.record, spawn, turn)
    txn = turn.tokens(1)[0]
    turn.begins.append(Undecided(txn, key, kin, turn.now_ms))
    return Begun(txn, kin)


def spawn_decide(state: ShardState, command: SpawnDecide, turn: Turn) -> Reply:
    """Write the group, the parent's move and this shard's children: the commit point."""
    spawn, txn = command.spawn, command.txn
    verdict = _may_decide(state, command, turn)
    if verdict is not None:
        return _answer(verdict)
    slot = state.find(spawn.partition_key, spawn.id, turn.now_ms)
    assert slot is not None and slot.record is not None
    parent = slot.record
    kin = state.families.undecided[txn].kin if txn is not None else _kin_of(parent, spawn, turn)
    if (twice := named_twice(command.children)) is not None:
        return twice
    mark = turn.mark()
    for child in command.children:
        made = _create_child(state, child, kin, turn)
        if isinstance(made, Refused):
            turn.back_to(mark)
            return _answer(made)
    after = turn.put(slot, _moved(state, parent, spawn, kin.group_seq, turn))
    if txn is not None:
        turn.ends.append(txn)
        for shard in spawn.shards:
            if shard != state.settings.shard:
                turn.post(state.families.outbox, shard, Committed(txn))
    return Done([after])


def _may_decide(state: ShardState, command: SpawnDecide, turn: Turn) -> Outcome | None:
    """Return None if the fan-out may be decided now; the parent for a repeat, else a refusal."""
    spawn, txn = command.spawn, command.txn
    if txn is not None and txn not in state.families.undecided:
        return _aborted(spawn)
    verdict = _examine(state, spawn, turn.now_ms)
    if verdict is not None:
        # A repeat that has prepared children of its own has to take them back first.
        return _aborted(spawn) if txn is not None and isinstance(verdict, Record) else verdict
    if txn is None and len(command.children) != spawn.total:
        return invalid(spawn, "children", "the group's total is not the number of children")
    return refuse_overdue(state, state.find(spawn.partition_key, spawn.id, turn.now_ms), turn)


def spawn_end(state: ShardState, command: SpawnEnd, turn: Turn) -> Reply:
    """Forget a transaction: by that it is aborted."""
    if command.txn in state.families.undecided:
        turn.ends.append(command.txn)
    return Data(True)


def ask_outcome(state: ShardState, command: AskOutcome, turn: Turn) -> Reply:
    """Tell a participant what became of a transaction. What is not remembered was aborted."""
    families = state.families
    undecided = families.undecided.get(command.txn)
    if undecided is not None:
        if not undecided.is_over(turn.now_ms):
            return Data("undecided")
        turn.ends.append(command.txn)
        return Data("aborted")
    return Data("committed" if families.outbox.promises(command.txn) else "aborted")


# ---- the children's shards ----


def prepare(state: ShardState, command: Prepare, turn: Turn) -> Reply:
    """Keep children until their transaction is decided, if their ids are free."""
    families = state.families
    if command.txn in families.prepared:
        return Data(True)
    if command.coordinator >= state.settings.shards:
        return reject("invalid_argument", "there is no such shard", argument="coordinator")
    if (twice := named_twice(command.children)) is not None:
        return twice
    for child in command.children:
        # Whatever could refuse it later has to do so now: a prepared child is as good as made.
        named = _named(child, command.kin)
        refused = _refuse_taken(state, child, turn) or fault_of_new(named, len(_encode(named)))
        if refused is not None:
            return Rejected(refused)
    turn.facts.append(
        Prepared(
            command.txn,
            command.coordinator,
            command.kin,
            command.children,
            turn.now_ms,
            command.created_ms,
        )
    )
    return Data(True)


def commit(state: ShardState, command: Commit, turn: Turn) -> Reply:
    """Bring prepared children into being."""
    commit_prepared(state, command.txn, turn)
    return Data(True)


def abort(state: ShardState, command: Abort, turn: Turn) -> Reply:
    """Forget prepared children."""
    if command.txn in state.families.prepared:
        turn.facts.append(Unprepared(command.txn))
    return Data(True)


def commit_prepared(state: ShardState, txn: str, turn: Turn) -> bool:
    """Stage the children of a transaction; False if they are there already."""
    prepared = state.families.prepared.get(txn)
    if prepared is None or Unprepared(txn) in turn.facts:
        return False
    for child in prepared.children:
        made = _create_child(state, child, prepared.kin, turn, txn, prepared.created_ms)
        assert isinstance(made, Record), "a prepared child's id is reserved"
    turn.facts.append(Unprepared(txn))
    return True


# ---- parts ----


def _examine(state: ShardState, spawn: Spawn, now_ms: int) -> Outcome | None:
    """Return None if the fan-out may be, the parent's record for a repeat, else a refusal."""
    if (fault := fault_of_spawn(spawn, state.settings.shards)) is not None:
        return fault
    slot = state.find(spawn.partition_key, spawn.id, now_ms)
    if slot is None:
        return not_found(spawn)
    record = slot.record
    assert record is not None
    extras = record.extras or NO_EXTRAS
    group = (extras.groups or {}).get(spawn.group_id)
    if group is not None:
        if group.digest == spawn.digest:
            return record
        return refuse(
            "child_group_conflict",
            record,
            f"flow {record.id!r} has a group {spawn.group_id!r} with other children; use another "
            "group_id",
        )
    return _guard(record, spawn) or _bounds(record, extras, spawn)


def _guard(record: Record, spawn: Spawn) -> Refused | None:
    """Refuse who may not move the parent."""
    if spawn.lease_token is not None:
        verdict = check_lease(record, spawn.lease_token, spawn.fencing_token, "spawn")
        assert not isinstance(verdict, Record), "a fan-out leaves no mark of its lease"
        if verdict is not None:
            return verdict
    elif record.state in TERMINAL_STATES:
        return refuse(
            "flow_terminal",
            record,
            f"flow {record.id!r} is {record.state} and can have no more children",
            state=record.state,
        )
    elif record.state == RUNNING:
        return stale(record, f"it is leased by {record.lease_owner!r}; pass its lease_token")
    elif spawn.fencing_token is not None and spawn.fencing_token != record.fencing_token:
        return stale(record, f"the command names fencing token {spawn.fencing_token}")
    logical = record.logical_state
    if spawn.from_state not in (None, logical, RUNNING if record.is_leased else None):
        return refuse(
            "wrong_state",
            record,
            f"flow {record.id!r} is in state {logical!r}, not {spawn.from_state!r}",
            state=logical,
            expected=spawn.from_state,
        )
    return None


def _bounds(record: Record, extras: Extras, spawn: Spawn) -> Refused | None:
    if not 1 <= spawn.total <= CHILDREN_MAX:
        return invalid(spawn, "children", f"a group has 1 to {CHILDREN_MAX} children")
    if len(extras.groups or ()) >= GROUPS_MAX:
        return invalid(spawn, "group_id", f"it has {GROUPS_MAX} groups, which is the most")
    if extras.depth >= DEPTH_MAX:
        return invalid(spawn, "children", f"it has {DEPTH_MAX} ancestors, which is the most")
    return None


def _moved(state: ShardState, parent: Record, spawn: Spawn, seq: int, turn: Turn) -> Record:
    """Return the parent after the fan-out: it waits, or nobody does and it goes on."""
    now_ms = max(turn.now_ms, parent.updated_at_ms)
    extras = parent.extras or NO_EXTRAS
    group = new_group(spawn, seq)
    changes: dict[str, Any] = {
        "version": parent.version + 1,
        "updated_at_ms": now_ms,
        "event": "children_spawned",
        "event_from": parent.logical_state,
        "event_worker": parent.lease_owner,
        "event_details": {"group_id": spawn.group_id, "total": spawn.total},
        "extras": replace(extras, groups={**(extras.groups or {}), spawn.group_id: group}),
    }
    target = spawn.success if spawn.wait == "none" else spawn.wait_state
    if target is None:
        # Nobody waits, and no state was named to go on in: the holder keeps its lease.
        return replace(parent, **changes)
    if parent.lease_token is not None:
        changes["settled"] = settle_mark("fan-out", parent.lease_token, parent.fencing_token)
    if target in TERMINAL_STATES:
        return replace(parent, **{**closing(state, parent, target, now_ms), **changes})
    if target != parent.logical_state:
        changes |= {"attempts": 0, "reclaims": 0}
    return replace(
        parent,
        state=target,
        run_state=None,
        next_run_at_ms=now_ms if spawn.wait == "none" else None,
        state_seq=turn.order(),
        lease_owner=None,
        lease_token=None,
        lease_deadline_ms=None,
        **changes,
    )


def _kin_of(parent: Record, spawn: Spawn, turn: Turn) -> Kin:
    return Kin(
        parent.id,
        parent.partition_key,
        parent.root_flow_id,
        parent.correlation_id,
        spawn.group_id,
        turn.order(),
        (parent.extras or NO_EXTRAS).depth + 1,
    )


def _create_child(
    state: ShardState,
    child: NewFlow,
    kin: Kin,
    turn: Turn,
    txn: str | None = None,
    at_ms: int | None = None,
) -> Outcome:
    made = create_item(state, _named(child, kin), turn, txn)
    if isinstance(made, Refused):
        return made
    slot, record = turn.puts.pop()
    extras = replace(
        record.extras or NO_EXTRAS,
        parent_partition_key=kin.parent_partition_key,
        group_id=kin.group_id,
        group_seq=kin.group_seq,
        depth=kin.depth,
    )
    times = {} if at_ms is None else {"created_at_ms": at_ms, "updated_at_ms": at_ms}
    if at_ms is not None and child.run_at_ms is None:
        times["next_run_at_ms"] = at_ms
    return turn.put(slot, replace(record, extras=extras, **times))


def _named(child: NewFlow, kin: Kin) -> NewFlow:
    """Return a child with what it has from its parent."""
    return replace(
        child,
        idempotent=False,
        parent_flow_id=kin.parent_flow_id,
        root_flow_id=kin.root_flow_id,
        correlation_id=child.correlation_id or kin.correlation_id,
    )


def _refuse_taken(state: ShardState, child: NewFlow, turn: Turn) -> Refused | None:
    """Refuse a child whose id is taken; a flow past its retention does not take it."""
    slot = state.find(child.partition_key, child.id, turn.now_ms)
    if slot is not None:
        assert slot.record is not None
        return refuse(
            "flow_already_exists",
            slot.record,
            f"flow {child.id!r} exists, so that it cannot become a child; use another id",
        )
    return refuse_reserved(state, child)


def _answer(verdict: Outcome) -> Done:
    return Done([verdict], applied=not isinstance(verdict, Refused))


def _aborted(spawn: Spawn) -> Refused:
    return Refused(
        "spawn_aborted",
        f"the fan-out of {spawn.id!r} was given up before its decision; try it again",
        {"flow_id": spawn.id, "partition_key": spawn.partition_key},
    )
