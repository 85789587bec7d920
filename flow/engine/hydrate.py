"""Filling answers with values: payloads, results, errors, named values, past records."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..codec import decode_record
from ..commands import Hydration
from ..index.table import Slot
from ..limits import ANSWER_VALUE_BYTES_MAX
from ..log.position import unpack
from ..log.values import Source
from ..log.values import Values as ValueStore
from ..queries import History
from ..record import HistoryEvent, Record, event_of
from ..replies import Done, Events, Rejected, Values, reject

EVERYTHING = Hydration(payload=True, outcome=True, max_bytes=2**53, names=True)


class Hydrator:
    """Reads values and past records of one shard."""

    def __init__(self, values: ValueStore, source: Source) -> None:
        self._values = values
        self._source = source
        self._left = 0
        """How many bytes of values this answer may still take."""

    def fill(self, done: Done, wanted: Hydration) -> Done:
        """Return an answer with the values that were asked for; none is read otherwise."""
        if not wanted.payload and not wanted.outcome and not wanted.names:
            return done
        self._left = ANSWER_VALUE_BYTES_MAX
        values_of = self.values_of
        return Done(done.outcomes, [values_of(record, wanted) for record in done.outcomes])

    def values_of(self, record: Record, wanted: Hydration) -> Values | None:
        """Read what a request wants of a record; larger values are named, not read."""
        payload: bytes | None = None
        omitted: list[str] | None = None
        if wanted.payload and record.payload_number is not None:
            if record.payload_size <= wanted.max_bytes and record.payload_size <= self._left:
                self._left -= record.payload_size
                payload = self._values.read(self._source, record.payload_number)
            else:
                omitted = ["payload"]
        if not wanted.outcome and not wanted.names:
            return Values(payload, omitted=omitted)
        return self._all_values(record, wanted, payload, omitted or [])

    def _all_values(
        self, record: Record, wanted: Hydration, payload: bytes | None, omitted: list[str]
    ) -> Values:
        result = error = None
        if wanted.outcome:
            result = self._outcome(
                "result", record.result_number, record.result_size, wanted, omitted
            )
            error = self._outcome("error", record.error_number, record.error_size, wanted, omitted)
        named: dict[str, bytes] = {}
        stored = {} if record.extras is None else record.extras.values or {}
        for name, value in stored.items():
            if wanted.names is not True and not (wanted.names and name in wanted.names):
                continue
            if value.size > wanted.max_bytes or value.size > self._left:
                omitted.append(f"values.{name}")
            elif (data := self._values.read(self._source, value.number)) is not None:
                self._left -= value.size
                named[name] = data
        return Values(payload, result, error, named, omitted or None)

    def _outcome(
        self, kind: str, number: int | None, size: int, wanted: Hydration, omitted: list[str]
    ) -> bytes | None:
        if number is None:
            return None
        if size > wanted.max_bytes or size > self._left:
            omitted.append(kind)
            return None
        self._left -= size
        return self._values.read(self._source, number)

    def values(self, numbers: list[int], max_bytes: int) -> list[bytes | int | None]:
        """Return values' bytes; the size of one that is over max_bytes; None if there is none."""
        self._left = ANSWER_VALUE_BYTES_MAX
        return [self._value(number, max_bytes) for number in numbers]

    def _value(self, number: int, max_bytes: int) -> bytes | int | None:
        data = self._values.read(self._source, number)
        if data is None:
            return None
        if len(data) > max_bytes or len(data) > self._left:
            return len(data)
        self._left -= len(data)
        return data

    def history(self, slot: Slot, query: History) -> Events | Rejected:
        """Return the newest `count` events that match, read back from the log.

        An event cannot tell that a value was left out, so that too many are a refusal.
        """
        self._left = ANSWER_VALUE_BYTES_MAX
        events: list[HistoryEvent] = []
        values: list[Values | None] = []
        for record in self._versions(slot):
            event = event_of(record)
            if not _matches(event, query):
                continue
            events.append(event)
            if query.values:
                found = self.values_of(record, EVERYTHING)
                if found is not None and found.omitted:
                    return _too_much(len(events))
                values.append(found)
            if len(events) == query.count:
                break
        if not query.reverse:
            events.reverse()
            values.reverse()
        assert slot.record is not None
        return Events(events, values if query.values else None, slot.record.partition_key)

    def _versions(self, slot: Slot) -> Iterator[Record]:
        """Return a flow's past records, newest first; the newest is in memory."""
        current = slot.record
        assert current is not None
        yield current
        version = current.version
        # The last position is the record in memory.
        for position in list(unpack(slot.trail))[-2::-1]:
            version -= 1
            try:
                record = decode_record(self._source.entry(position))
            except msgspec.MsgspecError as error:
                raise self._source.corrupt(position, f"not a record ({error})") from error
            if record.id != current.id or record.version != version:
                raise self._source.corrupt(position, f"not version {version} of {current.id!r}")
            yield record


def _too_much(events: int) -> Rejected:
    return reject(
        "invalid_argument",
        f"the values of {events} events take more than the {ANSWER_VALUE_BYTES_MAX} bytes that "
        "one answer may bring: ask with a smaller count, or without values",
        argument="count",
    )


def _matches(event: HistoryEvent, query: History) -> bool:
    return (
        (query.event is None or event.name == query.event)
        and (query.worker is None or event.worker == query.worker)
        and (query.from_ms is None or event.at_ms >= query.from_ms)
        and (query.to_ms is None or event.at_ms <= query.to_ms)
        and (query.from_version is None or event.version >= query.from_version)
        and (query.to_version is None or event.version <= query.to_version)
    )
