"""A disk of a size that a test sets, under real processes: no file system has to be made for it.

In a process that calls `install`, the files under one directory may take up as many bytes as a
control file says; past that the operating system's own calls answer ENOSPC, and a full disk takes
no further file. Importing this in a shard's process installs it by what the environment says.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardflow.actors import supervisor

ROOT = "SMALL_DISK_ROOT"
CONTROL = "SMALL_DISK_BYTES"


class SmallDisk:
    """The directory and its size."""

    def __init__(self, root: Path, control: Path) -> None:
        self.root = root
        self.control = control

    @property
    def used_bytes(self) -> int:
        sizes = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    sizes += (Path(folder) / name).lstat().st_size
                except FileNotFoundError:
                    continue
        return sizes

    @property
    def free_bytes(self) -> int:
        return max(0, int(self.control.read_text()) - self.used_bytes)

    def resize(self, size: int) -> None:
        fresh = self.control.with_suffix(".new")
        fresh.write_text(str(size))
        fresh.replace(self.control)

    def fill(self) -> None:
        """Leave no byte free."""
        self.resize(self.used_bytes)

    def covers(self, path: Any) -> bool:
        return str(path).startswith(str(self.root))

    def check(self, fd: int, end: int) -> None:
        """Refuse to let a file grow up to `end` if that is too much."""
        more = end - os.fstat(fd).st_size
        if (
            more > 0
            and self.covers(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
            and more > self.free_bytes
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def install(disk: SmallDisk, patch: pytest.MonkeyPatch) -> None:
    """Put the disk between this process and the operating system."""
    pwrite, fallocate, statvfs, opened = os.pwrite, os.posix_fallocate, os.statvfs, os.open

    def checked_pwrite(fd: int, data: Any, offset: int) -> int:
        disk.check(fd, offset + len(data))
        return pwrite(fd, data, offset)

    def checked_fallocate(fd: int, offset: int, length: int) -> None:
        disk.check(fd, offset + length)
        fallocate(fd, offset, length)

    def told_statvfs(path: Any) -> Any:
        if not disk.covers(path):
            return statvfs(path)
        return SimpleNamespace(
            f_bavail=disk.free_bytes, f_frsize=1, f_files=1, f_favail=1, f_flag=0
        )

    def checked_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        is_new = flags & os.O_CREAT and disk.covers(path) and not Path(path).exists()
        if is_new and not disk.free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, flags, *args, **options)

    patch.setattr(os, "pwrite", checked_pwrite)
    patch.setattr(os, "posix_fallocate", checked_fallocate)
    patch.setattr(os, "statvfs", told_statvfs)
    patch.setattr(os, "open", checked_open)


def small_disk(root: Path, control: Path, size: int, patch: pytest.MonkeyPatch) -> SmallDisk:
    """Let this process and all shards that it starts have a disk of this size under `root`."""
    disk = SmallDisk(root, control)
    disk.resize(size)
    patch.setenv(ROOT, str(root))
    patch.setenv(CONTROL, str(control))
    boot = supervisor._BOOT.replace("main()", f"import {__name__}; main()")
    patch.setattr(supervisor, "_BOOT", boot)
    install(disk, patch)
    return disk


if ROOT in os.environ:
    # In a shard's process, for as long as it lives.
    install(SmallDisk(Path(os.environ[ROOT]), Path(os.environ[CONTROL])), pytest.MonkeyPatch())
