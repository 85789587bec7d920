"""The world beside the log: the folder of a database, work in the background, the machine's boot.

A part of flow.host, which see.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .host import DiskFiles, sync_directory

COLD_FOLDER = "cold"
"""A directory in a shard's own."""


class Folder(Protocol):
    """A directory for what can be made anew: see DiskFolder."""

    @property
    def path(self) -> str:
        """The full path."""
        ...

    def make(self) -> None:
        """Make the directory, unless it is there."""
        ...

    def clear(self) -> None:
        """Remove all files in it."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, without blanks at its end; None if there is none."""
        ...

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        """Write over a small file, in place; with `sync`, it is on disk when this returns.

        What is left over of the old bytes becomes blanks.
        """
        ...

    def size(self, name: str) -> int:
        """Return the bytes of a file that is there."""
        ...

    def free_bytes(self) -> int:
        """Return what is left on its disk, quotas not counted."""
        ...


class Background:
    """Work that is done beside, while whoever wants it goes on."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="shardflow-background", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it is not done yet."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Return once it is done; raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error


class DiskFolder:
    """A directory on the local disk for what can be made anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> str:
        """The full path."""
        return str(self._path)

    def make(self) -> None:
        """Make the directory, unless it is there."""
        self._path.mkdir(mode=0o700, exist_ok=True)

    def clear(self) -> None:
        """Remove all files in it. Who has one open keeps what it has."""
        for entry in os.scandir(self._path):
            if entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, without blanks at its end; None if there is none."""
        try:
            return (self._path / name).read_bytes().rstrip()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        """Write over a small file, in place; with `sync`, it is on disk when this returns.

        What is left over of the old bytes becomes blanks.
        """
        fd = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            is_new = os.fstat(fd).st_size == 0
            overwrite(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if sync and is_new:
            sync_directory(self._path)

    def size(self, name: str) -> int:
        """Return the bytes of a file that is there."""
        return (self._path / name).stat().st_size

    def free_bytes(self) -> int:
        """Return what is left on its disk, quotas not counted."""
        found = os.statvfs(self._path)
        return found.f_bavail * found.f_frsize


def overwrite(fd: int, data: bytes) -> None:
    """Write over a small open file; what is left over of the old bytes becomes blanks.

    A file that is cut and written anew needs a block for that, which a full disk may not have.
    Written over in place it keeps its own.
    """
    os.pwrite(fd, data.ljust(os.fstat(fd).st_size), 0)


def cold_folder(files: DiskFiles) -> DiskFolder:
    """Return where the cold flows of a shard are."""
    return DiskFolder(files.folder / COLD_FOLDER)


def boot_id() -> bytes:
    """Return what tells this run of the machine from others; empty if nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""
