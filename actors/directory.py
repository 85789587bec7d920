"""The data directory: what it says about the store, who owns it, where its parts lie.

store.json      format and number of shards; written once
OWNER           locked by the process that hosts the store: actors/owner.py
run/            what attaching processes have to know, and sockets: actors/notices.py
shard-N/        one shard's log; LOCK inside is held by its process, and names it
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..flow.engine import begin
from ..flow.errors import StoreConfigError
from ..flow.host import DiskFiles, sync_directory
from ..flow.limits import SHARDS_MAX
from .notices import HostFacts, Notices
from .owner import Owner

FORMAT = 1
_STORE = "store.json"
_OWNER = "OWNER"
_LOCK = "LOCK"


class Directory:
    """An existing store's directory, not locked yet."""

    def __init__(self, path: Path, shards: int) -> None:
        self.path = path
        self.shards = shards
        self.owner = Owner(path)
        self.notices = Notices(path)

    def shard_path(self, shard: int) -> Path:
        """Return the directory of a shard's log."""
        return shard_folder(self.path, shard)

    def lock_path(self, shard: int) -> Path:
        """Return the file that a shard's process holds locked."""
        return self.shard_path(shard) / _LOCK

    def host(self) -> HostFacts | None:
        """Return who hosts the store, and how; None: nobody, or it has not said so yet.

        Raises:
            StoreConfigError: what it says is not understood.
        """
        if not self.owner.is_published:
            return None
        try:
            return self.notices.facts()
        except OSError:
            return None


def open_directory(path: Path, shards: int | None, default_shards: int) -> Directory:
    """Return the store's directory, making a new store where nothing is.

    Raises:
        StoreConfigError: the path is something else, another version, or has other shards.
        StoreLocked: another process is making the store at this moment.
    """
    if not is_made(path):
        _create(path, shards or default_shards)
    found = _read(path / _STORE)
    if shards is not None and shards != found["shards"]:
        raise StoreConfigError(
            f"{path} was created with {found['shards']} shards and cannot be opened with {shards}: "
            "leave shards out, or create a new store",
            path=str(path),
        )
    return Directory(path, found["shards"])


def shard_folder(path: Path, shard: int) -> Path:
    """Return where a store keeps a shard's log."""
    return path / f"shard-{shard}"


def describe(path: Path, shards: int) -> None:
    """Write what makes a directory a store."""
    text = json.dumps({"shardflow": "store", "format": FORMAT, "shards": shards})
    _write_whole(path / _STORE, text.encode())


def is_made(path: Path) -> bool:
    """Whether there is a store at the path."""
    return (path / _STORE).exists()


def _create(path: Path, shards: int) -> None:
    """Make a new store: its description comes last, so that no part is missing once it is there."""
    _refuse_other(path)
    directory = Directory(path, shards)
    directory.owner.lock()
    try:
        if is_made(path):
            return
        for shard in range(shards):
            where = directory.shard_path(shard)
            where.mkdir(mode=0o700, exist_ok=True)
            begin(DiskFiles(where))
        sync_directory(path)
        describe(path, shards)
        sync_directory(path.parent)
    finally:
        directory.owner.unlock()


def _refuse_other(path: Path) -> None:
    """Refuse what is neither absent, nor empty, nor a store whose making was cut short."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = sorted(entry.name for entry in path.iterdir() if not _is_ours(entry))
    except OSError as error:
        raise StoreConfigError(
            f"{path} cannot be a data directory: {error.strerror or error}", path=str(path)
        ) from error
    if others and not is_made(path):  # by somebody else, meanwhile
        raise StoreConfigError(
            f"{path} is not empty and no shardflow store (it holds {', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}): use an empty or new directory",
            path=str(path),
        )


def _is_ours(entry: Path) -> bool:
    """Whether the entry may stand in a directory whose making was cut short."""
    if entry.name.startswith("shard-") and entry.is_dir():
        return not any(file.stat().st_size for file in entry.iterdir() if file.name != _LOCK)
    return entry.name.startswith((_STORE, _OWNER))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        is_store = found["shardflow"] == "store"
        version, shards = found["format"], found["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreConfigError(
            f"{path} does not describe a shardflow store: restore it from a backup "
            f"({type(error).__name__}: {error})",
            path=str(path.parent),
        ) from error
    if not is_store or version != FORMAT:
        raise StoreConfigError(
            f"{path.parent} has format {version!r}; this version of shardflow reads format "
            f"{FORMAT}: use the version that wrote it",
            path=str(path.parent),
        )
    if type(shards) is not int or not 1 <= shards <= SHARDS_MAX:
        raise StoreConfigError(
            f"{path} names {shards!r} shards; 1 to {SHARDS_MAX} are possible",
            path=str(path.parent),
        )
    return {"shards": shards}


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file such that it is there whole or not at all, also after a power loss."""
    fresh = path.with_name(path.name + f".{os.getpid()}.tmp")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.replace(path)
    sync_directory(path.parent)
