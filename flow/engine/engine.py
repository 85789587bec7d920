"""One shard: where decisions meet the log. No thread, process, socket or clock of its own.

Decide, evolve, append, sync, speak, in this order: a command sees the effects of those before it
in the batch; no answer leaves before the sync. Whatever escapes from here ends the shard's
process, because memory may then be ahead of the disk; recovery starts from the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace

from .. import commands, family, queries
from ..beside import Folder
from ..cold.audit import audit
from ..errors import CorruptLog
from ..events import FAMILY_FACTS, Delivered, Dropped
from ..host import Entropy, Files
from ..index.timequeue import head
from ..limits import COLLECT_POSTS_MAX, DISK_RETRY_MS, FRAME_BYTES_SOFT_MAX, SWEEP_ITEMS_MAX
from ..log.log import Log
from ..log.position import POSITION_BYTES, Position, unpack
from ..log.recover import refuse_missing
from ..log.space import Space
from ..machine import claim, policies, reads
from ..machine.cascade import follow
from ..machine.decide import TABLE, Decide
from ..machine.takeback import take_back
from ..machine.turn import Turn
from ..replies import Data, Done, Events, Rejected, Reply
from ..settings import Settings
from .hydrate import Hydrator
from .projections import Projections
from .restore import restore
from .room import DELIVERED_BYTES_MAX, fits, no_room
from .stats import Entries, check_invariants, compare
from .upkeep import Upkeep
from .writer import Writer

Request = commands.AnyCommand | family.AnyFamilyCommand | queries.AnyQuery


class Answer(NamedTuple):
    """A reply, and where in the batch's frame its records stand, if they are all there."""

    reply: Reply
    span: tuple[int, int] | None = None
    frame: bytearray | None = None
    """What the span points into."""


