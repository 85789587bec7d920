"""Reads of the hot state: pure, nothing is loaded from the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any

from ..errors import ambiguous
from ..index.table import Slot
from ..index.timequeue import head
from ..limits import LIST_SCAN_FLOWS
from ..order import cursor_of, is_beyond
from ..queries import Cursor, Get, History, Info, Lineage, List, Stuck
from ..record import NO_EXTRAS, RUNNING, TERMINAL_STATES, Record
from ..replies import Data, Done, Rejected, Reply
from .state import ShardState


def find(state: ShardState, query: Get | History, now_ms: int) -> Slot | Rejected | None:
    """Return the one flow that a read by id means; several partitions are a refusal."""
    if isinstance(query, History) and not query.include_cold:
        slots = state.table.of_id(query.id)
        if not query.anywhere:
            slots = [s for s in slots if s.record and s.record.partition_key == query.partition_key]
    elif not query.anywhere:
        return state.find(query.partition_key, query.id, now_ms)
    else:
        slots = [*state.table.of_id(query.id), *state.cold.of_id(query.id)]
    found = [slot for slot in slots if _is_visible(slot.record, now_ms)]
    exact = [slot for slot in found if slot.record and slot.record.partition_key is None]
    if exact or len(found) <= 1:
        return next(iter(exact or found), None)
    return Rejected(ambiguous(query.id, [s.record.partition_key for s in found if s.record]))


def _is_visible(record: Record | None, now_ms: int) -> bool:
    return record is not None and (record.expires_at_ms is None or record.expires_at_ms > now_ms)


def list_flows(state: ShardState, query: List, now_ms: int) -> Reply:
    """Return one page of a type's flows."""
    scan = None
    records = state.listing.walk(state.table, query.type, query.after, reverse=query.reverse)
    if query.include_cold and (ends := _ends(state, query.states)):
        cold = state.cold.walk("type", query.type, ends, query.after, reverse=query.reverse)
        scan = _Scan(cold)
        records = merge(records, scan, key=cursor_of, reverse=query.reverse)
    wanted = (
        record
        for record in _until_end(records, scan, query.reverse)
        if _is_visible(record, now_ms)
        and (query.partition_key is None or record.partition_key == query.partition_key)
        and _in_states(record, query.states)
        and _has_attributes(record, query.attributes)
    )
    return _page(wanted, query.count, scan)


def _ends(state: ShardState, states: list[str] | None) -> list[str]:
    """Return in which of these states cold flows may be."""
    if not state.cold.rows:
        return []
    return [end for end in sorted(TERMINAL_STATES) if states is None or end in states]


def lineage(state: ShardState, query: Lineage, now_ms: int) -> Reply:
    """Return one page of the flows of a parent, root or correlation id."""
    slots: Iterable[Slot] = state.lineage.members(query.kind, query.id)
    if query.kind == "root":
        slots = [*slots, *(s for s in state.table.of_id(query.id) if _is_root(s))]
    hot = [
        record
        for slot in slots
        if (record := slot.record) is not None and is_beyond(record, query.after)
    ]
    hot.sort(key=cursor_of)
    scan = None
    records: Iterator[Record] = iter(hot)
    if query.include_cold and query.terminal is not False and (ends := _ends(state, query.states)):
        scan = _Scan(merge(*_cold_kin(state, query, ends), key=cursor_of))
        records = merge(hot, scan, key=cursor_of)
    wanted = (
        record
        for record in _until_end(records, scan, is_reversed=False)
        if _is_visible(record, now_ms)
        and (query.partition_key is None or record.partition_key == query.partition_key)
        and _in_states(record, query.states)
        and (query.terminal is None or record.is_terminal == query.terminal)
        and (not query.of_partition or _is_of(record, query.parent_partition_key))
    )
    return _page(wanted, query.count, scan)


def _cold_kin(state: ShardState, query: Lineage, ends: list[str]) -> Iterator[Iterable[Record]]:
    """Return the cold flows of a family in sorted parts."""
    yield state.cold.walk(query.kind, query.id, ends, query.after)
    if query.kind == "root":
        roots = [slot.held for slot in state.cold.of_id(query.id) if _is_root(slot)]
        beyond = (record for record in roots if is_beyond(record, query.after))
        yield sorted(beyond, key=cursor_of)


