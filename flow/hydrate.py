"""Filling answers with values: payloads, results, errors, named values, past records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from .codec import decode_record
from .commands import Hydration
from .index.table import Slot
from .log.position import unpack
from .queries import History
from .record import HistoryEvent, Record, event_of
from .replies import Done, Events, Values

if TYPE_CHECKING:
    from .engine import Engine

EVERYTHING = Hydration(payload=True, outcome=True, max_bytes=2**53, names=True)


def claimed(engine: Engine, done: Done, wanted: Hydration) -> Done:
    """Return a claim's answer with the payloads that it asked for; no value is read otherwise."""
    if not wanted.payload and not wanted.names:
        return done
    return Done(done.outcomes, [values_of(engine, record, wanted) for record in done.outcomes])


def read(engine: Engine, done: Done, wanted: Hydration) -> Done:
    """Return a read's answer with the values that it asked for."""
    if not wanted.payload and not wanted.outcome and not wanted.names:
        return done
    return Done(done.outcomes, [values_of(engine, record, wanted) for record in done.outcomes])


def values_of(engine: Engine, record: Record, wanted: Hydration) -> Values | None:
    """Read what a request wants of a record; larger values are named, not read."""
    payload: bytes | None = None
    omitted: list[str] | None = None
    if wanted.payload and record.payload_number is not None:
        if record.payload_size <= wanted.max_bytes:
            payload = engine.values.read(engine, record.payload_number)
        else:
            omitted = ["payload"]
    if not wanted.outcome and not wanted.names:
        return Values(payload, omitted=omitted)
    return _all_values(engine, record, wanted, payload, omitted or [])


def _all_values(
    engine: Engine, record: Record, wanted: Hydration, payload: bytes | None, omitted: list[str]
) -> Values:
    values = engine.values
    result = error = None
    if wanted.outcome:
        if record.result_number is not None:
            if record.result_size <= wanted.max_bytes:
                result = values.read(engine, record.result_number)
            else:
                omitted.append("result")
        if record.error_number is not None:
            if record.error_size <= wanted.max_bytes:
                error = values.read(engine, record.error_number)
            else:
                omitted.append("error")
    named: dict[str, bytes] = {}
    stored = {} if record.extras is None else record.extras.values or {}
    for name, value in stored.items():
        if wanted.names is True or (wanted.names and name in wanted.names):
            if value.size > wanted.max_bytes:
                omitted.append(name)
            elif (data := values.read(engine, value.number)) is not None:
                named[name] = data
    return Values(payload, result, error, named, omitted or None)


def value(engine: Engine, number: int, max_bytes: int) -> bytes | int | None:
    """Return a value's bytes; its size if that is over max_bytes; None if it does not exist."""
    data = engine.values.read(engine, number)
    if data is None or len(data) <= max_bytes:
        return data
    return len(data)


def history(engine: Engine, slot: Slot, query: History) -> Events:
    """Return the newest `count` events that match, read back from the log."""
    events: list[HistoryEvent] = []
    values: list[Values | None] = []
    for record in _versions(engine, slot):
        event = event_of(record)
        if not _matches(event, query):
            continue
        events.append(event)
        if query.values:
            values.append(values_of(engine, record, EVERYTHING))
        if len(events) == query.count:
            break
    if not query.reverse:
        events.reverse()
        values.reverse()
    return Events(events, values if query.values else None)


def _versions(engine: Engine, slot: Slot) -> Iterator[Record]:
    """Return a flow's past records, newest first; the newest is in memory."""
    current = slot.record
    assert current is not None
    yield current
    version = current.version
    # The last position is the record in memory. Older ones may be in this batch's frame, which
    # is not on disk yet: the engine hands that out as well.
    for position in list(unpack(slot.trail))[-2::-1]:
        version -= 1
        data = engine.entry(position)
        try:
            record = decode_record(data)
        except msgspec.MsgspecError as error:
            raise engine.corrupt(position, f"not a record ({error})") from error
        if record.id != current.id or record.version != version:
            raise engine.corrupt(position, f"not version {version} of {current.id!r}")
        yield record


def _matches(event: HistoryEvent, query: History) -> bool:
    return (
        (query.event is None or event.name == query.event)
        and (query.worker is None or event.worker == query.worker)
        and (query.from_ms is None or event.at_ms >= query.from_ms)
        and (query.to_ms is None or event.at_ms <= query.to_ms)
        and (query.from_version is None or event.version >= query.from_version)
        and (query.to_version is None or event.version <= query.to_version)
    )
