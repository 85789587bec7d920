"""Copying a store that serves: the caller's part."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from os import link
from pathlib import Path
from typing import Any, NamedTuple

from ..flow.engine import adopt
from ..flow.errors import FlowError, Overloaded, StoreConfigError
from ..flow.host import DiskFiles, sync_directory
from ..flow.limits import BACKUP_TRIES_MAX
from ..flow.queries import Backup
from .directory import describe, shard_folder
from .staging import staged

_RETRY_MS = 1_000
Send = Callable[[Backup], list[Any]]
"""Sends one step to every shard; returns their answers in the order of the shards."""


class BackupDone(NamedTuple):
    """What a backup consists of."""

    path: str
    files: int
    bytes: int
    """All of them together. Linked files take no space of their own until the store drops them."""


def back_up(source: Path, target: Path, shards: int, send: Send) -> BackupDone:
    """Copy a store that serves. The copy is there whole, or not at all.

    Raises:
        StoreConfigError: the target cannot be used.
        Overloaded: the shards could not be brought to one moment; nothing was copied.
        CorruptLog: what was copied does not check.
    """
    _refuse(source, target)
    name = uuid.uuid4().hex
    part = target.with_name(f"{target.name}.part-{name[:8]}")
    claim = -1
    try:
        _remove_stale(target)
        _make(part)
        claim = _claim_own(part)
        files = _link_all(name, send)
        size = 0
        for shard in range(shards):
            folder = shard_folder(source, shard)
            size += _copy_shard(
                (staged(folder, name), folder), shard_folder(part, shard), files[shard]
            )
            adopt(DiskFiles(shard_folder(part, shard)))
        describe(part, shards)
        sync_directory(part)
        part.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise StoreConfigError(
            f"{target} cannot hold a backup: {error.strerror or error}; mend that, or use another "
            "directory",
            path=str(target),
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if claim >= 0:
            os.close(claim)
        _discard(name, send)
    return BackupDone(str(target), sum(map(len, files)), size)


def _refuse(source: Path, target: Path) -> None:
    # An empty directory may be where another file system is mounted, and a link lead to one: the
    # copy is made beside the target, and would have to be moved there in the end.
    try:
        is_free = not target.exists() and not target.is_symlink()
    except OSError:
        is_free = False
    if not is_free:
        raise StoreConfigError(
            f"{target} is there already: use a new directory for each backup", path=str(target)
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise StoreConfigError(
            f"{target} is inside the store itself: use a directory elsewhere", path=str(target)
        )


def _make(part: Path) -> None:
    """Make a directory, and those above it that are missing, for good."""
    missing = [folder for folder in part.parents if not folder.exists()]
    part.mkdir(mode=0o700, parents=True)
    for folder in missing:
        sync_directory(folder.parent)


def _remove_stale(target: Path) -> None:
    """Remove what backups to this place have left behind whose processes are gone."""
    name = re.compile(re.escape(target.name) + r"\.part-[0-9a-f]{8}")
    for left in target.parent.iterdir() if target.parent.is_dir() else ():
        if name.fullmatch(left.name) and not left.is_symlink():
            with contextlib.suppress(OSError):
                claim = _claim(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(claim)


def _claim_own(part: Path) -> int:
    try:
        return _claim(part)
    except BlockingIOError:
        raise _again("another backup to the same place began at the same moment") from None
    except OSError:
        # No directory can be locked here, by others neither: nobody takes it for left behind.
        return -1


def _claim(part: Path) -> int:
    """Lock a directory for as long as this process lives, and return what holds it.

    Raises:
        OSError: it is another process's, or directories cannot be locked here.
    """
    fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _link_all(name: str, send: Send) -> list[list[str]]:
    """Have every shard link its files, all at one moment; return their names."""
    for _ in range(BACKUP_TRIES_MAX):
        try:
            is_held = all(send(Backup("hold", name)))
            files: list[Any] = send(Backup("link", name)) if is_held else [None]
        finally:
            is_unbroken = all(send(Backup("release", name)))
        if is_unbroken and None not in files:
            return files
    raise _again(
        "the shards could not be held at one moment, another backup or a very slow disk keeps them"
    )


def _copy_shard(folders: Sequence[Path], target: Path, files: list[str]) -> int:
    """Link or copy what a shard has named; return the bytes."""
    target.mkdir(mode=0o700)
    size = sum(_take(folders, target, file) for file in files)
    sync_directory(target)
    return size


def _take(folders: Sequence[Path], target: Path, file: str) -> int:
    """Link or copy a file from the first folder that has it; return its size.

    What the shard has linked for us goes first. Without a link its own file is as good, for as long
    as it is there: it never changes, and no other one gets its name.
    """
    for folder in folders:
        source = folder / file
        with contextlib.suppress(FileNotFoundError):
            size = source.stat().st_size
            try:
                link(source, target / file)
            except FileNotFoundError:
                raise
            except OSError:
                _copy(source, target / file)
            return size
    raise _again(
        f"{file} went away before it was copied: its shard was started again, or the copying took "
        "too long"
    )


def _copy(source: Path, target: Path) -> None:
    """Copy to where no link can lead."""
    shutil.copyfile(source, target)
    target.chmod(0o600)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _again(why: str) -> Overloaded:
    return Overloaded(
        f"{why}; nothing was copied, try again", reason="backup", retry_after_ms=_RETRY_MS
    )


def _discard(name: str, send: Send) -> None:
    try:
        send(Backup("discard", name))
    except FlowError:
        # A shard that is away removes it when it starts.
        return
