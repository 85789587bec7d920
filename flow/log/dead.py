"""How much of each file nobody needs any more: what a merge would win."""

from __future__ import annotations

from collections.abc import Iterable

from .position import Position


class DeadBytes:
    """file → bytes of records and values that nothing names any more. Made anew by recovery."""

    def __init__(self) -> None:
        self._of_file: dict[int, int] = {}
        self.counted = 0
        """All that were ever counted: a change says that it is time to look."""

    def add(self, position: Position) -> None:
        """Count an entry."""
        self.add_bytes(position.segment, position.length)

    def add_bytes(self, file: int, count: int) -> None:
        """Count bytes of a file."""
        self._of_file[file] = self._of_file.get(file, 0) + count
        self.counted += count

    def of(self, file: int) -> int:
        """Return the dead bytes of a file."""
        return self._of_file.get(file, 0)

    def all(self) -> list[tuple[int, int]]:
        """Return (file, dead bytes) of every file."""
        return list(self._of_file.items())

    def reset(self, counts: Iterable[tuple[int, int]]) -> None:
        """Begin anew with what was counted elsewhere."""
        self._of_file = dict(counts)

    def forget(self, files: Iterable[int]) -> None:
        """Drop files that are no more."""
        for file in files:
            self._of_file.pop(file, None)
