"""OWNER: whose directory this is. The kernel keeps it, so it ends with its process.

Two POSIX record locks on one file, which holds the owner's pid for people to read:

    byte 0   held by the process that hosts the store
    byte 1   held by it as well, once run/ says what an attaching process has to know

A POSIX lock goes with its process, however that ends, and a forked child does not inherit it. But
it does not hold against its own process, and when that closes any descriptor of the file, the lock
is given up: hence `_owned`, which is asked before the file is opened. An application may open it as
well, to copy the directory say. So whoever is named in the file, lives and has it open is the owner
even without the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from pathlib import Path

from ..flow.errors import StoreLocked
from .small import FullDisk, overwrite

_HOSTED = 0
_PUBLISHED = 1
_FLOCK = "hhqqi4x"
"""struct flock: type, whence, start, length, pid."""

_owned: dict[tuple[int, int], int] = {}
"""Owner files that are locked by a process, under whatever path, and that process's pid."""
_gate = threading.Lock()
"""Held while an owner file is open and may be closed: two threads would undo each other's locks."""


class Owner:
    """The owner file of one directory, and this process's hold on it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "OWNER"
        self._fd = -1
        self._pid = 0

    def lock(self) -> None:
        """Make this process the owner, until `unlock` or its end. Does not wait.

        Raises:
            StoreLocked: another process, or this one already, is the owner.
        """
        with _gate:
            if self.is_own:
                raise StoreLocked(
                    f"{self._directory} is open in this process ({os.getpid()}) already: use that "
                    "store, or close it first",
                    path=str(self._directory),
                    pid=os.getpid(),
                )
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not _try_lock(fd) or _silent_owner(fd) is not None:
                    pid = _locker(fd, _HOSTED) or _named(fd)
                    raise StoreLocked(
                        f"{self._directory} is owned by process {pid or 'unknown'}: stop that "
                        "process, or use another directory",
                        path=str(self._directory),
                        pid=pid,
                    )
                # On a full disk the lock alone has to do; its holder may then not open the file.
                with contextlib.suppress(FullDisk):
                    overwrite(fd, f"{os.getpid()}\n".encode())
            except BaseException:
                os.close(fd)
                raise
            self._fd, self._pid = fd, os.getpid()
            _owned[_identity(fd)] = os.getpid()

    def publish(self) -> None:
        """Let others know that what stands in run/ is this owner's."""
        assert self._fd >= 0, "only an owner has something to say"
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _PUBLISHED)

    def unlock(self) -> None:
        """Stop being the owner; safe to repeat, and without effect in a forked child."""
        with _gate:
            fd, self._fd = self._fd, -1
            if fd < 0 or self._pid != os.getpid():
                return
            _owned.pop(_identity(fd), None)
            with contextlib.suppress(OSError):
                overwrite(fd, b"")
            os.close(fd)

    @property
    def is_held(self) -> bool:
        """Whether some process, maybe this one, is the owner."""
        return self._asked(_HOSTED)

    @property
    def is_published(self) -> bool:
        """Whether the owner, if there is one, has written what stands in run/."""
        return self._asked(_PUBLISHED)

    @property
    def is_own(self) -> bool:
        """Whether this process is the owner, by this object or another."""
        with contextlib.suppress(FileNotFoundError):
            return _owned.get(_identity(self._path)) == os.getpid()
        return False

    def _asked(self, byte: int) -> bool:
        with _gate:
            if self.is_own:
                return True
            try:
                fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            try:
                if _locker(fd, _HOSTED) is None:
                    return _silent_owner(fd) is not None
                return _locker(fd, byte) is not None
            finally:
                os.close(fd)


def _identity(file: Path | int) -> tuple[int, int]:
    found = os.stat(file)  # noqa: PTH116  # a path or a descriptor
    return found.st_dev, found.st_ino


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _HOSTED)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _locker(fd: int, byte: int) -> int | None:
    """Return who holds a byte of an owner file; None: nobody, 0: a process that we cannot see.

    Asked, not tried: a lock that was taken for a moment would keep a host from starting.
    """
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else max(0, pid)


def _silent_owner(fd: int) -> int | None:
    """Return the owner that has lost its lock without knowing; None if there is none."""
    pid = _named(fd)
    return pid if pid not in (None, os.getpid()) and has_open(pid, os.fstat(fd)) else None


def _named(fd: int) -> int | None:
    with contextlib.suppress(ValueError):
        return int(os.pread(fd, 64, 0))
    return None


def has_open(pid: int, file: os.stat_result) -> bool:
    """Whether a process has a file open; False if it has ended, or is not ours to look into."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(entry.stat(), file):
                    return True
    return False


def _forget_after_fork() -> None:
    """In a forked child: the locks are the parent's, and so is whoever held the gate."""
    global _gate
    _gate = threading.Lock()
    _owned.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
