"""The state of one shard, and `evolve`, its only writer."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from .. import limits
from ..events import Dropped, Fact, PolicyStored, Posted, Prepared, Received, Unprepared
from ..host import Entropy
from ..index.cold import NO_COLD, Cold, ColdSlot
from ..index.deadlines import Deadlines
from ..index.due import DueIndex
from ..index.families import Families
from ..index.lineage import LineageIndex
from ..index.listing import Listing
from ..index.table import FlowTable, Slot
from ..index.timequeue import TimeQueue
from ..limits import NEVER
from ..record import FAILED, NO_EXTRAS, RUNNING, TERMINAL_STATES, Record, numbers_of, value_numbers
from ..settings import Settings
from .policies import Policies
from .turn import Turn


class ShardState:
    """Records, indexes, policies and counters of one shard. Read freely; written by evolve."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = FlowTable()
        self.due = DueIndex()
        self.lineage = LineageIndex()
        self.listing = Listing()
        self.policies = Policies()
        self.deadlines = Deadlines()
        self.families = Families()
        self.expiry = TimeQueue()
        """Ended flows by the time of their removal."""
        self.waiting: Counter[tuple[str, str]] = Counter()
        """(type, state) → flows that wait for something other than time."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """(type, terminal state) → flows in memory."""
        self.cold: Cold = NO_COLD
        """Ended flows that have left memory."""
        self.closed: deque[Slot] | None = None
        """Where flows may leave memory: those that have ended, oldest first, as long as they stay.
        Some are gone by now, or in it twice."""
        self.adopted: list[tuple[int, bytes]] = []
        """Values of flows that came back into memory since somebody looked: number, position."""
        self.buried: list[bytes] = []
        """Trails of flows that were removed since somebody looked."""
        self.last_order = 0
        self.next_value = 1

    def turn(self, now_ms: int, entropy: Entropy, order_us: int) -> Turn:
        """Begin a command. `order_us` (µs since the epoch) makes orders of shards comparable."""
        return Turn(
            now_ms,
            entropy,
            order=max(self.last_order, order_us),
            next_value=self.next_value,
            shard=self.settings.shard,
        )

    def find(self, partition_key: str | None, flow_id: str, now_ms: int) -> Slot | None:
        """Return a flow's slot, unless the flow is absent or past its retention."""
        slot = self.table.get(partition_key, flow_id)
        if slot is None and self.cold.rows:
            slot = self.cold.find(partition_key, flow_id)
        if slot is None:
            return None
        record: Record = slot.held  # The table unpacks what it hands out.
        if record.expires_at_ms is not None and record.expires_at_ms <= now_ms:
            return None
        return slot

    def lookup(self, partition_key: str | None, flow_id: str) -> Slot | None:
        """Return a flow's slot, be it hot or cold, and even past its retention."""
        slot = self.table.get(partition_key, flow_id)
        if slot is None and self.cold.rows:
            return self.cold.find(partition_key, flow_id)
        return slot

    def slots(self) -> Iterator[Slot]:
        """Return every flow's slot, hot and cold: for checks."""
        yield from self.table
        yield from self.cold.slots()

    def expires_at_ms(self, record: Record, end: str, ttl_ms: int | None, now_ms: int) -> int:
        """Return when a flow that ends now will be absent."""
        if ttl_ms is None:
            ttl_ms = (record.extras or NO_EXTRAS).retention_ttl_ms
        if ttl_ms is None:
            ttl_ms = self.policies.retention_ttl_ms(record.type)
        if ttl_ms is None:
            settings = self.settings
            ttl_ms = settings.failed_retention_ms if end == FAILED else settings.retention_ms
        return min(now_ms + ttl_ms, limits.INTEGER_MAX)

    def evolve(self, turn: Turn) -> None:
        """Make a turn's changes so."""
        for drop in turn.drops:
            self.drop(drop)
        for slot, record in turn.puts:
            self.put(slot, record)
        for fact in turn.facts:
            self.note(fact)
        for txn in turn.ends:
            self.families.end(txn)
        for undecided in turn.begins:
            self.families.begin(undecided)
        self.last_order = turn.last_order
        self.next_value = turn.next_value

    def note(self, fact: Fact, ask_at_ms: int | None = None) -> None:
        """Take in a fact, fresh or from the log."""
        families = self.families
        if isinstance(fact, PolicyStored):
            self.policies.store(fact)
        elif isinstance(fact, Posted):
            is_fresh = ask_at_ms is None
            assert not is_fresh or fact.number == families.outbox.last(fact.dest) + 1, "no gaps"
            families.outbox.add(fact.dest, fact.number, fact.post)
        elif isinstance(fact, Received):
            families.seen[fact.source] = fact.number
        elif isinstance(fact, Prepared):
            families.prepare(fact, ask_at_ms)
        else:
            assert isinstance(fact, Unprepared)
            families.settle(fact.txn)

    def put(self, slot: Slot, record: Record) -> None:
        """Replace a slot's record and keep every index true."""
        if slot.__class__ is ColdSlot:
            self.adopt(slot)
        old = slot.held
        if isinstance(old, bytes):
            old = slot.record
        slot.held = record
        slot.version = record.version
        if old is None:
            assert record.version == 1, "a flow begins with version 1"
            self.table.add(slot)
            if record.extras is not None:
                self.lineage.enter(slot, record)
                self.deadlines.enter(slot, record)
        else:
            assert record.version == old.version + 1, "one version per write"
            assert record.fencing_token >= old.fencing_token, "fencing tokens never fall"
            assert record.updated_at_ms >= old.updated_at_ms, "time on a record never falls"
            if (
                old.payload_number is not record.payload_number
                or old.result_number is not record.result_number
                or old.error_number is not record.error_number
                or old.extras is not record.extras
            ):
                note_spent(slot, old, record)
            self.leave(slot, old)
        self.enter(slot, record)
        if self.listing.is_used:
            self.listing.note(slot, record)

    def drop(self, drop: Dropped) -> None:
        """Remove a flow from everything."""
        slot = self.lookup(drop.partition_key, drop.id)
        assert slot is not None, "only a live flow is dropped"
        self.buried.append(slot.trail)
        if isinstance(slot, ColdSlot) and slot.row:
            self.buried.append(self.cold.remove(slot))
        else:
            record = slot.record
            assert record is not None
            self.forget(slot, record)

    def forget(self, slot: Slot, record: Record) -> None:
        """Take a flow out of memory: it is gone, or cold from now on."""
        self.table.remove(record.partition_key, record.id)
        if record.extras is not None:
            self.lineage.leave(slot, record)
        slot.held = None
        slot.version = 0
        if self.listing.is_used:
            self.listing.forget(record.type)
        slot.trail = b""
        slot.spent = None
        self.leave(slot, record)
        slot.queue = None

    def adopt(self, slot: Slot) -> None:
        """Take a cold flow back into memory, because it is about to change."""
        assert isinstance(slot, ColdSlot)
        if not slot.row:
            return
        self.adopted += self.cold.adopt(slot)
        record = slot.held
        self.table.add(slot)
        if record.extras is not None:
            self.lineage.enter(slot, record)
        # Counted as if it were queued: an entry would be stale at once, and equal to the one that
        # it left behind when it became cold, but for the slot, which has no order.
        self.ended[record.type, record.state] += 1
        self.expiry.live += 1
        slot.queue = self.expiry

    def let_go(self) -> None:
        """Cut what ties slots and queues together: the collector does not look into slots."""
        for slot in self.table:
            slot.queue = None

    def enter(self, slot: Slot, record: Record) -> None:
        """Queue a slot by its new record: for its time, its lease's end, or its removal."""
        state = record.state
        lane = record.partition_key
        if state == RUNNING:
            assert record.run_state is not None
            queue = self.due.lease_queue(record.type, record.run_state, record.priority)
            at_ms = record.lease_deadline_ms
        elif state in TERMINAL_STATES:
            self.ended[record.type, state] += 1
            queue = self.expiry
            at_ms = record.expires_at_ms
            lane = None
            if self.closed is not None:
                self.closed.append(slot)
        else:
            at_ms = record.next_run_at_ms
            if at_ms is None or at_ms == NEVER:
                self.waiting[record.type, state] += 1
                slot.queue = None
                return
            queue = self.due.due_queue(record.type, state, record.priority)
        assert at_ms is not None, "a leased record has a deadline, an ended one a retention"
        queue.push(at_ms, record.state_seq, record.version, slot, lane)
        slot.queue = queue

    def leave(self, slot: Slot, old: Record) -> None:
        """Take a slot out of the queue that its old record put it in."""
        queue = slot.queue
        if queue is None:
            self.waiting[old.type, old.state] -= 1
            return
        queue.discard()
        if old.state in TERMINAL_STATES:
            self.ended[old.type, old.state] -= 1

    def waits_long(self, slot: Slot, record: Record) -> bool:
        """Whether this one will hardly be asked for soon: it has ended, or its turn is not near."""
        if record.state == RUNNING:
            return False
        if record.state in TERMINAL_STATES:
            return True
        queue = slot.queue
        if queue is None:
            return self.waiting[record.type, record.state] > limits.LONG_QUEUE_MIN
        waiting: int = queue.live
        return waiting > limits.LONG_QUEUE_MIN


def note_spent(slot: Slot, old: Record, new: Record, named: list[int] | None = None) -> None:
    """Remember values that only the history names from now on.

    `named`: what the record after the old one names, if there are others before the new one.
    """
    if (
        named is None
        and old.extras is None
        and old.payload_number in (None, new.payload_number)
        and old.result_number in (None, new.result_number)
        and old.error_number in (None, new.error_number)
    ):
        return
    left = set(value_numbers(old)).difference(value_numbers(new) if named is None else named)
    if left:
        if slot.spent is None:
            slot.spent = []
        slot.spent += [(old.version, number) for number in sorted(left)]


def drop_of(slot: Slot) -> Dropped:
    """Return the fact that removes a flow with all that it owns."""
    record = slot.record
    assert record is not None
    return Dropped(record.id, record.partition_key, numbers_of(record, slot.spent))


def forget_spent(slot: Slot, oldest_version: int) -> list[int]:
    """Take from a slot the values that only events before this version name; return them."""
    if not slot.spent:
        return []
    gone = [number for version, number in slot.spent if version < oldest_version]
    if gone:
        slot.spent = [entry for entry in slot.spent if entry[0] >= oldest_version]
    return gone
