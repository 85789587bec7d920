"""The world as flow/ sees it: files, a clock, entropy. Everything else in flow/ is pure.

Tests hand in worlds that tear, lose, refuse and jump; production hands in the ones below.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple, Protocol

_JUMP_MS = 1_000


class Clock(Protocol):
    """Tells the time."""

    def now_ms(self) -> int:
        """Return milliseconds since the epoch."""
        ...

    def order_us(self) -> int:
        """Return microseconds since the epoch, for ordering only; comparable between shards."""
        ...


class Entropy(Protocol):
    """Gives unpredictable bytes."""

    def token_bytes(self, size: int) -> bytes:
        """Return `size` random bytes."""
        ...


class File(Protocol):
    """An open file: positioned reads and writes, and a sync that means the disk."""

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file."""
        ...

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`, or raise OSError."""
        ...

    def reserve(self, size: int) -> None:
        """Make sure that the file has disk space for `size` bytes, filled with zeros."""
        ...

    def sync(self) -> None:
        """Return once the file's bytes are on the disk (fdatasync)."""
        ...

    def size(self) -> int:
        """Return the file's length in bytes, reserved space included."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def is_linked(self) -> bool:
        """Whether the file still has a name: what is written to one that was deleted is lost."""
        ...

    def close(self) -> None:
        """Close the file; safe to repeat."""
        ...


class Room(NamedTuple):
    """What the file system under a directory has left."""

    free_bytes: int
    """For this user; 0 as well where no further file can be made."""
    is_read_only: bool


class Files(Protocol):
    """One directory. Names are plain, without separators."""

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        ...

    def open(self, name: str, *, create: bool = False) -> File:
        """Open for reading and writing. Creating an existing file is a FileExistsError."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...

    def replace(self, old: str, new: str) -> None:
        """Rename a file, in one piece; one that has the new name is gone then."""
        ...

    def sync_directory(self) -> None:
        """Return once creations, renames and removals are on the disk."""
        ...

    def lock(self) -> bool:
        """Take the directory for this process alone; False if another has it."""
        ...

    def unlock(self) -> None:
        """Give the directory back; safe to repeat."""
        ...

    def path_of(self, name: str) -> str:
        """Return how the file is named in messages."""
        ...

    def room(self) -> Room | None:
        """Return what is left; None where nobody can tell, or nothing runs out."""
        ...


class SystemClock:
    """Wall time that never runs backwards and never stands still.

    It follows the monotonic clock from an anchor on wall time. When the wall clock jumps ahead
    by more than a second it is followed; when it jumps back it is not, until the next start.
    """

    def __init__(self) -> None:
        self._offset_ms = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Return milliseconds since the epoch."""
        steady_ms = time.monotonic_ns() // 1_000_000 + self._offset_ms
        wall_ms = time.time_ns() // 1_000_000
        if wall_ms > steady_ms + _JUMP_MS:
            self._offset_ms += wall_ms - steady_ms
            return wall_ms
        return steady_ms

    def order_us(self) -> int:
        """Return microseconds since the epoch."""
        return time.time_ns() // 1_000


class SetClock:
    """A clock that stands where it was last set; what a shard uses under a manual clock."""

    def __init__(self, start_ms: int) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        """Return the time that was set."""
        return self._now_ms

    def order_us(self) -> int:
        """Return real microseconds: order has to hold between processes, also in tests."""
        return time.time_ns() // 1_000

    def set(self, now_ms: int) -> None:
        """Move to a later time; an earlier one is ignored."""
        self._now_ms = max(self._now_ms, now_ms)


class SystemEntropy:
    """The operating system's random bytes."""

    def token_bytes(self, size: int) -> bytes:
        """Return `size` random bytes."""
        return os.urandom(size)


class DiskFile:
    """A file on the local disk."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        self._path = path
        self._fd = os.open(path, flags, 0o600)

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file."""
        try:
            data = os.pread(self._fd, size, offset)
            if len(data) == size or not data:
                return data
            parts = [data]
            got = len(data)
            while got < size and (data := os.pread(self._fd, size - got, offset + got)):
                parts.append(data)
                got += len(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        return b"".join(parts)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`; a short write is continued, an error raised."""
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            more = os.pwrite(self._fd, memoryview(data)[written:], offset + written)
            if more == 0:
                raise OSError(f"{self._path}: a write of {len(data)} bytes made no progress")
            written += more

    def reserve(self, size: int) -> None:
        """Make sure that the file has disk space for `size` bytes."""
        have = os.fstat(self._fd).st_size
        if size > have:
            os.posix_fallocate(self._fd, have, size - have)

    def sync(self) -> None:
        """fdatasync."""
        os.fdatasync(self._fd)

    def size(self) -> int:
        """Return the file's length in bytes."""
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(self._fd, size)

    def is_linked(self) -> bool:
        """Whether the file still has a name."""
        return os.fstat(self._fd).st_nlink > 0

    def close(self) -> None:
        """Close the file; safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DiskFiles:
    """A directory on the local disk; `lock` makes it, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_fd = -1

    @property
    def folder(self) -> Path:
        """The directory."""
        return self._path

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(entry.name for entry in os.scandir(self._path) if entry.is_file())

    def open(self, name: str, *, create: bool = False) -> DiskFile:
        """Open for reading and writing."""
        return DiskFile(self._path / name, create=create)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._path / name).unlink()

    def replace(self, old: str, new: str) -> None:
        """Rename a file over another one."""
        (self._path / old).replace(self._path / new)

    def sync_directory(self) -> None:
        """fsync of the directory."""
        sync_directory(self._path)

    def lock(self) -> bool:
        """Take an exclusive flock that the process keeps until it ends; makes the directory."""
        if not self._path.is_dir():
            self._path.mkdir(mode=0o700, parents=True)
            sync_directory(self._path.parent)
        fd = os.open(self._path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        return True

    def unlock(self) -> None:
        """Give the directory back; safe to repeat."""
        if self._lock_fd >= 0:
            # Closing alone would leave it locked for as long as a forked process has a copy.
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def abandon(self) -> None:
        """In a forked child: close its copy of the lock, which stays the parent's."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def path_of(self, name: str) -> str:
        """Return the full path."""
        return str(self._path / name)

    def room(self) -> Room:
        """Return what is left, quotas not counted: only a write finds those."""
        found = os.statvfs(self._path)
        # Some file systems count no inodes at all.
        has_inodes = not found.f_files or found.f_favail > 0
        free_bytes = found.f_bavail * found.f_frsize if has_inodes else 0
        return Room(free_bytes, bool(found.f_flag & os.ST_RDONLY))


def sync_directory(path: Path) -> None:
    """Make creations, renames and removals in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
