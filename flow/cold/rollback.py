"""Back to the last sync: what has been projected since is deleted, what was deleted comes back.

A checkpoint that names a sync knows nothing of what came after it; the log does, and tells it
again. Rows are numbered upwards, so that the newer ones are known by their numbers; those that
were deleted since are kept aside until the next sync. What merges have moved stays moved.
"""

from __future__ import annotations

from ..record import numbers_of
from .changes import Counts, Leaving, delete_row, put_rows, read_former
from .environment import Environment, Writing
from .layout import BadRow, pack_number, read_row, row_of

_BEGIN = b"begin"


def begin_anew(writing: Writing, next_row: int) -> None:
    """Make this the state to come back to."""
    writing.put("meta", _BEGIN, pack_number(next_row))
    writing.clear("former")


def first_new(env: Environment) -> int:
    """Return the first row that is newer than the last sync."""
    return int.from_bytes(env.get("meta", _BEGIN) or b"", "big")


def roll_back(env: Environment) -> None:
    """Undo what was committed since the last sync.

    Raises:
        ColdDamaged: a row cannot be read.
    """
    begin = first_new(env)
    try:
        counts = Counts.load(env)
        newer = []
        cursor = env.scan("rows")
        if cursor.set_range(pack_number(begin)):
            for key, data in cursor.iternext():
                row = row_of(key)
                newer.append((row, read_row(row, data)))
        former = []
        for key, data in env.scan("former").iternext():
            packed, places = read_former(data)
            row = row_of(key)
            found = read_row(row, packed)
            numbers = numbers_of(found.record, found.spent)
            values = [(n, p) for n, p in zip(numbers, places, strict=True) if any(p)]
            former.append((row, Leaving(*found, values)))
    except (BadRow, ValueError) as error:
        raise env.damaged(f"a row is damaged ({error})") from None
    for _, found in newer:
        counts.add(found.record.type, found.record.state, -1)
    for _, leaving in former:
        counts.add(leaving.record.type, leaving.record.state, 1)

    def work(writing: Writing) -> None:
        for row, found in newer:
            delete_row(writing, row, found.record, found.spent, keeps=False)
        for row, leaving in former:
            put_rows([leaving], row)(writing)
        counts.write(writing)
        begin_anew(writing, begin)

    env.write(work)
