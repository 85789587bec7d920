"""How much of each file nobody needs any more: what a merge would win."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .frame import TABLE_ENTRY_BYTES
from .position import Position


class Kept(NamedTuple):
    """What a merged file has of entries that say that earlier ones are dead."""

    bytes: int
    first: int
    """The first segment that may hold one of those."""


class DeadBytes:
    """file → bytes of entries that nothing names any more. Made anew by recovery.

    Each entry counts with its place in its frame's table. The headers of frames are nobody's.
    """

    def __init__(self) -> None:
        self._of_file: dict[int, int] = {}
        self._kept: dict[int, Kept] = {}
        self.counted = 0
        """All that were ever counted: a change says that it is time to look."""

    def add(self, position: Position) -> None:
        """Count an entry."""
        self.add_entry(position.segment, position.length)

    def add_entry(self, file: int, length: int) -> None:
        """Count an entry of a file by its length."""
        self.add_bytes(file, length + TABLE_ENTRY_BYTES)

    def add_entries(self, file: int, count: int, size: int) -> None:
        """Count so many entries of a file, by their bytes together."""
        self.add_bytes(file, size + count * TABLE_ENTRY_BYTES)

    def add_bytes(self, file: int, count: int) -> None:
        """Count bytes of a file."""
        self._of_file[file] = self._of_file.get(file, 0) + count
        self.counted += count

    def keep(self, file: int, length: int, first: int) -> None:
        """Count an entry that a merge has kept only for what lies before it, from `first` on."""
        self.keep_bytes(file, length + TABLE_ENTRY_BYTES, first)

    def keep_bytes(self, file: int, count: int, first: int) -> None:
        """Count so many bytes of such entries."""
        kept = self._kept.get(file)
        if kept is not None:
            count, first = kept.bytes + count, min(kept.first, first)
        self._kept[file] = Kept(count, first)

    def of(self, file: int) -> int:
        """Return the dead bytes of a file."""
        return self._of_file.get(file, 0)

    def kept(self, file: int) -> Kept | None:
        """Return what a file has of entries that are dead once what they are kept for is gone."""
        return self._kept.get(file)

    def all(self) -> list[tuple[int, int]]:
        """Return (file, dead bytes) of every file."""
        return list(self._of_file.items())

    def all_kept(self) -> list[tuple[int, int, int]]:
        """Return (file, bytes, first) of every file that has such entries."""
        return [(file, kept.bytes, kept.first) for file, kept in self._kept.items()]

    def take(self, other: DeadBytes) -> None:
        """Count what was counted elsewhere as well."""
        for file, count in other.all():
            self.add_bytes(file, count)
        for file, count, first in other.all_kept():
            self.keep_bytes(file, count, first)

    def reset(
        self, counts: Iterable[tuple[int, int]], kept: Iterable[tuple[int, int, int]]
    ) -> None:
        """Begin anew with what was counted elsewhere."""
        self._of_file = dict(counts)
        self._kept = {file: Kept(count, first) for file, count, first in kept}

    def forget(self, files: Iterable[int]) -> None:
        """Drop files that are no more."""
        for file in files:
            self._of_file.pop(file, None)
            self._kept.pop(file, None)
