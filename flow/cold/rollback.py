"""States to come back to: what a checkpoint has named, or may name soon.

A checkpoint that names a state knows nothing of what came after it; the log does, and tells it
again. Rows are numbered upwards, so that the newer ones are known by their numbers; those that were
deleted since are kept aside, in `former`. What merges have moved stays moved.

Two states are known: the last one whose checkpoint is there for certain, and one that was begun
since. A process may end at any point of a checkpoint: the one that it then finds is of either.
"""

from __future__ import annotations

import lmdb

from ..limits import COLD_BATCH_BYTES, COLD_FORGET_ROWS, COLD_UNDO_ROWS, COLD_UNDO_ROWS_MIN
from ..record import numbers_of
from .changes import Counts, Leaving, delete_row, put_rows, read_former
from .environment import ColdFull, Environment, Writing
from .layout import BadRow, pack_number, read_row, row_of, tag_of

_SYNCED, _BEGIN = b"synced", b"begin"
_PENDING, _PENDING_BEGIN = b"pending", b"pending_begin"
_LAST = b"last"


class States:
    """The states of an environment that has just been made, or has come back to one."""

    def __init__(self, env: Environment) -> None:
        self._confirmed = self.number = _number(env, _SYNCED)
        """`number`: the newest state that was begun, or was come back to."""
        self.begin = _number(env, _BEGIN)
        """The first row that is not in the newest state."""
        self.last = _number(env, _LAST)
        """The highest number that any state had. None is given twice."""
        self._is_confirmed = True

    def begin_anew(self, writing: Writing, next_row: int) -> None:
        """Make this transaction end with a state to come back to, beside the confirmed one."""
        number = pack_number(self.last + 1)
        writing.put("meta", _LAST, number)
        writing.put("meta", _PENDING, number)
        writing.put("meta", _PENDING_BEGIN, pack_number(next_row))

    def begun(self, next_row: int) -> None:
        """The transaction is over."""
        self.number = self.last = self.last + 1
        self.begin = next_row
        self._is_confirmed = False

    def confirm(self) -> None:
        """Have the next transaction forget the state before the newest one."""
        self._is_confirmed = True

    def note(self, writing: Writing) -> None:
        """Forget with a transaction what only a state needed that is confirmed no more."""
        if not self._is_confirmed:
            return
        if self._confirmed != self.number:
            _settle_on(writing, self.number, self.begin)
        cursor = writing.scan("former")
        is_found = cursor.first()
        for _ in range(COLD_FORGET_ROWS):
            if not is_found or tag_of(cursor.key()) >= self.number:
                return
            is_found = cursor.delete() and bool(cursor.key())

    def noted(self) -> None:
        """The transaction is over."""
        if self._is_confirmed:
            self._confirmed = self.number


def _number(env: Environment, name: bytes) -> int:
    return int.from_bytes(env.get("meta", name) or b"", "big")


def _settle_on(writing: Writing, number: int, begin: int) -> None:
    """Let there be one state."""
    writing.put("meta", _SYNCED, pack_number(number))
    writing.put("meta", _BEGIN, pack_number(begin))
    writing.delete("meta", _PENDING)
    writing.delete("meta", _PENDING_BEGIN)


def roll_back(env: Environment, number: int) -> bool:
    """Undo what was committed since a state; return whether it is known.

    It may be cut short at any point, and done again.

    Raises:
        ColdDamaged: a row cannot be read.
        ColdFull: the disk has no room for it.
    """
    known = {
        _number(env, _SYNCED): _number(env, _BEGIN),
        _number(env, _PENDING): _number(env, _PENDING_BEGIN),
    }
    if not number or number not in known:
        return False
    begin = known[number]
    if env.get("meta", _PENDING) is not None:
        # First of all: what is half undone is no longer what any other state was.
        env.write(lambda writing: _settle_on(writing, number, begin))
    try:
        try:
            _undo(env, number, begin, COLD_UNDO_ROWS)
        except ColdFull:
            _undo(env, number, begin, COLD_UNDO_ROWS_MIN)
    except (BadRow, ValueError, lmdb.Error) as error:
        raise env.damaged(f"a row is damaged ({error!r})") from error
    return True


def _undo(env: Environment, number: int, begin: int, count: int) -> None:
    """Undo what is left to be undone, so many rows at a time."""
    counts = Counts.load(env)
    while _undo_newer(env, counts, begin, count) or _bring_back(env, counts, number, begin, count):
        env.remap()


def _undo_newer(env: Environment, counts: Counts, begin: int, count: int) -> bool:
    """Delete some rows that are newer; return whether there were any."""
    found = env.page("rows", pack_number(begin), count, COLD_BATCH_BYTES)
    newer = [(row_of(key), read_row(row_of(key), data)) for key, data in found]
    for _, row in newer:
        counts.add(row.record.type, row.record.state, -1)

    def work(writing: Writing) -> None:
        for number, row in newer:
            delete_row(writing, number, row.record, row.spent, tag=None)
        counts.write(writing)

    if newer:
        env.write(work)
        counts.settle()
    return bool(newer)


def _bring_back(env: Environment, counts: Counts, number: int, begin: int, count: int) -> bool:
    """Bring some rows back that were deleted since; return whether any were kept aside."""
    found = env.page("former", b"", count, COLD_BATCH_BYTES)
    former = []
    for key, data in found:
        row = row_of(key)
        if row < begin and tag_of(key) >= number:
            packed, places = read_former(data)
            read = read_row(row, packed)
            numbers = numbers_of(read.record, read.spent)
            values = [(n, p) for n, p in zip(numbers, places, strict=True) if any(p)]
            former.append((row, Leaving(*read, values)))
            counts.add(read.record.type, read.record.state, 1)

    def work(writing: Writing) -> None:
        for key, _ in found:
            writing.delete("former", key)
        for row, leaving in former:
            put_rows([leaving], row)(writing)
        counts.write(writing)

    if found:
        env.write(work)
        counts.settle()
    return bool(found)
