"""Reading a shard's state back from its log: last writer wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..codec import decode_entry
from ..errors import CorruptLog
from ..events import Delivered, Dropped, ValueStored
from ..host import Files
from ..log.parts import segment_name
from ..log.position import pack
from ..log.recover import Recovery, recover
from ..log.values import Values
from ..machine.loading import Loading
from ..machine.state import ShardState
from ..record import Record
from .writer import TRAIL_BYTES_MAX, trim


def restore(files: Files, state: ShardState, values: Values) -> Recovery:
    """Fill a new state from the log; return where the log continues.

    Raises:
        CorruptLog: the log is damaged before its tail, or holds what cannot be read.
    """
    restoring = _Restoring(files, state, values)
    recovered = recover(files, restoring.take)
    restoring.loading.finish()
    return recovered


class _Restoring:
    def __init__(self, files: Files, state: ShardState, values: Values) -> None:
        self._files = files
        self._state = state
        self._values = values
        self.loading = Loading(state)

    def take(self, raw: bytes, segment: int, offset: int, lengths: Sequence[int]) -> None:
        """Take in a frame: entries of these lengths, from this offset of its segment on."""
        # The hot loop of recovery: once per entry of the log.
        load, values = self.loading.load, self._values
        for length in lengths:
            data = raw[offset : offset + length]
            try:
                entry = decode_entry(data)
            except msgspec.MsgspecError as error:
                raise self._unreadable(segment, offset, error) from error
            kind = entry.__class__
            if kind is Record:
                slot = load(entry, data)
                slot.trail += pack(segment, offset, length)
                if len(slot.trail) > TRAIL_BYTES_MAX or entry.extras is not None:
                    trim(slot, entry, values)
            elif kind is ValueStored:
                values.add(entry.number, segment, offset, length)
                count = entry.number >> 8
                if count >= self._state.next_value:
                    self._state.next_value = count + 1
            else:
                self._take_fact(entry)
            offset += length

    def _take_fact(self, fact: Any) -> None:
        if isinstance(fact, Dropped):
            self.loading.unload(fact)
            self._values.drop(fact.values)
        elif isinstance(fact, Delivered):
            self._state.families.outbox.clear(fact.dest, fact.number)
        else:
            self._state.note(fact, ask_at_ms=0)

    def _unreadable(self, segment: int, offset: int, error: Exception) -> CorruptLog:
        path = self._files.path_of(segment_name(segment))
        return CorruptLog(
            f"{path} holds at byte {offset} what this version cannot read ({error}); use the "
            "version that wrote it, or restore it from a backup",
            path=path,
            offset=offset,
        )
