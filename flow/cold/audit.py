"""The check that every index of the cold flows is what their rows give."""

from __future__ import annotations

from collections import Counter

from ..record import numbers_of
from .changes import list_keys
from .layout import expiry_key, identity_prefix, pack_number
from .store import Cold


def audit(cold: Cold) -> list[str]:
    """Return what is wrong, having read every row; normally nothing."""
    ended: Counter[tuple[str, str]] = Counter()
    wanted: dict[str, set[bytes]] = {"ids": set(), "lists": set(), "expiry": set()}
    numbers: set[int] = set()
    for slot in cold.slots():
        record = slot.held
        key = pack_number(slot.row)
        ended[record.type, record.state] += 1
        wanted["ids"].add(identity_prefix(record.partition_key, record.id) + key)
        wanted["lists"].update(list_keys(record, key))
        wanted["expiry"].add(expiry_key(record, key))
        numbers.update(numbers_of(record, slot.spent))
    problems = [
        f"the index {name} of cold flows differs from their rows"
        for name, keys in wanted.items()
        if keys != cold.index(name)
    ]
    if +cold.counts.of != ended:
        problems.append(f"cold flows are counted as {+cold.counts.of}, and are {ended}")
    if cold.rows != ended.total():
        problems.append(f"there are {ended.total()} cold flows, and {cold.rows} are counted")
    if numbers != cold.numbers():
        problems.append("the values of cold flows are not those that their records name")
    return problems
