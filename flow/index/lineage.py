"""Which flows belong to a parent, a root or a correlation id."""

from __future__ import annotations

from collections.abc import Iterable

from ..queries import LineageKind
from ..record import Record
from .table import Slot


class LineageIndex:
    """id → slots, one book per kind. Only flows that have the field are in it."""

    def __init__(self) -> None:
        # Dicts as ordered sets: slots are unhashable by value, so they are keyed by identity.
        self._books: dict[LineageKind, dict[str, dict[int, Slot]]] = {
            "parent": {},
            "root": {},
            "correlation": {},
        }

    def enter(self, slot: Slot, record: Record) -> None:
        """Add a new flow."""
        for kind, key in _keys(record):
            self._books[kind].setdefault(key, {})[id(slot)] = slot

    def leave(self, slot: Slot, record: Record) -> None:
        """Forget a removed flow."""
        for kind, key in _keys(record):
            members = self._books[kind][key]
            del members[id(slot)]
            if not members:
                del self._books[kind][key]

    def members(self, kind: LineageKind, key: str) -> Iterable[Slot]:
        """Return the flows that name `key`, in order of creation on this shard."""
        return self._books[kind].get(key, {}).values()


def _keys(record: Record) -> Iterable[tuple[LineageKind, str]]:
    extras = record.extras
    if extras is None:
        return
    if extras.parent_flow_id is not None:
        yield "parent", extras.parent_flow_id
    if extras.root_flow_id is not None and extras.root_flow_id != record.id:
        yield "root", extras.root_flow_id
    if extras.correlation_id is not None:
        yield "correlation", extras.correlation_id
