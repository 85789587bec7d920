"""Shortcuts: files that a start reads instead of much of the log. Blocks of bytes; knows no flows.

    0000000000000000042.checkpoint         what a shard holds, as of a frame
    0000000002-0000000005-0000000008.hint  what is in that merged file

    offset  size  field
         0     4  magic "SFS1"
         4     4  format version
         8     …  blocks, one after the other: the header, the content, the end

    a block
         0     4  length of its body
         4     4  CRC-32 of the body, begun with that of the block before
         8     …  body: one MessagePack array

A shortcut says nothing that the log does not. So one that does not check is passed over, and
whatever is in doubt makes the next start read the log itself. The layout is explained in
docs/log-format.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator
from struct import Struct as Layout
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Struct

from ..host import File, Files
from ..limits import SHORTCUT_SYNC_BYTES
from .parts import Part, Span
from .position import Position, unpack
from .start import Start, UnusableError

MAGIC = b"SFS1"
VERSION = 1
_HEAD = Layout("<4sI")
_BLOCK = Layout("<II")
_NEW = ".new"
_CHECKPOINT = re.compile(r"\d{19}\.checkpoint")
_SHORTCUT = re.compile(r"(\d{19}\.checkpoint|\d{10}-\d{10}-\d{10}\.hint)(\.new)?")


class FileSpan(Struct, array_like=True, frozen=True, gc=False):
    """A file that is written no more."""

    first: int
    last: int
    number: int
    first_lsn: int
    last_lsn: int
    merged_lsn: int
    epoch: int
    size: int

    @property
    def span(self) -> Span:
        """The same as the log knows it."""
        part = Part(self.first, self.last, self.number)
        return Span(part, *(getattr(self, name) for name in self.__struct_fields__[3:]))


class Header(Struct, array_like=True, frozen=True, tag_field="op", tag=1, gc=False):
    """What a shortcut is of: the first block."""

    kind: str
    """checkpoint or hint."""
    shard: int
    files: list[FileSpan]
    """Of a checkpoint: the files that it makes needless. Of a hint: the merged file."""
    segment: int = 0
    """Of a checkpoint: where the frame stands from which on the log has to be read."""
    offset: int = 0
    lsn: int = 0
    epoch: int = 0
    first_lsn: int = 0
    """The first frame of that segment."""
    next_value: int = 1
    """What a start without it finds by reading: the next count of a value, the last order."""
    last_order: int = 0
    next_number: int = 0
    """The number of the next file then."""
    cold: bytes | None = None
    """What the projections say of themselves."""


class Facts(Struct, array_like=True, frozen=True, tag_field="op", tag=2, gc=False):
    """Log entries other than records and values, packed as in the log."""

    entries: list[bytes]
    places: bytes = b""
    """Where each lies in the log: segment, offset, length; 0, 0, 0 = nowhere."""

    def each(self) -> Iterator[tuple[bytes, Position | None]]:
        """Yield entry after entry, with where it lies if that is known."""
        places = unpack(self.places)
        for packed in self.entries:
            position = next(places, None)
            yield packed, position if position is not None and position.length else None


class Flow(NamedTuple):
    """One flow of a block."""

    packed: bytes
    trail: bytes
    spent: list[tuple[int, int]] | None
    entered: list[int] | None


class Flows(Struct, array_like=True, frozen=True, tag_field="op", tag=3, gc=False):
    """Flows, column by column."""

    records: list[bytes]
    """The newest ones, packed as in the log."""
    trails: list[bytes]
    """Where the records of each flow lie: segment, offset, length."""
    spent: list[tuple[int, int, int]]
    """(index of the flow, last version that names it, number) of values of the history only."""
    entered: list[tuple[int, list[int]]] = []
    """Of a hint, (index of the flow, numbers of the values that its first record there names), if
    these are others than those that the newest names."""

    def spent_by_flow(self) -> dict[int, list[tuple[int, int]]]:
        """Return what is spent, by the index of the flow."""
        found: dict[int, list[tuple[int, int]]] = {}
        for index, version, number in self.spent:
            found.setdefault(index, []).append((version, number))
        return found

    def each(self) -> Iterator[Flow]:
        """Yield flow after flow."""
        spent = self.spent_by_flow()
        entered = dict(self.entered)
        for index, (packed, trail) in enumerate(zip(self.records, self.trails, strict=True)):
            yield Flow(packed, trail, spent.get(index), entered.get(index))


class Places(Struct, array_like=True, frozen=True, tag_field="op", tag=4, gc=False):
    """Where values lie, column by column; each column is one run of little-endian integers."""

    numbers: bytes
    """8 bytes each."""
    segments_and_offsets: bytes
    """8 bytes each: the segment in the high half."""
    lengths: bytes
    """4 bytes each."""


class End(Struct, array_like=True, frozen=True, tag_field="op", tag=5, gc=False):
    """The last block: only a shortcut that has it is whole."""

    blocks: int
    """How many blocks came before it."""
    flows: int = 0
    """How many flows there are as of `last_lsn`, in a hint: how many are in it."""
    values: int = 0
    last_lsn: int = 0
    """Of a checkpoint: the newest frame that may have changed what is in it."""
    last_epoch: int = 0
    dead: list[tuple[int, int]] = []
    """(file, bytes of it that nothing names) as of then."""
    kept: list[tuple[int, int, int]] = []
    """(merged file, bytes of removals in it, the first segment that they are kept for)."""


Content = Facts | Flows | Places
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Header | Facts | Flows | Places | End).decode


def checkpoint_name(lsn: int) -> str:
    """Return the name of the checkpoint that begins with a frame."""
    return f"{lsn:019d}.checkpoint"


def hint_name(part: Part) -> str:
    """Return the name of a merged file's hint."""
    return part.name.removesuffix(".log") + ".hint"


