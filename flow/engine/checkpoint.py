"""Writing a checkpoint: a shard's state in one file, in slices, while the shard serves.

What is on disk when, and why it may be written while everything changes, is told in
flow/engine/resume.py, which reads it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain, islice

from ..codec import encoder
from ..cold.store import Cold
from ..events import Delivered, Posted
from ..host import Files
from ..index.table import Slot
from ..limits import SHORTCUT_BLOCK_BYTES, SHORTCUT_SLICE_ITEMS
from ..log.log import Log
from ..log.shortcut import (
    End,
    Facts,
    Flows,
    Header,
    Places,
    ShortcutWriter,
    checkpoint_name,
    file_span,
    hints_of,
    remove_shortcuts,
)
from ..log.values import Values
from ..machine.state import ShardState

_PAGES_PER_SLICE = 64
_encode = encoder.encode


class Checkpoint:
    """One checkpoint under way. `step` until it is done; to give it up, drop it after `abandon`."""

    def __init__(
        self, files: Files, log: Log, state: ShardState, values: Values, cold: Cold | None
    ) -> None:
        """`log` and memory must be of one mind between two steps. No flow may become cold in
        between: it would be neither in the checkpoint nor in what belongs to it of the cold ones.
        """
        self._cold = cold
        self._files = files
        self._log = log
        self._state = state
        self._values = values
        # What comes before the first frame that recovery reads is on disk for ever.
        log.sync()
        self.segment, offset = log.last_frame
        self.written_before = log.bytes_written
        self._writer = ShortcutWriter(files, checkpoint_name(log.lsn))
        try:
            identity = None if cold is None else cold.begin_sync()
        except BaseException:
            self._writer.abandon()
            raise
        self._header = Header(
            "checkpoint",
            state.settings.shard,
            [file_span(span) for span in log.spans.values() if span.part.last < self.segment],
            self.segment,
            offset,
            log.lsn,
            log.epoch,
            log.first_lsn_of(self.segment),
            state.next_value,
            state.last_order,
            log.next_number,
            identity,
        )
        self._facts = _facts_of(state)
        # Flows that are added after the frame that it begins with are told by what follows that.
        self._walk = state.table.walk()
        self._slots = deque([next(self._walk, [])])
        self._steps = self._run()
        self.is_done = False
        self.is_waiting = False
        """Whether the next step has nothing to do but to look whether the disk is ready."""

    @property
    def size(self) -> int:
        """How many bytes it has so far."""
        return self._writer.size

    def step(self) -> None:
        """Do the next slice: a millisecond or two."""
        if next(self._steps, None) is None:
            self.is_done = True

    def wait(self) -> None:
        """Wait for the disk, if that is all there is to do."""
        if self._cold is not None and self.is_waiting:
            self._cold.end_sync()

    def abandon(self) -> None:
        """Stop in the middle, as if it had never begun."""
        self._steps.close()
        self._walk.close()
        self._writer.abandon()

    def _run(self) -> Generator[bool]:
        self._writer.add(self._header)
        yield True
        for slots in self._walk:
            self._slots.append(slots)
            yield True
        yield from self._write_facts()
        yield from self._write_flows()
        # After the flows: a value that has gone since a flow was written is not in it, and one that
        # had gone before is not either.
        yield from self._write_places()
        self._writer.sync()
        yield True
        if self._cold is not None:
            while self._cold.is_syncing:
                self.is_waiting = True
                yield True
            self.is_waiting = False
            self._cold.end_sync()
        self._finish()
        if self._cold is not None:
            self._cold.confirm()
        yield True
        remove_shortcuts(self._files, {self._writer.name, *hints_of(self._log.spans.values())})

    def _write_facts(self) -> Iterator[bool]:
        place_of = self._values.facts.packed_place
        while True:
            entries: list[bytes] = []
            places = b""
            size = 0
            for fact in islice(self._facts, SHORTCUT_SLICE_ITEMS):
                entries.append(_encode(fact))
                # One that has gone meanwhile lies nowhere, one that has come again elsewhere: what
                # follows in the log tells the same, and what is dead is counted anew at the end.
                places += place_of(fact)
                size += len(entries[-1])
                if size >= SHORTCUT_BLOCK_BYTES:
                    break
            if not entries:
                return
            self._writer.add(Facts(entries, places))
            yield True

    def _write_flows(self) -> Iterator[bool]:
        while self._slots:
            slots = self._slots.popleft()
            # In the order of their coming: so a start finds most queues in order.
            slots.reverse()
            while slots:
                block = _block_of(slots)
                if block.records:
                    self._writer.add(block)
                yield True

    def _write_places(self) -> Iterator[bool]:
        keydir = self._values.keydir
        pages = keydir.pages()
        for at in range(0, len(pages), _PAGES_PER_SLICE):
            self._writer.add(Places(*keydir.columns(pages[at : at + _PAGES_PER_SLICE], ())))
            yield True
        loose = keydir.loose()
        for at in range(0, len(loose), SHORTCUT_SLICE_ITEMS):
            self._writer.add(Places(*keydir.columns((), loose[at : at + SHORTCUT_SLICE_ITEMS])))
            yield True

    def _finish(self) -> None:
        """Give it its end and its name. All that is in it is on disk in the log as well by then."""
        self._log.sync()
        self._writer.finish(
            End(
                0,
                len(self._state.table),
                len(self._values),
                self._log.lsn,
                self._log.epoch,
                self._values.dead.all(),
                self._values.dead.all_kept(),
            )
        )


def _block_of(slots: list[Slot]) -> Flows:
    """Take the last slots of a list; return what is to be written of them."""
    block = Flows([], [], [])
    size = 0
    for _ in range(min(len(slots), SHORTCUT_SLICE_ITEMS)):
        slot = slots.pop()
        if slot.held is not None:
            size += _add(block, slot)
            if size >= SHORTCUT_BLOCK_BYTES:
                break
    return block


def _add(block: Flows, slot: Slot) -> int:
    held = slot.held
    packed = held if held.__class__ is bytes else _encode(held)
    if slot.spent:
        index = len(block.records)
        block.spent.extend((index, version, number) for version, number in slot.spent)
    block.records.append(packed)
    block.trails.append(slot.trail)
    return len(packed) + len(slot.trail)


def _facts_of(state: ShardState) -> Iterator[object]:
    """Return what a shard holds now besides flows and values, as the entries that lead to it."""
    families = state.families
    outbox = families.outbox
    facts: list[object] = [*state.policies.all(), *families.prepared.values()]
    facts += families.received()
    dests = [dest for dest, _, _ in outbox.lanes()]
    facts += (Delivered(dest, outbox.cleared(dest)) for dest in dests)
    # There may be very many: only that they are there is noted at once.
    lanes = [(dest, outbox.lane(dest)) for dest in dests]
    posts = (Posted(dest, number, post) for dest, lane in lanes for number, post in lane)
    return chain(facts, posts)
