"""The cold flows of one shard: projected, let go of, moved, synced.

A flow is let go of in memory at once (`_gone` hides its row), and in LMDB with the next
transaction, after the log has what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ..beside import Folder
from ..index.cold import ColdSlot
from ..index.table import trail_index
from ..limits import (
    COLD_BATCH_FLOWS,
    COLD_MAP_BYTES,
    COLD_WAITING_MAX,
)
from ..record import numbers_of
from .changes import Leaving, delete_row, put_rows
from .environment import (
    UUID_BYTES,
    ColdDamaged,
    ColdFull,
    Environment,
    Writing,
    open_environment,
)
from .layout import (
    BadRow,
    pack_number,
    pack_place,
    read_place,
    repointed,
)
from .rollback import States, roll_back
from .rows import Rows

_NEXT, _LSN = b"next", b"lsn"


class Cold(Rows):
    """Implements `flow.index.cold.Cold`; the engine projects, moves and syncs."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._flush_at = COLD_BATCH_FLOWS
        self._next = int.from_bytes(env.get("meta", _NEXT) or b"\1", "big")
        self._states = States(env)

    @staticmethod
    def open(
        folder: Folder, uuid: bytes, identity: bytes | None = None, map_bytes: int = COLD_MAP_BYTES
    ) -> Cold:
        """Open the environment as of the state with that identity; without one, an empty one.

        Raises:
            lmdb.Error, OSError: LMDB cannot be used there.
        """
        wanted = None if identity is None else identity[:UUID_BYTES]
        env, is_kept = open_environment(folder, uuid, wanted, map_bytes)
        try:
            if is_kept:
                assert identity is not None
                with suppress(ColdDamaged):
                    if roll_back(env, int.from_bytes(identity[UUID_BYTES:], "big")):
                        return Cold(env)
                env.abandon()
                env, _ = open_environment(folder, uuid, None, map_bytes)
            return Cold(env)
        except BaseException:
            env.abandon()
            raise

    @property
    def identity(self) -> bytes:
        """What `open` takes to come back to the newest state, once that is on disk."""
        return self._env.uuid + pack_number(self._states.number)

    @property
    def environment(self) -> Environment:
        """Where the rows are, for whoever verifies them."""
        return self._env

    @property
    def next_row(self) -> int:
        """The number of the next row."""
        return self._next

    @property
    def values(self) -> int:
        """How many values cold flows own."""
        return self._env.size("values") - len(self._gone_values)

    # ---- letting go ----

    def adopt(self, slot: ColdSlot) -> list[tuple[int, bytes]]:
        """Let go of a flow that becomes hot; return its values: number and packed position."""
        numbers = numbers_of(slot.held, slot.spent)
        places = [(number, place) for number in numbers if (place := self.place(number))]
        self._let_go(slot, numbers)
        return places

    def remove(self, slot: ColdSlot) -> bytes:
        """Let go of a flow that is dropped; return the positions of its values, packed."""
        return b"".join(place for _, place in self.adopt(slot))

    def _let_go(self, slot: ColdSlot, numbers: list[int]) -> None:
        row, record = slot.row, slot.held
        self._forget_one(row, record)
        # The slot itself goes on to change, or is emptied, and so is its list.
        spent = list(slot.spent or ())
        self._gone[row] = ColdSlot(record, slot.version, slot.trail, spent, None, row)
        self._gone_values.update(numbers)
        self._is_expiry_known = False
        self.rows -= 1
        self.counts.add(record.type, record.state, -1)
        slot.row = 0

    # ---- values, and moves of what lies in the log ----

    def place(self, number: int) -> bytes | None:
        """Return where a value of a cold flow lies, packed."""
        if not self.rows or number in self._gone_values:
            return None
        self._touch(1)
        data = self._env.get("values", pack_number(number))
        try:
            return None if data is None else read_place(number, data)
        except BadRow:
            raise self._env.damaged(f"the place of value {number} is damaged") from None

    def owner(self, partition_key: str | None, flow_id: str, place: bytes) -> int:
        """Return the row of the flow whose history names an entry of the log; 0 if none does."""
        slot = self.find(partition_key, flow_id) if self.rows else None
        # Merges ask for many, and no step will end that clears them away.
        self._forget()
        return slot.row if slot is not None and trail_index(slot.trail, place) >= 0 else 0

    def move(
        self,
        rows: Sequence[tuple[int, bytes, bytes]],
        values: Sequence[tuple[int, bytes, bytes]],
    ) -> set[bytes]:
        """Note that entries lie elsewhere: (row or number, old, new). Return the old places moved.

        Those that nobody cold has any more are left out.
        """
        by_row: dict[int, list[tuple[bytes, bytes]]] = {}
        for row, old, new in rows:
            if row not in self._gone:
                by_row.setdefault(row, []).append((old, new))
        here = [(n, old, new) for n, old, new in values if self.place(n) == old]
        if not by_row and not here:
            return set()
        self._forget()

        def work(writing: Writing) -> set[bytes]:
            moved = set()
            for row, moves in by_row.items():
                key = pack_number(row)
                data = writing.get("rows", key)
                if data is None:
                    continue  # It was let go of, and has become hot, cold again, or nothing.
                fresh, found = repointed(row, data, moves)
                writing.put("rows", key, fresh)
                moved |= found
            for number, old, new in here:
                writing.put("values", pack_number(number), pack_place(number, new))
                moved.add(old)
            return moved

        self._touch(len(by_row))
        try:
            return self._env.write(work)
        except BadRow:
            raise self._env.damaged("a row to be moved is damaged") from None

    # ---- transactions ----

    def project(self, leaving: Sequence[Leaving], lsn: int) -> None:
        """Make rows of flows; once this has returned they may leave memory.

        Raises:
            ColdFull: the disk is full; nothing was changed.
        """
        first = self._next
        ready = put_rows(leaving, first)

        def work(writing: Writing) -> None:
            self._delete_gone(writing)
            ready(writing)
            self._note(writing, first + len(leaving), lsn)

        for record, *_ in leaving:
            self.counts.add(record.type, record.state, 1)
        try:
            self._env.write(work)
        except ColdFull:
            for record, *_ in leaving:
                self.counts.add(record.type, record.state, -1)
            raise
        self._next = first + len(leaving)
        self.rows += len(leaving)
        self._settle()
        self._touch(len(leaving))

    def rest(self, *, may_write: bool = True) -> None:
        """End a step: what it looked at is forgotten; much that it let go of is deleted."""
        self._forget()
        waiting = len(self._gone)
        # A transaction would wait for the sync.
        if self.is_syncing and waiting < COLD_WAITING_MAX:
            may_write = False
        if may_write and waiting >= self._flush_at:
            try:
                self.flush()
            except ColdFull:
                self._flush_at = 2 * len(self._gone)

    def flush(self) -> None:
        """Delete what was let go of."""
        if self._gone:

            def work(writing: Writing) -> None:
                self._delete_gone(writing)
                self._note(writing, self._next, None)

            self._env.write(work)
            self._settle()

    @property
    def is_syncing(self) -> bool:
        """Whether what `begin_sync` began is under way."""
        return self._env.is_syncing

    def end_sync(self) -> None:
        """Wait until what `begin_sync` began is on disk."""
        self._env.end_sync()

    def begin_sync(self) -> bytes:
        """Begin to put everything on disk, as it is now; return the identity for `open`."""

        def work(writing: Writing) -> None:
            self._delete_gone(writing)
            self._note(writing, self._next, None)
            self._states.begin_anew(writing, self._next)

        self._env.begin_sync(work)
        self._settle()
        self._states.begun(self._next)
        return self.identity

    def confirm(self) -> None:
        """What `begin_sync` began last is named for good: the state before it may be forgotten."""
        self._states.confirm()

    def _delete_gone(self, writing: Writing) -> None:
        for row, slot in self._gone.items():
            tag = self._states.last if row < self._states.begin else None
            if not delete_row(writing, row, slot.held, slot.spent, tag=tag):
                raise self._env.damaged(f"row {row} is missing, or an index lacks it")

    def _note(self, writing: Writing, next_row: int, lsn: int | None) -> None:
        self.counts.write(writing)
        self._states.note(writing)
        writing.put("meta", _NEXT, pack_number(next_row))
        if lsn is not None:
            writing.put("meta", _LSN, pack_number(lsn))

    def _settle(self) -> None:
        """Forget what was waiting for the transaction that is over."""
        self._gone.clear()
        self._gone_values.clear()
        self._forget()
        self._flush_at = COLD_BATCH_FLOWS
        self._is_expiry_known = False
        self.counts.settle()
        self._states.noted()

    # ---- the end ----

    def verified(self) -> None:
        """Note that every row was read since it was opened: it ends no process."""
        self._env.served()

    def close(self) -> None:
        """Close in order."""
        self._env.close()

    def abandon(self) -> None:
        """Close; safe to repeat."""
        self._env.abandon()