def _is_of(record: Record, parent_partition_key: str | None) -> bool:
    """Whether a child can be of the parent in this partition; one that was not spawned can."""
    extras = record.extras or NO_EXTRAS
    return extras.group_id is None or extras.parent_partition_key == parent_partition_key


def _is_root(slot: Slot) -> bool:
    return slot.record is not None and slot.record.root_flow_id == slot.record.id


class _Scan:
    """The cold flows that one page may look at."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self.end: Cursor | None = None
        """The last one of them, if there are more."""

    def __iter__(self) -> Iterator[Record]:
        last: Record | None = None
        for count, record in enumerate(self._records):
            if count == LIST_SCAN_FLOWS:
                assert last is not None
                self.end = cursor_of(last)
                return
            last = record
            yield record


def _until_end(
    records: Iterator[Record], scan: _Scan | None, is_reversed: bool
) -> Iterator[Record]:
    """Yield records as far as the cold flows among them were looked at."""
    for record in records:
        end = None if scan is None else scan.end
        if end is not None and is_beyond(record, end, reverse=is_reversed):
            return
        yield record


def _page(records: Iterator[Record], count: int, scan: _Scan | None) -> Reply:
    page: list[Any] = []
    for record in records:
        if len(page) == count:
            return Done(page, cursor=cursor_of(page[-1]))
        page.append(record)
    return Done(page, cursor=None if scan is None else scan.end)


def _in_states(record: Record, states: list[str] | None) -> bool:
    if states is None:
        return True
    return record.logical_state in states or (record.state == RUNNING and RUNNING in states)


def _has_attributes(record: Record, wanted: dict[str, Any] | None) -> bool:
    if not wanted:
        return True
    have = (record.extras or NO_EXTRAS).attributes or {}
    return all(name in have and _same(have[name], value) for name, value in wanted.items())


def _same(left: object, right: object) -> bool:
    """Equal and of one kind: True is not 1 here."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def stuck(state: ShardState, query: Stuck, now_ms: int) -> Reply:
    """Return leased flows whose deadline is long past, the oldest deadline first."""
    before_ms = now_ms - query.older_than_ms
    found: list[Record] = []
    for queues in state.due.states_leased(query.type).values():
        for queue in queues:
            for entry in queue.entries():
                if entry[0] <= before_ms and (record := entry[3].record) is not None:
                    found.append(record)
    found.sort(key=lambda record: (record.lease_deadline_ms or 0, record.id))
    return Done(list(found[: query.count]))


def info(state: ShardState, query: Info, now_ms: int) -> Reply:
    """Count a type's flows. Ready and expired ones are walked: O(those)."""
    states: dict[str, dict[str, int]] = {}
    oldest_ms = _count_due(state, query.type, now_ms, states)
    for name, queues in state.due.states_leased(query.type).items():
        for queue in queues:
            if queue.live:
                expired = queue.count_until(now_ms)
                _of(states, name)["expired"] += expired
                _of(states, name)["leased"] += queue.live - expired
    for (flow_type, name), count in state.waiting.items():
        if flow_type == query.type and count:
            _of(states, name)["waiting"] += count
    for counts in states.values():
        counts["total"] = sum(counts[name] for name in COUNTS if name != "total")
    ends = {
        end: state.ended[query.type, end] + state.cold.count(query.type, end)
        for end in sorted(TERMINAL_STATES)
    }
    return Data({"states": states, "ends": ends, "oldest_ready_at_ms": oldest_ms})


COUNTS = ("total", "ready", "scheduled", "leased", "expired", "waiting")


def _of(states: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    return states.setdefault(name, dict.fromkeys(COUNTS, 0))


def _count_due(
    state: ShardState, flow_type: str, now_ms: int, states: dict[str, dict[str, int]]
) -> int | None:
    """Count ready and scheduled flows; return when the first ready one became due."""
    oldest_ms: int | None = None
    for name, queues in state.due.states_due(flow_type).items():
        for queue in queues:
            if not queue.live:
                continue
            ready = queue.count_until(now_ms)
            _of(states, name)["ready"] += ready
            _of(states, name)["scheduled"] += queue.live - ready
            entry = head((queue, None))
            if ready and entry is not None:
                oldest_ms = entry[0] if oldest_ms is None else min(oldest_ms, entry[0])
    return oldest_ms
