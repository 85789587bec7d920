"""One frame: what a batch of commands wrote, as one checksummed run of bytes. Pure.

    offset  size  field
         0     4  magic "SFL1"
         4     1  format version
         5     3  zero
         8     4  body length in bytes: the entries and their table
        12     4  number of entries
        16     8  log sequence number (LSN): + 1 with each frame, no gaps
        24     8  synced LSN: the newest frame known to be on disk when this one was written
        32     8  epoch: + 1 each time that the shard is opened
        40     4  CRC-32 of bytes 0..39 and the body
        44     …  entries: MessagePack, one after the other
         …   4 n  table: the length of each entry

All integers are little-endian. The layout is explained in docs/log-format.md.
"""

from __future__ import annotations

import sys
from array import array
from struct import Struct as Layout
from typing import NamedTuple
from zlib import crc32

from ..limits import FRAME_BYTES_MAX

MAGIC = b"SFL1"
VERSION = 1
HEADER = Layout("<4sB3xIIQQQ")
CRC = Layout("<I")
HEADER_BYTES = HEADER.size + CRC.size
assert HEADER_BYTES == 44
TABLE_ENTRY_BYTES = 4


class FrameHeader(NamedTuple):
    """A frame's header that was read and whose frame is whole."""

    body_bytes: int
    entries: int
    lsn: int
    synced_lsn: int
    epoch: int


def seal(frame: bytearray, lengths: list[int], lsn: int, synced_lsn: int, epoch: int) -> None:
    """Finish a frame in place: `frame` is HEADER_BYTES of room, then the entries."""
    frame += table_bytes(lengths)
    body_bytes = len(frame) - HEADER_BYTES
    assert body_bytes <= FRAME_BYTES_MAX, "a batch is bounded well below a frame"
    HEADER.pack_into(frame, 0, MAGIC, VERSION, body_bytes, len(lengths), lsn, synced_lsn, epoch)
    view = memoryview(frame)
    crc = crc32(view[HEADER_BYTES:], crc32(view[: HEADER.size]))
    CRC.pack_into(frame, HEADER.size, crc)
    view.release()


def read_header(data: memoryview, at: int, found_crc: int | None = None) -> FrameHeader | None:
    """Return the header of a whole, undamaged frame at `at`; None for anything else.

    `found_crc`: what `header_crc` and all of the body come to, if that is known.
    """
    if len(data) - at < HEADER_BYTES or data[at : at + 4] != MAGIC:
        return None
    _, version, body_bytes, entries, lsn, synced_lsn, epoch = HEADER.unpack_from(data, at)
    start = at + HEADER_BYTES
    if version != VERSION or body_bytes > len(data) - start or 4 * entries > body_bytes:
        return None
    (crc,) = CRC.unpack_from(data, at + HEADER.size)
    if found_crc is None:
        found_crc = crc32(data[start : start + body_bytes], header_crc(data[at:start]))
    if found_crc != crc:
        return None
    return FrameHeader(body_bytes, entries, lsn, synced_lsn, epoch)


def body_bytes_of(head: bytes) -> int:
    """Return how long a frame's body is, by a header that may be damaged."""
    return int.from_bytes(head[8:12], "little")


def header_crc(head: bytes | memoryview) -> int:
    """Return what the CRC of a frame with this header begins with."""
    return crc32(head[: HEADER.size])


def entry_lengths(data: memoryview, at: int, header: FrameHeader) -> array[int]:
    """Return the lengths of a frame's entries, in order."""
    end = at + HEADER_BYTES + header.body_bytes
    lengths = array("I")
    lengths.frombytes(data[end - 4 * header.entries : end])
    if sys.byteorder != "little":
        lengths.byteswap()
    return lengths


def table_bytes(lengths: list[int]) -> bytes:
    """Return the table that ends a frame's body."""
    table = array("I", lengths)
    if sys.byteorder != "little":
        table.byteswap()
    return table.tobytes()


assert array("I").itemsize == 4
