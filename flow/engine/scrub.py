"""Verifying what no start has read: with checkpoints, damage is loud later, but as loud."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from zlib import crc32

from ..limits import SCRUB_SLICE_BYTES
from ..log.frame import CRC, HEADER, HEADER_BYTES, MAGIC, VERSION
from ..log.log import Log
from ..log.parts import END, Span
from ..log.position import Position


class Scrub:
    """Walks the frames of files, a slice at a time, once.

    `step` raises CorruptLog where the log is damaged.
    """

    def __init__(self, log: Log, files: Sequence[Span]) -> None:
        """`files`: with the size up to which each one is verified."""
        self._log = log
        self._files = list(files)
        self._steps = self._run()
        self.is_done = not files
        self.bytes_read = 0

    def step(self) -> None:
        """Do the next slice."""
        if next(self._steps, None) is None:
            self.is_done = True

    def _run(self) -> Iterator[bool]:
        for span in self._files:
            for _ in self._verify(span):
                yield True
                if not self._is_there(span):
                    # A merge has read it, frame by frame.
                    break
        self._files.clear()

    def _is_there(self, span: Span) -> bool:
        number = span.part.number
        return number in self._log.spans or number == self._log.position[0]

    def _verify(self, span: Span) -> Iterator[bool]:
        if not self._is_there(span):
            return
        number, at, left, frames = span.part.number, 0, SCRUB_SLICE_BYTES, 0
        lsn = span.last_lsn if span.part.is_merged else span.first_lsn
        body = b""
        while at < span.size:
            head = self._log.read_bytes(number, at, HEADER_BYTES)
            magic, version, size, _, found, _, _ = HEADER.unpack_from(head)
            end = at + HEADER_BYTES + size
            if magic != MAGIC or version != VERSION or found != lsn or end > span.size:
                raise self._damaged(number, at)
            crc = crc32(head[: HEADER.size])
            for start in range(at + HEADER_BYTES, end, SCRUB_SLICE_BYTES):
                body = self._log.read_bytes(number, start, min(SCRUB_SLICE_BYTES, end - start))
                crc = crc32(body, crc)
                left -= len(body) + HEADER_BYTES
                if left <= 0:
                    self.bytes_read += SCRUB_SLICE_BYTES - left
                    left = SCRUB_SLICE_BYTES
                    yield True
            if CRC.unpack_from(head, HEADER.size) != (crc,):
                raise self._damaged(number, at)
            at = end
            frames += 1
            lsn += not span.part.is_merged
        if span.part.is_merged:
            is_whole = len(body) == END.size + 4 and END.unpack_from(body) == (frames - 1,)
        else:
            is_whole = lsn == span.last_lsn + 1
        if not is_whole:
            raise self._damaged(number, at)

    def _damaged(self, number: int, at: int) -> Exception:
        return self._log.corrupt(
            Position(number, at, 0), "a frame that was not read yet is damaged"
        )
