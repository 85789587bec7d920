"""The data directory: what it says about the store, who owns it, where its parts lie.

store.json      format and number of shards; written once
OWNER           locked by the process that hosts the store; holds its pid
run/            token and sockets, made anew by each host; for the owner's eyes only
shard-N/        one shard's log; LOCK inside is held by its process
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any

from ..flow.engine import begin
from ..flow.errors import StoreConfigError, StoreLocked
from ..flow.host import DiskFiles, sync_directory
from ..flow.limits import SHARDS_MAX

FORMAT = 1
_STORE = "store.json"
_OWNER = "OWNER"


_owned: dict[tuple[int, int], int] = {}
"""Owner files that are locked by a process, under whatever path, and that process's pid."""


class Directory:
    """An existing store's directory, not locked yet."""

    def __init__(self, path: Path, shards: int) -> None:
        self.path = path
        self.shards = shards
        self._owner_fd = -1

    def shard_path(self, shard: int) -> Path:
        """Return the directory of a shard's log."""
        return self.path / f"shard-{shard}"

    def socket_path(self, shard: int) -> Path:
        """Return the path of a shard's socket."""
        return self.path / "run" / f"shard-{shard}.sock"

    def lock(self) -> None:
        """Make this process the owner, until `unlock` or its end.

        A POSIX record lock: it goes with the process, however that ends, and a forked child does
        not inherit it. It does not hold against this same process, and closing any descriptor of
        the file would give it up: hence `_owned`.

        Raises:
            StoreLocked: another process, or this one already, is the owner.
        """
        with contextlib.suppress(FileNotFoundError):
            if _owned.get(_identity(self.path / _OWNER)) == os.getpid():
                raise StoreLocked(
                    f"{self.path} is open in this process ({os.getpid()}) already: use that store, "
                    "or close it first",
                    path=str(self.path),
                    pid=os.getpid(),
                )
        fd = os.open(self.path / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pid = _pid_of(os.read(fd, 64))
            os.close(fd)
            raise StoreLocked(
                f"{self.path} is owned by process {pid or 'unknown'}: stop that process, or use "
                "another directory",
                path=str(self.path),
                pid=pid,
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._owner_fd = fd
        _owned[_identity(self.path / _OWNER)] = os.getpid()

    def unlock(self) -> None:
        """Stop being the owner; safe to repeat."""
        if self._owner_fd >= 0:
            _owned.pop(_identity(self._owner_fd), None)
            with contextlib.suppress(OSError):
                os.ftruncate(self._owner_fd, 0)
            os.close(self._owner_fd)
            self._owner_fd = -1

    def new_token(self) -> str:
        """Make the token that connecting processes have to show, readable by this user only."""
        run = self.path / "run"
        run.mkdir(mode=0o700, exist_ok=True)
        run.chmod(0o700)
        token = secrets.token_hex(16)
        _write_whole(run / "token", token.encode())
        return token


def _identity(file: Path | int) -> tuple[int, int]:
    found = os.stat(file)  # noqa: PTH116  # a path or a descriptor
    return found.st_dev, found.st_ino


def open_directory(path: Path, shards: int | None, default_shards: int) -> Directory:
    """Return the store's directory, making a new store where nothing is.

    Raises:
        StoreConfigError: the path is something else, another version, or has other shards.
        StoreLocked: another process is making the store at this moment.
    """
    described = path / _STORE
    if not described.exists():
        _create(path, shards or default_shards)
    found = _read(described)
    if shards is not None and shards != found["shards"]:
        raise StoreConfigError(
            f"{path} was created with {found['shards']} shards and cannot be opened with {shards}: "
            "leave shards out, or create a new store",
            path=str(path),
        )
    return Directory(path, found["shards"])


def is_hosted(path: Path) -> bool:
    """Whether another process owns the store at the path right now."""
    try:
        fd = os.open(path / _OWNER, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(fd)
    return False


def _create(path: Path, shards: int) -> None:
    """Make a new store: its description comes last, so that no part is missing once it is there."""
    _refuse_other(path)
    directory = Directory(path, shards)
    directory.lock()
    try:
        if (path / _STORE).exists():
            return
        for shard in range(shards):
            where = directory.shard_path(shard)
            where.mkdir(mode=0o700, exist_ok=True)
            begin(DiskFiles(where))
        sync_directory(path)
        text = json.dumps({"shardflow": "store", "format": FORMAT, "shards": shards})
        _write_whole(path / _STORE, text.encode())
        sync_directory(path.parent)
    finally:
        directory.unlock()


def _refuse_other(path: Path) -> None:
    """Refuse what is neither absent, nor empty, nor a store whose making was cut short."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = sorted(entry.name for entry in path.iterdir() if not _is_ours(entry))
    except OSError as error:
        raise StoreConfigError(
            f"{path} cannot be a data directory: {error.strerror or error}", path=str(path)
        ) from error
    if others:
        raise StoreConfigError(
            f"{path} is not empty and no shardflow store (it holds {', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}): use an empty or new directory",
            path=str(path),
        )


def _is_ours(entry: Path) -> bool:
    """Whether the entry may stand in a directory whose making was cut short."""
    if entry.name.startswith("shard-") and entry.is_dir():
        return not any(file.stat().st_size for file in entry.iterdir())
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


def _pid_of(data: bytes) -> int | None:
    with contextlib.suppress(ValueError):
        return int(data)
    return None
