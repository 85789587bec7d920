"""What crosses between a worker and its handler processes: frames of MessagePack. Never pickle.

    offset  size  field
         0     4  length of what follows, little-endian
         4     …  one message

Payloads and outcomes are values packed by the store's own codec, as they are in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr, replace

from ...flow.errors import InvalidArgument
from ...flow.limits import VALUE_BYTES_CEILING
from ...flow.record import FlowRecord
from ..codecs import Codec, pack, unpack
from ..dsl import state_name
from ..job import Cancellation, Job
from ..outcome import (
    NOREPLY,
    Complete,
    Err,
    Fail,
    NoReply,
    Ok,
    Outcome,
    Raised,
    RetryLater,
    Transition,
    described,
    reason_of,
)
from ..times import duration_ms
from .naming import Main, Name

HEADER: Final = Layout("<I")


class SourceFrame(Struct, frozen=True, array_like=True):
    """One workflow that a handler process works for."""

    workflow: Name
    states: str | list[str]
    codec: Name | None


class Start(Struct, frozen=True, array_like=True, tag=1):
    """To the process, first: what to load."""

    argv: list[str]
    main: Main | None
    modules: list[str]
    """Where handlers are defined: they may be attached to a workflow of another module."""
    sources: list[SourceFrame]
    handler: Name | None
    middleware: list[Name]
    worker: str


class Work(Struct, frozen=True, array_like=True, tag=2):
    """To the process: run the handler of a job."""

    number: int
    source: int
    record: FlowRecord
    payload: bytes | None
    values: dict[str, bytes]


class Cancel(Struct, frozen=True, array_like=True, tag=3):
    """To the process: the job was given up."""

    number: int


class Ready(Struct, frozen=True, array_like=True, tag=4):
    """From the process: everything is loaded."""


class Unready(Struct, frozen=True, array_like=True, tag=5):
    """From the process, its last words: something could not be loaded."""

    message: str


class Finished(Struct, frozen=True, array_like=True, tag=6):
    """From the process: the outcome of a handler."""

    number: int
    seconds: float
    kind: str
    value: bytes
    to: str | None = None
    in_ms: int | None = None


KINDS: Final[dict[type, str]] = {
    Ok: "ok",
    Err: "err",
    Raised: "raised",
    NoReply: "noreply",
    Transition: "transition",
    Complete: "complete",
    RetryLater: "retry_later",
    Fail: "fail",
}
_encode: Final = msgspec.msgpack.Encoder().encode
_to_child: Final = msgspec.msgpack.Decoder(Start | Work | Cancel)
_to_parent: Final = msgspec.msgpack.Decoder(Ready | Unready | Finished)


class Stream:
    """Cuts what arrives on a socket into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in bytes and return the bodies that they complete."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(buffer)[0]
            if len(buffer) < end:
                return
            body = bytes(buffer[HEADER.size : end])
            del buffer[:end]
            yield body


def frame_of(message: Struct) -> bytes:
    """Return a message as one frame."""
    body = _encode(message)
    return HEADER.pack(len(body)) + body


def read_by_child(body: bytes) -> Start | Work | Cancel:
    """Return a message to the process."""
    message: Start | Work | Cancel = _to_child.decode(body)
    return message


def read_by_parent(body: bytes) -> Ready | Unready | Finished:
    """Return a message from the process."""
    message: Ready | Unready | Finished = _to_parent.decode(body)
    return message


def work_of(number: int, source: int, job: Job, codec: Codec | None) -> Work:
    """Return a job as a message.

    Raises:
        InvalidArgument: its payload has no form, though it came from the store: a codec's fault.
    """
    record = job.record
    payload = None if job.payload is None else _packed(job.payload, codec, "payload")
    values = {name: _packed(value, codec, name) for name, value in job.values.items()}
    bare = replace(record, payload=None, values={})
    return Work(number, source, bare, payload, values)


def job_of(work: Work, workflow: type[Any], codec: Codec | None) -> Job:
    """Return the job of a message, in the process."""
    record = work.record
    if work.payload is not None:
        force_setattr(record, "payload", unpack(work.payload, codec))
    values = {name: unpack(data, codec) for name, data in work.values.items()}
    force_setattr(record, "values", values)
    return Job(workflow, record, Cancellation())


def finished_of(number: int, seconds: float, outcome: Outcome, codec: Codec | None) -> Finished:
    """Return an outcome as a message; one that cannot be told is the handler's error."""
    try:
        return _finished(number, seconds, outcome, codec)
    except (InvalidArgument, TypeError) as error:
        return _finished(number, seconds, Err(described(error)), None)


def outcome_of_frame(finished: Finished, codec: Codec | None) -> Outcome:
    """Return the outcome of a message."""
    # An error of ours was packed without the codec; such values are told apart by their mark.
    value = unpack(finished.value, codec)
    match finished.kind:
        case "noreply":
            return NOREPLY
        case "transition":
            return Transition(finished.to or "", value)
        case "retry_later":
            return RetryLater(value, finished.in_ms)
        case kind:
            return _PLAIN[kind](value)


_PLAIN: Final[dict[str, type[Ok | Err | Complete | Fail]]] = {
    "ok": Ok,
    "err": Err,
    "raised": Raised,
    "complete": Complete,
    "fail": Fail,
}


def _finished(number: int, seconds: float, outcome: Outcome, codec: Codec | None) -> Finished:
    kind = KINDS[type(outcome)]
    match outcome:
        case Transition(to, payload):
            name = state_name(to)
            if not isinstance(name, str):
                raise InvalidArgument(f"to is a state or its name; got {name!r}", argument="to")
            return Finished(number, seconds, kind, _packed(payload, codec, "payload"), to=name)
        case RetryLater(reason, in_ms):
            wait_ms = None if in_ms is None else duration_ms(in_ms, "in_ms")
            value = _packed(reason_of(reason), codec, "reason")
            return Finished(number, seconds, kind, value, in_ms=wait_ms)
        case Err(reason) | Fail(reason):
            return Finished(number, seconds, kind, _packed(reason_of(reason), codec, "reason"))
        case Ok(value) | Complete(value):
            return Finished(number, seconds, kind, _packed(value, codec, "result"))
        case NoReply():
            return Finished(number, seconds, kind, _packed(None, None, "result"))


def _packed(value: Any, codec: Codec | None, name: str) -> bytes:
    return pack(value, codec, VALUE_BYTES_CEILING, name)
