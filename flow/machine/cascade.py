"""What an end means for the family: the parent is told, open children are cancelled.

Runs over every turn, whatever command made it, so that no way to end a flow can leave it out.
Relatives on this shard change in the same turn, and so in the same frame; those on others, and
those beyond CASCADE_ITEMS_MAX, are posted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from ..family import CancelChildren, ChildEnded, Post
from ..index.table import Slot
from ..keys import shard_of
from ..limits import CASCADE_ITEMS_MAX
from ..record import CANCELLED, NO_EXTRAS, TERMINAL_STATES, ChildGroup, Extras, Record
from .ending import closing
from .groups import CANCEL_CHILDREN, noted, resolution
from .state import ShardState
from .turn import Turn

GROUP_RESOLVED = "group_resolved"


def follow(state: ShardState, turn: Turn) -> None:
    """Carry the ends in a turn on to the families of the flows that ended."""
    for _, record in turn.puts:
        extras = record.extras
        if extras is None or record.state not in TERMINAL_STATES:
            continue
        if extras.group_id is not None or extras.groups is not None:
            Cascade(state, turn).run()
            return


class Cascade:
    """One turn's spread through families, breadth first; each record that it adds is followed."""

    def __init__(self, state: ShardState, turn: Turn) -> None:
        self._state = state
        self._turn = turn
        self._shard = state.settings.shard
        self._staged = {id(slot): record for slot, record in turn.puts}
        self._bound = len(turn.puts) + CASCADE_ITEMS_MAX

    def run(self) -> None:
        """Follow every put of the turn, those included that this adds."""
        before: dict[int, Record] = {}
        at = 0
        while at < len(self._turn.puts):
            slot, record = self._turn.puts[at]
            at += 1
            old = before.get(id(slot), slot.record)
            before[id(slot)] = record
            if record.extras is None or record.state not in TERMINAL_STATES:
                continue
            if old is None or old.state not in TERMINAL_STATES:
                self._ended(slot, record, record.extras)

    def note(self, post: ChildEnded) -> None:
        """Count a child's end in its parent's group, and resolve the group if that does it."""
        found = self._state.find(post.parent_partition_key, post.parent_flow_id, self._turn.now_ms)
        if found is None:
            return
        parent = self._current(found)
        group = self._group(parent, post.group_id)
        if group is None or group.seq != post.group_seq or not group.open_count:
            return
        group = noted(group, post.end)
        details = {
            "group_id": post.group_id,
            "child_id": post.child_id,
            "child_partition_key": post.child_partition_key,
        }
        parent = self._tell(found, parent, {post.group_id: group}, f"child_{post.end}", details)
        outcome = resolution(group)
        if outcome is None:
            return
        group = replace(group, status=outcome)
        self._resolve(found, parent, post.group_id, group, outcome)
        self._cancel_groups(found, [post.group_id], GROUP_RESOLVED)

    def cancel(self, post: CancelChildren) -> None:
        """End the open children of a group on this shard, as many as one turn may change."""
        for slot, child in self._open_children(post):
            if self._is_full():
                self._post(self._shard, post)
                return
            self._put(slot, self._cancelled(child))

    # ---- what an end entails ----

    def _ended(self, slot: Slot, record: Record, extras: Extras) -> None:
        self._cancel_groups(slot, extras.groups or (), "parent_closed")
        if extras.group_id is not None:
            assert extras.parent_flow_id is not None, "a group is a parent's"
            post = ChildEnded(
                extras.parent_flow_id,
                extras.parent_partition_key,
                extras.group_id,
                extras.group_seq,
                record.id,
                record.partition_key,
                record.state,
            )
            home = shard_of(
                post.parent_partition_key, post.parent_flow_id, self._state.settings.shards
            )
            if home != self._shard or self._is_full():
                self._post(home, post)
            else:
                self.note(post)

    def _cancel_groups(self, slot: Slot, group_ids: Iterable[str], why: str) -> None:
        """Have the open children of groups cancelled, wherever they are, if the groups say so.

        One event for all of them: a parent may have many, and each record holds all.
        """
        parent = self._current(slot)
        groups = (parent.extras or NO_EXTRAS).groups or {}
        chosen = {
            group_id: replace(groups[group_id], cancels=True)
            for group_id in group_ids
            if _is_to_be_cancelled(groups[group_id])
        }
        if not chosen:
            return
        count = sum(group.open_count for group in chosen.values())
        names: dict[str, Any] = {"group_ids": list(chosen)}
        if why == GROUP_RESOLVED:
            names = {"group_id": next(iter(chosen))}
        details = {**names, "open": count, "reason": why}
        self._tell(slot, parent, chosen, "children_cancelled", details)
        for group_id, group in chosen.items():
            post = CancelChildren(parent.id, parent.partition_key, group_id, group.seq)
            for shard in group.shards:
                if shard == self._shard:
                    self.cancel(post)
                else:
                    self._post(shard, post)

    def _resolve(
        self, slot: Slot, parent: Record, group_id: str, group: ChildGroup, outcome: str
    ) -> None:
        """Record how a group resolved; a parent that still waits for it goes on."""
        waits = parent.state == group.wait_state and parent.next_run_at_ms is None
        target = (group.success if outcome == "success" else group.failure) if waits else None
        details = {"group_id": group_id, "status": outcome, "moved_to": target}
        changes: dict[str, Any] = {}
        now_ms = max(self._turn.now_ms, parent.updated_at_ms)
        if target in TERMINAL_STATES:
            assert target is not None
            changes = closing(self._state, parent, target, now_ms)
        elif target is not None:
            changes = {
                "state": target,
                "next_run_at_ms": now_ms,
                "state_seq": self._turn.order(),
                "attempts": 0,
                "reclaims": 0,
            }
        self._tell(slot, parent, {group_id: group}, GROUP_RESOLVED, details, changes)

    def _tell(
        self,
        slot: Slot,
        parent: Record,
        groups: dict[str, ChildGroup],
        event: str,
        details: dict[str, Any],
        changes: dict[str, Any] | None = None,
    ) -> Record:
        """Write an event of groups into their parent's history, with the groups as they are now."""
        extras = parent.extras or NO_EXTRAS
        fields = {
            "version": parent.version + 1,
            "updated_at_ms": max(self._turn.now_ms, parent.updated_at_ms),
            "event": event,
            "event_from": parent.logical_state,
            "event_worker": parent.lease_owner,
            "event_details": details,
            "extras": replace(extras, groups={**(extras.groups or {}), **groups}),
            **(changes or {}),
        }
        return self._put(slot, replace(parent, **fields))

    def _cancelled(self, child: Record) -> Record:
        now_ms = max(self._turn.now_ms, child.updated_at_ms)
        return replace(
            child,
            **closing(self._state, child, CANCELLED, now_ms),
            # A holder that works on it is fenced off.
            fencing_token=child.fencing_token + (1 if child.is_leased else 0),
            event="cancelled",
            event_from=child.logical_state,
            event_worker=child.lease_owner,
            event_details={"reason": "parent", "group_id": (child.extras or NO_EXTRAS).group_id},
        )

    # ---- the turn ----

    def _open_children(self, post: CancelChildren) -> Iterator[tuple[Slot, Record]]:
        members = list(self._state.lineage.members("parent", post.parent_flow_id))
        # Committed by an earlier post of the same Deliver: no index has them yet.
        fresh = [slot for slot, record in self._turn.puts if slot.record is None]
        for slot in members + fresh:
            child = self._current(slot)
            extras = child.extras or NO_EXTRAS
            if (
                extras.parent_flow_id == post.parent_flow_id
                and extras.group_seq == post.group_seq
                and extras.group_id == post.group_id
                and extras.parent_partition_key == post.parent_partition_key
                and child.state not in TERMINAL_STATES
            ):
                yield slot, child

    def _current(self, slot: Slot) -> Record:
        record = self._staged.get(id(slot), slot.record)
        assert record is not None, "only live flows have a family"
        return record

    @staticmethod
    def _group(parent: Record, group_id: str) -> ChildGroup | None:
        return ((parent.extras or NO_EXTRAS).groups or {}).get(group_id)

    def _put(self, slot: Slot, record: Record) -> Record:
        self._staged[id(slot)] = record
        return self._turn.put(slot, record)

    def _post(self, dest: int, post: Post) -> None:
        self._turn.post(self._state.families.outbox, dest, post)

    def _is_full(self) -> bool:
        return len(self._turn.puts) >= self._bound


def _is_to_be_cancelled(group: ChildGroup) -> bool:
    is_asked = group.on_parent_closed == CANCEL_CHILDREN and not group.cancels
    return is_asked and group.open_count > 0