class Engine:
    """The shard behind whatever carries its messages: a process, a test, a simulator."""

    def __init__(
        self,
        files: Files,
        entropy: Entropy,
        settings: Settings,
        *,
        sync: bool = True,
        may_begin: bool = True,
        folder: Folder | None = None,
    ) -> None:
        """Recover from `files`, which nobody else may use.

        `may_begin=False`: the log was begun before, so that it must be there.
        `folder`: where ended flows go that leave memory; None = they stay.

        Raises:
            CorruptLog: the log is damaged before its tail, or missing.
        """
        if not may_begin:
            refuse_missing(files)
        self._entropy = entropy
        self._files = files
        self._sync = sync
        space = Space(files)
        projections = Projections(folder, entropy)
        self.restored = restored = restore(files, settings, projections)
        self.state = restored.state
        self.values = restored.values
        self.cold = restored.cold
        self.cold_fault = projections.fault
        """Why ended flows stay in memory although they should not."""
        self.hydrator = Hydrator(self.values, self)
        try:
            self.log = Log(files, restored.log, space)
        except BaseException:
            projections.abandon()
            raise
        self.cut_bytes = restored.log.cut_bytes
        self.commands = 0
        self._writer: Writer | None = None
        self._must_sync = False
        """Whether this batch holds what other shards rely on."""
        self.upkeep = Upkeep(files, self.log, restored, self._settle)
        self._bury()
        self._delivered: dict[int, int] = {}
        """Acknowledgements that the log does not have yet: they go with the next frame."""
        self._sweep_after_ms = 0
        """A sweep that found no room for what it writes waits until then."""
        self.touched: set[str] | None = None
        """When set: collects the types of the flows that were written."""

    def step(self, requests: Sequence[Request], now_ms: int, order_us: int) -> list[Answer]:
        """Answer a batch: all its writes are on disk when this returns (unless relaxed).

        A request's own `now_ms` overrides the batch's. `order_us` is the time in µs: flows enter
        states in its order, comparable between shards.
        """
        self._writer = Writer(self.log, self.values)
        answers = []
        for request in requests:
            at_ms = now_ms if request.now_ms is None else request.now_ms
            decide = TABLE.get(request.__class__)
            if decide is None:
                answers.append(Answer(self._query(request, at_ms)))
            else:
                answers.append(self._command(decide, request, at_ms, order_us))
        self.commands += len(requests)
        if not self._writer.is_empty:
            self._note_delivered(self._writer)
            self._writer.commit(sync=self._sync or self._must_sync)
            self._delivered.clear()
            self._must_sync = False
        elif self._sync:
            self.log.sync()
        self._writer = None
        self.state.table.pack()
        if self.cold is not None:
            self.cold.rest(may_write=not self.log.space.is_full)
        return answers

    def _command(self, decide: Decide, request: Any, now_ms: int, order_us: int) -> Answer:
        """Decide, evolve, and stage for the batch's frame."""
        turn = self.state.turn(now_ms, self._entropy, order_us)
        reply = decide(self.state, request, turn)
        decided = len(turn.puts)
        if turn.puts:
            follow(self.state, turn)
        span = None
        writer = self._writer
        assert writer is not None
        if not turn.is_empty:
            if len(writer.frame) > FRAME_BYTES_SOFT_MAX:
                # Still one sync per batch: the last frame's covers those before it.
                writer.commit(sync=False)
                writer = self._writer = Writer(self.log, self.values)
            if turn.drops:
                turn.drops = [replace(drop, first=self._first_of(drop)) for drop in turn.drops]
            if self.log.space.is_tight and not fits(self.log, writer.size, turn, request):
                return self._refuse(request, turn, decided)
            self._evolve(turn)
            is_long = bool(turn.puts) and self.state.waits_long(*turn.puts[-1])
            span = writer.add(turn, packs=is_long)
            self._must_sync = self._must_sync or any(
                isinstance(fact, FAMILY_FACTS) for fact in turn.facts
            )
            if not _is_all(reply, turn):
                span = None
        if isinstance(request, commands.ClaimDue) and isinstance(reply, Done):
            reply = self.hydrator.fill(reply, request.hydration)
        return Answer(reply, span, writer.frame)

    def _evolve(self, turn: Turn) -> None:
        """Make a turn's changes so, in memory."""
        self.state.evolve(turn)
        if turn.drops:
            self._bury()
        if self.state.adopted:
            self._take_values()
        if self.touched is not None:
            self.touched.update(record.type for _, record in turn.puts)

    def _first_of(self, drop: Dropped) -> int:
        """Return the segment of a flow's first record; 0 if its history is no longer whole."""
        slot = self.state.lookup(drop.partition_key, drop.id)
        assert slot is not None and slot.record is not None, "only a live flow is dropped"
        if len(slot.trail) != slot.record.version * POSITION_BYTES:
            return 0
        return self.log.order_of(next(unpack(slot.trail)).segment)

    def _bury(self) -> None:
        """Count what removed flows leave behind."""
        buried, self.state.buried = self.state.buried, []
        for trail in buried:
            self.values.bury(trail)

    def _refuse(self, request: Any, turn: Turn, decided: int) -> Answer:
        """Take a decision back that there is no room for: nothing has changed yet."""
        take_back(self.state, request, turn, decided)
        if isinstance(request, commands.Sweep):
            self._sweep_after_ms = turn.now_ms + DISK_RETRY_MS
        return Answer(no_room(self.log))

    def refusal(self) -> Rejected | None:
        """Return what creations are told while the disk is full; None = they are let in."""
        return no_room(self.log) if self.log.space.is_full else None

    def _take_values(self) -> None:
        """Know where the values lie of flows that have come back into memory."""
        adopted, self.state.adopted = self.state.adopted, []
        for number, place in adopted:
            self.values.add(number, *next(unpack(place)))

    def entry(self, position: Position) -> bytes:
        """Return the bytes of an entry, be it on disk or still in the batch's frame."""
        if self._writer is not None and (data := self._writer.read(position)) is not None:
            return data
        return self.log.read(position)

    def corrupt(self, position: Position, why: str) -> CorruptLog:
        """Return the error for damage met at a position."""
        return self.log.corrupt(position, why)

    def _query(self, query: Any, now_ms: int) -> Reply:
        reply: Reply = QUERIES[query.__class__](self, query, now_ms)
        return reply

    def sweep(self, now_ms: int) -> commands.Sweep | None:
        """Return the command that ends and removes what is over, if anything is."""
        due_ms = self.next_sweep_ms()
        if due_ms is None or due_ms > now_ms:
            return None
        return commands.Sweep(SWEEP_ITEMS_MAX, now_ms)

    def next_due_ms(self, watch: queries.Watch) -> int | None:
        """Return when a claim with this filter first finds something; None = nothing in sight."""
        return claim.next_at_ms(self.state, watch)

    def count_due(self, watch: queries.Watch, upto: int, now_ms: int) -> int:
        """Return how many flows a claim with this filter would find now, counted up to a bound."""
        return claim.count(self.state, watch, upto, now_ms)

    def next_sweep_ms(self) -> int | None:
        """Return when the next flow has to be ended or removed."""
        entry = head((self.state.expiry, None))
        times = (
            None if entry is None else entry[0],
            self.state.deadlines.next_at_ms(),
            self.state.cold.next_expiry_ms(),
        )
        due_ms = min((at_ms for at_ms in times if at_ms is not None), default=None)
        return None if due_ms is None else max(due_ms, self._sweep_after_ms)

    def sync(self) -> None:
        """Put on disk what relaxed durability has left unsynced."""
        self.log.sync()

    def _note_delivered(self, writer: Writer) -> None:
        for dest, number in self._delivered.items():
            writer.add_fact(Delivered(dest, number))

    def _settle(self) -> bool:
        """Log what memory alone has: whoever copies one or the other finds both of one mind.

        False: the disk has no room for it. Then no merge may leave out what memory takes for dead:
        numbers of posts would be given again, and be passed over where they are known.
        """
        if self._delivered:
            writer = Writer(self.log, self.values)
            if not self.log.has_room(writer.size + DELIVERED_BYTES_MAX):
                return False
            self._note_delivered(writer)
            writer.commit(sync=self._sync)
            self._delivered.clear()
        return True

    def collect(self, query: family.Collect, now_ms: int) -> family.Outbound | None:
        """Return what the courier is to do for this shard; None while there is nothing.

        What it says is applied elsewhere is forgotten here.
        """
        families = self.state.families
        for dest, acked in enumerate(query.acked):
            number = min(acked, families.outbox.last(dest))
            if number and families.outbox.clear(dest, number):
                self._delivered[dest] = number
        posts = families.outbox.after(dict(enumerate(query.taken)), COLLECT_POSTS_MAX)
        asks = families.to_ask(now_ms)
        return family.Outbound(posts, asks) if posts or asks else None

    def next_ask_ms(self) -> int | None:
        """Return when `collect` has an outcome to ask for next."""
        return self.state.families.next_ask_ms()

    def seal(self) -> list[str] | None:
        """Close the segment that is written; return the names of all files that change no more.

        None: the disk is too full for that.
        """
        return self.log.seal()

    def close(self, *, at_once: bool = False) -> None:
        """Sync and close the log, and give the directory back. `at_once`: without a checkpoint."""
        self._settle()
        (self.upkeep.abandon if at_once else self.upkeep.close)()
        self.log.close()
        if self.cold is not None:
            self.cold.close()
        self._files.unlock()
        self.state.let_go()

    def statistics(self, *, check: bool) -> dict[str, Any]:
        """Return counters of the shard; with `check`, also the problems found (normally none)."""
        told: dict[str, Any] = {
            "shard": self.state.settings.shard,
            "flows": len(self.state.table) + self.state.cold.rows,
            "cold_flows": self.state.cold.rows,
            "values": len(self.values) + (0 if self.cold is None else self.cold.values),
            "value_reads": self.values.reads,
            "commands": self.commands,
            "bytes_written": self.log.bytes_written,
            "frames_written": self.log.frames_written,
            "syncs": self.log.syncs,
            "epoch": self.log.epoch,
            "cut_bytes": self.cut_bytes,
            **self.upkeep.statistics(),
            "free_bytes": self.log.space.free_bytes,
            "is_disk_full": self.log.space.is_full,
        }
        if check:
            entries = Entries(self.entry, self.log.holds, self.values.place)
            told["problems"] = check_invariants(self.state, entries)
            if self.cold is not None:
                told["problems"] += audit(self.cold, partial(compare, self.state, entries))
        return told

    def abandon(self) -> None:
        """Close the files as they are: after a failure, only recovery knows what they hold."""
        self.upkeep.abandon()
        self.log.abandon()
        if self.cold is not None:
            self.cold.abandon()
        self._files.unlock()
        self.state.let_go()


