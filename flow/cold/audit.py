"""The check that every index of the cold flows is what their rows give.

Each row has to be where every index looks for it; that no index has more is told by the numbers of
their entries. So nothing has to be remembered of a row, however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import lmdb

from ..limits import COLD_REMAP_ROWS, PROBLEMS_MAX
from ..record import numbers_of
from .changes import list_keys
from .environment import Environment
from .layout import BadRow, Row, pack_number, read_row, row_of
from .store import Cold
from .verify import fault

_INDEXES = ("ids", "expiry", "lists", "values")


def audit(cold: Cold, judge: Callable[[Row], list[str]] = lambda row: []) -> list[str]:
    """Return what is wrong, having read every row; normally nothing.

    `judge` tells what else is wrong with a flow. Rows that are hidden are in all indexes still.
    """
    env = cold.environment
    problems: list[str] = []
    ended: Counter[tuple[str, str]] = Counter()
    sizes: Counter[str] = Counter()
    try:
        for key, row in _rows(env):
            _measure(key, row, sizes)
            why = fault(env, key, row)
            if why:
                problems.append(f"{why} of cold {row.record.id!r} is missing")
            if not cold.is_hidden(row_of(key)):
                ended[row.record.type, row.record.state] += 1
                problems += judge(row)
            if len(problems) >= PROBLEMS_MAX:
                return problems
        told = {name: env.size(name) for name in _INDEXES}
    except (lmdb.Error, BadRow) as error:
        return [*problems, f"cold flows cannot be read: {error!r}"]
    problems += [
        f"the index {name} of cold flows has {told[name]} entries, and {sizes[name]} belong to them"
        for name in told
        if told[name] != sizes[name]
    ]
    if +cold.counts.of != ended:
        problems.append(f"cold flows are counted as {+cold.counts.of}, and are {ended}")
    if cold.rows != ended.total():
        problems.append(f"there are {ended.total()} cold flows, and {cold.rows} are counted")
    return problems


def _rows(env: Environment) -> Iterator[tuple[bytes, Row]]:
    first = 0
    while True:
        found = env.page("rows", pack_number(first), COLD_REMAP_ROWS)
        for key, data in found:
            yield key, read_row(row_of(key), data)
        if len(found) < COLD_REMAP_ROWS:
            return
        first = row_of(found[-1][0]) + 1
        env.remap()


def _measure(key: bytes, row: Row, sizes: Counter[str]) -> None:
    """Count the entries that belong to a row."""
    sizes["ids"] += 1
    sizes["expiry"] += 1
    sizes["lists"] += len(list_keys(row.record, key))
    sizes["values"] += len(set(numbers_of(row.record, row.spent)))
