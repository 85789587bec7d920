"""The queue by time against a sorted list, short and long, in any order of arrival."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardflow.flow import limits
from shardflow.flow.index import timequeue
from shardflow.flow.index.run import Run
from shardflow.flow.index.table import Slot
from shardflow.flow.index.timequeue import Entry, TimeQueue, head, peek, take

LANES = (None, "p", "q")
FULL = limits.LONG_QUEUE_MIN

Row = tuple[int, int, int, str | None]
"""time, order, version, lane."""


class QueueMachine(RuleBasedStateMachine):
    """Two queues that are looked at together; an order is given once, as the shard does."""

    @initialize(long_queue_min=st.integers(0, 3))
    def begin(self, long_queue_min: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(timequeue, "LONG_QUEUE_MIN", long_queue_min)
        self.queues = [TimeQueue(), TimeQueue()]
        self.slots: dict[int, Slot] = {}
        self.rows: list[dict[int, Row]] = [{}, {}]
        """Per queue: what is live, by order."""
        self.last_order = 0

    def teardown(self) -> None:
        self.patch.undo()

    @rule(
        which=st.integers(0, 1),
        at_ms=st.integers(0, 6),
        lane=st.sampled_from(LANES),
        count=st.integers(1, 4),
    )
    def push(self, which: int, at_ms: int, lane: str | None, count: int) -> None:
        for _ in range(count):
            self.last_order += 1
            slot = self.slots[self.last_order] = Slot(None, 1)
            self._push(which, at_ms, self.last_order, slot, lane)

    @rule(pick=st.integers(0, 1_000), to=st.integers(0, 1), at_ms=st.integers(0, 6))
    def move(self, pick: int, to: int, at_ms: int) -> None:
        """Change a flow: its entry goes stale, and it has another one under the same order."""
        if (found := self._pick(pick)) is None:
            return
        order, row = found
        self._push(to, at_ms, order, self.slots[order], row[3])

    @rule(pick=st.integers(0, 1_000))
    def leave(self, pick: int) -> None:
        if (found := self._pick(pick)) is not None:
            self.slots.pop(found[0]).version = 0

    @rule(
        now_ms=st.integers(0, 6),
        limit=st.integers(1, 6),
        lanes=st.sampled_from([(None,), ("p",), ("p", "q")]),
        both=st.booleans(),
    )
    def take(self, now_ms: int, limit: int, lanes: tuple[str | None, ...], both: bool) -> None:
        looked_at = self.queues if both else self.queues[:1]
        sources = [(queue, lane) for queue in looked_at for lane in lanes]
        wanted = self._due(len(looked_at), now_ms, lanes)[:limit]
        assert list(map(_plain, peek(sources, now_ms, limit))) == wanted
        taken = take(sources, now_ms, limit)
        assert list(map(_plain, taken)) == wanted
        for _, order, _, slot in taken:
            which = 0 if order in self.rows[0] else 1
            del self.rows[which][order], self.slots[order]
            slot.version = 0
            self.queues[which].discard()

    @invariant()
    def agrees(self) -> None:
        for which, queue in enumerate(self.queues):
            rows = self.rows[which]
            assert queue.live == len(rows)
            assert sorted(map(_plain, queue.entries())) == sorted(
                (at_ms, order, version) for order, (at_ms, _, version, _) in rows.items()
            )
            for now_ms in (0, 3, 6):
                due = sum(row[0] <= now_ms for row in rows.values())
                assert queue.count_until(now_ms) == due

    @rule(which=st.integers(0, 1), lane=st.sampled_from(LANES))
    def look(self, which: int, lane: str | None) -> None:
        found = head((self.queues[which], lane))
        due = sorted(
            (at_ms, order, version)
            for order, (at_ms, _, version, its_lane) in self.rows[which].items()
            if lane in (None, its_lane)
        )
        assert (None if found is None else _plain(found)) == next(iter(due), None)

    def _push(self, which: int, at_ms: int, order: int, slot: Slot, lane: str | None) -> None:
        self.queues[which].push(at_ms, order, slot.version, slot, lane)
        self.rows[which][order] = (at_ms, order, slot.version, lane)

    def _pick(self, pick: int) -> tuple[int, Row] | None:
        """Take one entry out of the model, and tell its queue."""
        orders = [(which, order) for which in (0, 1) for order in self.rows[which]]
        if not orders:
            return None
        which, order = orders[pick % len(orders)]
        row = self.rows[which].pop(order)
        # The shard, too, changes the slot first and tells the queue then.
        self.slots[order].version += 1
        self.queues[which].discard()
        return order, row

    def _due(
        self, queues: int, now_ms: int, lanes: tuple[str | None, ...]
    ) -> list[tuple[int, int, int]]:
        return sorted(
            (at_ms, order, version)
            for rows in self.rows[:queues]
            for order, (at_ms, _, version, lane) in rows.items()
            if at_ms <= now_ms and (None in lanes or lane in lanes)
        )


def _plain(entry: Entry) -> tuple[int, int, int]:
    return entry[:3]


TestQueue = QueueMachine.TestCase


def test_flows_of_two_delays_that_come_by_turns_make_two_runs() -> None:
    queue = TimeQueue()
    for number in range(2 * FULL):
        delay_ms = 1_000_000 if number % 2 else 0
        queue.push(number + delay_ms, number, 1, Slot(None, 1), None)
    assert [type(part) for part in queue.parts(None)].count(Run) == 2
    now_ms = 10_000_000
    orders = [entry[1] for entry in take([(queue, None)], now_ms, 2 * FULL)]
    assert orders == [*range(0, 2 * FULL, 2), *range(1, 2 * FULL, 2)]


def test_what_was_taken_from_a_run_is_given_back() -> None:
    queue = TimeQueue()
    slots = [Slot(None, 1) for _ in range(3 * FULL)]
    for number, slot in enumerate(slots):
        queue.push(0, number, 1, slot, None)
    while taken := take([(queue, None)], 0, 100):
        for entry in taken:
            entry[3].version = 0
            queue.discard()
        entries = sum(map(len, queue.parts(None)))
        assert entries == queue.live
        rooms = [len(part._slots) for part in queue.parts(None) if isinstance(part, Run)]
        assert sum(rooms) <= 2 * queue.live + 2_048
    assert [len(part) for part in queue.parts(None)] == [0]


def test_what_head_passes_over_is_let_go_of() -> None:
    run, slots = Run(), []
    for order in range(100_000):
        slots.append(Slot(None, 1))
        assert run.push(order, order, 1, slots[-1])
        if order >= 100:
            slots[order - 100].version += 1
        first = run.head()
        assert first is not None and first[1] == max(0, order - 99)
    assert len(run._slots) == len(run._at_ms) < 3_000


def test_a_run_that_head_has_emptied_takes_entries_again() -> None:
    run, slot = Run(), Slot(None, 1)
    for order in range(5_000):
        assert run.push(order, order, 2, slot)
    assert run.head() is None and len(run) == 0
    assert run.push(5_000, 5_000, 1, slot)
    assert run.head() == (5_000, 5_000, 1, slot)