def file_span(span: Span) -> FileSpan:
    """Return a span as it is written down."""
    return FileSpan(*span.part, *span[1:])


def hints_of(spans: Iterable[Span]) -> list[str]:
    """Return what the hints of merged files are called."""
    return [hint_name(span.part) for span in spans if span.part.is_merged]


def checkpoints_in(files: Files) -> list[str]:
    """Return the names of the checkpoints, the newest first."""
    return [name for name in reversed(files.names()) if _CHECKPOINT.fullmatch(name)]


def remove_shortcuts(files: Files, keep: Collection[str] = ()) -> int:
    """Remove shortcuts, whole or not, but for those named; return how many."""
    names = [name for name in files.names() if _SHORTCUT.fullmatch(name) and name not in keep]
    for name in names:
        files.remove(name)
    if names:
        files.sync_directory()
    return len(names)


class ShortcutWriter:
    """Writes a shortcut under another name; `finish` gives it its own, once all is on disk."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self.name = name
        with contextlib.suppress(FileNotFoundError):
            files.remove(name + _NEW)
        self._file: File = files.open(name + _NEW, create=True)
        self._crc = 0
        self._blocks = 0
        self._unsynced = 0
        self._is_finished = False
        self.size = 0
        try:
            self._write(_HEAD.pack(MAGIC, VERSION))
        except BaseException:
            self.abandon()
            raise

    def add(self, block: Header | Content) -> None:
        """Write a block; now and then sync, a little at a time."""
        self._add(block)
        self._blocks += 1
        if self._unsynced >= SHORTCUT_SYNC_BYTES:
            self._file.sync()
            self._unsynced = 0

    def sync(self) -> None:
        """Return once all that was added is on disk."""
        self._file.sync()
        self._unsynced = 0

    def finish(self, end: End) -> None:
        """End the file and give it its name; it is there for ever when this returns."""
        self._add(msgspec.structs.replace(end, blocks=self._blocks))
        self._file.sync()
        self._file.close()
        self._files.replace(self.name + _NEW, self.name)
        self._files.sync_directory()
        self._is_finished = True

    def abandon(self) -> None:
        """Stop in the middle. What cannot be removed now, the next start removes."""
        self._file.close()
        if self._is_finished:
            return
        # It has its own name already if only the directory could not be synced.
        for name in (self.name + _NEW, self.name):
            with contextlib.suppress(OSError):
                self._files.remove(name)

    def _add(self, block: Header | Content | End) -> None:
        body = _encode(block)
        self._crc = crc32(body, self._crc)
        self._write(_BLOCK.pack(len(body), self._crc) + body)

    def _write(self, data: bytes) -> None:
        self._file.pwrite(data, self.size)
        self.size += len(data)
        self._unsynced += len(data)


class Shortcut(NamedTuple):
    """A shortcut that checks, from its first byte to its last."""

    name: str
    header: Header
    end: End
    size: int

    @property
    def start(self) -> Start:
        """Where the log has to be read from, with this checkpoint."""
        header, end = self.header, self.end
        return Start(
            {file.number: file.span for file in header.files},
            header.segment,
            header.offset,
            header.lsn,
            header.epoch,
            header.first_lsn,
            end.last_lsn,
            end.last_epoch,
            header.next_number,
        )


def check(files: Files, name: str, shard: int, kind: str) -> Shortcut:
    """Read a shortcut through, and return what it is of.

    Raises:
        UnusableError: it is not whole.
    """
    first: Any = None
    last: Any = None
    blocks = -1
    at = _HEAD.size
    for body in _bodies(files, name):
        at += _BLOCK.size + len(body)
        blocks += 1
        first = first or body
        last = body
    try:
        header, end = (_decode(body) if body else None for body in (first, last))
    except msgspec.MsgspecError as error:
        raise UnusableError(f"{name} cannot be read: {error}") from error
    if not isinstance(header, Header) or not isinstance(end, End) or end.blocks != blocks:
        raise UnusableError(f"{name} is not whole")
    if header.shard != shard or header.kind != kind:
        raise UnusableError(f"{name} is a {header.kind} of shard {header.shard}")
    return Shortcut(name, header, end, at)


def content_of(files: Files, shortcut: Shortcut, *kinds: type[Content]) -> Iterator[Content]:
    """Yield the blocks of these kinds, in the order in which they were written."""
    tags = {kind.__struct_config__.tag for kind in kinds}
    for body in _bodies(files, shortcut.name):
        if body[1] not in tags:
            continue
        try:
            block = _decode(body)
        except msgspec.MsgspecError as error:
            raise UnusableError(f"{shortcut.name} cannot be read: {error}") from error
        assert not isinstance(block, Header | End), "its tag is another one"
        yield block


def _bodies(files: Files, name: str) -> Iterator[bytes]:
    try:
        file = files.open(name)
        try:
            yield from _checked(file, name)
        finally:
            file.close()
    except OSError as error:
        raise UnusableError(f"{name} cannot be read: {error}") from error


def _checked(file: File, name: str) -> Iterator[bytes]:
    size = file.size()
    if file.pread(_HEAD.size, 0) != _HEAD.pack(MAGIC, VERSION):
        raise UnusableError(f"{name} is of no format that this version reads")
    at, crc = _HEAD.size, 0
    while at < size:
        head = file.pread(_BLOCK.size, at)
        if len(head) < _BLOCK.size:
            raise UnusableError(f"{name} ends within a block")
        length, told = _BLOCK.unpack(head)
        at += _BLOCK.size
        if not 2 <= length <= size - at:
            raise UnusableError(f"{name} is damaged at byte {at}")
        body = file.pread(length, at)
        crc = crc32(body, crc)
        if crc != told:
            raise UnusableError(f"{name} is damaged at byte {at}")
        yield body
        at += length
