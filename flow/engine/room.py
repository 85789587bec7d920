"""What a command's changes take on disk, and what it is told when there is no room for them."""

from __future__ import annotations

from collections.abc import Sequence
from errno import errorcode

from ..codec import encoder
from ..creating import is_creating
from ..errors import OUT_OF_SPACE, advice
from ..limits import DISK_FLOOR_BYTES, DISK_RETRY_MS, SHARDS_MAX
from ..log.frame import TABLE_ENTRY_BYTES
from ..log.log import Log
from ..machine.turn import Turn
from ..record import Record, value_numbers
from ..replies import Rejected, reject

_encode = encoder.encode
_NUMBER_BYTES_MAX = 9
_TRIMMED_OVERHEAD_BYTES = 24
_VALUE_OVERHEAD_BYTES = 32
"""What a value's entry holds beside its bytes, at most."""
DELIVERED_BYTES_MAX = SHARDS_MAX * 32
"""The acknowledgements that may go along with a frame."""


def fits(log: Log, size: int, turn: Turn, request: object) -> bool:
    """Reserve space for a turn in a frame that has `size` bytes; False: the disk has no room.

    Packs what is to be written once more than needed, and so is for when room is scarce only.
    """
    more = _size(turn)
    if not more:
        return True
    is_new = is_creating(request)
    if is_new and log.space.is_full:
        return False
    return log.has_room(size + more + DELIVERED_BYTES_MAX, spare=is_new)


def _size(turn: Turn) -> int:
    entries = [*turn.drops, *(record for _, record in turn.puts), *turn.facts]
    return (
        sum(len(_encode(entry)) for entry in entries)
        + sum(len(data) + _VALUE_OVERHEAD_BYTES for _, data in turn.values)
        + sum(_trimmed_size(slot.spent, slot.record) for slot, _ in turn.puts)
        + TABLE_ENTRY_BYTES * (len(entries) + len(turn.values))
    )


def _trimmed_size(spent: Sequence[object] | None, record: Record | None) -> int:
    """Return what it takes at most to say which values a history forgets."""
    count = len(spent or ()) + (0 if record is None else len(list(value_numbers(record))))
    return _TRIMMED_OVERHEAD_BYTES + _NUMBER_BYTES_MAX * count if count else 0


def no_room(log: Log) -> Rejected:
    """Return what a command hears that would write when there is no room."""
    space = log.space
    is_out = space.cause in OUT_OF_SPACE
    if is_out and space.free_bytes is not None and space.free_bytes < DISK_FLOOR_BYTES:
        told = (
            f"the disk is full: {space.free_bytes} bytes are free, and {DISK_FLOOR_BYTES} are kept "
            "for what ends flows"
        )
    else:
        told = f"no file can grow any more ({errorcode.get(space.cause, space.cause)})"
    return reject(
        "overloaded",
        f"in {space.where} {told}; {advice(space.cause)}, and the shard goes on by itself",
        reason="disk" if is_out else "read-only",
        retry_after_ms=DISK_RETRY_MS,
    )