def _is_all(reply: Reply, turn: Turn) -> bool:
    """Whether a reply's outcomes are the turn's records, all of them, in order."""
    # Of lists, identical items are compared by identity alone.
    return isinstance(reply, Done) and reply.outcomes == [record for _, record in turn.puts]


def _get(engine: Engine, query: queries.Get, now_ms: int) -> Reply:
    slot = reads.find(engine.state, query, now_ms)
    if slot is None:
        return Done([])
    if isinstance(slot, Rejected):
        return slot
    return engine.hydrator.fill(Done([slot.record]), query.hydration)


def _history(engine: Engine, query: queries.History, now_ms: int) -> Reply:
    slot = reads.find(engine.state, query, now_ms)
    if slot is None:
        return Events(None)
    if isinstance(slot, Rejected):
        return slot
    return engine.hydrator.history(slot, query)


def _value_get(engine: Engine, query: queries.ValueGet, now_ms: int) -> Reply:
    return Data(engine.hydrator.values(query.numbers, query.max_bytes))


QUERIES: dict[type, Any] = {
    queries.Get: _get,
    queries.History: _history,
    queries.List: lambda engine, query, now_ms: reads.list_flows(engine.state, query, now_ms),
    queries.Lineage: lambda engine, query, now_ms: reads.lineage(engine.state, query, now_ms),
    queries.Info: lambda engine, query, now_ms: reads.info(engine.state, query, now_ms),
    queries.Stuck: lambda engine, query, now_ms: reads.stuck(engine.state, query, now_ms),
    queries.Probe: lambda engine, query, now_ms: claim.probe(engine.state, query, now_ms),
    queries.PolicyGet: lambda engine, query, _: policies.policy_get(engine.state.policies, query),
    queries.ValueGet: _value_get,
    queries.Stats: lambda engine, query, now_ms: Data(engine.statistics(check=query.check)),
    queries.Tick: lambda engine, query, now_ms: Data(None),
}
