"""What crosses a socket: length, request number, MessagePack. The same in both directions.

    offset  size  field
         0     4  length of what follows the number, little-endian
         4     8  request number, chosen by the client; 0 is the handshake
        12     …  one request, or its answer

Bounded by WIRE_FRAME_BYTES_MAX. docs/protocol.md has the handshake and the order of answers.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Any

import msgspec

from ..flow import commands, family, queries
from ..flow.codec import encoder
from ..flow.engine import Answer
from ..flow.errors import Refused
from ..flow.limits import WIRE_FRAME_BYTES_MAX
from ..flow.queries import Cursor
from ..flow.record import FlowRecord
from ..flow.replies import Data, Done, Events, Heads, Packed, Rejected, Values, reject

PROTOCOL = 1
HELLO = 0
"""The request number of the handshake."""
HEADER = Layout("<IQ")
HEADER_BYTES = HEADER.size
_FAULT_CHARS_MAX = 200


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The client's first frame: who it is."""

    protocol: int
    token: str
    pid: int


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """The shard's answer to it: what it is."""

    protocol: int
    shard: int
    pid: int
    epoch: int


class DoneWire(msgspec.Struct, array_like=True, frozen=True, tag_field="op", tag=1, gc=False):
    """`Done` as the client reads it: records in their public form."""

    outcomes: list[FlowRecord | Refused]
    values: list[Values | None] | None = None
    cursor: Cursor | None = None
    applied: bool = True


class WireError(Exception):
    """The peer does not speak the protocol."""


_decode_request = msgspec.msgpack.Decoder(
    commands.AnyCommand | queries.AnyQuery | family.AnyFamilyCommand | family.Collect
).decode
_decode_reply = msgspec.msgpack.Decoder(
    DoneWire | Rejected | Events | Data | Heads | family.Begun | family.Busy | family.Outbound
).decode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_welcome = msgspec.msgpack.Decoder(Welcome).decode
_encode = encoder.encode


def pack_body(message: Any) -> bytes:
    """Return a handshake's bytes."""
    return _encode(message)


def pack_frame(number: int, body: bytes) -> bytes:
    """Return one frame."""
    return HEADER.pack(len(body), number) + body


def pack_request(number: int, request: Any) -> bytes:
    """Return the frame of a request.

    Raises:
        OverflowError: an integer is beyond 64 bits; the SDK checks before.
    """
    return pack_frame(number, _encode(request))


def pack_answer(number: int, answer: Answer) -> bytes:
    """Return the frame of an answer; records that the batch's frame holds are not packed again."""
    reply, span, frame = answer
    if span is None or frame is None or not isinstance(reply, Done):
        body = _encode(reply)
    else:
        start, end = span
        records = msgspec.Raw(_array_header(len(reply.outcomes)) + frame[start:end])
        body = _encode(Packed(records, reply.values, reply.cursor, reply.applied))
    if len(body) > WIRE_FRAME_BYTES_MAX:
        # Sent as it is, it would cost the client the connection, and be asked for again.
        body = _encode(_too_large(len(body)))
    return pack_frame(number, body)


def _too_large(size: int) -> Rejected:
    return reject(
        "outcome_unknown",
        f"the command was carried out, but its answer takes {size} bytes and "
        f"{WIRE_FRAME_BYTES_MAX} is the most: read what it did, and ask for less at a time",
    )


def _array_header(count: int) -> bytes:
    """Return the MessagePack header of an array."""
    if count < 16:
        return bytes((0x90 | count,))
    assert count < 65_536, "a batch is bounded well below"
    return b"\xdc" + count.to_bytes(2, "big")


def read_request(body: bytes | memoryview) -> Any:
    """Return the request in a frame's body; `Rejected` if it says what no request may say.

    Raises:
        WireError: it is not MessagePack.
    """
    try:
        return _decode_request(body)
    except msgspec.ValidationError as error:
        return reject("invalid_argument", f"not an allowed request: {_cut(str(error))}")
    except _UNREADABLE as error:
        raise WireError(f"not a request: {_cut(str(error))}") from error


def read_reply(body: bytes | memoryview) -> Any:
    """Return the reply in a frame's body."""
    return _decode_reply(body)


def read_hello(body: bytes | memoryview) -> Hello:
    """Return the handshake in a frame's body."""
    try:
        return _decode_hello(body)
    except _UNREADABLE as error:
        raise WireError(f"not a handshake: {_cut(str(error))}") from error


def read_welcome(body: bytes | memoryview) -> Welcome:
    """Return the shard's answer to a handshake."""
    try:
        return _decode_welcome(body)
    except _UNREADABLE as error:
        raise WireError(f"not a shard: {_cut(str(error))}") from error


_UNREADABLE = (ValueError, RecursionError)
"""What a decoder raises: its own errors are ValueErrors, and so is that for bad UTF-8."""


def _cut(fault: str) -> str:
    """Return what is wrong, without all of what a stranger has sent."""
    return fault if len(fault) <= _FAULT_CHARS_MAX else fault[:_FAULT_CHARS_MAX] + "…"


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one frame and one read beyond it."""

    def __init__(self, frame_bytes_max: int = WIRE_FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self.frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes, count_max: int | None = None) -> list[tuple[int, bytes]]:
        """Take in bytes and return the frames that they complete: (number, body).

        With `count_max`, further frames stay for the next time.

        Raises:
            WireError: a frame claims to be larger than the bound.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            source: bytes | bytearray = buffer
        else:
            source = data
        frames: list[tuple[int, bytes]] = []
        at = 0
        size = len(source)
        while size - at >= HEADER_BYTES and len(frames) != count_max:
            length, number = HEADER.unpack_from(source, at)
            if length > self.frame_bytes_max:
                raise WireError(f"a frame of {length} bytes; {self.frame_bytes_max} is the most")
            end = at + HEADER_BYTES + length
            if end > size:
                break
            frames.append((number, bytes(source[at + HEADER_BYTES : end])))
            at = end
        if source is buffer:
            del buffer[:at]
        elif at < size:
            buffer += data[at:]
        return frames
