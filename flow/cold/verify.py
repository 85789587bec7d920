"""Verifying cold flows that a start has kept: LMDB has no checksums of its pages.

Rows and positions have; keys have not, and a damaged page of an index would hide a flow without a
sign. So each row that was there at the start is read once, with all that leads to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import lmdb

from ..limits import COLD_REMAP_ROWS, COLD_VERIFY_ROWS
from ..record import numbers_of
from .changes import list_keys
from .environment import Environment
from .layout import (
    BadRow,
    Row,
    expiry_key,
    identity_prefix,
    pack_number,
    read_place,
    read_row,
    row_of,
)
from .store import Cold


def verify(cold: Cold) -> Iterator[bool]:
    """Read the rows that there are now, some with each step; note that they could be read.

    Raises:
        ColdDamaged: something is not as it was written.
    """
    env, end = cold.environment, cold.next_row
    yield _count(env)
    row = unmapped = 0
    while row < end:
        row = _verify_some(env, row + 1, end)
        unmapped += COLD_VERIFY_ROWS
        if unmapped >= COLD_REMAP_ROWS or row >= end:
            unmapped = 0
            env.remap()
        yield True
    cold.verified()


def _count(env: Environment) -> bool:
    sizes = {name: env.size(name) for name in ("rows", "ids", "expiry")}
    if len(set(sizes.values())) != 1:
        raise env.damaged(f"rows and their indexes differ in number: {sizes}")
    return True


def _verify_some(env: Environment, first: int, end: int) -> int:
    """Verify some rows from one on; return the last one."""
    row = first
    try:
        found = env.page("rows", pack_number(first), COLD_VERIFY_ROWS)
        for key, data in found:
            row = row_of(key)
            why = fault(env, key, read_row(row, data))
            if why:
                raise env.damaged(f"{why} of row {row} is missing")
    except lmdb.Error as error:
        raise env.damaged(str(error)) from error
    except BadRow:
        raise env.damaged(f"row {row} or a position of its values is damaged") from None
    return row if len(found) == COLD_VERIFY_ROWS else end


def fault(env: Environment, key: bytes, row: Row) -> str:
    """Return what is missing of a row; empty if nothing is."""
    record = row.record
    if env.get("ids", identity_prefix(record.partition_key, record.id) + key) is None:
        return "the id"
    if env.get("expiry", expiry_key(record, key)) is None:
        return "the time"
    if any(env.get("lists", found) is None for found in list_keys(record, key)):
        return "a listing"
    for number in numbers_of(record, row.spent):
        place = env.get("values", pack_number(number))
        if place is None:
            return f"the place of value {number}"
        read_place(number, place)
    return ""
